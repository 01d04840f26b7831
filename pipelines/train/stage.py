"""train as the commands see it: its inputs, record and lines, without what trains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.errors import UserError
from pipelines.pairs import PREPARE, none_kept
from pipelines.recipe import (
    MEMORY,
    Located,
    Recipe,
    Run,
    RunPaths,
    Say,
    Stage,
    StageRecord,
    stage_settings,
)
from pipelines.reference import REFERENCE, run_facts
from pipelines.storage import RunStore, user_key
from pipelines.train.steps import completed_steps
from pipelines.train.tracker_checks import check_trackers
from sparsepo.features import FEATURES

if TYPE_CHECKING:
    from pipelines.cluster import Resources
    from pipelines.models import Control
    from pipelines.train.facts import TrainingFacts

_SHOWN = (("loss", "loss"), ("rewards/accuracies", "accuracy"))


@dataclass(frozen=True)
class TrainInputs:
    """The model that is trained, and how the features of other models are made.

    Attributes:
        vocabulary: rows of the policy's head over which its distributions are, None for all.
        control: what stands in front of the prompts.
    """

    start: Located
    origins: dict[str, str]
    vocabulary: int | None
    control: "Control | None" = None


class Train(Stage[TrainInputs]):
    name = title = "train"
    help = "Fine-tune; resumes at the last checkpoint."

    def folder(self, paths: RunPaths) -> RunStore:
        return paths.train

    def applies(self, recipe: Recipe) -> bool:
        return recipe.evaluate.model is None

    def is_awaited(self, paths: RunPaths) -> bool:
        return paths.trains

    def check_recipe(self, recipe: Recipe) -> None:
        if not recipe.data.sources:
            raise UserError("data.sources = []: there are no pairs to train on")
        control = recipe.control()
        if control is not None and len(control.stages) > 1:
            raise UserError(
                "sft.control.stages = [soft, model]: `sparsepo sft` trains one after the other, "
                "other commands one alone"
            )
        if recipe.trains_control() and recipe.train.lora is not None:
            raise UserError(
                f"train.lora.rank = {recipe.train.lora.rank} with sft.control.stages = [soft]: "
                "the model is frozen; leave it out"
            )

    def needs(self, recipe: Recipe) -> tuple[Stage[Any], ...]:
        return (PREPARE, REFERENCE) if recipe.required_features() else (PREPARE,)

    def resolve(self, recipe: Recipe) -> TrainInputs:
        """UserError if the trained model could not be published."""
        from pipelines.models import control_of, weights_fingerprint
        from pipelines.reference import feature_origins
        from pipelines.train.start import starting_model

        directory = starting_model(recipe)
        return TrainInputs(
            Located(str(directory), weights_fingerprint(directory)),
            feature_origins(recipe),
            _vocabulary(recipe),
            control_of(recipe),
        )

    def settings(self, recipe: Recipe, inputs: TrainInputs) -> dict[str, Any]:
        # The activation mask is made by the reference stage, but which one was trained with is this
        # stage's business.
        mask = {f"mask.{key}": value for key, value in recipe.mask.model_dump(mode="json").items()}
        section = recipe.control()
        control = {} if section is None else {"sft.control.stages": list(section.stages)}
        return {**stage_settings(recipe, self.name), **mask, **control}

    def fingerprints(
        self, recipe: Recipe, inputs: TrainInputs, earlier: Mapping[str, StageRecord]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {"weights": inputs.start.fingerprint}
        if inputs.vocabulary is not None:
            found["vocabulary"] = inputs.vocabulary
        if REFERENCE.name not in earlier:
            return found | {"pairs": earlier[PREPARE.name].fingerprint()}
        return found | {"reference": earlier[REFERENCE.name].fingerprint(), **inputs.origins}

    def check(self, run: Run) -> None:
        from pipelines.models import check_readers
        from pipelines.reference import check_hooks

        run.inputs(self)
        check_readers(run.recipe)
        check_hooks(run.recipe)
        if run.recipe.train.lora is not None or run.inputs(self).control is not None:
            from pipelines.train.policy import count_adapter_parameters

            count_adapter_parameters(run.recipe)  # or says why there can be none
        check_trackers(run.recipe)

    def check_place(self, run: Run, resources: "Resources") -> None:
        resources.training(run.recipe.train)

    def check_pairs(
        self, recipe: Recipe, kept: Mapping[str, int], is_expected: bool = False
    ) -> None:
        every = recipe.train.validate_every
        if every is not None:
            require_validation(f"train.validate_every = {every}", kept, is_expected)

    def run(self, run: Run, say: Say, quiet: bool, callbacks: Sequence[Any] = ()) -> dict[str, Any]:
        """Args: callbacks: of Ray Train's controller."""
        from pipelines.train.fit import run_train

        return run_train(run, run.record(self), training_facts(run), quiet, callbacks)

    def summary(self, counts: dict[str, Any]) -> str:
        final = counts["final"]
        shown = [f"{label} {final[key]:.4g}" for key, label in _SHOWN if key in final]
        warning = "".join(f"\nwarning: {message}" for message in counts["warnings"])
        return f"{counts['steps']} steps, {', '.join(shown)}{warning}"

    def detail(self, counts: dict[str, Any]) -> str:
        return f"{counts['steps']} steps"

    def progress(self, paths: RunPaths) -> str:
        from pipelines.train.under_way import steps_text

        store = self.folder(paths)
        steps = completed_steps(store)
        memory = ""
        if store.exists(MEMORY):
            from pipelines.train.worker import read_memory

            found = read_memory(store)
            memory = (
                f"; out of memory at step {found['step']}: micro-batches of "
                f"{found['micro_batch_tokens']} tokens since, {found['was']} before"
            )
        kept = f"last checkpoint: step {steps[-1]}" if steps else "no checkpoint yet"
        return "; ".join(text for text in (steps_text(paths), kept) if text) + memory

    def is_resuming(self, paths: RunPaths, since: float) -> bool:
        from pipelines.train.under_way import has_stepped

        store = self.folder(paths)
        return bool(completed_steps(store)) and not has_stepped(store, since)

    def forecast(self, run: Run, known: Mapping[str, Any], tflops: float) -> dict[str, Any]:
        from pipelines.train.forecast import forecast_training

        return forecast_training(run, known[PREPARE.title], tflops)

    def planned(self, forecast: Mapping[str, Any]) -> str:
        workers = forecast["workers"]
        return (
            f"{forecast['steps']:,} steps of {forecast['pairs_per_step']} pairs, {workers} "
            f"worker{'s' * (workers > 1)}"
        )


TRAIN = Train()


def _vocabulary(recipe: Recipe) -> int | None:
    """Rows of the policy's head over which its distributions are, None for all.

    A reference which it is compared with has no more, and soft tokens of a control are left out.
    """
    from pipelines.models import control_of, padded_vocabularies

    control = control_of(recipe)
    if control is not None:
        return control.first
    wanted = recipe.required_features()
    if not any(FEATURES[name].origin == "reference" for name in wanted):
        return None
    sizes = padded_vocabularies(recipe)
    return None if sizes is None or sizes.common == sizes.policy else sizes.common


def training_facts(run: Run) -> "TrainingFacts":
    """The facts of a run whose pairs and reference are there.

    Raises: UserError if the reference's store is another recipe's.
    """
    from pipelines.models import ChatSettings, control_of
    from pipelines.train.facts import TrainingFacts

    recipe = run.recipe
    control = control_of(recipe)
    trains_control = recipe.trains_control()
    return TrainingFacts(
        run.paths.train.root,
        run.paths.pairs.root,
        run_facts(run),
        recipe.model,
        recipe.objective,
        recipe.mask,
        recipe.train,
        run.inputs(TRAIN).start.fingerprint
        if recipe.train.lora is not None or trains_control
        else None,
        _vocabulary(recipe),
        recipe.ray.gpus_per_run,
        ChatSettings.of(recipe.data),
        recipe.run_dir,
        recipe.model_dump(mode="json"),
        run.paths.compiled.root,
        user_key(),
        control,
        trains_control,
    )


def require_validation(what: str, kept: Mapping[str, int], is_expected: bool = False) -> None:
    """UserError if prepare kept no validation pair, which `what` needs."""
    if not kept["validation"]:
        raise UserError(
            f"{what}: {none_kept(is_expected)} in the split validation; set "
            "data.validation_fraction larger, or "
            "data.validation; another run_dir is needed where prepare is done"
        )
