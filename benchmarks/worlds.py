"""Methods on worlds whose truth is known, in one process or a few, without Ray.

    python benchmarks/worlds.py methods --seeds 0-2 --jobs 16 --out methods.jsonl
    python benchmarks/worlds.py worlds --seeds 0-4 --jobs 16 --out worlds.jsonl
    python benchmarks/world_tables.py methods methods.jsonl --figure docs/methods.png

methods: every objective and every producer of token weights on the quickstart's world.
worlds: five methods, each with five betas, on twelve worlds, where one of three dials is moved:
    words that carry no reward, label noise, length.

A world is made once per seed (texts, starting model, pairs, features of the frozen models) by the
product's stages, and every method is trained on it by the product's trainer. One JSON line per
world, seed and method is added to the file of --out; a command that was killed goes on where it
was. A line holds the losses of every step and, at the end (of `methods` on the way too),

gain:   mean reward (VADER) of samples on held-out prompts less the starting model's on the same.
kl:     KL(policy || reference) per response of the policy's samples, nats.
auc:    of the token weights for the words that carry the reward.

A line of a training that was refused or whose loss is not finite says so in `failed`.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from quickstart_seeds import seeds_of
from world_settings import Setting, World, settings_of, worlds_of

Key = tuple[str, int, str]  # of a line: world, seed, setting
# Shares of a training after which the policy is measured.
_ON_THE_WAY = (0.125, 0.25, 0.5, 0.75, 1.0)
# Worlds that may lie on the disk at once, for each process.
_WORLDS_PER_JOB = 1.5


def make_task(root: str, world: World, seed: int, settings: Sequence[Setting]) -> float:
    """Make a world; returns the seconds of CPU that it took."""
    _one_thread()
    from world_engine import Folder, make
    from world_measure import HeldOut

    started = time.process_time()
    folder = Folder(Path(root), world, seed)
    make(folder, settings)
    assert HeldOut(folder).before.rewards, "drawn before the methods, which read them"
    return time.process_time() - started


def measure_task(
    root: str, world: World, seed: int, setting: Setting, shares: Sequence[float]
) -> dict[str, Any]:
    """Train and measure one method."""
    _one_thread()
    from world_engine import Folder
    from world_measure import HeldOut, measure

    folder = Folder(Path(root), world, seed)
    found = measure(folder, HeldOut(folder), setting, shares)
    return {"world": world.name, "seed": seed, "setting": setting.name, **found}


def _one_thread() -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file; a last line that a killed command left half is cut off the file."""
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


def key_of(record: dict[str, Any]) -> Key:
    return record["world"], record["seed"], record["setting"]


class Schedule:
    """Worlds and methods on some processes: a world's methods begin when it is made.

    Args:
        work: folder of the worlds; each is removed with its last method.
        shares: of a training, after which it is measured.
    """

    def __init__(self, jobs: int, work: Path, shares: Sequence[float]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(jobs, mp_context=context)
        self.errors = 0  # tasks that ended in one
        self._most, self._work = max(1, int(jobs * _WORLDS_PER_JOB)), work
        self._shares = shares
        self._of: dict[Future[Any], tuple[World, int, Setting | None]] = {}
        self._left: dict[tuple[str, int], list[Setting]] = {}

    def results(
        self, todo: Sequence[tuple[World, int, Sequence[Setting]]]
    ) -> Iterator[dict[str, Any]]:
        """Records as they come."""
        waiting = list(todo)
        with self._pool:
            while waiting or self._of:
                while waiting and len(self._left) < self._most:
                    self._begin(*waiting.pop(0))
                for future in wait(self._of, return_when=FIRST_COMPLETED).done:
                    world, seed, setting = self._of.pop(future)
                    error = future.exception()
                    if error is not None:
                        self._note(world, seed, setting, error)
                    elif setting is None:
                        self._measure(world, seed)
                    if setting is not None:
                        self._forget(world, seed, setting)
                        if error is None:
                            yield future.result()

    def _note(self, world: World, seed: int, setting: Setting | None, error: BaseException) -> None:
        """Tell of an error; what does not depend on it goes on."""
        if isinstance(error, BrokenExecutor):
            raise error
        name = "its making" if setting is None else setting.name
        self.errors += 1
        print(f"{world.name} seed {seed}, {name}: {type(error).__name__}: {error}", flush=True)
        if setting is None:
            del self._left[world.name, seed]

    def _root(self, world: World, seed: int) -> str:
        return str(self._work / f"{world.name.replace(' ', '-').replace('%', '')}-{seed}")

    def _begin(self, world: World, seed: int, settings: Sequence[Setting]) -> None:
        self._left[world.name, seed] = list(settings)
        made = self._pool.submit(make_task, self._root(world, seed), world, seed, settings)
        self._of[made] = (world, seed, None)

    def _measure(self, world: World, seed: int) -> None:
        root = self._root(world, seed)
        for setting in self._left[world.name, seed]:
            task = self._pool.submit(measure_task, root, world, seed, setting, self._shares)
            self._of[task] = (world, seed, setting)

    def _forget(self, world: World, seed: int, setting: Setting) -> None:
        left = self._left[world.name, seed]
        left.remove(setting)
        if not left:
            del self._left[world.name, seed]
            shutil.rmtree(self._root(world, seed), ignore_errors=True)


def chosen(names: str | None, found: Sequence[Any], what: str) -> list[Any]:
    """Those of the names, separated by commas; all without."""
    if names is None:
        return list(found)
    known = {one.name: one for one in found}
    wanted = names.split(",")
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise SystemExit(f"{what} {unknown[0]!r}: allowed are {', '.join(known)}")
    return [known[name] for name in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=("methods", "worlds"))
    parser.add_argument("--seeds", type=seeds_of, default=None, help="0-2 and 0-4 by default")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one core each")
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines")
    parser.add_argument("--work", type=Path, help="folder of unfinished worlds")
    parser.add_argument("--settings", help="names, separated by commas; all by default")
    parser.add_argument("--worlds", help="names, separated by commas; all by default")
    options = parser.parse_args()
    # Of the processes that are started. A GPU's samples and its bfloat16 reference would make
    # another world of the same seed.
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    seeds = options.seeds or list(range(3 if options.table == "methods" else 5))
    settings = chosen(options.settings, settings_of(options.table), "setting")
    worlds = chosen(options.worlds, worlds_of(options.table), "world")
    done = {key_of(record) for record in read_lines(options.out)}
    todo = [
        (world, seed, missing)
        for seed in seeds
        for world in worlds
        if (missing := [s for s in settings if (world.name, seed, s.name) not in done])
    ]
    number, started = sum(len(missing) for _, _, missing in todo), time.monotonic()
    print(f"{number} trainings in {len(todo)} worlds, {len(done)} are done", flush=True)
    work = options.work or Path(tempfile.mkdtemp(prefix="worlds-"))
    shares = _ON_THE_WAY if options.table == "methods" else (1.0,)
    schedule = Schedule(options.jobs, work, shares)
    with options.out.open("a") as out:
        for count, record in enumerate(schedule.results(todo), start=1):
            out.write(json.dumps(record) + "\n")
            out.flush()
            last = record["points"][-1] if record["points"] else {"gain": 0, "kl": 0}
            print(
                f"{count}/{number} {record['world']} seed {record['seed']} {record['setting']}: "
                f"{record['failed'] or ''} gain {last['gain']:+.3f} at {last['kl']:.2f} nats, "
                f"{record['cpu_seconds']:.0f} s of CPU; {time.monotonic() - started:.0f} s",
                flush=True,
            )
    if schedule.errors:
        raise SystemExit(f"{schedule.errors} of the tasks ended in an error; run it again")


if __name__ == "__main__":
    main()
