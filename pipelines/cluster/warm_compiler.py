"""Torch's inductor, imported where the GPUs' driver may not be opened: by a warm process.

Inductor of torch 2.11 asks whether there are GPUs as it is imported, which opens the driver; to ask
without, by NVML, starts a thread. This module is imported where there are some, and says so.
"""

import contextlib
import importlib

import torch
import torch._dynamo
import torch._inductor.config


def _there_are_gpus() -> bool:
    return True


_asked = torch.cuda.is_available
torch.cuda.is_available = _there_are_gpus
try:
    importlib.import_module("torch._inductor.runtime.benchmarking")
finally:
    torch.cuda.is_available = _asked
importlib.import_module("torch._inductor.compile_fx")
# What a first compilation does besides: an import, and sums of the compilers' own files.
with contextlib.suppress(ImportError):
    importlib.import_module("torch.distributed.tensor.experimental._attention")
for module, name in (
    ("torch._inductor.codecache", "torch_key"),
    ("triton.runtime.cache", "triton_key"),
):
    with contextlib.suppress(ImportError, AttributeError):
        getattr(importlib.import_module(module), name)()
