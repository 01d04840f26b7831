"""The worlds and the methods that `worlds.py` compares: what is trained, on what."""

import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pipelines.commands.quickstart import OBJECTIVES as QUICKSTART_OBJECTIVES
from pipelines.commands.quickstart_world import Dials
from pipelines.recipe import load_recipe, packaged

Table = Literal["methods", "worlds"]
Scorers = Literal["none", "tuned", "contrasted"]
# Of the policy's optimizer in the quickstart, against 1e-6 in the packaged recipes: what learns its
# masks beside it does so at the quickstart's rate too.
MASK_LEARNING_RATE = 0.005
# Epochs of the quickstart's trainings; `partition` weighs another part of the tokens in each.
EPOCHS = 3


@dataclass(frozen=True)
class World:
    """A grammar, and how the labels of its pairs are made.

    Attributes:
        dial: which of the three is moved; "" for the quickstart's world. noise: share of training
            pairs whose responses are exchanged.
    """

    name: str
    dial: str
    dials: Dials = field(default_factory=Dials)
    noise: float = 0.0

    @property
    def max_new_tokens(self) -> int:
        """Of a sample: the quickstart's 40 for three sentences, as many for each more."""
        return max(40, 40 * self.dials.sentences // 3)


@dataclass(frozen=True)
class Setting:
    """A method: the sections `objective` and `mask` of a recipe.

    Attributes:
        scorers: tuned = a model that DPO has tuned in the place of the positive one; contrasted =
            one tuned on chosen and one on rejected responses. scaled: what differs from the
            packaged recipe; "" for nothing.
    """

    name: str
    objective: dict[str, Any]
    mask: dict[str, Any]
    scorers: Scorers = "none"
    scaled: str = ""


def _positions(sentences: int) -> int:
    return 64 + 20 * sentences


def _long(sentences: int) -> Dials:
    return Dials(sentences=sentences, positions=max(128, _positions(sentences)))


DEFAULT_WORLD = World("quickstart", "")
WORLDS = (
    DEFAULT_WORLD,
    World("words only", "irrelevant", Dials(aside_fraction=0.0, is_bare=True)),
    World("slots of five", "irrelevant", Dials(2, aside_fraction=0.0, slot_words=5)),
    World("slots of two", "irrelevant", Dials(aside_fraction=0.0, slot_words=2)),
    World("asides 70%", "irrelevant", Dials(aside_fraction=0.7)),
    *(World(f"noise {noise:.0%}", "noise", noise=noise) for noise in (0.1, 0.2, 0.3, 0.4)),
    *(World(f"sentences {count}", "length", _long(count)) for count in (1, 6, 12)),
)

_WEIGHTED = {"name": "weighted", "beta": 0.1}
_NO_MASK = {"kind": "none"}
ORACLE = Setting("oracle", _WEIGHTED, {"kind": "external"})
DPO = Setting("dpo", QUICKSTART_OBJECTIVES["dpo"]["objective"], _NO_MASK)
_SPARSEPO = Setting("sparsepo-quickstart", **QUICKSTART_OBJECTIVES["sparsepo"])
_ENTROPY = Setting("entropy", _WEIGHTED, {"kind": "entropy", "fraction": 0.2})
# As many tokens as `entropy` keeps, and about as many as the oracle keeps of the quickstart's.
_RANDOM_FIFTH = Setting("random-fifth", _WEIGHTED, {"kind": "random", "keep_fraction": 0.2})
# Of the twelve worlds. Each is trained with each beta, so that gains can be read at a distance.
COMPARED = (DPO, _SPARSEPO, ORACLE, _RANDOM_FIFTH, _ENTROPY)
BETAS = (0.1, 0.3, 1.0, 3.0, 10.0)


def settings_of(table: Table) -> tuple[Setting, ...]:
    if table == "methods":
        return _method_settings()
    return tuple(with_beta(setting, beta) for setting in COMPARED for beta in BETAS)


def with_beta(setting: Setting, beta: float) -> Setting:
    """The method with another beta, which its name tells."""
    objective = {**setting.objective, "beta": beta}
    return replace(setting, name=f"{setting.name} {beta:g}", objective=objective)


def worlds_of(table: Table) -> tuple[World, ...]:
    return (DEFAULT_WORLD,) if table == "methods" else WORLDS


def _method_settings() -> tuple[Setting, ...]:
    """Every objective and producer that a packaged recipe has, and those that none has."""
    found = {setting.name: setting for setting in map(_packaged, _recipes())}
    for setting in (_SPARSEPO, ORACLE, *_OTHERS, *_LOSSES):
        found[setting.name] = setting
    return tuple(found.values())


_OTHERS = (
    Setting("random", _WEIGHTED, {"kind": "random"}),
    _RANDOM_FIFTH,
    Setting("activation", _WEIGHTED, {"kind": "activation", "hooks": "all"}),
    Setting(
        "learned",
        _WEIGHTED,
        {"kind": "learned", "architecture": "simple_last", "learning_rate": MASK_LEARNING_RATE},
    ),
    Setting("sft", {"name": "sft"}, _NO_MASK),
)
_LOSSES = (
    *(
        Setting(f"dpo {loss}", {"name": "dpo", "loss": loss}, _NO_MASK)
        for loss in (
            "sigmoid_norm", "hinge", "discopop", "apo_down", "bco_pair", "nca", "sppo",
        )
    ),
    *(
        Setting(f"dpo {loss}", {"name": "dpo", "loss": loss, "label_smoothing": e}, _NO_MASK)
        for loss, e in (("robust", 0.1), ("exo", 0.001))
    ),
    *(
        Setting(f"dpo {kind}", {"name": "dpo", "beta": 0.1, "divergence": kind}, _NO_MASK)
        for kind in ("forward", "js", "alpha")
    ),
)  # fmt: skip


def _recipes() -> list[str]:
    """Packaged recipes, one for each pair of an objective and a mask that another has not."""
    names = sorted(packaged("recipe"), key=lambda name: (not name.startswith("hh-"), name))
    kept: dict[str, str] = {}
    seen: set[str] = set()
    for name in names:
        recipe = load_recipe(name)
        if recipe.model.discriminator is not None:  # a training of its own comes before it
            continue
        if name.startswith("hh-") or recipe.objective.name not in seen:
            said = [recipe.objective.model_dump(mode="json"), recipe.mask.model_dump(mode="json")]
            kept.setdefault(json.dumps(said, sort_keys=True), name)
            seen.add(recipe.objective.name)
    return list(kept.values())


def _packaged(name: str) -> Setting:
    """The method of a packaged recipe, in the quickstart's scale where it has one."""
    recipe = load_recipe(name)
    objective = recipe.objective.model_dump(mode="json", exclude_unset=True)
    mask = recipe.mask.model_dump(mode="json", exclude_unset=True)
    scaled = ""
    if mask["kind"] == "learned":
        scaled = f"mask.learning_rate {MASK_LEARNING_RATE}"
        mask["learning_rate"] = MASK_LEARNING_RATE
    if mask["kind"] == "partition":
        scaled, mask["parts"] = f"mask.parts {EPOCHS}", EPOCHS
    scorers: Scorers = "none"
    if recipe.model.negative_scorer is not None:
        scorers = "contrasted"
    elif recipe.model.positive_scorer is not None:
        scorers = "tuned"
    label = "dpo apo_zero" if name == "hh-dpo-losses" else name.partition("-")[2]
    return Setting(label, objective, mask, scorers, scaled)
