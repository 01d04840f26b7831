"""The garbage collector around heavy imports."""

import gc
import weakref
from collections.abc import Callable

import pytest

from pipelines.models import quick_imports


class Ring:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.itself = self


def is_collected(make: Callable[[], Ring]) -> bool:
    found = weakref.ref(make())
    gc.collect()
    return found() is None


def made_inside() -> Ring:
    with quick_imports():
        return Ring()


def test_the_collector_is_off_inside_and_as_it_was_afterwards() -> None:
    with quick_imports():
        assert not gc.isenabled()
        with quick_imports():
            pass
        assert not gc.isenabled(), "the outer block goes on"
    assert gc.isenabled()
    with pytest.raises(ImportError), quick_imports():
        raise ImportError
    assert gc.isenabled()


@pytest.mark.slow
def test_a_block_without_many_imports_keeps_nothing_for_ever() -> None:
    """A model that is loaded again and again goes when the next one comes."""
    frozen = gc.get_freeze_count()
    assert is_collected(made_inside)
    assert gc.get_freeze_count() <= frozen
