"""Data of `frontier_sparsity.py`: which review serves what, the two scorers, the files of pairs.

A film review is a training prompt, a held-out prompt or a text of the sentiment scorer, never two
of these. HH's policies train on hh_helpful_w2sg and are measured on hh_helpful_base_test; the
reward model trains on two other files.
"""

import json
import lzma
import pickle
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from frontier_settings import Plan, Sizes, Task

from evaluation.intervals import rate_interval
from pipelines.recipe import Recipe, validate_recipe

Row = dict[str, Any]
_PROMPT_WORDS, _SNIPPET_WORDS = 8, 32  # words that a sample has, about
_SPARE = 2  # rows for each pair that is wanted: prepare drops those of a small gap
_JUDGE_FILES = ("hh_helpful_rejection_sampled_test", "hh_helpful_online_test")


def rows_of(folder: str, name: str) -> list[Row]:
    """The rows of NAME.jsonl or NAME.jsonl.xz."""
    path = Path(folder, f"{name}.jsonl")
    if path.is_file():
        return [json.loads(line) for line in path.read_text().splitlines()]
    with lzma.open(f"{path}.xz", "rt") as lines:
        return [json.loads(line) for line in lines]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """The file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(row) + "\n" for row in rows))
    part.replace(path)


@dataclass(frozen=True)
class Reviews:
    """Film reviews by what they serve for.

    Attributes:
        train, held_out: of the prompts, whose first words no other review has. others: of the
            scorer.
    """

    train: list[Row]
    held_out: list[Row]
    others: list[Row]

    @classmethod
    def of(cls, plan: Plan) -> "Reviews":
        rows = {prompt_of(row["text"]): row for row in rows_of(plan.data, "imdb_reviews")}
        found = [row for row in rows.values() if len(row["text"].split()) > _PROMPT_WORDS]
        random.Random("reviews").shuffle(found)
        held_out, train = plan.imdb.held_out, plan.imdb.prompts
        taken = held_out + train
        if len(found) <= taken:
            raise SystemExit(f"{len(found)} reviews: {taken} prompts leave none for the scorer")
        return cls(found[held_out:taken], found[:held_out], found[taken:])


def prompt_of(text: str) -> str:
    return " ".join(text.split()[:_PROMPT_WORDS])


class Sentiment:
    """Probability that a text is of a positive review: logistic regression of TF-IDF."""

    def __init__(self, model: Any, about: dict[str, Any]) -> None:
        self.model, self.about = model, about

    def __call__(self, texts: Sequence[str]) -> list[float]:
        return [float(p) for p in self.model.predict_proba(list(texts))[:, 1]]

    @classmethod
    def fitted(cls, plan: Plan) -> "Sentiment":
        """Fitted to reviews and pairs of reviews that are no prompt's; tried on the prompts'."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        reviews = Reviews.of(plan)
        tried = [*reviews.train, *reviews.held_out]
        texts, labels = _snippets([*reviews.others, *_paired_reviews(plan, tried)])
        words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        model = make_pipeline(words, LogisticRegression(C=3.0, max_iter=300)).fit(texts, labels)
        found = cls(model, {"fitted_texts": len(texts), "fitted_reviews": len(reviews.others)})
        found.about |= found._accuracies(tried)
        return found

    def _accuracies(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Of the words after the prompts; VADER's beside it."""
        from evaluation.metrics import vader_scores

        rows = [row for row in rows if len(row["text"].split()) > 2 * _PROMPT_WORDS]
        end = _PROMPT_WORDS + _SNIPPET_WORDS
        texts = [" ".join(row["text"].split()[_PROMPT_WORDS:end]) for row in rows]
        truth = np.array([row["label"] for row in rows])
        scored = {"accuracy": np.array(self(texts)) > 0.5}
        scored["vader_accuracy"] = np.array(vader_scores(texts)) > 0
        return {
            "tried_reviews": len(rows),
            **{name: rate_interval(said == truth).as_dict() for name, said in scored.items()},
        }

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_bytes(pickle.dumps(self))
        part.replace(path)


def _paired_reviews(plan: Plan, tried: Sequence[Row]) -> list[Row]:
    """Both reviews of every pair of imdb_prefix_pairs by their stars, but those of a prompt."""
    known = {row["id"] for row in tried}
    begins = {prompt_of(row["text"]) for row in tried}
    found: dict[str, Row] = {}
    for row in rows_of(plan.data, "imdb_prefix_pairs"):
        for side in ("chosen", "rejected"):
            text, stars = row["prompt"] + row[side], row[f"{side}_reward"]
            if row[f"{side}_id"] not in known and prompt_of(text) not in begins:
                found[row[f"{side}_id"]] = {"text": text, "label": int(stars > 5)}
    return list(found.values())


def _snippets(rows: Sequence[Row]) -> tuple[list[str], list[int]]:
    """Texts of so many words, and their labels."""
    texts, labels = [], []
    for row in rows:
        words = row["text"].split()
        for at in range(0, max(1, len(words) - _SNIPPET_WORDS // 2), _SNIPPET_WORDS):
            texts.append(" ".join(words[at : at + _SNIPPET_WORDS]))
            labels.append(row["label"])
    return texts, labels


class Folder:
    """What the tasks leave for each other."""

    def __init__(self, plan: Plan, task: Task) -> None:
        self.plan, self.task = plan, task
        self.root, self.sizes = Path(plan.work, task), plan.sizes(task)

    @property
    def scorer(self) -> Path:
        return self.root / "scorer.pkl"

    @property
    def judge(self) -> Path:
        return self.root / "judge"

    @property
    def about(self) -> Path:
        """What is known of the scorer, or of the judge."""
        return self.root / "about.json"

    def drawn(self, shard: int) -> Path:
        return self.root / f"drawn-{shard}.jsonl"

    def pairs(self, seed: int) -> Path:
        return self.root / f"pairs-{seed}"

    @property
    def held_out(self) -> Path:
        """A line for each held-out prompt, with what the starting model's samples reach."""
        return self.root / "held_out.jsonl"

    @cached_property
    def start(self) -> list[Row]:
        return rows_of(str(self.root), "held_out")

    def recipe(self, seed: int, name: str = "pairs", **sections: Any) -> Recipe:
        """Of a training on the pairs of a seed."""
        sizes, files = self.sizes, self.pairs(seed)
        return validate_recipe(
            {
                "run_dir": str(self.root / "runs" / name),
                "model": {"name_or_path": self.plan.model},
                "data": {
                    "sources": [{"path": f"{files}-train.jsonl"}],
                    "validation": [{"path": f"{files}-validation.jsonl"}],
                    "max_prompt_tokens": sizes.prompt_tokens,
                    "max_response_tokens": sizes.response_tokens,
                    "min_gap": sizes.min_gap,
                    "max_train_pairs": sizes.pairs,
                    "max_validation_pairs": sizes.validation,
                },
                "reference": {"mode": "online", "layout": "padded"},
                "train": _training(sizes, seed),
                "evaluate": {
                    "generation": {"max_new_tokens": sizes.new_tokens, "temperature": 1.0}
                },
                "paths": {"pairs": str(files)},
                **sections,
            }
        )


def _training(sizes: Sizes, seed: int) -> dict[str, Any]:
    return {
        "global_batch_size": sizes.batch,
        "epochs": sizes.epochs,
        "learning_rate": sizes.learning_rate,
        "seed": seed,
        "layout": "padded",
        "micro_batch_tokens": 16384,
        "compile": False,
        "checkpoint_every": 1_000_000,
        "trackers": [],
    }


def drawn_prompts(plan: Plan, shard: int) -> list[tuple[str, str, int]]:
    """A shard's prompts: split, text, and how many continuations of each."""
    reviews, sizes = Reviews.of(plan), plan.imdb
    found = [
        *(("train", prompt_of(row["text"]), sizes.candidates) for row in reviews.train),
        *(("held_out", prompt_of(row["text"]), sizes.samples) for row in reviews.held_out),
    ]
    return found[shard :: plan.shards]


def write_imdb(folder: Folder, seeds: Sequence[int]) -> None:
    """The drawn continuations with their scores: candidates of every seed, held-out prompts."""
    sentiment: Sentiment = pickle.loads(folder.scorer.read_bytes())
    splits: dict[str, list[Row]] = {"train": [], "held_out": []}
    for shard in range(folder.plan.shards):
        for row in rows_of(str(folder.root), folder.drawn(shard).stem):
            splits[row.pop("split")].append(row)
    for rows in splits.values():
        scores = iter(sentiment([text for row in rows for text in row["responses"]]))
        for row in rows:
            row["scores"] = [next(scores) for _ in row["responses"]]
    for seed in seeds:
        _write_split(folder, seed, splits["train"], splits["held_out"])
    write_rows(folder.held_out, splits["held_out"])


def write_hh(folder: Folder, seeds: Sequence[int]) -> None:
    """Training pairs of every seed and the held-out pairs; without prompts that both have."""
    held_out = rows_of(folder.plan.data, "hh_helpful_base_test")
    asked = {row["prompt"] for row in held_out}
    found = rows_of(folder.plan.data, "hh_helpful_w2sg")
    train = [row for row in found if row["prompt"] not in asked]
    random.Random("held out").shuffle(held_out)
    for seed in seeds:
        _write_split(folder, seed, train, held_out)


def _write_split(
    folder: Folder, seed: int, train: Sequence[Row], validation: Sequence[Row]
) -> None:
    """Each seed trains on other rows: the first ones of its own order that prepare keeps."""
    shuffled = list(train)
    random.Random(f"rows {seed}").shuffle(shuffled)
    files, sizes = folder.pairs(seed), folder.sizes
    write_rows(Path(f"{files}-validation.jsonl"), validation[: _SPARE * sizes.validation])
    write_rows(Path(f"{files}-train.jsonl"), shuffled[: _SPARE * sizes.pairs])


def judge_pairs(plan: Plan) -> list[Row]:
    """Pairs that no policy trains on or is measured on, nor their prompts."""
    taken = {
        row["prompt"]
        for name in ("hh_helpful_w2sg", "hh_helpful_base_test")
        for row in rows_of(plan.data, name)
    }
    found = [row for name in _JUDGE_FILES for row in rows_of(plan.data, name)]
    kept = [row for row in found if row["prompt"] not in taken]
    random.Random("judge").shuffle(kept)
    return kept[: plan.hh.judge_pairs]
