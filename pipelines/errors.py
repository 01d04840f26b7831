"""The errors a user sees as one line, and how a rank of training tells the others of one."""

from dataclasses import dataclass
from typing import Literal


class UserError(Exception):
    """The user's input is wrong: names the thing, the value and what is allowed. Exit code 2."""


class DamagedFile(UserError):
    """A file of ours is not what was written: says which, why, and what to do."""


class DamagedCheckpoint(DamagedFile):
    """A checkpoint is not what was written: says which file, and why."""


class StageFailed(Exception):
    """A stage could not finish for a reason that is not the input's form (say, a diverged loss).

    Exit code 1.
    """


class GateFailed(Exception):
    """An evaluation does not meet a quality gate. Exit code 3."""


class Diverged(StageFailed):
    """A loss or gradient is not finite any more."""


class Superseded(StageFailed):
    """Another worker group has taken over the run."""

    def __init__(self, message: str = "another command has taken over this run") -> None:
        super().__init__(message)


Kind = Literal["checkpoint", "damaged", "user", "superseded", "diverged", "stage"]
_KINDS: dict[Kind, type[UserError | StageFailed]] = {  # the first that fits
    "checkpoint": DamagedCheckpoint,
    "damaged": DamagedFile,
    "user": UserError,
    "superseded": Superseded,
    "diverged": Diverged,
    "stage": StageFailed,
}


@dataclass(frozen=True)
class Failure:
    """An error as it goes from rank to rank, or to the driver."""

    kind: Kind
    message: str

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """Of any error; what is none of ours keeps its type's name."""
        for kind, type_ in _KINDS.items():
            if isinstance(error, type_):
                return cls(kind, str(error))
        return cls("stage", repr(error).splitlines()[0])

    def error(self) -> UserError | StageFailed:
        return _KINDS[self.kind](self.message)
