"""evaluate, execute and sample as the commands see them: inputs, records and lines."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import UserError
from pipelines.evaluate.held_out import check_held_out, require_held_out
from pipelines.evaluate.kl_name import check_kl_name
from pipelines.pairs import PREPARE
from pipelines.recipe import (
    CANDIDATES,
    EXECUTED,
    STARTED,
    Located,
    Recipe,
    Run,
    RunPaths,
    Say,
    Stage,
    StageRecord,
    checkpoint_folder,
    stage_settings,
)
from pipelines.storage import RunStore, file_hash, nearest_path
from pipelines.train import TRAIN

if TYPE_CHECKING:
    from pipelines.models import Control, ResponseEnds


@dataclass(frozen=True)
class EvaluateInputs:
    """Where responses end, if any are drawn, and the content of files that the recipe names.

    Attributes:
        files: recipe key below evaluate -> fingerprint. models: of a model that is evaluated in
            place of the trained one, of the starting model and the reference: name -> fingerprint;
            empty otherwise. control: of the evaluated model, where evaluate.control asks for it.
    """

    ends: "ResponseEnds | None"
    files: dict[str, str]
    models: dict[str, str]
    control: "Control | None" = None


class Evaluate(Stage[EvaluateInputs]):
    name = title = "evaluate"
    is_optional = True
    help = "The recipe's benchmarks of the trained model beside its starting model."

    def folder(self, paths: RunPaths) -> RunStore:
        return paths.evaluation

    def needs(self, recipe: Recipe) -> tuple[Stage[Any], ...]:
        return (PREPARE, TRAIN) if recipe.evaluate.model is None else (PREPARE,)

    def applies(self, recipe: Recipe) -> bool:
        return recipe.objective.declared.uses_rejected

    def check_recipe(self, recipe: Recipe) -> None:
        check_held_out(recipe)
        settings = recipe.evaluate
        gates = [gate.metric for gate in recipe.schedule.gates]
        check_kl_name(recipe, "schedule.gates", gates)
        if settings.model is not None and "masks" in settings.benchmarks:
            others = ", ".join(name for name in settings.benchmarks if name != "masks")
            raise UserError(
                "evaluate.benchmarks names masks: evaluate.model has none; set "
                f"evaluate.benchmarks=[{others}]"
            )

    def resolve(self, recipe: Recipe) -> EvaluateInputs:
        """UserError if a file that the recipe names does not exist."""
        settings, files = recipe.evaluate, {}
        if settings.leaderboard is not None and settings.leaderboard.include_path is not None:
            from pipelines.evaluate.leaderboard import task_files_hash

            files["leaderboard.include_path"] = task_files_hash(settings.leaderboard.include_path)
        for key, name in _files(recipe).items():
            if not Path(name).is_file():
                if key == "code.tasks" and "code" not in settings.benchmarks:
                    continue  # nobody asks for them
                raise UserError(f"evaluate.{key} = {name!r}: no such file{nearest_path(name)}")
            files[key] = file_hash(Path(name))
        draws = {*settings.sampled_benchmarks(), "code", "leaderboard"} & set(settings.benchmarks)
        ends = _ends_of(recipe) if draws else None
        from pipelines.models import evaluated_control

        return EvaluateInputs(ends, files, _models_of(recipe), evaluated_control(recipe))

    def settings(self, recipe: Recipe, inputs: EvaluateInputs) -> dict[str, Any]:
        found = {
            key: value
            for key, value in stage_settings(recipe, self.name).items()
            if key.removeprefix("evaluate.") not in ("key_words", "code.tasks")
        }
        if not inputs.models:
            return found
        from pipelines.evaluate.other_model import beta_of

        precision = recipe.train.precision  # of the training, where there is one
        own = {} if precision == "auto" else {"train.precision": precision}
        return {**found, **own, "objective.beta": beta_of(recipe)}

    def fingerprints(
        self, recipe: Recipe, inputs: EvaluateInputs, earlier: Mapping[str, StageRecord]
    ) -> dict[str, Any]:
        ends = {} if inputs.ends is None else inputs.ends.fingerprint()
        read = {name: found.fingerprint() for name, found in earlier.items()}
        made = read if inputs.models else {"train": read[TRAIN.name]}
        control = {"control": found.fingerprint()} if (found := inputs.control) else {}
        return {**made, **inputs.models, **inputs.files, **ends, **control}

    def record(
        self, recipe: Recipe, inputs: EvaluateInputs, earlier: Mapping[str, StageRecord]
    ) -> StageRecord:
        found = super().record(recipe, inputs, earlier)
        return replace(found, or_else=", or keep both: name this one with evaluate.name")

    def check(self, run: Run) -> None:
        from pipelines.evaluate.checks import check_evaluation

        settings = run.recipe.evaluate
        if settings.model and settings.name is None and run.paths.train.exists(STARTED):
            raise UserError(
                f"evaluate.model = {settings.model}: {run.paths.root} has a training of its own; "
                "name this evaluation with evaluate.name, or choose another run_dir"
            )
        run.inputs(self)
        check_evaluation(run.recipe)

    def check_pairs(
        self, recipe: Recipe, kept: Mapping[str, int], is_expected: bool = False
    ) -> None:
        require_held_out(recipe, kept, is_expected)

    def run(self, run: Run, say: Say, quiet: bool, step: int | None = None) -> dict[str, Any]:
        """Args: step: of a checkpoint; None is the published model."""
        if run.recipe.evaluate.model == run.recipe.model.name_or_path:
            say(
                "evaluate: nothing is compared: the model is its own reference, so gains and KL "
                "are 0; name another one with --reference (model.name_or_path)"
            )
        from pipelines.models import quick_imports

        with quick_imports():
            from pipelines.evaluate.benchmarks import run_evaluate

        return run_evaluate(run, checkpoint_record(run, step), ends_of(run), quiet, step)

    def summary(self, counts: dict[str, Any]) -> str:
        from pipelines.evaluate.summary import summary_of

        warning = "".join(f"\nwarning: {message}" for message in counts.get("warnings", ()))
        return summary_of(counts["results"]) + warning

    def detail(self, counts: dict[str, Any]) -> str:
        return ", ".join(counts["benchmarks"])

    def status(self, paths: RunPaths) -> list[dict[str, Any]]:
        return _status_of_all(self, super().status, paths)

    def forecast(self, run: Run, known: Mapping[str, Any], tflops: float) -> dict[str, Any]:
        from pipelines.evaluate.forecast import forecast_evaluation

        return forecast_evaluation(run, known[PREPARE.title], tflops)

    def planned(self, forecast: Mapping[str, Any]) -> str:
        counts = [
            f"{n:,} {what}"
            for key, what in (
                ("scored_pairs", "pairs"),
                ("sampled_prompts", "prompts"),
                ("sampled_programs", "programs"),
            )
            if (n := forecast[key])
        ]
        on = f" on {', '.join(counts)}" if counts else ""
        return f"{', '.join(forecast['benchmarks'])}{on}" if forecast["benchmarks"] else "nothing"


def _status_of_all(
    stage: Stage[Any], rows_of: Callable[[RunPaths], list[dict[str, Any]]], paths: RunPaths
) -> list[dict[str, Any]]:
    """The rows of a stage for the evaluation without a name and every one that has one."""
    named = [
        {**row, "stage": f"{stage.name} {name}"}
        for name, places in paths.named_evaluations().items()
        for row in rows_of(places)
        if row["state"] != "not started"
    ]
    return rows_of(paths) + named


EVALUATE = Evaluate()


def ends_of(run: Run) -> "ResponseEnds":
    """Where samples of a run's models end: by its starting model, for all of them."""
    found = run.inputs(EVALUATE).ends
    return _ends_of(run.recipe) if found is None else found


def _models_of(recipe: Recipe) -> dict[str, str]:
    """The fingerprints of the models of an evaluation without a training; else nothing."""
    if recipe.evaluate.model is None:
        return {}
    from pipelines.models import resolve_model, weights_fingerprint

    start = recipe.model.name_or_path
    named = {
        "model": recipe.evaluate.model,
        "start": start,
        "reference": recipe.model.reference or start,
    }
    return {key: weights_fingerprint(resolve_model(name)) for key, name in named.items()}


def _ends_of(recipe: Recipe) -> "ResponseEnds":
    from pipelines.models import ChatSettings, response_ends

    model = recipe.model
    return response_ends(model.name_or_path, model.tokenizer, ChatSettings.of(recipe.data))


def checkpoint_record(run: Run, step: int | None) -> StageRecord:
    """The record of the evaluation of a checkpoint; of the published model for None."""
    record = run.record(EVALUATE)
    if step is None:
        return record
    store = record.store.at(checkpoint_folder(step))
    return StageRecord(record.stage, store, record.settings, {**record.inputs, "step": step})


class Execute(Stage[str]):
    name = "execute"
    title = "execute"
    help = "Run the sampled programs, each in a sandbox (Linux)."
    in_run = False
    flag = "allow-code-execution"
    follows = EVALUATE
    flag_help = "Run the programs that the code benchmark samples, each in a sandbox (Linux)."
    flag_hint = (
        "the sampled programs were not run; to run them in sandboxes, add "
        "--allow-code-execution to the same command"
    )

    def folder(self, paths: RunPaths) -> RunStore:
        return paths.evaluation.at(EXECUTED)

    def needs(self, recipe: Recipe) -> tuple[Stage[Any], ...]:
        return (EVALUATE,)

    def applies(self, recipe: Recipe) -> bool:
        return "code" in recipe.evaluate.benchmarks

    def refuse_absent(self, recipe: Recipe) -> str:
        return (
            "--allow-code-execution: evaluate.benchmarks does not name code, so there are no "
            "programs to run"
        )

    def resolve(self, recipe: Recipe) -> str:
        """The fingerprint of the programming tasks."""
        assert recipe.evaluate.code is not None
        return file_hash(Path(recipe.evaluate.code.tasks))

    def settings(self, recipe: Recipe, inputs: str) -> dict[str, Any]:
        found = stage_settings(recipe, EVALUATE.name)
        return {
            key: value
            for key, value in found.items()
            if key.startswith(("evaluate.code.", "evaluate.bootstrap"))
            and key != "evaluate.code.tasks"
        }

    def fingerprints(
        self, recipe: Recipe, inputs: str, earlier: Mapping[str, StageRecord]
    ) -> dict[str, Any]:
        return {"evaluation": earlier[EVALUATE.name].fingerprint(), "tasks": inputs}

    def check(self, run: Run) -> None:
        from pipelines.evaluate.sandbox import require_isolation

        require_isolation()

    def run(self, run: Run, say: Say, quiet: bool) -> dict[str, Any]:
        from pipelines.evaluate.execute import run_execute

        return run_execute(run, run.record(self), quiet)

    def summary(self, counts: dict[str, Any]) -> str:
        return EVALUATE.summary(counts)

    def detail(self, counts: dict[str, Any]) -> str:
        return EVALUATE.detail(counts)

    def status(self, paths: RunPaths) -> list[dict[str, Any]]:
        return _status_of_all(self, super().status, paths)


EXECUTE = Execute()


@dataclass(frozen=True)
class SampleInputs:
    """The sampling model, its tokenizer, the sources of prompts, and where responses end.

    Attributes:
        chat_template: the text of the file that data.chat_template names.
    """

    model: Located
    tokenizer: str
    sources: list[Any]
    ends: "ResponseEnds"
    chat_template: str | None


class Sample(Stage[SampleInputs]):
    name = title = "sample"
    in_run = False
    help = "Sample and score candidates for every prompt, in the scored-candidates form."

    def folder(self, paths: RunPaths) -> RunStore:
        return paths.sample

    def check_recipe(self, recipe: Recipe) -> None:
        if not recipe.data.sources:
            raise UserError("data.sources = []: there are no prompts to sample from")
        engine = recipe.sample.generation.engine
        if engine != "transformers":
            raise UserError(
                f"sample.generation.engine = {engine!r}: candidates are drawn with transformers"
            )

    def check(self, run: Run) -> None:
        from pipelines.evaluate.checks import longest_prompt
        from pipelines.evaluate.rewards import check_reward
        from pipelines.models import (
            check_generation,
            check_tokenizer,
            load_tokenizer,
            resolve_model,
        )
        from pipelines.pairs import check_prompts

        recipe = run.recipe
        check_reward(recipe.sample.reward, "sample.reward")
        name = recipe.model.tokenizer or recipe.model.name_or_path
        tokenizer = resolve_model(name, tokenizer_only=True)
        check_tokenizer("model.name_or_path", resolve_model(recipe.model.name_or_path), tokenizer)
        check_prompts(recipe.data, load_tokenizer(str(tokenizer)))
        new_tokens = recipe.sample.generation.max_new_tokens
        check_generation(recipe, "sample.generation", longest_prompt(recipe), new_tokens)

    def resolve(self, recipe: Recipe) -> SampleInputs:
        from pipelines.models import (
            ChatSettings,
            resolve_model,
            response_ends,
            template_file_text,
            tokenizer_fingerprint,
            weights_fingerprint,
        )
        from pipelines.pairs import source_fingerprint

        model = recipe.model
        directory = resolve_model(model.name_or_path)
        tokenizer = resolve_model(model.tokenizer or model.name_or_path, tokenizer_only=True)
        return SampleInputs(
            Located(str(directory), weights_fingerprint(directory)),
            tokenizer_fingerprint(tokenizer),
            [source_fingerprint(source) for source in recipe.data.sources],
            response_ends(model.name_or_path, model.tokenizer, ChatSettings.of(recipe.data)),
            template_file_text(recipe.data),
        )

    def settings(self, recipe: Recipe, inputs: SampleInputs) -> dict[str, Any]:
        return {
            **stage_settings(recipe, self.name),
            "generation": recipe.sample.generation.model_dump(mode="json"),
            "reward": recipe.sample.reward.model_dump(mode="json"),
            "prompts": [
                source.model_dump(mode="json", include={"form", "columns"})
                for source in recipe.data.sources
            ],
            "max_prompt_tokens": recipe.data.max_prompt_tokens,
            "prompt_overflow": recipe.data.prompt_overflow,
            "chat_template": None if inputs.chat_template else recipe.data.chat_template,
            "chat_template_kwargs": recipe.data.chat_template_kwargs,
        }

    def fingerprints(
        self, recipe: Recipe, inputs: SampleInputs, earlier: Mapping[str, StageRecord]
    ) -> dict[str, Any]:
        return {
            "weights": inputs.model.fingerprint,
            "tokenizer": inputs.tokenizer,
            "sources": inputs.sources,
            **({"chat_template": text} if (text := inputs.chat_template) else {}),
            **inputs.ends.fingerprint(),
        }

    def run(self, run: Run, say: Say, quiet: bool) -> dict[str, Any]:
        from pipelines.evaluate.sample import run_sample
        from pipelines.pairs import left_out

        for line in left_out(run.recipe.data.sources):
            say(f"warning: {line}")
        return run_sample(run.recipe, run.record(self), run.inputs(self).ends, quiet)

    def summary(self, counts: dict[str, Any]) -> str:
        reasons = "; ".join(f"{reason}: {n}" for reason, n in counts["rejected"].items())
        return (
            f"{counts['candidates']} candidates for {counts['prompts']} prompts, scored"
            + (f"; {sum(counts['rejected'].values())} rows dropped ({reasons})" if reasons else "")
            + "".join(f"\n{line}" for line in counts["layouts"])
            + "".join(f"\nwarning: {line}" for line in counts.get("warnings", ()))
        )

    def detail(self, counts: dict[str, Any]) -> str:
        return f"{counts['candidates']} candidates"

    def result(self, paths: RunPaths) -> str:
        return f"{self.folder(paths).root}/{CANDIDATES}"


SAMPLE = Sample()


def _files(recipe: Recipe) -> dict[str, str]:
    """The files whose content decides, by their keys below evaluate."""
    settings = recipe.evaluate
    named = {
        "key_words": settings.key_words,
        "code.tasks": settings.code.tasks if settings.code else None,
    }
    return {key: name for key, name in named.items() if name is not None}
