"""What a sandbox keeps out of reach, honest programs, and no isolation, no run; hostile programs
are in test_hostile_programs.py.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from checkout import ROOT
from isolation import needs_isolation

from pipelines.errors import UserError
from pipelines.evaluate import sandbox
from pipelines.evaluate.sandbox import Limits, require_isolation, run_program, run_programs

LIMITS = Limits(wall_seconds=5, cpu_seconds=2)


pytestmark = needs_isolation


def test_network_is_out_of_reach() -> None:
    """A listener of this machine is not found, by address or through a Unix socket's abstract
    name; outside the sandbox it is.
    """
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind("\0sparsepo-test")
        local.listen()
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        program = (
            f"import socket\ndef tcp():\n    socket.create_connection(('127.0.0.1', {port}), "
            "timeout=1)\n"
        )
        program += (
            "def unix():\n    s = socket.socket(socket.AF_UNIX)\n    "
            "s.connect('\\0sparsepo-test')\n"
        )
        for function in ("tcp", "unix"):
            verdict = run_program(program, f"{function}()\n", LIMITS)
            assert verdict.status == "failed" and (
                "unreachable" in verdict.message or "refused" in verdict.message
            ), verdict


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees a process of another user whole")
def test_a_sandbox_has_namespaces_of_its_own() -> None:
    """As the kernel says of a running program, seen from outside; its rights too."""
    program = "import time\ndef f():\n    time.sleep(2)\n    return 1\n"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_program, program, "assert f() == 1\n", Limits(wall_seconds=60))
        found: list[Path] = []
        while not running.done() and len(found) < 2:
            own = psutil.Process().children(recursive=True)  # another test may run a sandbox too
            found = [p for c in own if _uid(p := Path(f"/proc/{c.pid}")) >= sandbox._UIDS]
            found = [p for p in found if b"candidate" in _command(p) or b"tester" in _command(p)]
        spaces = [_namespaces(p) for p in found]
        status = [(p / "status").read_text() for p in found]
        assert running.result().status == "passed"
    assert len(spaces) == 2
    here = _namespaces(Path("/proc/self"))
    for name in here:
        assert len({spaces[0][name], spaces[1][name], here[name]}) == 3, name
    for text in status:
        rights = dict(re.findall(r"^(\w+):\s+(\w+)$", text, re.M))
        assert (rights["NoNewPrivs"], rights["Seccomp"]) == ("1", "2")
        assert {rights[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}


def _namespaces(process: Path) -> dict[str, str]:
    names = ("mnt", "pid", "net", "ipc", "uts")
    return {name: str((process / "ns" / name).readlink()) for name in names}


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()[-40:]
    except OSError:
        return b""


def _uid(process: Path) -> int:
    try:
        return process.stat().st_uid
    except OSError:
        return -1


def test_files_and_secrets_are_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither this test's file, nor the passwords, nor the environment, nor this process; its
    own directory is empty and writable.
    """
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    secret.chmod(0o644)
    monkeypatch.setenv("SPARSEPO_SECRET", "s3cret")
    program = f"""
import os
def read(path):
    return open(path).read()
def write(path):
    open(path, "w").write("x")
def environment():
    return sorted(os.environ)
def here():
    before = os.listdir(".")
    write("mine")
    return [before, os.listdir("."), os.getcwd()]
def kill():
    os.kill({os.getpid()}, 9)
def capabilities():
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    mounted = libc.mount(b"none", b"/work", b"tmpfs", 0, None)
    return [mounted, libc.unshare(0x10000000), libc.ptrace(0, 0, 0, 0)]
"""
    for call in (
        f"read({str(secret)!r})",
        "read('/etc/passwd')",
        f"write({str(tmp_path / 'new')!r})",
        "write('/usr/new')",
        "kill()",
    ):
        verdict = run_program(program, f"{call}\n", LIMITS)
        assert verdict.status == "failed" and any(
            e in verdict.message
            for e in ("FileNotFoundError", "PermissionError", "ProcessLookupError", "OSError")
        ), (call, verdict)
    assert not (tmp_path / "new").exists()
    tests = (
        "assert 'SPARSEPO_SECRET' not in environment()\nassert here() == [[], ['mine'], '/work']\n"
        "assert capabilities() == [-1, -1, -1]\n"
    )
    assert run_program(program, tests, LIMITS).status == "passed"


def test_honest_programs_pass_and_wrong_ones_fail() -> None:
    """Values of every plain kind come back as they are, arguments changed in place too; errors
    keep their type.
    """
    program = """
from collections import Counter
import math
def echo(x): return x
def count(text): return Counter(text)
def squares(n): return (i * i for i in range(n))
def order(values): values.sort()
def root(x): return math.sqrt(x)
def big(): return 7 ** 200
"""
    values = [
        None,
        True,
        -3,
        2.5,
        float("inf"),
        1j,
        "é",
        b"\x00\xff",
        [1, (2, [3])],
        {"a": {1, 2}},
        frozenset({4}),
        range(3),
        {(1, 2): "k"},
    ]
    tests = "".join(
        f"assert echo({v!r}) == {v!r} and type(echo({v!r})) is type({v!r})\n" for v in values
    ).replace("inf)", "float('inf'))")
    tests = tests.replace("== inf", "== float('inf')").replace("type(inf)", "type(float('inf'))")
    tests += """
assert count("aab") == {"a": 2, "b": 1}
assert list(squares(4)) == [0, 1, 4, 9]
given = [3, 1, 2]
order(given)
assert given == [1, 2, 3]
assert math.isclose(root(2.0), 2 ** 0.5)
assert big() == 7 ** 200
assert echo(x=5) == 5
try:
    root(-1)
except ValueError:
    pass
else:
    assert False
"""
    verdict = run_program(program, tests, LIMITS)
    assert verdict.status == "passed", verdict
    assert run_program(program, "assert big() == 7 ** 201\n", LIMITS).status == "failed"
    many = run_programs(
        [(f"def f():\n    return {i}\n", "assert f() % 2 == 0\n") for i in range(6)],
        LIMITS,
        at_once=3,
    )
    assert [v.status for v in many] == ["passed", "failed"] * 3


# Programs and tests that share names with Python; one module (HumanEval's way) says which pass.
NAMES = [
    ("def sum(a, b):\n    return a + b\n", "assert sum(2, 3) == 5\n"),
    ("def sum(a, b):\n    return a - b\n", "assert sum(2, 3) == 5\n"),
    ("def sorted(values):\n    return values[::-1]\n", "assert sorted([3, 1]) == [1, 3]\nassert "
        "sorted([1, 3]) == [3, 1]\n"),
    ("def max(values):\n    return values[0]\n", "assert max([3, 1]) == 3\n"),
    ("def len(values):\n    return 7\n", "def check(candidate):\n    assert candidate([]) == 7\n\n"
        "check(len)\n"),
    ("def print(x):\n    return x + 1\n", "assert print(3) == 4\n"),
    ("def set(x):\n    return [x]\n", "assert set(3) == [3]\n"),
    ("def type(x):\n    return 'kind'\n", "assert type(3) == 'kind'\n"),
    ("def math(x):\n    return 2 * x\n", "assert math(2) == 4\n"),
    ("def collections(x):\n    return 3 * x\n", "assert collections(2) == 6\n"),
    ("def __call__(x):\n    return 4 * x\n", "assert __call__(2) == 8\n"),
    ("__name__ = 'mine'\ndef f():\n    return __name__\n", "assert f() == 'mine'\n"),
    ("class math:\n    @staticmethod\n    def isclose(a, b):\n        return True\n", "assert "
        "math.isclose(1, 2)\n"),
    ("class list(list):\n    pass\ndef f():\n    return list((1, 2))\n", "assert f() == [1, 2] "
        "and list((3,)) == [3]\n"),
    ("class int(int):\n    pass\ndef f():\n    return int(3)\n", "assert f() == 3\n"),
    ("class ValueError(Exception):\n    pass\ndef f():\n    raise ValueError('x')\n", "try:\n    "
        "f()\n"
        "except "
        "ValueError "
        "as error:\n"
        "    assert "
        "str(error) "
        "== 'x'\n"
        "else:\n    "
        "assert "
        "False\n"),
    ("def f():\n    return b'\\xff'.decode('ascii')\n", "try:\n    f()\nexcept "
        "UnicodeDecodeError:\n    pass\n"),
    ("import json\ndef f():\n    json.loads('{')\n", "try:\n    f()\nexcept ValueError:\n    "
        "pass\n"),
    ("def f(x):\n    assert x\n", "try:\n    f(0)\n    assert False, 'no error'\nexcept "
        "AssertionError as error:\n    assert not str(error)\n"),
    ("import math\ndef f():\n    return 2 ** 0.5\n", "assert math.isclose(f(), math.sqrt(2))\n"),
    (
        "import statistics as random\ndef f():\n    return 2\n",
        "assert random.mean([1, 3]) == f()\n",
    ),
    ("def f():\n    return 2 ** 0.5\n", "assert math.isclose(f(), 2 ** 0.5)\n"),
    ("from math import sqrt\n", "assert sqrt(4.0) == 2.0\n"),
    ("list = [1]\ndef f():\n    return [1]\n", "assert f() == list((1,))\n"),
    ("list = [1]\ndef f():\n    return [1]\n", "assert f() == list\n"),
    ("def f(values):\n    max = 0\n    for value in values:\n        max = value if value > max "
        "else max\n    return max\n", "assert max([1, f([1, 2])]) == 2\n"),
    ("count = 0\ndef f():\n    global count, late\n    count += 1\n    late = 'here'\n", "f()\n"
        "f()\n"
        "assert "
        "count "
        "== 2 "
        "and "
        "late == "
        "'here'\n"),
    ("def f(g, x):\n    return g(x)\ndef sum(x):\n    return x + 1\n", "assert f(sum, 2) == 3\n"),
    ("def f():\n    return len([1])\n", "def len(x):\n    return 5\nassert len([]) == 5\n"),
    ("def f(s):\n    return tuple(s)\n", "assert f({12, 13, 14, 15, 16}) == tuple({12, 13, 14, "
        "15, 16})\n"),
    ("def f(s):\n    return tuple(s)\n", "s = set()\nfor i in (12, 13, 14, 15, 16):\n    "
        "s.add(i)\nassert f(s) == tuple(s)\n"),
    ("def helper():\n    return 1\n", "assert missing() == 1\n"),
]  # fmt: skip


def one_module(program: str, tests: str) -> str:
    try:
        exec(f"{program}\n{tests}", {})
    except BaseException:
        return "failed"
    return "passed"


@pytest.mark.slow
def test_names_that_python_has_too_are_the_programs() -> None:
    """As in one module; but there the last of these passes, which do not define what is tested."""
    expected = [one_module(*pair) for pair in NAMES]
    assert expected.count("passed") == 28 and expected.count("failed") == 4
    assert [
        (pair, v.status) for pair, v in zip(NAMES, run_programs(NAMES, LIMITS), strict=True)
    ] == list(zip(NAMES, expected, strict=True))
    without = [
        ("x = 1\n", "assert sorted([2, 1]) == [1, 2]\n"),
        (
            "x = 1\n",
            "def check(candidate):\n    assert candidate([2, 1]) == [1, 2]\n\ncheck(sorted)\n",
        ),
        ("x = 1\n", "def test():\n    assert sum([1, 2]) == 3\ntest()\n"),
        ("import builtins\nbuiltins.sum = lambda *a: 5\n", "assert sum(2, 3) == 5\n"),
    ]
    assert [one_module(*pair) for pair in without[:3]] == ["passed"] * 3
    verdicts = run_programs(without, LIMITS)
    assert [v.status for v in verdicts] == ["failed"] * 4
    assert "the program defines none of the names that are tested: sorted" in verdicts[0].message


# Ways to end that once meant something to whoever runs the sandbox, or could: in the program, in a
# call, in both processes.
ENDS = {
    **{f"exit {code}": f"import os\ndef f():\n    os._exit({code})\n" for code in (0, 1, 97, 255)},
    "exit 97 at once": "import os\nos._exit(97)\n",
    "SystemExit 97": "import sys\nsys.exit(97)\n",
    "killed": "import os, signal\ndef f():\n    os.kill(os.getpid(), signal.SIGKILL)\n",
    "says so": "import os\nfor n in range(64):\n    try:\n        os.write(n, b'isolated: no, "
        "unshare: Operation not permitted\\n')\n    except OSError:\n        pass\n"
        "os._exit(97)\n",
    "an answer too long to pass on": "import json\ndef f():\n    raise type('E' * 8_000_000, "
        "(Exception,), {})('x')\n",
    "an error that has no words": "class E(Exception):\n    def __str__(self):\n        return 5\n"
        "def f():\n    raise E\n",
    "no text": "def f():\n    return '\ud800'\n",
}  # fmt: skip


@pytest.mark.slow
def test_no_end_of_a_program_speaks_for_the_sandbox() -> None:
    """Each is a verdict on that program, and the next one runs; so are ends of the tests."""
    programs = [(program, "assert f() == 1\n") for program in ENDS.values()]
    programs += [
        ("def f():\n    return 1\n", f"import os\nassert f() == 1\nos._exit({code})\n")
        for code in (0, 97)
    ]
    verdicts = run_programs([*programs, ("def f():\n    return 1\n", "assert f() == 1\n")], LIMITS)
    assert [v.status for v in verdicts] == ["failed"] * len(programs) + ["passed"], verdicts


def test_a_verdict_is_cut_whoever_gives_it() -> None:
    """The tests themselves, which can find the way out, say 7 MB, nonsense, or what draws on a
    terminal.
    """
    said = [
        "{'passed': False, 'message': 'x' * 7_000_000}",
        "{'passed': True}",
        "{'passed': 1, 'message': 'x'}",
        "[1]",
        "{'passed': False, 'message': 5 * ['\\x1b[2J\\n']}",
        "{'passed': False, 'message': 'y' * 60_000}",
    ]
    tests = "assert f() == 1\nimport __main__, os\nfor to in range(3, 12):\n    try:\n"
    tests += "        __main__.send({}, to)\n    except OSError:\n        pass\nos._exit(0)\n"
    program = "def f():\n    return 1\n"
    verdicts = run_programs([(program, tests.replace("{}", text)) for text in said], LIMITS)
    assert {v.status for v in verdicts} == {"failed"}
    assert all(len(v.message) <= 300 and v.message.isprintable() for v in verdicts)
    assert verdicts[-1].message == "y" * 300


def test_without_isolation_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel refuses namespaces (the call's answer is replaced by that refusal), the
    program leaves no trace.
    """
    monkeypatch.setattr(
        sandbox,
        "_INIT",
        sandbox._INIT.replace('call("unshare", ', 'ctypes.set_errno(1); call("unshare", -1 or '),
    )
    with pytest.raises(UserError, match="cannot be isolated: unshare: Operation not permitted"):
        run_program(f"open({str(tmp_path / 'ran')!r}, 'w')\n", "pass\n", LIMITS)
    with pytest.raises(UserError, match="generated code is not run here"):
        require_isolation()
    assert not (tmp_path / "ran").exists()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match="not run on darwin"):
        run_program("", "", LIMITS)


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/usr/bin/python3").exists(),
    reason="needs root to become somebody else",
)
def test_an_ordinary_user_isolates_too(tmp_path: Path) -> None:
    """Through a user namespace, as root does where it has no users to spare (in a rootless
    container); where the machine refuses those, the refusal says what to do. Killed from outside,
    it leaves no process, nor a file.
    """
    room = tmp_path / "pipelines" / "evaluate"
    room.mkdir(parents=True)
    (room / "__init__.py").touch()
    for name in ("sandbox", "sandbox_calls", "sandbox_init", "sandbox_program"):
        shutil.copy(ROOT / "pipelines" / "evaluate" / f"{name}.py", room)
    for name in ("__init__", "errors"):
        shutil.copy(ROOT / "pipelines" / f"{name}.py", room.parent)
    (tmp_path / "temporary").mkdir(mode=0o777)
    (tmp_path / "temporary").chmod(0o777)
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o755)
    done = subprocess.run(
        ["/usr/bin/python3", "-c", AS_OTHERS],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path), "TMPDIR": str(tmp_path / "temporary")},
        timeout=120,
    )
    said = json.loads(done.stdout or "{}")
    if said["ordinary user"][0] != "refused":
        assert said["ordinary user"] == said["rootless container"] == ["passed", "failed"]
        assert said["killed"] == [True, 0]
    assert said["no user namespaces"][0] == "refused", done.stderr[-2000:]
    assert "unshare: " in said["no user namespaces"][1]
    assert "user.max_user_namespaces" in said["no user namespaces"][1]
    assert "CAP_SYS_ADMIN" in said["no user namespaces"][1]
    assert said["the machine's root by another name"][0] == "refused"
    assert "limit of processes: it does not hold" in said["the machine's root by another name"][1]
    assert list((tmp_path / "temporary").iterdir()) == []


# Each case in a child of its own, which says how an honest program and a greedy one end.
AS_OTHERS = """
import ctypes, json, os, signal, sys, time
from pathlib import Path
from pipelines.errors import UserError
from pipelines.evaluate.sandbox import Limits, run_program
LIMITS = Limits(wall_seconds=20, memory_bytes=2**27)
libc = ctypes.CDLL(None, use_errno=True)
GREEDY = '''
import os, time
def f():
    for _ in range(4):
        if os.fork() == 0:
            held = bytearray(6 * 10**7)
            time.sleep(60)
    time.sleep(3)
'''

def ordinary():
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)

def in_namespace(users):
    os.setgroups([])
    read, write = os.pipe()
    parent = os.getpid()
    if os.fork() == 0:
        os.read(read, 1)
        for kind in ("uid_map", "gid_map"):
            Path(f"/proc/{parent}/{kind}").write_text(users)
        os._exit(0)
    assert libc.unshare(0x10000000) == 0
    os.write(write, b"x")
    os.wait()
    os.setresgid(0, 0, 0); os.setresuid(0, 0, 0)

def without_namespaces():
    in_namespace("0 100000 65536")
    Path("/proc/sys/user/max_user_namespaces").write_text("0")

def verdicts():
    try:
        good = run_program("def f():\\n    return 1\\n", "assert f() == 1\\n", LIMITS)
        greedy = run_program(GREEDY, "f()\\n", LIMITS)
        return [good.status, greedy.status]
    except UserError as error:
        return ["refused", str(error)]

def in_child(become, act):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            become()
            os.write(write, json.dumps(act()).encode())
        finally:
            os._exit(0)
    os.close(write)
    return child, read

def said(become):
    child, read = in_child(become, verdicts)
    with open(read) as file:
        return json.loads(file.read() or "null")

def killed():
    mine = 65534
    def act():
        run_program("import time\\ntime.sleep(1000)\\n", "f()\\n", Limits(wall_seconds=1000))
    child, _ = in_child(ordinary, act)
    def processes():
        found = 0
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                found += entry.stat().st_uid == mine and "Z" not in (entry / "stat").read_text()
            except OSError:
                pass
        return found
    before = time.monotonic()
    while processes() < 7 and time.monotonic() < before + 20:
        time.sleep(0.05)
    begun = processes() >= 7
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    before = time.monotonic()
    while processes() and time.monotonic() < before + 20:
        time.sleep(0.05)
    return [begun, processes()]

print(json.dumps({
    "ordinary user": said(ordinary),
    "rootless container": said(lambda: in_namespace("0 100000 65536")),
    "the machine's root by another name": said(lambda: in_namespace("0 0 1")),
    "no user namespaces": said(without_namespaces),
    "killed": killed(),
}))
"""


def test_real_solutions_of_both_formats(tmp_path: Path) -> None:
    """A HumanEval-like and an MBPP-like task with the answers that come with them, and with
    another task's.
    """
    from evaluation.benchmarks.code import code_tasks

    human = {
        "task_id": "HumanEval/0",
        "prompt": "from typing import List\n\ndef total(values: List[int]) -> int:\n    "
        '"""Sum."""\n',
        "entry_point": "total",
        "test": "METADATA = {}\n\ndef check(candidate):\n    assert candidate([1, 2]) == 3\n    "
        "assert candidate([]) == 0\n",
    }
    mbpp = {
        "task_id": 9,
        "text": "Rotate.",
        "test_list": ["assert rotate([1,2,3], 1) == [2,3,1]"],
        "test_setup_code": "import math",
    }
    first, second = code_tasks([human, mbpp], "x")
    good = first.program("    return sum(values)\n\ndef main():\n    raise SystemExit\n")
    rotate = second.program(
        "def rotate(v, n):\n    return v[n:] + v[:n]\n\nassert rotate([1], 0) == [2]\n"
    )
    fenced = second.program(
        "Here it is:\n```python\ndef rotate(v, n):\n    return v[n:] + v[:n]\n```\nEnjoy!"
    )
    verdicts = run_programs(
        [(good, first.tests), (rotate, second.tests), (fenced, second.tests), (good, second.tests)],
        LIMITS,
    )
    assert [v.status for v in verdicts] == ["passed", "passed", "passed", "failed"]
    assert json.dumps([v.message for v in verdicts[:3]]) == '["", "", ""]'
