"""The two errors a user sees as one line."""


class UserError(Exception):
    """The user's input is wrong: names the thing, the value and what is allowed. Exit code 2."""


class StageFailed(Exception):
    """A stage could not finish for a reason that is not the input's form (say, a diverged loss). Exit code 1."""
