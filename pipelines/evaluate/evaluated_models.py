"""The models of an evaluation, and how they are asked."""

from collections.abc import Iterable, Sequence
from functools import cached_property

from pipelines.evaluate.facts import EvaluationFacts
from pipelines.evaluate.precision import compute_dtype, in_dtype
from pipelines.models import (
    JobSampler,
    TokenTexts,
    compute_device,
    in_front,
    load_causal_lm,
    load_tokenizer,
    resolve_model,
)
from pipelines.pairs import read_pairs
from pipelines.reference import FeatureSource, load_reference, open_reference
from pipelines.storage import RunStore
from pipelines.train import build_objective, open_policy, open_untrained
from sparsepo import PolicyModel
from sparsepo.features import FEATURES


class EvaluatedModels:
    """The policy with its masks, the starting model and the reference.

    The policy is loaded when somebody first asks for it: what is wrong with it is a task's failure.
    """

    def __init__(self, facts: EvaluationFacts) -> None:
        self._facts, self._settings, self._ends = facts, facts.settings, facts.ends
        self._job_sampler = JobSampler(facts.ends)
        self._device = compute_device()
        training = facts.training
        self._dtype = compute_dtype(training, self._device)
        directory = resolve_model(facts.tokenizer, tokenizer_only=True)
        self._tokenizer = load_tokenizer(str(directory))
        self._texts_of = TokenTexts(self._tokenizer)
        frozen = in_dtype(training.reference.model, self._dtype)
        self._reference = load_reference(frozen, self._device)
        self._start = (
            self._reference.causal_lm
            if facts.starts_from_reference()
            else load_causal_lm(
                str(resolve_model(facts.start)),
                self._dtype,
                self._device,
                vocabulary=training.reference.model.vocabulary,
            )
        )
        self._objective = build_objective(training.objective)
        self._pairs = read_pairs(RunStore(training.pairs_root))
        wanted = (
            self._objective.requires
            | training.mask.requires()
            | {"reference_logps", "reference_hidden"}
        )
        # The scorers and the embedder do not run here, and nothing runs backward.
        is_stored = any(
            FEATURES[name].origin in ("scorers", "embedder") or FEATURES[name].needs_backward
            for name in wanted
        )
        self._source = FeatureSource(
            self._pairs,
            wanted,
            self._reference,
            open_reference(training.reference, self._pairs) if is_stored else None,
        )

    @cached_property
    def _policy(self) -> PolicyModel:
        facts, head = self._facts, self._reference.head
        if facts.settings.model is not None:
            return open_untrained(facts.training, head, self._dtype, self._device)
        return open_policy(facts.training, facts.step, head, self._dtype, self._device)

    def _behind(self, front: Sequence[int], prompts: Iterable[Sequence[int]]) -> list[list[int]]:
        """The policy's prompts with a control in front."""
        return [in_front(front, prompt, self._tokenizer.bos_token_id) for prompt in prompts]
