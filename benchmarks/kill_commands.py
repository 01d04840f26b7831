"""kill -9 at random moments of commands beside `train`: is anything lost, doubled, or other?

    python benchmarks/kill_commands.py --points 10 --work /tmp/commands
    python benchmarks/kill_commands.py --commands evaluate,report --points 3 --work /tmp/commands

A tiny model is trained once. Every command runs twice on a copy of that run, whole: what differs
between the two (times) is left out of all comparisons. Then it is killed on further copies, each at
a random moment of the time that it takes, and given again. Prints one JSON line per trial, then
all.

code:      of the second command; that of the whole ones is expected.
other:     values and files that are not as after a whole command: changed, missing, or too many.
traceback: whether the second command printed one.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kill_trials import write_world

COMMANDS = {
    "sample": ["sample", "RECIPE"],
    "evaluate": ["evaluate", "RECIPE"],
    "report": ["report", "RUN"],
    "schedule": ["schedule", "RECIPE", "--once"],
    "tune": ["tune", "SWEEP"],
}
GOES_ON = {"tune": ["--resume"]}  # what the second command has beside the first's
_ATTEMPT = re.compile(r"shard-[0-9a-f]{8}")  # names which worker group wrote a checkpoint
# Of Ray, of time, and of who ran what.
LEFT_OUT = (".ray", "timeline", "tensorboard", "claims", "events")


def write_files(work: Path, run: Path) -> tuple[Path, Path]:
    """The recipe and the sweep of a run directory."""
    from pipelines.recipe.files import validate_recipe, write_yaml

    body: dict[str, Any] = {
        "run_dir": str(run),
        "model": {"name_or_path": str(work / "model")},
        "data": {
            "sources": [{"path": str(work / "pairs.jsonl")}],
            "test_fraction": 0.2,
            "validation_fraction": 0.1,
            "max_prompt_tokens": 24,
            "max_response_tokens": 24,
        },
        "objective": {"name": "mapo"},
        "mask": {"kind": "activation"},
        "train": {
            "global_batch_size": 16,
            "learning_rate": 1e-3,
            "max_steps": 6,
            "checkpoint_every": 2,
            "keep_checkpoints": 10,
            "cpus_per_worker": 1,
        },
        "sample": {"num_candidates": 2, "generation": {"max_new_tokens": 8}},
        "evaluate": {
            "benchmarks": ["preference", "sentiment", "masks"],
            "num_prompts": 16,
            "bootstrap_samples": 200,
            "generation": {"max_new_tokens": 8},
        },
        "ray": {"num_cpus": 2},
    }
    recipe, sweep = Path(f"{run}.yaml"), Path(f"{run}-sweep.yaml")
    recipe.write_text(write_yaml(validate_recipe(body)))
    space = {"objective.beta": {"grid": [0.1, 0.2]}}
    trial = {**body, "run_dir": f"{run}-trial"}
    trial_file = Path(f"{run}-trial.yaml")
    trial_file.write_text(write_yaml(validate_recipe(trial)))
    sweep.write_text(
        json.dumps({"run_dir": str(run), "recipe": str(trial_file), "space": space})
    )  # which is YAML too
    return recipe, sweep


def command(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines", *arguments, *_quiet(arguments)],
            stdout=stream,
            stderr=stream,
        )


def _quiet(arguments: list[str]) -> list[str]:
    return [] if arguments[0] == "report" else ["--quiet"]


def leaves(run: Path) -> dict[str, str]:
    """Every value of every JSON file of a run, and the hash of every other file."""
    found: dict[str, str] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, one in value.items():
                walk(f"{name}/{key}", one)
        elif isinstance(value, list):
            for place, one in enumerate(value):
                walk(f"{name}/{place}", one)
        else:
            found[name] = str(value).replace(str(run), "RUN")

    for file in sorted(path for path in run.rglob("*") if path.is_file()):
        name = _ATTEMPT.sub("shard", str(file.relative_to(run)))
        if any(part in LEFT_OUT for part in Path(name).parts):
            continue
        content = file.read_bytes().replace(str(run).encode(), b"RUN")
        if file.suffix != ".safetensors":
            content = _ATTEMPT.sub("shard", content.decode(errors="surrogateescape")).encode(
                errors="surrogateescape"
            )
        if file.suffix == ".json":
            walk(name, json.loads(content))
        elif file.suffix == ".jsonl":
            walk(name, [json.loads(line) for line in content.splitlines()])
        else:
            found[name] = hashlib.sha256(content).hexdigest()
    return found


class Trials:
    """Whole and killed runs of one command."""

    def __init__(self, work: Path, name: str) -> None:
        self._work, self._name = work, name
        whole = [self._run(f"whole-{number}") for number in range(2)]
        self._seconds = min(seconds for _, _, seconds in whole)
        self._code = whole[0][1]
        first, second = (leaves(run) for run, _, _ in whole)
        self._expected = {key: value for key, value in first.items() if second.get(key) == value}
        self._volatile = (first.keys() | second.keys()) - self._expected.keys()

    def _copy(self, name: str) -> tuple[Path, list[str]]:
        run = self._work / f"{self._name}-{name}"
        shutil.rmtree(run, ignore_errors=True)
        if self._name != "tune":
            shutil.copytree(self._work / "base", run)
            config = run / "config.yaml"
            config.write_text(config.read_text().replace(str(self._work / "base"), str(run)))
        recipe, sweep = write_files(self._work, run)
        places = {"RECIPE": str(recipe), "SWEEP": str(sweep), "RUN": str(run)}
        return run, [places.get(part, part) for part in COMMANDS[self._name]]

    def _run(self, name: str) -> tuple[Path, int, float]:
        run, first = self._copy(name)
        began = time.monotonic()
        code = command(first, Path(f"{run}.log")).wait()
        return run, code, time.monotonic() - began

    def killed(self, seed: int) -> dict[str, Any]:
        """One trial; a command that ended before its moment is told so."""
        run, first = self._copy(f"killed-{seed}")
        log = Path(f"{run}.log")
        moment = random.Random(seed).uniform(0.02, 0.98) * self._seconds
        process = command(first, log)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.kill()
        was_killed = process.wait() < 0
        log.write_text("")
        code = command([*first, *GOES_ON.get(self._name, [])], log).wait()
        found = leaves(run)
        other = [
            key
            for key in found.keys() | self._expected.keys()
            if key not in self._volatile and found.get(key) != self._expected.get(key)
        ]
        return {
            "command": self._name,
            "seed": seed,
            "killed_after_seconds": round(moment, 1),
            "of_seconds": round(self._seconds, 1),
            "was_killed": was_killed,
            "code": code,
            "expected_code": self._code,
            "compared": len(self._expected),
            "other": sorted(other)[:20],
            "traceback": "Traceback" in log.read_text(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commands", default=",".join(COMMANDS), help="comma separated")
    parser.add_argument("--points", type=int, default=10, help="kills of each command")
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    work: Path = options.work.absolute()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray

    from pipelines.commands.run import run_stages
    from pipelines.commands.stages import PREPARE, REFERENCE, TRAIN
    from pipelines.recipe.files import load_recipe

    write_world(work)
    ray.init(num_cpus=2, log_to_driver=False)
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    results = []
    try:
        recipe, _ = write_files(work, work / "base")
        run_stages(load_recipe(str(recipe)), (PREPARE, REFERENCE, TRAIN), print, quiet=True)
        for name in options.commands.split(","):
            trials = Trials(work, name)
            for seed in range(options.points):
                results.append(trials.killed(seed))
                print(json.dumps(results[-1]), flush=True)
    finally:
        ray.shutdown()
    print(json.dumps({"benchmark": "kill_commands", "trials": results}))


if __name__ == "__main__":
    main()
