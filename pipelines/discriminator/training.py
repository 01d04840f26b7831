"""The task that trains a discriminator on stored states and measures it on held-out tokens.

One process with one thread does it: the map is small, and its bytes do not depend on the machine's
cores or on where a training was interrupted.
"""

import contextlib
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from evaluation.benchmarks import discriminator_benchmark
from evaluation.key_tokens import key_token_labels
from evaluation.metrics.auc import auc_interval
from pipelines.discriminator.checkpoint import HeadCheckpoint
from pipelines.discriminator.facts import HeadFacts, TrainHead
from pipelines.discriminator.labels import targets_of
from pipelines.errors import StageFailed
from pipelines.models import TokenTexts, load_tokenizer, resolve_model
from pipelines.pairs import read_pairs
from pipelines.recipe import HEAD_FACTS, HEAD_WEIGHTS, TOKEN_STATES
from pipelines.reference import finished_reference
from pipelines.storage import RunStore, write_record
from sparsepo import Sampler, TokenDiscriminator
from sparsepo.batching.layouts import TokenizedPair

_HELD_OUT_ROWS = 64  # read at a time


class HeadTrainer:
    """Actor: the discriminator, its optimizer, and the stores that it is trained from.

    It begins where the last checkpoint is. A task that says how far to come is done already where
    the training is beyond, so that their order does not matter.
    """

    def __init__(self, facts: HeadFacts) -> None:
        self._facts, self._section = facts, facts.section
        self._store = RunStore(facts.store)
        self._pairs = read_pairs(RunStore(facts.pairs))
        self._states = finished_reference(
            RunStore(facts.reference), facts.reference_fingerprint, self._pairs
        )
        self._train_rows = self._rows("train")
        self._head = TokenDiscriminator(facts.layer, facts.hidden_size)
        self._optimizer = torch.optim.AdamW(
            [
                {"params": [self._head.map.weight], "weight_decay": facts.section.weight_decay},
                {"params": [self._head.map.bias], "weight_decay": 0.0},
            ],
            lr=facts.section.learning_rate,
        )
        self._checkpoint = HeadCheckpoint(self._store, facts.fingerprint)
        self._at = self._checkpoint.restore(self._head, self._optimizer)

    def __call__(self, task: TrainHead) -> dict[str, Any]:
        """Of the task that comes to the end the figures; the head's files lie in the store."""
        with _one_thread():
            self._train(task)
            if task.until < task.steps:
                return {}
            figures = self._figures() | {
                "num_steps": task.steps,
                "num_train_pairs": len(self._train_rows),
                "loss": self._at.curve,
            }
        self._publish()
        return figures

    def _publish(self) -> None:
        head = self._head
        content = save({name: value.contiguous() for name, value in head.state_dict().items()})
        self._store.write_bytes(HEAD_WEIGHTS, content)
        record = {
            "layer": head.layer,
            "hidden_size": head.hidden_size,
            "sha256": hashlib.sha256(content).hexdigest(),
            **self._facts.made_of,
        }
        write_record(self._store, HEAD_FACTS, record)

    def _train(self, task: TrainHead) -> None:
        section = self._section
        sampler = Sampler(len(self._train_rows), section.batch_pairs, section.seed)
        loss, count = 0.0, 0
        for step in range(self._at.step, task.until):
            for group in self._optimizer.param_groups:
                group["lr"] = section.learning_rate * (1 - step / task.steps)
            rows = [self._train_rows[i] for i in sampler.pair_indices(step)]
            own_loss, own_count = self._step(rows)
            loss, count = loss + own_loss, count + own_count
            if step + 1 == task.steps or (step + 1) % section.checkpoint_every == 0:
                self._at.step = step + 1
                self._at.curve.append({"step": step + 1, "loss": loss / max(1, count)})
                self._checkpoint.save(self._head, self._optimizer, self._at)
                loss, count = 0.0, 0

    def _step(self, rows: Sequence[int]) -> tuple[float, int]:
        """One step on some rows: the sum of their losses, and how many tokens have labels."""
        states, targets = self._read("train", rows)
        kept = ~targets.isnan()
        count = int(kept.sum())
        if not count:
            return 0.0, 0
        loss = self._head.loss_sum(states[kept], targets[kept])
        self._optimizer.zero_grad()
        (loss / count).backward()
        self._optimizer.step()
        return loss.item(), count

    def _read(self, split: str, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """States [S, d] and targets [S] of the rows' scored tokens."""
        states = self._states.features(split, rows, [TOKEN_STATES]).token_states
        assert states is not None
        targets = [targets_of(pair, self._section.equal) for pair in self._pairs.pairs(split, rows)]
        return states, torch.from_numpy(np.concatenate(targets))

    def _rows(self, split: str) -> list[int]:
        failed = self._facts.failed.get(split, frozenset())
        return [row for row in range(self._pairs.num_rows(split)) if row not in failed]

    @torch.no_grad()
    def _figures(self) -> dict[str, Any]:
        """What `discriminator_benchmark` says of the held-out split, and of key words, if any."""
        split = self._section.held_out
        found: list[tuple[Any, Any, Any]] = []
        prompts: list[str] = []
        held_out = self._rows(split)
        for start in range(0, len(held_out), _HELD_OUT_ROWS):
            rows = held_out[start : start + _HELD_OUT_ROWS]
            states, targets = self._read(split, rows)
            pairs = self._pairs.pairs(split, rows)
            found.append((self._head(states).numpy(), targets.numpy(), self._key_labels(pairs)))
            hashes = self._pairs.values(split, rows, ("prompt_hash",))
            for pair, (prompt,) in zip(pairs, hashes, strict=True):
                prompts += [prompt] * sum(pair.num_scored())
        values, wanted, is_key = (np.concatenate(parts) for parts in zip(*found, strict=True))
        labelled = np.isin(wanted, (0.0, 1.0))
        if not labelled.any():
            raise StageFailed(f"discriminator: no token of the {split} pairs has a label")
        own = [prompt for prompt, is_own in zip(prompts, labelled, strict=True) if is_own]
        figures = discriminator_benchmark(values[labelled], wanted[labelled] == 1, own)
        figures |= {"split": split, "num_equal": int((~labelled).sum())}
        if self._facts.key_words is not None:
            strength = np.abs(2 * values - 1)
            figures["auc/key_words"] = auc_interval(strength, is_key, prompts).as_dict()
        return figures

    @cached_property
    def _texts_of(self) -> TokenTexts:
        directory = resolve_model(self._facts.tokenizer, tokenizer_only=True)
        return TokenTexts(load_tokenizer(str(directory)))

    def _key_labels(self, pairs: Sequence[TokenizedPair]) -> Any:
        """bool [S]: whether scored tokens belong to key words; all False if there are none."""
        words = self._facts.key_words
        labels: list[bool] = []
        for pair in pairs:
            for response, places in zip(pair.responses(), pair.scored_places(), strict=True):
                if words is None:
                    labels += [False] * len(places)
                    continue
                texts = self._texts_of(response)
                ends = list(itertools.accumulate(map(len, texts), initial=0))
                of_all = key_token_labels("".join(texts), list(itertools.pairwise(ends)), words)
                labels += [of_all[place] for place in places]
        return np.array(labels, dtype=bool)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order, whatever the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
