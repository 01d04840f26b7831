"""What the table knows of a kind of file."""

from dataclasses import dataclass

from damage.damages import Damage
from damage.readers import Reader


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Attributes:
        path: a pattern below the world. damages: of its format. readers: that take seconds or less;
            slow: those that load models. is_input: whether it is the user's own, of which nobody
            knows what it was before.
    """

    path: str
    damages: dict[str, Damage]
    readers: tuple[Reader, ...]
    slow: tuple[Reader, ...] = ()
    is_input: bool = False
