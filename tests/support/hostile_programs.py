"""Programs that try to get out, to lie or to do harm. `f` returns 1 where the trick has worked."""

LIBC = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
TEST = "assert f() == 1, f()\n"


def having(body: str, before: str = "") -> str:
    """A program whose f does something and then returns 1."""
    return (
        f"{before}def f():\n"
        + "".join(f"    {line}\n" for line in body.splitlines())
        + ("    return 1\n")
    )


def call(expression: str) -> str:
    """A program whose f returns 1 if the C call gives no error."""
    return f"{LIBC}def f():\n    return 1 if {expression} != -1 else -ctypes.get_errno()\n"


REFUSED, NO_FAMILY = "Error: -1", "Address family not supported"
TOGETHER = "processes together hold more than 256 MiB"

# What each does, and part of the verdict's message that tells why it did not work.
HOSTILE = {
    # It ends early, or lies about what it answers.
    "early exit": ("import os\nos._exit(0)\n", "the program ended"),
    "exit in the call": (having("os._exit(0)", "import os\n"), "the program ended"),
    "sys.exit": (having("sys.exit(0)", "import sys\n"), "SystemExit"),
    "patched assert": (
        "import builtins\nbuiltins.AssertionError = type('E', (Exception,), "
        "{'__init__': lambda s, *a: None})\ndef f():\n    return 2\n",
        "AssertionError: 2",
    ),
    "equals everything": (
        "class Any:\n    def __eq__(self, other):\n        return True\n"
        "def f():\n    return Any()\n",
        "cannot leave the sandbox",
    ),
    "a number that equals everything": (
        "class Any(int):\n    def __eq__(self, other):\n        return True\n"
        "def f():\n    return Any(7)\n",
        "AssertionError: 7",
    ),
    "forged reply": (
        "import os\nfor n in range(3, 20):\n    try:\n        os.write(n, "
        "b'\\x00\\x00\\x00\\x10{\"passed\": true }')\n    except OSError:\n        "
        "pass\ndef f():\n    return 2\n",
        "Error",
    ),
    "hidden patch of the tester": (
        "import sys, gc\nfor o in gc.get_objects():\n    pass\n"
        "sys.modules['__main__'].tester = None\ndef f():\n    return 2\n",
        "AssertionError: 2",
    ),
    "replies of another form": (
        "import __main__\ndef f():\n    __main__.send({'error': 5})\n    return 2\n",
        "TypeError",
    ),
    "a reply nested beyond reading": (
        "import __main__, os\ndef f():\n    data = b'[' * 10**6\n"
        "    os.write(__main__.OUT, len(data).to_bytes(4, 'big') + data)\n    return 2\n",
        "RecursionError",
    ),
    "an iterator without end": (
        "import itertools\ndef f():\n    return (x for x in itertools.count())\n",
        "an iterator without end",
    ),
    "an error with a name of 7 MB": (
        "def f():\n    raise type('E' * 7_000_000, (Exception,), {})('x')\n",
        "EEEEE",
    ),
    "an error that draws on the terminal": (
        "def f():\n    raise ValueError('\\x1b[2J\\x1b]0;mine\\x07\\nerror: all passed')\n",
        "error: all passed",
    ),
    "syntax error": ("def f(:\n", "SyntaxError"),
    "an expression nested too deeply": (f"f = {'(' * 5000}1{')' * 5000}\n", "Error"),
    # Memory: of one process, of many, of none.
    "memory hog": (
        having("held = []\nwhile True:\n    held.append(bytearray(10**7))"),
        "MemoryError",
    ),
    "many processes with a little each": (
        having(
            "for _ in range(8):\n    if os.fork() == 0:\n        held = bytearray(10**8)\n"
            "        time.sleep(60)\n"
            "time.sleep(3)",
            "import os, time\n",
        ),
        TOGETHER,
    ),
    "memory of threads that outlive the first": (
        LIBC
        + "import threading, time\ndef hold():\n    held = bytearray(10**8)\n    time.sleep(60)\n"
        "def f():\n    for _ in range(5):\n        if os.fork() == 0:\n"
        "            threading.Thread(target=hold).start()\n            libc.syscall(60, 0)\n"
        "    time.sleep(3)\n    return 1\n",
        TOGETHER,
    ),
    "System V shared memory": (call("libc.shmget(0, ctypes.c_size_t(2**31), 0o1600)"), REFUSED),
    "System V semaphores": (call("libc.semget(0, 200, 0o1600)"), REFUSED),
    "System V messages": (call("libc.msgget(0, 0o1600)"), REFUSED),
    "POSIX messages": (call("libc.mq_open(b'/q', 0o102, 0o600, None)"), REFUSED),
    "memory files": (having("os.memfd_create('x')", "import os\n"), "PermissionError"),
    "POSIX shared memory": (
        having(
            "shared_memory.SharedMemory(create=True, size=2**28)",
            "from multiprocessing import shared_memory\n",
        ),
        "Error",
    ),
    "anonymous shared memory": (having("mmap.mmap(-1, 2**20)", "import mmap\n"), "PermissionError"),
    "shared memory of a device": (
        having("mmap.mmap(os.open('/dev/zero', os.O_RDWR), 2**20)", "import mmap, os\n"),
        "FileNotFoundError",
    ),
    "pages in a pipe": (
        LIBC
        + "def f():\n    read, write = os.pipe()\n    page = ctypes.create_string_buffer(4096)\n"
        "    vector = (ctypes.c_size_t * 2)(ctypes.addressof(page), 4096)\n"
        "    return 1 if libc.vmsplice(write, vector, 1, 8) == 4096 else -ctypes.get_errno()\n",
        REFUSED,
    ),
    "millions of locks": (
        having("fcntl.lockf(open('x', 'w'), fcntl.LOCK_EX, 1, 10**6)", "import fcntl\n"),
        "PermissionError",
    ),
    "timers by the thousand": (
        LIBC + "def f():\n    made = 0\n    timer = ctypes.c_void_p()\n"
        "    while libc.timer_create(1, None, ctypes.byref(timer)) == 0:\n        made += 1\n"
        "        if made == 2000:\n            return 1\n    return -ctypes.get_errno()\n",
        "Error: -11",
    ),
    "locked memory": (call("libc.mlockall(3)"), "Error: -"),
    "asynchronous requests": (
        call("libc.syscall(206, 10000, ctypes.byref(ctypes.c_ulong()))"),
        REFUSED,
    ),
    "fills the disk": (
        having("for i in range(100):\n    open(str(i), 'wb').write(b'x' * 10**6)"),
        "OSError",
    ),
    # Doors of the kernel.
    **{
        f"sockets of {name}": (
            having(f"socket.socket({family}, {kind}, {protocol})", "import socket\n"),
            NO_FAMILY,
        )
        for name, family, kind, protocol in (
            ("vsock", 40, 1, 0), ("netlink", 16, 3, 0), ("alg", 38, 5, 0), ("packet", 17, 2, 0),
            ("xdp", 44, 3, 0), ("bluetooth", 31, 3, 0),
        )
    },
    "a protocol that loads a module": (
        having("socket.socket(2, 1, 132)", "import socket\n"),
        "Protocol not supported",
    ),
    "a namespace of users": (call("libc.unshare(0x10000000)"), REFUSED),
    "a child in another namespace": (
        LIBC + "def f():\n    child = libc.syscall(56, 0x10000011, 0, 0, 0, 0)\n"
        "    if child == 0:\n        os._exit(0)\n"
        "    return 1 if child > 0 else -ctypes.get_errno()\n",
        REFUSED,
    ),
    "another root": (call("libc.mount(b'none', b'/work', b'tmpfs', 0, None)"), REFUSED),
    "an eye on process 1": (call("libc.ptrace(16, 1, 0, 0)"), REFUSED),
    "kills everything": (
        having("os.kill(-1, 9)", "import os\n"),
        "Error",
    ),
    "another user": (having("os.setuid(not os.getuid())", "import os\n"), "PermissionError"),
    "a device of its own": (having("os.mknod('disk', 0o060600, 2048)", "import os\n"), "Error"),
    "a root of its own files": (having("os.chroot('/work')", "import os\n"), "PermissionError"),
}  # fmt: skip

# These go on for ever: the clock ends them, or their limits do.
ENDLESS = {
    "fork bomb": having("while True:\n    os.fork()", "import os\n"),
    "fork bomb at once": "import os\nwhile True:\n    try:\n        os.fork()\n    except "
    "OSError:\n        pass\n",
    "endless loop": having("while True:\n    pass"),
    "endless sleep": having("time.sleep(1000)", "import time\n"),
    "stops itself": having("os.kill(os.getpid(), 19)", "import os\n"),
    "leaves its session": having(
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(1000)\n"
        "    os._exit(0)\ntime.sleep(1000)",
        "import os, time\n",
    ),
    "a power of powers": having("9 ** 9 ** 9 ** 9"),
    "answers a byte at a time": "import __main__, os, time\ndef f():\n"
    "    os.write(__main__.OUT, (10**6).to_bytes(4, 'big'))\n    while True:\n"
    "        os.write(__main__.OUT, b' ')\n        time.sleep(0.1)\n",
    "ignores every signal": having(
        "for n in range(1, 65):\n    try:\n        signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError):\n        pass\nwhile True:\n    pass",
        "import signal\n",
    ),
}
