"""Whose a claim is: a dead host's, one's with a wrong clock, one's of two of one name; a damaged
one; and of many that ask at once.
"""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from object_store import ObjectStore

from pipelines.errors import DamagedFile
from pipelines.storage import claims as claims_module
from pipelines.storage.claims import Claims, ClaimTimes
from pipelines.storage.creation import create
from pipelines.storage.store import RunStore

QUICK = ClaimTimes(renew=0.2, abandoned=4.0, settle=0.3)
CLAIM = "claims/x.json"


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(str(tmp_path))


def is_had(store: RunStore) -> bool:
    with Claims(store, QUICK).holding("x") as is_mine:
        return is_mine


def claim_of_another(store: RunStore, **changed: Any) -> None:
    """Of a process of another host, just now."""
    other = {**Claims(store).me, "holder": "z", "host": "another", "processes": "another 1"}
    store.write_json(CLAIM, {**other, "time": time.time(), **changed})


def written_before(store: RunStore, seconds: float) -> None:
    os.utime(store.local_path(CLAIM), (time.time() - seconds,) * 2)


@pytest.mark.parametrize("clock", [-1e6, -10.0, 0.0, 10.0, 1e6, 1e12, "soon", None])
def test_the_clock_of_a_dead_host_does_not_count(store: RunStore, clock: Any) -> None:
    """Whatever time it wrote, its claim is free when it was not renewed, and not before."""
    claim_of_another(store, time=time.time() + clock if isinstance(clock, float) else clock)
    assert not is_had(store)
    written_before(store, 10)
    assert is_had(store)


@pytest.mark.parametrize(
    "damaged",
    [
        b"", b"{", b"\xff\xfe\x00", b"null", b"[]", b"7", b'"x"', b"{}", b'{"holder": 5}',
        b'{"host": [], "pid": "no", "boot": {}}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_damaged_claim_is_held_until_it_is_old(store: RunStore, damaged: bytes) -> None:
    """It may have been somebody's: left alone while it is fresh, taken over then."""
    store.write_bytes(CLAIM, damaged)
    assert not is_had(store)
    assert store.read_bytes(CLAIM) == damaged
    written_before(store, 10)
    assert is_had(store)
    assert not store.exists(CLAIM)


def test_a_folder_in_a_claims_place_is_one_line(store: RunStore) -> None:
    store.write_bytes(f"{CLAIM}/inside", b"x")
    with (
        pytest.raises(DamagedFile, match=r"\.json is damaged: .* is a directory.*; remove it and "),
        Claims(store, QUICK).holding("x"),
    ):
        pass


def test_a_claim_with_parts_of_wrong_kinds_from_here_is_free(store: RunStore) -> None:
    claim_of_another(store, processes=Claims(store).me["processes"], pid=True, boot=[1])
    assert is_had(store)


def test_a_process_elsewhere_under_the_same_host_name_is_not_taken_for_dead(
    store: RunStore,
) -> None:
    """Its number means nothing here: in another container (the kernel's boot is the same), and on
    another machine. In this process's own namespace the number counts.
    """
    mine = Claims(store).me
    boot, _, namespace = mine["processes"].partition(" ")
    ended = 2**22 + 1  # above the largest number of a process
    for processes in (f"{boot} pid:[1]", f"another {namespace}", None, 5):
        claim_of_another(store, host=mine["host"], pid=ended, processes=processes)
        assert not is_had(store)
    claim_of_another(store, host="renamed", pid=ended, processes=mine["processes"])
    assert is_had(store)
    claim_of_another(store, host="renamed", processes=mine["processes"])
    assert not is_had(store)


def test_where_the_system_tells_no_processes_apart_age_decides(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without /proc."""
    monkeypatch.setattr(claims_module, "_process_namespace", lambda: None)
    monkeypatch.setattr(claims_module, "_start_of", lambda pid: None)
    store.write_json(CLAIM, {**Claims(store).me, "time": time.time()})
    assert not is_had(store)
    written_before(store, 10)
    assert is_had(store)


def test_who_was_held_up_does_not_take_a_claim_back(store: RunStore) -> None:
    """Another has taken it over meanwhile: it is neither renewed, nor removed at the end."""
    with Claims(store, QUICK).holding("x") as is_mine:
        assert is_mine
        claim_of_another(store)
        taken = store.read_bytes(CLAIM)
        time.sleep(3 * QUICK.renew)
        assert store.read_bytes(CLAIM) == taken
    assert store.read_bytes(CLAIM) == taken


def test_a_claim_that_is_held_stays_fresh(store: RunStore) -> None:
    """Renewed: a process that cannot see the holder finds it young."""
    with Claims(store, QUICK).holding("x") as is_mine:
        assert is_mine
        written_before(store, 100)
        time.sleep(4 * QUICK.renew)
        assert Claims(store)._age_seconds(CLAIM) < 2
    assert store.names("claims") == []


def test_one_of_many_makes_a_file(store: RunStore, object_store: ObjectStore) -> None:
    """At once, on a local disk and on S3, where the header alone decides (no waiting, no reading
    again); the others leave it as it is. No temporary file is left.
    """
    for place in (store, RunStore("s3://bucket/creation")):
        made: list[tuple[int, bool | None]] = []
        barrier = threading.Barrier(8)

        def make(number: int, place: RunStore = place, barrier: Any = barrier, made: Any = made):  # type: ignore[no-untyped-def]
            barrier.wait()
            made.append((number, create(place, "a/b", f"{number}".encode())))

        threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = [number for number, is_made in made if is_made]
        assert sorted(is_made is False for _, is_made in made) == [False] + [True] * 7
        assert place.read_bytes("a/b") == f"{winner}".encode()
        assert place.names("a") == ["b"]
    assert [file.name for file in store.local_path("a").iterdir()] == ["b"]


def test_where_links_cannot_be_made_a_claim_settles(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    assert create(store, "a", b"x") is None and not store.exists("a")
    started = time.monotonic()
    assert is_had(store) and time.monotonic() - started >= QUICK.settle
    assert [file.name for file in store.local_path().iterdir()] == ["claims"]


def test_a_claim_on_a_local_disk_needs_no_waiting(store: RunStore) -> None:
    started = time.monotonic()
    with Claims(store, ClaimTimes(settle=60)).holding("x") as is_mine:
        assert is_mine and json.loads(store.read_bytes(CLAIM))["pid"] == os.getpid()
    assert time.monotonic() - started < 30


@pytest.mark.slow
def test_claims_of_an_object_store(object_store: ObjectStore) -> None:
    """By its clock: a fresh claim of another host is held although that host's clock is behind by
    years; once it was not renewed it is taken over, although the clock was ahead.
    """
    store = RunStore("s3://bucket/claimed")
    claim_of_another(store, time=0)
    assert not is_had(store)
    claim_of_another(store, time=1e12)
    time.sleep(QUICK.abandoned + 1.5)  # the store's times are whole seconds
    with Claims(store, QUICK).holding("x") as is_mine:
        assert is_mine and not is_had(store)
    assert store.names("claims") == []
    assert is_had(store)
