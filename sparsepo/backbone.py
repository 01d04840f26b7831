"""Run a transformer's backbone on rows of single sequences, or on packed rows.

In a packed row the responses of a pair share its prompt. A token attends to its own pair's earlier
prompt tokens and its own response's earlier tokens. On a GPU the definition becomes a FlexAttention
BlockMask, elsewhere (and for models without FlexAttention) a dense mask.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from sparsepo.batching.layouts import TokenizedPair, packed_layout, padded_layout
from sparsepo.records import ModelInputs
from sparsepo.rotary import settle_rows, short_row

FULL, SLIDING = "full_attention", "sliding_attention"
_BLOCK = 128  # FlexAttention's block size
_NARROWEST_HEAD = 16  # features, of FlexAttention's kernels
# Config fields that may say how far back a layer sees, other than `sliding_window`, which our masks
# follow.
_SPAN = re.compile(r"window|chunk_size|local_att|block_size|topk|span|stride")
_SHORT_WINDOW = 5  # stands for `sliding_window` while a model is probed
_SHORTEST_PROBE, _LONGEST_PROBE = 128, 4096  # tokens between a response and its prompt
_ENDS = 12  # tokens of the probe's prompt and of its short responses


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


def backbone_of(transformer: Any) -> Any:
    """The part of a transformers causal model that ends in its last hidden states.

    Of a model that reads more than text it is the part that reads text. Where `base_model` is the
    whole model (Llama 4's text model names a prefix that it does not have), it is the first part
    that is a model of its own.
    """
    if reads_more_than_text(transformer):
        return transformer.get_decoder()
    base = transformer.base_model
    if base is not transformer or transformer.get_output_embeddings() is None:
        return base
    return next((part for part in transformer.children() if hasattr(part, "config")), base)


def reads_more_than_text(transformer: Any) -> bool:
    """Whether a model has parts for images or sound beside its language model (Gemma 3)."""
    return transformer.config.get_text_config() is not transformer.config


def freeze_other_parts(transformer: Any) -> None:
    """Keep what a model has for images or sound as it is: text trains its language model alone.

    A parameter that no gradient reaches would still decay.
    """
    if not reads_more_than_text(transformer):
        return
    trained = {*backbone_of(transformer).parameters()}
    trained |= {*transformer.get_output_embeddings().parameters()}
    for parameter in transformer.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter in trained)


def decoder_layers(transformer: Any) -> list[nn.Module]:
    """The decoder layers of a transformers model, in order. ValueError if they are not found."""
    count = transformer.config.get_text_config().num_hidden_layers
    for module in backbone_of(transformer).modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise ValueError(f"{type(transformer).__name__}: no list of {count} decoder layers found")


def has_decoder_layers(transformer: Any) -> bool:
    try:
        return bool(decoder_layers(transformer))
    except ValueError:
        return False


def state_size(config: Any) -> int:
    """Features of the last hidden state, which the LM head reads.

    They are fewer than the layers' where a config projects (OPT 350M).
    """
    text = config.get_text_config()
    return int(getattr(text, "word_embed_proj_dim", None) or text.hidden_size)


def checkpoint_activations(transformer: Any) -> None:
    """Keep only the inputs of every decoder layer and run it again in the backward pass.

    transformers' own gradient checkpointing works in training mode alone; a policy without dropout
    trains in eval mode.
    """
    for layer in decoder_layers(transformer):
        layer.forward = _checkpointed(layer.forward)


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A function, since torch's compiler would leave a `partial` of checkpoint as it is."""

    @wraps(forward)
    def checkpointed(*args: Any, **options: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **options)

    return checkpointed


def run_backbone(causal_lm: Any, inputs: ModelInputs) -> Any:
    """The backbone's output for inputs of either layout, without a cache."""
    transformer = transformer_of(causal_lm)
    settle_rows(transformer)
    return backbone_of(transformer)(
        input_ids=inputs.input_ids,
        attention_mask=attention_argument(transformer, inputs),
        position_ids=inputs.position_ids,
        use_cache=False,
    )


def scored_rows(states: Tensor, inputs: ModelInputs) -> Tensor:
    """The rows [S, ...] of states [R, T, ...] that predict the scored tokens."""
    return states.flatten(0, 1).index_select(0, inputs.score_rows.to(states.device))


def token_rows(states: Tensor, inputs: ModelInputs) -> Tensor:
    """The rows [S, ...] of states [R, T, ...] that have read the scored tokens: their own."""
    rows = inputs.score_rows + 1
    if inputs.segments is not None:
        # A rejected response's first token is predicted by the prompt, and does not follow it.
        segments = inputs.segments.flatten().long()
        wanted = 4 * (inputs.response_index // 2) + 1 + inputs.response_index % 2
        places = torch.arange(len(segments), device=segments.device)
        first = places.new_full((4 * inputs.num_pairs,), len(segments))
        is_real = segments >= 0
        first = first.scatter_reduce(0, segments[is_real], places[is_real], "amin")
        rows = torch.where(inputs.segments.flatten()[rows] == wanted, rows, first[wanted])
    return states.flatten(0, 1).index_select(0, rows.to(states.device))


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
    """For rows of single sequences in a model that was prepared for packed ones.

    FlexAttention would build their mask whole, per shape.
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


def plain_attention() -> contextlib.AbstractContextManager[Any]:
    """Attention in torch's plain form, for a check's few tokens.

    On a GPU the quick forms are loaded or built by their first call, some for every shape, in
    hundreds of milliseconds.
    """
    return sdpa_kernel(SDPBackend.MATH)


@contextlib.contextmanager
def attention_as_trained() -> Iterator[None]:
    """FlexAttention of passes without gradients takes the form of those that have them.

    torch compiles one for each: a process that trains has the other one anyway, which computes the
    same and keeps nothing here. Layers that are compiled whole have forms of their own.
    """
    from transformers import AttentionInterface

    attend = AttentionInterface()["flex_attention"]

    def attend_as_trained(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> Any:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return attend(module, query, key, value, mask, **options)
        with torch.enable_grad():
            states = (state.detach().requires_grad_() for state in (query, key, value))
            found = attend(module, *states, mask, **options)
        return tuple(part if part is None else part.detach() for part in found)

    AttentionInterface.register("flex_attention", attend_as_trained)
    try:
        yield
    finally:
        AttentionInterface.register("flex_attention", attend)


@torch.no_grad()
def enable_packing(transformer: Any, longest: int | None = None) -> str | None:
    """Prepare a model for packed rows: FlexAttention where the model has it and sits on one GPU.

    One packed row is compared with the same sequences apart. A response lies further from its
    prompt than any window that the config names. So a model is found that ignores masks or
    positions, or that masks by the place in the row, as GPT-Neo's local layers do.

    Args:
        longest: tokens of the longest sequence that will be read; None if any may come.
    Returns: None, or why packed rows would be wrong for this model.
    """
    obstacle = packing_obstacle(transformer, longest)
    if obstacle is not None:
        return obstacle
    distance = max(_longest_span(transformer.config)[1] + 1, _SHORTEST_PROBE)
    pairs = _probe_pairs(transformer.config, distance)
    device = transformer.get_input_embeddings().weight.device
    states = []
    with _short_window(transformer.config), plain_attention():
        for inputs in (
            padded_layout(pairs),
            packed_layout(pairs, row_tokens=sum(pair.shared_width() for pair in pairs)),
        ):
            moved = inputs.to(device)
            try:
                states.append(
                    scored_rows(run_backbone(transformer, moved).last_hidden_state, moved).double()
                )
            except torch.OutOfMemoryError:
                raise
            except (
                ValueError,
                RuntimeError,
                LookupError,
                TypeError,
                AttributeError,
                AssertionError,
            ) as error:
                return (
                    "it does not take a mask of its own "
                    f"({(str(error) or type(error).__name__).splitlines()[0]})"
                )
    apart, packed = states
    # One response at a time: a long one that is right would hide a short one that is wrong.
    response = padded_layout(pairs).response_index.to(apart.device)
    difference = max(
        _difference(packed[response == i], apart[response == i]) for i in response.unique()
    )
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
    if on_one_gpu and getattr(transformer, "_supports_flex_attn", False) and _is_wide(transformer):
        # Beyond its limit of recompilations torch silently computes attention densely: room for
        # every row width and model.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        transformer.set_attn_implementation("flex_attention")
    return None


def _is_wide(transformer: Any) -> bool:
    """Whether every head has the features that FlexAttention's kernels need at least."""
    text = transformer.config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    widths = [getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else None)]
    widths += [getattr(text, "v_head_dim", None)]
    return all(width >= _NARROWEST_HEAD for width in widths if isinstance(width, int))


@torch.no_grad()
def packing_obstacle(transformer: Any, longest: int | None = None) -> str | None:
    """What in a model's config and modules makes packed rows wrong; None if nothing does.

    The weights are not read: a model on the meta device will do.

    Args:
        longest: tokens of the longest sequence that will be read; None if any may come.
    """
    limit = short_row(transformer.config)
    if limit is not None and (longest is None or longest > limit):
        return f"sequences beyond {limit} tokens have other rotary features (longrope)"
    windows = _windows(transformer.config)
    unknown = sorted(set(windows) - {FULL, SLIDING})
    if unknown:
        return f"it has layers of kind {', '.join(unknown)}"
    if not all(window is None or isinstance(window, int) for window in windows.values()):
        return f"its layers have windows of several lengths (sliding_window = {windows[SLIDING]})"
    held = _held_mask(transformer)
    if held is not None:
        return f"it masks by the place in the row ({held})"
    name, span = _longest_span(transformer.config)
    if span >= _LONGEST_PROBE:
        return (
            f"its config's {name} = {span} may be a window, and only {_LONGEST_PROBE} tokens are "
            "probed"
        )
    return None


def _held_mask(transformer: Any) -> str | None:
    """The causal mask that a model holds as a buffer and reads; None if there is no such mask.

    Its size ends the rows that the model takes, whatever their positions are: a row beyond a
    smaller copy of the buffer shows whether it is read.
    """
    masks = {
        name: buffer
        for name, buffer in transformer.named_buffers()
        if buffer.ndim >= 2
        and buffer.shape[-1] == buffer.shape[-2] > _ENDS
        and buffer.dtype in (torch.bool, torch.uint8)
    }
    if not masks:
        return None
    device = transformer.get_input_embeddings().weight.device
    inputs = packed_layout([TokenizedPair([1] * 4, [2] * _ENDS, [3] * 4)]).to(device)
    try:
        run_backbone(transformer, inputs)
    except (ValueError, RuntimeError, LookupError, TypeError):
        return None  # for another reason, which the probe will tell
    try:
        for name, buffer in masks.items():
            _set_buffer(transformer, name, buffer[..., :_ENDS, :_ENDS])
        run_backbone(transformer, inputs)
    except (ValueError, RuntimeError, LookupError):
        name, buffer = next(iter(masks.items()))
        return f"{name} {list(buffer.shape)}"
    finally:
        for name, buffer in masks.items():
            _set_buffer(transformer, name, buffer)
    return None


def _set_buffer(transformer: Any, name: str, value: Tensor) -> None:
    path, _, last = name.rpartition(".")
    transformer.get_submodule(path)._buffers[last] = value


def _longest_span(config: Any) -> tuple[str, int]:
    """Field and value of the config's largest number that may be a window unknown to our masks.

    ("", 0) if there is none. A pair's sequences end at the model's last position, and so does this.
    """
    text = config.get_text_config()
    spans = [(0, "")]
    for name, value in vars(text).items():
        if name == "sliding_window" or not _SPAN.search(name):
            continue
        spans += [
            (v, name)
            for v in (value if isinstance(value, list | tuple) else [value])
            if type(v) is int
        ]
    span, name = max(spans)
    return name, min(span, _positions(config))


def _positions(config: Any) -> int:
    """Tokens between the ends of the longest sequence that the model takes, or reads in one way."""
    most = getattr(config.get_text_config(), "max_position_embeddings", None) or 2**31
    return min(most, short_row(config) or most) - 3 * _ENDS


def _probe_pairs(config: Any, distance: int) -> list[TokenizedPair]:
    """Pairs for one packed row.

    In the second, `distance` tokens lie between prompt and rejected response.
    """
    vocabulary = config.get_text_config().vocab_size
    length = max(1, min(distance, _positions(config)))
    ids = [(17 * i * i + 5 * i + 3) % vocabulary for i in range(length + 5 * _ENDS)]
    ends = [ids[length + i * _ENDS : length + (i + 1) * _ENDS] for i in range(5)]
    return [
        TokenizedPair(ends[0][:6], ends[0][6:], ends[1][:3]),
        TokenizedPair(ends[2], ids[:length], ends[3]),
        TokenizedPair(ends[4][:4], ends[4][4:5], ends[4][5:7]),
    ]


@contextlib.contextmanager
def _short_window(config: Any) -> Iterator[None]:
    """A sliding window shorter than the probe's sequences.

    So the probe compares the model's own window with ours.
    """
    text = config.get_text_config()
    kept = getattr(text, "sliding_window", None)
    if not kept:
        yield
        return
    text.sliding_window = min(kept, _SHORT_WINDOW)
    try:
        yield
    finally:
        text.sliding_window = kept


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


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
    """A BlockMask that visits, for every block of queries, the blocks of its pairs.

    They run from the start of its first token's pair to the block itself. Pairs are contiguous, so
    no other block can hold an allowed position; within them mask_mod decides.
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
