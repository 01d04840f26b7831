"""The card of the pairs that a model was trained on: sources, counts, split, fingerprints.

It says what the data is called, not where it lies, and holds none of its texts.
"""

from typing import Any

from huggingface_hub import DatasetCardData

from pipelines.pairs.table import SPLITS
from pipelines.recipe import Recipe, Source, hub_name, public_name, to_yaml, with_public_names

_UNKNOWN = "unknown"
_SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M",
          10**7: "1M<n<10M", 10**8: "10M<n<100M", 10**9: "100M<n<1B"}  # fmt: skip
_ROLES = {"sources": "train", "validation": "validation", "test": "test"}
_LICENSE = """The program that wrote this card does not know the licenses of the sources: set \
`license` in this file's head, as a name of \
https://huggingface.co/docs/hub/repositories-licenses."""


def dataset_card(recipe: Recipe, manifest: dict[str, Any]) -> str:
    """The text of the card, its metadata in front.

    Args:
        manifest: of the finished prepare stage.
    """
    counts = manifest["counts"]
    total = sum(counts["pairs"].values())
    names = [source.path for group in recipe.data.groups().values() for source in group]
    data_sets = list(dict.fromkeys(filter(None, map(hub_name, names))))
    front = DatasetCardData(
        license=_UNKNOWN,
        pretty_name=f"Pairs of {', '.join(dict.fromkeys(map(public_name, names)))}",
        size_categories=[next((s for n, s in _SIZES.items() if total < n), "n>1B")],
        source_datasets=data_sets or None,
        tags=["sparsepo", "preference-pairs"],
    ).to_yaml()
    parts = [
        "# Preference pairs\n\nWhat the model beside this card was trained and evaluated on. The "
        "pairs themselves are not here.\n",
        _sources(recipe, manifest["inputs"]),
        _kept(counts),
        _split(recipe),
        _fingerprints(manifest),
        _preparation(recipe),
        f"## License\n\n{_LICENSE}\n",
    ]
    return f"---\n{front}\n---\n\n" + "\n".join(parts)


def _sources(recipe: Recipe, inputs: dict[str, Any]) -> str:
    rows = "".join(
        f"| `{_cell(public_name(source.path))}` | {_ROLES[group]} | {source.form} | "
        f"{_part(source)} | {source.weight:g} | `{fingerprint}` |\n"
        for group, sources in recipe.data.groups().items()
        for source, fingerprint in zip(sources, inputs[group], strict=True)
    )
    return (
        "## Sources\n\n| source | for | form | part | weight | fingerprint |\n"
        f"|---|---|---|---|---|---|\n{rows}"
    )


def _cell(text: str) -> str:
    """A text in a table: names of files may hold anything."""
    return " ".join(text.split()).replace("|", "\\|").replace("`", "'")


def _part(source: Source) -> str:
    given = {"split": source.split, "subset": source.subset, "data_dir": source.data_dir}
    return _cell(", ".join(f"{key} {value}" for key, value in given.items() if value) or "all")


def _kept(counts: dict[str, Any]) -> str:
    rows = "".join(
        f"| {split} | {counts['pairs'][split]:,} | {counts['scored_tokens'][split]:,} |\n"
        for split in SPLITS
    )
    dropped = "".join(
        f"| {_cell(reason)} | {number:,} |\n" for reason, number in counts["rejected"].items()
    )
    cut = ", ".join(f"{part}: {number:,}" for part, number in counts["truncated"].items())
    total = sum(counts["rejected"].values())
    return (
        "## Rows\n\n| split | pairs | tokens of responses |\n|---|---|---|\n"
        f"{rows}\nDropped: {total:,} rows.\n"
        + (f"\n| why | rows |\n|---|---|\n{dropped}" if dropped else "")
        + (f"\nCut to length: {cut}.\n" if cut else "")
        + (f"\nFiles left out: {len(counts['left_out']):,} lines in the run's manifest.\n"
           if counts.get("left_out") else "")
    )  # fmt: skip


def _split(recipe: Recipe) -> str:
    data = recipe.data
    lines = [
        f"- {split}: {fraction:g} of the prompts of the training sources, drawn by a hash with "
        f"seed {data.split_seed}\n"
        for split, fraction in (
            ("validation", data.validation_fraction),
            ("test", data.test_fraction),
        )
        if fraction
    ]
    lines += [
        f"- {split}: sources of its own\n"
        for split, own in (("validation", data.validation), ("test", data.test))
        if own
    ]
    return (
        "## Split\n\nAll pairs of a prompt are in one split. A training pair whose prompt is held "
        f"out is dropped.\n\n{''.join(lines) or 'Nothing is held out.' + chr(10)}"
    )


def _fingerprints(manifest: dict[str, Any]) -> str:
    return (
        f"## Fingerprints\n\n- pairs: `{manifest['fingerprint']}`\n"
        f"- tokenizer: `{manifest['inputs']['tokenizer']}`\n\n"
        "The same sources, tokenizer and settings give the same fingerprints.\n"
    )


def _preparation(recipe: Recipe) -> str:
    shown = with_public_names(recipe).data.model_dump(mode="json", exclude_defaults=True)
    return f"## Preparation\n\n```yaml\n{to_yaml({'data': shown})}```\n"
