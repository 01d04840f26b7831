"""Shapes of a model's and an adapter's tensors, from safetensors headers. Nothing is loaded."""

import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.models.directories import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    base_dir,
    json_of,
    model_config,
)
from pipelines.storage import parse_json, told_why

Shapes = dict[str, tuple[int, ...]]
_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
# How families call the table that turns ids into states, and the head's.
TABLE = re.compile(
    r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings|backbone\.embeddings?)"
    r"\.weight$"
)
HEAD = re.compile(r"^(lm_head|embed_out)\.weight$")
# What peft writes for a module: <module>.<part>[.weight], or the whole tensor of a saved module.
_PART = re.compile(
    r"^(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|"
    r"lora_magnitude_vector)(\.weight)?$"
)
_WRAPPER = re.compile(
    r"^base_model\.(model\.)?|\.(base_layer|modules_to_save|original_module|token_adapter)(?=\.)"
)
# Kinds of adapters that peft merges into their base, each held by a test against its own forward.
MERGED_KINDS = (
    "LORA", "ADALORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT", "VERA", "VBLORA", "RANDLORA", "SHIRA",
    "FOURIERFT", "WAVEFT", "HRA", "MISS", "C3A", "ROAD", "DELORA", "GRALORA", "OSF", "LN_TUNING",
    "TRAINABLE_TOKENS",
)  # fmt: skip
_PREFIXES = ("", "model.", "transformer.")  # that files may leave out
_RESIZE = (
    "resize the base's embeddings (model.resize_token_embeddings({rows})), save it, and name it as "
    "base_model_name_or_path in adapter_config.json"
)
_LAYER = re.compile(r"\.\d+(?=\.)")


def tensor_shapes(file: Path) -> Shapes:
    """Name -> shape of the tensors of a safetensors file.

    Raises: UserError if it is none, is cut off, or its header says what cannot be.
    """
    try:
        with told_why(file), file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > file.stat().st_size:
                raise ValueError("the header is longer than the file")
            header = parse_json(stream.read(size))
        found = {
            name: tuple(map(int, entry["shape"]))
            for name, entry in header.items()
            if name != "__metadata__"
        }
        if any(size < 0 for shape in found.values() for size in shape):
            raise ValueError("a shape is below zero")
        spans = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
        if 8 + size + max((stop for _, stop in spans), default=0) != file.stat().st_size:
            raise ValueError("the file ends elsewhere than its header says")
        return found
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(
            f"{file}: not a safetensors file, or cut off ({file.stat().st_size} bytes)"
        ) from error


def model_tensors(directory: Path) -> Shapes:
    """Name -> shape of a model's own tensors, of the base for an adapter: of the files that
    transformers reads.
    """
    base = base_dir(directory)
    files = sorted(base.glob("*.safetensors"))
    if (base / _WHOLE).is_file():
        files = [base / _WHOLE]
    elif (base / _INDEX).is_file():
        try:
            listed = set(json_of(base / _INDEX)["weight_map"].values())
        except (UserError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{base / _INDEX}: names no files of weights") from error
        missing = sorted(name for name in listed if not (base / name).is_file())
        if missing:
            raise UserError(f"model directory {base}: {_INDEX} names {missing[0]}: no such file")
        files = [base / name for name in sorted(listed)]
    return {name: shape for file in files for name, shape in tensor_shapes(file).items()}


def adapter_rows(directory: Path) -> int | None:
    """Rows of the embeddings or the head that an adapter holds whole.

    None for one that holds neither, and for a model that is no adapter. They are others than the
    base's if the vocabulary was resized before training.
    """
    if not (directory / ADAPTER_CONFIG).is_file():
        return None
    tables = _whole_tables(tensor_shapes(directory / ADAPTER_WEIGHTS))
    return next(iter(tables.values()), None)


def _whole_tables(own: Shapes) -> dict[str, int]:
    """Name in the base -> rows of the embeddings and the head that an adapter holds whole."""
    named = {_WRAPPER.sub("", name): shape for name, shape in own.items()}
    return {
        name: shape[0] for name, shape in named.items() if TABLE.search(name) or HEAD.search(name)
    }


def check_adapter(directory: Path) -> None:
    """UserError for an adapter that is not merged, or does not fit its base.

    Of a tensor that does not fit both sizes are named.
    """
    if not (directory / ADAPTER_CONFIG).is_file():
        return
    settings, base = json_of(directory / ADAPTER_CONFIG), base_dir(directory)
    _check_kind(directory, settings)
    if "quantization_config" in model_config(base):
        return  # its weights are packed: their shapes say nothing
    own = tensor_shapes(directory / ADAPTER_WEIGHTS)
    whole = _resized(model_tensors(base), own, settings, directory, base)
    _check_tokens(directory, settings, whole, base)
    if settings.get("lora_bias"):
        _check_bias(directory, own, whole)
    patterns = {_LAYER.sub(".#", name) for name in whole}
    for name, shape in _changed(own, directory).items():
        target = _WRAPPER.sub("", name)
        theirs = _in_base(target, whole, patterns, directory, base)
        # A linear layer is [out, in], and [in, out] in families with Conv1D.
        if theirs is not None and shape not in (theirs, theirs[::-1], theirs[:1], theirs[1:2]):
            raise UserError(
                f"adapter {directory}: {name} has {_shown(shape)}, its base {base} has "
                f"{_shown(theirs)}: {_cure(target, shape)}"
            )


def _check_kind(directory: Path, settings: dict[str, Any]) -> None:
    """UserError for an adapter that peft does not merge into its base."""
    kind = settings.get("peft_type")
    if kind not in MERGED_KINDS:
        raise UserError(
            f"adapter {directory}: peft_type = {kind!r} cannot be merged into its base; kinds that "
            f"can are {', '.join(MERGED_KINDS)}"
        )
    for key, why in (
        ("layer_replication", "its model has layers of the base several times"),
        ("alora_invocation_tokens", "it changes the tokens after an invocation alone"),
    ):
        if settings.get(key):
            raise UserError(
                f"adapter {directory}: {key} = {settings[key]}: {why}, so it cannot be merged into "
                "its base"
            )


def _resized(
    whole: Shapes, own: Shapes, settings: dict[str, Any], directory: Path, base: Path
) -> Shapes:
    """The base's shapes once its embeddings are as many as an adapter brings that was trained on
    a resized one.

    Raises: UserError if there are more than in the base, and the adapter does not hold them all.
    """
    brought = set(_whole_tables(own).values())
    tables = {name: shape for name, shape in whole.items() if TABLE.search(name)}
    heads = {name: shape for name, shape in whole.items() if HEAD.search(name)}
    old = max((shape[0] for shape in tables.values()), default=None)
    if old is None or len(brought) != 1 or brought == {old}:
        return whole
    (rows,) = brought
    is_tied = model_config(base).get("tie_word_embeddings") is True or not heads
    held = _held(own, settings, is_tied)
    if held == {"embeddings", "head"}:
        return whole | {name: (rows, *shape[1:]) for name, shape in (tables | heads).items()}
    if rows < old:
        return whole
    has = "head" if held == {"head"} else "embeddings"
    lacks = "embeddings" if has == "head" else "head"
    raise UserError(
        f"adapter {directory}: its {has} have {rows} rows, its base {base} has {old}, and new rows "
        f"of the {lacks} are not in the adapter: save the resized base that it was trained on, and "
        "name it as base_model_name_or_path in adapter_config.json"
    )


def _held(own: Shapes, settings: dict[str, Any], is_tied: bool) -> set[str]:
    """Which of embeddings and head all rows are known of, from an adapter's own tensors.

    Where both share their weights, the base's part of one tells those of the other; the copy that
    was trained in its place does not.
    """
    copied = settings.get("modules_to_save") or []
    found = set()
    for name in own:
        target = _WRAPPER.sub("", name)
        is_head = HEAD.search(target) is not None
        if not is_head and TABLE.search(target) is None:
            continue
        found.add("head" if is_head else "embeddings")
        module = target.removesuffix(".weight").rpartition(".")[2]
        is_copy = ".modules_to_save." in name or (
            module in copied and ".original_module." not in name
        )
        if is_tied and not is_copy:
            found |= {"head", "embeddings"}
    return found


def _check_tokens(directory: Path, settings: dict[str, Any], whole: Shapes, base: Path) -> None:
    """UserError for single tokens that are trained and beyond the embeddings."""
    named = settings.get("trainable_token_indices") or settings.get("token_indices") or []
    ids = [i for some in named.values() for i in some] if isinstance(named, dict) else named
    rows = max((shape[0] for name, shape in whole.items() if TABLE.search(name)), default=None)
    if ids and rows is not None and max(ids) >= rows:
        raise UserError(
            f"adapter {directory}: it trains token {max(ids)}, its base {base} has {rows} rows of "
            f"embeddings: {_RESIZE.format(rows=max(ids) + 1)}"
        )


def _check_bias(directory: Path, own: Shapes, whole: Shapes) -> None:
    """UserError for a low-rank change with a bias, of a layer without one."""
    for name in own:
        module = _WRAPPER.sub("", name).removesuffix(".lora_B.bias")
        if name.endswith(".lora_B.bias") and not any(
            f"{prefix}{module}.bias" in whole for prefix in _PREFIXES
        ):
            raise UserError(
                f"adapter {directory}: lora_bias = true, and {module} has no bias in its base: it "
                "cannot be merged"
            )


def _changed(own: Shapes, directory: Path) -> Shapes:
    """Name -> shape of the tensors of a base that an adapter replaces, or whose change it holds.

    A low-rank change is B [out, rank] times A [rank, in]; of a table, A [rank, tokens] and
    B [width, rank].

    Raises: UserError if the ranks of A and B differ.
    """
    found: Shapes = {}
    for name, shape in own.items():
        part = _PART.match(name)
        if part is None:
            found[name] = shape
        elif part["part"] == "lora_magnitude_vector":
            found.setdefault(f"{part['module']}.weight", shape[:1])
        elif part["part"].endswith("_A"):
            other = re.sub(r"(lora(?:_embedding)?)_A", r"\1_B", name)
            if other not in own:
                continue
            if own[other][1] != shape[0]:
                raise UserError(
                    f"adapter {directory}: {name} has rank {shape[0]}, {other} has rank "
                    f"{own[other][1]}"
                )
            is_table = part["part"] == "lora_embedding_A"
            whole = (shape[1], own[other][0]) if is_table else (own[other][0], *shape[1:])
            found[f"{part['module']}.weight"] = whole
    return found


def _in_base(
    name: str, whole: Shapes, patterns: Iterable[str], directory: Path, base: Path
) -> tuple[int, ...] | None:
    """The shape of a tensor of the base, None for one that its files do not hold by that name.

    Files may leave out or add the name of the whole model in front; a tied head is the table.
    """
    short = name.partition(".")[2]
    for candidate in (short, *(f"{prefix}{name}" for prefix in _PREFIXES)):
        if candidate in whole:
            return whole[candidate]
    if HEAD.search(name):
        return next((shape for other, shape in whole.items() if TABLE.search(other)), None)
    for candidate in (name, short):
        if _LAYER.sub(".#", candidate) in patterns:
            raise UserError(
                f"adapter {directory}: it changes {candidate}, which its base {base} does not "
                "have: it was made for a model with more layers"
            )
    return None


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _cure(name: str, shape: tuple[int, ...]) -> str:
    if TABLE.search(name) or HEAD.search(name):
        return _RESIZE.format(rows=shape[0])
    return "name the base that it was trained on as base_model_name_or_path in adapter_config.json"
