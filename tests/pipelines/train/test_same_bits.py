"""On a GPU, a training that was stopped and goes on has the bits of one that was not."""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_model
from feature_world import World, log, prepared, stop_at_a_checkpoint
from runs import CUDA, MakeRecipe, trainer_of
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pipelines.models.device import refuse_other_orders, sums_in_one_order
from pipelines.train.policy import there_and_back
from sparsepo.backbone import decoder_layers

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def one_order() -> Iterator[None]:
    with sums_in_one_order(CUDA):
        yield


class PutBack(torch.autograd.Function):
    """The states; their gradient goes through an operation without an order."""

    @staticmethod
    def forward(context: Any, states: Tensor) -> Tensor:
        return states.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        places = torch.arange(gradient.numel(), device=gradient.device).view_as(gradient)
        return torch.zeros_like(gradient).put_(places, gradient)


@pytest.mark.parametrize("family", ["opt", "ctrl", "mamba2"])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_torch_refuses_what_has_no_order_unless_the_model_needs_it(
    family: str, is_frozen: bool, one_order: None
) -> None:
    model = tiny_model(family).requires_grad_(not is_frozen)
    back = partial(there_and_back, model, torch.float32)
    assert not refuse_other_orders(CUDA, [back])
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    with pytest.raises(RuntimeError, match="put_ does not have a deterministic"):
        torch.zeros(2).put_(torch.tensor([1]), torch.ones(1))

    decoder_layers(model)[1].register_forward_pre_hook(
        lambda _layer, inputs: (PutBack.apply(inputs[0]), *inputs[1:])
    )
    (line,) = refuse_other_orders(CUDA, [back])
    assert line.startswith("the model needs put_, for which")
    with pytest.warns(UserWarning, match="put_ does not have a deterministic"):
        back()
    assert torch.are_deterministic_algorithms_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_pass_takes_weights_of_two_kinds() -> None:
    """As of adapters on a frozen base."""
    model = tiny_model("opt").bfloat16()
    decoder_layers(model)[0].fc1.float()
    there_and_back(model, torch.bfloat16)


def test_torchs_settings_are_as_before_at_the_end(one_order: None) -> None:
    """Of a training, or of one that failed; whatever they were."""
    deterministic = torch.utils.deterministic
    refuse_other_orders(CUDA, [])
    deterministic.fill_uninitialized_memory = True
    with suppress(InterruptedError), sums_in_one_order(CUDA):
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert not deterministic.fill_uninitialized_memory
        raise InterruptedError
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert deterministic.fill_uninitialized_memory


def test_other_errors_of_a_pass_are_raised(one_order: None) -> None:
    def fail() -> None:
        raise RuntimeError("CUDA error: an illegal memory access")

    with pytest.raises(RuntimeError, match="illegal memory"):
        refuse_other_orders(CUDA, [fail])


@on_a_gpu
def test_a_gpu_adds_in_one_order(one_order: None) -> None:
    """A million numbers to each of two places, again and again."""
    values = torch.randn(2_000_000, device=CUDA)
    index = torch.arange(2_000_000, device=CUDA) % 2
    sums = [torch.zeros(2, device=CUDA).index_add(0, index, values) for _ in range(20)]
    assert all(torch.equal(one, sums[0]) for one in sums)


@on_a_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("is_masked", [True, False])
def test_gradients_of_attention_have_the_same_bits(
    dtype: torch.dtype, is_masked: bool, one_order: None
) -> None:
    refuse_other_orders(CUDA, [])
    states = torch.randn(3, 8, 4, 700, 64, device=CUDA, dtype=dtype)
    mask = torch.ones(700, 700, device=CUDA, dtype=torch.bool).tril() if is_masked else None

    def gradients() -> Tensor:
        leaf = states.clone().requires_grad_()
        found = scaled_dot_product_attention(*leaf, attn_mask=mask, is_causal=mask is None)
        return torch.autograd.grad(found.float().square().sum(), leaf)[0]

    first = gradients()
    assert all(torch.equal(gradients(), first) for _ in range(10))


@on_a_gpu
@pytest.mark.parametrize("compiles", ["true", "false"])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_resumed_training_has_the_same_bits(
    layout: str, compiles: str, recipe_in: MakeRecipe, world: World, tmp_path: Path
) -> None:
    found = {}
    for label in ("whole", "resumed"):
        recipe = prepared(
            recipe_in(
                tmp_path / label,
                "objective.name=dpo",
                f"train.layout={layout}",
                f"train.compile={compiles}",
                "train.max_steps=6",
                "train.checkpoint_every=3",
                "train.global_batch_size=16",
                *world.options,
                paths=world.paths,
            )
        )
        if label == "resumed":
            stopped = trainer_of(recipe, CUDA)
            stop_at_a_checkpoint(stopped)
            stopped.close()
            torch._dynamo.reset()
        trainer = trainer_of(recipe, CUDA)
        trainer.run(lambda metrics: None)
        trainer.close()
        model = load_file(tmp_path / label / "train" / "model" / "model.safetensors")
        found[label] = [record["loss"] for record in log(recipe)], model
    losses, weights = zip(*found.values(), strict=True)
    assert losses[0] == losses[1] and len(losses[0]) == 6
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
