"""What `frontier_sparsity.py` trains: methods, their first betas, sizes of a trial."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from world_settings import MASK_LEARNING_RATE

Task = Literal["imdb", "hh"]
Family = Literal["dense", "sparse", "baseline"]
# Distances at which rewards are read. A method's trials are to span them with some room, so that
# other seeds reach both ends too.
NATS = (1.0, 2.0, 4.0, 8.0)
SPANNED = (0.8, 10.0)
SEEDS = {"imdb": (0, 1, 2, 3, 4), "hh": (0, 1, 2)}
# These are in the fronts whatever the pilot says; chosen are the best dense one and two sparse.
ALWAYS = ("dpo", "tdpo1", "random-0.75")
NUM_SPARSE = 2
# SparsePO as this project and as the paper have it; on every seed if there is time.
DEFAULTS = ("sparsepo-common", "released-common")


@dataclass(frozen=True)
class Setting:
    """A method: the sections `objective` and `mask` of a recipe, but for beta.

    Attributes:
        betas: that the pilot begins with. family: dense = all tokens count, sparse = a part of them
            that is learned or measured, baseline = a part that says nothing of the text or the
            reward, or the wrong part.
    """

    name: str
    family: Family
    objective: dict[str, Any]
    mask: dict[str, Any]
    betas: tuple[float, ...]

    def sections(self, beta: float, seed: int) -> dict[str, Any]:
        """Of a recipe; weights that are drawn are others for each seed."""
        drawn = {"seed": seed} if self.mask["kind"] in ("random", "partition") else {}
        objective = {**self.objective, "beta": beta}
        return {"objective": objective, "mask": {**self.mask, **drawn}}


@dataclass(frozen=True)
class Trial:
    """A training and what it reaches."""

    task: Task
    setting: str
    beta: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.setting}-{self.beta:g}-{self.seed}"

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Trial":
        return cls(record["task"], record["setting"], record["beta"], record["seed"])


@dataclass(frozen=True)
class Sizes:
    """How much a task's trials train and measure.

    Attributes:
        prompts: from which training candidates are drawn. held_out: prompts of the samples.
            samples: of each of them. pairs: of a training, drawn anew for each seed.
            validation: most held-out pairs. judge_pairs: most pairs of the reward model.
    """

    prompts: int
    candidates: int
    held_out: int
    samples: int
    pairs: int
    validation: int
    new_tokens: int
    prompt_tokens: int
    response_tokens: int
    batch: int = 64
    epochs: int = 2
    min_gap: float = 0.3
    learning_rate: float = 3e-5
    judge_pairs: int = 4000


# Prompt and continuation are 64 tokens, as many as a cache has columns.
IMDB = Sizes(
    prompts=2500, candidates=6, held_out=1500, samples=4, pairs=1536, validation=1000,
    new_tokens=40, prompt_tokens=24, response_tokens=40,
)  # fmt: skip
HH = Sizes(
    prompts=0, candidates=0, held_out=384, samples=1, pairs=1536, validation=1000,
    new_tokens=96, prompt_tokens=128, response_tokens=96, min_gap=0.0, learning_rate=2e-5,
)  # fmt: skip

# To see that it works.
SMALL_IMDB = replace(
    IMDB, prompts=40, candidates=4, held_out=16, samples=2, pairs=12, validation=8, new_tokens=12,
    response_tokens=12, batch=4, min_gap=0.01,
)  # fmt: skip
SMALL_HH = replace(
    SMALL_IMDB, prompts=0, candidates=0, held_out=6, samples=1, min_gap=0.0, prompt_tokens=32,
    judge_pairs=8,
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """All that is trained, where its data and its model lie.

    Attributes:
        shards: in which the candidates are drawn.
    """

    model: str
    data: str
    work: str
    imdb: Sizes = IMDB
    hh: Sizes = HH
    shards: int = 10

    def sizes(self, task: Task) -> Sizes:
        return self.imdb if task == "imdb" else self.hh


def _learned(sharing: str, target: float | None = None) -> dict[str, Any]:
    """This project's default, at the learning rate of the quickstart, which has as many steps."""
    held = {} if target is None else {"target_sparsity": target}
    rate = MASK_LEARNING_RATE
    return {"kind": "learned", "sharing": sharing, "learning_rate": rate, **held}


def _released(sharing: str, learning_rate: float) -> dict[str, Any]:
    """The paper's, as in the packaged recipes: its weights, at the policy's learning rate."""
    return {
        "kind": "learned", "sharing": sharing, "weights": "released",
        "learning_rate": learning_rate, "adam_eps": 1e-8,
    }  # fmt: skip


_NONE = {"kind": "none"}
# SparsePO's loss with any other weights in the place of the learned ones.
_OTHER_WEIGHTS = {"name": "weighted", "alpha": 1.0}
_SPARSEPO = {"name": "sparsepo"}


def _sparsepo(sharing: str) -> tuple[Setting, ...]:
    name = f"sparsepo-{sharing}"
    targets = ((0.5, (0.1, 0.5, 2.0)), (0.75, (0.15, 0.7, 3.0)), (0.9, (0.2, 1.0, 4.0)))
    return (
        Setting(name, "dense", _SPARSEPO, _learned(sharing), (0.1, 0.5, 2.0)),
        *(
            Setting(f"{name}-{target:g}", "sparse", _SPARSEPO, _learned(sharing, target), betas)
            for target, betas in targets
        ),
    )


SETTINGS = (
    Setting("dpo", "dense", {"name": "dpo"}, _NONE, (0.06, 0.3, 1.5)),
    Setting("tdpo1", "dense", {"name": "tdpo1"}, _NONE, (0.1, 0.5, 2.0)),
    Setting("tdpo2", "dense", {"name": "tdpo2"}, _NONE, (0.005, 0.05, 0.5)),
    Setting("mapo", "dense", {"name": "mapo"}, {"kind": "activation"}, (0.3, 1.2, 5.0)),
    Setting(
        "mapo-0.3", "sparse", {"name": "mapo"},
        {"kind": "activation", "keep_fraction": 0.3}, (0.3, 1.2, 5.0),
    ),
    *_sparsepo("common"),
    *_sparsepo("independent"),
    Setting(
        "random-0.75", "baseline", _OTHER_WEIGHTS,
        {"kind": "random", "keep_fraction": 0.25}, (0.15, 0.7, 3.0),
    ),
    Setting(
        "entropy-0.2", "sparse", _OTHER_WEIGHTS,
        {"kind": "entropy", "fraction": 0.2}, (0.15, 0.7, 3.0),
    ),
    Setting(
        "partition", "baseline", _OTHER_WEIGHTS,
        {"kind": "partition", "parts": IMDB.epochs}, (0.1, 0.5, 2.0),
    ),
    Setting(
        "adversarial", "baseline", _OTHER_WEIGHTS,
        {"kind": "adversarial", "k": 0.5}, (0.1, 0.5, 2.0),
    ),
    *(
        Setting(
            f"released-{sharing}", "dense", _SPARSEPO,
            _released(sharing, IMDB.learning_rate), (0.01, 0.1, 0.8),
        )
        for sharing in ("common", "independent")
    ),
)  # fmt: skip
BY_NAME = {setting.name: setting for setting in SETTINGS}

# Of HH: three betas each.
HH_BETAS = {
    "dpo": (0.05, 0.2, 0.8),
    "mapo": (0.1, 0.4, 1.6),
    "sparsepo-common": (0.05, 0.2, 0.8),
    "sparsepo-common-0.75": (0.05, 0.2, 0.8),
}
