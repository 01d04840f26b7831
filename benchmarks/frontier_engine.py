"""What a process of `frontier_sparsity.py` does: it draws, prepares, trains and measures.

The model is loaded once, three times over: to train, frozen as the reference, and in the numbers of
an evaluation, into which a trained policy is copied. Everything else is the product's: preparation,
trainer, objectives, masks, captured sampling, KL, the judge.
"""

import gc
import json
import pickle
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from frontier_data import (
    Folder,
    Row,
    Sentiment,
    drawn_prompts,
    judge_pairs,
    rows_of,
    write_hh,
    write_imdb,
    write_rows,
)
from frontier_settings import BY_NAME, SEEDS, Plan, Task, Trial
from world_engine import run_stage, settled_run

from evaluation.intervals import mean_interval, rate_interval
from evaluation.metrics import distinct_n, vader_scores
from pipelines.errors import Diverged, StageFailed
from pipelines.evaluate.distance import sequence_kl
from pipelines.evaluate.reward_judge import RewardJudge
from pipelines.evaluate.sampling_way import sample_seed
from pipelines.models import (
    JobSampler,
    Placement,
    compute_device,
    load_causal_lm,
    load_tokenizer,
    response_ends,
)
from pipelines.pairs import PREPARE, PromptEncoder
from pipelines.recipe import GenerationSection, RewardModelJudge
from pipelines.train import TRAIN, training_facts
from pipelines.train.trainer import Trainer
from sparsepo import ReferenceModel
from sparsepo.backbone import freeze_other_parts

_KL_TOKENS = 65536
_JUDGE_BATCH, _JUDGE_RATE, _JUDGE_TOKENS = 32, 2e-5, 320


class Models:
    """The model in its three parts, on this process's device."""

    def __init__(self, name: str) -> None:
        self.device = compute_device()
        self.placement = Placement.choose("auto", self.device, 0, 1)
        self.tokenizer, self.ends = load_tokenizer(name), response_ends(name)
        self.reference = load_causal_lm(name, self.placement.compute, self.device)
        self.policy = load_causal_lm(name, self.placement.weights, self.device)
        freeze_other_parts(self.policy)
        self.measured = load_causal_lm(name, self.placement.compute, self.device)
        self._start = [p.detach().clone() for p in self.policy.parameters()]

    @torch.no_grad()
    def begin(self) -> None:
        """Forget what a training has done."""
        for parameter, value in zip(self.policy.parameters(), self._start, strict=True):
            parameter.copy_(value)
            parameter.grad = None

    @torch.no_grad()
    def finish(self) -> None:
        """The policy as an evaluation loads it."""
        pairs = zip(self.measured.parameters(), self.policy.parameters(), strict=True)
        for parameter, value in pairs:
            parameter.copy_(value)


class WarmTrainer(Trainer):
    """The product's trainer on models that are there already."""

    def __init__(self, models: Models, facts: Any) -> None:
        self._warm = models
        super().__init__(facts, models.placement, threads=torch.get_num_threads())

    def load_models(self) -> tuple[Any, ReferenceModel | None]:
        self._warm.begin()
        told = self.facts.reference.model
        frozen = ReferenceModel(self._warm.reference, told.hooks, told.mapping, told.topk)
        return self._warm.policy, frozen if self.facts.reference.online else None


class Held:
    """A task's held-out prompts, what is drawn from them, and its rewards."""

    def __init__(self, models: Models, folder: Folder) -> None:
        self._models, self.folder = models, folder
        self.sizes = folder.sizes
        settings = folder.recipe(0)
        self._generation: GenerationSection = settings.evaluate.generation
        self._encoder = PromptEncoder(models.tokenizer, settings.data)
        self._sampler = JobSampler(models.ends)

    @cached_property
    def prompts(self) -> list[list[int]]:
        return [self._encoder(row["prompt"]) for row in self.folder.start]

    @cached_property
    def judge(self) -> RewardJudge:
        return RewardJudge(RewardModelJudge(model=str(self.folder.judge)))

    @cached_property
    def sentiment(self) -> Sentiment:
        found: Sentiment = pickle.loads(self.folder.scorer.read_bytes())
        return found

    def draw(self, texts: Sequence[str], counts: Sequence[int], *names: Any) -> list[list[str]]:
        """Continuations of each text by the model of the evaluation."""
        ids = [self._encoder(text) for text in texts]
        found = iter(self._continued(ids, counts, names))
        ends, tokenizer = self._models.ends, self._models.tokenizer
        return [[ends.text(tokenizer, next(found)) for _ in range(count)] for count in counts]

    def _continued(
        self, prompts: Sequence[list[int]], counts: Sequence[int], names: Sequence[Any]
    ) -> list[list[int]]:
        each = zip(prompts, counts, strict=True)
        asked = [prompt for prompt, count in each for _ in range(count)]
        seeds = [sample_seed(*names, number) for number in range(len(asked))]
        return self._sampler(self._models.measured, asked, self._generation, seeds, 256)

    def point(self, seed: int, times: "Times") -> dict[str, Any]:
        """What the policy reaches on the held-out prompts: means, and values by prompt."""
        count = self.sizes.samples
        with times("sample"):
            names = (self.folder.task, "policy", seed)
            drawn = self._continued(self.prompts, [count] * len(self.prompts), names)
        with times("kl"):
            asked = [prompt for prompt in self.prompts for _ in range(count)]
            models = (self._models.measured, self._models.reference)
            kl = sequence_kl(*models, asked, drawn, _KL_TOKENS)
        with times("reward"):
            texts = [self._models.ends.text(self._models.tokenizer, ids) for ids in drawn]
            measured = self._sentiments(texts) if self.folder.task == "imdb" else self._won(texts)
        by_prompt = {**measured.pop("by_prompt"), "kl": _by_prompt(kl, count)}
        return {
            **measured,
            "kl": _mean(kl),
            "tokens": _mean([float(len(ids)) for ids in drawn]),
            "distinct_2": distinct_n(texts, 2),
            "by_prompt": {key: [round(v, 4) for v in found] for key, found in by_prompt.items()},
        }

    def _sentiments(self, texts: Sequence[str]) -> dict[str, Any]:
        rewards = self.sentiment(texts)
        start = _mean([score for row in self.folder.start for score in row["scores"]])
        return {
            "reward": _mean(rewards),
            "gain": _mean(rewards) - start,
            "vader": _mean(vader_scores(list(texts[:: self.sizes.samples]))),
            "by_prompt": {"reward": _by_prompt(rewards, self.sizes.samples)},
        }

    def _won(self, texts: Sequence[str]) -> dict[str, Any]:
        """Rates at which the judge prefers the policy's reply; a tie counts half."""
        scores = self.judged([row["prompt"] for row in self.folder.start], texts)
        found: dict[str, Any] = {"by_prompt": {}}
        for other in ("start", "chosen"):
            theirs = [row[f"{other}_score"] for row in self.folder.start]
            won = [
                0.5 + 0.5 * ((ours > their) - (ours < their))
                for ours, their in zip(scores, theirs, strict=True)
            ]
            found[f"win/{other}"] = _mean(won)
            found["by_prompt"][f"win/{other}"] = won
        return found

    def judged(self, prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
        records = [
            {"prompt": prompt, "conversation": None, "reply_text": reply}
            for prompt, reply in zip(prompts, replies, strict=True)
        ]
        self.judge.score(records, "reply")
        return [float(record["reply_judge_score"]) for record in records]


class Engine:
    """A process's models and tasks."""

    def __init__(self, plan: Plan) -> None:
        transformers.utils.logging.disable_progress_bar()
        self.plan = plan
        self.folders = {task: Folder(plan, task) for task in ("imdb", "hh")}
        self._held: dict[Task, Held] = {}

    @cached_property
    def models(self) -> Models:
        return Models(self.plan.model)

    def held(self, task: Task) -> Held:
        if task not in self._held:
            self._held[task] = Held(self.models, self.folders[task])
        return self._held[task]

    def fit_scorer(self) -> dict[str, Any]:
        """The sentiment scorer, tried on reviews that it has not seen."""
        found = Sentiment.fitted(self.plan)
        folder = self.folders["imdb"]
        found.save(folder.scorer)
        folder.about.write_text(json.dumps(found.about))
        return {"about": "scorer", **found.about}

    def draw(self, shard: int) -> None:
        """Candidates of a shard's training prompts, and of the held-out ones by the start model."""
        asked = drawn_prompts(self.plan, shard)
        self.models.measured.load_state_dict(self.models.reference.state_dict())
        found = self.held("imdb").draw([a[1] for a in asked], [a[2] for a in asked], "draw", shard)
        rows = [
            {"split": split, "prompt": prompt, "responses": texts}
            for (split, prompt, _), texts in zip(asked, found, strict=True)
        ]
        write_rows(self.folders["imdb"].drawn(shard), rows)

    def write_pairs(self, task: Task) -> dict[str, Any]:
        """The files of all seeds, and what the starting model reaches on the held-out prompts."""
        folder = self.folders[task]
        if task == "imdb":
            write_imdb(folder, SEEDS[task])
            rewards = [_mean(row["scores"]) for row in folder.start]
            return {"about": "start", "reward": mean_interval(rewards).as_dict()}
        write_hh(folder, SEEDS[task])
        return {"about": "hh", "held_out": folder.sizes.held_out}

    def prepare(self, task: Task, seed: int) -> dict[str, Any]:
        """The pairs of a seed, by the product's stage."""
        recipe = self.folders[task].recipe(seed)
        run_stage(PREPARE, recipe)
        counts = settled_run(recipe).record(PREPARE).manifest()["counts"]
        return {"about": "pairs", "of": task, "seed": seed, "pairs": counts["pairs"]}

    def train_judge(self) -> dict[str, Any]:
        """A reward model from the same weights, its accuracy on HH's held-out pairs.

        Then the scores of the starting model's replies and of the chosen ones.
        """
        folder, plan = self.folders["hh"], self.plan
        started = time.monotonic()
        pairs = judge_pairs(plan)
        _train_judge(plan.model, folder.judge, pairs, self.models)
        held = rows_of(plan.data, "hh_helpful_base_test")[: folder.sizes.validation]
        judge = self.held("hh").judged
        asked = [row["prompt"] for row in held]
        sides = [judge(asked, [row[side] for row in held]) for side in ("chosen", "rejected")]
        right = [float(one > other) for one, other in zip(*sides, strict=True)]
        rows = _distinct(rows_of(plan.data, "hh_helpful_base_test"))[: folder.sizes.held_out]
        prompts = [row["prompt"] for row in rows]
        self.models.measured.load_state_dict(self.models.reference.state_dict())
        drawn = self.held("hh").draw(prompts, [1] * len(prompts), "hh", "start")
        chosen = judge(prompts, [row["chosen"] for row in rows])
        start = judge(prompts, [reply for (reply,) in drawn])
        write_rows(
            folder.held_out,
            (
                {"prompt": prompt, "start_score": one, "chosen_score": other}
                for prompt, one, other in zip(prompts, start, chosen, strict=True)
            ),
        )
        about = {
            "pairs": len(pairs),
            "tried_pairs": len(held),
            "accuracy": rate_interval(right, asked).as_dict(),
            "seconds": round(time.monotonic() - started, 1),
        }
        folder.about.write_text(json.dumps(about))
        return {"about": "judge", **about}

    def trial(self, trial: Trial) -> dict[str, Any]:
        """Train a method from the starting model and measure it: one record."""
        folder, setting, times = self.folders[trial.task], BY_NAME[trial.setting], Times()
        with times("setup"):
            models, held = self.models, self.held(trial.task)
            sections = setting.sections(trial.beta, trial.seed)
            recipe = folder.recipe(trial.seed, trial.name, **sections)
            run = settled_run(recipe)
            run.record(TRAIN).begin()
            trainer = WarmTrainer(models, training_facts(run))
        found: dict[str, Any] = {**vars(trial), "points": [], "failed": None}
        try:
            with times("train"):
                found |= _trained(trainer)
            with times("validate"):
                told = trainer.validate()
            models.finish()
            point = held.point(trial.seed, times)
            found["by_prompt"] = point.pop("by_prompt")
            point["accuracy"] = told["validation/rewards/accuracies"]
            found["points"] = [{"step": trainer.step, **point}]
            found["zeros"] = _zeros(told, "validation/")
        except (Diverged, StageFailed) as error:
            found["failed"] = str(error)
        finally:
            trainer.close()
            del trainer
            gc.collect()  # what it held of the device
        device = torch.cuda.get_device_name() if models.device.type == "cuda" else "cpu"
        return {**found, "seconds": times.rounded(), "device": device}


class Times:
    """Seconds of each part of a trial."""

    def __init__(self) -> None:
        self._found: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._found[name] = time.monotonic() - started

    def rounded(self) -> dict[str, float]:
        found = {name: round(seconds, 2) for name, seconds in self._found.items()}
        return {**found, "all": round(sum(self._found.values()), 2)}


def _trained(trainer: Trainer) -> dict[str, Any]:
    """All steps: every loss, what the watches warn of, and the zeros of the last step."""
    warning, noting = (trainer.watch, trainer.runaway), (trainer.falling,)
    found: dict[str, Any] = {"losses": [], "warnings": [], "notes": []}
    record: dict[str, Any] = {}
    while trainer.step < trainer.num_steps:
        record, _ = trainer.optimizer_step()
        found["losses"].append(round(record["loss"], 5))
        found["warnings"] += [line for watch in warning for line in watch.observe(record)]
        found["notes"] += [line for watch in noting for line in watch.observe(record)]
    return {**found, "training_zeros": _zeros(record)}


def _zeros(record: dict[str, float], of: str = "") -> dict[str, float | None]:
    """Of each term the share of tokens that weigh nothing; None where no mask weighs it."""
    names = ("reward", "kl")
    return {name: record.get(f"{of}masks/{name}_zero_fraction") for name in names}


def _train_judge(name: str, folder: Path, pairs: Sequence[Row], models: Models) -> None:
    """One epoch of -log sigmoid(score of chosen - score of rejected); saved as a classifier.

    It has no chat template: conversation and reply are read one after the other.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.chat_template, tokenizer.truncation_side = None, "left"
    tokenizer.model_max_length = _JUDGE_TOKENS
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=1).to(models.device)
    model.config.pad_token_id = tokenizer.pad_token_id
    optimizer = torch.optim.AdamW(model.parameters(), lr=_JUDGE_RATE, weight_decay=0.0)
    starts = range(0, len(pairs), _JUDGE_BATCH)
    for number, at in enumerate(starts):
        some = pairs[at : at + _JUDGE_BATCH]
        texts = [row["prompt"] + row[side] for side in ("chosen", "rejected") for row in some]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
        for group in optimizer.param_groups:
            group["lr"] = _JUDGE_RATE * min(1.0, 1.1 - number / len(starts), (number + 1) / 5)
        with models.placement.computing():
            scores = model(**inputs.to(models.device)).logits.float()[:, 0]
        margins = scores[: len(some)] - scores[len(some) :]
        torch.nn.functional.softplus(-margins).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _distinct(rows: Sequence[Row]) -> list[Row]:
    return list({row["prompt"]: row for row in rows}.values())


def _by_prompt(values: Sequence[float], count: int) -> list[float]:
    return [_mean(values[at : at + count]) for at in range(0, len(values), count)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
