"""A training worker: its entry point under Ray Train, and what any rank does.

Ray unpickles it in the controller too, which needs none of the heavy imports: they happen inside.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.models import Placement
    from pipelines.storage import RunStore, Span
    from pipelines.train.facts import TrainingFacts


def train_worker(config: dict[str, Any]) -> None:
    """Run one rank under Ray Train.

    `config`: facts (TrainingFacts), threads, paths (that this machine has to see).
    """
    from pipelines.cluster import sendable
    from pipelines.storage import recorded

    with recorded() as spans:
        try:
            _train(config)
        except Exception as error:
            raise sendable(error) from None
        finally:
            _tell(config["facts"].root, spans)


def _tell(root: str, spans: "Sequence[Span]") -> None:
    """Leave word of where the first rank's time went, beside that of groups before it."""
    from dataclasses import astuple

    import ray.train

    from pipelines.recipe import SPANS
    from pipelines.storage import RunStore, write_record

    if ray.train.get_context().get_world_rank() == 0:
        store = RunStore(root)
        told = [*spans_told(store), *map(astuple, spans)]
        write_record(store, SPANS, {"spans": told})


def spans_told(store: "RunStore") -> list[list[Any]]:
    """What workers have told of their time so far; nothing if that is damaged."""
    from pipelines.errors import DamagedFile
    from pipelines.recipe import SPANS
    from pipelines.storage import read_record

    try:
        found: list[list[Any]] = read_record(store, SPANS, {"spans": list})["spans"]
    except (FileNotFoundError, DamagedFile):
        return []
    return found


def _train(config: dict[str, Any]) -> None:
    import logging

    from pipelines.cluster import require_seen
    from pipelines.models import Placement, quick_imports

    with quick_imports():
        import ray.train
        import ray.train.torch

    logging.getLogger("ray.train").setLevel(logging.WARNING)
    require_seen(
        config["paths"]
    )  # raised, since a file that says so would be left where nobody looks
    context = ray.train.get_context()
    facts: TrainingFacts = config["facts"]
    placement = Placement.choose(
        facts.train.precision,
        ray.train.torch.get_device(),
        context.get_world_rank(),
        context.get_world_size(),
        facts.train.strategy,
    )
    train_rank(
        facts,
        placement,
        config["threads"],
        ray.train.report,
        lambda: ray.train.get_preemption_info() is not None,
    )


def train_rank(
    facts: "TrainingFacts",
    placement: "Placement",
    threads: int,
    report: Callable[[dict[str, Any]], None],
    is_preempted: Callable[[], bool] = lambda: False,
) -> None:
    """Train one rank of a group whose processes are joined.

    An error that is not to be retried is left in failure-RANK.json for the driver. With several
    workers it is raised too: others may be waiting for this one, and Ray ends them with it; the
    group that Ray starts next finds the file and returns. Memory that ran out is noted in
    memory.json, with the budget for the next group if the recipe lets it be halved.

    Args:
        threads, report, is_preempted: see Trainer.
    """
    from dataclasses import asdict

    from pipelines.errors import Failure, StageFailed, Superseded, UserError
    from pipelines.models import is_out_of_memory, quick_imports
    from pipelines.recipe import FAILURE, failure_files
    from pipelines.storage import RunStore, write_record

    with quick_imports():
        import transformers

        from pipelines.train.compilation import told_if_not_compiled
        from pipelines.train.trainer import Trainer

    transformers.utils.logging.disable_progress_bar()
    store = RunStore(facts.root)
    if failure_files(store):
        return

    def fail(error: Exception) -> None:
        write_record(store, f"{FAILURE}{placement.rank}.json", asdict(Failure.of(error)))

    trainer: Trainer | None = None
    try:
        budget = remembered_budget(store) if facts.train.auto_microbatch else None
        with quick_imports():  # of the model's own code
            trainer = Trainer(facts, placement, threads, budget)
        with told_if_not_compiled(trainer.compilation is not None):
            trainer.run(report, is_preempted)
    except Superseded:
        return
    except (UserError, StageFailed) as error:
        fail(error)
        if placement.world > 1:
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

    return read_memory(store)["micro_batch_tokens"] if store.exists(MEMORY) else None


def read_memory(store: Any) -> dict[str, Any]:
    """What `note_memory` wrote. Raises: DamagedFile."""
    from pipelines.recipe import MEMORY
    from pipelines.storage import read_record

    fields = dict.fromkeys(("micro_batch_tokens", "step", "was"), int)
    cure = "remove it: training begins with train.micro_batch_tokens again"
    return read_record(store, MEMORY, fields, cure)


def note_memory(trainer: Any) -> Exception | None:
    """Halve the budget for the next worker group.

    Returns: None; if there is to be no such group, an error with what the user can change.
    """
    from pipelines.errors import StageFailed
    from pipelines.recipe import MEMORY
    from pipelines.storage import write_record

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
    noted = {"micro_batch_tokens": half, "step": step, "was": budget}
    write_record(trainer.store, MEMORY, noted)
    return None
