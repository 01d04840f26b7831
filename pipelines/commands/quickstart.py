"""quickstart: the whole pipeline on a small world of its own: no network, no GPU.

world -> sft -> sample -> prepare -> reference -> train, evaluate (DPO, MaPO, SparsePO side by side)
-> report. Only this file is special: every stage is the one that real recipes use.
"""

import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from evaluation.intervals import mean_of
from pipelines.cluster import EarlySession
from pipelines.commands.quickstart_world import write_world
from pipelines.commands.report import run_report
from pipelines.commands.run import run_stages
from pipelines.commands.sft import run_sft
from pipelines.errors import UserError
from pipelines.evaluate import EVALUATE, SAMPLE, read_results
from pipelines.pairs import PREPARE
from pipelines.recipe import (
    CANDIDATES,
    RaySection,
    Recipe,
    Say,
    read_manifest,
    validate_recipe,
)
from pipelines.reference import REFERENCE
from pipelines.storage import (
    RunStore,
    damaged,
    read_lines,
    read_record,
    read_whole,
    write_record,
)
from pipelines.train import TRAIN

_MARKER = "complete.json"
REVIEWS, TRAIN_PROMPTS, TEST_PROMPTS = 2000, 480, 240
_GENERATION = {"max_new_tokens": 40, "temperature": 1.0}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "dpo": {"objective": {"name": "dpo", "beta": 0.1}, "mask": {"kind": "none"}},
    "mapo": {
        "objective": {"name": "mapo", "beta": 0.1},
        "mask": {"kind": "activation", "hooks": "all"},
    },
    "sparsepo": {
        "objective": {"name": "sparsepo", "beta": 0.1, "l1_reward": 0.0, "l1_kl": 0.0},
        "mask": {
            "kind": "learned",
            "architecture": "simple_last",
            "sharing": "common",
            "learning_rate": 0.005,
        },
    },
}


def run_quickstart(overrides: Sequence[str], say: Say, quiet: bool) -> str:
    """Run everything below `dir` (default ./quickstart/seed-N); returns the path of the report.

    Args:
        overrides: seed=N and dir=PATH. Raises: UserError for any other key.
    """
    options = _options(overrides)
    seed, root = int(options["seed"]), Path(options["dir"]).absolute()
    started = time.monotonic()
    # Three one-CPU runs side by side, on any machine: the start-up of one overlaps the steps of
    # another.
    with EarlySession(RaySection(num_cpus=len(OBJECTIVES), num_gpus=0)) as ray:
        has_world(root, seed)  # or refuses before Ray starts
        ray.begin(is_certain=True)
        world = make_world(root, seed)
        say(
            f"world: {REVIEWS} reviews, {TRAIN_PROMPTS} training and {TEST_PROMPTS} test prompts "
            f"in {world}"
        )
        ray.start()
        start_model = run_sft(start_recipe(root, seed), say, quiet)
        sampling = sampling_recipe(root, seed, start_model)
        run_stages(sampling, (SAMPLE,), say, quiet)
        split_candidates(root)
        recipes = {name: preference_recipe(root, seed, start_model, name) for name in OBJECTIVES}
        # One store serves the three runs: it holds what all of them need. Nobody else works yet.
        alone = recipes["mapo"].model_copy(update={"ray": sampling.ray})
        run_stages(alone, (PREPARE, REFERENCE), say, quiet)
        _side_by_side(recipes, say)
    page = run_report([recipe.run_dir for recipe in recipes.values()], str(root))
    say(_verdict(recipes))
    say(f"quickstart: seed {seed}, {time.monotonic() - started:.0f} s")
    return page


def has_world(root: Path, seed: int) -> bool:
    """Whether the world is there.

    Raises: UserError if it is another seed's; DamagedFile if it is not what was written.
    """
    store, cure = _world(root)
    if not store.exists(_MARKER):
        return False
    told = read_record(store, _MARKER, {"seed": int}, cure)
    if told["seed"] != seed:
        raise UserError(
            f"{root} holds the quickstart of seed {told['seed']}, now seed={seed}: give "
            "another dir=PATH"
        )
    for name, hash_ in told.get("files", {}).items():
        if not store.exists(name) or _sha256(store, name, cure) != hash_:
            raise damaged(store, name, "it is not what was written", cure)
    return True


def make_world(root: Path, seed: int) -> Path:
    """The folder of the world, written if it is not there. Raises: as `has_world` does."""
    store, cure = _world(root)
    if not has_world(root, seed):
        write_world(store.local_path(), seed, REVIEWS, TRAIN_PROMPTS, TEST_PROMPTS)
        files = {name: _sha256(store, name, cure) for name, _, _ in store.files()}
        write_record(store, _MARKER, {"seed": seed, "files": files})
    return store.local_path()


def _world(root: Path) -> tuple[RunStore, str]:
    """The world's store, and what to do if it is damaged."""
    return RunStore(str(root / "world")), f"remove {root} and run quickstart again"


def _sha256(store: RunStore, name: str, cure: str) -> str:
    return hashlib.sha256(read_whole(store, name, cure)).hexdigest()


def _side_by_side(recipes: dict[str, Recipe], say: Say) -> None:
    """Train and evaluate the runs at the same time.

    The first error, or Ctrl-C, stops waiting for the others.
    """
    pool = ThreadPoolExecutor(max_workers=len(recipes))
    try:
        futures = [
            pool.submit(
                run_stages, recipe, (REFERENCE, TRAIN, EVALUATE), _prefixed(say, name), True
            )
            for name, recipe in recipes.items()
        ]
        for future in futures:
            future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _options(overrides: Sequence[str]) -> dict[str, str]:
    options = {"seed": "0"}
    for item in overrides:
        key, separator, value = item.partition("=")
        if not separator or key not in ("seed", "dir"):
            raise UserError(f"quickstart option {item!r}: allowed are seed=N and dir=PATH")
        options[key] = value
    if not options["seed"].isdigit():
        raise UserError(f"seed = {options['seed']!r}: must be a whole number >= 0")
    options.setdefault("dir", f"quickstart/seed-{options['seed']}")
    return options


def start_recipe(root: Path, seed: int) -> Recipe:
    return validate_recipe(
        {
            "run_dir": str(root / "sft"),
            "model": {"name_or_path": str(root / "world" / "model")},
            "data": {
                "sources": [{"path": str(root / "world" / "reviews.jsonl")}],
                "max_prompt_tokens": 40,
                "max_response_tokens": 60,
            },
            "objective": {"name": "sft"},
            "ray": {"cpus_per_run": 2},
            "train": {
                "global_batch_size": 64,
                "epochs": 2,
                "learning_rate": 3e-3,
                "seed": seed,
                "checkpoint_every": 50,
            },
        }
    )


def sampling_recipe(root: Path, seed: int, model: str) -> Recipe:
    return validate_recipe(
        {
            "run_dir": str(root),
            "model": {"name_or_path": model},
            "data": {
                "sources": [{"path": str(root / "world" / "prompts.jsonl")}],
                "max_prompt_tokens": 40,
                "max_response_tokens": 60,
            },
            "sample": {
                "num_candidates": 4,
                "seed": seed,
                "generation": _GENERATION,
                "batch_prompts": 120,
                "num_actors": 2,
            },
            "ray": {"cpus_per_run": 2},
        }
    )


def preference_recipe(root: Path, seed: int, model: str, name: str) -> Recipe:
    return validate_recipe(
        {
            "run_dir": str(root / name),
            "model": {"name_or_path": model},
            "data": {
                "sources": [{"path": str(root / "sample" / "train.jsonl")}],
                "test": [{"path": str(root / "sample" / "test.jsonl")}],
                "max_prompt_tokens": 40,
                "max_response_tokens": 60,
                "min_gap": 0.2,
                "shard_pairs": 256,
            },
            **OBJECTIVES[name],
            "train": {
                "global_batch_size": 32,
                "epochs": 3,
                "learning_rate": 5e-4,
                "seed": seed,
                "checkpoint_every": 20,
            },
            "evaluate": {
                "num_prompts": TEST_PROMPTS,
                "generation": _GENERATION,
                "key_words": str(root / "world" / "key_words.txt"),
                "seed": seed,
            },
            "paths": {"pairs": str(root / "pairs"), "reference": str(root / "reference")},
            "reference": {"num_actors": 2},
            "ray": {"cpus_per_run": 1},
        }
    )


def split_candidates(root: Path) -> None:
    """Part the candidates by the split of their prompt. DamagedFile if they are not as written."""
    world, sample = RunStore(str(root / "world")), RunStore(str(root / "sample"))
    cure = f"remove {sample.root} and run quickstart again"
    known = read_manifest(sample)["outputs"].get(CANDIDATES)
    found = read_lines(sample, CANDIDATES, {"prompt": str}, known, cure)
    splits = {row["prompt"]: row["split"] for row in read_lines(world, "prompts.jsonl")}
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for row, line in zip(found, sample.read_bytes(CANDIDATES).splitlines(), strict=True):
        lines[splits[row["prompt"]]].append(line.decode() + "\n")
    for split, kept in lines.items():
        path = root / "sample" / f"{split}.jsonl"
        text = "".join(kept)
        if not path.is_file() or path.read_bytes() != text.encode():
            path.write_text(text)


def _prefixed(say: Say, name: str) -> Say:
    return lambda line: say(f"{name}: {line}")


def _verdict(recipes: dict[str, Recipe]) -> str:
    lines = [
        "",
        f"{'':10} {'reward gain [95 %]':28} {'kl/policy_reference':>20} {'distinct-2':>16} "
        f"{'AUC of key tokens':>18}",
    ]
    masks: dict[str, Any] = {}
    for name, recipe in recipes.items():
        found = read_results(RunStore(f"{recipe.run_dir}/evaluation"))
        sentiment, masks = found["sentiment"], found["masks"]
        gain = sentiment["reward/gain"]
        interval = f"{gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
        before, after = (mean_of(sentiment[f"distinct_2/{when}"]) for when in ("before", "after"))
        distinct = f"{before:.3f} -> {after:.3f}"
        auc = "no mask" if recipe.mask.kind == "none" else f"{masks['auc/reward_mask']['mean']:.3f}"
        lines.append(
            f"{name:10} {interval:28} {sentiment['kl/policy_reference']['mean']:>20.2f} "
            f"{distinct:>16} {auc:>18}"
        )
    lines.append(
        f"for comparison, AUC of a random mask {masks['auc/random_mask']['mean']:.3f}, of the "
        f"token KL {masks['auc/token_kl']['mean']:.3f}; chance level 0.5"
    )
    lines.append("one seed of a small world: docs/results.md shows twenty")
    return "\n".join(lines)
