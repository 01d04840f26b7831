"""Whether this machine can isolate programs."""

import pytest

from pipelines.errors import UserError
from pipelines.evaluate.sandbox import require_isolation


def isolates() -> bool:
    try:
        require_isolation()
    except UserError:
        return False
    return True


needs_isolation = pytest.mark.skipif(
    not isolates(), reason="this machine cannot isolate programs, and so runs none"
)
