"""What a training step takes on many GPUs: a simulation, from what one GPU and the links measured.

    python benchmarks/scaling_model.py --links 2,4 > links.jsonl
    python benchmarks/scaling_model.py --measured train.jsonl links.jsonl --shape pythia-1.4b
    python benchmarks/scaling_model.py --measured train.jsonl links.jsonl --shape pythia-1.4b \\
        --gpus 8,64,512 --pairs-per-gpu 32 --node-gpus 8 --network-gb 50 --lengths hh.jsonl

--links measures NCCL's all-reduce of one bucket of gradients on the GPUs of this machine.

--measured reads that, and the lines of train_step.py. Two runs of one worker with different batches
give the seconds per pair and those per step; nothing of the runs with several workers is used. It
prints a line for each of them: predicted and measured.

--gpus predicts sizes that nobody has run. Between nodes a GPU sends --network-gb gigabytes a second
(assumed), within a node what --links measured.

One step of replicated training: every rank computes its pairs, dealt as the pipeline deals them,
with the noise that one GPU's steps had. Its buckets of gradients become complete one after the
other during the backward of its last micro-batch. A bucket is summed once every rank has it, one
after the other. The step ends with the last bucket and what a step costs beside its pairs.
What it leaves out: sums slow the kernels that run beside them; reading; a slow host.
"""

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shapes import SHAPES

BUCKET_ELEMENTS = 2**24  # as pipelines/train/strategy.py sums them
BACKWARD = 2 / 3  # of a step's arithmetic
STEPS = 200  # simulated


@dataclass(frozen=True)
class Links:
    """An all-reduce over some GPUs: seconds = latency + bytes * 2 (n - 1) / n / rate."""

    latency: float
    bytes_per_second: float

    def seconds(self, size: float, gpus: int) -> float:
        if gpus == 1:
            return 0.0
        return self.latency + size * 2 * (gpus - 1) / gpus / self.bytes_per_second


@dataclass(frozen=True)
class OneGpu:
    """What one GPU takes: seconds per pair, per step beside them, and their relative noise."""

    per_pair: float
    per_step: float
    noise: float

    @classmethod
    def fitted(cls, runs: Sequence[dict[str, Any]]) -> "OneGpu":
        """From runs of one worker with two sizes of batches or more."""
        points = sorted((run["pairs_per_step"], run["median_step_seconds"]) for run in runs)
        if len({pairs for pairs, _ in points}) < 2:
            raise SystemExit("two runs of one worker with different batches are needed")
        (few, short), (many, long) = points[0], points[-1]
        per_pair = (long - short) / (many - few)
        steps = max(runs, key=lambda run: run["pairs_per_step"])["step_seconds"]
        noise = statistics.pstdev(steps) / statistics.mean(steps)
        return cls(per_pair, max(0.0, short - few * per_pair), noise)


def parameters_of(shape: str) -> int:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = dict(SHAPES[shape])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(settings.pop("model_type"), **settings)
        )
    return sum(parameter.numel() for parameter in model.parameters())


def simulated_step(
    one: OneGpu,
    links: Links,
    shares: Sequence[float],
    micro_batches: int,
    gradients: int,
    element_bytes: int,
    rng: random.Random,
) -> float:
    """Seconds of one step; shares: each rank's work in units of an average pair."""
    buckets = max(1, round(gradients / BUCKET_ELEMENTS))
    size = gradients * element_bytes / buckets
    ends, tails = [], []
    for share in shares:
        seconds = share * one.per_pair * max(0.0, rng.gauss(1.0, one.noise))
        ends.append(seconds)
        tails.append(seconds / micro_batches * BACKWARD)
    done = 0.0
    for number in range(buckets):
        left = (buckets - 1 - number) / buckets
        ready = max(end - tail * left for end, tail in zip(ends, tails, strict=True))
        done = max(done, ready) + links.seconds(size, len(shares))
    return done + one.per_step


def predicted_step(
    one: OneGpu,
    links: Links,
    lengths: Sequence[int],
    pairs_per_step: int,
    gpus: int,
    pairs_per_micro_batch: int,
    gradients: int,
    element_bytes: int,
) -> float:
    """Median seconds of a step over simulated steps of random rows."""
    rng = random.Random(0)
    mean = statistics.mean(lengths)
    micro_batches = max(1, round(pairs_per_step / gpus / pairs_per_micro_batch))
    found = []
    for _ in range(STEPS if gpus <= 64 else STEPS // 10):
        # Dealt by length, back and forth, as sparsepo/batching/cutting.py's rank_share does.
        ordered = sorted(rng.choices(lengths, k=pairs_per_step), reverse=True)
        shares = [0.0] * gpus
        for place, length in enumerate(ordered):
            turn, seat = divmod(place, gpus)
            shares[seat if turn % 2 == 0 else gpus - 1 - seat] += length / mean
        found.append(
            simulated_step(one, links, shares, micro_batches, gradients, element_bytes, rng)
        )
    return statistics.median(found)


def measure_links(rank: int, world: int, port: int, seconds: Any) -> None:
    """One process of --links."""
    import torch
    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", rank=rank, world_size=world)
    for place, elements in enumerate((1024, BUCKET_ELEMENTS)):
        bucket = torch.zeros(elements, dtype=torch.bfloat16, device="cuda")
        for number in range(60):
            if number == 10:
                torch.cuda.synchronize()
                started = time.perf_counter()
            dist.all_reduce(bucket)
        torch.cuda.synchronize()
        if rank == 0:
            seconds[place] = (time.perf_counter() - started) / 50
    dist.destroy_process_group()


def print_links(counts: Sequence[int]) -> None:
    import torch
    import torch.multiprocessing as processes

    for number, world in enumerate(counts):
        seconds = processes.get_context("spawn").Array("d", 2)
        processes.spawn(measure_links, (world, 29511 + number, seconds), nprocs=world)
        latency, bucket = list(seconds)
        rate = 2 * BUCKET_ELEMENTS * 2 * (world - 1) / world / (bucket - latency)
        record = {
            "links": world,
            "device": torch.cuda.get_device_name(),
            "latency_seconds": latency,
            "bytes_per_second": rate,
        }
        print(json.dumps(record), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--links", default="", help="comma separated numbers of GPUs to measure")
    parser.add_argument("--measured", type=Path, nargs="*", default=[], help="JSON lines")
    parser.add_argument("--shape", default="pythia-1.4b", help=", ".join(SHAPES))
    parser.add_argument("--element-bytes", type=int, default=2, help="of a gradient")
    parser.add_argument("--pairs-per-micro-batch", type=int, default=8)
    parser.add_argument("--gpus", default="", help="comma separated numbers to predict")
    parser.add_argument("--pairs-per-gpu", type=int, default=32)
    parser.add_argument("--node-gpus", type=int, default=8)
    parser.add_argument("--network-gb", type=float, default=50.0, help="per GPU and second")
    parser.add_argument("--network-latency", type=float, default=5e-5, help="seconds per doubling")
    parser.add_argument("--lengths", type=Path, default=None, help="JSON lines with texts")
    options = parser.parse_args()
    if options.links:
        print_links([int(number) for number in options.links.split(",")])
        return

    lines = [json.loads(line) for file in options.measured for line in file.open()]
    links = {
        line["links"]: Links(line["latency_seconds"], line["bytes_per_second"])
        for line in lines
        if "links" in line
    }
    runs = [line for line in lines if line.get("side") == "ray" and line["model"] == options.shape]
    one = OneGpu.fitted([run for run in runs if run["workers"] == 1])
    gradients = parameters_of(options.shape)
    alike = (options.pairs_per_micro_batch, gradients, options.element_bytes)
    found: list[dict[str, Any]] = []

    def say(**record: Any) -> None:
        found.append(record)
        print(json.dumps(record), flush=True)

    say(
        per_pair_seconds=one.per_pair,
        per_step_seconds=one.per_step,
        noise=one.noise,
        gradients=gradients,
    )
    for run in sorted(runs, key=lambda run: (run["scaling"], run["workers"])):
        workers, pairs = run["workers"], run["pairs_per_step"]
        if workers == 1 or workers in links:
            seconds = predicted_step(
                one, links.get(workers, Links(0, 1)), [1], pairs, workers, *alike
            )
            say(
                scaling=run["scaling"],
                workers=workers,
                pairs_per_step=pairs,
                predicted_seconds=seconds,
                measured_seconds=run["median_step_seconds"],
                predicted_over_measured=seconds / run["median_step_seconds"],
            )
    lengths = [1]
    if options.lengths:
        texts = [json.loads(line) for line in options.lengths.open()]
        lengths = [sum(len(t[k]) for k in ("prompt", "chosen", "rejected")) for t in texts]
    alone = one.per_step + options.pairs_per_gpu * one.per_pair
    for gpus in (int(number) for number in options.gpus.split(",") if number):
        if gpus <= options.node_gpus:
            link = links[max(links)]
        else:
            doublings = (gpus // options.node_gpus).bit_length()
            link = Links(options.network_latency * doublings, options.network_gb * 1e9)
        seconds = predicted_step(one, link, lengths, options.pairs_per_gpu * gpus, gpus, *alike)
        say(
            gpus=gpus,
            pairs_per_step=options.pairs_per_gpu * gpus,
            predicted_seconds=seconds,
            times_one_gpu=gpus * alone / seconds,
            assumed_network_gb=options.network_gb if gpus > options.node_gpus else None,
        )
    print(json.dumps({"benchmark": "scaling_model", "results": found}))


if __name__ == "__main__":
    main()
