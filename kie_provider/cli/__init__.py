"""Commands of ``airflow kie``, in Airflow 3.2 and later."""
