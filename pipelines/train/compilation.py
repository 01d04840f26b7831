"""torch.compile of the decoder layers: counted, timed, and kept for whoever compiles the same.

What was compiled lies in torch's caches of this machine, and in their portable form beside the
pairs, where restarts, trials and other machines find it. torch reads that form with pickle: it is
signed with a key of the user's own, and left alone where the signature is another's.
"""

import hashlib
import hmac
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import nn

from pipelines.errors import DamagedFile, StageFailed, UserError
from pipelines.models import is_out_of_memory
from pipelines.storage import RunStore, Span, add_spans, digest, read_whole

_SIGNATURE_BYTES = 32
# How rows of several widths are compiled: dynamic (one graph for all), automatic (one for the first
# width, one for all others), static-N (one per width, of which there are N). For benchmarks.
_SHAPES = "SPARSEPO_COMPILED_SHAPES"
_DYNAMIC = {"static": False, "automatic": None, "dynamic": True}
_DEFAULT = "dynamic"


def num_widths() -> int | None:
    """How many widths rows are rounded up to; None where any width will do."""
    number = _shapes().partition("-")[2]
    return int(number) if number else None


def _shapes() -> str:
    return os.environ.get(_SHAPES, _DEFAULT)


class Compilation:
    """Compiles the layers of one process and counts what that took.

    Args:
        store: where the portable form lies. key: that signs it.
    """

    def __init__(self, store: RunStore, key: bytes, device: torch.device) -> None:
        from torch._dynamo.callback import on_compile_end, on_compile_start

        self._store, self._key = store, key
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        self._prefix = digest([torch.__version__, name])[:16]
        self._before = _counted()
        self._since, self.seconds = 0.0, 0.0
        self._spans: list[Span] = []
        self._settings = ExitStack()
        on_compile_start(self._started)
        on_compile_end(self._ended)
        self._stored = self._load()

    def compile(self, layers: Sequence[nn.Module]) -> None:
        """Have the layers compiled when they are called, in this thread.

        Sizes that are equal in the first rows get symbols of their own, as they do in a graph that
        is traced later, and wide rows have no graph of their own: whatever a process does first, it
        finds what others have kept.
        """
        shapes = _shapes().partition("-")[0]
        if shapes == "dynamic":
            from torch._inductor import config as inductor
            from torch.fx.experimental import _config

            duck = _config.patch(use_duck_shape=False)  # type: ignore[attr-defined]
            # Else the numbers of heads and their sizes, which a sharded layer has as attributes,
            # become symbols, and FlexAttention cannot be compiled for them.
            numbers = torch._dynamo.config.patch(skip_fsdp_guards=False)
            # Else wide rows have a graph of their own on GPUs, where a norm's sums are one kernel.
            sums = inductor.patch("triton.mix_order_reduction_non_strict_mode", True)
            for patch in (duck, numbers, sums):
                self._settings.enter_context(patch)
        for layer in layers:
            layer.compile(dynamic=_DYNAMIC[shapes])

    def counts(self) -> dict[str, float]:
        """compilations: graphs that were traced, each for forward and backward. compiled_parts:
        forwards and backwards for which code was generated. compiled_parts_found: those that a
        cache held. compile_seconds: of all that.
        """
        now = {key: value - self._before[key] for key, value in _counted().items()}
        return {**now, "compile_seconds": self.seconds}

    def keep(self) -> None:
        """Write the portable form of what was used since the last call and is not stored yet."""
        from torch.compiler._cache import CacheArtifactManager

        found = torch.compiler.save_cache_artifacts()
        if found is None:
            return
        # Else the next form would hold these again, and torch would read only the last of it.
        CacheArtifactManager.clear()
        data, keys = found[0], _keys(found[1])
        if not keys <= self._stored:
            name = f"{self._prefix}-{digest(sorted(keys))[:16]}.bin"
            with suppress(UserError):  # it costs the same work again
                self._store.write_bytes(name, self._sign(data) + data)
            self._stored |= keys

    def close(self) -> None:
        """Count no more; the time goes to who records this thread's."""
        from torch._dynamo.callback import callback_handler

        callback_handler.remove_start_callback(self._started)
        callback_handler.remove_end_callback(self._ended)
        self._settings.close()
        add_spans(self._spans)

    def _load(self) -> set[tuple[str, str]]:
        """Fill torch's caches from the store. Returns: keys of what lies there."""
        keys: set[tuple[str, str]] = set()
        for name in self._store.names():
            if name.startswith(self._prefix):
                try:
                    whole = read_whole(self._store, name)
                except (DamagedFile, FileNotFoundError):
                    continue
                signature, artifacts = whole[:_SIGNATURE_BYTES], whole[_SIGNATURE_BYTES:]
                if hmac.compare_digest(signature, self._sign(artifacts)):
                    loaded = torch.compiler.load_cache_artifacts(artifacts)
                    keys |= _keys(loaded) if loaded else set()
        return keys

    def _sign(self, artifacts: bytes) -> bytes:
        return hmac.digest(self._key, artifacts, hashlib.sha256)

    def _started(self, args: Any) -> None:
        self._since = time.time()

    def _ended(self, args: Any) -> None:
        now = time.time()
        self.seconds += now - self._since
        self._spans.append(Span("compile", self._since, now))


@contextmanager
def told_if_not_compiled(has_compiled_layers: bool) -> Iterator[None]:
    """Raise what torch's compiler raises inside as StageFailed, with what to set.

    Memory that ran out while it compiled is raised as that.

    Args:
        has_compiled_layers: else what is compiled is FlexAttention alone, for packed rows.
    """
    try:
        yield
    except RuntimeError as error:
        raised = sys.modules.get("torch._dynamo.exc")
        if raised is None or not isinstance(error, raised.TorchDynamoException):
            raise
        inner = getattr(error, "inner_exception", error)
        if is_out_of_memory(inner):
            raise inner from error
        what = "the decoder layers" if has_compiled_layers else "attention for packed rows"
        cure = "train.compile=false" if has_compiled_layers else "train.layout=padded"
        reason = str(error).strip().splitlines()[0]
        raise StageFailed(f"torch cannot compile {what} here: {reason}; set {cure}") from error


def _keys(info: Any) -> set[tuple[str, str]]:
    return {(kind, key) for kind, keys in info.artifacts.items() for key in keys}


def _counted() -> dict[str, int]:
    from torch._dynamo.utils import counters

    inductor = counters["inductor"]
    return {
        "compilations": counters["stats"]["unique_graphs"],
        "compiled_parts": inductor["fxgraph_cache_miss"] + inductor["fxgraph_cache_bypass"],
        "compiled_parts_found": inductor["fxgraph_cache_hit"],
    }
