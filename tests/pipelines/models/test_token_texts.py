"""The text of every token, whatever the tokenizer."""

import pytest
from chat_tokenizers import KINDS, TEMPLATES

from pipelines.models.token_texts import TokenTexts


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_add_up_to_the_text_whatever_the_tokenizer(kind: str) -> None:
    """With characters of several tokens, also at the border and cut in two, and turn marks."""
    tokenizer = KINDS[kind](TEMPLATES["chatml"])
    texts = TokenTexts(tokenizer)
    text = "the film ✓ was 🚢 lovely<|im_end|>\nthe boats.  Yes"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    for at in range(len(ids)):
        for stop in (len(ids), len(ids) - 1):
            pieces = texts(ids[at:stop], begins=at == 0)
            assert len(pieces) == len(ids[at:stop])
            whole = tokenizer.decode(ids[:stop], clean_up_tokenization_spaces=False)
            before = tokenizer.decode(ids[:at], clean_up_tokenization_spaces=False)
            if not before.endswith("\ufffd"):
                assert before + "".join(pieces) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_reads_alike_wherever_it_stands(kind: str) -> None:
    """Every token of the vocabulary between two others, against decoding with and without it."""
    tokenizer = KINDS[kind]()
    texts = TokenTexts(tokenizer)
    before, after = tokenizer("the film", add_special_tokens=False).input_ids[-2:]
    for id_ in range(len(tokenizer)):
        piece = texts([before, id_, after])[1]
        start, stop = (tokenizer.decode([before, *ids]) for ids in ([], [id_]))
        if not stop.endswith("\ufffd"):
            assert start + piece == stop
