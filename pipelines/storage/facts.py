"""What takes long to find out, kept for later runs of this machine."""

import json
from collections.abc import Callable
from typing import Any

from pipelines.storage.hashes import CACHE, digest, write_whole
from pipelines.storage.json_texts import parse_json


def remembered(name: str, depends_on: Callable[[], Any], find: Callable[[], Any]) -> Any:
    """A fact as `find` gives it, from an earlier run where what it depends on is the same.

    A damaged entry counts as none. What changes while `find` looks at it is not kept.

    Args:
        name: of the kind of fact. depends_on: a JSON value that names all that decides the fact.
        find: the fact as a JSON value; what it raises is not kept.
    """
    key = depends_on()
    file = CACHE / "facts" / f"{name}-{digest(key)}.json"
    try:
        entry = parse_json(file.read_bytes())
        if entry["check"] == digest([file.name, entry["fact"]]):
            return entry["fact"]
    except (OSError, ValueError, TypeError, KeyError):
        pass
    fact = find()
    if depends_on() == key:
        write_whole(file, json.dumps({"fact": fact, "check": digest([file.name, fact])}))
    return fact
