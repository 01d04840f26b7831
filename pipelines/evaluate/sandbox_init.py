"""Runs one program away from the rest of the machine.

sandbox.py starts it as `python -I -S -c <this file> <settings as JSON>`. It uses the standard
library alone.

The program gets new namespaces for mounts, processes, network, IPC and host name (and users, unless
root); a root of its own with nothing but the interpreter, read-only; a small empty directory to
write to; limits on time, memory, files and processes; no privileges left.

Just before the program starts, it writes "isolated" to the descriptor `report` of the settings, to
which the program has no access. If any of the above cannot be had, it writes "step: reason": then
nothing has run. Exit codes mean nothing: the program chooses its own.
"""

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys

ISOLATED = b"isolated"
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
# Per machine: its number in the kernel's audit interface, and its system calls by number. Those
# refused open ways to other namespaces, other processes or rarely tried parts of the kernel; clone3
# is said not to exist, because a filter cannot see its flags.
_MACHINES = {
    "x86_64": {
        "audit": 0xC000003E, "pivot_root": 155, "clone": 56, "clone3": 435,
        "refused": [101, 155, 165, 166, 175, 246, 248, 249, 250, 272,
                    298, 308, 310, 311, 313, 321, 323, 425, 428, 429, 430, 431, 432, 442],
    },
    "aarch64": {
        "audit": 0xC00000B7, "pivot_root": 41, "clone": 220, "clone3": 435,
        "refused": [39, 40, 41, 97, 104, 105, 117, 217, 218, 219, 241,
                    268, 270, 271, 273, 280, 282, 425, 428, 429, 430, 431, 432, 442],
    },
}  # fmt: skip
_SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_libc = ctypes.CDLL(None, use_errno=True)


def call(step, result):
    """Nothing if a libc call went well, else the end of this process."""
    if result != 0:
        fail(step, os.strerror(ctypes.get_errno()))


def fail(step, reason):
    os.write(REPORT, f"{step}: {reason}\n".encode())
    os._exit(1)


def machine():
    if platform.machine() not in _MACHINES:
        fail("system calls", f"their numbers are not known for {platform.machine()}")
    return _MACHINES[platform.machine()]


def refuse_system_calls():
    """A seccomp filter; it holds for everything that the program starts, too."""
    known = machine()
    load, equal, at_least, has_bits, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, missing, kill = 0x7FFF0000, 0x50001, 0x50026, 0x80000000
    steps = [(load, 0, 0, 4), (equal, 1, 0, known["audit"]), (answer, 0, 0, kill), (load, 0, 0, 0)]
    steps += [(at_least, 0, 1, 0x40000000), (answer, 0, 0, refuse)]
    for number in known["refused"]:
        steps += [(equal, 0, 1, number), (answer, 0, 0, refuse)]
    steps += [(equal, 0, 1, known["clone3"]), (answer, 0, 0, missing)]
    steps += [
        (equal, 0, 3, known["clone"]),
        (load, 0, 0, 16),
        (has_bits, 0, 1, _NEWUSER),
        (answer, 0, 0, refuse),
        (answer, 0, 0, allow),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
    call("seccomp", _libc.prctl(22, 2, ctypes.c_char_p(program), 0, 0))


def mount(source, target, kind, flags, options=""):
    arguments = [value.encode() if value else None for value in (source, target, kind)]
    call(
        f"mount {target}", _libc.mount(*arguments, ctypes.c_ulong(flags), options.encode() or None)
    )


def bind(source, root):
    """The file or directory at the same place below `root`, read-only."""
    target = root + source
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


def own_root(root, prefixes, disk_bytes):
    mount(None, "/", None, _REC | _PRIVATE)
    mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    system = [path for path in _SYSTEM if os.path.lexists(path)]
    for path in system + [
        p for p in prefixes if not any(p == s or p.startswith(s + "/") for s in system)
    ]:
        bind(path, root)
    for path in _DEVICES:
        bind(path, root)
    work = root + "/work"
    os.mkdir(work)
    mount("tmpfs", work, "tmpfs", _NOSUID | _NODEV, f"size={disk_bytes},nr_inodes=256,mode=777")
    mount(None, root, None, _REMOUNT | _RDONLY | _NOSUID | _NODEV)
    os.chdir(root)
    call("pivot_root", _libc.syscall(machine()["pivot_root"], b".", b"."))
    call("detach the old root", _libc.umount2(b".", 2))
    os.chdir("/work")


def drop_privileges(uid, limits):
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
    refuse_system_calls()


def main(settings):
    is_root = os.geteuid() == 0
    user, group = os.geteuid(), os.getegid()
    call("prctl", _libc.prctl(1, signal.SIGKILL, 0, 0, 0))  # PR_SET_PDEATHSIG
    own = _NEWNS | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET | (0 if is_root else _NEWUSER)
    call("unshare", _libc.unshare(own))
    if not is_root:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {user} 1"),
            ("gid_map", f"0 {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    first = os.fork()
    if first:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 0xFF)
    # Process 1 of its own world: when it ends, everything in there ends.
    call("prctl", _libc.prctl(1, signal.SIGKILL, 0, 0, 0))
    own_root(settings["root"], settings["prefixes"], settings["disk_bytes"])
    program = os.fork()
    if program == 0:
        os.setsid()
        drop_privileges(settings["uid"] if is_root else 0, settings["limits"])
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
