"""Reward against distance with sparse token weights, on IMDB and HH: trials on several GPUs.

    python benchmarks/frontier_sparsity.py --model smollm2 --data data --work work \\
        --out frontier.jsonl --gpus 4 --jobs 12 --seconds 540
    python benchmarks/frontier_tables.py frontier.jsonl --json docs/frontier-sparsity.json

Data are imdb_reviews, imdb_prefix_pairs and four files of HH (frontier_data.py), as JSON lines or
those packed by xz. Processes hold the model, each on one GPU, and take one task after the other:
candidates are drawn and scored, a reward model is trained, then come the trials
(frontier_schedule.py says which is next). Every result is added to the file of --out as it comes;
a command that was killed or whose seconds were over goes on where it was, given the same --work.

A line with `setting` is a trial: its method, beta and seed, every loss, and in its last point

reward: mean probability of a positive review over the samples of the held-out prompts; gain: less
        that of the starting model's samples. kl: KL(policy || reference) per response, nats.
accuracy: of the implicit reward on held-out pairs. win/start, win/chosen: of HH, by a reward model.

Lines with `about` tell of the scorers and the data.
"""

import argparse
import json
import math
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from frontier_data import Folder
from frontier_schedule import Schedule
from frontier_settings import BY_NAME, SEEDS, SMALL_HH, SMALL_IMDB, Plan, Task, Trial
from worlds import chosen, read_lines

from pipelines.recipe import MANIFEST

_POLL_SECONDS, _TRIES = 1.0, 2


@dataclass(frozen=True)
class Step:
    """A call of an engine: the name of its method and what it is given.

    Attributes:
        made: the file that is there once it is done; None for a trial. needs: steps before it.
    """

    method: str
    given: tuple[Any, ...]
    made: Path | None = None
    needs: tuple["Step", ...] = ()

    def __str__(self) -> str:
        return " ".join(
            [self.method, *(one.name if isinstance(one, Trial) else str(one) for one in self.given)]
        )

    def is_done(self) -> bool:
        return self.made is not None and self.made.is_file()


def steps_of(plan: Plan) -> list[Step]:
    """All that comes before the trials."""
    imdb, hh = Folder(plan, "imdb"), Folder(plan, "hh")
    scorer = Step("fit_scorer", (), imdb.about)
    judge = Step("train_judge", (), hh.held_out)
    draws = [Step("draw", (shard,), imdb.drawn(shard)) for shard in range(plan.shards)]
    files = {
        "imdb": Step("write_pairs", ("imdb",), imdb.held_out, (scorer, *draws)),
        "hh": Step("write_pairs", ("hh",), Path(f"{hh.pairs(SEEDS['hh'][-1])}-train.jsonl")),
    }
    folders: dict[Task, Folder] = {"imdb": imdb, "hh": hh}
    prepared = [
        Step("prepare", (task, seed), folder.pairs(seed) / MANIFEST, (files[task],))
        for task, folder in folders.items()
        for seed in SEEDS[task]
    ]
    return [scorer, judge, *draws, *files.values(), *prepared]


def serve(connection: Connection, plan: Plan, threads: int) -> None:
    """A process: it takes steps until it is ended."""
    import torch
    from frontier_engine import Engine

    torch.set_num_threads(threads)
    engine = Engine(plan)
    while True:
        step: Step = connection.recv()
        try:
            connection.send((getattr(engine, step.method)(*step.given), None))
        except Exception as error:
            connection.send((None, f"{type(error).__name__}: {error}"))
            if "CUDA error" in str(error):  # the device is of no more use to this process
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # others share the device


class Processes:
    """Engines in processes of their own, each on one GPU, several of them on each."""

    def __init__(self, plan: Plan, jobs: int, gpus: int, threads: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._plan, self._gpus, self._threads = plan, gpus, threads
        self._processes: dict[int, Any] = {}
        self._connections: dict[int, Connection] = {}
        self._doing: dict[int, Step] = {}
        for number in range(jobs):
            self._start(number)

    def _start(self, number: int) -> None:
        here, there = self._context.Pipe()
        # Inherited: a process chooses its device before it asks for any.
        os.environ["CUDA_VISIBLE_DEVICES"] = str(number % self._gpus) if self._gpus else ""
        os.environ["OMP_NUM_THREADS"] = str(self._threads)
        process = self._context.Process(
            target=serve, args=(there, self._plan, self._threads), daemon=True
        )
        process.start()
        there.close()
        self._processes[number], self._connections[number] = process, here

    def free(self) -> list[int]:
        return [number for number in self._processes if number not in self._doing]

    def give(self, number: int, step: Step) -> None:
        self._doing[number] = step
        self._connections[number].send(step)

    def results(self, seconds: float) -> Iterator[tuple[Step, Any, str | None]]:
        """What has ended: the step, what it returned, its error."""
        waiting = {self._connections[number]: number for number in self._doing}
        for connection in wait(list(waiting), seconds):
            number = waiting[connection]  # type: ignore[index]
            step = self._doing.pop(number)
            try:
                found, error = self._connections[number].recv()
            except (EOFError, ConnectionError):
                found, error = None, "its process ended"
                self._processes[number].join()
                self._start(number)
            yield step, found, error

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.join()


class Here:
    """One engine in this process."""

    def __init__(self, plan: Plan) -> None:
        from frontier_engine import Engine

        self._engine = Engine(plan)
        self._ended: list[tuple[Step, Any, str | None]] = []

    def free(self) -> list[int]:
        return [] if self._ended else [0]

    def give(self, number: int, step: Step) -> None:
        self._ended.append((step, getattr(self._engine, step.method)(*step.given), None))

    def results(self, seconds: float) -> Iterator[tuple[Step, Any, str | None]]:
        while self._ended:
            yield self._ended.pop()

    def close(self) -> None:
        pass


class Run:
    """Gives steps to processes until all is done or the time is over."""

    def __init__(
        self,
        plan: Plan,
        records: Sequence[dict[str, Any]],
        settings: Sequence[str],
        most: int | None = None,
    ) -> None:
        self.schedule = Schedule(records, settings)
        self._left = math.inf if most is None else most  # trials to begin
        self._steps = steps_of(plan)
        self._begun: set[Step] = set()
        self._errors: Counter[Step] = Counter()

    def go(
        self, processes: Processes | Here, until: float, say: Callable[[dict[str, Any]], None]
    ) -> None:
        """Args: until: by the monotonic clock. say: is given every result as it comes."""
        doing = 0
        while time.monotonic() < until:
            for number in processes.free():
                step = self._next()
                if step is None:
                    break
                processes.give(number, step)
                doing += 1
            if not doing:
                return
            for step, found, error in processes.results(_POLL_SECONDS):
                doing -= 1
                if error is not None:
                    say({"about": "error", "step": str(step), "error": error})
                    self._errors[step] += 1
                    if self._errors[step] < _TRIES:
                        self._begun.discard(step)
                elif found is not None:
                    say(found)
                if step.method == "trial":
                    (trial,) = step.given
                    self.schedule.drop(trial) if error else self.schedule.add(found)

    def _next(self) -> Step | None:
        for step in self._steps:
            if step in self._begun or step.is_done():
                continue
            if all(need.is_done() for need in step.needs):
                self._begun.add(step)
                return step
        trial = self.schedule.next(self._ready()) if self._left > 0 else None
        if trial is None:
            return None
        self._left -= 1
        return Step("trial", (trial,))

    def _ready(self) -> set[tuple[Task, int]]:
        """Tasks and seeds whose pairs are prepared; of HH there is a judge, too."""
        judge = self._steps[1].is_done()
        return {
            step.given
            for step in self._steps
            if step.method == "prepare" and step.is_done() and (step.given[0] == "imdb" or judge)
        }  # type: ignore[return-value]


def line_of(record: dict[str, Any]) -> str:
    if "setting" not in record:
        return json.dumps(record)
    last = record["points"][-1] if record["points"] else {}
    names = ("reward", "win/start", "accuracy", "kl")
    shown = ", ".join(f"{name} {last[name]:.3f}" for name in names if name in last)
    return f"{Trial.of(record).name}: {record['failed'] or shown}; {record['seconds']}"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="directory of the starting model")
    parser.add_argument("--data", required=True, help="folder of the data")
    parser.add_argument("--work", type=Path, required=True, help="folder of pairs and scorers")
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines")
    parser.add_argument("--gpus", type=int, default=0, help="that the processes share")
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0 for this one alone")
    parser.add_argument("--threads", type=int, default=4, help="of each process")
    parser.add_argument("--seconds", type=float, default=1e9, help="after which it ends")
    parser.add_argument("--trials", type=int, help="that are begun; all by default")
    parser.add_argument("--settings", help="names, separated by commas; all by default")
    parser.add_argument("--small", action="store_true", help="a few pairs, to see that it works")
    options = parser.parse_args(given)
    started = time.monotonic()
    os.environ["HF_HUB_OFFLINE"] = "1"  # of the processes, too
    names = [s.name for s in chosen(options.settings, list(BY_NAME.values()), "setting")]
    sizes = {"imdb": SMALL_IMDB, "hh": SMALL_HH, "shards": 2} if options.small else {}
    plan = Plan(options.model, options.data, str(options.work.absolute()), **sizes)
    records = read_lines(options.out)
    run = Run(plan, records, names, options.trials)
    processes = (
        Processes(plan, options.jobs, options.gpus, options.threads) if options.jobs else Here(plan)
    )
    with options.out.open("a") as out:

        def say(record: dict[str, Any]) -> None:
            out.write(json.dumps(record) + "\n")
            out.flush()
            print(f"{time.monotonic() - started:.0f} s: {line_of(record)}", flush=True)

        try:
            run.go(processes, started + options.seconds, say)
        finally:
            processes.close()
    missing = run.schedule.missing()
    print(f"{len(missing)} trials are missing: {', '.join(trial.name for trial in missing[:20])}")


if __name__ == "__main__":
    main()
