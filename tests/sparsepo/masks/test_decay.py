"""What of a learned mask decays: by names, and by a step of AdamW against its equation."""

import pytest
import torch

from sparsepo.masks import LearnedMasks
from sparsepo.masks.decay import decay_groups

# Names in the released code -> ours, and whether transformers' rule (no bias, no LayerNorm) lets
# them decay. A mixer is a Linear without bias there.
LINEAR = {"scores.weight": True, "scores.bias": False}
TWO_LAYERS = {
    "scores.ff1_weight": True, "scores.ff1_bias": False,
    "scores.ff2_weight": True, "scores.ff2_bias": False,
}  # fmt: skip
ALL_LAYERS = {"layer_norm.weight": False, "layer_norm.bias": False, "mixer": True}
DECAYS = {
    "simple_last": LINEAR,
    "ml_last": TWO_LAYERS,
    "simple_all": LINEAR | ALL_LAYERS,
    "ml_all": TWO_LAYERS | ALL_LAYERS,
}


@pytest.mark.parametrize("sharing", ["common", "independent"])
@pytest.mark.parametrize("architecture", DECAYS)
def test_maps_decay_and_biases_and_norms_do_not(architecture: str, sharing: str) -> None:
    masks = LearnedMasks(architecture, sharing, 8, 3, weights="released")  # type: ignore[arg-type]
    names = {id(p): name for name, p in masks.named_parameters()}
    found = {
        names[id(p)]: group["weight_decay"]
        for group in decay_groups(masks, 0.01)
        for p in group["params"]
    }
    assert set(found) == {name for name, p in masks.named_parameters() if p.requires_grad}
    for name, decay in found.items():
        own = next(known for known in DECAYS[architecture] if name.endswith(f".{known}"))
        assert decay == (0.01 if DECAYS[architecture][own] else 0.0), name


def test_one_step_of_adamw_by_hand() -> None:
    """The first step of AdamW with gradient g: p (1 - lr d) - lr g / (|g| + eps), d 0.1 for maps
    and 0 for biases and norms: both corrected moments are the gradient's own.
    """
    torch.manual_seed(0)
    masks = LearnedMasks("simple_all", "common", 8, 3, weights="released")
    trained = {name: p for name, p in masks.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.uniform_(0.5, 1.5)
    before = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.AdamW(decay_groups(masks, 0.1), lr=0.02, eps=1e-6)
    for parameter in trained.values():
        parameter.grad = torch.full_like(parameter, -3.0)
    optimizer.step()
    step = 0.02 * 3.0 / (3.0 + 1e-6)
    for name, parameter in trained.items():
        kept = 1.0 if "bias" in name or "layer_norm" in name else 1 - 0.02 * 0.1
        torch.testing.assert_close(parameter.detach(), before[name] * kept + step, msg=name)


def test_frozen_parameters_are_in_no_group() -> None:
    """Centred weights freeze biases; what the controller moves is never the optimizer's."""
    masks = LearnedMasks("simple_last", "common", 8, 3, target_sparsity=0.5, weights="centred")
    (group,) = decay_groups(masks, 0.01)
    names = {id(p): name for name, p in masks.named_parameters()}
    assert [names[id(p)].rpartition(".")[2] for p in group["params"]] == ["weight"]
