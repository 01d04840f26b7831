"""Sweep files: points and conditions, what is refused, which stores a sweep needs, what becomes
best.yaml.
"""

import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from report_views import own_part
from runs import MakeRecipe

from evaluation.equal_distance import Measured, compare_at
from pipelines.commands.plan import plan_sweep
from pipelines.errors import StageFailed, UserError
from pipelines.recipe.files import load_recipe, packaged, validate_recipe, write_yaml
from pipelines.recipe.record import StageRecord
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import STARTED, Run
from pipelines.storage.store import RunStore
from pipelines.sweep.files import is_sweep, load_sweep
from pipelines.sweep.results import pick, publish_results, read_trials
from pipelines.sweep.shared_stores import SharedStores
from pipelines.sweep.space import Sweep
from pipelines.sweep.stage import _trial_of, check_trials, run_tune, sweep_record
from pipelines.sweep.trial import joined, seed_recipes
from pipelines.sweep.trial_record import Trial

Load = Callable[..., Sweep]
REWARD, KL = "evaluation/sentiment/reward/after", "evaluation/sentiment/kl/policy_reference"


@pytest.fixture
def load(tmp_path: Path, make_recipe: MakeRecipe) -> Load:
    """load(space, key=..., ...) with three recipe files of the tiny model: dpo, mapo and
    sparsepo.
    """
    for name, overrides in {
        "dpo": ("objective.name=dpo",),
        "mapo": ("objective.name=mapo", "mask.kind=activation", "mask.hooks=mlp"),
        "sparsepo": (
            "objective.name=sparsepo",
            "mask.kind=learned",
            "mask.architecture=simple_last",
        ),
    }.items():
        (tmp_path / f"{name}.yaml").write_text(
            write_yaml(make_recipe("data.validation_fraction=0.2", *overrides))
        )

    def make(space: dict[str, object], *overrides: str, **top: object) -> Sweep:
        body = {
            "run_dir": str(tmp_path / "sweep"),
            "recipe": str(tmp_path / "sparsepo.yaml"),
            "space": space,
            **top,
        }
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(body))
        return load_sweep(str(tmp_path / "sweep.yaml"), overrides)

    return make


def test_points_are_grids_times_draws_under_their_conditions(load: Load, tmp_path: Path) -> None:
    names = [str(tmp_path / f"{name}.yaml") for name in ("dpo", "mapo", "sparsepo")]
    space = {
        "mask.keep_fraction": {"uniform": [0.1, 0.9], "when": {"recipe": names[1]}},
        "recipe": {"grid": names},
        "objective.beta": {"grid": [0.1, 1.0], "when": {"recipe": names[1:]}},
        "train.learning_rate": {"loguniform": [1e-5, 1e-3]},
    }
    sweep = load(space, num_samples=3)
    points = sweep.points
    assert points is not None
    assert len(points) == sweep.num_trials() == 3 * (1 + 2 + 2)
    for point in points:
        method = Path(point["recipe"]).stem
        assert (
            set(point)
            == {"recipe", "train.learning_rate"}
            | (
                {
                    "dpo": set(),
                    "mapo": {"objective.beta", "mask.keep_fraction"},
                    "sparsepo": {"objective.beta"},
                }[method]
            )
        )
        recipe = sweep.recipe_at(point, "somewhere")
        assert recipe.objective.name == method
        assert recipe.train.learning_rate == point["train.learning_rate"]
        assert 1e-5 <= recipe.train.learning_rate <= 1e-3
    assert len({point["train.learning_rate"] for point in points}) == len(points)
    assert load(space, num_samples=3).points == points, "a function of the file alone"
    assert load(space, num_samples=3, seed=1).points != points


def test_composite_values_reach_the_recipe(load: Load) -> None:
    sweep = load(
        {"mask.hooks": {"grid": [["mlp"], "attn"]}, "train.adam_betas": {"choice": [[0.9, 0.95]]}},
        "data.validation_fraction=0.1",
        recipe="hh-mapo",
    )
    points = sweep.points
    assert points is not None
    recipes = [sweep.recipe_at(point, "x") for point in points]
    assert [recipe.mask.model_dump()["hooks"] for recipe in recipes] == [("mlp",), "attn"]
    assert all(recipe.train.adam_betas == (0.9, 0.95) for recipe in recipes)


def test_the_terms_of_a_sum_are_searched(load: Load) -> None:
    """Their weights and options by their place; a term that changes has metrics of its own."""
    space: dict[str, Any] = {
        "objective.of[1].weight": {"grid": [0.1, 2.0]},
        "objective.of[0].beta": {"grid": [0.3]},
    }
    sweep = load(space, recipe="hh-sum")
    assert sweep.points is not None and sweep.has_one_method()
    found = [sweep.recipe_at(point, "x").objective.options()["of"] for point in sweep.points]
    assert [(terms[0]["beta"], terms[1]["weight"]) for terms in found] == [(0.3, 0.1), (0.3, 2.0)]
    named = load(
        {"objective.of[0].name": {"grid": ["ipo"]}, "objective.of[0].weight": {"grid": [1]}},
        recipe="hh-sum",
    )
    assert named.points is not None and not named.has_one_method()
    assert named.recipe_at(named.points[0], "x").objective.options()["of"][0]["name"] == "ipo"


@pytest.mark.parametrize(
    ("space", "top", "message"),
    [
        (
            {"objective.of.1.weight": {"grid": [1]}},
            {"recipe": "hh-sum"},
            "unknown config key 'objective.of.1.weight': did you mean 'objective.of.weight'",
        ),
        ({"objective.bta": {"grid": [1]}}, {}, "did you mean 'objective.beta'"),
        ({"objective.beta": {"uniform": [2, 1]}}, {}, r"range \[2.0, 1.0\] is empty"),
        ({"objective.beta": {"loguniform": [0, 1]}}, {}, "loguniform low = 0.0: must be > 0"),
        (
            {"objective.beta": {"grid": [0.1], "choice": [0.1]}},
            {},
            "exactly one of grid, choice, uniform, loguniform, int; got grid, choice",
        ),
        ({"objective.beta": {"grid": [-1]}}, {}, "objective.beta=-1: objective.beta = -1"),
        (
            {"objective.beta": {"uniform": [-1, 1]}},
            {"searcher": {"name": "tpe"}},
            "objective.beta = -1.0",
        ),
        (
            {"objective.beta": {"gird": [1]}},
            {},
            "'space.objective.beta.gird': did you mean 'space.objective.beta.grid'",
        ),
        ({}, {}, "space: "),
        (
            {"objective.beta": {"grid": [1]}},
            {"objectve": []},
            "unknown config key 'objectve': did you mean 'objectives'",
        ),
        ({"objective.beta": {"grid": [1]}}, {"num_samples": 2}, "every key is a grid"),
        (
            {"objective.beta": {"grid": [1], "when": {"mask.kind": "learned"}}},
            {},
            "only a searched key with grid or choice",
        ),
        (
            {
                "objective.beta": {"grid": [1], "when": {"mask.kind": "x"}},
                "mask.kind": {"grid": ["learned"]},
            },
            {},
            "is 'x': searched are 'learned'",
        ),
        (
            {
                "objective.beta": {"grid": [1], "when": {"train.seed": 0}},
                "train.seed": {"grid": [0], "when": {"objective.beta": 1}},
            },
            {},
            "go in a circle",
        ),
        (
            {"mask.kind": {"grid": ["none"]}},
            {},
            "mask.kind=none: mask.kind=none with objective.name=sparsepo",
        ),
        (
            {"objective.beta": {"grid": [1]}},
            {"searcher": {"name": "tpe"}},
            "searcher tpe does not walk through: use choice",
        ),
        (
            {"objective.beta": {"choice": [1]}},
            {"searcher": {"name": "nsga2"}},
            "two objectives or more",
        ),
        (
            {"objective.beta": {"grid": [1]}},
            {"objectives": [{"metric": "reward"}]},
            r"objectives\[0\].metric = 'reward': string should match",
        ),
        (
            {"objective.beta": {"grid": [1]}},
            {"objectives": [{"metric": "evaluation/code/pass"}]},
            "no trial runs the benchmark 'code'",
        ),
        (
            {"objective.beta": {"grid": [1]}},
            {"overrides": ["data.validation_fraction=0"]},
            "needs held-out pairs",
        ),
        (
            {"objective.beta": {"grid": [1]}},
            {"scheduler": {"name": "asha", "grace_steps": 1}},
            "set train.validate_every",
        ),
        (
            {"objective.beta": {"grid": [1]}},
            {"scheduler": {"name": "asha", "grace_steps": 1}, "objectives": [{"metric": REWARD}]},
            "is not known while a trial trains",
        ),
        ({"train.seed": {"grid": [1]}}, {"seeds": [0, 1]}, "train.seed is searched and repeated"),
        (
            {"objective.beta": {"grid": [1]}},
            {"pick": {"where": ["reward over 5"]}},
            "is no condition: write it as METRIC <= NUMBER",
        ),
        (
            {"recipe": {"grid": ["hh-nothing"]}},
            {},
            "recipe 'hh-nothing': no such file, nor a packaged recipe",
        ),
        ({"recipe": {"uniform": [0, 1]}}, {}, "recipe takes grid or choice"),
        (
            {"mask.kind": {"grid": ["surprise", "random"]}, "mask.quantile": {"grid": [0.6]}},
            {"recipe": "hh-surprise"},
            "mask.kind=random, mask.quantile=0.6: config key 'mask.quantile' is none of mask.kind=",
        ),
    ],
)
def test_what_is_wrong_with_a_sweep_is_named(
    load: Load, space: dict[str, object], top: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(space, **top)
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file, nor a packaged sweep \(.*imdb-frontier"):
        load_sweep(str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("space: [")
    with pytest.raises(UserError, match="is not valid YAML"):
        load_sweep(str(tmp_path / "bad.yaml"))
    assert not is_sweep("hh-dpo")
    assert is_sweep("imdb-frontier")


@pytest.mark.parametrize("name", sorted(packaged("sweep")))
def test_packaged_sweeps_load(name: str, model_dir: Path, pairs_file: Path, tmp_path: Path) -> None:
    """Every point of them is a recipe, on a tiny model and another file."""
    sweep = load_sweep(
        name,
        (
            f"run_dir={tmp_path}",
            f"model.name_or_path={model_dir}",
            f"data.sources=[{{path: {pairs_file}}}]",
            "data.test=[]",
        ),
    )
    assert sweep.num_trials() >= 12
    assert f"sparsepo tune {name} " in packaged("sweep")[name].read_text(), (
        "says how it is launched"
    )


def test_producers_side_by_side_have_settings_of_their_own() -> None:
    """Equal shares and mean weights; what one producer alone knows is searched for it alone."""
    sweep = load_sweep("hh-producers")
    assert sweep.points is not None
    kept: dict[str, list[float]] = {}
    for point in sweep.points:
        mask, objective = (getattr(sweep.recipe_at(point, "x"), n) for n in ("mask", "objective"))
        found = mask.model_dump()
        own = found.get("k") or found.get("fraction")
        share = own or found["keep_fraction"] or 1 - found["quantile"]
        kept.setdefault(mask.kind, []).append(round(share, 9))
        assert (mask.normalise, objective.beta, objective.alpha) == ("mean_one", 0.1, 0.0)
        assert [key for key in ("k", "quantile", "fraction") if key in found] == {
            "adversarial": ["k"], "surprise": ["quantile"], "entropy": ["fraction"],
        }.get(mask.kind, [])  # fmt: skip
    kinds = (
        "random", "position_decay", "activation", "surprise", "adversarial", "entropy", "saliency",
        "transport",
    )  # fmt: skip
    assert kept == {kind: [0.1, 0.2, 0.4] for kind in kinds}


@pytest.mark.slow
def test_sparse_weights_stand_beside_their_baselines() -> None:
    """Each method at the same betas; all but DPO, TDPO and MaPO have SparsePO's loss. SparsePO has
    this project's weights, dense and at three shares of zeros.
    """
    sweep = load_sweep("imdb-frontier-sparsity")
    assert sweep.points is not None
    betas: dict[tuple[Any, ...], list[float]] = {}
    for point in sweep.points:
        recipe = sweep.recipe_at(point, "x")
        mask, objective = recipe.mask.model_dump(), recipe.objective.model_dump()
        share = mask.get("target_sparsity") or mask.get("keep_fraction")
        sharing = mask.get("sharing", "")
        betas.setdefault((objective["name"], mask["kind"], sharing, share), []).append(
            objective["beta"]
        )
        assert objective.get("alpha", 1.0) == (0.5 if objective["name"] == "tdpo2" else 1.0)
        assert mask.get("weights", "centred") == "centred"
        assert (recipe.evaluate.num_prompts, recipe.evaluate.samples_per_prompt) == (1500, 4)
    sparsepo = [
        ("sparsepo", "learned", sharing, share)
        for sharing in ("common", "independent")
        for share in (None, 0.5, 0.75, 0.9)
    ]
    assert set(betas) == {
        *((name, "none", "", None) for name in ("dpo", "tdpo1", "tdpo2")),
        ("mapo", "activation", "", 0.3), ("mapo", "activation", "", 1.0), *sparsepo,
        ("weighted", "random", "", 0.25),
        *(("weighted", kind, "", None) for kind in ("entropy", "partition", "adversarial")),
    }  # fmt: skip
    assert all(found == [0.025, 0.1, 0.5, 2.0] for found in betas.values())
    assert sweep.keep == "metrics"


def test_keys_on_the_command_line(load: Load) -> None:
    """Keys of the sweep replace the file's, all others go to the recipe."""
    sweep = load(
        {"objective.beta": {"grid": [0.1]}},
        "seeds=[3, 4]",
        "train.learning_rate=0.5",
        "space.train.weight_decay={grid: [0, 0.1]}",
        "pick.where=['validation/loss <= 1']",
    )
    assert (sweep.seeds, sweep.num_trials(), sweep.pick.limits()) == (
        (3, 4),
        2,
        [("validation/loss", "<=", 1.0)],
    )
    points = sweep.points
    assert points is not None
    assert [sweep.recipe_at(p, "x").train.learning_rate for p in points] == [0.5, 0.5]
    assert [sweep.recipe_at(p, "x").train.weight_decay for p in points] == [0, 0.1]


@pytest.mark.slow
def test_points_share_a_store_unless_a_searched_key_changes_it(load: Load, tmp_path: Path) -> None:
    methods = {
        "recipe": {"grid": [str(tmp_path / f"{name}.yaml") for name in ("dpo", "mapo", "sparsepo")]}
    }

    def stores(space: dict[str, object], *overrides: str) -> list[tuple[frozenset[str], int]]:
        found = SharedStores.of(load({**methods, **space}, *overrides)).makers()
        return [(recipe.stored_features(), points) for recipe, points in found]

    everything = frozenset({"reference_logps", "reference_hidden", "activation_mask"})
    assert stores({}) == [(everything, 3)]
    assert stores({"objective.beta": {"grid": [0.1, 0.2]}}) == [(everything, 6)]
    assert [points for _, points in stores({"data.max_response_tokens": {"grid": [8, 16]}})] == [
        3,
        3,
    ]
    hooks = {
        "mask.hooks": {"grid": ["mlp", "attn"], "when": {"recipe": str(tmp_path / "mapo.yaml")}}
    }
    assert sorted(points for _, points in stores(hooks)) == [1, 3], (
        "two activation masks of one name cannot lie in one store"
    )
    sweep = load({**methods, **hooks})
    shared = SharedStores.of(sweep)
    again = SharedStores.from_json(sweep.run_dir, json.loads(json.dumps(shared.to_json())))
    for point in sweep.sample_of_points():
        recipe = sweep.recipe_at(point, "x")
        assert again.shared(Run(recipe)).paths == shared.shared(Run(recipe)).paths
    paths = {
        again.shared(Run(sweep.recipe_at(p, "x"))).paths.reference_root
        for p in sweep.sample_of_points()
    }
    assert len(paths) == 2
    limited = SharedStores.of(load(methods, "ray.cpus_per_run=1")).makers()[0][0]
    assert limited.ray.cpus_per_run is None, (
        "a trial's share is not that of the stages before all trials"
    )
    own = SharedStores.of(load({**methods}, f"paths.pairs={tmp_path}/elsewhere"))
    assert own.makers()[0][0].paths.pairs == f"{tmp_path}/elsewhere"
    plan = plan_sweep(
        load(
            {"objective.beta": {"grid": [0.1, 0.2]}, "data.max_response_tokens": {"grid": [8, 16]}},
            "seeds=[0, 1]",
        )
    )
    assert (plan["trials"], plan["runs"], [store["points"] for store in plan["stores"]]) == (
        4,
        8,
        [2, 2],
    )
    assert 0 < plan["train"]["hours"] == pytest.approx(8 * plan["train"]["hours_per_run"])
    assert plan["stores"][0]["storage_bytes"] != plan["stores"][1]["storage_bytes"]


def test_points_with_other_scorers_share_no_store(
    load: Load, make_recipe: MakeRecipe, model_dir: Path, tmp_path: Path
) -> None:
    """One tuned model serves all that read q; two of them make another store, even where no
    feature is in both. A recipe that only names scorers does not say which are meant.
    """
    good, bad = (f"model.{side}_scorer={model_dir}" for side in ("positive", "negative"))
    for name, options in {
        "idle": ("objective.name=dpo", "model.positive_scorer=/nowhere"),
        "reward": ("objective.name=weighted", "mask.kind=token_reward", good),
        "select": ("objective.name=weighted", "mask.kind=selective", good),
        "contrast": ("objective.name=weighted", "mask.kind=contrast", good, bad),
    }.items():
        file = tmp_path / f"{name}.yaml"
        file.write_text(write_yaml(make_recipe("data.validation_fraction=0.2", *options)))

    def stores(*names: str) -> list[Recipe]:
        files = [str(tmp_path / f"{name}.yaml") for name in names]
        return [r for r, _ in SharedStores.of(load({"recipe": {"grid": files}})).makers()]

    (one,) = stores("idle", "reward", "select")
    assert one.stored_features() == {"reference_logps", "scorer_log_ratios"}
    assert one.model.positive_scorer == str(model_dir) and one.model.negative_scorer is None
    several = stores("reward", "contrast")
    assert {recipe.model.negative_scorer for recipe in several} == {None, str(model_dir)}
    assert {len(recipe.stored_features()) for recipe in several} == {2, 3}


def trial(number: int, reward: float, kl: float, **more: object) -> Trial:
    return Trial.model_validate(
        {
            "number": number,
            "point": {"objective.beta": 0.1 * (number + 1)},
            "run_dir": f"/nowhere/{number}",
            "status": "finished",
        }
        | {"metrics": {REWARD: reward, KL: kl}, "runs": {"0": {}}}
        | more
    )


def test_the_pick(load: Load) -> None:
    """The knee, the best by a metric, and the best within a limit."""
    two = {"objectives": [{"metric": REWARD}, {"metric": KL, "mode": "min"}]}
    space = {"objective.beta": {"grid": [0.1]}}
    trials = [trial(0, 0.0, 0.0), trial(1, 0.8, 2.0), trial(2, 1.0, 10.0), trial(3, 0.9, 6.0)]
    assert pick(load(space, **two), trials)[0].number == 1
    assert pick(load(space, **two, pick={"metric": REWARD}), trials)[0].number == 2
    chosen, why = pick(load(space, **two, pick={"metric": REWARD, "where": [f"{KL} <= 6"]}), trials)
    assert (chosen.number, why) == (3, f"max of {REWARD} where {KL} <= 6: 0.9")
    assert pick(load(space, **two, pick={"where": [f"{KL} > 2"]}), trials)[0].number == 2, (
        "a straight front"
    )
    assert pick(load(space, objectives=[{"metric": KL, "mode": "min"}]), trials)[0].number == 0
    with pytest.raises(UserError, match="no trial fulfils"):
        pick(load(space, **two, pick={"where": [f"{KL} < 0"]}), trials)
    with pytest.raises(UserError, match="'validation/nothing' is reported by no trial"):
        pick(load(space, **two, pick={"metric": "validation/nothing"}), trials)


def test_a_trial_that_was_stopped_has_not_failed(load: Load) -> None:
    """Its process may see its workers go before it goes itself; Ray Tune knows no error of it."""
    sweep = load({"objective.beta": {"grid": [0.1]}}, objectives=[{"metric": KL}])
    (point,) = sweep.points or ()
    store = RunStore(sweep.trial_dir(0, point))
    left = trial(0, 0.0, 0.0, status="failed", message="training failed: its owner has died")
    metrics = {"train/step": 4.0, "time_total_s": 2.0, "done": True}

    def found(error: Exception | None) -> Trial:
        store.write_json("trial.json", left.model_dump(mode="json"))
        config = {"number": 0, "point": point}
        return _trial_of(sweep, SimpleNamespace(config=config, error=error, metrics=metrics))

    assert found(StageFailed("training failed")) == left
    stopped = found(None)
    assert (stopped.status, stopped.metrics) == ("stopped", {"train/step": 4.0})
    assert not store.exists("trial.json"), "nor does who reads the directory see a failure"


def test_tpe_learns_from_results_and_keeps_conditions(load: Load) -> None:
    """The result is best at beta = 0.3: what is suggested in the end lies nearer to it on the
    whole than the first eight, which are drawn (0.25 to 0.55 of the distance). Trials without a
    result are passed over.
    """
    from pipelines.sweep.search import searcher_of

    sweep = load(
        {
            "mask.sharing": {"choice": ["common", "independent"]},
            "mask.target_sparsity": {
                "uniform": [0.2, 0.8],
                "when": {"mask.sharing": "independent"},
            },
            "objective.beta": {"loguniform": [0.05, 2.0]},
        },
        searcher={"name": "tpe", "startup_trials": 8},
        num_samples=96,
        objectives=[{"metric": KL, "mode": "min"}],
    )
    searcher, distances, sharings = searcher_of(sweep), [], set()
    for number in range(sweep.num_samples):
        found = searcher.suggest(f"trial-{number}")
        assert found["number"] == number
        point = found["point"]
        sharings.add(point["mask.sharing"])
        assert ("mask.target_sparsity" in point) == (point["mask.sharing"] == "independent")
        assert 0.2 <= point.get("mask.target_sparsity", 0.5) <= 0.8
        assert 0.05 <= point["objective.beta"] <= 2.0
        distances.append(abs(math.log(point["objective.beta"] / 0.3)))
        result = None if number % 8 == 7 else {KL: distances[-1]}
        searcher.on_trial_complete(f"trial-{number}", result)
    assert sharings == {"common", "independent"}
    assert sum(distances[-32:]) / 32 < 0.75 * sum(distances[:8]) / 8


def test_means_and_spread_over_seeds() -> None:
    """Of 1 and 3: mean 2, standard error 1, Student's t with one degree of freedom 12.706. The
    intervals of the runs, which are over prompts, are no intervals over seeds.
    """
    found = joined([{"a": 1.0, "a/low": 0.0, "b": 2.0}, {"a": 3.0, "a/low": 0.0, "b": 2.0}])
    assert found == pytest.approx({
        "a": 2.0, "a/std": 2**0.5, "a/low": 2 - 12.7062047, "a/high": 2 + 12.7062047,
        "b": 2.0, "b/std": 0.0, "b/low": 2.0, "b/high": 2.0,
    })  # fmt: skip
    assert joined([{"a": 1.0, "a/low": 0.0}]) == {"a": 1.0, "a/low": 0.0}


def test_every_seed_is_a_run_of_its_own(load: Load) -> None:
    space = {"objective.beta": {"grid": [0.1]}}

    def runs(seeds: list[int]) -> list[tuple[int, str]]:
        sweep = load(space, "train.seed=9", seeds=seeds)
        (point,) = sweep.points or ()
        folder = sweep.trial_dir(0, point)
        return [
            (recipe.train.seed, recipe.run_dir.removeprefix(folder))
            for recipe in seed_recipes(sweep, 0, point)
        ]

    assert runs([3, 4]) == [(3, "/seed-3"), (4, "/seed-4")]
    assert runs([3]) == [(3, "")]
    assert runs([]) == [(9, "")], "the recipe's own"


@pytest.mark.slow
def test_results_of_trials_that_ended_differently(load: Load, tmp_path: Path) -> None:
    """Tables keep every trial, the front only finished ones; a value that is a word is text in
    both tables.
    """
    import pyarrow.parquet as pq

    sweep = load(
        {"objective.beta": {"grid": [0.1]}},
        objectives=[{"metric": REWARD}, {"metric": KL, "mode": "min"}],
    )
    config = RunStore(f"{tmp_path}/r")
    config.write_bytes(
        "config.yaml",
        write_yaml(sweep.recipe_at({"objective.beta": 0.1}, f"{tmp_path}/r")).encode(),
    )
    trials = [
        trial(0, 0.5, 1.0, run_dir=config.root, point={"objective.beta": 0.1, "mask.hooks": "all"}),
        trial(1, float("nan"), 1.0, status="diverged", message="loss nan"),
        trial(2, 0.4, 2.0, point={"objective.beta": 0.2, "mask.hooks": ["mlp"]}),
        trial(3, 0, 0, status="stopped", metrics={}),
    ]
    said: list[str] = []
    best = publish_results(sweep, trials, said.append)
    assert load_recipe(best).objective.model_dump()["beta"] == 0.1
    assert "2 finished, 1 diverged, 1 stopped" in said[0]
    table = pq.read_table(tmp_path / "sweep" / "trials.parquet").to_pylist()
    assert [row["status"] for row in table] == ["finished", "diverged", "finished", "stopped"]
    assert [row["mask.hooks"] for row in table] == ["all", None, "['mlp']", None]
    front = json.loads((tmp_path / "sweep" / "pareto.json").read_text())
    assert [row["trial"] for row in front["front"]] == [0]
    page = page_of(sweep)
    assert "loss nan" in page
    assert 'src="http' not in page
    assert 'href="http' not in page
    assert {p.name for p in (tmp_path / "sweep" / "report").glob("*.png")} == {
        "frontier-by-objective-beta.png",
        "parallel-coordinates.png",
    }
    events = sorted((tmp_path / "sweep" / "tensorboard").rglob("events.*"))
    assert len(events) == 4
    assert all(
        word in events[0].read_bytes()
        for word in (b"_hparams_", b"objective.beta", REWARD.encode())
    )
    assert [t.number for t in read_trials(RunStore(sweep.run_dir))] == [0, 1, 2, 3]


def page_of(sweep: Sweep) -> str:
    """Without the library that draws its figures, and what is ours of the drawing."""
    page = own_part(Path(sweep.run_dir, "report", "index.html").read_text())
    return page.partition('<script id="charts">')[0]


def table_at_equal_distance(sweep: Sweep) -> list[list[str]]:
    """The cells of the page's table, row by row."""
    page = page_of(sweep)
    if 'id="equal"' not in page:
        return []
    table = page.split('id="equal"')[1].split("</table>")[0]
    rows = [
        re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>.*?</tr>", table)
    ]
    return [[re.sub(r"<.*?>", " ", cell).strip() for cell in row] for row in rows]


@pytest.mark.slow
def test_methods_are_compared_at_equal_distances_by_their_samples(
    load: Load, tmp_path: Path
) -> None:
    """Two methods, two betas; samples of twenty prompts at two temperatures, of which the first
    counts. The same comparison is made from the numbers that were written.
    """
    recipes = [str(tmp_path / f"{name}.yaml") for name in ("dpo", "mapo")]
    sweep = load(
        {"recipe": {"grid": recipes}, "objective.beta": {"grid": [0.1, 1.0]}},
        objectives=[{"metric": REWARD}, {"metric": KL, "mode": "min"}],
    )
    assert sweep.points is not None
    trials, expected = [], {"dpo": [], "mapo": []}  # type: ignore[var-annotated]
    rng = random.Random(0)
    for number, point in enumerate(sweep.points):
        root = sweep.trial_dir(number, point)
        RunStore(root).write_bytes("config.yaml", write_yaml(sweep.recipe_at(point, root)).encode())
        distance = {0.1: 6.0, 1.0: 1.5}[point["objective.beta"]]
        base = distance / 10 + 0.2 * ("mapo" in point["recipe"])
        values = [(base + rng.random(), distance * rng.uniform(0.8, 1.2)) for _ in range(20)]
        samples = [
            {"prompt": f"p{i}", "policy_reward": reward, "kl_policy_reference": kl,
             "temperature_number": 0}
            for i, (reward, kl) in enumerate(values)
        ]  # fmt: skip
        samples += [{**sample, "policy_reward": 9.0, "temperature_number": 1} for sample in samples]
        lines = "".join(json.dumps(sample) + "\n" for sample in samples)
        evaluation = RunStore(f"{root}/evaluation")
        evaluation.write_bytes("samples/samples.jsonl", lines.encode())
        record = StageRecord("evaluate", evaluation, {}, {})
        record.begin()
        path = "samples/samples.jsonl"
        record.finish({"benchmarks": []}, {path: evaluation.checksum(path)})
        reward, kl = fmean(r for r, _ in values), fmean(k for _, k in values)
        trials.append(trial(number, reward, kl, point=point, run_dir=root))
        by_prompt = {f"p{i}": value for i, value in enumerate(values)}
        expected[Path(point["recipe"]).stem].append(Measured(kl, reward, by_prompt))
    publish_results(sweep, trials, print)
    header, *rows = table_at_equal_distance(sweep)
    assert header[1:] == ["dpo", "mapo"]
    levels = compare_at(expected, [2.0, 5.0])
    assert [row[0] for row in rows] == ["2", "5"]
    for row, level in zip(rows, levels, strict=True):
        for name, cell in zip(("dpo", "mapo"), row[1:], strict=True):
            found = level.methods[name]
            assert cell.startswith(f"{found.gain:.3f} [{found.low:.3f}, {found.high:.3f}]")
        assert f"{level.differences['mapo'].mean:+.3f} [" in row[2]

    damaged = Path(trials[0].run_dir, "evaluation/samples/samples.jsonl")
    damaged.write_text(damaged.read_text()[:-9])
    said: list[str] = []
    publish_results(sweep, trials, said.append)
    assert f"{damaged} is damaged" in said[0]
    assert all("[" not in cell for row in table_at_equal_distance(sweep) for cell in row)


def test_the_page_names_what_all_trials_share(load: Load, tmp_path: Path) -> None:
    """And leaves out what a searched key changes between them."""
    sweep = load({"model.name_or_path": {"grid": ["one", "two"]}}, objectives=[{"metric": REWARD}])
    trials = []
    for number, point in enumerate(sweep.points or ()):
        root = sweep.trial_dir(number, point)
        RunStore(root).write_bytes("config.yaml", write_yaml(sweep.recipe_at(point, root)).encode())
        trials.append(trial(number, 0.1 * number, 1.0, point=point, run_dir=root))
    publish_results(sweep, trials, print)
    page = page_of(sweep)
    assert "<h1>Search of model.name_or_path on pairs.jsonl</h1>" in page
    assert "each from" not in page
    folder = Path(trials[1].run_dir).name
    assert f'href="../trials/{folder}/config.yaml"' in page and 'href="../best.yaml"' in page


@pytest.mark.slow
def test_an_interrupted_sweep_is_not_taken_for_another(load: Load) -> None:
    """Without --resume it is refused, with other settings too; what changes no trial may change."""
    space = {"objective.beta": {"grid": [0.1, 0.2]}}
    sweep = load(space)
    sweep_record(sweep).begin()
    with pytest.raises(UserError, match="was interrupted: add --resume"):
        run_tune(sweep, print)
    with pytest.raises(
        UserError, match=r"setting .*sparsepo.yaml: train.learning_rate was 0.001, now it is 0.5"
    ):
        run_tune(load(space, "train.learning_rate=0.5"), print, resume=True)
    with pytest.raises(
        UserError, match=r"setting .*sparsepo.yaml: data.max_prompt_tokens was 24, now it is 20"
    ):
        sweep_record(load(space, "data.max_prompt_tokens=20")).check()
    with pytest.raises(UserError, match="setting space was"):
        run_tune(load({"objective.beta": {"grid": [0.1, 0.3]}}), print, resume=True)
    sweep_record(
        load(
            space,
            "ray.num_cpus=2",
            "train.micro_batch_tokens=99",
            "hours=1",
            "pick.metric=validation/loss",
        )
    ).check()
    assert RunStore(sweep.run_dir).exists(STARTED)


def test_a_fraction_of_a_gpu_is_for_one_worker() -> None:
    mapping = {"run_dir": "x", "model": {"name_or_path": "x"}, "data": {"sources": [{"path": "x"}]}}
    assert validate_recipe(mapping, ("ray.gpus_per_run=0.25",)).ray.gpus_per_run == 0.25
    for overrides in (("ray.gpus_per_run=0.5", "train.num_workers=2"), ("ray.gpus_per_run=1.5",)):
        with pytest.raises(UserError, match="a fraction of one GPU is for one worker"):
            validate_recipe(mapping, overrides)


def test_a_sweep_that_was_moved_names_its_own_runs(load: Load, tmp_path: Path) -> None:
    """Of the best trial the run and the pairs, which lay below the sweep; a place of the recipe's
    own stays.
    """
    sweep = load({"objective.beta": {"grid": [0.1]}}, objectives=[{"metric": REWARD}])
    (point,) = sweep.points or ()
    store = RunStore(sweep.trial_dir(0, point))
    recipe = sweep.recipe_at(point, store.root)
    places = {"pairs": f"{sweep.run_dir}/stores/pairs-1", "reference": f"{tmp_path}/own"}
    recipe = recipe.model_copy(update={"paths": recipe.paths.model_copy(update=places)})
    store.write_bytes("config.yaml", write_yaml(recipe).encode())
    publish_results(sweep, [trial(0, 0.5, 1.0, point=point, run_dir=store.root)], print)
    Path(sweep.run_dir).rename(tmp_path / "moved")
    moved = sweep.model_copy(update={"run_dir": str(tmp_path / "moved")})
    best = load_recipe(publish_results(moved, read_trials(RunStore(moved.run_dir)), print))
    assert best.run_dir == moved.trial_dir(0, point)
    assert best.paths.pairs == f"{tmp_path}/moved/stores/pairs-1"
    assert best.paths.reference == f"{tmp_path}/own"
    (tmp_path / "moved" / "trials" / store.root.rpartition("/")[2] / "config.yaml").unlink()
    with pytest.raises(UserError, match="config.yaml is missing: restore it"):
        publish_results(moved, read_trials(RunStore(moved.run_dir)), print)


@pytest.mark.parametrize(
    ("override", "metric", "wanted"),
    [
        ("evaluate.generation.temperature=0.5", KL, f"{KL}_off_policy"),
        ("evaluate.generation.top_p=0.9", KL, f"{KL}_off_policy"),
        ("evaluate.generation.temperature=1.0", f"{KL}_off_policy", KL),
    ],
)
def test_the_kl_of_other_samples_is_refused_under_the_policys_name(
    load: Load, override: str, metric: str, wanted: str
) -> None:
    """Before any trial: no trial would report it. As an objective and as a limit of `pick`."""
    space = {"objective.beta": {"grid": [0.1]}}
    goal, rule = {"metric": metric, "mode": "min"}, {"where": [f"{metric} <= 5"]}
    reward = {"metric": REWARD, "mode": "max"}
    for top in ({"objectives": [goal]}, {"objectives": [reward], "pick": rule}):
        with pytest.raises(UserError, match=f"objectives and pick: .*; name '{wanted}'"):
            check_trials(load(space, override, **top))
