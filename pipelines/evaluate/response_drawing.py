"""Replies and programs that the models of an evaluation write."""

from collections.abc import Sequence
from typing import Any

from pipelines.evaluate.distance import sequence_kl
from pipelines.evaluate.evaluated_models import EvaluatedModels
from pipelines.evaluate.prompts import CodePrompts, prompt_ids
from pipelines.evaluate.sampling_way import sample_seed
from pipelines.evaluate.tasks import (
    FLOOR_PROMPTS,
    Drawn,
    Records,
    SamplePrompts,
    WritePrograms,
)
from pipelines.models import (
    generate,
)
from pipelines.pairs import Question, answer_ids
from pipelines.recipe import GenerationSection


class ResponseDrawer(EvaluatedModels):
    """Samples of the policy and of the starting model, with distances from the reference."""

    def _sample(self, task: SamplePrompts) -> Records:
        """Continuations of each prompt by both models, the policy's behind each control.

        With them comes the policy's distance from the reference along the policy's continuations,
        and for some prompts its floor: that of the reference's own weights in the policy's place.
        The reference reads the prompt alone.
        """
        split = self._settings.split
        prompts = prompt_ids(self._pairs, split, task.rows)
        columns = ["prompt", "chosen", "conversation"]
        stored = self._pairs.values(split, task.rows, columns)
        settings = self._settings.generation.model_copy(update={"temperature": task.temperature})
        drawing = (
            [("reply", task.temperature_number, at) for at in task.order],
            settings,
            task.temperature_number * 1009 + task.number + task.start * 100_003,
            range(task.start, task.start + task.num_samples),
        )
        first = [i for i, at in enumerate(task.order) if at < FLOOR_PROMPTS and not task.start]
        frozen = self._reference.causal_lm
        records: Records = []
        drawn = task.drawn
        for number, front in enumerate(self._facts.fronts):
            asked = self._behind(front, prompts) if front else prompts
            if drawn is None or number:
                start = (
                    drawn.start if drawn else self._drawn_by(self._start, task, prompts, *drawing)
                )
                policy = self._drawn_by(self._policy.causal_lm, task, asked, *drawing)
                drawn = Drawn(policy=policy, start=start)
            kl = self._distances(self._policy.causal_lm, range(len(prompts)), asked, prompts, drawn)
            floor = self._distances(frozen, first, prompts, prompts, drawn)
            found = self._records(task, prompts, stored, drawn, kl, floor)
            if self._settings.control:
                name = self._settings.control[number]
                found = [{**one, "control": name, "control_number": number} for one in found]
            records += found
        return records

    def _records(
        self,
        task: SamplePrompts,
        prompts: list[list[int]],
        stored: Sequence[Sequence[Any]],
        drawn: Drawn,
        kl: dict[int, list[float]],
        floor: dict[int, list[float]],
    ) -> Records:
        """A record for each sample.

        Args:
            stored: of each prompt its text, the chosen response, and the conversation.
        """
        records = []
        for i, (asked, chosen, conversation) in enumerate(stored):
            is_chat = conversation is not None
            answer = answer_ids(self._tokenizer, asked, chosen, is_chat)
            shared: dict[str, Any] = {
                "order": task.order[i],
                "temperature": task.temperature,
                "temperature_number": task.temperature_number,
                "prompt": Question.stored(conversation).read()
                if is_chat
                else self._text(prompts[i]),
                "conversation": conversation,
                "chosen_text": self._ends.text(self._tokenizer, self._ends.cut(answer)),
            }
            for k in range(task.num_samples):
                record = {
                    **shared,
                    "sample": task.start + k,
                    "kl_policy_reference": kl[i][k],
                }
                if i in floor:
                    record["kl_floor"] = floor[i][k]
                for who, samples in vars(drawn).items():
                    ids = samples[i][k]
                    record |= {
                        f"{who}_text": self._ends.text(self._tokenizer, ids),
                        f"{who}_tokens": len(ids),
                    }
                records.append(record)
        return records

    def _distances(
        self,
        model: Any,
        some: Sequence[int],
        asked: list[list[int]],
        prompts: list[list[int]],
        drawn: Drawn,
    ) -> dict[int, list[float]]:
        """Of some prompts KL(model || reference) along each of the policy's samples.

        Args:
            asked: what the model reads; prompts: the reference.
        """
        found = iter(
            sequence_kl(
                model,
                self._reference.causal_lm,
                [asked[i] for i in some for _ in drawn.policy[i]],
                [sample for i in some for sample in drawn.policy[i]],
                self._settings.batch_tokens,
                None if asked is prompts else [prompts[i] for i in some for _ in drawn.policy[i]],
            )
        )
        return {i: [next(found) for _ in drawn.policy[i]] for i in some}

    def _programs(self, task: WritePrograms) -> Records:
        section = self._settings.code
        assert section is not None
        asked = CodePrompts(self._tokenizer, section, self._facts.training.chat)
        prompts = [asked(prompt) for prompt in task.prompts]
        drawing = (
            [("program", name) for name in task.task_ids],
            section.generation,
            task.start * 1009 + task.number,
            range(task.start, task.start + task.num_samples),
        )
        behind = self._behind(self._facts.fronts[0], prompts)
        drawn = task.drawn or Drawn(
            policy=self._drawn_by(self._policy.causal_lm, task, behind, *drawing),
            start=self._drawn_by(self._start, task, prompts, *drawing),
        )
        return [
            {
                "task_id": name,
                "start": task.start,
                **{
                    f"{who}_texts": [self._ends.text(self._tokenizer, ids) for ids in samples[i]]
                    for who, samples in vars(drawn).items()
                },
            }
            for i, name in enumerate(task.task_ids)
        ]

    def _text(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _drawn_by(
        self,
        model: Any,
        task: SamplePrompts | WritePrograms,
        prompts: list[list[int]],
        names: Sequence[tuple[Any, ...]],
        settings: GenerationSection,
        number: int,
        samples: Sequence[int] = (0,),
    ) -> list[list[list[int]]]:
        """Samples of a model, by prompt.

        Args:
            names: of the prompts, for seeds of their own. number: of the task, for one seed.
            samples: numbers of each prompt's samples.
        """
        seed, count = self._settings.seed, len(samples)
        if task.way == "captured":
            flat = self._job_sampler(
                model,
                [prompt for prompt in prompts for _ in samples],
                settings,
                [sample_seed(seed, *name, k) for name in names for k in samples],
                self._settings.sequences_per_batch,
            )
        else:
            one_seed = seed * 1_000_003 + number
            flat = generate(model, self._ends, prompts, settings, one_seed, count)
        return [flat[i * count : (i + 1) * count] for i in range(len(prompts))]
