"""torch's caches of compiled code, as another machine has them."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch._inductor.utils import fresh_cache


@contextmanager
def another_machine(binaries: Path) -> Iterator[None]:
    """Caches in which no graph is known.

    What the C++ compiler made of a source is kept in `binaries`: it takes most of the time, and
    is the same for the same source. Which graphs are traced, found and generated stays as it is.
    """
    with fresh_cache():
        here = Path(cache_dir())
        shutil.copytree(binaries, here, dirs_exist_ok=True)
        try:
            yield
        finally:
            for file in here.rglob("*.so"):
                kept = binaries / file.relative_to(here)
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, kept)
