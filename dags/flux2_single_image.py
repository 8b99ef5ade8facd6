"""One prompt, one image, in three steps: create, wait, save.

`Flux2GenerateImageOperator` does the same in one task.
"""

import pendulum
from airflow.sdk import DAG, Param

from kie_provider.operators.flux2 import Flux2CreateTaskOperator
from kie_provider.operators.results import KieSaveResultOperator
from kie_provider.sensors.flux2 import Flux2TaskSensor

with DAG(
    dag_id="flux2_single_image",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    params={"output_dir": Param("kie_images", type="string", description="A folder, or s3://connection@bucket/prefix")},
    # Retries never pay twice: the next try continues with the same Kie task. Before 3.3, set retries=0 on `create`.
    default_args={"retries": 2, "retry_delay": pendulum.duration(seconds=30)},
    tags=["kie", "flux-2"],
    doc_md=__doc__,
):
    create = Flux2CreateTaskOperator(
        task_id="create",
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
    # Waits in the triggerer, without a worker slot.
    wait = Flux2TaskSensor(task_id="wait", kie_task_id=create.output, deferrable=True)
    # Kie's links can expire within 24 hours.
    KieSaveResultOperator(task_id="save", result=wait.output, target="{{ params.output_dir }}/{{ run_id }}")
