"""SECURITY.md says what holds: tests/security.yaml names the tests of each of its sentences."""

import ast
import re
from typing import Any

import yaml
from checkout import ROOT

CLAIMS: list[dict[str, Any]] = yaml.safe_load((ROOT / "tests" / "security.yaml").read_text())


def sentences(text: str) -> list[str]:
    """Of a page's paragraphs and points, without headings and tables."""
    lines = [line for line in text.splitlines() if line and line[0] not in "#|"]
    points = [line.removeprefix("* ") for line in lines]
    return [part for point in points for part in re.split(r"(?<=\.) (?=[A-Z`]|lm-|vLLM)", point)]


def functions(file: str) -> set[str]:
    body = ast.parse((ROOT / file).read_text()).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef)}


def test_every_sentence_is_held_or_is_a_limit() -> None:
    """Verbatim and in order; a claim has tests that are there, a limit or advice has none."""
    assert [claim["says"] for claim in CLAIMS] == sentences((ROOT / "SECURITY.md").read_text())
    for claim in CLAIMS:
        assert claim.keys() - {"says"} in ({"tests"}, {"limit"}, {"advice"}), claim
        for test in claim.get("tests", ()):
            file, _, name = test.partition("::")
            assert name.startswith("test_") and name in functions(file), test
    assert sum("tests" in claim for claim in CLAIMS) > 50


def test_sentences_are_taken_apart() -> None:
    text = "# Head\n\nOne is. `two` is: so.\n| a. B | c |\n* Three (`a.B`, 3.11). lm-four. Five\n"
    assert sentences(text) == [
        "One is.", "`two` is: so.", "Three (`a.B`, 3.11).", "lm-four.", "Five"
    ]  # fmt: skip
