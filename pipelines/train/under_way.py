"""How far a training has come, by what its workers have published; nothing heavy is imported."""

from statistics import median
from typing import Any

from pipelines.errors import UserError
from pipelines.recipe import CONFIG, MANIFEST, METRICS, RunPaths, read_config, read_manifest
from pipelines.storage import RunStore, progress_text
from pipelines.train.metrics import read_part
from sparsepo.batching.sampling import Sampler

_RECENT = 20  # steps whose times give the rate


def steps_text(paths: RunPaths) -> str:
    """The step, of how many, the rate and the time that is left; empty before the first."""
    last = _last_records(paths.train)
    if not last:
        return ""
    step, total = last[-1]["step"], _num_steps(paths)
    times = [found for r in last[-_RECENT:] if (found := r.get("step_seconds"))]
    rate = 1 / median(times) if times else None
    if total is None:
        return f"step {step}" + (f", {rate:.3g} steps/s" if rate else "")
    return progress_text(step, total, "step", rate)


def has_stepped(store: RunStore, since: float) -> bool:
    """Whether a step was published after a moment, in seconds since the epoch."""
    return any(changed / 1e9 > since for _, _, changed in store.at(METRICS).files())


def _last_records(store: RunStore) -> list[dict[str, Any]]:
    """The records of the last part of training."""
    names = [name for name in store.names(METRICS) if name.endswith("-train.jsonl")]
    for name in reversed(names):
        try:
            return read_part(store, name)
        except (FileNotFoundError, UserError):  # replaced by a longer one, or damaged
            continue
    return []


def _num_steps(paths: RunPaths) -> int | None:
    """Steps of the whole training; None where the run does not say."""
    if not (paths.run.exists(CONFIG) and paths.pairs.exists(MANIFEST)):
        return None
    train: Any = read_config(paths.run, CONFIG)[0].get("train")
    pairs = read_manifest(paths.pairs)["counts"].get("pairs", {}).get("train")
    try:
        sampler = Sampler(pairs, train["global_batch_size"], 0)
        return sampler.num_steps(train["epochs"], train["max_steps"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
