"""Tokens per second of sampling: plain `generate`, captured steps, and continuous batching.

    python benchmarks/sampling.py --work /tmp/bench
    python benchmarks/sampling.py --mean-length 64 --work /tmp/bench
    python benchmarks/sampling.py --temperature 0.8 --top-p 0.95 --work /tmp/bench

All sides continue the same prompts of random tokens with the same model (random weights). Their
rounds are interleaved. Prints a JSON line per measurement, then a summary.

plain:       transformers' `generate` at several batch sizes.
captured:    what a large job of a stage draws with (pipelines/models/captured.py).
continuous:  transformers' `generate_batch`, whose cache may take a third of the free memory.

Starting is apart: what comes before a side's first round (compilation, capture, warm-up). A rate
counts all tokens up to a continuation's end, over the whole time of a round with its prefill; the
rounds of small batches take fewer prompts. --mean-length ends continuations by chance: so many
tokens are ends that they have about this many tokens, were there no limit.
"""

import argparse
import contextlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from shapes import model_directory

from pipelines.models.generation import generate
from pipelines.models.job_sampler import JobSampler
from pipelines.models.loading import load_causal_lm
from pipelines.models.response_ends import ResponseEnds
from pipelines.recipe.evaluation import GenerationSection

Tokens = list[list[int]]


def say(**record: Any) -> dict[str, Any]:
    print(json.dumps(record), flush=True)
    return record


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and its seconds until the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    found = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return found, time.perf_counter() - began


class Plain:
    def __init__(self, model: Any, settings: GenerationSection, ends: ResponseEnds, batch: int):
        self.name, self._batch = f"plain-{batch}", batch
        self._draw = lambda prompts: generate(model, ends, prompts, settings, 0)
        short = settings.model_copy(update={"max_new_tokens": 4})
        self._warm_up = lambda prompts: generate(model, ends, prompts, short, 0)

    def start(self, prompts: Tokens) -> None:
        self._warm_up(prompts[: self._batch])

    def round(self, prompts: Tokens) -> Tokens:
        some = prompts[: max(self._batch, 512)]
        batches = [some[at : at + self._batch] for at in range(0, len(some), self._batch)]
        return [ids for batch in batches for ids in self._draw(batch)]


class Captured:
    name = "captured"

    def __init__(self, model: Any, settings: GenerationSection, ends: ResponseEnds):
        self._sampler = JobSampler(ends)
        self._draw = lambda prompts: self._sampler(model, prompts, settings, range(len(prompts)), 1)
        self._make = lambda prompts: self._sampler._sampler(model, prompts, settings)

    def start(self, prompts: Tokens) -> None:
        if self._make(prompts) is None:
            raise RuntimeError(self._sampler.warnings[0])

    def round(self, prompts: Tokens) -> Tokens:
        return self._draw(prompts)


class Continuous:
    name = "continuous"

    def __init__(self, model: Any, settings: GenerationSection, ends: ResponseEnds):
        self._model = model
        sampled = settings.temperature > 0
        self._options = {
            "generation_config": transformers.GenerationConfig(
                max_new_tokens=settings.max_new_tokens,
                eos_token_id=list(ends.ids),
                pad_token_id=ends.ids[0],
                do_sample=sampled,
                **({"temperature": settings.temperature, "top_k": 0} if sampled else {}),
                **({"top_p": settings.top_p} if sampled else {}),
            ),
            "continuous_batching_config": transformers.ContinuousBatchingConfig(
                max_memory_percent=0.33
            ),
            "progress_bar": False,
            "persistent_manager": True,
        }

    def start(self, prompts: Tokens) -> None:
        self.round(prompts[:1024])  # sizes its caches by them

    def round(self, prompts: Tokens) -> Tokens:
        found = self._model.generate_batch(prompts, **self._options)
        return [list(output.generated_tokens) for output in found.values()]


def random_prompts(count: int, vocabulary: int, lengths: Sequence[int], first: int) -> Tokens:
    """Of so many tokens, evenly, none below `first`."""
    chance = torch.Generator().manual_seed(0)
    shortest, longest = lengths
    return [
        torch.randint(first, vocabulary, (int(length),), generator=chance).tolist()
        for length in torch.randint(shortest, longest + 1, (count,), generator=chance)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m", help="a directory, or a shape")
    parser.add_argument("--prompts", type=int, default=8192)
    parser.add_argument("--lengths", default="32,224", help="fewest and most tokens of a prompt")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--mean-length", type=int, default=0, help="0: all have --new-tokens")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--batches", default="256,1024,2048")
    parser.add_argument("--sides", default="plain,captured,continuous")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=540, help="seconds after which none begins")
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    began = time.perf_counter()

    options.work.mkdir(parents=True, exist_ok=True)
    is_cuda = torch.cuda.is_available()
    device = torch.device("cuda" if is_cuda else "cpu")
    directory = model_directory(options.model, "", options.work)
    model = load_causal_lm(
        str(directory), torch.bfloat16 if is_cuda else torch.float32, device
    ).eval()
    vocabulary = model.get_output_embeddings().weight.shape[0]
    num_ends = max(1, round(vocabulary / options.mean_length)) if options.mean_length else 1
    ends = ResponseEnds(tuple(range(num_ends)))
    lengths = [int(length) for length in options.lengths.split(",")]
    prompts = random_prompts(options.prompts, vocabulary, lengths, num_ends)
    settings = GenerationSection(
        max_new_tokens=options.new_tokens, temperature=options.temperature, top_p=options.top_p
    )
    sides: list[Any] = []
    names = options.sides.split(",")
    if "plain" in names:
        batches = [int(batch) for batch in options.batches.split(",")]
        sides += [Plain(model, settings, ends, batch) for batch in batches]
    sides += [Captured(model, settings, ends)] * ("captured" in names)
    sides += [Continuous(model, settings, ends)] * ("continuous" in names)
    say(
        device=torch.cuda.get_device_name() if is_cuda else "cpu",
        torch=torch.__version__,
        transformers=transformers.__version__,
        python=platform.python_version(),
        model=options.model,
        prompts=options.prompts,
        prompt_tokens=lengths,
        settings=settings.model_dump(mode="json"),
        mean_length=options.mean_length,
    )
    rates: dict[str, list[float]] = {}
    starts: dict[str, float] = {}
    for number in range(options.rounds + 1):
        for side in list(sides):
            if time.perf_counter() - began > options.limit:
                continue
            if is_cuda:
                torch.cuda.reset_peak_memory_stats()
            try:
                if number == 0:
                    _, starts[side.name] = timed(lambda side=side: side.start(prompts))
                    say(side=side.name, start_seconds=round(starts[side.name], 2))
                    continue
                found, seconds = timed(lambda side=side: side.round(prompts))
            except Exception as error:
                sides.remove(side)
                say(side=side.name, failed=f"{type(error).__name__}: {str(error)[:300]}")
                with contextlib.suppress(RuntimeError):
                    torch.cuda.empty_cache()
                continue
            tokens = sum(map(len, found))
            rates.setdefault(side.name, []).append(tokens / seconds)
            say(
                side=side.name,
                round=number,
                samples=len(found),
                mean_tokens=round(tokens / max(1, len(found)), 1),
                seconds=round(seconds, 3),
                tokens_per_second=round(tokens / seconds),
                peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 2) if is_cuda else None,
            )
    medians = {name: statistics.median(each) for name, each in rates.items()}
    plain = {name: rate for name, rate in medians.items() if name.startswith("plain-")}
    best = max(plain, key=lambda name: plain[name], default="")
    say(
        summary={name: round(rate) for name, rate in medians.items()},
        start_seconds={name: round(seconds, 2) for name, seconds in starts.items()},
        best_plain=best,
        captured_over_best_plain=round(medians["captured"] / plain[best], 2)
        if best and "captured" in medians
        else None,
    )


if __name__ == "__main__":
    main()
