"""Saliency against a plain backward of every response alone, in every layout."""

from typing import Any

import pytest
import torch
from families import tiny_model
from tiny_families import draw_pairs

from sparsepo import ReferenceModel, TokenizedPair, enable_packing, packed_layout, padded_layout
from sparsepo.saliency import check_saliency, input_saliency

FAMILIES = ["llama", "gpt2", "gemma3_text", "opt", "mixtral", "gpt_neox"]


def alone(model: Any, pairs: list[TokenizedPair]) -> list[torch.Tensor]:
    """One response at a time through `inputs_embeds`, its own tokens' gradients."""
    found = []
    for pair in pairs:
        for response, places in zip(pair.responses(), pair.scored_places(), strict=True):
            ids = torch.tensor([[*pair.prompt, *response]])
            embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
            model(inputs_embeds=embedded, use_cache=False).logits[0, -1].max().backward()
            assert embedded.grad is not None
            norms = embedded.grad[0].abs().sum(-1)
            found.append(norms[len(pair.prompt) + torch.from_numpy(places)])
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_gives_what_a_response_alone_gives(family: str) -> None:
    """Pairs with one response, and with tokens within a response that are not scored."""
    model = tiny_model(family)
    pairs = [
        *draw_pairs(4, vocabulary=29, has_single=True),
        TokenizedPair([3, 4], [5, 6, 7, 8, 9], [10, 11], (0, 2), (1, 2)),
        TokenizedPair([3], [1], [2]),
    ]
    expected = torch.cat(alone(model, pairs))
    assert float(expected.min()) >= 0 and float(expected.max()) > 1e-3
    layouts = [padded_layout(pairs), padded_layout(pairs, pad_multiple=16)]
    if enable_packing(model) is None:
        layouts += [packed_layout(pairs), packed_layout(pairs, row_tokens=40, pad_multiple=8)]
    assert len(layouts) == 4 or family in ("mixtral", "opt")
    for inputs in layouts:
        found = input_saliency(model, inputs)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-3)
        assert not found.requires_grad


def test_the_reference_gives_it_beside_the_others_and_stays_as_it_was() -> None:
    model, pairs = tiny_model("llama"), draw_pairs(3, vocabulary=29)
    expected = torch.cat(alone(model, pairs))
    reference, inputs = ReferenceModel(model), padded_layout(pairs)
    before = reference.features(inputs, ["reference_logps"]).reference_logps
    for names in (["saliency"], ["saliency", "reference_logps"]):
        features = reference.features(inputs, names)
        assert features.saliency is not None
        torch.testing.assert_close(features.saliency, expected, atol=1e-6, rtol=1e-3)
    assert torch.equal(features.reference_logps, before)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_model_without_a_gradient_is_refused() -> None:
    """States without a gradient, and rounded ones, whose gradient is zero."""
    for name, cut, said in (
        ("norm", torch.Tensor.detach, "lets no gradient through to its input embeddings"),
        ("layers.1", torch.round, "they must be finite and > 0"),
    ):
        model = tiny_model("llama")
        check_saliency(model)
        part = model.model.get_submodule(name)
        part.register_forward_hook(lambda _, __, output, cut=cut: cut(output))
        with pytest.raises(ValueError, match=f"saliency: .*LlamaForCausalLM.*{said}"):
            check_saliency(model)
