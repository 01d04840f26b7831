"""The content of a directory's files, as far as tokenizers and configurations depend on it."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.models.directories import ADAPTER_CONFIG, base_dir, tokenizer_home
from pipelines.storage import file_state, parse_json

_TEMPLATES = "additional_chat_templates"  # the one folder that a tokenizer reads besides its own
# Their strings may name further files, elsewhere too.
_SETTINGS = ("tokenizer_config.json", "config.json")
_LARGEST_READ = 2**26  # bytes; a larger file is known by its size and times


def tokenizer_contents(directory: Path) -> dict[str, Any]:
    """All that decides a model directory's tokenizer: content by file name.

    For an adapter with a tokenizer of its own, the base's configuration may decide too.
    """
    home = tokenizer_home(directory)
    found = _contents(home)
    if (home / ADAPTER_CONFIG).is_file():
        try:
            found["base"] = _contents(base_dir(home))
        except UserError:
            found["base"] = None  # a tokenizer alone needs none
    return found


def config_contents(directory: Path) -> dict[str, Any]:
    """All that decides a model directory's configuration (the base's for an adapter)."""
    return _contents(base_dir(directory))


def _contents(folder: Path) -> dict[str, Any]:
    """Path of the folder and content of its files, weights left out."""
    files = {
        str(path.relative_to(folder)): path
        for read in (folder, folder / _TEMPLATES)
        if read.is_dir()
        for path in read.iterdir()
        if path.is_file() and path.suffix != ".safetensors"
    }
    named = {
        str(path): path
        for name in _SETTINGS
        if name in files
        for text in _strings(files[name])
        for path in (Path(text), folder / text)
        if _is_file(path) and path not in files.values()
    }
    return {
        "folder": str(folder.resolve()),
        "files": {name: _content(path) for name, path in sorted({**named, **files}.items())},
    }


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a path, or with a zero byte
        return False


def _content(file: Path) -> str | list[int]:
    try:
        state = file_state(file)
        if state[0] > _LARGEST_READ:
            return state
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        return type(error).__name__  # nor can others read it


def _strings(file: Path) -> Iterator[str]:
    """All strings of a JSON file that may be a path."""
    try:
        waiting = [parse_json(file.read_bytes())]
    except (OSError, ValueError):
        return
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str):
            yield value
