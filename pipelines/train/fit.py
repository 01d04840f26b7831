"""train: fine-tune on the prepared pairs with Ray Train; resumes at the last published checkpoint.

Checkpoints are ours (see checkpoint.py), not Ray's: they are durable the moment they are
published and hold no pickle. Ray Train places the workers, joins them and restarts them after a
failure.
"""

import contextlib
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from pipelines.cluster import (
    Bar,
    Resources,
    cluster_address,
    failure_of,
    interruptible,
    local_paths,
    second_choice,
    tell_of_wait,
)
from pipelines.errors import (
    DamagedFile,
    Failure,
    StageFailed,
)
from pipelines.pairs import open_pairs
from pipelines.recipe import (
    CARD,
    METRICS,
    MODEL,
    PUBLISHED,
    SPANS,
    Run,
    StageRecord,
    TrainSection,
    failure_files,
    read_manifest,
)
from pipelines.reference import usable_rows
from pipelines.storage import (
    RunStore,
    Span,
    add_spans,
    read_record,
    spent,
)
from pipelines.train.facts import TrainingFacts
from pipelines.train.metrics import (
    read_metrics,
    read_part,
)
from pipelines.train.model_card import CardFacts, model_card
from pipelines.train.places import free_places_of_dead
from pipelines.train.worker import (
    remembered_budget,
    spans_told,
    train_worker,
)
from sparsepo.batching.sampling import Sampler

# What the progress bar shows of a step.
_SHOWN = {
    "loss": ("loss", "{:.3g}"),
    "rewards/margins": ("margin", "{:.3g}"),
    "rewards/accuracies": ("accuracy", "{:.3g}"),
    "kl/reference_policy": ("kl", "{:.3g}"),
    "masks/reward_zero_fraction": ("zeros", "{:.0%}"),
    "tokens_per_second": ("tok/s", "{:,.0f}"),
    "mfu": ("mfu", "{:.0%}"),
    "memory_gib": ("GiB", "{:.1f}"),
}
_LIGHTER = "lower train.num_workers or train.micro_batch_tokens"
_RESIZE_SECONDS = 30.0  # between looks for room for more workers


def run_train(
    run: Run,
    record: StageRecord,
    facts: TrainingFacts,
    quiet: bool = False,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    """Train, or resume, and return the stage's manifest. Needs a running Ray.

    Raises: UserError for impossible resources; StageFailed if the loss stops being finite.
    """
    recipe = run.recipe
    record.begin()
    store = record.store
    store.sweep_temporary()
    for name in failure_files(store):
        store.delete(name)
    num_pairs = len(usable_rows(facts.reference, open_pairs(run), "train"))
    with _progress(store, _num_steps(recipe.train, num_pairs), quiet):
        _fit_within_memory(run, facts, callbacks)
    _raise_failure(store)
    return finish_training(run, record, num_pairs)


def finish_training(run: Run, record: StageRecord, num_pairs: int) -> dict[str, Any]:
    """Publish the stage's manifest, and the card of the model that the workers left.

    Args: num_pairs: that were trained on.
    Returns: the manifest.
    Raises: StageFailed if they left no model.
    """
    recipe, store = run.recipe, record.store
    if not (store.exists(MODEL) and store.exists(PUBLISHED)):
        raise StageFailed(
            "training ended without a model: another command has taken over this run, or see the "
            "workers' output above"
        )
    steps = _num_steps(recipe.train, num_pairs)
    records = list(read_metrics(store))
    last = [r for r in records if "kind" not in r][-1]
    counts: dict[str, Any] = {"steps": last["step"], "pairs": num_pairs, "final": last}
    if last["step"] < steps:
        counts["stopped_early"] = (
            f"{recipe.train.selection.metric} did not improve: step {last['step']} of {steps}"
        )
    counts["warnings"] = [
        f"step {r['step']}: {m}"
        for r in records
        if r.get("kind") == "warning"
        for m in r["messages"]
    ]
    validations = [r for r in records if r.get("kind") == "validation"]
    if validations:
        counts["validation"] = validations[-1]
    pairs = read_manifest(run.paths.pairs)["counts"]
    is_adapter = recipe.train.lora is not None and recipe.train.lora.save == "adapter"
    card = model_card(recipe, CardFacts(counts, pairs, is_adapter=is_adapter))
    store.write_bytes(f"{MODEL}/{CARD}", card.encode())
    logged = [f"{METRICS}/{name}" for name in store.names(METRICS)]
    outputs = read_record(store, PUBLISHED) | {path: store.checksum(path) for path in logged}
    manifest = record.finish(counts, outputs)
    store.delete(PUBLISHED)
    return manifest


def _num_steps(train: TrainSection, num_pairs: int) -> int:
    sampler = Sampler(num_pairs, train.global_batch_size, train.seed)
    return sampler.num_steps(train.epochs, train.max_steps)


def _fit_within_memory(run: Run, facts: TrainingFacts, callbacks: Sequence[Any]) -> None:
    """Train; with train.auto_microbatch again with half the budget.

    That is repeated as long as halving it is what ended a worker group.
    """
    store = run.paths.train
    while True:
        before = remembered_budget(store)
        try:
            _fit(run, facts, callbacks)
            return
        except StageFailed:
            if remembered_budget(store) == before:
                raise


def _fit(run: Run, facts: TrainingFacts, callbacks: Sequence[Any]) -> None:
    from pipelines.models import quick_imports

    with quick_imports():
        import ray.train
        from ray.exceptions import RayError
        from ray.train import FailureConfig, RunConfig, ScalingConfig

        from pipelines.train.lean_trainer import LeanTrainer, OwnRayTrainer

    recipe, train = run.recipe, run.recipe.train
    places = Resources.now(recipe.ray).training(train)
    elastic = (
        {} if train.min_workers is None else {"elastic_resize_monitor_interval_s": _RESIZE_SECONDS}
    )
    trainer_class = OwnRayTrainer if cluster_address(recipe.ray) is None else LeanTrainer
    trainer = trainer_class(
        train_worker,
        train_loop_config={
            "facts": facts,
            "threads": max(1, int(places.bundle["CPU"])),
            "paths": local_paths(recipe),
        },
        scaling_config=ScalingConfig(
            num_workers=train.num_workers
            if train.min_workers is None
            else (train.min_workers, train.num_workers),
            use_gpu="GPU" in places.bundle,
            resources_per_worker=dict(places.bundle),
            **elastic,
        ),
        run_config=RunConfig(
            # A new name each time: Ray's own restore is not used, our checkpoints are.
            name=f"train-{uuid.uuid4().hex[:12]}",
            storage_path=run.paths.ray.root,
            failure_config=FailureConfig(max_failures=train.max_failures),
            callbacks=list(callbacks),
        ),
    )
    try:
        with second_choice(recipe, places, _say), spent("ray"):
            tell_of_wait("training", places)
            interruptible(trainer.fit)
    except (ray.train.TrainingFailedError, RayError) as error:  # of its workers, its controller
        free_places_of_dead()
        _raise_failure(run.paths.train)
        raise failure_of(error, "training", _LIGHTER).error() from error
    finally:
        _take_spans(run.paths.train)


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


def _take_spans(store: RunStore) -> None:
    """Where the time of the first worker went; of each one that was started again."""
    if store.exists(SPANS):
        add_spans([Span(*span) for span in spans_told(store)])
        store.delete(SPANS)


def _raise_failure(store: RunStore) -> None:
    for name in failure_files(store):
        found = read_record(store, name, {"kind": str, "message": str})
        raise Failure(found["kind"], found["message"]).error()


@contextlib.contextmanager
def _progress(store: RunStore, steps: int, quiet: bool) -> Iterator[None]:
    """A bar fed by the published metrics, so that it works for any placement of the workers."""
    if quiet:
        yield
        return
    stop = threading.Event()

    def follow() -> None:
        seen: set[str] = set()
        with Bar(total=steps, desc="train", unit="step") as bar:
            is_first = True
            while True:
                finished = stop.is_set()
                for name in store.names(METRICS):
                    if name in seen or not name.endswith(("-train.jsonl", "-warning.jsonl")):
                        continue
                    seen.add(name)
                    for record in _records(store, name):
                        for message in record.get("messages", ()):
                            bar.write(f"warning: step {record['step']}: {message}", file=sys.stderr)
                        if "kind" in record:
                            continue
                        if record["step"] > bar.n:
                            bar.n = record["step"]
                        bar.set_postfix(
                            {
                                label: form.format(record[key])
                                for key, (label, form) in _SHOWN.items()
                                if key in record
                            },
                            refresh=False,
                        )
                    bar.refresh()
                # What was there at the first look is another command's work.
                (bar.starts_at if is_first else bar.came_to)(bar.n)
                is_first = False
                if finished:
                    return
                stop.wait(1.0)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)


def _records(store: RunStore, name: str) -> list[dict[str, Any]]:
    try:
        return read_part(store, name)
    except (FileNotFoundError, DamagedFile):  # a resuming worker discards parts
        return []
