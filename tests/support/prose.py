"""Sentences of a Markdown document: what is left of it without code, tables, headings and links."""

import re

ABBREVIATIONS = ("e.g.", "i.e.", "vs.", "cf.", "Fig.", "Eq.", "No.", "et al.")
NOT_PROSE = re.compile(r"^(?:#|\||:::|!!!|!\[|<|-{3,}$| {4})")
POINT = re.compile(r"^\s*(?:[*-]|\d+\.)\s+")


def sentences(text: str) -> list[str]:
    """In order, on one line each. Inline code is the word `code`, several in a row are one."""
    return [part for block in paragraphs(text) for part in parts(plain(block))]


def words(sentence: str) -> int:
    """A number with its interval is one word; signs alone are none."""
    whole = re.sub(r"\s*\[[+-]?\d[^\]]*\]", "", sentence)
    return sum(bool(re.search(r"\w", word)) for word in whole.split())


def paragraphs(text: str) -> list[str]:
    """Paragraphs and points of lists, each on one line."""
    found: list[list[str]] = [[]]
    for line in re.sub(r"^\s*```.*?^\s*```$", "\n", text, flags=re.S | re.M).splitlines():
        point = POINT.match(line)
        if not line.strip() or (NOT_PROSE.match(line) and not point):
            found.append([])
        elif point:
            found.append([line[point.end() :]])
        else:
            found[-1].append(line.strip())
    return [" ".join(block) for block in found if block]


def plain(block: str) -> str:
    """Without marks: of a link its text, of inline code a word."""
    block = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", block)
    block = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", block)
    block = re.sub(r"(`+)(.+?)\1", "code", block)
    block = re.sub(r"\bcode(?:(?:,| and| or|, and|, or)? code\b)+", "code", block)
    return re.sub(r"\*{1,2}([^*]+)\*{1,2}", r"\1", block)


def parts(block: str) -> list[str]:
    """Cut behind a full stop, a question or an exclamation mark that a space follows."""
    found = [""]
    for piece in re.split(r"(?<=[.?!])(?=[\"')\]]*\s)", block):
        found[-1] += piece
        if not found[-1].endswith(ABBREVIATIONS):
            found.append("")
    return [part.strip() for part in found if re.search(r"\w", part)]
