"""The first lines of the page: what it is, on what data, from which model."""

from evaluation.report.formats import either, listed
from evaluation.report.view import RunView


def about(runs: list[RunView]) -> list[str]:
    """What this page is: on what data, from which model, judged on what."""
    trained = [run for run in runs if run.counts is not None]
    found = []
    if trained:
        methods = list(dict.fromkeys(r.recipe["objective"]["name"] for r in trained))
        starts = list(dict.fromkeys(_short(r.recipe["model"]["name_or_path"]) for r in trained))
        data = list(dict.fromkeys(_sources(r) for r in trained))
        pairs = sorted({r.data_counts.get("pairs", {}).get("train", 0) for r in trained})
        runs_are = "one training run" if len(trained) == 1 else f"{len(trained)} training runs"
        found.append(
            f"This page shows {runs_are} that taught a language model preferences, by "
            f"{listed(methods)}. Each starts from {either(starts)} and learns from "
            f"{' or '.join(f'{count:,}' for count in pairs)} preferences of "
            f"{either([d for d in data if d]) or 'sources that the recipe names'}."
        )
    else:
        found.append("This page shows an evaluation; nothing was trained for it.")
    held_out = _held_out(runs)
    if held_out:
        found.append(
            f"What came of it was measured on {held_out}"
            + (", which no training saw." if trained else ".")
        )
    if any(run.is_toy for run in runs):
        found.append(
            "This is a toy world: made-up film reviews and a very small model. It shows "
            "how the pieces work together. Which method is better on real text "
            "it cannot say."
        )
    return found


def _sources(run: RunView) -> str:
    sources = run.recipe.get("data", {}).get("sources") or []
    return listed([_short(str(s["path"])) for s in sources if s.get("path")])


def _short(path: str) -> str:
    """The end of a long path; the table and the recipe have all of it."""
    parts = path.rstrip("/").split("/")
    return "…/" + "/".join(parts[-3:]) if len(parts) > 4 else path


def _held_out(runs: list[RunView]) -> str:
    counts = {
        "pairs": {r.results.get("preference", {}).get("num_pairs") for r in runs},
        "labelled rows": {r.results.get("preference", {}).get("num_rows") for r in runs},
        "prompts": {
            r.results.get(name, {}).get("num_prompts")
            for r in runs
            for name in ("sentiment", "dialogue", "summarization")
        },
        "programming tasks": {r.results.get("code", {}).get("num_tasks") for r in runs},
    }
    return listed(
        [
            f"{' or '.join(f'{n:,}' for n in sorted(known))} held-out {what}"
            for what, numbers in counts.items()
            if (known := {n for n in numbers if n is not None})
        ]
    )
