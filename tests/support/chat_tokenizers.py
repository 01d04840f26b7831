"""Tokenizers of the kinds that people bring, and chat templates as their models have them, small.

KINDS builds one of each kind; TEMPLATES are written in the manner of well-known ones.
"""

import json
import random
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

_RNG = random.Random(5)
_WORDS = (
    "the film was lovely dull and moving please tell me about boats yes no user assistant system "
    "model answer question tool call weather"
).split()
TEXTS = [
    " ".join(_RNG.choice(_WORDS) for _ in range(9)).capitalize() + _RNG.choice(".!?\n")
    for _ in range(600)
] + ["user\nassistant\nsystem\n[INST] [/INST]", '{"name": "weather", "arguments": {}}'] * 20

# Tokens that stand beside the vocabulary, special to the file but without a role by name.
TURNS = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>"]

TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + "
        "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% endif %}"
    ),
    "llama2": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' or (m.role == 'user') != "
        "(loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}{% endif %}{% if "
        "m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + "
        "eos_token }}{% endif %}{% endfor %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n\n' + (m.content | "
        "trim) + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ "
        "'<|im_start|>assistant\n\n' }}{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not "
        "supported') }}{% endif %}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role "
        "== 'assistant' else m.role) + '\n' + (m.content | trim) + '<end_of_turn>\n' }}{% endfor "
        "%}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + "
        "'[/INST]' }}{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% else %}{{ "
        "raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
    ),
    "zephyr": (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% "
        "endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "thinking": (  # asks with an open block, strips what was thought, as DeepSeek-R1
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>' + "
        "m.content.split('</think>')[-1] + eos_token }}{% else %}{{ m.content }}{% endif %}{% "
        "endfor %}{% if add_generation_prompt %}{{ '<|im_start|><think>\n' }}{% endif %}"
    ),
    "tools": (
        "{% if tools %}{{ '<|im_start|>system\n' }}{% for t in tools %}{{ t | tojson + '\n' }}{% "
        "endfor %}{{ '<|im_end|>\n' }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role "
        "+ '\n' }}{% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% "
        "endif %}{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ '<call>' + "
        "c.function.name + ' ' + (c.function.arguments | tojson) + '</call>' }}{% endfor %}{{ "
        "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% endif %}"
    ),
    "parts": (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + ': ' + m.content[0].text + "
        "'<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|im_start|>assistant: ' }}{% endif %}"
    ),
}


def _trained(kind: str) -> Tokenizer:
    alphabet = sorted({c for text in TEXTS for c in text} | set(map(chr, range(33, 127))))
    names = ["<unk>", "<s>", "</s>"]
    if kind == "byte_level":
        found = Tokenizer(models.BPE())
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        found.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=names[1:],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
    elif kind == "metaspace":
        found = Tokenizer(models.BPE(unk_token="<unk>"))
        found.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
        trainer = trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=[*names, *(f"<0x{i:02X}>" for i in range(256))],
            initial_alphabet=["▁", *alphabet],
        )
    elif kind == "unigram":
        found = Tokenizer(models.Unigram())
        found.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
        found.decoder = decoders.Metaspace(prepend_scheme="always")
        trainer = trainers.UnigramTrainer(
            vocab_size=300,
            special_tokens=names,
            unk_token="<unk>",
            initial_alphabet=["▁", "\n", *alphabet],
        )
    else:
        found = Tokenizer(models.WordPiece(unk_token="<unk>"))
        found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        found.decoder = decoders.WordPiece(cleanup=False)
        trainer = trainers.WordPieceTrainer(
            vocab_size=500, special_tokens=names, initial_alphabet=alphabet
        )
    found.train_from_iterator(TEXTS, trainer)
    return found


def _with_byte_fallback(found: Tokenizer) -> Tokenizer:
    """As Llama 2's: one text without pieces, bytes for what it does not know."""
    state = json.loads(found.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if not t["content"].startswith("<0x")]
    state["model"]["byte_fallback"] = state["model"]["fuse_unk"] = True
    state["pre_tokenizer"]["split"] = False
    found = Tokenizer.from_str(json.dumps(state))
    found.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return found


@cache
def _stored(kind: str) -> str:
    found = _trained(kind)
    return (_with_byte_fallback(found) if kind == "metaspace" else found).to_str()


def make_tokenizer(
    kind: str, adds: str = "", template: str | None = None, turns: bool = True
) -> PreTrainedTokenizerFast:
    """A fresh tokenizer.

    Args:
        kind: byte_level, metaspace, unigram or word_piece. adds: "bos", "bos eos", "eos" or "".
            turns: whether TURNS are tokens.
    """
    found = Tokenizer.from_str(_stored(kind))
    if turns:
        found.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in TURNS])
    if adds:
        single = ("<s> " * ("bos" in adds) + "$A" + " </s>" * ("eos" in adds)).strip()
        ids = [(token, found.token_to_id(token)) for token in ("<s>", "</s>")]
        added = processors.TemplateProcessing(single=single, special_tokens=ids)
        own = found.post_processor
        found.post_processor = processors.Sequence([own, added]) if own else added
    roles = {"unk_token": "<unk>"} if found.token_to_id("<unk>") is not None else {}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=found, bos_token="<s>", eos_token="</s>", **roles
    )
    fast.chat_template = template
    return fast


KINDS: dict[str, Callable[..., PreTrainedTokenizerFast]] = {
    f"{kind}{'-' if adds else ''}{adds.replace(' ', '-')}": (
        lambda template=None, kind=kind, adds=adds: make_tokenizer(kind, adds, template)
    )
    for kind in ("byte_level", "metaspace", "unigram", "word_piece")
    for adds in ("", "bos", "bos eos")
}
