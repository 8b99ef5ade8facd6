"""One prompt, one image: the shortest useful pipeline."""

import pendulum
from airflow.sdk import DAG

from kie_provider.operators.flux2 import Flux2CreateTaskOperator
from kie_provider.sensors.flux2 import Flux2TaskSensor

with DAG(
    dag_id="flux2_single_image",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    tags=["kie", "flux-2"],
    doc_md=__doc__,
):
    # Retrying it pays nothing twice: the next try goes on with the same Kie task. Before Airflow 3.3, set retries=0.
    create = Flux2CreateTaskOperator(
        task_id="create",
        retries=2,
        prompt=(
            "Hyperrealistic supermarket blister pack on clean olive green surface. No shadows. Inside: bright pink "
            '3D letters spelling "FLUX.2" pressing against stretched plastic film, creating realistic deformation '
            "and reflective highlights. Bottom left corner: barcode sticker with text "
            '"GENERATE NOW" and "PLAYGROUND". Plastic shows tension wrinkles and realistic shine where stretched '
            "by the volumetric letters."
        ),
        aspect_ratio="1:1",
        resolution="1K",
    )
    # Waits in the triggerer, without a worker; retrying it costs nothing.
    wait = Flux2TaskSensor(
        task_id="wait",
        kie_task_id=create.output,
        deferrable=True,
        retries=3,
        retry_delay=pendulum.duration(seconds=30),
    )
