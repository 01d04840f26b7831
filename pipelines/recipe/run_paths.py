"""Where everything of a run lies, and what its files are called."""

from dataclasses import dataclass, replace
from typing import Any

from pipelines.recipe.files import read_config
from pipelines.recipe.schema import Recipe
from pipelines.storage import RunStore

# Of a run, and of every stage's folder.
CONFIG, STARTED, MANIFEST, FAILURE = "config.yaml", "started.json", "manifest.json", "failure-"
# Where a run's time went, and what the workers of a stage say of it.
TIMELINE, SPANS = "timeline", "spans.json"
COMPILED = "compiled"
# Of prepare.
LENGTHS, REJECTED_ROWS = "lengths", "rejected_rows.jsonl"
# Of reference.
MARKERS, FAILED_ROWS = "shards", "failed_rows.jsonl"
HEAD_FILE, HEAD_SETTINGS = "lm_head.safetensors", "lm_head.json"
# Of sample.
CANDIDATES = "candidates.jsonl"
# Of discriminator: its run's folder in a run's; weights, facts and figures of a head; where it is.
DISCRIMINATOR_RUN, FIGURES, HEAD_POSITION = "discriminator", "figures.json", "checkpoint.json"
HEAD_WEIGHTS, HEAD_FACTS = "discriminator.safetensors", "discriminator.json"
# Of train, and of a checkpoint.
MODEL, MASKS, CHECKPOINTS, METRICS, BOARD = (
    "model",
    "masks",
    "checkpoints",
    "metrics",
    "tensorboard",
)
MEMORY, ATTEMPT, STATE = "memory.json", "attempt.json", "state.json"
PUBLISHED = "published.json"  # checksums of what the workers have published, for the driver
# Of evaluate, execute and schedule.
SAMPLES, TOKENS = "samples/samples.jsonl", "samples/tokens.jsonl"
CONTROLLED = "samples/controlled.jsonl"  # behind the second control and those after it
CODE_SAMPLES = "samples/code.jsonl"
NAMED = "named"
TOKEN_WEIGHTS, EXECUTED, VERDICTS = "token_weights", "code", "verdicts.jsonl"
HISTORY, GATES = "history", "gates.json"
LAST_TICK, EVENTS = "schedule/state.json", "schedule/events"
# Of export: its folder, what was made and checked, and the cards.
EXPORT, EXPORTED, CARD = "export", "export.json", "README.md"
# Of report.
PAGE, RESULTS = "index.html", "results.json"
# Of a merge: what was asked, for people and for `status`; its points and maps, the figure.
MERGE, MERGE_RECORD, POINTS, POINT_SAMPLES = "merge.yaml", "merge.json", "points", "samples.jsonl"
MAPS, MAP_FILE, FRONTIER = "maps", "map.safetensors", "frontier"
# Of a sweep and its trials.
TRIALS, TRIAL, MISSING = "trials", "trial.json", "missing_metric.json"
RUNS, FRONT, BEST, DEFINITION = "runs", "pareto.json", "best.yaml", "sweep.json"


@dataclass(frozen=True)
class RunPaths:
    """The folders of a run; pairs and reference may be shared with other runs and lie elsewhere.

    Attributes:
        evaluation_name: of the evaluation that is meant, None for the one without a name.
        trains: whether the run is to train a model.
    """

    root: str
    pairs_root: str
    reference_root: str
    evaluation_name: str | None = None
    trains: bool = True

    @classmethod
    def of(cls, recipe: Recipe) -> "RunPaths":
        found = cls._at(recipe.run_dir, recipe.paths.pairs, recipe.paths.reference)
        settings = recipe.evaluate
        return replace(found, evaluation_name=settings.name, trains=settings.model is None)

    @classmethod
    def at(cls, run_dir: str) -> "RunPaths":
        """The folders of a run that is there, by its own configuration if it has one yet."""
        store = RunStore(run_dir)
        config: dict[str, Any] = {"paths": {}}
        if store.exists(CONFIG):
            config = read_config(store, CONFIG)[0]
        found, settings = config["paths"], config.get("evaluate")
        trains = not isinstance(settings, dict) or settings.get("model") is None
        places = cls._at(run_dir, found.get("pairs"), found.get("reference"))
        return replace(places, trains=trains)

    @classmethod
    def _at(cls, run_dir: str, pairs: str | None, reference: str | None) -> "RunPaths":
        return cls(run_dir, pairs or f"{run_dir}/pairs", reference or f"{run_dir}/reference")

    @property
    def run(self) -> RunStore:
        return RunStore(self.root)

    @property
    def pairs(self) -> RunStore:
        return RunStore(self.pairs_root)

    @property
    def reference(self) -> RunStore:
        return RunStore(self.reference_root)

    @property
    def train(self) -> RunStore:
        return self.run.at("train")

    @property
    def evaluation(self) -> RunStore:
        """Of the evaluation that is meant."""
        own = self.run.at("evaluation")
        return own if self.evaluation_name is None else own.at(f"{NAMED}/{self.evaluation_name}")

    def named_evaluations(self) -> "dict[str, RunPaths]":
        """Name -> the same folders, with that evaluation meant."""
        names = self.run.at("evaluation").names(NAMED)
        return {name: replace(self, evaluation_name=name) for name in names}

    @property
    def discriminator(self) -> RunStore:
        """Of a trained discriminator, in a run of its own."""
        return self.run.at("head")

    @property
    def sample(self) -> RunStore:
        return self.run.at("sample")

    @property
    def report(self) -> RunStore:
        return self.run.at("report")

    @property
    def compiled(self) -> RunStore:
        """Of compiled code, beside the pairs: runs that share them share it."""
        parent = self.pairs_root.rstrip("/").rpartition("/")[0]
        return RunStore(f"{parent}/{COMPILED}" if parent else COMPILED)

    @property
    def ray(self) -> RunStore:
        """Of Ray's own files."""
        return self.run.at(".ray")

    @property
    def model(self) -> str:
        """The directory of the trained model."""
        return f"{self.train.root}/{MODEL}"


def checkpoint_folder(step: int) -> str:
    """Where an evaluation keeps what it found of a checkpoint, below its own folder."""
    return f"{CHECKPOINTS}/step-{step:08d}"


def failure_files(store: RunStore) -> list[str]:
    """What the workers of a stage have left, one file for each that could not go on."""
    return [name for name in store.names() if name.startswith(FAILURE)]
