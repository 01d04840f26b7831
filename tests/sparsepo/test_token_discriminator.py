"""The discriminator's states and probabilities against plain forwards, and its files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_model
from tiny_families import draw_pairs

from sparsepo import (
    ReferenceModel,
    TokenDiscriminator,
    TokenizedPair,
    enable_packing,
    packed_layout,
    padded_layout,
)


def alone(model: Any, pairs: list[TokenizedPair], layer: int) -> torch.Tensor:
    """What a layer makes of every scored token itself, one response at a time."""
    found = []
    for pair in pairs:
        for response, places in zip(pair.responses(), pair.scored_places(), strict=True):
            ids = torch.tensor([[*pair.prompt, *response]])
            with torch.no_grad():
                states = model(ids, output_hidden_states=True).hidden_states[layer][0]
            found.append(states[len(pair.prompt) + torch.from_numpy(places)])
    return torch.cat(found)


def drawn(layer: int, size: int) -> TokenDiscriminator:
    torch.manual_seed(3)
    made = TokenDiscriminator(layer, size)
    torch.nn.init.normal_(made.map.weight)
    torch.nn.init.normal_(made.map.bias)
    return made


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "mixtral", "gpt_neox"])
def test_states_are_those_that_have_read_the_token_in_every_layout(family: str) -> None:
    """Pairs with one response, of one token, and with tokens that are not scored."""
    model = tiny_model(family)
    last = model.config.num_hidden_layers
    pairs = [
        *draw_pairs(4, vocabulary=29, has_single=True),
        TokenizedPair([3, 4], [5, 6, 7, 8, 9], [10, 11], (0, 2), (1, 2)),
        TokenizedPair([3], [1], [2]),
    ]
    for layer in (1, last):
        expected = alone(model, pairs, layer)
        head = drawn(layer, expected.shape[1])
        standard = (expected - expected.mean(1, keepdim=True)) / (
            expected.var(1, keepdim=True, unbiased=False) + 1e-5
        ).sqrt()
        logits = standard @ head.map.weight.T + head.map.bias
        good = 1 / (1 + (logits[:, 0] - logits[:, 1]).exp())
        assert float(good.detach().std()) > 0.05
        layouts = [padded_layout(pairs), padded_layout(pairs, pad_multiple=16)]
        if enable_packing(model) is None:
            layouts += [packed_layout(pairs), packed_layout(pairs, row_tokens=40, pad_multiple=8)]
        assert len(layouts) == 4 or family == "mixtral"
        for inputs in layouts:
            features = ReferenceModel(model, token_layer=layer, discriminator=head).features(
                inputs, ["token_states", "discriminator_values", "reference_hidden"]
            )
            assert features.token_states is not None
            torch.testing.assert_close(features.token_states, expected, atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(
                features.discriminator_values, good.detach(), atol=1e-4, rtol=0
            )
            assert not torch.equal(features.token_states, features.reference_hidden)


def test_the_last_layer_is_the_default_and_no_other_is_invented() -> None:
    model = tiny_model("llama")
    inputs = padded_layout(draw_pairs(2, vocabulary=29))
    last = model.config.num_hidden_layers
    one, other = (
        ReferenceModel(model, token_layer=layer).features(inputs, ["token_states"]).token_states
        for layer in (None, last)
    )
    assert one is not None and torch.equal(one, other)
    with pytest.raises(ValueError, match=f"layer {last + 1} is none of the model's 1 to {last}"):
        ReferenceModel(model, token_layer=last + 1).features(inputs, ["token_states"])
    with pytest.raises(ValueError, match="discriminator_values need a discriminator"):
        ReferenceModel(model).features(inputs, ["discriminator_values"])
    wrong = TokenDiscriminator(1, 7)
    with pytest.raises(ValueError, match="reads states of 7 features, these have"):
        ReferenceModel(model, discriminator=wrong).features(inputs, ["discriminator_values"])


def test_loss_by_hand() -> None:
    """Untrained, D = 1/2: every token costs ln 2 whatever its target.

    With a bias of ln 3 for good, D = 3/4: -ln 3/4 for good, -ln 1/4 for bad, their mean for 1/2.
    """
    states, targets = torch.randn(3, 4), torch.tensor([1.0, 0.0, 0.5])
    head = TokenDiscriminator(1, 4)
    assert head.loss_sum(states, targets).item() == pytest.approx(3 * 0.6931472)
    with torch.no_grad():
        head.map.bias[1] = 1.0986123
    assert head(states).tolist() == pytest.approx([0.75] * 3)
    expected = 0.2876821 + 1.3862944 + (0.2876821 + 1.3862944) / 2
    assert head.loss_sum(states, targets).item() == pytest.approx(expected)


def test_files_bring_the_same_back_and_others_are_refused(tmp_path: Path) -> None:
    made, states = drawn(2, 5), torch.randn(6, 5)
    made.save_pretrained(tmp_path / "head", trained_on="words")
    found = TokenDiscriminator.from_pretrained(tmp_path / "head")
    assert torch.equal(found(states), made(states)) and found.layer == 2
    assert not any(p.requires_grad for p in found.parameters())
    settings = tmp_path / "head" / "discriminator.json"
    assert json.loads(settings.read_text())["trained_on"] == "words"
    settings.write_text('{"layer": 2, "hidden_size": 6}')
    with pytest.raises(ValueError, match="holds no token discriminator: Error"):
        TokenDiscriminator.from_pretrained(tmp_path / "head")
    (tmp_path / "head" / "discriminator.safetensors").write_bytes(b"x")
    for folder in (tmp_path / "head", tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=f"{folder} holds no token discriminator: "):
            TokenDiscriminator.from_pretrained(folder)
