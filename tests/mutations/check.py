"""Put one fault after the other into a copy of the checkout, and see its test go red.

    python tests/mutations/check.py [--jobs 2] [TEXT ...]

Prints a line of JSON per fault and fails if one survived, or if a test is red without its fault.
TEXT: only faults whose file or test contains it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import yaml

ROOT = Path(__file__).parent.parent.parent
FAULTS = Path(__file__).parent / "faults.yaml"
_SECONDS = 600


@dataclass(frozen=True)
class Fault:
    """One wrong line.

    Attributes:
        file: that it is in. find: text that the file holds once. replace: what stands there
            instead. test: id of a test that catches it.
    """

    file: str
    find: str
    replace: str
    test: str

    def applied(self, source: str) -> str:
        """The file's text with the fault.

        Raises: ValueError if the text to replace does not stand there once.
        """
        if source.count(self.find) != 1:
            raise ValueError(f"{self.file} holds {source.count(self.find)} times: {self.find}")
        return source.replace(self.find, self.replace)


def read_faults() -> list[Fault]:
    return [Fault(**fault) for fault in yaml.safe_load(FAULTS.read_text())]


class Copy:
    """A copy of the checkout's tracked files, to break and mend."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)

    def passes(self, tests: Sequence[str]) -> bool:
        """Whether all tests pass; killed after ten minutes for each, which counts as red."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",  # a fault of the same length within a second is seen
            "OMP_NUM_THREADS": "1",
            "SPARSEPO_CACHE": str(self.folder / ".cache"),  # faulty code remembers nothing of ours
        }
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        try:
            done = subprocess.run(
                command,
                cwd=self.folder,
                env=environment,
                capture_output=True,
                timeout=_SECONDS * len(tests),
            )
        except subprocess.TimeoutExpired:
            return False
        if done.returncode not in (0, 1):
            raise RuntimeError(f"{' '.join(tests)}: {done.stdout.decode()[-2000:]}")
        return done.returncode == 0

    def passes_with(self, fault: Fault) -> bool:
        file = self.folder / fault.file
        source = file.read_text()
        file.write_text(fault.applied(source))
        try:
            return self.passes([fault.test])
        finally:
            file.write_text(source)
            shutil.rmtree(self.folder / ".cache", ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("only", nargs="*", metavar="TEXT")
    options = parser.parse_args()
    faults = [
        fault
        for fault in read_faults()
        if not options.only or any(text in fault.file + fault.test for text in options.only)
    ]
    with tempfile.TemporaryDirectory() as folder:
        copies: SimpleQueue[Copy] = SimpleQueue()
        for number in range(options.jobs):
            copies.put(Copy(Path(folder) / str(number)))

        def check(fault: Fault) -> bool:
            copy, started = copies.get(), time.monotonic()
            try:
                caught = not copy.passes_with(fault)
            finally:
                copies.put(copy)
            row = {"file": fault.file, "test": fault.test, "caught": caught}
            print(json.dumps({**row, "seconds": round(time.monotonic() - started)}), flush=True)
            return caught

        whole = copies.get()
        is_green = whole.passes(sorted({fault.test for fault in faults}))
        copies.put(whole)
        with ThreadPoolExecutor(options.jobs) as pool:
            survived = sum(not caught for caught in pool.map(check, faults))
    print(json.dumps({"faults": len(faults), "survived": survived, "green_without": is_green}))
    return int(bool(survived) or not is_green)


if __name__ == "__main__":
    sys.exit(main())
