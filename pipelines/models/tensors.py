"""Shapes of a model's and an adapter's tensors, from safetensors headers. Nothing is loaded."""

import json
import re
import struct
from collections.abc import Iterable
from pathlib import Path

from pipelines.errors import UserError
from pipelines.models.directories import ADAPTER_CONFIG, ADAPTER_WEIGHTS, base_dir, model_config

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
_WRAPPER = re.compile(r"^base_model\.(model\.)?|\.(base_layer|modules_to_save)(?=\.)")
_LAYER = re.compile(r"\.\d+(?=\.)")


def tensor_shapes(file: Path) -> Shapes:
    """Name -> shape of the tensors of a safetensors file.

    Raises: UserError if it is none.
    """
    try:
        with file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > file.stat().st_size:
                raise ValueError("the header is longer than the file")
            header = json.loads(stream.read(size))
        return {
            name: tuple(map(int, entry["shape"]))
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
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
            listed = set(json.loads((base / _INDEX).read_bytes())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{base / _INDEX}: names no files of weights") from error
        missing = sorted(name for name in listed if not (base / name).is_file())
        if missing:
            raise UserError(f"model directory {base}: {_INDEX} names {missing[0]}: no such file")
        files = [base / name for name in sorted(listed)]
    return {name: shape for file in files for name, shape in tensor_shapes(file).items()}


def check_adapter(directory: Path) -> None:
    """UserError if a tensor of an adapter does not fit its base: both sizes are named."""
    if not (directory / ADAPTER_CONFIG).is_file():
        return
    base = base_dir(directory)
    if "quantization_config" in model_config(base):
        return  # its weights are packed: their shapes say nothing
    whole = model_tensors(base)
    patterns = {_LAYER.sub(".#", name) for name in whole}
    for name, shape in _changed(tensor_shapes(directory / ADAPTER_WEIGHTS), directory).items():
        target = _WRAPPER.sub("", name)
        theirs = _in_base(target, whole, patterns, directory, base)
        # A linear layer is [out, in], and [in, out] in families with Conv1D.
        if theirs is not None and shape not in (theirs, theirs[::-1], theirs[:1], theirs[1:2]):
            raise UserError(
                f"adapter {directory}: {name} has {_shown(shape)}, its base {base} has "
                f"{_shown(theirs)}: {_cure(target, shape)}"
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
    for candidate in (name, short, f"model.{name}", f"transformer.{name}"):
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
        return (
            f"resize the base's embeddings (model.resize_token_embeddings({shape[0]})), save it, "
            "and name it as base_model_name_or_path in adapter_config.json"
        )
    return "name the base that it was trained on as base_model_name_or_path in adapter_config.json"
