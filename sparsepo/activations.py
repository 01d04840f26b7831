"""Read a reference model's activations at MaPO's hook points from an unmodified transformers model.

`sparsepo/hook_tables.py` says where each family shows a point. Tensors are reduced over features
the moment they appear, so recording costs [batch, time] per point and never stores an activation.
Source: hook names and types as in the released SparsePO code (arXiv:2410.05102).
"""

import sys
from collections.abc import Callable, Iterable
from operator import attrgetter
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from sparsepo.hook_points import Family, HookPoint, Rotary
from sparsepo.hook_tables import FAMILIES

HookType = Literal["mlp", "attn", "resid", "logits"]
HOOK_TYPES: tuple[HookType, ...] = ("mlp", "attn", "resid", "logits")
Reduction = Literal["mean", "sigmoid_mean"]


def family_of(model_type: str) -> Family:
    """The hook table of a transformers model type; else ValueError naming the supported types."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise ValueError(
        f"no activation hook table for model type {model_type!r} (known: {known}): looked for a "
        "Family with this model type in sparsepo/hook_tables.py; add one that names, per hook "
        "point, the module below the model's backbone that carries it, like "
        "HookPoint('attn.v_out', 'layers.{i}.self_attn.o_proj', side='input')"
    )


def available_hooks(config: Any) -> tuple[str, ...]:
    """Names of the hook points of a transformers config's family, "logits" last.

    Of a config of more than text it is the family of the text part.

    Raises: ValueError for an unknown family.
    """
    return (*(point.name for point in _points(config)), "logits")


def select_hooks(config: Any, hooks: str | Iterable[str]) -> tuple[str, ...]:
    """Resolve "all", a type ("mlp", "attn", "resid", "logits") or an explicit list of names.

    The logits alone need no hook table: every family has them.

    Raises: ValueError naming what is unknown or absent, why, and what is allowed.
    """
    hooks = hooks if isinstance(hooks, str) else tuple(hooks)
    if hooks in ("logits", ("logits",)):
        return ("logits",)
    names = available_hooks(config)
    if hooks == "all":
        return names
    if isinstance(hooks, str):
        if hooks not in HOOK_TYPES:
            raise ValueError(f"hooks={hooks!r} is neither 'all' nor one of {', '.join(HOOK_TYPES)}")
        asked = f"hooks={hooks!r}"
        chosen = tuple(name for name in names if name.split(".")[0] == hooks)
        missing = [] if chosen else [n for n in _absent(config) if n.split(".")[0] == hooks]
    else:
        chosen = hooks
        missing = [name for name in hooks if name not in names]
        asked = f"hooks {missing or 'list is empty'}"
    if missing or not chosen:
        reasons = [f"{name}: {why}" for name, why in _absent(config).items() if name in missing]
        why = f" ({'; '.join(reasons)})" if reasons else ""
        raise ValueError(
            f"{asked}{why}: model type {config.get_text_config().model_type!r} offers "
            f"{', '.join(names)}"
        )
    return chosen


def _points(config: Any) -> list[HookPoint]:
    text = config.get_text_config()
    return [point for point in family_of(text.model_type).points if not _obstacles(text, point)]


def _absent(config: Any) -> dict[str, str]:
    """Points that the family's table has and this config has not -> why."""
    text = config.get_text_config()
    present = {point.name for point in _points(text)}
    reasons: dict[str, list[str]] = {}
    for point in family_of(text.model_type).points:
        found = _obstacles(text, point)
        if point.name not in present and len(found) < len(reasons.get(point.name, [*found, ""])):
            reasons[point.name] = found
    return {name: ", ".join(found) for name, found in reasons.items()}


def _obstacles(config: Any, point: HookPoint) -> list[str]:
    """Settings of the config that a point cannot exist with, or why no layer has it."""
    names = [name for name, value in point.when.items() if getattr(config, name, None) != value]
    names += [name for name, value in point.unless.items() if getattr(config, name, None) == value]
    if names:
        return [f"{name}={getattr(config, name, None)!r}" for name in names]
    if point.layers is not None and not any(_layers_of(config, point)):
        return [point.layers.reason]
    return []


def _layers_of(config: Any, point: HookPoint) -> list[bool]:
    """Whether each layer has the point."""
    rule = point.layers
    return [rule is None or rule.has(config, layer) for layer in range(config.num_hidden_layers)]


class ActivationRecorder:
    """Context manager that records the reduced activation of each chosen hook point.

    It records during forwards of a backbone. After a forward, `recorded[name][layer]` is float32
    [batch, time], for the layers that have the point; layer is 0 for points that exist once.
    Without hooks nothing is recorded, and any family will do. The logits are not a backbone
    activation: `activation_mask` computes them from the last hidden states.
    """

    def __init__(
        self, backbone: nn.Module, hooks: Iterable[str], reduction: Reduction = "mean"
    ) -> None:
        self._backbone = backbone
        config: Any = backbone.config
        self._config = config.get_text_config()
        self._reduction = reduction
        wanted = set(hooks)
        self._points = [p for p in _points(config) if p.name in wanted] if wanted else []
        self._shape: tuple[int, int] = (0, 0)  # batch, time of the forward
        self._attention: tuple[nn.Module, dict[str, Any]] | None = None  # and what it was given
        self._beside: dict[str, Tensor] = {}
        self._handles: list[Any] = []
        self.recorded: dict[str, dict[int, Tensor]] = {}

    def __enter__(self) -> Self:
        if not self._points:
            return self
        family = family_of(self._config.model_type)
        self._handles.append(
            self._backbone.register_forward_pre_hook(self._keep_shape, with_kwargs=True)
        )
        for point in self._points:
            for layer, has_point in enumerate(_layers_of(self._config, point)):
                if not has_point or (layer > 0 and "{i}" not in point.module):
                    continue
                self._attach(point, layer, f"{family.blocks}.{layer}.{family.attention}")
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
        self._beside.clear()
        self._attention = None

    def _attach(self, point: HookPoint, layer: int, attention: str) -> None:
        if point.rotary:
            self._handles.append(
                self._module(attention, "post-rotary q and k").register_forward_pre_hook(
                    self._keep_attention, with_kwargs=True
                )
            )
        beside = point.beside and point.beside.replace("{i}", str(layer))
        if beside:
            self._handles.append(
                self._module(beside, point.name).register_forward_hook(self._keep_beside(beside))
            )
        module = self._module(point.module.replace("{i}", str(layer)), point.name)

        def on_input(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            self._record(point, layer, args[0] if args else kwargs["hidden_states"], beside)

        def on_output(module: nn.Module, args: Any, output: Any) -> None:
            self._record(point, layer, output[0] if isinstance(output, tuple) else output, beside)

        self._handles.append(
            module.register_forward_pre_hook(on_input, with_kwargs=True)
            if point.side == "input"
            else module.register_forward_hook(on_output)
        )

    def _module(self, path: str, purpose: str) -> nn.Module:
        try:
            return self._backbone.get_submodule(path)
        except AttributeError as error:
            raise ValueError(
                f"model type {self._config.model_type!r}: module {path!r} for {purpose} not found "
                f"in {type(self._backbone).__name__}; its hook table in sparsepo/hook_tables.py "
                "does not fit this version of transformers"
            ) from error

    def _keep_shape(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        tokens = args[0] if args else kwargs.get("input_ids")
        tokens = kwargs["inputs_embeds"] if tokens is None else tokens
        self._shape = (tokens.shape[0], tokens.shape[1])

    def _keep_attention(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._attention = (module, kwargs)

    def _keep_beside(self, path: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def keep(module: nn.Module, args: Any, output: Tensor) -> None:
            self._beside[path] = output

        return keep

    def _record(self, point: HookPoint, layer: int, value: Tensor, beside: str | None) -> None:
        if point.part == "heads_first":
            value = value.transpose(1, 2)
        value = value.reshape(*self._shape, -1)  # some layers fold batch and time, or add a head
        if point.part is not None and point.part != "heads_first":
            value = _cut(value, point.part, self._config, self._beside[beside] if beside else None)
        if point.clip is not None:
            limit = attrgetter(point.clip)(self._config)
            value = value if limit is None else value.clamp(-limit, limit)
        if point.scale is not None:
            value = value * getattr(self._config, point.scale)
        if point.rotary is not None:
            value = self._rotate(value, point.rotary)
        value = value.float().flatten(2)
        reduced = value.mean(-1) if self._reduction == "mean" else value.sigmoid().mean(-1)
        self.recorded.setdefault(point.name, {})[layer] = reduced

    def _rotate(self, value: Tensor, rotary: Rotary) -> Tensor:
        """What the attention's own rotary embedding makes of q or k.

        [batch, time, heads, features] or, with heads folded into the features, [batch, time, ...]
        -> [batch, time, heads, features].
        """
        if value.ndim == 3:
            value = value.unflatten(-1, (-1, _head_dim(self._config)))
        assert self._attention is not None, "q and k are projected within the attention"
        module, given = self._attention
        apply: Any = getattr(sys.modules[type(module).__module__], rotary.function)
        if rotary.own:
            own: Any = module
            angles = own.embed_positions.to(value.device)[given["position_ids"]].to(value.dtype)
            sin, cos = angles.chunk(2, dim=-1)
            width = own.rotary_dim or value.shape[-1]
            return torch.cat([apply(value[..., :width], sin, cos), value[..., width:]], dim=-1)
        turns = given["position_embeddings"]
        turns = (turns,) if isinstance(turns, Tensor) else turns  # complex, or cosines and sines
        width = size = value.shape[-1]
        if rotary.features != "all":
            width = turns[0].shape[-1] * (2 if turns[0].is_complex() else 1)
        start = size - width if rotary.features == "last" else 0
        by_head = value[..., start : start + width].transpose(1, 2)
        rotated: Tensor = apply(by_head, by_head, *turns)[0]
        return torch.cat(
            [value[..., :start], rotated.transpose(1, 2), value[..., start + width :]], dim=-1
        )


def _head_dim(config: Any) -> int:
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def _cut(value: Tensor, part: str, config: Any, beside: Tensor | None) -> Tensor:
    """A part, by the rules of `HookPoint`, of a tensor [batch, time, features].

    -> [batch, time, features] or [batch, time, heads, features].
    """
    heads, head_dim = config.num_attention_heads, _head_dim(config)
    rule, _, index = part.rpartition("_")
    parts: Iterable[Tensor]
    if part == "per_head":
        return value.unflatten(-1, (heads, -1))
    if rule == "heads":
        parts = value.unflatten(-1, (heads, -1)).chunk(3, dim=-1)
    elif rule == "qkv":
        rest = (value.shape[-1] - heads * head_dim) // 2
        parts = value.split([heads * head_dim, rest, rest], dim=-1)
    elif rule == "groups":
        groups = value.unflatten(-1, (config.num_kv_heads, -1, head_dim))
        parts = (g.flatten(2, 3) for g in groups.split([groups.shape[3] - 2, 1, 1], dim=3))
    elif rule == "shards":
        q, v, k = (p.flatten(2) for p in value.unflatten(-1, (4, -1)).chunk(3, dim=-1))
        parts = (q, k, v)
    else:
        by_head = value.unflatten(-1, (heads, -1))
        k, v = by_head.split([config.qk_nope_head_dim, config.v_head_dim], dim=-1)
        if beside is not None:
            shared = beside[..., config.kv_lora_rank :].unsqueeze(2).expand(-1, -1, heads, -1)
            k = torch.cat([k, shared], dim=-1)
        parts = (value, k, v)
    return tuple(parts)[int(index)]
