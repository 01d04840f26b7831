"""prepare as the commands see it: its inputs, record and lines, without what tokenises."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.recipe import (
    Located,
    Recipe,
    Run,
    RunPaths,
    Say,
    Stage,
    StageRecord,
    View,
    stage_settings,
)
from pipelines.storage import RunStore

if TYPE_CHECKING:
    from pipelines.models import Control


@dataclass(frozen=True)
class PrepareInputs:
    """What prepare reads.

    Attributes:
        sources: the fingerprint of every source by the group that names it. known_tokens: ids
            below this have embeddings in the starting model; None if all have. chat_template: the
            text of the file that data.chat_template names. control: stands in front of prompts.
    """

    tokenizer: Located
    sources: dict[str, list[Any]]
    known_tokens: int | None
    chat_template: str | None = None
    control: "Control | None" = None


def _shown(run: Run, count: int, is_terminal: bool) -> Iterable[str]:
    from pipelines.pairs.show import shown

    return shown(run, count, is_terminal)


class Prepare(Stage[PrepareInputs]):
    name, title = "prepare", "data"
    help = "Tokenise, split and count the pairs."
    views = (
        View(
            "show",
            "Print N prepared pairs as training reads them, and what was dropped and why.",
            _shown,
        ),
    )

    def folder(self, paths: RunPaths) -> RunStore:
        return paths.pairs

    def resolve(self, recipe: Recipe) -> PrepareInputs:
        """UserError if a source or the tokenizer does not exist."""
        from pipelines.models import (
            control_of,
            num_known_tokens,
            resolve_model,
            template_file_text,
            tokenizer_fingerprint,
        )
        from pipelines.pairs.sources import source_fingerprint

        name = recipe.model.tokenizer or recipe.model.name_or_path
        directory = resolve_model(name, tokenizer_only=True)
        return PrepareInputs(
            Located(str(directory), tokenizer_fingerprint(directory)),
            {
                group: [source_fingerprint(source) for source in sources]
                for group, sources in recipe.data.groups().items()
            },
            num_known_tokens(recipe, directory),
            template_file_text(recipe.data),
            control_of(recipe),
        )

    def settings(self, recipe: Recipe, inputs: PrepareInputs) -> dict[str, Any]:
        # Where a source lies changes nothing: its content is among the inputs, and so is what a
        # split left out selects.
        found = {
            key: value
            for key, value in stage_settings(recipe, self.name).items()
            if not key.endswith(".path")
            and not (key == "data.chat_template" and inputs.chat_template)
        }
        return found | {
            key: "train" for key, value in found.items() if key.endswith(".split") and value is None
        }

    def fingerprints(
        self, recipe: Recipe, inputs: PrepareInputs, earlier: Mapping[str, StageRecord]
    ) -> dict[str, Any]:
        # Rows with other tokens are rejected: pairs for a model that knows all are another's then.
        known = {} if inputs.known_tokens is None else {"known_tokens": inputs.known_tokens}
        return known | {
            **inputs.sources,
            "tokenizer": inputs.tokenizer.fingerprint,
            "needs_rejected": recipe.objective.declared.uses_rejected,
            **({"chat_template": text} if (text := inputs.chat_template) else {}),
            **({"labelled_rows": True} if recipe.reads_labels() else {}),
            **({"control": control.fingerprint()} if (control := inputs.control) else {}),
        }

    def check(self, run: Run) -> None:
        from pipelines.models import check_readers, quick_imports

        with quick_imports():
            from pipelines.pairs.prepare import check_sources

        inputs = run.inputs(self)
        check_readers(run.recipe)
        check_sources(run.recipe, inputs.known_tokens, inputs.control)

    def run(self, run: Run, say: Say, quiet: bool) -> dict[str, Any]:
        from pipelines.pairs.prepare import run_prepare

        inputs = run.inputs(self)
        return run_prepare(
            run.recipe,
            run.record(self),
            inputs.tokenizer.path,
            inputs.known_tokens,
            quiet,
            inputs.control,
        )

    def summary(self, counts: dict[str, Any]) -> str:
        pairs = counts["pairs"]
        dropped = sum(counts["rejected"].values())
        reasons = "; ".join(f"{reason}: {n}" for reason, n in counts["rejected"].items())
        return (
            f"{pairs['train']} train, {pairs['validation']} validation, {pairs['test']} test pairs"
            + (f"; {dropped} rows dropped ({reasons})" if dropped else "")
            + "".join(f"\n{shortened(line)}" for line in counts.get("layouts", ()))
            + "".join(f"\nwarning: {shortened(line)}" for line in counts.get("left_out", ()))
        )

    def detail(self, counts: dict[str, Any]) -> str:
        return ", ".join(f"{n} {split}" for split, n in counts["pairs"].items())

    def forecast(self, run: Run, known: Mapping[str, Any], tflops: float) -> dict[str, Any]:
        from pipelines.pairs.forecast import forecast_pairs

        inputs = run.inputs(self)
        return forecast_pairs(
            run, run.record(self), inputs.tokenizer.path, inputs.known_tokens, inputs.control
        )

    def planned(self, forecast: Mapping[str, Any]) -> str:
        about = "" if forecast["exact"] else "about "
        kept = ", ".join(f"{n:,} {split}" for split, n in forecast["pairs"].items() if n)
        return f"{about}{kept} pairs"


_SAID = 500
PREPARE = Prepare()


def shortened(line: str) -> str:
    """A line about files as it is said; the manifest has all of it."""
    return line if len(line) <= _SAID else f"{line[:_SAID]}... (all in the manifest)"


def none_kept(is_expected: bool) -> str:
    """What to say of a split without a pair, found or (is_expected) by the forecast."""
    if is_expected:
        return "prepare will keep no such pair, by its estimate"
    return "prepare kept no such pair"
