"""The machines of cluster.yaml come for a job, stand in for each other and go after it, with
Ray's autoscaler and its fake machines.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest
import yaml
from checkout import ROOT
from hosts import Hosts, hosts
from processes import wait_while_it_goes_on
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from runs import MakeRecipe

from pipelines.recipe.files import write_yaml

pytestmark = pytest.mark.slow


def slowness() -> float:
    """How many times longer than usual things take here: the suite itself has two at work a core.

    Ray's autoscaler knows no progress, only times; these grow with what else is done.
    """
    return max(1.0, os.getloadavg()[0] / (2 * len(os.sched_getaffinity(0))))


def fake_config(times: float) -> dict[str, object]:
    """cluster.yaml with machines that are processes, each as large as this machine allows, and a
    shorter idle time, so many times what it is at best.
    """
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    kinds = config["available_node_types"]
    for name, kind in kinds.items():
        kind["node_config"] = {}
        if name != "head":
            kind["resources"] = {
                **{mark: 1 for mark in kind["resources"] if mark not in ("CPU", "GPU")},
                "CPU": 1,
            }
    kinds["ray.head.default"] = kinds.pop(
        config["head_node_type"]
    )  # as the provider calls the head's
    return {
        "cluster_name": config["cluster_name"],
        "max_workers": config["max_workers"],
        # Longer than the pause between two stages on a busy machine: the one spot machine would go.
        "idle_timeout_minutes": 0.4 * times,
        "upscaling_speed": config["upscaling_speed"],
        "provider": {
            "type": "external",
            "module": "fake_machines.FakeMachines",
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
        },
        "available_node_types": kinds,
        "head_node_type": "ray.head.default",
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


ENVIRONMENT = {
    "RAY_FAKE_CLUSTER": "1",
    "SPOT_MACHINES": "1",
    "PYTHONPATH": str(ROOT / "tests" / "support"),
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
}


def machines(cluster: Hosts) -> dict[str, int]:
    """Without the head."""
    return dict(Counter(kind for kind in cluster.kinds() if kind in ("spot_gpu", "on_demand_gpu")))


def raylets(mark: str) -> list[int]:
    """The machines' main processes that were started with this environment, the oldest first."""
    found = []
    for process in psutil.process_iter(["name", "create_time"]):
        with contextlib.suppress(psutil.Error):
            if (
                process.info["name"] == "raylet"
                and process.environ().get("MACHINES_OF") == mark
                and "/tmp/machine-" in " ".join(process.cmdline())
            ):
                found.append((process.info["create_time"], process.pid))
    return [pid for _, pid in sorted(found)]


def config_in(folder: Path, times: float) -> Path:
    file = folder / "autoscaling.json"
    file.write_text(json.dumps(fake_config(times)))
    return file


def test_machines_come_for_a_job_are_replaced_while_it_trains_and_go_again(
    recipe_in: MakeRecipe, tmp_path: Path
) -> None:
    """The cloud has one spot machine in all: another one on demand comes for the second worker,
    and one more when the first is taken away.
    """
    # Longer than a machine takes to come when others work here: or both would be on demand.
    times = slowness()
    missing = round(12 * times)
    seconds = (f"ray.scale_up_timeout_s={20 * missing}", f"ray.fallback_after_s={missing}")
    recipe = recipe_in(
        "unused",
        "train.num_workers=2",
        "train.epochs=6",
        "reference.mode=online",
        "evaluate.num_actors=1",
        "train.checkpoint_every=4",
        "train.use_gpu=false",
        *seconds,
    )
    with hosts(
        tmp_path / "hosts",
        0,
        {**ENVIRONMENT, "MACHINES_OF": str(tmp_path)},
        autoscaling=config_in(tmp_path, times),
    ) as cluster:
        inputs = cluster.shared / "inputs"
        inputs.mkdir()
        subprocess.run(
            ["cp", "-r", recipe.model.name_or_path, recipe.data.sources[0].path, str(inputs)],
            check=True,
        )
        model, pairs = (
            inputs / Path(recipe.model.name_or_path).name,
            inputs / Path(recipe.data.sources[0].path).name,
        )
        file = tmp_path / "recipe.yaml"
        file.write_text(write_yaml(recipe))
        run_dir = cluster.shared / "run"
        overrides = [
            f"run_dir={run_dir}",
            f"model.name_or_path={model}",
            f"data.sources=[{{path: '{pairs}'}}]",
        ]

        assert machines(cluster) == {}
        command = [
            sys.executable,
            "-m",
            "pipelines",
            "submit",
            "--address",
            cluster.address,
            "run",
            str(file),
            *overrides,
        ]
        outside = {**cluster.environment, "HOME": os.environ["HOME"]}
        log = tmp_path / "log"
        with log.open("w") as output:
            job = subprocess.Popen(
                [*command, "evaluate.benchmarks=[preference]", "--follow"],
                env=outside,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        counts: list[dict[str, int]] = []

        def has_trained() -> bool:
            counts.append(machines(cluster))
            return bool(list((run_dir / "train" / "checkpoints").glob("step-*/state.json")))

        def got_done() -> tuple[list[int], int]:
            """Machines, and files of the run."""
            return sorted(counts[-1].values()), sum(len(names) for *_, names in os.walk(run_dir))

        wait_while_it_goes_on(lambda: has_trained() or job.poll() is not None, got_done, 0.5)
        assert counts[-1] == {"spot_gpu": 1, "on_demand_gpu": 1}, (
            "spot machines come first, and no more of either than the run takes"
        )
        os.kill(raylets(str(tmp_path))[0], signal.SIGKILL)
        wait_while_it_goes_on(lambda: has_trained() and job.poll() is not None, got_done, 0.5)
        said = log.read_text()
        assert job.returncode == 0, said[-9000:]
        assert "cluster: has 0 CPU and 0 GPU; waiting for 2 x 1 CPU" in said
        asked = f"1 x 1 CPU missing for {missing} s; asking for machines with 'on_demand'"
        assert said.count(asked) >= 2, said[-9000:]
        assert any(found.get("on_demand_gpu", 0) >= 2 for found in counts), (
            "the second worker came back on a machine on demand"
        )
        assert (
            json.loads((run_dir / "train" / "manifest.json").read_text())["counts"]["steps"] == 36
        )
        wait_while_it_goes_on(lambda: not machines(cluster), lambda: machines(cluster), 1.0)
