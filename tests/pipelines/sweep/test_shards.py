"""Shards of a sweep: disjoint, the whole together, the same on every machine; what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from runs import MakeRecipe

from pipelines.commands.cli import app, main
from pipelines.commands.plan import plan_sweep
from pipelines.commands.submit import packaged_command
from pipelines.errors import UserError
from pipelines.recipe.files import write_yaml
from pipelines.storage.hashes import digest
from pipelines.sweep.files import load_sweep
from pipelines.sweep.shards import Shard
from pipelines.sweep.space import Sweep
from pipelines.sweep.stage import sweep_record

Write = Callable[..., str]
GRID = {"objective.beta": {"grid": [0.1, 0.2, 0.4]}, "train.seed": {"grid": [0, 1]}}
RANDOM = {
    "objective.beta": {"loguniform": [0.01, 1.0]},
    "train.schedule": {"grid": ["cosine", "linear"]},
}


@pytest.fixture
def write(tmp_path: Path, make_recipe: MakeRecipe) -> Write:
    """write(space, key=...) -> a sweep file over the tiny model."""
    (tmp_path / "dpo.yaml").write_text(write_yaml(make_recipe("data.validation_fraction=0.2")))

    def make(space: dict[str, Any], **top: Any) -> str:
        body = {
            "run_dir": str(tmp_path / "sweep"),
            "recipe": str(tmp_path / "dpo.yaml"),
            "space": space,
            **top,
        }
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(body))
        return str(tmp_path / "sweep.yaml")

    return make


def parts(file: str, of: int) -> list[Sweep]:
    return [load_sweep(file, (), f"{k}/{of}") for k in range(1, of + 1)]


@pytest.mark.parametrize("of", [1, 2, 3, 5, 6])
@pytest.mark.parametrize(
    ("space", "top"), [(GRID, {}), (RANDOM, {"num_samples": 3})], ids=["grid", "random"]
)
def test_shards_are_disjoint_and_the_whole_together(
    write: Write, space: dict[str, Any], top: dict[str, Any], of: int
) -> None:
    """Six trials each; sizes differ by one at most, numbers and directories are the whole's."""
    file = write(space, **top)
    whole = load_sweep(file)
    assert whole.own_points is not None and len(whole.own_points) == 6
    shards = parts(file, of)
    found = [pair for shard in shards for pair in shard.own_points or ()]
    assert sorted(found, key=lambda pair: pair[0]) == whole.own_points, "each trial once"
    sizes = [shard.num_trials() for shard in shards]
    assert max(sizes) - min(sizes) <= 1 and sum(sizes) == 6
    for shard in shards:
        for number, point in shard.own_points or ():
            folder = whole.trial_dir(number, point).rpartition("/")[2]
            assert shard.trial_dir(number, point).endswith(f"/trials/{folder}")
    assert len({shard.run_dir for shard in shards}) == of


def test_a_shard_has_a_directory_of_its_own_and_the_sweeps_name(write: Write) -> None:
    whole, shard = load_sweep(write(GRID)), load_sweep(write(GRID), (), "2/3")
    assert shard.run_dir == f"{whole.run_dir}/shards/2-of-3"
    again = Sweep.model_validate(shard.model_dump(mode="json", by_alias=True))
    assert (again.run_dir, again.own_points) == (shard.run_dir, shard.own_points), "in a trial too"
    group = shard.recipe_at(shard.sample_of_points()[0], "x").train.tracker_group
    assert group == whole.name() == "sweep"
    assert load_sweep(write(GRID, run_dir=shard.run_dir), (), "2/3").run_dir == shard.run_dir
    other = load_sweep(write(GRID), (), "1/3")
    mine, theirs = (sweep_record(sweep).settings for sweep in (shard, other))
    assert mine.pop("shard") == "2/3" and theirs.pop("shard") == "1/3"
    assert mine == theirs == sweep_record(whole).settings


def test_numbers_of_shards() -> None:
    """Trials 0 to 6 of three shards by hand, and back from their folders."""
    by_hand = {1: [0, 3, 6], 2: [1, 4], 3: [2, 5]}
    for number, trials in by_hand.items():
        shard = Shard(number, 3)
        assert [i for i in range(7) if shard.holds(i)] == trials
        assert Shard.of_folder(shard.folder.removeprefix("shards/")) == shard
        assert Shard.parse(str(shard)) == shard
    assert Shard.of_folder("2-of") is None


REFUSED = {
    "0/6": "shard = 0/6: shards of 6 are 1/6 to 6/6",
    "7/6": "shard = 7/6: shards of 6 are 1/6 to 6/6",
    "2/0": "shard = 2/0: a sweep has at least 1 shard",
    "2": "shard = '2': write K/N, such as 2/6",
    "-1/6": "shard = '-1/6': write K/N",
    "1/7": "the sweep has 6 trials, so that shard 7/7 is empty: make at most 6",
    "3/9": "the sweep has 6 trials, so that shard 7/9 to 9/9 are empty: make at most 6",
}


@pytest.mark.parametrize("shard", REFUSED)
@pytest.mark.parametrize("command", ["plan", "tune"])
def test_shards_that_are_none_are_refused_by_plan_and_tune(
    write: Write, command: str, shard: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(GRID)
    with pytest.raises(SystemExit) as ended:
        main([command, file, f"--shard={shard}"])
    assert ended.value.code == 2
    assert REFUSED[shard] in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("top", "line"),
    [
        (
            {"searcher": {"name": "tpe"}, "num_samples": 8},
            "searcher tpe learns from the trials before, .* only random can be split",
        ),
        (
            {
                "searcher": {"name": "nsga2"},
                "num_samples": 8,
                "objectives": [{"metric": "validation/loss"}, {"metric": "train/loss"}],
            },
            "searcher nsga2 learns .* only random can be split",
        ),
        (
            {
                "scheduler": {"name": "asha", "grace_steps": 2},
                "overrides": ["train.validate_every=1"],
                "num_samples": 8,
            },
            "scheduler asha compares all trials, and a shard knows its own alone",
        ),
    ],
)
def test_what_needs_the_other_trials_results_is_not_split(
    write: Write, top: dict[str, Any], line: str
) -> None:
    file = write({"objective.beta": {"loguniform": [0.01, 1.0]}}, **top)
    assert load_sweep(file).num_trials() == 8
    with pytest.raises(UserError, match=line):
        load_sweep(file, (), "1/2")


@pytest.mark.slow
def test_plan_counts_a_shards_own_trials(write: Write, tmp_path: Path) -> None:
    whole, part = (plan_sweep(load_sweep(write(GRID), (), shard)) for shard in (None, "4/4"))
    assert (whole["runs"], part["runs"]) == (6, 1)
    assert part["shard"] == "4/4" and whole["shard"] is None
    with pytest.raises(SystemExit):
        main(["plan", str(tmp_path / "dpo.yaml"), "--shard", "1/2"])


def test_a_job_of_a_shard_runs_that_shard(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that is sent and the command together mean it once; a bad one is sent nowhere."""
    program = typer.main.get_command(app)
    with packaged_command(["tune", write(GRID), "--shard", "2/3"], program) as (package, command):
        _, file, *options = command
        assert options == ["--shard", "2/3"]
        monkeypatch.chdir(package)  # where the job runs
        sent = load_sweep(file, (), "2/3")
        monkeypatch.undo()
    assert sent.run_dir == f"{tmp_path}/sweep/shards/2-of-3"
    assert sent.own_points == load_sweep(write(GRID), (), "2/3").own_points
    with (
        pytest.raises(UserError, match="shard = 4/3"),
        packaged_command(["tune", write(GRID), "--shard", "4/3"], program),
    ):
        pass


def test_which_way_a_reference_is_read_is_the_whole_sweeps(write: Write) -> None:
    """A trial of a small shard is that of the whole sweep: stored or online is decided alike."""
    whole, shard = load_sweep(write(GRID)), load_sweep(write(GRID), (), "6/6")
    assert shard.num_trials() == 1
    assert shard.num_trials_of_all() == whole.num_trials_of_all() == 6
    assert digest(shard.points) == digest(whole.points)
