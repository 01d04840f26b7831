"""The reference stage's other frozen models: scorers of tokens and RPO's prompt embedder."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines.errors import UserError
from pipelines.models import (
    from_directory,
    load_causal_lm,
    resolve_model,
)
from pipelines.reference.facts import OtherModels
from pipelines.reference.origins import pooling_of
from sparsepo.batching.layouts import TokenizedPair
from sparsepo.scorers import Pooling, pooled_states


def load_scorers(
    names: OtherModels, reference: Callable[[], Any], dtype: torch.dtype, device: torch.device
) -> tuple[Any, Any]:
    """The positive and the negative scorer.

    Args:
        reference: gives the frozen reference, asked only if it takes the place of one of them.
    Raises: UserError if one does not exist.
    """
    positive, negative = (
        reference() if name is None else load_causal_lm(str(resolve_model(name)), dtype, device)
        for name in names.scorers().values()
    )
    return positive, negative


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
