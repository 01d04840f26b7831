"""token_weights: what a mask says of one response, from the same code that trains with it."""

import math
from typing import Any

import pytest
import torch
from test_model import llama

from sparsepo import (
    FEATURES,
    ConfidenceMask,
    LearnedMasks,
    LengthSplitMask,
    ReferenceModel,
    SegmentMask,
    TokenDiscriminator,
    TokenizedPair,
    padded_layout,
    token_weights,
)
from sparsepo.masks import MASKS

PROMPT, RESPONSE, OTHER = [1, 5, 9], [3, 4, 2, 11, 7], [8, 2]


def test_weights_are_those_of_the_models_own_states() -> None:
    """Learned masks on the reference's states; confidence from transformers' own logits."""
    model, reference = llama(), llama(1)
    masks = LearnedMasks("ml_last", "independent", hidden_size=16, num_layers=2)
    found = token_weights(model, masks, PROMPT, RESPONSE, reference=reference)
    inputs = padded_layout([TokenizedPair(PROMPT, RESPONSE, OTHER)])
    features = ReferenceModel(llama(1)).features(inputs, {"reference_hidden"})
    expected = masks.eval()(features, inputs.response_index, 1)
    torch.testing.assert_close(found.reward, expected.reward[:5], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.kl, expected.kl[:5], atol=1e-5, rtol=0)
    assert found.tokens == RESPONSE

    logits = model(input_ids=torch.tensor([PROMPT + RESPONSE])).logits[0].detach().log_softmax(-1)
    probabilities = [math.exp(float(logits[2 + t, token])) for t, token in enumerate(RESPONSE)]
    kept = [float(p < sum(probabilities) / 5) for p in probabilities]
    for side in ("chosen", "rejected"):
        assert token_weights(model, "confidence", PROMPT, RESPONSE, side=side).reward.tolist() == (
            kept
        )


def test_sides_and_features_that_no_model_makes() -> None:
    """A producer that changes sign with the side, and one that reads both responses."""
    ratios = {"scorer_log_ratios": torch.tensor([1.0, 0.0, -0.5, 0.5, 1.0])}
    chosen, rejected = (
        token_weights(llama(), "exp_ratio", PROMPT, RESPONSE, side=side, features=ratios).reward
        for side in ("chosen", "rejected")
    )
    torch.testing.assert_close(chosen, ratios["scorer_log_ratios"].exp())
    torch.testing.assert_close(rejected, 1 / chosen)
    split = token_weights(llama(), LengthSplitMask(0.25), PROMPT, RESPONSE, other=OTHER)
    assert split.reward.tolist() == [1.0, 1.0, 0.25, 0.25, 0.25]
    short = token_weights(
        llama(), LengthSplitMask(0.25), PROMPT, OTHER, other=RESPONSE, side="rejected"
    )
    assert short.reward.tolist() == [1.0, 1.0]


def test_models_and_masks_stay_as_they_were() -> None:
    model = llama().train()
    model.lm_head.weight.requires_grad_(False)
    mask = ConfidenceMask().train()
    token_weights(model, mask, PROMPT, RESPONSE)
    token_weights(model, LearnedMasks("ml_all", "common", 16, 2), PROMPT, RESPONSE)
    assert model.training and all(part.training for part in model.modules()) and mask.training
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters()} - {"lm_head.weight"}


def test_texts_are_those_of_the_tokenizer(model_dir: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    ids = tokenizer("good bad good", add_special_tokens=False).input_ids
    found = token_weights(model, "position_decay", "a b", "good bad good", tokenizer=tokenizer)
    assert found.tokens == tokenizer.convert_ids_to_tokens(ids)
    assert len(found.reward) == len(ids)


@pytest.mark.parametrize(
    ("masks", "given", "message"),
    [
        ("entropi", {}, "producer 'entropi' is not one of none, activation"),
        ("learned", {}, "producer 'learned' is not one of .*; give learned masks as such"),
        ("length_split", {}, "reads both responses of a pair: give the other one as `other`"),
        ("external", {}, "'external_weights'.*comes from the data"),
        ("exp_ratio", {}, "'scorer_log_ratios'.*comes from sparsepo.scorer_log_ratios"),
        ("confidence", {"response": "a text"}, "response is a text: give its tokenizer"),
        ("confidence", {"response": []}, "0 scored response tokens"),
    ],
)
def test_what_is_missing_is_named(masks: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_weights(llama(), masks, **{"prompt": PROMPT, "response": RESPONSE, **given})


@pytest.mark.parametrize("kind", [kind for kind in MASKS if kind != "learned"])
def test_every_producer_answers(kind: str) -> None:
    """From the models alone, or with what its declaration says that they do not make."""
    of_tokens = {
        name: torch.randn(7)
        for name, feature in FEATURES.items()
        if feature.origin in ("pairs", "scorers") and feature.per == "token"
    }
    model = llama()
    head = TokenDiscriminator(1, model.config.hidden_size)
    found = token_weights(
        model, kind, PROMPT, RESPONSE, other=OTHER, features=of_tokens, discriminator=head
    )
    assert found.reward.shape == (5,) and found.reward.isfinite().all()


def test_segments_are_numbered_from_the_response_and_shown_by_bars() -> None:
    """Of the pair's other response, too: its tokens do not count."""
    values = torch.tensor([1.0, 1.1, -1.0, 3.0, 3.1, 0.0, 5.0])
    mask, features = SegmentMask(0.5, "external"), {"external_weights": values}
    found = token_weights(
        llama(), mask, PROMPT, RESPONSE, other=OTHER, side="rejected", features=features
    )
    # The other one has two tokens, then come -1 | 3 3.1 | 0 | 5.
    assert found.segments == [0, 1, 1, 2, 3] and found.begins() == {1, 3, 4}
    assert found.text().count("│ ") == 3 and found._repr_html_().count("border-left") == 3
    assert found.text(colours=True).count("│") == 3
    plain = token_weights(llama(), "external", PROMPT, RESPONSE, features={
        "external_weights": values[:5]
    })  # fmt: skip
    assert plain.segments is None and not plain.begins() and "│" not in plain.text()
