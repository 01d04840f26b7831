"""Hostile programs (tests/support/hostile_programs.py) are contained: none passes, and each fails
for the reason that is meant to stop it.
"""

import functools
import re
import time
from pathlib import Path

import pytest
from hostile_programs import ENDLESS, HOSTILE, TEST
from isolation import needs_isolation

from pipelines.errors import UserError
from pipelines.evaluate import sandbox
from pipelines.evaluate.sandbox import Limits, Verdict, run_programs
from pipelines.evaluate.sandbox_calls import REFUSED, RULED, system_call_filter

LIMITS = Limits(wall_seconds=30, cpu_seconds=10, memory_bytes=2**28)
BRIEF = Limits(wall_seconds=1.5, cpu_seconds=1, memory_bytes=2**28)


@functools.cache
def verdicts() -> dict[str, Verdict]:
    """All of them, a few side by side; programs that end by themselves have time to."""
    found = run_programs([(program, TEST) for program, _ in HOSTILE.values()], LIMITS, at_once=4)
    return dict(zip(HOSTILE, found, strict=True))


@pytest.mark.slow
@needs_isolation
@pytest.mark.parametrize("name", HOSTILE)
def test_no_trick_works(name: str) -> None:
    verdict = verdicts()[name]
    assert verdict.status == "failed" and HOSTILE[name][1] in verdict.message, verdict
    assert len(verdict.message) <= 300 and verdict.message.isprintable()


@pytest.mark.slow
@needs_isolation
def test_what_never_ends_is_ended_and_leaves_nothing() -> None:
    """By the clock or a limit; then no process, mount or directory of a sandbox is there, and an
    honest program passes.
    """
    before = set(Path("/tmp").glob("*sandbox*"))
    started = time.monotonic()
    found = run_programs([(program, TEST) for program in ENDLESS.values()], BRIEF, at_once=3)
    assert [v.status for v in found if v.status not in ("failed", "timeout")] == []
    assert [v.status for v in found].count("timeout") >= 5
    assert time.monotonic() - started < 60
    deadline = time.monotonic() + 30
    while users_of_sandboxes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert users_of_sandboxes() == []
    assert set(Path("/tmp").glob("*sandbox*")) <= before
    assert "sparsepo-sandbox" not in Path("/proc/self/mounts").read_text()
    honest = run_programs([("def f():\n    return 1\n", TEST)], LIMITS)
    assert [v.status for v in honest] == ["passed"]


def users_of_sandboxes() -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found.append(process.stat().st_uid)
        except OSError:
            continue
    return [user for user in found if sandbox._UIDS <= user < 2 * sandbox._UIDS]


@pytest.mark.parametrize(
    ("machine", "header", "column"),
    [
        ("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", 0),
        ("aarch64", "/usr/include/asm-generic/unistd.h", 1),
    ],
)
def test_numbers_of_system_calls_are_the_kernels(machine: str, header: str, column: int) -> None:
    """As the kernel's own headers have them; pivot_root's stands once more in the sandbox."""
    if not Path(header).exists():
        pytest.skip("the kernel's headers are not installed")
    text = Path(header).read_text()
    for name, numbers in {**REFUSED, **RULED}.items():
        found = re.search(rf"__NR(?:3264)?_{name}\s+(\d+)", text)
        assert found and int(found[1]) == numbers[column], name
    assert f'"{machine}": {REFUSED["pivot_root"][column]}' in sandbox._INIT


def answer(steps: bytes, audit: int, number: int, *arguments: int) -> int:
    """What a filter says to a system call, step by step as the kernel's machine goes."""
    import struct

    data = struct.pack("<IIQ6Q", number, audit, 0, *arguments, *[0] * (6 - len(arguments)))
    at = value = 0
    while True:
        operation, if_true, if_false, operand = struct.unpack_from("<HBBI", steps, 8 * at)
        at += 1
        if operation == 0x20:
            (value,) = struct.unpack_from("<I", data, operand)
        elif operation == 0x06:
            return int(operand)
        else:
            true = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}
            at += if_true if true[operation] else if_false


@pytest.mark.parametrize(("machine", "audit", "column"), [
    ("x86_64", 0xC000003E, 0), ("aarch64", 0xC00000B7, 1)])  # fmt: skip
def test_the_filter_allows_what_programs_need(machine: str, audit: int, column: int) -> None:
    """On either machine, whatever this one is: an allow-list of families, forks but no namespaces,
    private but no shared anonymous memory; and another machine's calls end the program.
    """
    steps = system_call_filter(machine)
    allowed, killed, eperm, enosys = 0x7FFF0000, 0x80000000, 0x50001, 0x50026

    def ask(name: str, *arguments: int) -> int:
        return answer(steps, audit, {**REFUSED, **RULED}[name][column], *arguments)

    assert {ask(name) for name in REFUSED} == {eperm}
    assert ask("clone3") == enosys
    assert [ask("clone", flags) for flags in (0x11, 0x3D0F00, 0x10000011)] == [
        allowed, allowed, eperm]  # fmt: skip
    assert [ask("mmap", 0, 0, 3, flags) for flags in (0x22, 0x02, 0x01, 0x21, 0x23)] == [
        allowed, allowed, allowed, eperm, eperm]  # fmt: skip
    families = {n for n in range(64) if ask("socket", n, 1, 0) == allowed}
    assert families == {1, 2, 10} == {n for n in range(64) if ask("socketpair", n, 1, 0) == allowed}
    assert {n for n in range(300) if ask("socket", 2, 1, n) == allowed} == {0, 6, 17}
    assert {n for n in range(2000) if ask("fcntl", 0, n) == eperm} == {6, 7, 37, 38, 1024, 1026}
    refused = {numbers[column] for numbers in REFUSED.values()} | {RULED["clone3"][column]}
    ruled = {RULED[name][column] for name in ("socket", "socketpair")}  # family 0 is none
    assert {n for n in range(460) if answer(steps, audit, n) != allowed} == refused | ruled
    assert answer(steps, audit ^ 1, 0) == killed and answer(steps, audit, 0x40000000) == eperm
    with pytest.raises(UserError, match="knows the system calls of x86_64 and aarch64"):
        system_call_filter("riscv64")
