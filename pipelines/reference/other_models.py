"""The reference stage's other frozen models: TIS-DPO's two scorers and RPO's prompt embedder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.errors import UserError
from pipelines.models import (
    from_directory,
    load_causal_lm,
    load_tokenizer,
    model_config,
    reference_dtype,
    resolve_model,
    weights_fingerprint,
)
from pipelines.recipe import Recipe
from sparsepo.batching.layouts import TokenizedPair
from sparsepo.scorers import Pooling, pooled_states

_POOLING: dict[str, Pooling] = {
    "mean": "mean",
    "mean_tokens": "mean",
    "cls": "first",
    "cls_token": "first",
    "lasttoken": "last",
}


def load_scorers(recipe: Recipe, device: torch.device) -> tuple[Any, Any]:
    """The positive and the negative scorer, in the reference's dtype.

    Raises: UserError if one does not exist or has another vocabulary than the recipe's tokenizer.
    """
    dtype = reference_dtype(recipe.reference.dtype, device)
    vocabulary = load_tokenizer(
        str(resolve_model(recipe.model.tokenizer or recipe.model.name_or_path, tokenizer_only=True))
    ).get_vocab()
    models = []
    for key, directory in zip(
        ("positive_scorer", "negative_scorer"), scorer_dirs(recipe), strict=True
    ):
        has_tokenizer = (Path(directory) / "tokenizer.json").is_file()
        if has_tokenizer and load_tokenizer(directory).get_vocab() != vocabulary:
            raise UserError(
                f"model.{key} = {directory}: its tokenizer has another vocabulary than the policy's"
            )
        model = load_causal_lm(directory, dtype, device)
        if model.get_input_embeddings().weight.shape[0] <= max(vocabulary.values()):
            raise UserError(
                f"model.{key} = {directory}: it knows fewer tokens than the policy's tokenizer "
                f"({len(vocabulary)})"
            )
        models.append(model)
    return models[0], models[1]


def scorer_dirs(recipe: Recipe) -> tuple[str, str]:
    assert recipe.model.positive_scorer and recipe.model.negative_scorer, (
        "the recipe's validation requires both"
    )
    return str(resolve_model(recipe.model.positive_scorer)), str(
        resolve_model(recipe.model.negative_scorer)
    )


def scorer_fingerprints(recipe: Recipe) -> str:
    return "+".join(weights_fingerprint(Path(directory)) for directory in scorer_dirs(recipe))


def embedder_fingerprint(recipe: Recipe) -> str:
    if recipe.model.embedder is None:
        return "mean of the reference's last hidden states"
    directory = resolve_model(recipe.model.embedder)
    return f"{weights_fingerprint(directory)}:{pooling_of(directory)}"


def embedding_size(recipe: Recipe, reference_dir: str) -> int:
    """Numbers per prompt."""
    config = model_config(
        resolve_model(recipe.model.embedder) if recipe.model.embedder else Path(reference_dir)
    )
    return int(config.get("hidden_size") or config.get("n_embd") or config["d_model"])


class PromptEmbedder:
    """Embeds prompts with model.embedder, or with the reference's own hidden states.

    Args:
        reference: the reference's causal language model, used when the recipe names no embedder.
    """

    def __init__(self, recipe: Recipe, reference: Any, device: torch.device) -> None:
        self._pooling: Pooling = "mean"
        self._tokenizer: Any = None
        if recipe.model.embedder is None:
            self._model = reference
            return
        from transformers import AutoModel, AutoTokenizer

        directory = resolve_model(recipe.model.embedder)
        self._pooling = pooling_of(directory)
        try:
            self._tokenizer = from_directory(AutoTokenizer, directory)
            model = from_directory(AutoModel, directory, use_safetensors=True)
        except UserError as error:
            raise UserError(f"model.embedder: {error}") from error
        self._model = model.to(device).eval()

    def embed(self, prompts: Sequence[str], pairs: Sequence[TokenizedPair]) -> Tensor:
        """float32 [n, e] on CPU, one row per prompt.

        An embedder of its own gets the texts, the reference the token ids.
        """
        if self._tokenizer is None:
            ids: list[Any] = [list(pair.prompt) for pair in pairs]
        else:
            # Some tokenizers name no limit, which transformers spells as a huge number.
            limit = min(
                self._tokenizer.model_max_length,
                getattr(self._model.config, "max_position_embeddings", None) or 512,
            )
            ids = self._tokenizer(
                [text or " " for text in prompts], truncation=True, max_length=limit
            ).input_ids
        return pooled_states(self._model, ids, self._pooling).cpu()


def pooling_of(directory: Path) -> Pooling:
    """How a sentence-embedding model pools, from its 1_Pooling/config.json (mean without one).

    Raises: UserError for a way of pooling, or a further module, that is not supported.
    """
    modules = directory / "modules.json"
    if modules.is_file():
        kinds = [
            str(module["type"]).rsplit(".", 1)[-1] for module in json.loads(modules.read_text())
        ]
        # Normalize changes nothing: the similarity is a cosine.
        if unknown := [
            kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")
        ]:
            raise UserError(
                f"model.embedder = {directory}: its module {unknown[0]} is not supported, only "
                "Transformer, Pooling and Normalize"
            )
    file = directory / "1_Pooling" / "config.json"
    if not file.is_file():
        return "mean"
    settings = json.loads(file.read_text())
    mode = settings.get("pooling_mode")
    chosen = (
        [mode]
        if isinstance(mode, str)
        else [
            k.removeprefix("pooling_mode_")
            for k, on in settings.items()
            if on is True and k.startswith("pooling_mode_")
        ]
    )
    if len(chosen) != 1 or chosen[0] not in _POOLING:
        raise UserError(
            f"model.embedder = {directory}: pooling {'+'.join(chosen) or 'none'} is not "
            "supported, only mean, cls or lasttoken"
        )
    return _POOLING[chosen[0]]
