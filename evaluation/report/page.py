"""Puts what runs found on one page: the sections that there is something for, in their order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape

from evaluation.report import drawings, formats
from evaluation.report.about import about
from evaluation.report.charts import chart_html, embedded_json, library_html, run_html, run_styles
from evaluation.report.controls import answers_behind, behind_controls
from evaluation.report.downloads import numbers_csv
from evaluation.report.findings import all_numbers, findings, warnings
from evaluation.report.runs import compared, over_seeds
from evaluation.report.samples import samples_by_prompt
from evaluation.report.terms import TERMS, explained, term_id
from evaluation.report.tokens import token_view
from evaluation.report.verdicts import compare
from evaluation.report.view import RunView, all_results


@dataclass(frozen=True)
class Section:
    """A part of the page. name: of its anchor and template; is_open: before a reader opens it."""

    name: str
    title: str
    is_open: bool = True


def render_report(runs: Sequence[RunView], title: str) -> str:
    """One HTML page, scripts and styles inside. ValueError without a run."""
    if not runs:
        raise ValueError("a report needs at least one run")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(["j2"])
    )
    environment.filters |= {
        "num": formats.number,
        "interval": formats.interval,
        "shown": formats.shown,
        "change": formats.signed_interval,
        "signed": lambda v: f"{v:+.3f}",
        "percent": lambda v: f"{v:.0%}",
        "terms": explained,
        "chart": chart_html,
    }
    context = _context(list(runs))
    page = environment.get_template("template.html.j2").render(
        title=title, sections=_sections(context), **context
    )
    return formats.readable(page)


def _context(runs: list[RunView]) -> dict[str, Any]:
    """What the templates show."""
    views = [*runs, *(other for run in runs for other in run.others.values())]
    styles = run_styles([run.name for run in runs])
    return {
        "runs": runs,
        "about": about(runs),
        "compared": compare(runs),
        "paired": compared(runs) if any(run.seed is not None for run in runs) else [],
        "over_seeds": over_seeds(runs),
        "findings": findings,
        "warn": warnings,
        "numbers": all_numbers,
        "labels": {name: run_html(name, style) for name, style in styles.items()},
        "trained": [r for r in runs if r.counts is not None],
        "others": [one for one in views if one.evaluated],
        "sampled": [r for r in runs if r.results.get("sentiment")],
        "controlled": behind_controls(views),
        "answers": answers_behind(views),
        "of_pairs": [r for r in runs if "num_pairs" in r.results.get("preference", {})],
        "of_labels": [r for r in runs if "num_desirable" in r.results.get("preference", {})],
        "judged": [r for r in runs if r.results.get("dialogue")],
        "summaries": [r for r in runs if r.results.get("summarization")],
        "coded": [r for r in runs if r.results.get("code")],
        "discriminated": [r for r in runs if r.results.get("discriminator")],
        "reliability": drawings.reliability(runs, styles),
        "evaluations": [(r, name, other) for r in runs for name, other in r.others.items()],
        "history": drawings.history(runs, styles),
        "curves": drawings.curves(runs, styles),
        "frontier": drawings.frontier(runs, styles),
        "auc": drawings.key_token_auc(runs, styles),
        "profiles": {r.name: drawings.weight_profile(r, i) for i, r in enumerate(runs)},
        "samples_of": samples_by_prompt,
        "groups": samples_by_prompt(runs),
        "token_views": [(r, token_view(r)) for r in runs],
        "masked": [
            r for r in runs if r.results.get("masks") and r.recipe["mask"]["kind"] != "none"
        ],
        "glossary": [
            (term_id(name), name, text)
            for name, (_, text) in sorted(TERMS.items(), key=lambda one: one[0].lower())
        ],
        "results_json": embedded_json(all_results(runs)),
        "numbers_json": embedded_json(numbers_csv(runs)),
        "library": library_html(),
    }


def _sections(context: dict[str, Any]) -> list[Section]:
    """The sections that there is something for."""
    has: Callable[..., bool] = lambda *names: any(context[name] for name in names)  # noqa: E731
    is_compared = any(run.is_compared for run in context["runs"])
    tokens = any(view for _, view in context["token_views"])
    sections = [
        (has("trained"), Section("run", "What was run")),
        (has("others"), Section("evaluated", "What was evaluated")),
        (has("sampled"), Section("help", "Did it help?" if is_compared else "Rewards of samples")),
        (has("controlled"), Section("controls", "Behind each control")),
        (has("of_pairs"), Section("preferences", "Held-out preferences")),
        (has("of_labels"), Section("labels", "Held-out labels")),
        (has("judged"), Section("replies", "Replies, judged")),
        (has("summaries"), Section("summaries", "Summaries")),
        (has("coded"), Section("programs", "Programs")),
        (has("groups"), Section("samples", "Samples, side by side")),
        (tokens or has("masked"), Section("tokens", "Token by token")),
        (has("discriminated"), Section("discriminator", "The discriminator of tokens")),
        (has("history"), Section("checkpoints", "Evaluated checkpoints")),
        (has("curves"), Section("curves", "Training curves")),
        (has("evaluations"), Section("evaluations", "Other evaluations")),
        (True, Section("recipes", "Recipes and times", is_open=False)),
        (True, Section("words", "What the words mean", is_open=False)),
    ]
    return [section for is_there, section in sections if is_there]
