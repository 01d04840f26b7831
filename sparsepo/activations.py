"""Read a reference model's activations at MaPO's hook points from an unmodified transformers model.

A family is a declarative table of hook points: where the tensor of each named point is found in terms of the family's own
modules. To support a new family add one `Family` entry; nothing else changes. Tensors are reduced over features the moment they appear, so
recording costs [batch, time] per point and never stores an activation.
Source: hook names and types as in the released SparsePO code (arXiv:2410.05102).
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from torch import Tensor, nn

HookType = Literal["mlp", "attn", "resid", "logits"]
HOOK_TYPES: tuple[HookType, ...] = ("mlp", "attn", "resid", "logits")
Reduction = Literal["mean", "sigmoid_mean"]


@dataclass(frozen=True)
class HookPoint:
    """One named tensor: the input or output of a module.

    Attributes:
        name: the released code's name, for example "attn.q".
        module: path below the backbone, "{i}" standing for the block index; without it the point exists once.
        side: which end of the module carries the tensor.
        part: cuts the tensor, by family-specific rule: "heads_0..2" = third of each head's q|k|v triple (GPT-NeoX),
            "third_0..2" = third of the feature axis (GPT-2), None = all of it.
        rotary: the part after rotary embedding, recomputed from the output of the backbone's `rotary_emb`.
        parallel_residual: the point exists only for this value of the config's use_parallel_residual.
    """

    name: str
    module: str
    side: Literal["input", "output"] = "output"
    part: str | None = None
    rotary: bool = False
    parallel_residual: bool | None = None

    @property
    def type(self) -> str:
        return self.name.split(".")[0]


@dataclass(frozen=True)
class Family:
    """Hook points of one transformers architecture; `blocks` is the path of the list of blocks below the backbone."""

    model_types: tuple[str, ...]
    blocks: str
    points: tuple[HookPoint, ...]


GPT_NEOX = Family(
    model_types=("gpt_neox",),
    blocks="layers",
    points=(
        HookPoint("resid.post_emb", "emb_dropout"),
        HookPoint("resid.torso.input_ln_attn", "layers.{i}.input_layernorm"),
        HookPoint("attn.q", "layers.{i}.attention.query_key_value", part="heads_0"),
        HookPoint("attn.k", "layers.{i}.attention.query_key_value", part="heads_1"),
        HookPoint("attn.v", "layers.{i}.attention.query_key_value", part="heads_2"),
        HookPoint("attn.post_rota_emb_q", "layers.{i}.attention.query_key_value", part="heads_0", rotary=True),
        HookPoint("attn.post_rota_emb_k", "layers.{i}.attention.query_key_value", part="heads_1", rotary=True),
        HookPoint("attn.v_out", "layers.{i}.attention.dense", side="input"),
        HookPoint("resid.torso.delta_attn", "layers.{i}.post_attention_dropout"),
        HookPoint("resid.torso.post_attn", "layers.{i}.post_attention_layernorm", side="input", parallel_residual=False),
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
    points=(
        HookPoint("resid.post_emb", "drop"),
        HookPoint("resid.torso.input_ln_attn", "h.{i}.ln_1"),
        HookPoint("attn.q", "h.{i}.attn.c_attn", part="third_0"),
        HookPoint("attn.k", "h.{i}.attn.c_attn", part="third_1"),
        HookPoint("attn.v", "h.{i}.attn.c_attn", part="third_2"),
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

LLAMA = Family(
    model_types=("llama", "mistral", "qwen2"),
    blocks="layers",
    points=(
        HookPoint("resid.post_emb", "embed_tokens"),
        HookPoint("resid.torso.input_ln_attn", "layers.{i}.input_layernorm"),
        HookPoint("attn.q", "layers.{i}.self_attn.q_proj"),
        HookPoint("attn.k", "layers.{i}.self_attn.k_proj"),
        HookPoint("attn.v", "layers.{i}.self_attn.v_proj"),
        HookPoint("attn.post_rota_emb_q", "layers.{i}.self_attn.q_proj", rotary=True),
        HookPoint("attn.post_rota_emb_k", "layers.{i}.self_attn.k_proj", rotary=True),
        HookPoint("attn.v_out", "layers.{i}.self_attn.o_proj", side="input"),
        HookPoint("resid.torso.delta_attn", "layers.{i}.self_attn"),
        HookPoint("resid.torso.post_attn", "layers.{i}.post_attention_layernorm", side="input"),
        HookPoint("resid.torso.post_ln_attn", "layers.{i}.post_attention_layernorm"),
        HookPoint("mlp.post_act", "layers.{i}.mlp.down_proj", side="input"),
        HookPoint("resid.torso.delta_mlp", "layers.{i}.mlp"),
        HookPoint("resid.torso.post_mlp", "layers.{i}"),
        HookPoint("resid.post_ln_f", "norm"),
    ),
)

FAMILIES: tuple[Family, ...] = (GPT_NEOX, GPT2, LLAMA)


def family_of(model_type: str) -> Family:
    """The hook table of a transformers model type; ValueError naming the supported types otherwise."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise ValueError(
        f"no activation hook table for model type {model_type!r} (known: {known}); add a Family entry to sparsepo/activations.py"
    )


def available_hooks(config: Any) -> tuple[str, ...]:
    """Names of the hook points of a transformers config's family, "logits" last; ValueError for an unknown family."""
    return (*(point.name for point in _points(config)), "logits")


def select_hooks(config: Any, hooks: str | Iterable[str]) -> tuple[str, ...]:
    """Resolve "all", a type ("mlp", "attn", "resid", "logits") or an explicit list of names.

    Raises: ValueError naming the unknown name and what is allowed.
    """
    names = available_hooks(config)
    if isinstance(hooks, str):
        if hooks == "all":
            return names
        if hooks not in HOOK_TYPES:
            raise ValueError(f"hooks={hooks!r} is neither 'all' nor one of {', '.join(HOOK_TYPES)}")
        return tuple(name for name in names if name.split(".")[0] == hooks)
    chosen = tuple(hooks)
    unknown = [name for name in chosen if name not in names]
    if unknown or not chosen:
        raise ValueError(f"hooks {unknown or 'list is empty'}: model type {config.model_type!r} offers {', '.join(names)}")
    return chosen


def _points(config: Any) -> list[HookPoint]:
    parallel = getattr(config, "use_parallel_residual", None)
    return [p for p in family_of(config.model_type).points if p.parallel_residual in (None, parallel)]


class ActivationRecorder:
    """Context manager that records the reduced activation of each chosen hook point during forwards of a backbone.

    After a forward, `recorded[name][layer]` is float32 [batch, time]; layer is 0 for points that exist once.
    The logits are not a backbone activation: `activation_mask` computes them from the last hidden states.
    """

    def __init__(self, backbone: nn.Module, hooks: Iterable[str], reduction: Reduction = "mean") -> None:
        self._backbone = backbone
        self._config: Any = backbone.config
        self._reduction = reduction
        wanted = set(hooks)
        self._points = [p for p in _points(self._config) if p.name in wanted]
        self._rotary: tuple[Tensor, Tensor] | None = None
        self._handles: list[Any] = []
        self.recorded: dict[str, dict[int, Tensor]] = {}

    def __enter__(self) -> Self:
        if any(point.rotary for point in self._points):
            rotary = _submodule(self._backbone, "rotary_emb", "post-rotary q and k", self._config.model_type)
            self._handles.append(rotary.register_forward_hook(self._keep_rotary))
        num_layers = len(_submodule(self._backbone, family_of(self._config.model_type).blocks, "blocks", self._config.model_type))  # type: ignore[arg-type]
        for point in self._points:
            for layer in range(num_layers if "{i}" in point.module else 1):
                path = point.module.replace("{i}", str(layer))
                module = _submodule(self._backbone, path, point.name, self._config.model_type)
                if point.side == "input":
                    self._handles.append(module.register_forward_pre_hook(self._on_input(point, layer)))
                else:
                    self._handles.append(module.register_forward_hook(self._on_output(point, layer)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _keep_rotary(self, module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> None:
        self._rotary = output

    def _on_input(self, point: HookPoint, layer: int) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, args: Any) -> None:
            self._record(point, layer, args[0])

        return hook

    def _on_output(self, point: HookPoint, layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._record(point, layer, output[0] if isinstance(output, tuple) else output)

        return hook

    def _record(self, point: HookPoint, layer: int, value: Tensor) -> None:
        heads: int = self._config.num_attention_heads
        if point.part is not None:
            rule, index = point.part.rsplit("_", 1)
            if rule == "heads":
                value = value.unflatten(-1, (heads, -1)).chunk(3, dim=-1)[int(index)]
            else:
                value = value.chunk(3, dim=-1)[int(index)]
        if point.rotary:
            value = self._rotate(value)
        value = value.float().flatten(2)
        reduced = value.mean(-1) if self._reduction == "mean" else value.sigmoid().mean(-1)
        self.recorded.setdefault(point.name, {})[layer] = reduced

    def _rotate(self, value: Tensor) -> Tensor:
        assert self._rotary is not None, "the rotary embedding runs before every block"
        cos, sin = self._rotary
        apply: Any = getattr(sys.modules[type(self._backbone).__module__], "apply_rotary_pos_emb")  # noqa: B009
        if value.ndim == 3:  # a projection's output: heads still folded into the features
            head_dim = getattr(self._config, "head_dim", None) or self._config.hidden_size // self._config.num_attention_heads
            value = value.unflatten(-1, (-1, head_dim))
        by_head = value.transpose(1, 2)
        rotated: Tensor = apply(by_head, by_head, cos, sin)[0]
        return rotated.transpose(1, 2)


def _submodule(backbone: nn.Module, path: str, purpose: str, model_type: str) -> nn.Module:
    try:
        return backbone.get_submodule(path)
    except AttributeError as error:
        raise ValueError(
            f"model type {model_type!r}: module {path!r} for {purpose} not found in {type(backbone).__name__}; "
            "its hook table in sparsepo/activations.py does not fit this version of transformers"
        ) from error
