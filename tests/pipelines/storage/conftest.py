"""An object store for the tests of a module."""

from collections.abc import Iterator

import pytest
from object_store import ObjectStore


@pytest.fixture(scope="module")
def object_store() -> Iterator[ObjectStore]:
    server = ObjectStore()
    yield server
    server.stop()
