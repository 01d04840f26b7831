"""What each producer of token weights costs a training step, and its features the reference.

    python benchmarks/producers.py --model pythia-1.4b --lengths 256+256 --pairs 8
    python benchmarks/producers.py --model tiny --lengths 16+16 --pairs 2 --rounds 2

Prints one JSON line per measurement, then all of them as one. A step is the policy's forward, the
mask, the loss, the backward and AdamW; the micro-batch and its features lie on the device. Features
of frozen models are what the stage would have stored. Steps of all producers take turns, so that
a clock that changes meets all of them; figures are medians over the rounds.

producer:  objective `weighted` with this mask against the same with weights of one (DPO).
           `mask_ms` is the mask alone. `transport-reference` reads stored states.
moments:   DPO's step when the policy's sum of squared probabilities is asked for too.
reference: the frozen model's pass over the same pairs, by what it is asked for, against
           log-probabilities alone.

Model weights are random; bfloat16 on a GPU, float32 elsewhere.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from shapes import SHAPES

from sparsepo import (
    FEATURES,
    Features,
    ModelInputs,
    PolicyModel,
    ReferenceModel,
    TokenizedPair,
    UniformMask,
    Weighted,
    enable_packing,
    packed_layout,
    padded_layout,
)
from sparsepo.masks import MASKS, TokenMasks

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
OF_THE_REFERENCE = ("reference_logps", "reference_entropy", "reference_hidden")


def say(**record: Any) -> dict[str, Any]:
    print(json.dumps(record), flush=True)
    return record


def build_model(shape: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(**SHAPES[shape])
    with DEVICE:
        return AutoModelForCausalLM.from_config(config, dtype=DTYPE).eval()


def build_inputs(
    model: Any, lengths: str, count: int, layout: str
) -> tuple[ModelInputs, dict[str, Any]]:
    """A micro-batch of pairs of exactly these lengths, and how it is laid out."""
    prompt, response = (int(part) for part in lengths.split("+"))
    vocabulary = model.config.vocab_size
    g = torch.Generator().manual_seed(1)

    def ids(number: int) -> list[int]:
        return [int(i) for i in torch.randint(0, vocabulary, (number,), generator=g)]

    pairs = [TokenizedPair(ids(prompt), ids(response), ids(response)) for _ in range(count)]
    obstacle = enable_packing(model) if layout == "packed" else "not asked for"
    inputs = padded_layout(pairs) if obstacle else packed_layout(pairs, pad_multiple=128)
    return inputs.to(DEVICE), {"layout": "padded" if obstacle else "packed", "pairs": count}


def stored(reference: ReferenceModel, inputs: ModelInputs) -> Features:
    """Features of the micro-batch; those that need other models are drawn."""
    tokens = len(inputs.labels)
    g = torch.Generator().manual_seed(2)

    def drawn() -> torch.Tensor:
        return torch.randn(tokens, generator=g).to(DEVICE)

    pairs = torch.arange(inputs.num_pairs, device=DEVICE)
    return replace(
        reference.features(inputs, OF_THE_REFERENCE),
        activation_mask=drawn().abs(),
        external_weights=drawn().abs(),
        scorer_log_ratios=drawn(),
        positive_logps=-drawn().abs(),
        negative_logps=-drawn().abs(),
        saliency=drawn().abs(),
        pair_keys=pairs,
        epoch=torch.zeros_like(pairs),
    )


def timed(call: Callable[[], Any]) -> float:
    """Milliseconds of one call, the device's work included."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) * 1e3


def medians(calls: dict[str, Callable[[], Any]], rounds: int, warmup: int) -> dict[str, float]:
    """Median milliseconds of each call; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(warmup + rounds):
        for name, call in calls.items():
            taken = timed(call)
            if number >= warmup:
                times[name].append(taken)
    return {name: statistics.median(found) for name, found in times.items()}


def masks() -> dict[str, TokenMasks]:
    """Every producer without parameters, with its defaults."""
    found = {kind: MASKS[kind]() for kind in MASKS if kind not in ("none", "learned")}
    return found | {"transport-reference": MASKS["transport"](states="reference")}


def measure_steps(
    model: Any, inputs: ModelInputs, features: Features, rounds: int, warmup: int
) -> list[dict[str, Any]]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=DEVICE.type == "cuda")
    objective = Weighted(0.1)

    def step(mask: TokenMasks, requires: tuple[str, ...] = ()) -> Callable[[], None]:
        policy = PolicyModel(model, mask, requires=requires)
        needed = {*mask.requires, "reference_logps"}
        others = {n for n in FEATURES if n not in needed or FEATURES[n].origin == "step"}
        read = replace(features, **dict.fromkeys(others))

        def run() -> None:
            optimizer.zero_grad(set_to_none=True)
            objective(policy(inputs, read)).losses.mean().backward()
            optimizer.step()

        return run

    kinds = masks()
    calls = {"none": step(UniformMask()), "moments": step(UniformMask(), ("policy_square_sum",))}
    calls |= {kind: step(mask) for kind, mask in kinds.items()}
    taken = medians(calls, rounds, warmup)
    hidden = features.reference_hidden
    known = replace(features, policy_logps=features.reference_logps, policy_hidden=hidden)
    alone = medians(
        {
            kind: lambda mask=mask: mask(known, inputs.response_index, inputs.num_pairs)
            for kind, mask in kinds.items()
        },
        rounds,
        warmup,
    )
    return [
        say(
            what="moments" if kind == "moments" else "producer",
            name=kind,
            step_ms=round(ms, 3),
            slower_percent=round(100 * (ms / taken["none"] - 1), 2),
            **({"mask_ms": round(alone[kind], 3)} if kind in alone else {}),
        )
        for kind, ms in taken.items()
    ]


def measure_reference(
    reference: ReferenceModel, inputs: ModelInputs, rounds: int, warmup: int
) -> list[dict[str, Any]]:
    asked = {
        "logps": ("reference_logps",),
        "logps+entropy+squares": (
            "reference_logps", "reference_entropy", "reference_square_sum",
        ),
        "logps+saliency": ("reference_logps", "saliency"),
    }  # fmt: skip
    taken = medians(
        {
            name: lambda wanted=wanted: reference.features(inputs, wanted)
            for name, wanted in asked.items()
        },
        rounds,
        warmup,
    )
    return [
        say(
            what="reference",
            name=name,
            pass_ms=round(ms, 3),
            times=round(ms / taken["logps"], 3),
            tokens_per_second=round(1e3 * int(inputs.attention_mask.sum()) / ms),
        )
        for name, ms in taken.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="pythia-1.4b", choices=sorted(SHAPES))
    parser.add_argument("--lengths", default="256+256", help="prompt+response tokens of the pairs")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of the micro-batch")
    parser.add_argument("--layout", default="padded", choices=("padded", "packed"))
    parser.add_argument("--rounds", type=int, default=15, help="measured steps per producer")
    parser.add_argument("--warmup", type=int, default=3, help="steps per producer before")
    options = parser.parse_args()
    model = build_model(options.model)
    inputs, laid_out = build_inputs(model, options.lengths, options.pairs, options.layout)
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.processor()
    about = {
        "device": device or "cpu", "torch": torch.__version__, "model": options.model,
        "lengths": options.lengths, "dtype": str(DTYPE).removeprefix("torch."),
        "scored_tokens": len(inputs.labels), **laid_out,
    }  # fmt: skip
    reference = ReferenceModel(model)
    features = stored(reference, inputs)
    found = measure_reference(reference, inputs, options.rounds, options.warmup)
    model.requires_grad_(True)  # from here on it is the policy
    found += measure_steps(model, inputs, features, options.rounds, options.warmup)
    print(json.dumps({**about, "measurements": found}), flush=True)


if __name__ == "__main__":
    main()
