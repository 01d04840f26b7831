"""Where an interrupted training of a discriminator goes on: its map, its optimizer, its step."""

import hashlib
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from pipelines.errors import DamagedFile
from pipelines.recipe import HEAD_POSITION
from pipelines.storage import RunStore, read_record, read_whole, write_record

_FIELDS = {"step": int, "file": str, "sha256": str, "fingerprint": str, "curve": list}
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Position:
    """How far a training has come.

    Attributes:
        step: steps done. curve: of every stretch between checkpoints its last step, and its loss in
            nats a labelled token.
    """

    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)


class HeadCheckpoint:
    """The last checkpoint of a stage; there is one, and it is whole once its record names it.

    Args:
        fingerprint: of the stage, so that another recipe's is not taken.
    """

    def __init__(self, store: RunStore, fingerprint: str) -> None:
        self._store, self._fingerprint = store, fingerprint

    def save(self, head: nn.Module, optimizer: torch.optim.Optimizer, at: Position) -> None:
        content = save(_tensors(head, optimizer))
        name = f"checkpoint-{at.step:08d}.safetensors"
        self._store.write_bytes(name, content)
        record = {
            "step": at.step,
            "file": name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "fingerprint": self._fingerprint,
            "curve": at.curve,
        }
        write_record(self._store, HEAD_POSITION, record)
        for other in self._files():
            if other != name:
                self._store.delete(other)

    def restore(self, head: nn.Module, optimizer: torch.optim.Optimizer) -> Position:
        """Put head and optimizer where they were; the start if there is nothing to go on from.

        A damaged checkpoint is said, and training starts again: it comes to the same end.
        """
        if not self._store.exists(HEAD_POSITION):
            return Position()
        try:
            record = read_record(self._store, HEAD_POSITION, _FIELDS)
            found = self._read(record)
        except (DamagedFile, FileNotFoundError, SafetensorError, ValueError) as error:
            print(f"{error}: trained again from the start", file=sys.stderr, flush=True)
            self.clear()  # what lies in its place may be a folder
            return Position()
        with torch.no_grad():
            for name, parameter in head.named_parameters():
                parameter.copy_(found[name])
                optimizer.state[parameter] = {
                    "step": found["step"].clone(),
                    **{key: found[f"{name}.{key}"].clone() for key in _MOMENTS},
                }
        return Position(record["step"], record["curve"])

    def clear(self) -> None:
        """Forget it, once the stage is complete."""
        for name in (HEAD_POSITION, *self._files()):
            self._store.delete(name)

    def _read(self, record: dict[str, Any]) -> dict[str, Tensor]:
        content = read_whole(self._store, record["file"])
        path = f"{self._store.root}/{record['file']}"
        if hashlib.sha256(content).hexdigest() != record["sha256"]:
            raise DamagedFile(f"{path} is damaged: its checksum does not fit")
        if record["fingerprint"] != self._fingerprint:
            raise DamagedFile(f"{path} is of another recipe")
        return load(content)

    def _files(self) -> list[str]:
        return [n for n in self._store.names() if n.startswith("checkpoint-")]


def _tensors(head: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, parameter in head.named_parameters():
        state = optimizer.state[parameter]
        found[name] = parameter.detach()
        found |= {f"{name}.{key}": state[key] for key in _MOMENTS}
        found["step"] = state["step"]
    return {name: value.contiguous() for name, value in found.items()}
