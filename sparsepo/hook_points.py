"""What a table of hook points is made of: points, families, and the block that most families have.

The tables themselves are in `sparsepo/hook_tables.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Condition = Mapping[str, Any]  # config field -> its value


@dataclass(frozen=True)
class Rotary:
    """How an attention module turns q and k by their positions.

    Attributes:
        function: its name beside the attention's class. It takes q and k [batch, heads, time,
            features] and what the attention is given as position_embeddings.
        features: what it takes of a head: "all" (what it leaves as it is, it leaves itself), or the
            "first" or "last" features, as many as it turns.
        own: sines and cosines are the attention's own, for the first `rotary_dim` features; the
            function takes them and one tensor [batch, time, heads, features].
    """

    function: str = "apply_rotary_pos_emb"
    features: Literal["all", "first", "last"] = "all"
    own: bool = False


@dataclass(frozen=True)
class Layers:
    """The layers that have a point.

    Attributes:
        has: whether a layer of this index has it, given the config.
        reason: why another layer has it not, for errors.
    """

    has: Callable[[Any, int], bool]
    reason: str


@dataclass(frozen=True)
class HookPoint:
    """One named tensor: the input or output of a module.

    Attributes:
        name: the released code's name, for example "attn.q".
        module: path below the backbone, "{i}" standing for the block index; without it the point
            exists once.
        side: which end of the module carries the tensor.
        part: cuts the tensor, for q, k and v at index 0, 1 and 2: "heads_0" of each head's q|k|v,
            "qkv_0" of all q heads, then all k, then all v, "groups_0" of each group's q heads, k
            and v, "shards_0" of four shards of q|v|k, "latent_1" of each head's k|v (the rest of k
            comes from `beside`). "per_head" = all, split into heads as wide as they are,
            "heads_first" = all of a [batch, heads, time, features] tensor, None = all of it.
        beside: module whose output holds the part of k that all heads share.
        clip, scale: config field that bounds the tensor, or that multiplies it, outside the module.
        rotary: the part after rotary embedding, recomputed from what the attention module was
            given.
        layers: which layers have the point; None = all.
        when, unless: config fields with the values that the point needs, or cannot exist with.
    """

    name: str
    module: str
    side: Literal["input", "output"] = "output"
    part: str | None = None
    beside: str | None = None
    clip: str | None = None
    scale: str | None = None
    rotary: Rotary | None = None
    layers: Layers | None = None
    when: Condition = field(default_factory=dict)
    unless: Condition = field(default_factory=dict)

    @property
    def type(self) -> str:
        return self.name.split(".")[0]


@dataclass(frozen=True)
class Family:
    """Hook points of one transformers architecture.

    Attributes:
        model_types: as in a transformers config. blocks: path of the list of blocks below the
            backbone.
        attention: path of a block's attention module, which is given the rotary embedding.
        points: in the order the forward reaches them. Those of one name exclude each other by
            their conditions.
    """

    model_types: tuple[str, ...]
    blocks: str
    attention: str
    points: tuple[HookPoint, ...]


Points = tuple[HookPoint, ...]

WHOLE = Rotary()
FIRST = Rotary(features="first")
OWN = Rotary(own=True)

# Layers whose MLP is one MLP. A mixture has an activation per expert, of the tokens sent there: no
# tensor means there what mlp.post_act means elsewhere.
_MIXTURE = "its experts have an activation each"
NEVER_DENSE = Layers(lambda config, layer: False, _MIXTURE)
FIRST_DENSE = Layers(lambda config, layer: layer < config.first_k_dense_replace, _MIXTURE)
DENSE_BY_NAME = Layers(lambda config, layer: config.mlp_layer_types[layer] == "dense", _MIXTURE)
DENSE_BY_STEP = Layers(
    lambda config, layer: (
        layer in config.mlp_only_layers
        or config.num_experts == 0
        or (layer + 1) % config.decoder_sparse_step != 0
    ),
    _MIXTURE,
)
DENSE_BY_INTERVAL = Layers(
    lambda config, layer: (
        (layer + 1) % config.moe_layer_interval != 0
        or not config.moe_layer_start_index <= layer <= config.moe_layer_end_index
    ),
    _MIXTURE,
)
# Layers whose q and k are turned.
_NO_ROTARY = "no layer has a rotary embedding"
ROTARY_BY_LIST = Layers(lambda config, layer: bool(config.no_rope_layers[layer]), _NO_ROTARY)
ROTARY_IN_WINDOWS = Layers(
    lambda config, layer: config.layer_types[layer] == "sliding_attention", _NO_ROTARY
)
ROTARY_IN_WINDOWS_IF_ANY = Layers(
    lambda config, layer: (
        config.sliding_window is None or config.layer_types[layer] == "sliding_attention"
    ),
    _NO_ROTARY,
)


def projections(
    q: str = "q_proj",
    k: str = "k_proj",
    part: str | None = None,
    clip: str | None = None,
    attention: str = "self_attn",
) -> Points:
    """q, k and v of a block with a projection each.

    q and k are read at the named modules, where they are last normalised.
    """
    return (
        HookPoint("attn.q", f"{attention}.{q}", part=part, clip=clip),
        HookPoint("attn.k", f"{attention}.{k}", part=part, clip=clip),
        HookPoint("attn.v", f"{attention}.v_proj", clip=clip),
    )


def fused(module: str, rule: str, clip: str | None = None, when: Condition | None = None) -> Points:
    """q, k and v of a block with one projection for all, cut by the rule."""
    return tuple(
        HookPoint(f"attn.{name}", module, part=f"{rule}_{index}", clip=clip, when=when or {})
        for index, name in enumerate("qkv")
    )


def either(setting: str, normed: Points, plain: Points) -> Points:
    """q and k as the first points have them where the config field is true, else as the second."""
    chosen = [
        replace(point, when={setting: value})
        for value, points in ((True, normed), (False, plain))
        for point in points[:2]
    ]
    return (*chosen, plain[2])


def after_rotary(points: Points, rotary: Rotary, layers: Layers | None = None) -> Points:
    """The points of q and k after rotary embedding."""
    return tuple(
        replace(p, name=f"attn.post_rota_emb_{p.name[-1]}", rotary=rotary, layers=layers)
        for p in points
        if p.name in ("attn.q", "attn.k")
    )


def llama_like(
    *model_types: str,
    qkv: Points | None = None,
    rotary: Rotary | None = WHOLE,
    rotary_layers: Layers | None = None,
    turned: Points | None = None,
    blocks: str = "layers",
    attention: str = "self_attn",
    input_norm: str | None = "input_layernorm",
    output: str = "self_attn.o_proj",
    delta_attn: str = "self_attn",
    mlp_norm: str | None = "post_attention_layernorm",
    mlp: str = "mlp",
    down: str = "mlp.down_proj",
    delta_mlp: str = "mlp",
    final_norm: str = "norm",
    scale: str | None = None,
    dense: Layers | None = None,
    sequential: bool | Condition = True,
    own_norm: bool = False,
) -> Family:
    """The Llama block and its relatives: attention and MLP, each added to the residual stream.

    Args:
        qkv: points of q, k and v; turned: those of q and k after rotary embedding, if they are not
            what `rotary` makes of q and k (None: no rotary embedding) in `rotary_layers`.
        input_norm, mlp_norm: modules that normalise before attention and MLP, if any does.
        output, down: the projections after attention and after the MLP's activation.
        delta_attn, delta_mlp: modules whose output joins the stream, times the config's `scale`.
        dense: layers that have one MLP. sequential: whether the MLP follows the attention, or the
            config that makes it so. Beside the attention it reads what the attention reads, or
            has a norm of its own all the same.
    """
    qkv = projections() if qkv is None else qkv
    if turned is None:
        turned = () if rotary is None else after_rotary(qkv, rotary, rotary_layers)
    after: Points = ()
    if sequential:
        when = sequential if isinstance(sequential, Mapping) else {}
        entry = mlp if mlp_norm is None else mlp_norm
        after = (HookPoint("resid.torso.post_attn", entry, side="input", when=when),)
        if mlp_norm is not None:
            norm_when = {} if own_norm else when
            after += (HookPoint("resid.torso.post_ln_attn", mlp_norm, when=norm_when),)
    block = f"{blocks}.{{i}}"
    inner = (
        *([HookPoint("resid.torso.input_ln_attn", input_norm)] if input_norm else []),
        *qkv,
        *turned,
        HookPoint("attn.v_out", output, side="input"),
        HookPoint("resid.torso.delta_attn", delta_attn, scale=scale),
        *after,
        HookPoint("mlp.post_act", down, side="input", layers=dense),
        HookPoint("resid.torso.delta_mlp", delta_mlp, scale=scale),
    )
    return Family(
        model_types=model_types,
        blocks=blocks,
        attention=attention,
        points=(
            HookPoint("resid.post_emb", f"{blocks}.0", side="input"),
            *below(block, inner),
            HookPoint("resid.torso.post_mlp", block),
            HookPoint("resid.post_ln_f", final_norm),
        ),
    )


def below(block: str, points: Points) -> Points:
    """Points whose modules are named below a block, named below the backbone."""
    return tuple(
        replace(
            point,
            module=f"{block}.{point.module}",
            beside=point.beside and f"{block}.{point.beside}",
        )
        for point in points
    )
