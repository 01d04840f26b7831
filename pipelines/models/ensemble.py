"""Several causal models that read the same rows, token by token.

Adapters of one base are kept beside one copy of its weights. Where peft takes a batch of several
adapters, one forward of the base serves all of them; where it does not, it is switched between.
"""

import inspect
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.errors import UserError
from pipelines.models.adapters import add_adapter, with_adapter
from pipelines.models.directories import ADAPTER_CONFIG, base_dir, json_of
from pipelines.models.loading import load_causal_lm
from pipelines.models.tensors import adapter_rows
from sparsepo.backbone import transformer_of

Load = Callable[[Path], Any]


@dataclass(frozen=True)
class Voices:
    """One model in memory and the models that it speaks for.

    Attributes:
        numbers: of these in the ensemble. adapters: peft's names of them; empty for a model that
            speaks for itself. is_joint: whether one forward serves all adapters.
    """

    causal_lm: Any
    numbers: tuple[int, ...]
    adapters: tuple[str, ...] = ()
    is_joint: bool = False


@dataclass(frozen=True)
class Ensemble:
    """Models with one vocabulary.

    Attributes:
        voices: every model belongs to one of them. shared: what is shared, in lines.
    """

    voices: tuple[Voices, ...]
    shared: tuple[str, ...]

    @property
    def device(self) -> torch.device:
        found: torch.device = self.voices[0].causal_lm.device
        return found

    def streams(self, ids: Tensor, attention: Tensor) -> "Streams":
        return Streams(self, ids, attention)


def load_ensemble(
    directories: Sequence[Path], dtype: torch.dtype, device: torch.device, load: Load
) -> Ensemble:
    """The models of these directories, adapters of one base beside one copy of it.

    Args:
        load: a directory -> its model alone, with an adapter merged.
    Raises: UserError if one cannot be loaded.
    """
    by_base: dict[Path, list[int]] = defaultdict(list)
    alone: list[int] = []
    for number, directory in enumerate(directories):
        (by_base[base_dir(directory)] if _leaves_base(directory) else alone).append(number)
    voices, shared = [], []
    for base, numbers in by_base.items():
        if len(numbers) == 1:
            alone += numbers
            continue
        found = _adapters_of(base, numbers, [directories[n] for n in numbers], dtype, device)
        voices.append(found)
        way = "one forward serves all" if found.is_joint else "a forward for each"
        shared.append(
            f"models {_listed(numbers)}: adapters of {base.name}, whose weights are in memory "
            f"once; {way}"
        )
    voices += [Voices(load(directories[n]), (n,)) for n in sorted(alone)]
    if alone:
        named = "model" if len(alone) == 1 else "models"
        shared.append(f"{named} {_listed(sorted(alone))}: weights of their own in memory")
    return Ensemble(tuple(voices), tuple(shared))


def _leaves_base(directory: Path) -> bool:
    """Whether a directory is an adapter that changes nothing of its base but what it adds.

    Whole layers, embeddings and biases that an adapter brings would be the others', too.
    """
    if not (directory / ADAPTER_CONFIG).is_file() or adapter_rows(directory) is not None:
        return False
    settings = json_of(directory / ADAPTER_CONFIG)
    return (
        settings.get("peft_type") == "LORA"
        and settings.get("bias", "none") == "none"
        and not settings.get("modules_to_save")
        and not settings.get("trainable_token_indices")
    )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number + 1) for number in numbers)


def _adapters_of(
    base: Path,
    numbers: Sequence[int],
    directories: Sequence[Path],
    dtype: torch.dtype,
    device: torch.device,
) -> Voices:
    def built() -> tuple[Any, tuple[str, ...]]:
        adapted = with_adapter(load_causal_lm(str(base), dtype, device), directories[0])
        names = (adapted.active_adapter, *(f"model{number}" for number in numbers[1:]))
        for name, directory in zip(names[1:], directories[1:], strict=True):
            add_adapter(adapted, directory, name)
        return adapted.to(device).eval(), names

    adapted, names = built()
    is_joint = _reads_jointly(adapted, names)
    if not is_joint:  # where peft has refused, its hooks are left on the layers
        adapted, names = built()
    return Voices(adapted, tuple(numbers), names, is_joint)


@torch.no_grad()
def _reads_jointly(adapted: Any, names: Sequence[str]) -> bool:
    """Whether one forward with rows for all adapters gives what each gives when it is active."""
    ids = torch.arange(1, 9, device=adapted.device).view(2, 4)
    apart = []
    for name in names:
        adapted.set_adapter(name)
        apart.append(adapted(input_ids=ids).logits.float())
    expected = torch.cat(apart)
    rows = [name for name in names for _ in range(len(ids))]
    try:
        joint = adapted(input_ids=ids.repeat(len(names), 1), adapter_names=rows).logits.float()
    except (ValueError, RuntimeError, TypeError):  # DoRA, layers that see tokens as rows, ...
        return False
    slack = 1e-4 if adapted.dtype == torch.float32 else 3e-2
    return torch.allclose(joint, expected, rtol=0, atol=slack * float(expected.abs().max()))


class Streams:
    """Rows that all models of an ensemble read, a token more at every step.

    Args:
        ids, attention: [rows, T], padded on the left.
    """

    def __init__(self, ensemble: Ensemble, ids: Tensor, attention: Tensor) -> None:
        self._attention = attention
        self._readers = [
            (number, reader)
            for voices in ensemble.voices
            for number, reader in _readers(voices, ids.shape[0])
        ]
        self._unread = ids

    def step(self, wants_states: bool = False) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities [K, rows, V] of the next token, float32, in the models' order.

        Returns: they, and, where asked for, what the first model's head has read [rows, d].
        """
        found: dict[int, Tensor] = {}
        states = None
        for numbers, reader in self._readers:
            is_first = wants_states and 0 in numbers
            logits, read = reader(self._unread, self._attention, is_first)
            found |= dict(zip(numbers, logits, strict=True))
            states = read if is_first else states
        stacked = torch.stack([found[number] for number in sorted(found)])
        return stacked.float().log_softmax(-1), states

    def append(self, tokens: Tensor) -> None:
        """Args: tokens: [rows], the next of each."""
        self._unread = tokens[:, None]
        self._attention = torch.cat([self._attention, torch.ones_like(self._unread)], dim=1)


def _readers(voices: Voices, num_rows: int) -> list[tuple[tuple[int, ...], "_Reader"]]:
    if voices.is_joint:
        names = [name for name in voices.adapters for _ in range(num_rows)]
        return [(voices.numbers, _Reader(voices.causal_lm, len(voices.adapters), names))]
    if voices.adapters:
        return [
            ((number,), _Reader(voices.causal_lm, 1, active=name))
            for number, name in zip(voices.numbers, voices.adapters, strict=True)
        ]
    return [(voices.numbers, _Reader(voices.causal_lm, 1))]


class _Reader:
    """One forward per step, with the keys and values of the ones before.

    Args:
        copies: the rows are read so often at once. names: peft's adapter of every row then.
        active: the adapter that is switched to before.
    """

    def __init__(
        self, causal_lm: Any, copies: int, names: Sequence[str] = (), active: str | None = None
    ) -> None:
        self._causal_lm, self._copies, self._active = causal_lm, copies, active
        self._transformer = transformer_of(causal_lm)
        taken = inspect.signature(self._transformer.forward).parameters
        self._given: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in taken else {}
        if names:
            self._given["adapter_names"] = list(names)
        self._cache: Any = None
        self._read: list[Tensor] = []

    def __call__(
        self, unread: Tensor, attention: Tensor, wants_states: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Logits [copies, rows, V], and what the head read of the first copy's last tokens."""
        if self._active is not None:
            self._causal_lm.set_adapter(self._active)
        # A family without keys and values to keep reads all tokens again.
        self._read = [unread] if self._cache is not None else [*self._read, unread]
        ids = torch.cat(self._read, dim=1).repeat(self._copies, 1)
        seen = attention.repeat(self._copies, 1)
        positions = (seen.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        heads: list[Tensor] = []
        hook = self._transformer.get_output_embeddings().register_forward_pre_hook(
            lambda module, given: heads.append(given[0])
        )
        try:
            output = self._causal_lm(
                input_ids=ids,
                attention_mask=seen,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
                **self._given,
            )
        finally:
            hook.remove()
        self._cache = getattr(output, "past_key_values", None)
        logits = output.logits[:, -1].unflatten(0, (self._copies, -1))
        if not wants_states:
            return logits, None
        if not heads:
            raise UserError(
                f"{type(self._transformer).__name__} calls no head that a map could read from: "
                "merge it with fixed weights"
            )
        return logits, heads[-1][: len(unread), -1]
