"""Entry point of a training worker.

Ray unpickles it in the controller too, which needs none of the heavy imports: they happen inside.
"""

from typing import Any


def train_worker(config: dict[str, Any]) -> None:
    """Run one rank under Ray Train.

    `config`: facts (TrainingFacts), threads, paths (that this machine has to see).

    An error that is not to be retried is left in failure-RANK.json for the driver. With several
    workers it is raised too: others may be waiting for this one, and Ray ends them with it; the
    group that Ray starts next finds the file and returns. Memory that ran out is noted in
    memory.json, with the budget for the next group if the recipe lets it be halved.
    """
    import logging
    from dataclasses import asdict

    import ray.train
    import ray.train.torch
    import transformers

    from pipelines.cluster import require_seen
    from pipelines.errors import Failure, StageFailed, Superseded, UserError
    from pipelines.models import Placement, is_out_of_memory
    from pipelines.recipe import FAILURE, failure_files
    from pipelines.storage import RunStore
    from pipelines.train.facts import TrainingFacts
    from pipelines.train.trainer import Trainer

    logging.getLogger("ray.train").setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    require_seen(
        config["paths"]
    )  # raised, since a file that says so would be left where nobody looks
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    facts: TrainingFacts = config["facts"]
    store = RunStore(facts.root)
    if failure_files(store):
        return

    def is_preempted() -> bool:
        return ray.train.get_preemption_info() is not None

    def fail(error: Exception) -> None:
        store.write_json(f"{FAILURE}{rank}.json", asdict(Failure.of(error)))

    trainer: Trainer | None = None
    try:
        train = facts.train
        placement = Placement.choose(
            train.precision, ray.train.torch.get_device(), rank, world, train.strategy
        )
        trainer = Trainer(
            facts,
            placement,
            config["threads"],
            remembered_budget(store) if train.auto_microbatch else None,
        )
        trainer.run(ray.train.report, is_preempted)
    except Superseded:
        return
    except (UserError, StageFailed) as error:
        fail(error)
        if world > 1:
            raise
    except Exception as error:
        if trainer is None or not is_out_of_memory(error):
            raise
        failure = note_memory(trainer)
        if failure is not None:
            fail(failure)
        raise
    finally:
        if trainer is not None:
            trainer.close()


def remembered_budget(store: Any) -> int | None:
    """Tokens per micro-batch after memory ran out in this run, None if it never did."""
    from pipelines.recipe import MEMORY

    return store.read_json(MEMORY)["micro_batch_tokens"] if store.exists(MEMORY) else None


def note_memory(trainer: Any) -> Exception | None:
    """Halve the budget for the next worker group.

    Returns: None; if there is to be no such group, an error with what the user can change.
    """
    from pipelines.errors import StageFailed
    from pipelines.recipe import MEMORY

    train, budget, step = trainer.facts.train, trainer.layout.budget, trainer.step + 1
    cure = "train.gradient_checkpointing=true, train.strategy=fsdp with more workers, train.lora"
    half = max(1, budget // 2)
    if not train.auto_microbatch:
        return StageFailed(
            f"out of memory at step {step} with micro-batches of {budget} tokens: set "
            f"train.micro_batch_tokens={half} (or train.auto_microbatch=true), {cure}"
        )
    if trainer.is_one_pair_each:
        return StageFailed(
            f"out of memory at step {step} with one pair per micro-batch: lower "
            f"data.max_prompt_tokens or data.max_response_tokens, {cure}"
        )
    # From the budget of this group, whatever other ranks write: all of them halve the same number.
    trainer.store.write_json(MEMORY, {"micro_batch_tokens": half, "step": step, "was": budget})
    return None
