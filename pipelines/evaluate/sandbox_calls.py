"""What a sandboxed program may ask the kernel for: a seccomp filter, as the bytes of its steps.

Refused are ways to other namespaces and processes, rarely tried parts of the kernel, and memory
that no process has mapped: the watch on memory (sandbox_init.py) counts what is mapped.
"""

import platform
import struct

from pipelines.errors import UserError

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, audit number
# Numbers on x86_64 and aarch64.
REFUSED = {
    # Other namespaces, other roots.
    "pivot_root": (155, 41), "mount": (165, 40), "umount2": (166, 39), "unshare": (272, 97),
    "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    # Other processes.
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "pidfd_getfd": (438, 438), "process_madvise": (440, 440),
    "migrate_pages": (256, 238), "move_pages": (279, 239),
    # The kernel itself.
    "init_module": (175, 105), "delete_module": (176, 106), "finit_module": (313, 273),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "syslog": (103, 116),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "fanotify_init": (300, 262), "acct": (163, 89),
    "quotactl": (179, 60), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # Shared memory, semaphores, queues of messages; pages held by a pipe; a quota of the machine.
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190),
    "semctl": (66, 191), "semop": (65, 193), "semtimedop": (220, 192), "msgget": (68, 186),
    "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "vmsplice": (278, 75),
    "io_setup": (206, 0),
}  # fmt: skip
# With rules of their own, below.
RULED = {"clone": (56, 220), "clone3": (435, 435), "mmap": (9, 222), "fcntl": (72, 25),
         "socket": (41, 198), "socketpair": (53, 199)}  # fmt: skip
_FAMILIES = (1, 2, 10)  # unix, inet, inet6
_PROTOCOLS = (0, 6, 17)  # the family's own, TCP, UDP
_LOCKS = (6, 7, 37, 38, 1024, 1026)  # F_SETLK ... F_NOTIFY: the kernel keeps any number of them
_NEWUSER, _SHARED, _ANONYMOUS = 0x10000000, 0x01, 0x20
_LOAD, _EQUAL, _AT_LEAST, _HAS_BITS, _ANSWER = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_EPERM, _ENOSYS, _EPROTONOSUPPORT, _EAFNOSUPPORT = 1, 38, 93, 97
_Step = tuple[int, int, int, int]  # operation, steps to leap if true, if false, operand


def system_call_filter(machine: str | None = None) -> bytes:
    """The filter for this machine, or for the named one.

    Raises: UserError if its system calls are not known.
    """
    machine = machine or platform.machine()
    if machine not in _MACHINES:
        raise UserError(
            f"generated code is not run on {machine}: the sandbox knows the system calls of "
            f"{' and '.join(_MACHINES)}"
        )
    column, audit = _MACHINES[machine]

    def number(name: str) -> int:
        return RULED[name][column]

    steps: list[_Step] = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, audit), _answer(_KILL), (_LOAD, 0, 0, 0)]
    steps += [(_AT_LEAST, 0, 1, 0x40000000), _refusal(_EPERM)]  # x86's third set of numbers
    for numbers in REFUSED.values():
        steps += [(_EQUAL, 0, 1, numbers[column]), _refusal(_EPERM)]
    # A filter cannot see clone3's flags; where it is said not to exist, clone is called.
    steps += [(_EQUAL, 0, 1, number("clone3")), _refusal(_ENOSYS)]
    steps += _rule(number("clone"), [_argument(0), (_HAS_BITS, 0, 1, _NEWUSER), _refusal(_EPERM)])
    shared = [(_HAS_BITS, 0, 2, _ANONYMOUS), (_HAS_BITS, 0, 1, _SHARED), _refusal(_EPERM)]
    steps += _rule(number("mmap"), [_argument(3), *shared])
    steps += _rule(
        number("fcntl"),
        [_argument(1), *(s for lock in _LOCKS for s in ((_EQUAL, 0, 1, lock), _refusal(_EPERM)))],
    )
    for name in ("socket", "socketpair"):
        steps += _rule(
            number(name),
            [
                _argument(0), *_one_of(_FAMILIES, _EAFNOSUPPORT),
                _argument(2), *_one_of(_PROTOCOLS, _EPROTONOSUPPORT),
            ],
        )  # fmt: skip
    steps += [_answer(_ALLOW)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def _rule(number: int, steps: list[_Step]) -> list[_Step]:
    """Steps for one system call, which is allowed if they do not refuse it."""
    steps = [*steps, _answer(_ALLOW)]
    return [(_EQUAL, 0, len(steps), number), *steps]


def _one_of(allowed: tuple[int, ...], otherwise: int) -> list[_Step]:
    """Refuse every value but these."""
    ahead = range(len(allowed), 0, -1)
    found: list[_Step] = [(_EQUAL, n, 0, value) for n, value in zip(ahead, allowed, strict=True)]
    return [*found, _refusal(otherwise)]


def _argument(index: int) -> _Step:
    """The low half of an argument: all of an int or of flags."""
    return (_LOAD, 0, 0, 16 + 8 * index)


def _refusal(error: int) -> _Step:
    return _answer(0x50000 | error)


def _answer(value: int) -> _Step:
    return (_ANSWER, 0, 0, value)
