"""Recipes load, errors are one clear line, and every field belongs to the stage whose result it
changes.
"""

import inspect
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.commands.sft import load_sft, sft_recipe
from pipelines.errors import UserError
from pipelines.recipe.files import load_recipe, packaged, validate_recipe, write_yaml
from pipelines.recipe.run_paths import RunPaths
from pipelines.recipe.schema import Recipe
from pipelines.recipe.section import Section, stage_settings
from sparsepo import LOSSES, OBJECTIVES
from sparsepo.masks import MASKS, FrozenMask

MINIMAL: dict[str, Any] = {
    "run_dir": "r",
    "model": {"name_or_path": "m"},
    "data": {"sources": [{"path": "p"}]},
    "objective": {"name": "dpo"},
}
# What an objective needs beside its name.
WITH_OBJECTIVE: dict[str, dict[str, Any]] = {
    name: {"objective": {"name": name}} for name in OBJECTIVES
}
WITH_OBJECTIVE["sparsepo"]["mask"] = {"kind": "learned"}
WITH_OBJECTIVE["odpo"]["data"] = {"sources": [{"path": "p"}], "min_gap": 0.1}
WITH_OBJECTIVE["tis_dpo"]["model"] = {
    "name_or_path": "m",
    "positive_scorer": "p",
    "negative_scorer": "n",
}
WITH_OBJECTIVE["sum"]["objective"]["of"] = [
    {"weight": 0.8, "name": "dpo"},
    {"weight": 1.0, "name": "sft"},
]


@pytest.mark.parametrize("name", packaged("recipe"))
def test_every_packaged_recipe_loads_and_says_what_it_is(name: str) -> None:
    recipe = load_recipe(name)
    objective = name.split("-", 1)[1].removesuffix("-losses").replace("-", "_")
    if recipe.objective.name == "weighted":  # called after its producer
        assert recipe.mask.kind == objective
    elif recipe.sft.control is not None:  # after how `sparsepo sft` tunes
        assert objective == "meet"
    else:
        named = "sparsepo" if objective.startswith("sparsepo") else objective
        assert recipe.objective.name == named
    header = packaged("recipe")[name].read_text().split("\nrun_dir")[0]
    for word in ("Starting model", "Hardware", f"Launch: sparsepo run {name}"):
        assert word in header
    assert validate_recipe(__import__("yaml").safe_load(write_yaml(recipe))) == recipe


def test_the_eight_released_recipes_are_there() -> None:
    wanted = {
        f"{d}-{o}"
        for d in ("imdb", "hh")
        for o in ("dpo", "mapo", "sparsepo-common", "sparsepo-independent")
    }
    assert wanted <= set(packaged("recipe"))


def test_every_objective_has_a_recipe() -> None:
    assert {load_recipe(name).objective.name for name in packaged("recipe")} == set(OBJECTIVES) - {
        "sft"
    }  # `sparsepo sft` takes any recipe


def test_every_producer_has_a_recipe() -> None:
    """But for weights that come with the data."""
    kinds = {load_recipe(name).mask.kind for name in packaged("recipe")}
    assert kinds == set(MASKS) - {"external"}


NUMBERS = (-math.inf, -1, 0, 1e-3, 0.49, 0.5, 1, 1.5, 2, 50, math.inf, math.nan)


def is_built(build: Callable[..., object], **options: float) -> bool:
    try:
        build(**options)
    except ValueError:
        return False
    return True


def assert_same_ranges(config: Any, build: Any, numbers: Iterable[str]) -> None:
    """Each option at the ends of its range: a section is refused where what is built from it is."""
    for option, value in itertools.product(numbers, NUMBERS):
        given = {option: value}
        assert is_built(config, **given) == is_built(build, **given), given


@pytest.mark.parametrize("kind", [kind for kind in MASKS if kind not in ("none", "learned")])
def test_a_recipe_may_say_exactly_what_a_producer_can_be_built_with(kind: str) -> None:
    given = {"objective": {"name": "weighted"}, "mask": {"kind": kind}}
    base = {**MINIMAL, **WITH_OBJECTIVE["tis_dpo"], **given}
    base["model"] = {**base["model"], "discriminator": "d"}
    config = type(validate_recipe(base).mask)
    built = dict(inspect.signature(MASKS[kind].load()).parameters)
    if built.pop("options", None):
        built |= inspect.signature(FrozenMask).parameters
    options = config(kind=kind).options()
    assert set(options) == set(built)
    numbers = [key for key, value in options.items() if isinstance(value, float)]
    assert_same_ranges(config, MASKS[kind], [*numbers, "keep_fraction"])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_recipe_may_say_exactly_what_an_objective_can_be_built_with(name: str) -> None:
    """It is refused before the work, not in it."""
    config = type(validate_recipe({**MINIMAL, **WITH_OBJECTIVE[name]}).objective)
    options = {key: field for key, field in config.model_fields.items() if key != "name"}
    assert set(options) == set(inspect.signature(OBJECTIVES[name].load()).parameters)
    numbers = [key for key, field in options.items() if field.annotation is float]
    assert_same_ranges(config, OBJECTIVES[name], numbers)


def test_mapo_without_a_mask_means_activations_and_never_tdpo1() -> None:
    """By a mapping, by an override, with options of the mask alone; `none`, also a recipe's own,
    is refused, and so is it for SparsePO.
    """
    given = {**MINIMAL, "objective": {"name": "mapo"}}
    for recipe in (
        validate_recipe(given),
        validate_recipe(MINIMAL, ["objective.name=mapo"]),
        validate_recipe(given, ["mask.hooks=mlp"]),
    ):
        assert recipe.mask.kind == "activation"
        assert "activation_mask" in recipe.required_features()
    assert validate_recipe(given, ["mask.kind=random"]).mask.kind == "random"
    for base, overrides in (
        (given, ["mask.kind=none"]),
        ({**MINIMAL, "mask": {"kind": "none"}}, ["objective.name=mapo"]),
    ):
        with pytest.raises(
            UserError,
            match="mask.kind=none with objective.name=mapo: allowed is activation or external or "
            "random",
        ):
            validate_recipe(base, overrides)
    assert validate_recipe(MINIMAL, ["objective.name=tdpo1"]).mask.kind == "none"


def test_learned_masks_are_centred_unless_a_recipe_says_released() -> None:
    """Those that repeat the paper say it."""
    assert (
        validate_recipe(
            {**MINIMAL, "objective": {"name": "sparsepo"}, "mask": {"kind": "learned"}}
        ).mask.weights
        == "centred"
    )  # type: ignore[union-attr]
    found = {
        name: recipe.mask
        for name in packaged("recipe")
        if (recipe := load_recipe(name)).mask.kind == "learned"
    }
    assert {name for name, mask in found.items() if mask.weights == "centred"} == {
        "hh-sparsepo-half"
    }  # type: ignore[union-attr]
    assert len(found) == 9


def test_a_loss_of_dpo_brings_its_own_beta_and_refuses_what_it_would_ignore() -> None:
    """Of a mapping and of overrides alike; a beta that is given stays."""

    def made(*overrides: str) -> Any:
        return validate_recipe(MINIMAL, overrides).objective

    assert (made().beta, made("objective.loss=sigmoid_norm").beta) == (0.1, 5.0)
    assert made("objective.loss=sigmoid_norm", "objective.beta=0.1").beta == 0.1
    assert made("objective.name=wpo", "objective.loss=sigmoid_norm").beta == 5.0
    for loss, declared in LOSSES.items():
        needed = ["objective.label_smoothing=0.1"] * (declared.label_smoothing == "needed")
        options = made(f"objective.loss={loss}", *needed).options()
        assert OBJECTIVES["dpo"](**options).beta == options["beta"] == declared.beta
        assert (
            OBJECTIVES["dpo"](loss=loss, label_smoothing=0.1 * bool(needed)).beta == declared.beta
        )
    for objective in ("dpo", "wpo"):
        for overrides, line in (
            (["loss=hinge", "label_smoothing=0.1"], "label_smoothing=0.1 with loss=hinge, which"),
            (["loss=exo"], "loss=exo needs label_smoothing > 0"),
            (["loss=sppo", "divergence=js"], "divergence=js with loss=sppo, which reads more"),
            (["divergence_alpha=0.3"], "divergence_alpha=0.3 with divergence=reverse, which reads"),
        ):
            given = [f"objective.name={objective}", *(f"objective.{key}" for key in overrides)]
            with pytest.raises(UserError, match=line):
                validate_recipe(MINIMAL, given)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere.yaml.*no such file"):
        load_recipe("nowhere.yaml")
    (tmp_path / "broken.yaml").write_text("run_dir: [")
    with pytest.raises(UserError, match="broken.yaml.* is not valid YAML"):
        load_recipe(str(tmp_path / "broken.yaml"))
    with pytest.raises(UserError, match="config key 'model' is required"):
        validate_recipe({"run_dir": "r", "data": {"sources": [{"path": "p"}]}})


def test_overrides_reach_lists_numbers_and_switch_alternatives() -> None:
    base = {
        **MINIMAL,
        "objective": {"name": "sparsepo", "l1_kl": 0.1, "beta": 0.3},
        "mask": {"kind": "learned", "sharing": "common"},
    }
    recipe = validate_recipe(
        base,
        [
            "data.sources[0].path=q",
            "train.learning_rate=1e-5",
            "mask.hooks=mlp",
            "mask.kind=activation",
            "objective.name=mapo",
        ],
    )
    assert recipe.data.sources[0].path == "q"
    assert recipe.train.learning_rate == 1e-5
    mask = {
        "kind": "activation",
        "hooks": "mlp",
        "mapping": "zn_rescale",
        "terms": "both",
        "sides": "both",
        "keep_fraction": None,
        "normalise": "none",
    }
    assert recipe.mask.model_dump() == mask
    assert recipe.objective.model_dump() == {
        "name": "mapo",
        "beta": 0.1,
        "label_smoothing": 0.0,
        "nll_coef": 0.0,
    }


def test_requirements_come_from_objective_and_mask() -> None:
    def needs(*overrides: str) -> tuple[set[str], str]:
        recipe = validate_recipe(MINIMAL, overrides)
        return set(recipe.required_features()), recipe.reference_mode()

    assert needs() == ({"reference_logps"}, "stored")
    assert needs("objective.name=tdpo1") == ({"reference_logps", "reference_hidden"}, "stored")
    assert needs("objective.name=mapo", "mask.kind=activation") == (
        {"reference_logps", "reference_hidden", "activation_mask"},
        "stored",
    )
    everything = {"reference_logps", "reference_hidden", "reference_layers"}
    assert needs("objective.name=sparsepo", "mask.kind=learned") == (everything, "online")
    assert needs("objective.name=sft")[0] == set()
    weighted = ("objective.name=weighted", "mask.kind=confidence")
    assert needs(*weighted)[0] == {"reference_logps", "policy_logps"}
    free = validate_recipe(MINIMAL, [*weighted, "objective.reference_free=true"])
    assert free.required_features() == {"policy_logps"}
    assert free.stored_features() == free.online_features() == frozenset()
    with_kl = validate_recipe(MINIMAL, [*weighted, "objective.alpha=0.5"])
    assert with_kl.stored_features() == {"reference_logps", "reference_hidden"}
    external = ("objective.name=tis_dpo", "objective.source=external")
    assert needs(*external)[0] == {"reference_logps", "external_weights"}


def test_every_field_changes_exactly_the_stage_it_says() -> None:
    base = validate_recipe(MINIMAL)
    everything = {
        stage: stage_settings(base, stage)
        for stage in ("prepare", "reference", "train", "evaluate", "sample")
    }

    def changed(*overrides: str) -> set[str]:
        other = validate_recipe(MINIMAL, overrides)
        return {
            stage
            for stage, settings in everything.items()
            if stage_settings(other, stage) != settings
        }

    assert changed("data.max_prompt_tokens=7") == {"prepare"}
    assert changed("data.sources[0].form=hh") == {"prepare"}
    assert changed("reference.dtype=bfloat16") == {"reference"}
    assert changed("objective.beta=0.2") == {"train"}
    assert changed("train.seed=4") == {"train"}
    assert changed("evaluate.num_prompts=3") == {"evaluate"}
    assert changed("sample.num_candidates=3") == {"sample"}
    assert changed("data.sources[0].columns.chosen_weights=w") == {"prepare"}
    assert changed("objective.nll_coef=0.1") == {"train"}
    for mask, options, stage in (
        ("activation", "mask.keep_fraction=0.5", "train"),
        ("activation", "mask.terms=kl", "train"),
        ("activation", "mask.mapping=sigmoid", "reference"),
        ("random", "mask.seed=4", "train"),
        ("activation", "mask.sides=chosen", "train"),
        ("activation", "mask.normalise=mean_one", "train"),
    ):
        chosen = ("objective.name=mapo", f"mask.kind={mask}")
        one, two = validate_recipe(MINIMAL, chosen), validate_recipe(MINIMAL, (*chosen, options))
        assert {s for s in everything if stage_settings(one, s) != stage_settings(two, s)} == {
            stage
        }, options  # type: ignore[arg-type]
    for harmless in (
        "model.embedder=x",
        "train.num_workers=2",
        "train.micro_batch_tokens=9",
        "reference.batch_tokens=9",
        "run_dir=x",
        "ray.num_cpus=1",
    ):
        assert changed(harmless) == set(), harmless


# What changes no stage's result. Sections that say where, when and on which machines, and what is
# fingerprinted by its content, do not either.
NO_RESULT = {
    "discriminator.checkpoint_every",
    "data.rows_per_task", "reference.mode", "reference.features", "reference.layout",
    "reference.batch_tokens", "reference.num_actors", "reference.gpus_per_model",
    "reference.max_failed_fraction", "train.selection.keep_best", "train.strategy",
    "train.layout", "train.micro_batch_tokens", "train.auto_microbatch",
    "train.gradient_checkpointing", "train.compile", "train.num_workers", "train.min_workers",
    "train.use_gpu", "train.cpus_per_worker", "train.checkpoint_every",
    "train.keep_checkpoints", "train.max_failures", "train.trackers", "train.tracker_project",
    "train.tracker_group", "evaluate.model", "evaluate.name", "evaluate.batch_tokens",
    "evaluate.num_actors",
    "evaluate.code.num_runners", "evaluate.leaderboard.include_path",
    "evaluate.judge.api_key_env", "evaluate.judge.timeout_seconds", "evaluate.judge.max_tries",
    "evaluate.judge.num_threads", "evaluate.judge.max_failed_fraction", "sample.batch_prompts",
    "sample.num_actors",
}  # fmt: skip
APART = ("run_dir", "model.", "schedule.", "paths.", "ray.", "sft.")


def keys_of(section: Section, prefix: str = "") -> Iterator[str]:
    for name, value in section:
        if isinstance(value, Section):
            yield from keys_of(value, f"{prefix}{name}.")
        elif isinstance(value, tuple) and value and isinstance(value[0], Section):
            for number, item in enumerate(value):
                yield from keys_of(item, f"{prefix}{name}[{number}].")
        else:
            yield prefix + name


def test_what_changes_no_result_is_listed_here() -> None:
    """Every other key is among some stage's settings: a field that is declared of no stage by
    mistake would let old results pass for new ones.
    """
    recipe = validate_recipe(
        MINIMAL,
        [
            "train.lora={}",
            "evaluate.code={tasks: t}",
            "evaluate.leaderboard={tasks: [t]}",
            "evaluate.judge={kind: openai, base_url: 'http://x', model: y}",
        ],
    )
    left = set(keys_of(recipe)) - stage_settings(recipe).keys()
    left -= {  # added later
        "objective.loss", "objective.divergence", "objective.divergence_alpha",
        "data.sources[0].transcripts", "evaluate.samples_per_prompt", "evaluate.control",
    }  # fmt: skip
    assert {key for key in left if not key.startswith(APART)} == NO_RESULT


@pytest.mark.parametrize(
    ("chosen", "added"),
    [
        (("objective.name=mapo",), "mask.sides=rejected"),
        (("objective.name=mapo", "mask.kind=random"), "mask.normalise=sum_length"),
        (("objective.name=tis_dpo", "model.positive_scorer=a", "model.negative_scorer=b"),
         "objective.source=external"),
        ((), "objective.loss=hinge"),
        ((), "objective.divergence=js"),
    ],
)  # fmt: skip
def test_a_key_that_came_later_parts_no_finished_run(chosen: tuple[str, ...], added: str) -> None:
    """While it has its default it is no setting; another value is one."""
    key, value = added.split("=")
    before = stage_settings(validate_recipe(MINIMAL, chosen))
    after = stage_settings(validate_recipe(MINIMAL, (*chosen, added)))
    assert key not in before and after[key] == value


def test_recipe_is_frozen() -> None:
    recipe: Recipe = validate_recipe(MINIMAL)
    with pytest.raises(Exception, match="frozen"):
        recipe.run_dir = "other"  # type: ignore[misc]


def test_fine_tuning_takes_no_place_of_the_preference_run() -> None:
    """Its pairs are of chosen responses alone."""
    recipe = validate_recipe({**MINIMAL, "paths": {"pairs": "/a/pairs", "reference": "/a/ref"}})
    tuned = sft_recipe(recipe)
    assert (tuned.objective.name, tuned.mask.kind) == ("sft", "none")
    root = f"{recipe.run_dir}/sft"
    assert RunPaths.of(tuned) == RunPaths(root, f"{root}/pairs", f"{root}/reference")
    assert sft_recipe(tuned) == tuned


def test_fine_tuning_has_a_rate_and_epochs_of_its_own() -> None:
    """1e-5 and one epoch, or what section sft says; the rest is the preference run's."""
    train = {
        "learning_rate": 5e-7, "epochs": 3, "max_steps": 7, "global_batch_size": 128, "seed": 4,
        "lora": {"rank": 8},
    }  # fmt: skip
    plain = sft_recipe(validate_recipe({**MINIMAL, "train": train}))
    kept = ("learning_rate", "epochs", "max_steps", "global_batch_size", "seed")
    assert plain.train.model_dump(include=set(kept)) == dict(
        zip(kept, (1e-5, 1.0, None, 128, 4), strict=True)
    )
    assert plain.train.lora is not None and plain.train.lora.rank == 8
    assert plain.train.lora.save == "merged", "the preference run puts adapters of its own on it"
    own = {"learning_rate": 2e-4, "epochs": 2, "max_steps": 9, "global_batch_size": 32}
    tuned = sft_recipe(validate_recipe({**MINIMAL, "train": train, "sft": own}))
    assert tuned.train.model_dump(include=set(own)) == own
    again = validate_recipe(yaml.safe_load(write_yaml(tuned)))
    assert sft_recipe(again) == again == tuned, "its own config.yaml is a recipe"


@pytest.mark.parametrize(
    "given", ["train.learning_rate=1e-4", "train={epochs: 2}", "train.global_batch_size=4"]
)
def test_an_override_that_fine_tuning_would_ignore_is_refused(given: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    key = re.search("learning_rate|epochs|global_batch_size", given)
    assert key is not None
    with pytest.raises(UserError, match=f"train.{key[0]} is the .* takes sft.{key[0]}$"):
        load_sft(str(file), [given])
    assert load_sft(str(file), ["train.seed=3", f"sft.{key[0]}=2"]).train.seed == 3
    assert load_sft(str(file), ["objective.name=sft", given]).objective.name == "sft"
