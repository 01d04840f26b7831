"""Run a transformer's backbone on rows of single sequences, or on packed rows whose responses share
a prompt.

In a packed row a token attends to its own pair's earlier prompt tokens and its own response's
earlier tokens. On a GPU the definition becomes a FlexAttention BlockMask, elsewhere (and for models
without FlexAttention) a dense mask.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparsepo.batching.layouts import TokenizedPair, packed_layout, padded_layout
from sparsepo.records import ModelInputs

FULL, SLIDING = "full_attention", "sliding_attention"
_BLOCK = 128  # FlexAttention's block size


def transformer_of(causal_lm: Any) -> Any:
    """The transformers model itself, with peft's layers inside if peft has wrapped it.

    Raises: ValueError for peft methods that add virtual tokens, which would move every scored row.
    """
    if not hasattr(causal_lm, "get_base_model"):
        return causal_lm
    for name, settings in causal_lm.peft_config.items():
        if settings.is_prompt_learning:
            raise ValueError(
                f"peft adapter {name!r} is {settings.peft_type.value}: only methods without "
                "virtual tokens, such as LoRA, work"
            )
    return causal_lm.get_base_model()


def decoder_layers(transformer: Any) -> list[nn.Module]:
    """The decoder layers of a transformers model, in order. ValueError if they are not found."""
    count = transformer.config.get_text_config().num_hidden_layers
    for module in transformer.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise ValueError(f"{type(transformer).__name__}: no list of {count} decoder layers found")


def checkpoint_activations(transformer: Any) -> None:
    """Keep only the inputs of every decoder layer and run it again in the backward pass.

    transformers' own gradient checkpointing works in training mode alone; a policy without dropout
    trains in eval mode.
    """
    for layer in decoder_layers(transformer):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def run_backbone(causal_lm: Any, inputs: ModelInputs) -> Any:
    """The backbone's output for inputs of either layout, without a cache."""
    transformer = transformer_of(causal_lm)
    return transformer.base_model(
        input_ids=inputs.input_ids,
        attention_mask=attention_argument(transformer, inputs),
        position_ids=inputs.position_ids,
        use_cache=False,
    )


def scored_rows(states: Tensor, inputs: ModelInputs) -> Tensor:
    """The rows [S, ...] of states [R, T, ...] that predict the scored tokens."""
    return states.flatten(0, 1).index_select(0, inputs.score_rows.to(states.device))


def attention_argument(transformer: Any, inputs: ModelInputs) -> Any:
    """What a transformers model takes as `attention_mask` for these inputs.

    The padding mask [R, T] of a padded layout; for packed rows a 4-D mask, or one per kind of layer
    where they differ.
    """
    if inputs.segments is None:
        return inputs.attention_mask
    windows = _windows(transformer.config)
    masks = {kind: _mask(transformer, inputs, window) for kind, window in windows.items()}
    return masks if len(masks) > 1 else next(iter(masks.values()))


def uses_flex_attention(transformer: Any) -> bool:
    return bool(getattr(transformer.config, "_attn_implementation", None) == "flex_attention")


@contextlib.contextmanager
def without_flex_attention(transformer: Any) -> Iterator[None]:
    """For rows of single sequences in a model that was prepared for packed ones: their mask
    would be built whole, per shape.
    """
    if not uses_flex_attention(transformer):
        yield
        return
    transformer.set_attn_implementation(
        "sdpa" if getattr(transformer, "_supports_sdpa", False) else "eager"
    )
    try:
        yield
    finally:
        transformer.set_attn_implementation("flex_attention")


@torch.no_grad()
def enable_packing(transformer: Any) -> str | None:
    """Prepare a model for packed rows: FlexAttention where the model has it and sits on one GPU.

    A short packed input is compared with the same sequences apart, so that a model that ignores
    masks or positions is found.

    Returns: None, or why packed rows would be wrong for this model.
    """
    kinds = set(_windows(transformer.config))
    if kinds - {FULL, SLIDING}:
        return f"it has layers of kind {', '.join(sorted(kinds - {FULL, SLIDING}))}"
    ids = [(17 * i + 5) % transformer.config.vocab_size for i in range(24)]
    pairs = [
        TokenizedPair(ids[:6], ids[6:11], ids[11:14]),
        TokenizedPair(ids[14:18], ids[18:20], ids[20:24]),
    ]
    device = transformer.get_input_embeddings().weight.device
    states = []
    for layout in (padded_layout, packed_layout):
        inputs = layout(pairs).to(device)
        try:
            states.append(
                scored_rows(run_backbone(transformer, inputs).last_hidden_state, inputs).double()
            )
        except (ValueError, RuntimeError, IndexError, TypeError) as error:
            return f"it does not take a mask of its own ({str(error).splitlines()[0]})"
    apart, packed = states
    difference = float((apart - packed).norm() / apart.norm())
    allowed = 1e-3 if transformer.dtype == torch.float32 else 3e-2
    if not difference <= allowed:
        return (
            f"its states in packed rows differ by {difference:.1%} from the sequences apart (it "
            "ignores positions or masks)"
        )
    on_one_gpu = (
        device.type == "cuda"
        and len(set(getattr(transformer, "hf_device_map", {"": 0}).values())) == 1
    )
    if on_one_gpu and getattr(transformer, "_supports_flex_attn", False):
        # Beyond its limit of recompilations torch silently computes attention densely: room for
        # every row width and model.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        transformer.set_attn_implementation("flex_attention")
    return None


def _windows(config: Any) -> dict[str, int | None]:
    """Kind of layer -> how many positions back it sees (None: all)."""
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    kinds = set(getattr(text, "layer_types", None) or [SLIDING if window else FULL])
    return {kind: window if kind == SLIDING else None for kind in sorted(kinds)}


def _mask(transformer: Any, inputs: ModelInputs, window: int | None) -> Any:
    assert inputs.segments is not None
    segments, positions = inputs.segments, inputs.position_ids.to(torch.int32)

    def attends(row: Any, query: Any, key: Any) -> Any:
        """The definition; a segment is 4 * pair + part, part 0 is the prompt."""
        at, to = segments[row, query], segments[row, key]
        allowed = (at >> 2 == to >> 2) & ((to & 3 == 0) | (at == to)) & (key <= query)
        return (
            allowed
            if window is None
            else allowed & (positions[row, query] - positions[row, key] < window)
        )

    if uses_flex_attention(transformer):
        return _block_mask(segments, lambda row, head, query, key: attends(row, query, key))
    rows, width = segments.shape
    row = torch.arange(rows, device=segments.device)[:, None, None]
    place = torch.arange(width, device=segments.device)
    dense = attends(row, place[:, None], place)[:, None]
    if transformer.config._attn_implementation == "sdpa":
        return dense
    return torch.zeros(dense.shape, dtype=transformer.dtype, device=dense.device).masked_fill(
        ~dense, torch.finfo(transformer.dtype).min
    )


def _block_mask(segments: Tensor, mask_mod: Any) -> Any:
    """A BlockMask that visits, for every block of queries, the blocks from the start of its first
    token's pair to itself.

    Pairs are contiguous, so no other block can hold an allowed position; within them mask_mod
    decides.
    """
    from torch.nn.attention.flex_attention import BlockMask

    rows, width = segments.shape
    assert width % _BLOCK == 0, f"row width {width} is no multiple of {_BLOCK}"
    place = torch.arange(width, device=segments.device)
    pair = segments >> 2
    begins = torch.ones_like(pair, dtype=torch.bool)
    begins[:, 1:] = pair[:, 1:] != pair[:, :-1]
    start = torch.where(begins, place, 0).cummax(1).values
    blocks = width // _BLOCK
    first = start[:, ::_BLOCK] // _BLOCK
    last = torch.arange(blocks, device=segments.device).expand(rows, blocks)
    order = torch.arange(blocks, device=segments.device).expand(rows, blocks, blocks)
    indices = torch.minimum(first[..., None] + order, last[..., None])
    return BlockMask.from_kv_blocks(
        (last - first + 1).to(torch.int32)[:, None],
        indices.to(torch.int32)[:, None].contiguous(),
        BLOCK_SIZE=_BLOCK,
        mask_mod=mask_mod,
    )
