"""Sweeps on a real Ray: one reference for all, best.yaml again, early stopping, searchers,
seeds, trials that diverge.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from runs import MakeRecipe, silent, train_here

from pipelines.commands.run import run_stages
from pipelines.commands.stages import PREPARE, REFERENCE, TRAIN
from pipelines.commands.status import run_status
from pipelines.errors import UserError
from pipelines.recipe.files import load_recipe, write_yaml
from pipelines.recipe.stage import MANIFEST, Run
from pipelines.sweep.files import load_sweep
from pipelines.sweep.space import Sweep
from pipelines.sweep.stage import run_tune
from pipelines.sweep.trial import named_metrics

Load = Callable[..., Sweep]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]
MARGIN, LOSS = "validation/rewards/margins", "validation/loss"
KL = "validation/kl/reference_policy"
OBJECTIVES = {  # one learns, one learns nothing, one diverges
    "dpo": ("objective.name=dpo", "train.learning_rate=3e-3"),
    "mapo": ("objective.name=mapo", "mask.kind=activation", "train.learning_rate=1e-12"),
    "sparsepo": (
        "objective.name=sparsepo",
        "mask.kind=learned",
        "mask.architecture=simple_last",
        "train.learning_rate=1e30",
    ),
}
SHORT = ("data.validation_fraction=0.2", "data.test_fraction=0", "train.epochs=4")


@pytest.fixture
def load(tmp_path: Path, recipe_in: MakeRecipe) -> Load:
    def make(space: dict[str, object], *overrides: str, **top: object) -> Sweep:
        body = {
            "run_dir": str(tmp_path / "sweep"),
            "recipe": str(tmp_path / "dpo.yaml"),
            "space": space,
            **top,
        }
        for name, options in OBJECTIVES.items():
            (tmp_path / f"{name}.yaml").write_text(
                write_yaml(recipe_in(tmp_path / "unused", *SHORT, *options))
            )
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(body))
        return load_sweep(str(tmp_path / "sweep.yaml"), overrides)

    return make


def rows(sweep: Sweep) -> list[dict[str, object]]:
    found: list[dict[str, object]] = pq.read_table(f"{sweep.run_dir}/trials.parquet").to_pylist()
    return found


def test_three_objectives_share_a_reference_and_end_as_they_learn(
    load: Load, tmp_path: Path
) -> None:
    """DPO that learns, MaPO that learns nothing, SparsePO that diverges, one after the other under
    ASHA; what best.yaml says gives its trial's metrics elsewhere.

    Trials side by side are in test_many_hosts.py.
    """
    sweep = load(
        {"recipe": {"grid": [str(tmp_path / f"{name}.yaml") for name in OBJECTIVES]}},
        "train.max_steps=24",
        "train.validate_every=2",
        "train.warmup_fraction=0",
        "train.cpus_per_worker=1",
        objectives=[{"metric": MARGIN}, {"metric": LOSS, "mode": "min"}],
        scheduler={"name": "asha", "grace_steps": 2, "reduction_factor": 2},
        max_concurrent_trials=1,
    )
    said: list[str] = []
    best = run_tune(sweep, said.append)
    dpo, mapo, sparsepo = table = rows(sweep)
    assert [row["status"] for row in table] == ["finished", "stopped", "diverged"]
    counts = json.loads(Path(sweep.run_dir, MANIFEST).read_text())["counts"]
    assert counts["stage_runs"] == {"prepare": 1, "reference": 1}, "once for all trials"
    assert (dpo[KL] is None, mapo[KL] is None) == (True, False), "DPO has no KL"
    assert mapo["train/step"] < 24
    assert MARGIN in mapo, "its last validation"
    assert "is not finite" in str(sparsepo["message"])
    assert any(line.startswith("trial 2: diverged") for line in said)
    assert json.loads(Path(sweep.run_dir, "pareto.json").read_text())["front"][0]["trial"] == 0
    states = [row["state"] for row in run_status(sweep.run_dir)]
    assert states == ["finished", "stopped", "diverged", "done"]

    recipe = load_recipe(best)
    assert run_stages(recipe, (PREPARE, REFERENCE, TRAIN), silent) == dict.fromkeys(
        ("prepare", "reference", "train"), "skipped"
    )
    again = load_recipe(best, (f"run_dir={tmp_path}/again",))
    expected = Run(recipe).record(TRAIN).manifest()["counts"]["validation"]
    found = train_here(again)["counts"]["validation"]
    assert found == expected, "bit for bit with the same threads"
    trials = Path(sweep.run_dir, "trials")
    before = {path: path.stat().st_mtime_ns for path in trials.rglob("*")}
    assert run_tune(sweep, silent) == best
    after = {path: path.stat().st_mtime_ns for path in trials.rglob("*")}
    assert after == before and len(before) > 10, "a finished sweep is not run again"


def test_a_metric_that_no_trial_reports_ends_the_sweep_early_and_seeds_are_repeated(
    load: Load,
) -> None:
    """The first seed's run is enough to say so. The file repaired, the sweep goes on with the
    second: means, and their spread. Searchers are in test_sweep.py and test_many_hosts.py.
    """
    space: dict[str, object] = {"objective.beta": {"grid": [0.3]}}
    several = {"seeds": [0, 1], "max_failures": 0}
    sweep = load(
        space, "train.max_steps=2", objectives=[{"metric": "validation/rewards/margin"}], **several
    )
    with pytest.raises(
        UserError,
        match="'validation/rewards/margin' is not reported: did you mean "
        "'validation/rewards/margins'",
    ):
        run_tune(sweep, silent)
    (first,) = Path(sweep.run_dir).glob("trials/*/seed-*/train/manifest.json")
    trained = first.stat().st_mtime_ns
    assert first.parts[-3] == "seed-0"

    repaired = load(space, "train.max_steps=2", objectives=[{"metric": MARGIN}], **several)
    run_tune(repaired, silent, resume=True)
    assert first.stat().st_mtime_ns == trained, "nothing is trained twice"
    (row,) = rows(repaired)
    assert (row["trial"], row["status"]) == (0, "finished")
    runs = [
        json.loads(Path(str(row["run_dir"]), f"seed-{seed}/train/{MANIFEST}").read_text())["counts"]
        for seed in (0, 1)
    ]
    values = [named_metrics(run["validation"])[LOSS] for run in runs]
    assert row[LOSS] == pytest.approx(sum(values) / 2, rel=1e-12)
    assert row[f"{LOSS}/std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5, rel=1e-9)
    assert values[0] != values[1]
    assert len(pq.read_table(f"{repaired.run_dir}/runs.parquet")) == 2
    best = load_recipe(f"{repaired.run_dir}/best.yaml")
    assert best.objective.model_dump()["beta"] == 0.3


def test_more_than_the_cluster_has_is_named_before_anything_starts(load: Load) -> None:
    with pytest.raises(
        UserError,
        match=r"train.num_workers = 3: a trial takes 3 x 1 CPUs; the cluster's nodes have 2 CPUs",
    ):
        run_tune(load({"objective.beta": {"grid": [0.1]}}, "train.num_workers=3"), silent)
    assert not Path(load({"objective.beta": {"grid": [0.1]}}).run_dir, "stores").exists()
