"""Where models, adapters and tokenizers lie, and what their directories say of themselves.

Nothing is loaded. A model is a directory of weights, or of a peft adapter that names its base: then
it is always the base with the adapter merged.
"""

import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipelines.errors import DamagedFile, UserError
from pipelines.models.trusted_code import refuse_foreign_code
from pipelines.storage import (
    CACHE,
    RunStore,
    file_hash,
    hashes_of_written,
    nearest_path,
    parse_json,
    read_record,
    special_kind,
    told_where,
    write_record,
)

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_COPY, _HASHES = "files", "hashes.json"  # of a download


def resolve_model(name_or_path: str, tokenizer_only: bool = False) -> Path:
    """The local directory of a model.

    The model is a directory, or a hub name already downloaded, or (if online) fetched now. A
    location on an object store is downloaded once per machine and content, into SPARSEPO_CACHE
    (~/.cache/sparsepo).

    Raises: UserError if there is no such model, or the directory holds no config, tokenizer or
        weights.
    """
    path = (
        _from_object_store(name_or_path)
        if "://" in name_or_path
        else Path(name_or_path).expanduser()
    )
    if not path.is_dir():
        if path.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1:
            raise UserError(
                f"model {name_or_path!r}: no such directory{nearest_path(name_or_path)}"
            )
        path = _from_hub(name_or_path)
    for file in sorted(path.iterdir()):
        if file.exists() and (kind := special_kind(file.stat().st_mode)):
            raise UserError(f"model directory {path}: {file.name} is {kind}, which is not read")
    if (path / ADAPTER_CONFIG).is_file():
        _check_adapter(path)
        return path.resolve()
    if not (path / "config.json").is_file():
        raise UserError(f"model directory {path}: no config.json")
    if not tokenizer_only and not list(path.glob("*.safetensors")):
        raise UserError(
            f"model directory {path}: no weights (*.safetensors); pickled weights are not read"
        )
    return path.resolve()


def base_dir(directory: Path) -> Path:
    """The directory of a model's own weights: of an adapter's base model, else the model's own.

    Raises: UserError if an adapter's base is not there.
    """
    if not (directory / ADAPTER_CONFIG).is_file():
        return directory
    name = json_of(directory / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UserError(
            f"adapter {directory}: its {ADAPTER_CONFIG} names no base_model_name_or_path"
        )
    beside = directory / name
    try:
        base = resolve_model(str(beside) if not Path(name).is_dir() and beside.is_dir() else name)
    except UserError as error:
        raise UserError(f"adapter {directory}: its base {error}") from error
    if (base / ADAPTER_CONFIG).is_file():
        raise UserError(
            f"adapter {directory}: its base {base} is an adapter too; merge that one first"
        )
    return base


def _check_adapter(path: Path) -> None:
    if list(path.glob("model*.safetensors")):
        raise UserError(
            f"model directory {path}: it holds both an adapter and whole weights; keep one of them"
        )
    refuse_foreign_code(path)
    if not (path / ADAPTER_WEIGHTS).is_file():
        raise UserError(
            f"adapter {path}: no weights ({ADAPTER_WEIGHTS}); pickled weights are not read"
        )


def _from_object_store(uri: str) -> Path:
    """The downloaded copy of what lies there now.

    Other sizes or times of its files make another copy. A damaged one is made anew.
    """
    store = RunStore(uri.rstrip("/"))
    files = store.files()
    if not files:
        raise UserError(f"model {uri!r}: nothing lies there")
    listing = json.dumps([store.root, files])
    target = CACHE / "models" / hashlib.sha256(listing.encode()).hexdigest()[:32]
    if not _is_whole(target):
        with told_where(target), store.as_local_directory("") as copy:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tmp-") as staging:
                # Whole or not at all, whoever else on this machine is at it.
                made = Path(staging) / "all"
                shutil.copytree(copy, made / _COPY)
                paths = sorted(path for path in (made / _COPY).rglob("*") if path.is_file())
                hashes = hashes_of_written(paths, is_local=True)
                names = [path.relative_to(made).as_posix() for path in paths]
                write_record(RunStore(str(made)), _HASHES, dict(zip(names, hashes, strict=True)))
                with contextlib.suppress(OSError):
                    made.rename(target)
    return target / _COPY


def _is_whole(download: Path) -> bool:
    """Whether a model is there as it was downloaded; else what is there is said and removed."""
    if not download.exists():
        return False
    try:
        known = read_record(RunStore(str(download)), _HASHES)
        damaged = [name for name, hash_ in known.items() if file_hash(download / name) != hash_]
    except (DamagedFile, OSError) as error:
        damaged = [Path(getattr(error, "filename", None) or _HASHES).name]
    if not damaged:
        return True
    print(f"{download}/{damaged[0]} is damaged: downloaded again", file=sys.stderr, flush=True)
    if download.is_dir():
        shutil.rmtree(download)
    else:
        download.unlink()
    return False


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.py"]
    try:
        return Path(snapshot_download(name, local_files_only=True, allow_patterns=patterns))
    except HFValidationError as error:
        raise UserError(f"model {name!r}: neither a directory nor a valid model name") from error
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (
        OfflineModeIsEnabled,
        LocalEntryNotFoundError,
        HfHubHTTPError,
        OSError,
        RuntimeError,
    ) as error:
        raise UserError(
            f"model {name!r}: no such directory, not downloaded before, and the model hub cannot "
            f"be reached{nearest_path(name)}"
        ) from error


def tokenizer_home(directory: Path) -> Path:
    """Where the tokenizer of a model directory lies: an adapter without one has its base's."""
    own = (directory / "tokenizer_config.json").is_file() or (
        directory / "tokenizer.json"
    ).is_file()
    return directory if own else base_dir(directory)


def model_config(directory: Path) -> dict[str, Any]:
    return json_of(base_dir(directory) / "config.json")


def json_of(file: Path) -> dict[str, Any]:
    """What a model's own JSON file says. UserError naming a file that holds no JSON object."""
    found = _json(file)
    if not isinstance(found, dict):
        raise UserError(f"{file}: not a JSON object")
    return found


def json_list_of(file: Path) -> list[dict[str, Any]]:
    """As `json_of`, of a file that holds a list of objects."""
    found = _json(file)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise UserError(f"{file}: not a list of JSON objects")
    return found


def _json(file: Path) -> Any:
    try:
        return parse_json(file.read_bytes()) if file.is_file() else None
    except (ValueError, OSError):
        return None


def max_positions(directory: Path) -> int | None:
    """Longest sequence the model was built for, or None if its config does not say."""
    config = model_config(directory)
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        value = part.get("max_position_embeddings") or part.get("n_positions")
        if value and not isinstance(value, int):
            raise UserError(
                f"{base_dir(directory) / 'config.json'}: its number of positions is {value!r}"
            )
        if value:
            return int(value)
    return None


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that make up a model: the base's, then an adapter's."""
    base = base_dir(directory)
    adapter = [] if base == directory else [directory / ADAPTER_WEIGHTS]
    files = sorted(base.glob("*.safetensors")) + adapter
    for file in files:
        if not file.is_file():
            raise UserError(f"model directory {file.parent}: {file.name} is no file")
    return files
