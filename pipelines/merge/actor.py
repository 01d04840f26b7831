"""The merging actor: holds the models, draws samples with given weights, and scores them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.errors import StageFailed
from pipelines.evaluate import build_reward
from pipelines.merge.map_weights import map_of
from pipelines.merge.points import Point, alone_in
from pipelines.merge.prompts import Asked, prompt_weights
from pipelines.merge.schema import Merge, Weights
from pipelines.models import (
    ADAPTER_CONFIG,
    Ensemble,
    MergeRule,
    ResponseEnds,
    compute_device,
    generate,
    load_causal_lm,
    load_ensemble,
    load_tokenizer,
    reference_dtype,
    resolve_model,
    sample_merged,
)
from sparsepo.merging import merge_logps


@dataclass(frozen=True)
class MergeFacts:
    """What a `MergingSampler` needs besides its tasks.

    Attributes:
        models: name or path of each. ends: of all models' samples. maps: form -> the numbers of
            its map of the hidden state.
    """

    merge: Merge
    models: tuple[str, ...]
    ends: ResponseEnds
    maps: Mapping[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class SamplePoint:
    """Draw and score samples for some prompts.

    Attributes:
        number: of the first prompt; with batch it says which prompts they are.
    """

    number: int
    batch: int
    point: Point
    prompts: tuple[Asked, ...]

    @property
    def kind(self) -> str:
        return f"{self.point.name}-by{self.batch}"


class MergingSampler:
    """Actor: a model that speaks alone is sampled as it is elsewhere, by `generate`."""

    def __init__(self, facts: MergeFacts) -> None:
        self._facts, self._merge = facts, facts.merge
        self._device = compute_device()
        self._dtype = reference_dtype("auto", self._device)
        self._directories = [resolve_model(model) for model in facts.models]
        self._tokenizer = load_tokenizer(str(self._directories[0]))
        self._load = cache(self._loaded)
        # Merged adapters one at a time: together their base is in memory once (`load_ensemble`).
        self._load_merged = lru_cache(maxsize=1)(self._loaded)
        self._rewards = [build_reward(section) for section in facts.merge.rewards]

    def _alone(self, directory: Path) -> Any:
        is_adapter = (directory / ADAPTER_CONFIG).is_file()
        return (self._load_merged if is_adapter else self._load)(directory)

    def _loaded(self, directory: Path) -> Any:
        return load_causal_lm(str(directory), self._dtype, self._device)

    @cached_property
    def _ensemble(self) -> Ensemble:
        return load_ensemble(self._directories, self._dtype, self._device, self._load)

    def __call__(self, task: SamplePoint) -> dict[str, Any]:
        """Records of the samples, prompt by prompt, and what the models share in memory."""
        count = self._merge.samples_per_prompt
        drawn, used = self._drawn(task)
        texts = [self._facts.ends.text(self._tokenizer, ids) for ids in drawn]
        scores = [reward(texts) for reward in self._rewards]
        samples = [
            {
                "prompt": task.prompts[i // count].text,
                "sample": i % count,
                "text": text,
                "tokens": len(drawn[i]),
                "weights": used[i],
                "rewards": {
                    name: values[i]
                    for name, values in zip(self._merge.reward_names(), scores, strict=True)
                },
            }
            for i, text in enumerate(texts)
        ]
        shared = list(self._ensemble.shared) if "_ensemble" in vars(self) else []
        return {"samples": samples, "shared": shared}

    def _drawn(self, task: SamplePoint) -> tuple[list[list[int]], list[Weights]]:
        """Token ids of the samples, prompt by prompt, and the (mean) weights of each."""
        count, prompts = self._merge.samples_per_prompt, task.prompts
        if task.point.origin == "map":
            return self._by_map(task)
        weights = [_weights_of(task.point, prompt) for prompt in prompts]
        ids: list[list[int]] = [[] for _ in range(len(prompts) * count)]
        for alone in dict.fromkeys(map(alone_in, weights)):
            some = [i for i, own in enumerate(weights) if alone_in(own) == alone]
            asked = [prompts[i].ids for i in some]
            if alone is not None:
                found = generate(
                    self._alone(self._directories[alone]),
                    self._facts.ends,
                    asked,
                    self._merge.generation,
                    self._seed(task),
                    count,
                )
            else:
                rows = self._rows([weights[i] for i in some])
                found = self._sampled(task, asked, _always(rows))
            for place, i in enumerate(some):
                ids[i * count : (i + 1) * count] = found[place * count : (place + 1) * count]
        return ids, [own for own in weights for _ in range(count)]

    def _by_map(self, task: SamplePoint) -> tuple[list[list[int]], list[Weights]]:
        assert task.point.form is not None
        weight_map = map_of(self._facts.maps[task.point.form]).to(self._device)
        chosen: list[Tensor] = []

        def read(logps: Tensor, states: Tensor | None) -> Tensor:
            assert states is not None
            chosen.append(weight_map(states))
            return chosen[-1]

        ids = self._sampled(task, [prompt.ids for prompt in task.prompts], read, True)
        steps = torch.stack(chosen).double().cpu()  # [steps, rows, K]
        return ids, [tuple(steps[: len(row), i].mean(0).tolist()) for i, row in enumerate(ids)]

    def _sampled(
        self,
        task: SamplePoint,
        asked: Sequence[Sequence[int]],
        weights: MergeRule,
        reads_states: bool = False,
    ) -> list[list[int]]:
        """Args: weights: log-probabilities and states -> weights [rows, K]."""
        form = task.point.form
        assert form is not None
        try:
            return sample_merged(
                self._ensemble,
                self._facts.ends,
                asked,
                self._merge.generation,
                self._seed(task),
                self._merge.samples_per_prompt,
                lambda logps, states: merge_logps(logps, weights(logps, states), form),
                reads_states,
            )
        except ValueError as error:
            raise StageFailed(f"merge: {task.point.name}: {error}") from error

    def _seed(self, task: SamplePoint) -> int:
        """The same at all points."""
        return self._merge.seed * 1_000_003 + task.number

    def _rows(self, weights: Sequence[Weights]) -> Tensor:
        """[rows, K] on the device, for every sample of every prompt."""
        found = torch.tensor(weights, dtype=torch.float32, device=self._device)
        return found.repeat_interleave(self._merge.samples_per_prompt, dim=0)


def _always(rows: Tensor) -> MergeRule:
    """The same weights at every token."""
    return lambda logps, states: rows


def _weights_of(point: Point, prompt: Asked) -> Weights:
    if point.origin == "fixed":
        return point.weights
    assert point.form is not None
    return prompt_weights(prompt, point.form)
