"""Import the large libraries in three quarters of the time."""

import contextlib
import gc
import sys
from collections.abc import Iterator

from pipelines.storage import spent

_MANY = 200  # modules


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Leave Python's garbage collector off in this block.

    Importing torch and transformers makes half a million objects that stay. The collector would
    look through them again and again. What a block has left after many imports it looks at no more.
    """
    if not gc.isenabled():
        with spent("imports"):
            yield
        return
    before = len(sys.modules)
    gc.disable()
    try:
        with spent("imports"):
            yield
    finally:
        if len(sys.modules) > before + _MANY:
            gc.freeze()
        gc.enable()
