"""What of a session is known before Ray starts."""

import os

import pytest

from pipelines.cluster.session import check_session
from pipelines.errors import UserError
from pipelines.recipe.schema import RaySection


def test_a_scratch_folder_is_as_long_as_sockets_below_it_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """107 bytes of a path, less what Ray appends for its dashboard; bytes, not letters. A
    running cluster has a folder of its own.
    """
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    below = f"/session_2026-11-26_04-49-46_008654_{os.getpid()}/sockets/dash_MetricsHead"
    longest = "/" + "x" * (106 - len(below))
    check_session(RaySection())
    check_session(RaySection(temp_dir=longest))
    for wrong in (f"{longest}x", f"{longest[:-1]}é"):
        with pytest.raises(UserError, match=f"a path of {len(longest)} bytes at most"):
            check_session(RaySection(temp_dir=wrong))
        check_session(RaySection(temp_dir=wrong, address="auto"))
