"""watch: a page of a run or sweep while it works, for a browser on this machine."""

import contextlib
import threading
import webbrowser
from collections.abc import Callable, Mapping

from evaluation.report.charts import embedded_json
from evaluation.report.live import live_files, render_live
from pipelines.commands.watch_server import Answer, serving
from pipelines.commands.watched import LookFailed, WatchedRun, run_state
from pipelines.commands.watched_sweep import WatchedSweep
from pipelines.storage import RunStore
from pipelines.sweep import is_sweep_folder

_TYPES = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
_RUNS = "run/"  # below which a sweep's runs have their pages


class Pages:
    """What there is below an address: the page of a run, or of a sweep and each of its runs.

    What lies in the directory may not be known yet, and is looked at again until it is.
    """

    def __init__(self, run_dir: str) -> None:
        self._run_dir, self._store = run_dir, RunStore(run_dir)
        self._run = WatchedRun(run_dir)
        self._sweep: WatchedSweep | None = None
        self._runs: dict[str, WatchedRun] = {}
        self._lock = threading.Lock()
        self._files = live_files()

    def answer(self, path: str, query: Mapping[str, str]) -> Answer | None:
        if path in self._files:
            kind = _TYPES[path.rpartition(".")[2]]
            return Answer(self._files[path], kind, is_kept=True)
        sweep = self._found_sweep()
        if path in ("", "data"):
            shown = sweep or self._run
            return self._of(shown, path, query, "", self._run_dir, sweep is not None)
        if sweep is None or not path.startswith(_RUNS):
            return None
        name, _, rest = path.removeprefix(_RUNS).rpartition("/")
        if name not in sweep.runs() or rest not in ("", "data"):
            return None
        with self._lock:
            run = self._runs.setdefault(name, WatchedRun(f"{self._store.root}/{name}"))
        up = "../" * (name.count("/") + 2)
        return self._of(run, rest, query, up, f"{self._run_dir.rstrip('/')}/{name}", False)

    def _of(
        self,
        watched: WatchedRun | WatchedSweep,
        path: str,
        query: Mapping[str, str],
        up: str,
        name: str,
        is_sweep: bool,
    ) -> Answer:
        if path == "data":
            return Answer(embedded_json(watched.told(query)).encode(), "application/json")
        page = render_live(name, is_sweep=is_sweep, up=up)
        return Answer(page.encode(), "text/html; charset=utf-8")

    def _found_sweep(self) -> WatchedSweep | None:
        with self._lock:
            with contextlib.suppress(*LookFailed):  # the page of the run says so
                if self._sweep is None and is_sweep_folder(self._store):
                    self._sweep = WatchedSweep(self._run_dir)
            return self._sweep


def run_watch(run_dir: str, port: int | None, opens: bool, say: Callable[[str], None]) -> None:
    """Serve the page of a run or sweep until this is interrupted.

    Raises: UserError for a place that can hold no run, or a port that cannot be had.
    """
    pages = Pages(run_dir)
    with serving(pages.answer, port) as address:
        state = run_state(run_dir)
        say(f"watch: {state['headline']}")
        say(f"watch: {address.url}")
        say("watch: Ctrl-C ends it; whoever has this address can read the run")
        if opens and not webbrowser.open(address.opening()):
            say("watch: no browser could be started; open the address above")
        threading.Event().wait()
