"""What the processes of a run import first: most of their time to start. None asks for devices."""

IMPORTED_EARLY = (
    "torch",
    "ray.data",
    "transformers.models.auto.modeling_auto",
    "pipelines.reference.actor",
    "pipelines.train.lean_trainer",
    "pipelines.train.trainer",
)
# And on a GPU, where layers or attention are compiled.
IMPORTED_EARLY_FOR_GPUS = ("torch._inductor.compile_fx",)
