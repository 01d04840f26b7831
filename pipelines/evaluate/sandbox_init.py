"""Runs one program away from the rest of the machine.

sandbox.py starts it as `python -I -S -c <this file> <settings as JSON>`. It uses the standard
library alone.

The program gets new namespaces for mounts, processes, network, IPC and host name (and users, where
the machine has no user to spare for it); a root of its own with nothing but the interpreter,
read-only; a small empty directory to write to; limits on time, memory, files and processes; no
privileges left. A watch on all its processes ends them when they hold too much memory together.

Just before the program starts, it writes "isolated" to the descriptor `report` of the settings, to
which the program has no access. If any of the above cannot be had, it writes "step: reason": then
nothing has run. It writes "memory" when the watch has ended the program. Exit codes mean nothing:
the program chooses its own.
"""

import ctypes
import json
import os
import platform
import resource
import select
import signal
import sys

ISOLATED, MEMORY = b"isolated", b"memory"
_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = (
    0x20000,
    0x4000000,
    0x8000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _NOATIME, _BIND, _REC, _PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    1024,
    4096,
    16384,
    1 << 18,
)
_SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache")
_DEVICES = ("/dev/null", "/dev/urandom")  # a shared mapping of /dev/zero would be memory unseen
_ROOT = "/proc"  # every Linux has it; here it is the place of the new root
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_WATCH_SECONDS = 0.05
_HELD = ("RssAnon:", "RssShmem:", "VmSwap:")
_libc = ctypes.CDLL(None, use_errno=True)


def call(step, result):
    """Nothing if a libc call went well, else the end of this process."""
    if result != 0:
        fail(step, os.strerror(ctypes.get_errno()))


def fail(step, reason):
    os.write(REPORT, f"{step}: {reason}\n".encode())
    os._exit(1)


def refuse_system_calls(steps):
    """A seccomp filter; it holds for everything that the program starts, too."""
    code = ctypes.create_string_buffer(steps)
    program = ctypes.create_string_buffer(
        (len(steps) // 8).to_bytes(8, sys.byteorder)
        + ctypes.addressof(code).to_bytes(8, sys.byteorder)
    )
    call("seccomp", _libc.prctl(22, 2, program, 0, 0))


def mount(source, target, kind, flags, options=""):
    arguments = [value.encode() if value else None for value in (source, target, kind)]
    call(
        f"mount {target}", _libc.mount(*arguments, ctypes.c_ulong(flags), options.encode() or None)
    )


def bind(source):
    """The file or directory at the same place below the new root, read-only."""
    target = _ROOT + source
    if os.path.islink(source):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.symlink(os.readlink(source), target)
        return
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    mount(source, target, None, _BIND)
    kept = os.statvfs(source).f_flag & (
        _NOSUID | _NODEV | _NOEXEC | _NOATIME
    )  # a user namespace may not clear these
    device = 0 if source in _DEVICES else _NODEV
    mount(None, target, None, _BIND | _REMOUNT | _RDONLY | _NOSUID | device | kept)


def own_root(prefixes, disk_bytes):
    """Leaves nothing on the machine's disks: the new root is memory, at a place that is there."""
    mount(None, "/", None, _REC | _PRIVATE)
    mount("tmpfs", _ROOT, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    system = [path for path in _SYSTEM if os.path.lexists(path)]
    for path in system + [
        p for p in prefixes if not any(p == s or p.startswith(s + "/") for s in system)
    ]:
        bind(path)
    for path in _DEVICES:
        bind(path)
    work = _ROOT + "/work"
    os.mkdir(work)
    mount("tmpfs", work, "tmpfs", _NOSUID | _NODEV, f"size={disk_bytes},nr_inodes=256,mode=777")
    mount(None, _ROOT, None, _REMOUNT | _RDONLY | _NOSUID | _NODEV)
    os.chdir(_ROOT)
    call("pivot_root", _libc.syscall(_PIVOT_ROOT[platform.machine()], b".", b"."))
    call("detach the old root", _libc.umount2(b".", 2))
    os.chdir("/work")


def drop_privileges(uid, limits, steps):
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
    for capability in range(64):
        _libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; unknown numbers fail, harmlessly
    call(
        "securebits", _libc.prctl(28, 0x2F, 0, 0, 0)
    )  # PR_SET_SECUREBITS: user 0 is nobody special
    if uid:
        os.setresuid(uid, uid, uid)
    call("no_new_privs", _libc.prctl(38, 1, 0, 0, 0))
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    call("capset", _libc.capset(header, nothing))
    refuse_system_calls(steps)
    try_the_limit_of_processes()


def try_the_limit_of_processes():
    """The machine's own root has none, also where it is called another name."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, hard))
    try:
        another = os.fork()
    except BlockingIOError:
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
        return
    if another:
        os.waitpid(another, 0)
        fail("limit of processes", "it does not hold for this user")
    os._exit(0)


def own_namespaces(with_users):
    user, group = os.geteuid(), os.getegid()
    own = _NEWNS | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET | (_NEWUSER if with_users else 0)
    call("unshare", _libc.unshare(own))
    if with_users:
        for name, content in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {user} 1"),
            ("gid_map", f"0 {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(content)


def die_with(parent):
    call("prctl", _libc.prctl(1, signal.SIGKILL, 0, 0, 0))  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def held(processes, first):
    """Bytes of memory of a process and its descendants; what several share counts for each.

    `processes` is an open /proc. Threads are asked one by one: the first may have ended.
    """
    total, todo = 0, [str(first)]
    while todo:
        tasks, most = f"{todo.pop()}/task", 0
        for thread in names(processes, tasks):
            todo += text(processes, f"{tasks}/{thread}/children").split()
            lines = text(processes, f"{tasks}/{thread}/status").splitlines()
            kib = [int(line.split()[1]) for line in lines if line.startswith(_HELD)]
            most = max(most, 1024 * sum(kib))
        total += most
    return total


def names(processes, folder):
    """Nothing if the process has just ended."""
    try:
        descriptor = os.open(folder, os.O_RDONLY, dir_fd=processes)
    except OSError:
        return []
    try:
        return os.listdir(descriptor)
    except OSError:
        return []
    finally:
        os.close(descriptor)


def text(processes, name):
    """Nothing if the thread has just ended."""
    try:
        with open(os.open(name, os.O_RDONLY, dir_fd=processes)) as file:
            return file.read()
    except OSError:
        return ""


def watch(processes, first, memory_bytes):
    """Ends with process 1 of the other world, and ends that when it holds too much memory."""
    while True:
        signal.sigtimedwait({signal.SIGCHLD}, _WATCH_SECONDS)
        done, status = os.waitpid(first, os.WNOHANG)
        if done:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
        if held(processes, first) > memory_bytes:
            os.kill(first, signal.SIGKILL)
            os.write(REPORT, MEMORY)
            os._exit(1)


def main(settings):
    die_with(settings["parent"])
    processes = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
        fail("memory of all processes", "this kernel does not list a process's children in /proc")
    own_namespaces(with_users=not settings["uid"])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    from_outside, outside = os.pipe()
    first = os.fork()
    if first:
        watch(processes, first, settings["memory_bytes"])
    # Process 1 of its own world: when it ends, everything in there ends.
    os.close(outside)
    call("prctl", _libc.prctl(1, signal.SIGKILL, 0, 0, 0))
    if select.select([from_outside], [], [], 0)[0]:
        os._exit(1)  # the watch had gone before that call
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    own_root(settings["prefixes"], settings["disk_bytes"])
    program = os.fork()
    if program == 0:
        os.setsid()
        drop_privileges(settings["uid"], settings["limits"], bytes.fromhex(settings["filter"]))
        os.write(REPORT, ISOLATED)
        os.execve(
            settings["command"][0],
            settings["command"],
            {"PATH": "/usr/bin:/bin", "HOME": "/work", "TMPDIR": "/work", "LANG": "C.UTF-8"},
        )
    os.closerange(0, 1 << 16)
    while True:
        done, status = os.wait()
        if done == program:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


SETTINGS = json.loads(sys.argv[1])
REPORT = SETTINGS["report"]
os.set_inheritable(REPORT, False)  # closed where the program begins
try:
    main(SETTINGS)
except Exception as error:
    fail("sandbox", repr(error))
