"""kill -9 at random moments of training: are the final weights those of an uninterrupted run?

    python benchmarks/kill_trials.py --seeds 0,1,2 --work /tmp/trials

Every trial trains SparsePO (learned masks, stored reference) on a local cluster of one-CPU nodes
through the command line, and kills by its seed: one of the workers, one of the nodes (a new one
joins), or the driver (the same command is given again), at a random step. Trials with `resize` go
on with another number of workers after a driver's death; `shrink` takes a node away for good from a
run that may go on with one worker less. Prints one JSON line per trial, then all. A model and
uninterrupted runs that an earlier call left in `--work` are taken as they are.

identical:  every tensor of model and masks equals the uninterrupted run's bit for bit.
difference: the largest of any tensor, relative to the tensor's largest value.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STEPS = 30
TARGETS = ("worker", "node", "driver")
PATIENCE_SECONDS = 180  # for the next step


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def write_world(work: Path) -> None:
    """A tiny untrained model and pairs made on the spot."""
    from pipelines.commands.quickstart_world import (
        TRAIN_OPENINGS,
        continuation,
        opening,
        write_untrained_model,
    )

    rng = random.Random(7)
    rows = [
        {
            "prompt": opening(rng, TRAIN_OPENINGS),
            "chosen": continuation(rng),
            "rejected": continuation(rng),
        }
        for _ in range(120)
    ]
    (work / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_untrained_model(
        work / "model", [r["prompt"] + r["chosen"] + r["rejected"] for r in rows], seed=3
    )


def write_recipe(
    work: Path,
    name: str,
    workers: int,
    strategy: str,
    checkpoint_every: int,
    min_workers: int | None = None,
) -> Path:
    from pipelines.recipe.files import validate_recipe, write_yaml

    recipe = validate_recipe(
        {
            "run_dir": str(work / name),
            "model": {"name_or_path": str(work / "model")},
            "data": {
                "sources": [{"path": str(work / "pairs.jsonl")}],
                "max_prompt_tokens": 24,
                "max_response_tokens": 24,
            },
            "objective": {"name": "sparsepo"},
            "mask": {
                "kind": "learned",
                "architecture": "simple_last",
                "sharing": "independent",
                "target_sparsity": 0.4,
            },
            "paths": {"pairs": str(work / "pairs"), "reference": str(work / "reference")},
            "train": {
                "global_batch_size": 16,
                "learning_rate": 1e-3,
                "epochs": 10,
                "max_steps": STEPS,
                "num_workers": workers,
                "min_workers": min_workers,
                "cpus_per_worker": 1,
                "strategy": strategy,
                "checkpoint_every": checkpoint_every,
                "max_failures": 3,
            },
        }
    )
    file = work / f"{name}.yaml"
    file.write_text(write_yaml(recipe))
    return file


def command(stage: str, recipe: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines", stage, str(recipe), "--quiet"],
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )


def finish(process: subprocess.Popen[bytes], run_dir: Path, log: Path) -> None:
    """Wait for the command, for as long as files of its run come and go."""
    seen, limit = -1, 0.0
    while process.poll() is None:
        if (now := sum(len(names) for *_, names in os.walk(run_dir))) != seen:
            seen, limit = now, time.monotonic() + PATIENCE_SECONDS
        if time.monotonic() > limit:
            raise SystemExit(f"no progress after a kill:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)
    if process.returncode != 0:
        raise SystemExit(
            f"the command failed with {process.returncode}:\n{log.read_text()[-2000:]}"
        )


def tensors(run_dir: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    found = {}
    for file in ("model/model.safetensors", "masks/masks.safetensors"):
        found |= {
            f"{file}:{name}": value for name, value in load_file(run_dir / "train" / file).items()
        }
    return found


def reached(run_dir: Path) -> int:
    """The newest step with a complete checkpoint."""
    return max(
        (
            int(p.parent.name[5:])
            for p in (run_dir / "train" / "checkpoints").glob("step-*/state.json")
        ),
        default=0,
    )


def kill_worker(rng: random.Random) -> str:
    from ray.util.state import list_actors

    alive = [
        a
        for a in list_actors(filters=[("state", "=", "ALIVE")], detail=True)
        if "RayTrainWorker" in a.class_name and a.pid
    ]
    chosen = rng.choice(sorted(alive, key=lambda actor: actor.pid))
    os.kill(chosen.pid, signal.SIGKILL)
    return f"worker process {chosen.pid}"


def trial(
    work: Path,
    cluster: Any,
    nodes: list[Any],
    seed: int,
    target: str,
    workers: int,
    strategy: str,
    resize: bool,
) -> dict[str, Any]:
    """One run with one kill; returns what happened."""
    while len(nodes) < workers:  # one went for good in an earlier trial
        nodes.append(cluster.add_node(num_cpus=1))
    rng = random.Random(seed)
    point, every = rng.randint(2, STEPS - 8), rng.choice((1, 2, 3))
    name = f"{target}-{workers}-{strategy}-{seed}"
    fewest = workers - 1 if target == "shrink" else None
    recipe, run_dir, log = (
        write_recipe(work, name, workers, strategy, every, fewest),
        work / name,
        work / f"{name}.log",
    )
    process = command("train", recipe, log)
    step, limit = -1, 0.0
    while (now := reached(run_dir)) < point:
        if now > step:
            step, limit = now, time.monotonic() + PATIENCE_SECONDS
        if process.poll() is not None or time.monotonic() > limit:
            raise SystemExit(
                f"{name}: step {point} was not reached before the command ended:\n"
                f"{log.read_text()[-2000:]}"
            )
        time.sleep(0.01)
    before = reached(run_dir)
    if target == "worker":
        kill_worker(rng)
    elif target == "node":
        place = rng.randrange(len(nodes))
        cluster.remove_node(nodes[place], allow_graceful=False)
        nodes[place] = cluster.add_node(num_cpus=1)
    elif target == "shrink":
        cluster.remove_node(nodes.pop(), allow_graceful=False)
    else:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if resize:
            recipe = write_recipe(work, name, workers - 1 or 2, strategy, every)
        process = command("train", recipe, log)
    finish(process, run_dir, log)
    found, expected = tensors(run_dir), tensors(work / f"whole-{workers}-{strategy}")
    difference = max(
        float((found[k] - expected[k]).abs().max() / expected[k].abs().max().clamp(min=1e-12))
        for k in expected
    )
    from pipelines.storage.store import RunStore
    from pipelines.train.metrics import read_metrics

    steps = [r["step"] for r in read_metrics(RunStore(str(run_dir / "train"))) if "kind" not in r]
    return {
        "target": target,
        "seed": seed,
        "workers": workers,
        "strategy": strategy,
        "resized_to": (workers - 1 or 2) if resize else None,
        "checkpoint_every": every,
        "killed_after_step": before,
        "log_is_whole": steps == list(range(1, STEPS + 1)),
        "identical": all(found[k].equal(expected[k]) for k in expected)
        and found.keys() == expected.keys(),
        "difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0,1,2", help="comma separated; a trial each")
    parser.add_argument(
        "--targets",
        default=",".join(TARGETS),
        help="what trials kill, in turn: worker, node, driver, shrink",
    )
    parser.add_argument("--workers", default="2", help="worker counts of the trials, in turn")
    parser.add_argument("--strategies", default="ddp", help="of the trials, in turn: ddp, fsdp")
    parser.add_argument(
        "--resize",
        action="store_true",
        help="go on with another number of workers after a driver's death",
    )
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": "/tmp/ray",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        # A node that is gone is given up after seconds instead of half a minute.
        "RAY_health_check_initial_delay_ms": "2000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "4",
    }
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = (
        "5"  # how long a group waits for the node that is gone
    )
    import ray
    from ray.cluster_utils import Cluster

    from pipelines.cluster.warm import IMPORTED, warm_process, warm_raylets
    from pipelines.commands.run import run_stages
    from pipelines.commands.stages import PREPARE, REFERENCE, TRAIN
    from pipelines.recipe.files import load_recipe

    seeds = [int(seed) for seed in options.seeds.split(",")]
    counts, strategies, targets = (
        text.split(",") for text in (options.workers, options.strategies, options.targets)
    )
    plans = [
        (
            seed,
            targets[i % len(targets)],
            int(counts[i // len(targets) % len(counts)]),
            strategies[i // len(targets) % len(strategies)],
        )
        for i, seed in enumerate(seeds)
    ]
    if not (options.work / "model").exists():
        write_world(options.work)
    works = contextlib.ExitStack()
    works.enter_context(warm_raylets(works.enter_context(warm_process(IMPORTED))))
    # Another Ray on this machine may have the usual port.
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": True, "dashboard_port": free_port()},
    )
    nodes = [
        cluster.add_node(num_cpus=1)
        for _ in range(max(3 if options.resize else 1, *(workers for *_, workers, _ in plans)))
    ]
    os.environ["RAY_ADDRESS"] = cluster.address
    ray.init(address=cluster.address, log_to_driver=False)
    results = []
    try:
        for workers, strategy in sorted({(workers, strategy) for *_, workers, strategy in plans}):
            file = write_recipe(options.work, f"whole-{workers}-{strategy}", workers, strategy, 5)
            run_stages(load_recipe(str(file)), (PREPARE, REFERENCE, TRAIN), print, quiet=True)
        for seed, target, workers, strategy in plans:
            outcome = trial(
                options.work,
                cluster,
                nodes,
                seed,
                target,
                workers,
                strategy,
                options.resize and target == "driver",
            )
            print(json.dumps(outcome), flush=True)
            results.append(outcome)
    finally:
        ray.shutdown()
        cluster.shutdown()
        works.close()
    print(json.dumps({"benchmark": "kill_trials", "steps": STEPS, "trials": results}))


if __name__ == "__main__":
    main()
