"""Read a reference model's activations at MaPO's hook points from an unmodified transformers model.

A family is a declarative table of hook points: where the tensor of each named point is found in
terms of the family's own modules. To support a new family add one `Family` entry; nothing else
changes. Tensors are reduced over features the moment they appear, so recording costs [batch, time]
per point and never stores an activation.
Source: hook names and types as in the released SparsePO code (arXiv:2410.05102).
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

HookType = Literal["mlp", "attn", "resid", "logits"]
HOOK_TYPES: tuple[HookType, ...] = ("mlp", "attn", "resid", "logits")
Reduction = Literal["mean", "sigmoid_mean"]


@dataclass(frozen=True)
class HookPoint:
    """One named tensor: the input or output of a module.

    Attributes:
        name: the released code's name, for example "attn.q".
        module: path below the backbone, "{i}" standing for the block index; without it the point
            exists once.
        side: which end of the module carries the tensor.
        part: cuts the tensor: "heads_0..2" = q, k or v of each head's q|k|v triple (GPT-NeoX),
            "qkv_0..2" = q, k or v of one projection with all q heads first (GPT-2, Phi-3),
            "heads_first" = all of a [batch, heads, time, features] tensor, None = all of it.
        rotary: the part after rotary embedding, recomputed from what the attention module was
            given.
        when: (name, value) of the config field without which the point does not exist.
    """

    name: str
    module: str
    side: Literal["input", "output"] = "output"
    part: str | None = None
    rotary: bool = False
    when: tuple[str, bool] | None = None

    @property
    def type(self) -> str:
        return self.name.split(".")[0]


@dataclass(frozen=True)
class Family:
    """Hook points of one transformers architecture.

    Attributes:
        model_types: as in a transformers config. blocks: path of the list of blocks below the
            backbone.
        attention: name of a block's attention module, which is given the rotary embedding.
        points: in the order the forward reaches them.
    """

    model_types: tuple[str, ...]
    blocks: str
    attention: str
    points: tuple[HookPoint, ...]


GPT_NEOX = Family(
    model_types=("gpt_neox",),
    blocks="layers",
    attention="attention",
    points=(
        HookPoint("resid.post_emb", "emb_dropout"),
        HookPoint("resid.torso.input_ln_attn", "layers.{i}.input_layernorm"),
        HookPoint("attn.q", "layers.{i}.attention.query_key_value", part="heads_0"),
        HookPoint("attn.k", "layers.{i}.attention.query_key_value", part="heads_1"),
        HookPoint("attn.v", "layers.{i}.attention.query_key_value", part="heads_2"),
        HookPoint(
            "attn.post_rota_emb_q",
            "layers.{i}.attention.query_key_value",
            part="heads_0",
            rotary=True,
        ),
        HookPoint(
            "attn.post_rota_emb_k",
            "layers.{i}.attention.query_key_value",
            part="heads_1",
            rotary=True,
        ),
        HookPoint("attn.v_out", "layers.{i}.attention.dense", side="input"),
        HookPoint("resid.torso.delta_attn", "layers.{i}.post_attention_dropout"),
        HookPoint(
            "resid.torso.post_attn",
            "layers.{i}.post_attention_layernorm",
            side="input",
            when=("use_parallel_residual", False),
        ),
        HookPoint("resid.torso.post_ln_attn", "layers.{i}.post_attention_layernorm"),
        HookPoint("mlp.post_act", "layers.{i}.mlp.dense_4h_to_h", side="input"),
        HookPoint("resid.torso.delta_mlp", "layers.{i}.post_mlp_dropout"),
        HookPoint("resid.torso.post_mlp", "layers.{i}"),
        HookPoint("resid.post_ln_f", "final_layer_norm"),
    ),
)

GPT2 = Family(
    model_types=("gpt2",),
    blocks="h",
    attention="attn",
    points=(
        HookPoint("resid.post_emb", "drop"),
        HookPoint("resid.torso.input_ln_attn", "h.{i}.ln_1"),
        HookPoint("attn.q", "h.{i}.attn.c_attn", part="qkv_0"),
        HookPoint("attn.k", "h.{i}.attn.c_attn", part="qkv_1"),
        HookPoint("attn.v", "h.{i}.attn.c_attn", part="qkv_2"),
        HookPoint("attn.v_out", "h.{i}.attn.c_proj", side="input"),
        # The release names the residual stream after attention "delta_attn" in this family.
        HookPoint("resid.torso.delta_attn", "h.{i}.ln_2", side="input"),
        HookPoint("resid.torso.post_ln_attn", "h.{i}.ln_2"),
        HookPoint("mlp.post_act", "h.{i}.mlp.c_proj", side="input"),
        HookPoint("resid.torso.delta_mlp", "h.{i}.mlp"),
        HookPoint("resid.torso.post_mlp", "h.{i}"),
        HookPoint("resid.post_ln_f", "ln_f"),
    ),
)


_Projections = tuple[HookPoint, HookPoint, HookPoint]


def _projections(q: str = "q_proj", k: str = "k_proj", part: str | None = None) -> _Projections:
    """q, k and v of a block with a projection each.

    q and k are read at the named modules, where they are last normalised.
    """
    return (
        HookPoint("attn.q", f"layers.{{i}}.self_attn.{q}", part=part),
        HookPoint("attn.k", f"layers.{{i}}.self_attn.{k}", part=part),
        HookPoint("attn.v", "layers.{i}.self_attn.v_proj"),
    )


def _decoder(
    model_types: tuple[str, ...],
    projections: _Projections,
    embedding: HookPoint,
    delta_attn: str,
    delta_mlp: str,
    input_norm: str | None = "input_layernorm",
    mlp_norm: str | None = "post_attention_layernorm",
) -> Family:
    """The Llama block and its relatives: rotary attention and gated MLP, one after the other.

    delta_attn, delta_mlp: modules of a block whose output joins the residual stream. input_norm,
    mlp_norm: modules that normalise before attention and MLP, if any does.
    """
    q, k, v = projections
    block = "layers.{i}"
    return Family(
        model_types=model_types,
        blocks="layers",
        attention="self_attn",
        points=(
            embedding,
            *(
                [HookPoint("resid.torso.input_ln_attn", f"{block}.{input_norm}")]
                if input_norm
                else []
            ),
            q,
            k,
            v,
            replace(q, name="attn.post_rota_emb_q", rotary=True),
            replace(k, name="attn.post_rota_emb_k", rotary=True),
            HookPoint("attn.v_out", f"{block}.self_attn.o_proj", side="input"),
            HookPoint("resid.torso.delta_attn", f"{block}.{delta_attn}"),
            HookPoint("resid.torso.post_attn", f"{block}.{mlp_norm or 'mlp'}", side="input"),
            *([HookPoint("resid.torso.post_ln_attn", f"{block}.{mlp_norm}")] if mlp_norm else []),
            HookPoint("mlp.post_act", f"{block}.mlp.down_proj", side="input"),
            HookPoint("resid.torso.delta_mlp", f"{block}.{delta_mlp}"),
            HookPoint("resid.torso.post_mlp", block),
            HookPoint("resid.post_ln_f", "norm"),
        ),
    )


_EMBEDDING = HookPoint("resid.post_emb", "embed_tokens")
_SCALED_EMBEDDING = HookPoint("resid.post_emb", "layers.0", side="input")
# Outputs of attention and MLP that are normalised before they join the stream.
_NORMALISED = ("post_attention_layernorm", "post_feedforward_layernorm")
_FUSED = (
    HookPoint("attn.q", "layers.{i}.self_attn.qkv_proj", part="qkv_0"),
    HookPoint("attn.k", "layers.{i}.self_attn.qkv_proj", part="qkv_1"),
    HookPoint("attn.v", "layers.{i}.self_attn.qkv_proj", part="qkv_2"),
)

LLAMA = _decoder(("llama", "mistral", "qwen2"), _projections(), _EMBEDDING, "self_attn", "mlp")
QWEN3 = _decoder(("qwen3",), _projections("q_norm", "k_norm"), _EMBEDDING, "self_attn", "mlp")
PHI3 = _decoder(("phi3",), _FUSED, _EMBEDDING, "self_attn", "mlp")
GEMMA2 = _decoder(
    ("gemma2",),
    _projections(),
    _SCALED_EMBEDDING,
    *_NORMALISED,
    mlp_norm="pre_feedforward_layernorm",
)
GEMMA3 = _decoder(
    ("gemma3_text",),
    _projections("q_norm", "k_norm", "heads_first"),
    _SCALED_EMBEDDING,
    *_NORMALISED,
    mlp_norm="pre_feedforward_layernorm",
)
# No normalisation before attention and MLP: only their outputs are normalised, and q and k as a
# whole.
OLMO2 = _decoder(
    ("olmo2",),
    _projections("q_norm", "k_norm"),
    _EMBEDDING,
    *_NORMALISED,
    input_norm=None,
    mlp_norm=None,
)

# Attention and MLP side by side behind one normalisation. The release takes v_out after the output
# projection and post_ln_f before the final normalisation in this family; here both mean what they
# mean elsewhere.
GPTJ = Family(
    model_types=("gptj",),
    blocks="h",
    attention="attn",
    points=(
        HookPoint("resid.post_emb", "drop"),
        HookPoint("resid.torso.input_ln_attn", "h.{i}.ln_1"),
        HookPoint("attn.q", "h.{i}.attn.q_proj"),
        HookPoint("attn.k", "h.{i}.attn.k_proj"),
        HookPoint("attn.v", "h.{i}.attn.v_proj"),
        HookPoint("attn.post_rota_emb_q", "h.{i}.attn.q_proj", rotary=True),
        HookPoint("attn.post_rota_emb_k", "h.{i}.attn.k_proj", rotary=True),
        HookPoint("attn.v_out", "h.{i}.attn.out_proj", side="input"),
        HookPoint("resid.torso.delta_attn", "h.{i}.attn"),
        HookPoint("mlp.post_act", "h.{i}.mlp.fc_out", side="input"),
        HookPoint("resid.torso.delta_mlp", "h.{i}.mlp"),
        HookPoint("resid.torso.post_mlp", "h.{i}"),
        HookPoint("resid.post_ln_f", "ln_f"),
    ),
)

GPT_BIGCODE = Family(
    model_types=("gpt_bigcode",),
    blocks="h",
    attention="attn",
    points=(
        HookPoint("resid.post_emb", "drop"),
        HookPoint("resid.torso.input_ln_attn", "h.{i}.ln_1"),
        *(
            HookPoint(
                f"attn.{name}",
                "h.{i}.attn.c_attn",
                part=f"{rule}_{index}",
                when=("multi_query", multi_query),
            )
            for rule, multi_query in (("qkv", True), ("heads", False))
            for index, name in enumerate("qkv")
        ),
        HookPoint("attn.v_out", "h.{i}.attn.c_proj", side="input"),
        # As in GPT-2, the release names the residual stream after attention "delta_attn".
        HookPoint("resid.torso.delta_attn", "h.{i}.ln_2", side="input"),
        HookPoint("resid.torso.post_ln_attn", "h.{i}.ln_2"),
        HookPoint("mlp.post_act", "h.{i}.mlp.c_proj", side="input"),
        HookPoint("resid.torso.delta_mlp", "h.{i}.mlp"),
        HookPoint("resid.torso.post_mlp", "h.{i}"),
        HookPoint("resid.post_ln_f", "ln_f"),
    ),
)

FAMILIES: tuple[Family, ...] = (
    GPT_NEOX,
    GPT2,
    LLAMA,
    QWEN3,
    PHI3,
    GEMMA2,
    GEMMA3,
    OLMO2,
    GPTJ,
    GPT_BIGCODE,
)


def family_of(model_type: str) -> Family:
    """The hook table of a transformers model type; else ValueError naming the supported types."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise ValueError(
        f"no activation hook table for model type {model_type!r} (known: {known}): looked for a "
        "Family with this model type in sparsepo/activations.py; add one that names, per hook "
        "point, the module below the model's backbone that carries it, like "
        "HookPoint('attn.v_out', 'layers.{i}.self_attn.o_proj', side='input')"
    )


def available_hooks(config: Any) -> tuple[str, ...]:
    """Names of the hook points of a transformers config's family, "logits" last.

    Raises: ValueError for an unknown family.
    """
    return (*(point.name for point in _points(config)), "logits")


def select_hooks(config: Any, hooks: str | Iterable[str]) -> tuple[str, ...]:
    """Resolve "all", a type ("mlp", "attn", "resid", "logits") or an explicit list of names.

    The logits alone need no hook table: every family has them.

    Raises: ValueError naming the unknown name and what is allowed.
    """
    hooks = hooks if isinstance(hooks, str) else tuple(hooks)
    if hooks in ("logits", ("logits",)):
        return ("logits",)
    names = available_hooks(config)
    if isinstance(hooks, str):
        if hooks == "all":
            return names
        if hooks not in HOOK_TYPES:
            raise ValueError(f"hooks={hooks!r} is neither 'all' nor one of {', '.join(HOOK_TYPES)}")
        return tuple(name for name in names if name.split(".")[0] == hooks)
    unknown = [name for name in hooks if name not in names]
    if unknown or not hooks:
        raise ValueError(
            f"hooks {unknown or 'list is empty'}: model type {config.model_type!r} offers "
            f"{', '.join(names)}"
        )
    return hooks


def _points(config: Any) -> list[HookPoint]:
    return [
        p
        for p in family_of(config.model_type).points
        if p.when is None or bool(getattr(config, p.when[0])) == p.when[1]
    ]


class ActivationRecorder:
    """Context manager that records the reduced activation of each chosen hook point.

    It records during forwards of a backbone. After a forward, `recorded[name][layer]` is float32
    [batch, time]; layer is 0 for points that exist once. Without hooks nothing is recorded, and any
    family will do. The logits are not a backbone activation: `activation_mask` computes them from
    the last hidden states.
    """

    def __init__(
        self, backbone: nn.Module, hooks: Iterable[str], reduction: Reduction = "mean"
    ) -> None:
        self._backbone = backbone
        config: Any = backbone.config
        self._config = config
        self._reduction = reduction
        wanted = set(hooks)
        self._points = [p for p in _points(config) if p.name in wanted] if wanted else []
        self._attention_inputs: dict[str, Any] = {}
        self._handles: list[Any] = []
        self.recorded: dict[str, dict[int, Tensor]] = {}

    def __enter__(self) -> Self:
        if not self._points:
            return self
        family = family_of(self._config.model_type)
        blocks = _submodule(self._backbone, family.blocks, "blocks", self._config.model_type)
        num_layers = len(blocks)  # type: ignore[arg-type]
        if any(point.rotary for point in self._points):
            for layer in range(num_layers):
                path = f"{family.blocks}.{layer}.{family.attention}"
                attention = _submodule(
                    self._backbone, path, "post-rotary q and k", self._config.model_type
                )
                self._handles.append(
                    attention.register_forward_pre_hook(
                        self._keep_attention_inputs, with_kwargs=True
                    )
                )
        for point in self._points:
            for layer in range(num_layers if "{i}" in point.module else 1):
                path = point.module.replace("{i}", str(layer))
                module = _submodule(self._backbone, path, point.name, self._config.model_type)
                if point.side == "input":
                    self._handles.append(
                        module.register_forward_pre_hook(self._on_input(point, layer))
                    )
                else:
                    self._handles.append(
                        module.register_forward_hook(self._on_output(point, layer))
                    )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _keep_attention_inputs(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._attention_inputs = {"module": module, **kwargs}

    def _on_input(self, point: HookPoint, layer: int) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, args: Any) -> None:
            self._record(point, layer, args[0])

        return hook

    def _on_output(self, point: HookPoint, layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._record(point, layer, output[0] if isinstance(output, tuple) else output)

        return hook

    def _record(self, point: HookPoint, layer: int, value: Tensor) -> None:
        if point.part == "heads_first":
            value = value.transpose(1, 2)
        elif point.part is not None:
            rule, index = point.part.rsplit("_", 1)
            heads, head_dim = self._config.num_attention_heads, self._head_dim()
            if rule == "heads":
                value = value.unflatten(-1, (heads, -1)).chunk(3, dim=-1)[int(index)]
            else:
                rest = (value.shape[-1] - heads * head_dim) // 2
                value = value.split([heads * head_dim, rest, rest], dim=-1)[int(index)]
        if point.rotary:
            value = self._rotate(value)
        value = value.float().flatten(2)
        reduced = value.mean(-1) if self._reduction == "mean" else value.sigmoid().mean(-1)
        self.recorded.setdefault(point.name, {})[layer] = reduced

    def _head_dim(self) -> int:
        return int(
            getattr(self._config, "head_dim", None)
            or self._config.hidden_size // self._config.num_attention_heads
        )

    def _rotate(self, value: Tensor) -> Tensor:
        """Apply the attention module's own rotary embedding.

        [batch, time, heads or features, ...] -> the same.
        """
        if value.ndim == 3:  # a projection's output: heads still folded into the features
            value = value.unflatten(-1, (-1, self._head_dim()))
        module = self._attention_inputs["module"]
        apply: Any = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb")  # noqa: B009
        if hasattr(
            module, "embed_positions"
        ):  # GPT-J: sines and cosines are the attention's own, of the first rotary_dim features
            sin, cos = (
                module.embed_positions[self._attention_inputs["position_ids"]]
                .to(value.dtype)
                .chunk(2, dim=-1)
            )
            width = module.rotary_dim or value.shape[-1]
            return torch.cat([apply(value[..., :width], sin, cos), value[..., width:]], dim=-1)
        cos, sin = self._attention_inputs["position_embeddings"]
        by_head = value.transpose(1, 2)
        rotated: Tensor = apply(by_head, by_head, cos, sin)[0]
        return rotated.transpose(1, 2)


def _submodule(backbone: nn.Module, path: str, purpose: str, model_type: str) -> nn.Module:
    try:
        return backbone.get_submodule(path)
    except AttributeError as error:
        raise ValueError(
            f"model type {model_type!r}: module {path!r} for {purpose} not found in "
            f"{type(backbone).__name__}; its hook table in sparsepo/activations.py does not fit "
            "this version of transformers"
        ) from error
