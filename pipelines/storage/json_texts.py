"""JSON texts of others: whatever they hold, what is wrong with them is one kind of error."""

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises: ValueError alone, for nesting that is too deep as well."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its values are nested too deep") from error
