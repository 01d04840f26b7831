"""The webhook of a schedule: its address, and the message to it.

A message goes to the host that was named and to no other. The address may hold a secret, so that no
line shows more of it than its host.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from pipelines.errors import UserError
from pipelines.recipe import ScheduleSection

_TRIES = 3
_TIMEOUT_SECONDS = 10.0  # to connect, to send, and for the head of an answer


def webhook_address(section: ScheduleSection) -> str | None:
    """The address that a recipe names. UserError if it is not set or is no address."""
    name, address = "schedule.webhook", section.webhook
    if section.webhook_env is not None:
        name = f"schedule.webhook_env = {section.webhook_env!r}"
        address = os.environ.get(section.webhook_env)
        if not address:
            raise UserError(f"{name}: this environment variable is not set")
    if address is not None and not _host(address):
        raise UserError(f"{name} holds no address: write https://HOST/PATH")
    return address


def _host(address: str) -> str:
    """The host of an address; empty if it is none that a message can be sent to."""
    try:
        urlsplit(address)  # of the two it alone looks at brackets
        url = httpx.URL(address)
        return url.host if url.scheme in ("http", "https") and (url.port or 1) < 2**16 else ""
    except (httpx.InvalidURL, ValueError):
        return ""


def tell(
    address: str, message: Mapping[str, Any], wait: Callable[[float], None] = time.sleep
) -> str:
    """Send a message as JSON. Returns why it was not taken, in a line; empty if it was.

    An error that may pass is tried again. A redirect is not followed: message and address stay with
    the named host. Of an answer only the status is read, whatever its length.
    """
    reason = ""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs addresses
    for attempt in range(_TRIES):
        wait(attempt)
        try:
            with httpx.stream(
                "POST",
                address,
                content=json.dumps(message),
                headers={"Content-Type": "application/json"},
                timeout=_TIMEOUT_SECONDS,
                follow_redirects=False,
            ) as answer:
                status, location = answer.status_code, answer.headers.get("Location", "")
        except httpx.HTTPError as error:
            reason = type(error).__name__
            continue
        if 200 <= status < 300:
            return ""
        reason = f"status {status}"
        if 300 <= status < 400:
            to = _target(address, location)
            reason = f"it redirects to {to} ({status}), which is not followed; name that address"
        if status < 500 and status not in (408, 429):
            break
    return f"the webhook at {_host(address)} was not told: {reason}"


def _target(address: str, location: str) -> str:
    try:
        return httpx.URL(address).join(location).host or "nowhere"
    except (httpx.InvalidURL, ValueError):
        return "nowhere"
