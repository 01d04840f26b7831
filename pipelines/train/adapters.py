"""Fresh adapters on the policy, as `train.lora` asks; what peft would ignore is refused."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import UserError
from pipelines.models import ADAPTER_CONFIG, Control
from pipelines.recipe import LoraSection
from sparsepo import head_of
from sparsepo.backbone import backbone_of, reads_more_than_text

_PATTERNS = ("rank_pattern", "alpha_pattern")
_SOFT = ".trainable_tokens_delta."  # what peft calls trained embeddings


def adapted(
    causal_lm: Any,
    lora: LoraSection,
    directory: Path,
    weights: torch.dtype,
    name: str,
    soft_ids: Sequence[int] = (),
) -> Any:
    """The model with adapters, wrapped by peft; what is trained has the dtype of `weights`.

    Args:
        directory: of the starting model. name: as the recipe has it. soft_ids: tokens of a control,
            whose embeddings are trained beside the adapters.
    Raises: UserError naming the key that peft refuses, or that nothing in the model answers to.
    """
    from peft import LoraConfig, get_peft_model

    if lora.save == "adapter" and (directory / ADAPTER_CONFIG).is_file():
        raise UserError(
            f"train.lora.save = adapter: the starting model {directory} is an adapter itself; use "
            "train.lora.save=merged"
        )
    wanted = lora.target_modules
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=list(wanted) if isinstance(wanted, tuple) else wanted,
        exclude_modules=_beside_text(causal_lm),
        use_dora=lora.use_dora,
        use_rslora=lora.use_rslora,
        bias=lora.bias,
        modules_to_save=list(lora.modules_to_save) or None,
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern=dict(lora.alpha_pattern),
        trainable_token_indices=list(soft_ids) or None,
        task_type="CAUSAL_LM",
    )
    modules = {path: type(module).__name__ for path, module in causal_lm.named_modules() if path}
    linear = sorted(
        {
            path.rsplit(".", 1)[-1]
            for path, m in causal_lm.named_modules()
            if isinstance(m, torch.nn.Linear)
        }
    )
    _check_names("modules_to_save", lora.modules_to_save, modules)
    if isinstance(wanted, tuple):
        _check_names("target_modules", wanted, modules, f"; linear layers are {', '.join(linear)}")
    for key in _PATTERNS:
        _check_compiles(key, getattr(lora, key))
    try:
        found = get_peft_model(causal_lm, settings, autocast_adapter_dtype=weights == torch.float32)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"train.lora.target_modules = {settings.target_modules}: "
            f"{str(error).splitlines()[0]}; linear layers are {', '.join(linear)}"
        ) from error
    targets = found.base_model.targeted_module_names
    for key in _PATTERNS:
        _check_patterns(key, getattr(lora, key), targets)
    try:
        head_of(found)
    except ValueError as error:
        raise UserError(
            f"train.lora.target_modules = {settings.target_modules}: {error}; to train it whole, "
            "name it in train.lora.modules_to_save"
        ) from error
    _in_dtype(found, weights)
    found.peft_config["default"].base_model_name_or_path = (
        str(directory) if Path(name).is_dir() else name
    )
    return found.eval()


def _in_dtype(model: Any, weights: torch.dtype) -> None:
    """What is trained gets this dtype."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(weights)


def soft_prompts(causal_lm: Any, control: Control, weights: torch.dtype) -> Any:
    """The model, frozen but for the embeddings of a control's soft tokens; wrapped by peft.

    It computes what peft's prompt tuning does with these embeddings in front of the prompt.

    Raises: UserError if peft cannot train them.
    """
    from peft import TrainableTokensConfig, get_peft_model

    settings = TrainableTokensConfig(token_indices=list(control.soft_ids), task_type="CAUSAL_LM")
    try:
        found = get_peft_model(causal_lm, settings, autocast_adapter_dtype=weights == torch.float32)
    except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
        raise UserError(
            f"sft.control.stages names soft: peft cannot train tokens of "
            f"{type(causal_lm).__name__}: {str(error).splitlines()[0]}"
        ) from error
    _in_dtype(found, weights)
    return found.eval()


def trained_rows(causal_lm: Any, control: Control, state: Mapping[str, torch.Tensor]) -> None:
    """Put the embeddings that `soft_prompts` trained into a plain model that has their rows.

    Args:
        state: all parameters of the trained model, by name.
    """
    (trained,) = (value for name, value in state.items() if _SOFT in name)
    weight = causal_lm.get_input_embeddings().weight
    with torch.no_grad():
        weight[list(control.soft_ids)] = trained.to(weight)


def _beside_text(causal_lm: Any) -> str | None:
    """A pattern of the modules beside the language model of a composite one; None in others."""
    if not reads_more_than_text(causal_lm):
        return None
    text = backbone_of(causal_lm)
    path = next(path for path, module in causal_lm.named_modules() if module is text)
    return rf"(?!{re.escape(path)}\.).*"


def _check_names(key: str, names: Iterable[str], paths: Iterable[str], more: str = "") -> None:
    """UserError for a name that no module has: peft would do without it."""
    known = list(paths)
    for name in names:
        if not any(path == name or path.endswith(f".{name}") for path in known):
            raise UserError(f"train.lora.{key}: the model has no module {name!r}{more}")


def _check_compiles(key: str, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"train.lora.{key}: {pattern!r} is no pattern: {error}") from error


def _check_patterns(key: str, patterns: Iterable[str], adapted: Iterable[str]) -> None:
    """UserError for a pattern that no layer with an adapter has: it would change nothing."""
    known = list(adapted)
    for pattern in patterns:
        if not any(re.fullmatch(rf"(.*\.)?({pattern})", path) for path in known):
            names = sorted({path.rsplit(".", 1)[-1] for path in known})
            raise UserError(
                f"train.lora.{key}: {pattern!r} is no layer with an adapter; these are "
                f"{', '.join(names)}"
            )
