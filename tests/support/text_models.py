"""Small models of other kinds, made on the spot: an encoder with WordPiece, classifiers, and a
judge that always says the same.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """Whole words, with BERT's special tokens around a text or a pair."""
    vocabulary = {
        token: i
        for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(words)])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    )


def _bert(words: list[str], **more: Any) -> tuple[BertConfig, PreTrainedTokenizerFast]:
    tokenizer = word_tokenizer(words)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    return BertConfig(vocab_size=len(tokenizer), **sizes, **more), tokenizer


def write_encoder(folder: Path, words: list[str]) -> Path:
    """An untrained BERT of three layers."""
    config, tokenizer = _bert(words)
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_entailment(folder: Path, words: list[str]) -> Path:
    """An untrained three-way classifier of pairs."""
    config, tokenizer = _bert(
        words, id2label={0: "contradiction", 1: "neutral", 2: "entailment"}, num_labels=3
    )
    torch.manual_seed(1)
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # an untrained one would say a third to everything
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_reward_model(folder: Path, words: list[str]) -> Path:
    """An untrained scalar reward model on a decoder."""
    return save_reward_model(folder, word_tokenizer(words), pad_token_id=0)


def save_reward_model(folder: Path, tokenizer: PreTrainedTokenizerFast, **more: Any) -> Path:
    """Likewise, with any tokenizer. Args: more: of its configuration."""
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=1,
        **more,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_constant_judge(folder: Path, answer: list[str]) -> Path:
    """A causal model whose next token is a function of the last one alone: after its chat template
    it says `answer` and ends.

    Embeddings are one-hot, the layers add nothing, the head is a permutation-like table.
    """
    tokens = ["<pad>", "<end>", "<ask>", "<other>", *answer]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<other>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<other>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = (
        "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt "
        "%}<ask>{% endif %}"
    )
    size = len(tokens)
    width = -(-size // 4) * 4
    config = LlamaConfig(
        vocab_size=size, hidden_size=width, intermediate_size=4, num_hidden_layers=1,
        num_attention_heads=1, max_position_embeddings=4096,
        tie_word_embeddings=False, eos_token_id=1, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    following = {2: 4, **{4 + i: 5 + i for i in range(len(answer) - 1)}, 3 + len(answer): 1}
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size, width))
        model.lm_head.weight.zero_()
        for last in range(size):
            model.lm_head.weight[following.get(last, 1), last] = 10.0
    model.generation_config.eos_token_id = 1
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


CHAIN = {
    "<ask>": "one",
    "one": "two",
    "two": "three",
    "three": "<turn>",
    "four": "<turn>",
    "<turn>": "junk",
    "junk": "junk",
}


def write_chain_model(
    folder: Path, *, listed: list[int] | None, has_template: bool, head: float = 1.0
) -> Path:
    """A chat model that says CHAIN[last token] next: one two three <turn> after <ask>, and without
    an end to it junk for ever.

    The tokenizer's end token <eos> (id 1) is never said; the turn ends in <turn> (id 2), special
    without a role by name.

    Args:
        listed: eos_token_id of generation_config.json, which is left out for None. has_template:
            whose turns end in <turn>.
        head: scale of the logits; the most likely token is the same for all.
    """
    tokens = ["<pad>", "<eos>", "<turn>", "<ask>", "<other>", "one", "two", "three", "four", "junk"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<other>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(tokens[:5])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<other>"
    )
    if has_template:
        fast.chat_template = (
            "{% for m in messages %}{% if m.role == 'assistant' %}<ask>{{ m.content }}<turn>{% "
            "else %}{{ m.content }} {% endif %}{% endfor %}{% if add_generation_prompt %}<ask>{% "
            "endif %}"
        )
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=12, intermediate_size=4, num_hidden_layers=1,
        num_attention_heads=1, max_position_embeddings=64,
        tie_word_embeddings=False, eos_token_id=1, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(tokens), 12))
        model.lm_head.weight.zero_()
        for last, following in CHAIN.items():
            model.lm_head.weight[vocabulary[following], vocabulary[last]] = head
    model.generation_config.eos_token_id = listed
    model.save_pretrained(folder)
    if listed is None:
        (folder / "generation_config.json").unlink()
    fast.save_pretrained(folder)
    return folder
