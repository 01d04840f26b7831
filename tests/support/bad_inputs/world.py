"""Inputs to spoil, below one folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from pipelines.models.directories import ADAPTER_CONFIG


class World:
    """What a bad input is made of.

    Attributes:
        folder: for copies; the run is `folder`/run. model: the tiny model.
    """

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model

    def copy(self, **changes: Any) -> Path:
        """A copy of the model with another configuration."""
        found = self.folder / "copy"
        shutil.copytree(self.model, found)
        config = json.loads((found / "config.json").read_text())
        (found / "config.json").write_text(json.dumps(config | changes))
        return found

    def without(self, name: str) -> Path:
        found = self.copy()
        (found / name).unlink()
        return found

    def with_tokenizer(self, **settings: Any) -> Path:
        found = self.copy()
        file = found / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        (found / "special_tokens_map.json").unlink(missing_ok=True)
        return found

    def adapter(self, **settings: Any) -> Path:
        """A folder that says it is an adapter; its weights are no adapter's."""
        found = self.folder / "adapter"
        found.mkdir()
        wanted = {"peft_type": "LORA", "base_model_name_or_path": str(self.model), **settings}
        (found / ADAPTER_CONFIG).write_text(json.dumps(wanted))
        shutil.copy(self.model / "model.safetensors", found / "adapter_model.safetensors")
        return found

    def file(self, content: str | bytes, name: str = "file.jsonl") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def rows(self, *rows: Any, **more: str) -> "Options":
        """A source of these rows."""
        return self.source("".join(json.dumps(row) + "\n" for row in rows), **more)

    def source(self, content: str | bytes, name: str = "file.jsonl", **more: str) -> "Options":
        return self.read(self.file(content, name), **more)

    def read(self, path: Path | str, **more: str) -> "Options":
        keys = "".join(f", {key}: {value}" for key, value in more.items())
        return [f"data.sources=[{{path: {json.dumps(str(path))}{keys}}}]"]


Options: TypeAlias = list[str]
Make: TypeAlias = Callable[[World], Options]
# The overrides, or what makes them, and parts of the line.
Bad: TypeAlias = tuple[Options | Make, *tuple[str, ...]]
