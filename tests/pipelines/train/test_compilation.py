"""Where compiling layers is expected to pay, and who finds what was compiled."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from runs import CPU, CUDA
from torch import Tensor, nn
from torch._inductor.exc import InductorError
from torch.distributed.device_mesh import init_device_mesh
from transformers import LlamaConfig, LlamaForCausalLM

from pipelines.errors import StageFailed
from pipelines.models.hardware import compile_forecast
from pipelines.storage import RunStore
from pipelines.train.compilation import Compilation, told_if_not_compiled
from sparsepo.backbone import checkpoint_activations, decoder_layers

TRAINING, EVALUATION = True, False
Machine = Callable[[], AbstractContextManager[None]]


def test_layers_are_compiled_where_that_is_forecast_to_pay() -> None:
    """Pythia-1.4B on an H100 at 396 TFLOP/s: 1,494 and 60,000 pairs of 250 tokens.

    60,000 pairs: 6 * 1.4e9 * 250 * 6e4 = 1.26e17 FLOP are 318 s, 0.3 of them 95 s; and 938
    micro-batches of 24 layers save 34 s.
    """

    def forecast(pairs: int) -> Any:
        return compile_forecast(6 * 1.4e9 * 250 * pairs, pairs / 64, 24, 396.0, 1)

    assert forecast(60_000).saved_seconds == pytest.approx(95 + 34, abs=1)
    assert forecast(60_000).pays and not forecast(1_494).pays


class Layer(nn.Module):
    """Two inputs of one width, as a layer's states and positions are."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, hidden)

    def forward(self, states: Tensor, positions: Tensor) -> Tensor:
        return states + self.linear(states * positions)


class Process:
    """What a new process with its own Compilation compiles; torch's caches are the caller's."""

    def __init__(self, root: Path, device: torch.device = CPU) -> None:
        torch._dynamo.reset()
        self.compilation = Compilation(RunStore(str(root)), b"key", device)

    def call(self, hidden: int, *calls: tuple[int, bool]) -> "Process":
        """Rows of these widths through a layer, with gradients or without; then a checkpoint."""
        layer = Layer(hidden)
        self.compilation.compile([layer])
        for width, is_training in calls:
            states, positions = torch.randn(2, 1, width, hidden).unbind()
            with torch.set_grad_enabled(is_training):
                found = layer(states, positions)
            if is_training:
                found.sum().backward()
        self.compilation.keep()
        return self

    def end(self) -> tuple[int, int, int]:
        """Graphs that were traced; parts that were made, and found."""
        counts = self.compilation.counts()
        self.compilation.close()
        names = ("compilations", "compiled_parts", "compiled_parts_found")
        return tuple(int(counts[name]) for name in names)  # type: ignore[return-value]


class Heads(nn.Module):
    """A number of its own is a size of what it computes, as in attention."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads, self.linear = heads, nn.Linear(16, 16)

    def forward(self, states: Tensor) -> Tensor:
        return self.linear(states).unflatten(-1, (self.heads, -1)).sum(-1)


@pytest.mark.slow
def test_numbers_of_a_sharded_layer_are_no_symbols(
    tmp_path: Path, another_machine: Machine
) -> None:
    """So layers of 2 and of 4 heads have a graph each, for rows of any width."""
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        with another_machine(), torch.no_grad():
            process = Process(tmp_path)
            for heads in (2, 4):
                layer = Heads(heads)
                process.compilation.compile([layer])
                fully_shard(layer, mesh=mesh)
                for width in (40, 48):
                    assert layer(torch.ones(1, width, 16)).shape == (1, width, heads)
            assert process.end() == (2, 2, 0)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_layers_that_compute_their_activations_again_are_compiled_too(
    tmp_path: Path, another_machine: Machine
) -> None:
    """With the gradients that they have uncompiled; the layer's input is all that is kept."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=256, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    ids = torch.arange(40).view(1, 40)
    weights = {parameter.data_ptr() for parameter in model.parameters()}

    def passed() -> tuple[int, list[Tensor]]:
        """Numbers kept for the backward pass, and gradients."""
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in weights:
                kept[tensor.data_ptr()] = tensor.numel()
            return tensor

        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(input_ids=ids, use_cache=False).logits.square().sum()
        loss.backward()
        return sum(kept.values()), [
            p.grad.clone() for p in model.parameters() if p.grad is not None
        ]

    most, expected = passed()
    checkpoint_activations(model)
    with another_machine():
        process = Process(tmp_path)
        process.compilation.compile(decoder_layers(model))
        kept, found = passed()
        assert process.end() == (1, 2, 0)
    assert len(found) == len(expected) == 12
    pairs = zip(found, expected, strict=True)
    assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-5) for one, other in pairs)
    assert kept < 0.5 * most, (kept, most)


@pytest.mark.slow
def test_a_compiler_that_fails_is_one_line(tmp_path: Path, another_machine: Machine) -> None:
    def call(compiles_layers: bool) -> None:
        with (
            another_machine(),
            torch._inductor.config.patch({"cpp.cxx": ("/nowhere/c++",)}),
            told_if_not_compiled(compiles_layers),
        ):
            process = Process(tmp_path)
            try:
                process.call(16, (48, EVALUATION))
            finally:
                process.end()

    for compiles_layers, what, cure in (
        (True, "the decoder layers", "train.compile=false"),
        (False, "attention for packed rows", "train.layout=padded"),
    ):
        with pytest.raises(StageFailed) as caught:
            call(compiles_layers)
        (line,) = str(caught.value).splitlines()
        assert line.startswith(f"torch cannot compile {what} here: InvalidCxxCompiler")
        assert line.endswith(f"; set {cure}")
    with pytest.raises(RuntimeError, match="another"), told_if_not_compiled(True):
        raise RuntimeError("another")
    with pytest.raises(torch.OutOfMemoryError, match="full"), told_if_not_compiled(True):
        raise InductorError(torch.OutOfMemoryError("full"), None)


@pytest.mark.slow
def test_what_a_process_did_first_changes_nothing_that_it_compiles(
    tmp_path: Path, another_machine: Machine
) -> None:
    """Validation, then training; and, as after a restart, training in another width first."""
    with another_machine():
        first = Process(tmp_path).call(16, (48, EVALUATION), (40, TRAINING), (48, TRAINING))
        assert first.end() == (2, 3, 0)
    with another_machine():
        resumed = Process(tmp_path).call(16, (48, TRAINING), (40, TRAINING), (40, EVALUATION))
        assert resumed.end() == (2, 0, 3)


@pytest.mark.slow
def test_all_that_was_compiled_is_kept(tmp_path: Path, another_machine: Machine) -> None:
    """Layers of two models before two checkpoints of a process, and of a third in another one."""
    with another_machine():
        two = Process(tmp_path).call(16, (48, EVALUATION)).call(24, (48, EVALUATION))
        assert two.end() == (2, 2, 0)
    store = RunStore(str(tmp_path))
    sizes = [len(store.read_bytes(name)) for name in store.names()]
    assert len(sizes) == 2 and max(sizes) < 1.5 * min(sizes)
    with another_machine():
        assert Process(tmp_path).call(8, (48, EVALUATION)).end() == (1, 1, 0)
    for hidden in (8, 16, 24):
        with another_machine():
            assert Process(tmp_path).call(hidden, (40, EVALUATION)).end() == (1, 0, 1)


@pytest.mark.slow
def test_what_the_machine_knew_already_is_kept_for_others(
    tmp_path: Path, another_machine: Machine
) -> None:
    """Torch's caches hold it from a run on other pairs; nothing is written twice."""
    here, there = tmp_path / "here", tmp_path / "there"
    with another_machine():
        assert Process(here).call(16, (48, EVALUATION)).end() == (1, 1, 0)
        assert Process(there).call(16, (48, EVALUATION)).end() == (1, 0, 1)
        assert Process(there).call(16, (40, EVALUATION)).end() == (1, 0, 1)
    assert len(RunStore(str(there)).names()) == 1
    with another_machine():
        assert Process(there).call(16, (48, EVALUATION)).end() == (1, 0, 1)


@pytest.mark.slow
def test_a_width_that_equals_another_size_is_compiled_for_any_width(
    tmp_path: Path, another_machine: Machine
) -> None:
    """Here that of the hidden states; another process meets other widths first."""
    with another_machine():
        found = Process(tmp_path).call(16, (16, EVALUATION), (48, EVALUATION))
        assert found.end() == (1, 1, 0)
    with another_machine():
        assert Process(tmp_path).call(16, (40, EVALUATION), (16, EVALUATION)).end() == (1, 0, 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("widths", [(16384, 2048), (2048, 16384)])
def test_wide_rows_have_the_graph_of_narrow_ones_on_a_gpu(
    widths: tuple[int, int], tmp_path: Path, another_machine: Machine
) -> None:
    """On both sides of the 10,240 tokens from which torch sums 512 features in another kernel."""
    config = LlamaConfig(
        vocab_size=50, hidden_size=512, intermediate_size=512, num_hidden_layers=1,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=16384,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(CUDA, torch.bfloat16).eval()
    with another_machine():
        process = Process(tmp_path, CUDA)
        process.compilation.compile(decoder_layers(model))
        for width in widths:
            ids = torch.zeros(1, width, dtype=torch.long, device=CUDA)
            model(input_ids=ids, use_cache=False).logits.square().sum().backward()
        assert process.end() == (1, 2, 0)
