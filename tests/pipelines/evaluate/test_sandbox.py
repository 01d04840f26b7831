"""Programs that try to get out, to lie or to do harm; honest ones; and no isolation, no run."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkout import ROOT

from pipelines.errors import UserError
from pipelines.evaluate import sandbox
from pipelines.evaluate.sandbox import Limits, require_isolation, run_program, run_programs

LIMITS = Limits(wall_seconds=5, cpu_seconds=2)


def isolates() -> bool:
    try:
        require_isolation()
    except UserError:
        return False
    return True


pytestmark = pytest.mark.skipif(
    not isolates(), reason="this machine cannot isolate programs, and so runs none"
)

HOSTILE = {
    "fork bomb": "import os\ndef f():\n    while True:\n        os.fork()\n",
    "fork bomb at once": "import os\nwhile True:\n    try:\n        os.fork()\n    except "
    "OSError:\n        pass\n",
    "memory hog": "def f():\n    held = []\n    while True:\n        "
    "held.append(bytearray(10**7))\n",
    "endless loop": "def f():\n    while True:\n        pass\n",
    "endless sleep": "import time\ndef f():\n    time.sleep(1000)\n",
    "early exit": "import os\nos._exit(0)\n",
    "exit in the call": "import os\ndef f():\n    os._exit(0)\n",
    "sys.exit": "import sys\ndef f():\n    sys.exit(0)\n",
    "patched assert": "import builtins\nbuiltins.AssertionError = type('E', (Exception,), "
    "{'__init__': lambda s, *a: None})\ndef f():\n    return 2\n",
    "equals everything": "class Any:\n    def __eq__(self, other):\n        return True\ndef "
    "f():\n    return Any()\n",
    "a number that equals everything": "class Any(int):\n    def __eq__(self, other):\n        "
    "return True\ndef f():\n    return Any(7)\n",
    "forged reply": "import os\nfor n in range(3, 20):\n    try:\n        os.write(n, "
    "b'\\x00\\x00\\x00\\x10{\"passed\": true }')\n    except OSError:\n        "
    "pass\ndef f():\n    return 2\n",
    "hidden patch of the tester": "import sys, gc\nfor o in gc.get_objects():\n    pass\n"
    "sys.modules['__main__'].tester = None\ndef f():\n    return 2\n",
    "fills the disk": "def f():\n    for i in range(100):\n        open(str(i), 'wb').write(b'x' "
    "* 10**6)\n    return 1\n",
    "syntax error": "def f(:\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_trick_passes(name: str) -> None:
    started = time.monotonic()
    verdict = run_program(HOSTILE[name], "assert f() == 1\n", LIMITS)
    assert verdict.status in ("failed", "timeout"), verdict
    assert time.monotonic() - started < LIMITS.wall_seconds + 3
    assert (
        run_program("def f():\n    return 1\n", "assert f() == 1\n", LIMITS).status == "passed"
    ), "and the next program is not harmed"


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


def test_no_end_of_a_program_speaks_for_the_sandbox() -> None:
    """Each is a verdict on that program, and the next one runs; so are ends of the tests."""
    programs = [(program, "assert f() == 1\n") for program in ENDS.values()]
    programs += [
        ("def f():\n    return 1\n", f"import os\nassert f() == 1\nos._exit({code})\n")
        for code in (0, 97)
    ]
    verdicts = run_programs([*programs, ("def f():\n    return 1\n", "assert f() == 1\n")], LIMITS)
    assert [v.status for v in verdicts] == ["failed"] * len(programs) + ["passed"], verdicts


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


@pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/usr/bin/python3").exists(),
    reason="needs root to become somebody else",
)
def test_an_ordinary_user_isolates_too(tmp_path: Path) -> None:
    """Through a user namespace; where the machine refuses those, the refusal is said and nothing
    has run.
    """
    room = tmp_path / "pipelines" / "evaluate"
    room.mkdir(parents=True)
    (room / "__init__.py").touch()
    for name in ("sandbox", "sandbox_init", "sandbox_program"):
        shutil.copy(ROOT / "pipelines" / "evaluate" / f"{name}.py", room)
    for name in ("__init__", "errors"):
        shutil.copy(ROOT / "pipelines" / f"{name}.py", room.parent)
    script = """
import os, sys
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
from pipelines.evaluate.sandbox import Limits, run_program
from pipelines.errors import UserError
try:
    good = run_program("def f():\\n    return 1\\n", "assert f() == 1\\n", Limits(wall_seconds=5))
    program = "import os\\ndef f():\\n    while True:\\n        os.fork()\\n"
    bomb = run_program(program, "assert f() == 1\\n", Limits(wall_seconds=5))
    print([good.status, bomb.status != "passed"])
except UserError as error:
    print(["refused", "cannot be isolated" in str(error)])
"""
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o755)
    done = subprocess.run(
        ["/usr/bin/python3", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path)},
        timeout=60,
    )
    assert done.stdout.strip() in ("['passed', True]", "['refused', True]"), done.stderr[-2000:]


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


def test_nothing_is_left_behind() -> None:
    """No process, mount or directory of a sandbox outlives it, also when programs are killed by
    the clock.
    """
    before = {p.name for p in Path("/tmp").glob("sparsepo-sandbox-*")}
    run_programs(
        [
            (HOSTILE["fork bomb at once"], "assert f() == 1\n"),
            (HOSTILE["endless sleep"], "assert f() == 1\n"),
        ],
        Limits(wall_seconds=1.5),
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(
        sandbox._UIDS <= _uid(p) < 2 * sandbox._UIDS for p in Path("/proc").glob("[0-9]*")
    ):
        time.sleep(0.1)
    assert not any(
        sandbox._UIDS <= _uid(p) < 2 * sandbox._UIDS for p in Path("/proc").glob("[0-9]*")
    )
    assert {p.name for p in Path("/tmp").glob("sparsepo-sandbox-*")} <= before
    assert "sparsepo-sandbox" not in Path("/proc/self/mounts").read_text()


def _uid(process: Path) -> int:
    try:
        return process.stat().st_uid
    except OSError:
        return -1
