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
    resolve_model,
    weights_fingerprint,
)
from pipelines.recipe import Recipe
from pipelines.reference.facts import OtherModels
from sparsepo.batching.layouts import TokenizedPair
from sparsepo.scorers import Pooling, pooled_states

_POOLING: dict[str, Pooling] = {
    "mean": "mean",
    "mean_tokens": "mean",
    "cls": "first",
    "cls_token": "first",
    "lasttoken": "last",
}


def load_scorers(names: OtherModels, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    """The positive and the negative scorer.

    Raises: UserError if one does not exist or has another vocabulary than the recipe's tokenizer.
    """
    vocabulary = load_tokenizer(
        str(resolve_model(names.tokenizer, tokenizer_only=True))
    ).get_vocab()
    models = []
    for key, name in names.scorers().items():
        directory = str(resolve_model(name))
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


def scorer_fingerprints(recipe: Recipe) -> str:
    names = OtherModels.of(recipe).scorers().values()
    return "+".join(weights_fingerprint(resolve_model(name)) for name in names)


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
        name: of the embedder, if the recipe names one.
        reference: the reference's causal language model, used without one.
    """

    def __init__(self, name: str | None, reference: Any, device: torch.device) -> None:
        self._pooling: Pooling = "mean"
        self._tokenizer: Any = None
        if name is None:
            self._model = reference
            return
        from transformers import AutoModel, AutoTokenizer

        directory = resolve_model(name)
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
