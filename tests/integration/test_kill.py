"""The driver killed while it scores, and interrupted while it trains, then the same command: the
same bytes, the same weights.

kill -9 while training is in test_training_failures.py.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipelines.commands.run import run_stages
from pipelines.commands.stages import PREPARE, REFERENCE, TRAIN
from pipelines.recipe.files import write_yaml
from pipelines.recipe.schema import Recipe

MakeRecipe = Callable[..., Recipe]
OPTIONS = (
    "objective.name=sparsepo",
    "mask.kind=learned",
    "mask.architecture=simple_last",
    "train.epochs=6",
    "train.max_steps=40",
    "train.checkpoint_every=1",
    "data.shard_pairs=8",
    "data.test_fraction=0",
    "ray.num_cpus=2",
    "train.cpus_per_worker=1",
)


def run_stage(stage: str, recipe_file: Path, run_dir: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "pipelines",
        stage,
        str(recipe_file),
        f"run_dir={run_dir}",
        "--quiet",
    ]
    # A shell's background jobs inherit an ignored SIGINT, which would make Ctrl-C mean nothing
    # here.
    return subprocess.Popen(
        command,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(stage: str, recipe_file: Path, run_dir: Path) -> None:
    assert run_stage(stage, recipe_file, run_dir).wait(timeout=400) == 0


def kill_when(
    process: subprocess.Popen[bytes],
    reached: Callable[[], bool],
    signal_number: int = signal.SIGKILL,
) -> None:
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None, (
            f"the command ended (exit {process.returncode}) before it could be killed"
        )
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal_number)
    process.wait(timeout=60)


def newest(checkpoints: Path) -> int:
    return max((int(p.parent.name[5:]) for p in checkpoints.glob("step-*/state.json")), default=0)


def tensors(run_dir: Path) -> dict[str, bytes]:
    found = {}
    for file in ("model/model.safetensors", "masks/masks.safetensors"):
        found |= {
            f"{file}:{k}": v.numpy().tobytes()
            for k, v in load_file(run_dir / "train" / file).items()
        }
    return found


@pytest.mark.slow
def test_a_driver_that_dies_or_is_interrupted_ends_with_the_same_weights(
    recipe_in: MakeRecipe, tmp_path: Path, ray_cluster: None
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_stages(
        recipe_in(whole, *OPTIONS), (PREPARE, REFERENCE, TRAIN), lambda line: None, quiet=True
    )
    recipe = recipe_in(killed, *OPTIONS, paths={"pairs": str(whole / "pairs")})
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(write_yaml(recipe))

    markers = killed / "reference" / "shards"
    process = run_stage("reference", recipe_file, killed)
    kill_when(
        process, lambda: markers.exists() and len(list(markers.rglob("*.json"))) >= 9
    )  # of two features of fifteen shards
    assert not (killed / "reference" / "manifest.json").exists()
    assert len(list(markers.rglob("*.json"))) < 30, "killed before the last shard"
    finish("reference", recipe_file, killed)
    for file in sorted((whole / "reference").rglob("*.parquet")):
        again = killed / "reference" / file.relative_to(whole / "reference")
        assert again.read_bytes() == file.read_bytes(), file.name

    process = run_stage("train", recipe_file, killed)
    checkpoints = killed / "train" / "checkpoints"
    # Ctrl-C this time: the run stays resumable and the exit code says interrupted.
    kill_when(process, lambda: newest(checkpoints) >= 3, signal.SIGINT)
    assert process.returncode == 130
    assert not (killed / "train" / "manifest.json").exists()
    finish("train", recipe_file, killed)
    assert tensors(killed) == tensors(whole)
