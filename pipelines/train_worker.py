"""Entry point of a training worker.

Ray unpickles it in the controller too, which needs none of the heavy imports: they happen inside.
"""

from typing import Any


def train_worker(config: dict[str, Any]) -> None:
    """Run one rank under Ray Train. Errors that are not to be retried are left in failure-RANK.json for the driver."""
    import logging

    import ray.train
    import ray.train.torch
    import transformers

    from pipelines.config import Recipe
    from pipelines.errors import StageFailed, UserError
    from pipelines.placement import Placement
    from pipelines.store import RunStore
    from pipelines.trainer import Trainer

    logging.getLogger("ray.train").setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    context = ray.train.get_context()
    rank = context.get_world_rank()
    recipe = Recipe.model_validate(config["recipe"])
    try:
        placement = Placement.choose(recipe.train.precision, ray.train.torch.get_device(), rank, context.get_world_size())
        Trainer(recipe, placement, config["threads"]).run(report=ray.train.report)
    except (UserError, StageFailed) as error:
        kind = "user" if isinstance(error, UserError) else "stage"
        RunStore(f"{recipe.run_dir}/train").write_json(f"failure-{rank}.json", {"kind": kind, "message": str(error)})
