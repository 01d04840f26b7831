"""A key is cut out of texts in every form in which an endpoint may repeat it."""

import base64
import html
import json
from urllib.parse import quote, quote_plus

import pytest

from pipelines.evaluate.key_traces import KeyTraces

KEY = 'sk-Qu"o/te\\d+4f=<7>&x'
FORMS = {
    "itself": KEY,
    "in capitals": KEY.upper(),
    "in an address": quote(KEY, safe=""),
    "in a form": quote_plus(KEY),
    "in an address, small": quote(KEY, safe="").lower(),
    "in JSON": json.dumps({"key": KEY}),
    "in a page": html.escape(KEY),
    "in hexadecimal": KEY.encode().hex(),
    "in capitals of hexadecimal": KEY.encode().hex().upper(),
    **{
        f"base64 after {n} bytes": base64.b64encode(b"k" * n + KEY.encode() + b"end").decode()
        for n in range(4)
    },
    "base64 for addresses": base64.urlsafe_b64encode(f"x:{KEY}".encode()).decode(),
    "its beginning": KEY[:12],
    "its end": KEY[-9:],
    "twice": f"{KEY}{KEY} {KEY}",
}


@pytest.mark.parametrize("form", FORMS)
def test_no_eight_characters_of_a_key_are_left(form: str) -> None:
    """In either case of letters; what is around it stays."""
    found = KeyTraces(KEY).cut(f"Ünsaid: {FORMS[form]} is no key.")
    assert found.startswith("Ünsaid: ") and found.endswith(" is no key.") and "***" in found
    for text in (KEY, quote(KEY, safe=""), json.dumps(KEY)[1:-1], html.escape(KEY),
                 KEY.encode().hex()):  # fmt: skip
        pieces = {text[at : at + 8].lower() for at in range(len(text) - 7)}
        assert not [piece for piece in pieces if piece in found.lower()]
    assert len(found) < 45


def test_a_base64_text_keeps_none_of_the_keys_characters() -> None:
    """A character of base64 is six bits. "ab" takes two and four bits of a third; "yz", after the
    last byte of the key (the 23rd, two bytes into its group of three), begins within the last one
    that is kept in front of it.
    """
    whole = base64.b64encode(b"ab" + KEY.encode() + b"yz").decode()
    found = KeyTraces(KEY).cut(whole)
    assert found == f"{whole[:3]}***{whole[-6:]}"
    assert base64.b64decode(whole[:3] + "A") == b"ab\x40" and KEY[0] != "\x40"


@pytest.mark.parametrize("key", ["abcd", "EMPTY", "s3cr3t", "x-y_z.7"])
def test_a_short_key_is_cut_where_it_stands_alone(key: str) -> None:
    traces = KeyTraces(key)
    encoded = base64.b64encode(key.encode()).decode().rstrip("=")
    said = f"key={key}; '{key.upper()}', {key.encode().hex()} and a{key} {key}9 {encoded}."
    found = traces.cut(said)
    assert found == f"key=***; '***', *** and a{key} {key}9 ***."


def test_what_is_no_key_is_left_alone() -> None:
    text = "A is better: [[A]] none sk-Quo 73 2d"
    for key in (None, "", "A", "is", "non", KEY, "absent", "another-long-key"):
        assert KeyTraces(key).cut(text) == text
    assert KeyTraces("none").cut(text) == text.replace("none", "***")
