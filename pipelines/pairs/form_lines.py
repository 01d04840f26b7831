"""What is said of a source's form: what was taken and why, what is not read, why nothing was."""

from collections.abc import Iterable, Sequence
from typing import Any

from pipelines.pairs.cells import is_sharegpt
from pipelines.pairs.forms import HH_TURN, Form
from pipelines.pairs.row_readers import SourceRow
from pipelines.pairs.sources import SCORE_COLUMNS
from pipelines.recipe import Source

# Beside the columns that some form reads.
_LOOKS_MEANT = (
    *(name for names in SCORE_COLUMNS for name in names),
    *("weight", "weights", "chosen_weights", "rejected_weights", "margin", "history"),
    *("image", "images", "video", "videos", "audio", "audios", "question", "query", "context"),
)
Found = tuple[SourceRow, Form]


def place_of(row: SourceRow) -> str:
    """File and line; the row's number where there are no lines."""
    return row.place if ":" in row.place else f"{row.place}, row {row.number}"


def present(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what is null."""
    return {name: value for name, value in row.items() if value is not None}


def described(source: Source, form: Form, rows: Sequence[SourceRow]) -> str:
    """The form, what its columns hold, what else is read, and what is not."""
    held: dict[str, list[str]] = {}
    for name in dict.fromkeys((*([form.asks] if form.asks else ()), *form.answers)):
        values = [value for row in rows if (value := (row.values or {}).get(name)) is not None]
        if values:
            held.setdefault(_called(name, values, form), []).append(name)
    parts = [f"{', '.join(columns)}: {kind}" for kind, columns in held.items()]
    if form.is_chat and not any("messages" in kind for kind in held):
        parts.append("made turns of a conversation")
    seen = {name for row in rows for name in row.values or {}}
    if form.input in seen:
        parts.append(f"{form.input}: joined to {form.asks}")
    if all(form.scores):
        parts.append(f"{form.scores[0]}, {form.scores[1]}: scores")
    if also := [name for name in form.besides if name in seen - {form.input}]:
        parts.append(f"also read: {', '.join(also)}")
    if unseen := [name for name in _named(source, form) if name not in seen]:
        parts.append(f"not there: {', '.join(unseen)}")
    if unread := _not_read(source, form, rows):
        parts.append(f"not read: {', '.join(unread)}")
    how = "" if source.form == "auto" else ", as data.sources[].form says"
    return f"data source {source.path!r}: {form.name}{how} ({'; '.join(parts)})"


def _named(source: Source, form: Form) -> list[str]:
    """The columns beside the needed ones that the recipe names."""
    names = source.columns
    given = [
        getattr(names, key) for key in ("input", "system", "tools") if key in names.model_fields_set
    ]
    return [name for name in given if name in form.besides]


def _called(name: str, values: Sequence[Any], form: Form) -> str:
    """What a column holds, in words."""
    if form.name == "hh":
        return "transcripts"
    if name == form.answers[-1] and form.name in ("scored", "unpaired"):
        return "scores" if form.name == "scored" else "true or false"
    firsts = [value[0] if isinstance(value, list) and value else value for value in values]
    if any(is_sharegpt(first) for first in firsts):
        return "messages (from, value)"
    kind = "messages" if any(isinstance(first, (dict, list)) for first in firsts) else "text"
    return f"candidates of {kind}" if form.name == "scored" and name in form.answers else kind


def _not_read(source: Source, form: Form, rows: Sequence[SourceRow]) -> list[str]:
    """Columns with a value that some form reads or that look meant, and that this one does not."""
    meant = {name for name in source.columns.model_dump().values() if name} | set(_LOOKS_MEANT)
    held = dict.fromkeys(name for row in rows for name in present(row.values or {}))
    return [name for name in held if name in meant and name not in (*form.needed, *form.besides)]


def lacks(source: Source, form: str, name: str, columns: Iterable[str]) -> str:
    return (
        f"data source {source.path!r} (form {form}) has no column {name!r}: its columns are "
        f"{', '.join(sorted(columns))}"
    )


def two_fit(source: Source, row: SourceRow, forms: Sequence[Form]) -> str:
    """Of a row with the columns of two forms."""
    one = forms[0]
    other = next(form for form in forms if form.has_rejected and form.answers != one.answers)
    return (
        f"data source {source.path!r}, {place_of(row)}: two forms fit, {_roles(one)} and "
        f"{_roles(other)}; "
        + (
            "say which with data.sources[].form"
            if one.name != other.name
            else f"leave {other.answers[0]} out"
        )
    )


def mixes(source: Source, one: Found, other: Found) -> str:
    """Of rows with different forms."""
    (one_row, first), (other_row, second) = one, other
    line = (
        f"data source {source.path!r} mixes forms: {_roles(first)} at {place_of(one_row)}, "
        f"{_roles(second)} at {place_of(other_row)}; give each kind a source of its own"
    )
    if source.form == "auto" and first.name != second.name:
        line += ", or set data.sources[].form to one and the rows of the other are dropped"
    return line


def _roles(form: Form) -> str:
    columns = [form.asks, *form.answers] if form.asks else form.answers
    may_be_either = form.name in ("scored", "unpaired", "chosen_only", "prompts")
    manner = (" of messages" if form.is_chat else " of text") if may_be_either else ""
    return f"{form.name}{manner} ({', '.join(columns)})"


def nothing_fits(source: Source, columns: set[str], rows: Sequence[SourceRow]) -> str:
    """Why no row speaks for a form."""
    names, where = source.columns, f"data source {source.path!r}"
    sides = (names.chosen, names.rejected)
    given = [present(row.values or {}) for row in rows]
    if any(all(isinstance(row.get(side), str) for side in sides) for row in given):
        others = sorted(columns - set(sides))
        return (
            f"{where}: {names.chosen} and {names.rejected} are texts and nothing asks for them: "
            f"there is no {names.prompt!r}, and they are no transcripts ({HH_TURN!r}). Name the "
            "column that asks with data.sources[].columns.prompt"
            + (f": one of {', '.join(others)}" if others else "")
        )
    labels = [row[names.label] for row in given if names.label in row]
    if labels and {names.response, names.completion} & columns:
        return (
            f"{where}: {names.label} is {labels[0]!r}, neither true nor false (1 nor 0); "
            "data.sources[].form = chosen_only reads the responses without it"
        )
    return (
        f"{where}: columns {sorted(columns)} fit no form: want "
        f"{names.prompt}/{names.chosen}/{names.rejected}, "
        f"{names.prompt}/{names.responses}/{names.scores}, "
        f"{names.prompt}/{names.response}/{names.label}, {names.messages} or {names.text} (set "
        "data.sources[].columns)"
    )
