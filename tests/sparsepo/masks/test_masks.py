"""Token masks: learned, frozen and random; by hand, against numerical gradients, under the
sparsity controller.
"""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st

from sparsepo import (
    TDPO1,
    ActivationMask,
    CollapseWatch,
    ExternalMask,
    Features,
    LearnedMasks,
    RandomMask,
    SparsePO,
    TokenScores,
    UniformMask,
)
from sparsepo.masks import LEARNED_MASKS, activation_weights, keep_heaviest
from sparsepo.masks.base import rescale_per_response
from sparsepo.masks.learned import LearnedMask

INDEX = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3])
OPTIONS = [
    (architecture, layer, mixer)
    for architecture, layer, mixer in itertools.product(
        LEARNED_MASKS, ("relu", "none", "rescale"), ("relu", "none", "rescale")
    )
    if ("last" not in architecture or mixer == "relu")
    and (architecture != "binary_last" or layer == "relu")
    and (architecture != "binary_all" or mixer == "relu")
]


def learned(
    architecture: str = "simple_last", sharing: str = "common", **options: object
) -> LearnedMasks:
    torch.manual_seed(1)
    return LearnedMasks(architecture, sharing, 16, 2, initializer_range=0.5, **options)  # type: ignore[arg-type]


def states(tokens: int = len(INDEX), seed: int = 0) -> Features:
    g = torch.Generator().manual_seed(seed)
    return Features(
        reference_hidden=torch.randn(tokens, 16, generator=g, dtype=torch.float64),
        reference_layers=torch.randn(tokens, 2, 16, generator=g, dtype=torch.float64),
    )


def network(masks: LearnedMasks) -> LearnedMask:
    assert masks.common is not None
    return masks.common


@pytest.mark.parametrize(("architecture", "layer", "mixer"), OPTIONS)
@pytest.mark.parametrize("sharing", ["common", "independent"])
def test_saved_masks_come_back_the_same(
    tmp_path: Path, architecture: str, layer: str, mixer: str, sharing: str
) -> None:
    masks = learned(architecture, sharing, layer_activation=layer, mixer_activation=mixer).double()
    for name, value in masks.named_parameters():
        if name.endswith("shift"):
            value.data.fill_(0.25)
    weights = masks(states(), INDEX, 2)
    masks.float().save_pretrained(tmp_path)
    again = LearnedMasks.from_pretrained(tmp_path)
    assert again.config == masks.config
    other = again.double()(states(), INDEX, 2)
    torch.testing.assert_close(other.reward, weights.reward, atol=1e-6, rtol=0)
    torch.testing.assert_close(other.kl, weights.kl, atol=1e-6, rtol=0)
    final = mixer if "all" in architecture else layer
    assert masks.signed == (final == "none")
    assert bool((weights.reward >= 0).all()) or masks.signed
    assert torch.equal(weights.reward, weights.kl) == (sharing == "common")


def test_what_cannot_be_loaded_or_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="mask_config.json"):
        LearnedMasks.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="'reference_layers'.*sparsepo.ReferenceModel"):
        learned("simple_all")(Features(), INDEX, 2)
    with pytest.raises(ValueError, match="'external_weights'.*comes from the data"):
        ExternalMask()(Features(), INDEX, 2)
    with pytest.raises(ValueError, match=r"states end in \(8,\), the mask was built for \(16,\)"):
        learned()(Features(reference_hidden=torch.zeros(8, 8)), INDEX, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "deep"}, "mask architecture 'deep' is not one of simple_last"),
        ({"layer_activation": "gelu"}, "layer_activation='gelu' is not one of relu, none, rescale"),
        (
            {"mixer_activation": "none"},
            "mixer_activation='none': simple_last reads one layer and has no mixer",
        ),
        ({"architecture": "binary_all", "mixer_activation": "none"}, "binary_all ends in sign"),
        ({"dropout": 1.0}, r"dropout=1.0: must be in \[0, 1\)"),
        ({"weights": "safe"}, "weights='safe' is not one of released, centred"),
        ({"target_sparsity": 0.0}, r"target_sparsity=0.0: must be in \(0, 1\)"),
        (
            {"target_sparsity": 0.5, "layer_activation": "none"},
            "only a mask that ends in relu has exact zeros",
        ),
    ],
)
def test_options_that_are_wrong_or_would_be_ignored_are_refused(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        learned(**options)


def test_linear_scores_by_hand() -> None:
    """relu(h . w + b) with w = (1, -1), b = 0.5: (2, 1) -> 1.5, (0, 3) -> 0; binary: 1, 0; none:
    1.5, -2.5; shift -1: 0.5, 0.
    """
    index, hidden = torch.tensor([0, 1]), torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    for architecture, activation, shift, expected in (
        ("simple_last", "relu", 0.0, [1.5, 0.0]),
        ("binary_last", "relu", 0.0, [1.0, 0.0]),
        ("simple_last", "none", 0.0, [1.5, -2.5]),
        ("simple_last", "relu", -1.0, [0.5, 0.0]),
    ):
        masks = LearnedMasks(architecture, "common", 2, 1, layer_activation=activation)  # type: ignore[arg-type]
        with torch.no_grad():
            network(masks).scores.weight.copy_(torch.tensor([[1.0, -1.0]]))
            network(masks).scores.bias.fill_(0.5)
            network(masks).shift.fill_(shift)
        assert masks(Features(reference_hidden=hidden), index, 1).reward.tolist() == expected


def test_two_layers_of_states_by_hand() -> None:
    """LN of (3, 1) is (1, -1) and of (1, 3) is (-1, 1). w_1 = (1, 0), w_2 = (0, 2): scores 1 and
    2; mixer (1, -0.25): 0.5.
    """
    masks = LearnedMasks("simple_all", "common", 2, 2, norm_eps=0.0)
    with torch.no_grad():
        network(masks).scores.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        network(masks).mixer.copy_(torch.tensor([1.0, -0.25]))
    layers = torch.tensor([[[3.0, 1.0], [1.0, 3.0]]])
    assert masks(Features(reference_layers=layers), torch.tensor([0]), 1).reward.tolist() == [0.5]


@pytest.mark.parametrize("name", ["ml_last", "ml_all"])
def test_two_maps_in_a_row_equal_two_linear_modules(name: str) -> None:
    masks = learned(name).double()
    net, features = network(masks), states()
    for bias in (net.scores.ff1_bias, net.scores.ff2_bias):
        bias.data.normal_()
    assert net.scores.ff1_weight.shape[1] == 200
    found = []
    for i in range(net.scores.ff1_weight.shape[0]):
        hidden = (
            net.layer_norm(features.reference_layers[:, i])
            if name == "ml_all"
            else features.reference_hidden
        )
        inner = torch.nn.functional.linear(hidden, net.scores.ff1_weight[i], net.scores.ff1_bias[i])
        found.append(
            torch.nn.functional.linear(
                inner, net.scores.ff2_weight[i][None], net.scores.ff2_bias[i][None]
            ).squeeze(1)
        )
    expected = torch.stack(found, 1).relu() @ net.mixer if name == "ml_all" else found[0]
    torch.testing.assert_close(masks(features, INDEX, 2).reward, expected.relu())


def frozen_rescale(values: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    return (values - low) / (high - low)


@pytest.mark.parametrize("weights", ["released", "centred"])
@pytest.mark.parametrize(("architecture", "layer", "mixer"), OPTIONS)
def test_gradients_to_the_parameters(
    architecture: str, layer: str, mixer: str, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numerical against analytical, float64.

    Minimum and maximum of rescale are constants: held fixed for the comparison.

    Binary masks are compared before the sign, whose gradient is the identity's.
    """
    masks = learned(
        architecture, layer_activation=layer, mixer_activation=mixer, weights=weights
    ).double()
    if weights == "centred":  # away from the start, where every score is the same
        with torch.no_grad():
            for name in ("mixer", "scores.weight", "scores.ff2_weight"):
                if name in dict(network(masks).named_parameters()):
                    network(masks).get_parameter(name).add_(
                        0.2 * torch.randn_like(network(masks).get_parameter(name))
                    )
    network(masks).shift.data.fill_(
        0.3
    )  # away from relu's kink at 0, where the smallest rescaled token would sit
    features, fixed = states(), {}
    names = [
        name
        for name, value in masks.named_parameters()
        if value.requires_grad and not name.endswith("ff1_weight")
    ]
    if architecture.startswith("ml"):
        names = [
            name for name in names if not name.endswith("ff1_bias")
        ]  # 200 x as many; their product is checked above

    def remembered(values: torch.Tensor, index: torch.Tensor, num_responses: int) -> torch.Tensor:
        key = values.ndim
        if key not in fixed:
            rows = [values[index == r].detach() for r in range(num_responses)]
            low, high = (
                torch.stack([part.amin(0) for part in rows]),
                torch.stack([part.amax(0) for part in rows]),
            )
            fixed[key] = (low[index], torch.where(high > low, high, low + 1)[index])
        return frozen_rescale(values, *fixed[key])

    monkeypatch.setattr("sparsepo.masks.learned.rescale_per_response", remembered)

    def run(*values: torch.Tensor) -> torch.Tensor:
        given = dict(zip(names, values, strict=True))
        weights = torch.func.functional_call(masks, given, (features, INDEX, 2)).reward
        if not architecture.startswith("binary"):
            return weights
        hard = weights.detach()
        with torch.no_grad():
            soft = torch.func.functional_call(
                masks, given, (features, INDEX, 2)
            ).reward * 0 + scores_of(masks, given, features)
        return weights - hard + soft  # the value of the scores, the gradient of the mask

    parameters = dict(masks.named_parameters())
    assert torch.autograd.gradcheck(
        run, [parameters[n].detach().clone().requires_grad_() for n in names], atol=1e-6
    )


def scores_of(
    masks: LearnedMasks, parameters: dict[str, torch.Tensor], features: Features
) -> torch.Tensor:
    inner = {name.removeprefix("common."): value for name, value in parameters.items()}
    net = network(masks)
    values = (
        features.reference_layers
        if net.architecture.reads_all_layers
        else features.reference_hidden
    )
    return torch.func.functional_call(net, inner, (values, INDEX, 4))[1]


def test_rescale_gradient_treats_the_extremes_as_constants() -> None:
    """d/dx of (x - 1) / (3 - 1) is 1/2 for every token of the response, its extremes included."""
    values = torch.tensor([1.0, 3.0, 2.0], requires_grad=True)
    rescale_per_response(values, torch.tensor([0, 0, 0]), 1).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.5, 0.5, 0.5]


def test_binary_masks_get_a_gradient_through_the_loss() -> None:
    """The released code's is zero everywhere, so they never learn there."""
    masks = learned("binary_last").double()
    weights = masks(states(), INDEX, 2)
    ones = torch.ones(len(INDEX), dtype=torch.float64)
    scores = TokenScores(
        -ones, -2 * ones, 0.3 * ones, weights.reward, weights.kl, INDEX, 2, masks.l1_shares
    )
    SparsePO()(scores).losses.sum().backward()
    gradient = network(masks).scores.weight.grad
    assert gradient is not None
    assert float(gradient.abs().sum()) > 0


def test_dropout_acts_in_training_only() -> None:
    masks = learned(dropout=0.5, layer_activation="none").double()
    calm = masks.eval()(states(), INDEX, 2).reward
    torch.testing.assert_close(calm, masks(states(), INDEX, 2).reward)
    torch.manual_seed(0)
    drawn = torch.stack([masks.train()(states(), INDEX, 2).reward for _ in range(4000)])
    assert (drawn[0] - drawn[1]).abs().max() > 0.1
    torch.testing.assert_close(
        drawn.mean(0), calm, atol=0.2, rtol=0
    )  # scaled so that the mean stays


@pytest.mark.parametrize("sharing", ["common", "independent"])
@pytest.mark.parametrize("terms", ["both", "reward", "kl"])
def test_unmasked_terms_keep_weight_one_and_carry_no_penalty(sharing: str, terms: str) -> None:
    masks = learned(sharing=sharing, terms=terms)
    weights = masks(states(), INDEX, 2)
    assert (weights.reward == 1).all() == (terms == "kl")
    assert (weights.kl == 1).all() == (terms == "reward")
    half = sharing == "common" and terms == "both"
    assert masks.l1_shares == (
        (0.5, 0.5) if half else (float(terms != "kl"), float(terms != "reward"))
    )


def train(
    target: float,
    seed: int,
    architecture: str,
    sharing: str,
    weights: str = "released",
    steps: int = 60,
) -> list[float]:
    """Zero fractions on fixed data while Adam moves the mask under an L1 penalty that alone
    would kill it; last 20 steps.
    """
    g = torch.Generator().manual_seed(seed)
    features = Features(
        reference_hidden=torch.randn(800, 32, generator=g) * 3 + torch.randn(32, generator=g),
        reference_layers=torch.randn(800, 12, 32, generator=g) * 3
        + torch.randn(12, 32, generator=g),
    )
    index = torch.arange(800) // 25
    torch.manual_seed(seed)
    masks = LearnedMasks(architecture, sharing, 32, 12, target_sparsity=target, weights=weights)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(
        [p for p in masks.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.01
    )
    policy, reference, kl = (torch.rand(800, generator=g) for _ in range(3))
    objective, found = SparsePO(0.1, 0.01, 0.01), []
    for _ in range(steps):
        found_weights = masks(features, index, 16)
        output = objective(
            TokenScores(
                policy,
                reference,
                kl,
                *found_weights[:2],
                index,
                16,
                masks.l1_shares,
                mask_statistics=found_weights.statistics,
            )
        )
        optimizer.zero_grad()
        output.losses.mean().backward()
        optimizer.step()
        record = {key: float(total / count) for key, (total, count) in output.metrics.items()}
        masks.control(record)
        found += [record["masks/reward_zero_fraction"], record["masks/kl_zero_fraction"]]
    return found[-40:]


SEEDS = [
    pytest.param(range(1), id="one seed"),
    pytest.param(range(1, 20), id="the rest of twenty", marks=pytest.mark.exhaustive),
]


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("target", [0.2, 0.5, 0.8])
@pytest.mark.parametrize(
    ("architecture", "sharing"),
    [("simple_all", "common"), ("simple_last", "independent"), ("binary_all", "independent")],
)
def test_the_target_is_reached_and_kept_from_every_seed(
    target: float, architecture: str, sharing: str, seeds: range
) -> None:
    for seed in seeds:
        off = max(abs(fraction - target) for fraction in train(target, seed, architecture, sharing))
        assert off < 0.05, f"seed {seed}: {off:.3f} away"


@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param(range(1), id="one seed"),
        pytest.param(range(1, 5), id="the rest of five", marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.parametrize("target", [0.2, 0.5, 0.8])
@pytest.mark.parametrize(
    ("architecture", "sharing"), [("simple_all", "common"), ("simple_last", "independent")]
)
def test_centred_weights_keep_the_target_too(
    target: float, architecture: str, sharing: str, seeds: range
) -> None:
    """All scores start equal, so the threshold finds its place later; a token that crosses it
    jumps between 0 and 1.
    """
    for seed in seeds:
        off = max(
            abs(fraction - target)
            for fraction in train(target, seed, architecture, sharing, "centred", steps=90)
        )
        assert off < 0.12, f"seed {seed}: {off:.3f} away"


@pytest.mark.parametrize(("architecture", "layer", "mixer"), OPTIONS)
def test_a_bias_is_trained_where_it_says_something(
    architecture: str, layer: str, mixer: str
) -> None:
    """Centring takes out what moves all scores of a response alike; left to Adam, the rounding
    noise of such a bias's gradient becomes full steps.
    """
    masks = learned(
        architecture, layer_activation=layer, mixer_activation=mixer, weights="centred"
    ).double()
    net, features = network(masks), states()
    read = features.reference_layers if "all" in architecture else features.reference_hidden
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in masks.parameters():  # no map is zero any more
            value.copy_(torch.randn(value.shape, generator=g))
        for name, bias in net.scores.named_parameters():
            if name.endswith("bias"):
                before = net(read, INDEX, 4)[1]
                bias -= torch.linspace(0.2, 0.9, bias.numel()).view(bias.shape)
                moved = float((net(read, INDEX, 4)[1] - before).abs().max())
                assert bias.requires_grad == (moved > 1e-9), (name, moved)
    assert all(p.requires_grad for p in learned(architecture).parameters() if p.numel() > 2)


def test_centred_weights_by_hand() -> None:
    """w = (1, 0): scores 0.5, -0.5, 3 (mean 1) and 2 alone: less the mean -0.5, -1.5, 2 and 0.

    Without a target 1 more, in [0, 2]. With one, a shift of -0.25 leaves the third alone, one of
    0.75 the first (0.25 above) and the single token (0.75 above) too; both weigh 1 more than that.
    Binary: 1 where the weight is above zero.
    """
    index, hidden = (
        torch.tensor([0, 0, 0, 1]),
        torch.tensor([[0.5, 9.0], [-0.5, 9.0], [3.0, 9.0], [2.0, 9.0]]),
    )
    for architecture, target, shift, expected in (
        ("simple_last", None, 0.0, [0.5, 0.0, 2.0, 1.0]),
        ("simple_last", 0.5, -0.25, [0.0, 0.0, 2.0, 0.0]),
        ("simple_last", 0.5, 0.75, [1.25, 0.0, 2.0, 1.75]),
        ("binary_last", None, 0.0, [1.0, 0.0, 1.0, 1.0]),
        ("binary_last", 0.5, 0.75, [1.0, 0.0, 1.0, 1.0]),
    ):
        masks = LearnedMasks(
            architecture, "common", 2, 1, target_sparsity=target, weights="centred"
        )
        with torch.no_grad():
            network(masks).scores.weight.copy_(torch.tensor([[1.0, 0.0]]))
            network(masks).scores.bias.fill_(40.0)
            network(masks).shift.fill_(shift)
        assert masks(Features(reference_hidden=hidden), index, 1).reward.tolist() == pytest.approx(
            expected, abs=1e-5
        )


@pytest.mark.parametrize("target", [None, 0.5])
@pytest.mark.parametrize("architecture", ["simple_last", "simple_all", "binary_last"])
def test_centred_weights_do_not_hide_what_is_not_finite(
    architecture: str, target: float | None
) -> None:
    """A score of infinity less a mean of infinity is no number, and no zero either."""
    masks = learned(architecture, weights="centred", target_sparsity=target)
    with torch.no_grad():
        (
            network(masks).mixer if architecture == "simple_all" else network(masks).scores.weight
        ).fill_(torch.inf)
    assert bool(masks(states(), INDEX, 2).reward.isnan().any())


@pytest.mark.parametrize("sharing", ["common", "independent"])
@pytest.mark.parametrize("target", [None, 0.5])
@pytest.mark.parametrize("architecture", list(LEARNED_MASKS))
def test_centred_masks_start_as_tdpo1_and_can_leave_it(
    architecture: str, target: float | None, sharing: str
) -> None:
    """Loss and policy gradient to the last bit; every mask has a gradient."""
    g = torch.Generator().manual_seed(2)
    masks = learned(architecture, sharing, weights="centred", target_sparsity=target).double()
    policy, reference, kl = (torch.rand(8, generator=g, dtype=torch.float64) for _ in range(3))
    found = []
    for objective in (SparsePO(0.1), TDPO1(0.1)):
        leaf, weights = policy.clone().requires_grad_(), masks(states(), INDEX, 2)
        losses = objective(
            TokenScores(leaf, reference, kl, weights.reward, weights.kl, INDEX, 2)
        ).losses
        losses.sum().backward()
        found.append((losses.detach(), leaf.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    for name, part in (("common", masks.common), ("reward", masks.reward), ("kl", masks.kl)):
        if part is not None:
            assert (
                max(float(p.grad.abs().max()) for p in part.parameters() if p.grad is not None)
                > 1e-4
            ), name


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=2, max_size=6).filter(lambda n: len(n) % 2 == 0),
    scale=st.floats(0.01, 100),
    pushed=st.floats(-1000, 1000),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("architecture", ["simple_last", "simple_all", "ml_last"])
def test_centred_weights_are_bounded_and_never_dead_whatever_the_parameters(
    architecture: str, lengths: list[int], scale: float, pushed: float, seed: int
) -> None:
    """Within [0, 2], and the largest of every response is 1 at least: the highest score is not
    below their mean.
    """
    index = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    masks = LearnedMasks(architecture, "common", 16, 2, weights="centred").double()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network(masks).named_parameters():
            if value.requires_grad:
                value.copy_(
                    scale * torch.randn(value.shape, generator=g)
                    + (pushed if name.endswith("bias") else 0.0)
                )
    weights = masks(states(len(index), seed), index, len(lengths) // 2).reward
    assert bool(((weights >= 0) & (weights <= 2)).all())
    assert all(float(weights.detach()[index == r].max()) >= 1 - 1e-6 for r in range(len(lengths)))


def dead_runs(weights: str, seeds: int = 12) -> int:
    """Seeds of which a mask is reported dead.

    Near the reference, Adam makes full steps of gradients that are mostly noise.

    Hidden states share a direction, as a model's do: what moves along it moves every token's score.
    """
    dead = 0
    for seed in range(seeds):
        g = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        masks = LearnedMasks("simple_last", "independent", 32, 1, weights=weights)  # type: ignore[arg-type]
        optimizer = torch.optim.AdamW(
            [p for p in masks.parameters() if p.requires_grad], lr=5e-3, eps=1e-6
        )
        common, index = torch.randn(32, generator=g), torch.arange(400) // 25
        watch, told = CollapseWatch(("reward", "kl")), []
        for _ in range(45):
            hidden = torch.randn(400, 32, generator=g) + 2 * common
            noise, kl = torch.randn(400, generator=g), torch.rand(400, generator=g)
            found = masks(Features(reference_hidden=hidden), index, 8)
            output = SparsePO(0.1)(
                TokenScores(0.3 * noise, torch.zeros(400), kl, *found[:2], index, 8)
            )
            optimizer.zero_grad()
            output.losses.mean().backward()
            optimizer.step()
            told += watch.observe(
                {
                    key: float(total / count)
                    for key, (total, count) in output.metrics.items()
                    if float(count)
                }
            )
        dead += any("zero" in line for line in told)
    return dead


@pytest.mark.slow
def test_seeds_whose_released_mask_dies_keep_a_centred_one() -> None:
    assert dead_runs("released") >= 3
    assert dead_runs("centred") == 0


def test_masks_saved_before_there_was_a_choice_are_released_ones(tmp_path: Path) -> None:
    masks = learned()
    masks.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "mask_config.json").read_text())
    assert config.pop("weights") == "released"
    (tmp_path / "mask_config.json").write_text(json.dumps(config))
    assert torch.equal(
        LearnedMasks.from_pretrained(tmp_path).float()(states(), INDEX, 2).reward,
        masks(states(), INDEX, 2).reward,
    )


def test_without_a_target_nothing_is_controlled() -> None:
    masks = learned()
    masks.control({"masks/reward_zero_fraction": 1.0})
    assert float(network(masks).shift) == 0


def test_the_shift_is_no_business_of_the_optimizer() -> None:
    masks = learned("simple_all", "independent", target_sparsity=0.5)
    assert {n for n, p in masks.named_parameters() if not p.requires_grad} == {
        f"{term}.{name}" for term in ("reward", "kl") for name in ("shift", "drift", "window")
    }
    assert {"reward.shift", "kl.shift"} <= set(masks.state_dict())


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    fraction=st.floats(0.01, 1),
    seed=st.integers(0, 99),
)
def test_keep_heaviest_keeps_the_heaviest(lengths: list[int], fraction: float, seed: int) -> None:
    """Against sorting each response in Python; weights from a few values, so that ties occur."""
    weights = torch.randint(
        1, 5, (sum(lengths),), generator=torch.Generator().manual_seed(seed)
    ).float()
    index = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    found = keep_heaviest(weights, index, len(lengths) + 1, fraction).split(lengths)
    for part, kept in zip(weights.split(lengths), found, strict=True):
        n = math.ceil(fraction * len(part) - 1e-9)
        best = sorted(range(len(part)), key=lambda i, part=part: (-float(part[i]), i))[:n]
        assert kept.tolist() == [float(part[i]) if i in best else 0.0 for i in range(len(part))]


def test_seven_percent_of_a_hundred_are_seven_not_eight() -> None:
    """0.07 * 100 is 7.000000000000001 in floating point."""
    assert (
        int(
            (
                keep_heaviest(torch.rand(100) + 1, torch.zeros(100, dtype=torch.long), 1, 0.07) > 0
            ).sum()
        )
        == 7
    )


def test_random_weights_follow_the_pair_not_the_batch() -> None:
    """Same weights in another batch and order; uniform; other seed, other weights; the two
    responses differ.
    """
    keys, index = torch.tensor([2**62, -7, 12345]), torch.repeat_interleave(torch.arange(6), 400)
    both = RandomMask(3)(Features(pair_keys=keys), index, 3).reward
    alone = RandomMask(3)(Features(pair_keys=keys[1:2]), index[:800], 1).reward
    assert torch.equal(both[800:1600], alone)
    assert not torch.equal(both[:400], both[400:800])
    assert not torch.equal(both, RandomMask(4)(Features(pair_keys=keys), index, 3).reward)
    assert 0 <= float(both.min()) < 0.01 and 0.99 < float(both.max()) < 1
    counts = torch.histc(both, 8, 0, 1)
    assert (
        float(((counts - 300) ** 2 / 300).sum()) < 24.3
    )  # chi-squared, 7 degrees of freedom, 0.1 %
    lagged = torch.corrcoef(torch.stack([both[:-1], both[1:]]))[0, 1]
    assert abs(float(lagged)) < 0.06


def test_frozen_masks_weigh_the_terms_asked_for() -> None:
    given = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0, 1.5, 0.25, 4.0])
    for mask, features in (
        (ExternalMask, Features(external_weights=given)),
        (ActivationMask, Features(activation_mask=given)),
    ):
        both = mask()(features, INDEX, 2)
        assert torch.equal(both.reward, given) and torch.equal(both.kl, given)
        kept = mask("kl", keep_fraction=0.5)(features, INDEX, 2)
        assert (kept.reward == 1).all()
        assert kept.kl.tolist() == [0.0, 2.0, 1.0, 0.0, 3.0, 1.5, 0.0, 4.0]
    with pytest.raises(ValueError, match=r"keep_fraction=1.5: must be in \(0, 1\]"):
        RandomMask(keep_fraction=1.5)
    assert UniformMask()(Features(), INDEX, 2).reward.tolist() == [1.0] * 8


def test_sides_keep_fraction_and_normalise_act_in_this_order() -> None:
    """By hand. Chosen 0.5, 2, 1 keep 2, 1: mean one 4/3, 2/3, sum of length 2, 1.

    Rejected 1, 3, 0.5, 0.5 keep half of four, 1 and 3: 0.5, 1.5 and 1, 3. A side that is not
    weighed stays at 1, whatever else is asked for.
    """
    index = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    features = Features(external_weights=torch.tensor([0.5, 2.0, 1.0, 1.0, 3.0, 0.5, 0.5]))
    expected = {
        "none": ([0.0, 2.0, 1.0], [1.0, 3.0, 0.0, 0.0]),
        "mean_one": ([0.0, 4 / 3, 2 / 3], [0.5, 1.5, 0.0, 0.0]),
        "sum_length": ([0.0, 2.0, 1.0], [1.0, 3.0, 0.0, 0.0]),
    }
    for how, (chosen, rejected) in expected.items():
        for sides, weights in (
            ("both", chosen + rejected),
            ("chosen", chosen + [1.0] * 4),
            ("rejected", [1.0] * 3 + rejected),
        ):
            mask = ExternalMask(keep_fraction=0.5, sides=sides, normalise=how)
            found = mask(features, index, 1)
            torch.testing.assert_close(found.reward, torch.tensor(weights))
            assert torch.equal(found.kl, found.reward)


def test_signed_weights_are_kept_and_scaled_by_absolute_value() -> None:
    """-3, 1, 0.5 keep -3 and 1, whose absolute mean is 2; nothing but zeros stays zeros."""
    index = torch.tensor([0, 0, 0, 1, 1])
    features = Features(activation_mask=torch.tensor([-3.0, 1.0, 0.5, 0.0, 0.0]))
    mask = ActivationMask(keep_fraction=0.5, signed=True, normalise="mean_one")
    assert mask(features, index, 1).reward.tolist() == [-1.5, 0.5, 0.0, 0.0, 0.0]
    assert mask.signed and not ActivationMask().signed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"terms": "none"}, "terms='none' is not one of both, reward, kl"),
        ({"sides": "left"}, "sides='left' is not one of both, chosen, rejected"),
        ({"normalise": "sum"}, "normalise='sum' is not one of none, mean_one, sum_length"),
    ],
)
def test_options_of_frozen_masks_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandomMask(**options)


def test_rescaling_is_per_response_and_constants_become_one() -> None:
    index = torch.tensor([0, 0, 0, 1, 2, 2])
    values = torch.tensor([1.0, 3.0, 2.0, 5.0, 4.0, 4.0])
    assert rescale_per_response(values, index, 4).tolist() == [0.0, 1.0, 0.5, 1.0, 1.0, 1.0]
    columns = torch.stack([values, -values], 1)
    assert rescale_per_response(columns, index, 4)[:, 1].tolist() == [1.0, 0.0, 0.5, 1.0, 1.0, 1.0]


def test_types_weigh_the_same_whatever_their_number_of_hooks() -> None:
    """attn has two layers (mean 0.5), mlp one (1.0): mean over types 0.75 for the first token,
    by hand for both tokens.
    """
    index = torch.tensor([0, 0])
    recorded = {
        "attn.q": [torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])],
        "mlp.post_act": [torch.tensor([2.0, 1.0])],
    }
    assert activation_weights(recorded, index, 1, "zn_rescale", 10).tolist() == [0.75, 0.25]
    raw = {"mlp.x": [torch.tensor([2.0, 4.0])], "logits": [torch.tensor([1.0, 1.0])]}
    assert activation_weights(raw, index, 1, "none", 3).tolist() == [
        pytest.approx((2 + 3 * 1) / 4),
        pytest.approx((4 + 3 * 1) / 4),
    ]


def test_collapse_is_told_once_after_twenty_steps_in_a_row() -> None:
    def record(zeros: float, spread: float) -> dict[str, float]:
        return {"masks/reward_zero_fraction": zeros, "masks/reward_spread": spread}

    dead, alive, flat = record(0.991, 0.1), record(0.99, 0.3), record(0.0, 0.0)
    watch = CollapseWatch(("reward",))
    assert [watch.observe(dead) for _ in range(19)] == [[]] * 19
    assert watch.observe(alive) == []  # the count starts again
    resumed = CollapseWatch(("reward",), watch.streaks)
    told = [resumed.observe(dead) for _ in range(60)]
    assert [i for i, warnings in enumerate(told) if warnings] == [19]
    assert (
        "reward mask has been zero on more than 99 %" in told[19][0]
        and "weights='centred'" in told[19][0]
        and "target_sparsity" in told[19][0]
        and "l1_reward" in told[19][0]
    )
    constant = [resumed.observe(flat) for _ in range(30)]
    assert [i for i, warnings in enumerate(constant) if warnings] == [19]
    assert "one value on all tokens" in constant[19][0]
