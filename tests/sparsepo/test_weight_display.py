"""Tokens with weights as text, colours and HTML: nothing of a token is markup or an escape."""

import re
from html.parser import HTMLParser

import torch

from sparsepo import TokenWeights

TOKENS = ["a", " <b>&", "<!--", " \x1b[2J\n", "\ud83d", '"\u202e']
REWARD = [0.0, 0.25, 1.0, -0.5, 0.75, 1.0]


def found(kl: list[float] | None = None) -> TokenWeights:
    kl = [1.0] * 6 if kl is None else kl
    return TokenWeights(TOKENS, torch.tensor(REWARD), torch.tensor(kl))


class Reader(HTMLParser):
    """What a browser makes of a text: the texts of spans, and their titles and styles."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: list[str] = []
        self.titles: list[str] = []
        self.styles: list[str] = []
        self.tags: set[str] = set()
        self.comments: list[str] = []
        self._in_span = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._in_span = tag == "span"
        if self._in_span:
            given = dict(attrs)
            self.titles.append(str(given["title"]))
            self.styles.append(str(given["style"]))
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_span = False

    def handle_data(self, data: str) -> None:
        if self._in_span:
            self.texts[-1] += data

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


SHOWN = ["a", " <b>&", "<!--", " \\x1b[2J\\n", "\ufffd", '"\\u202e']


def test_html_holds_every_token_as_text() -> None:
    """A parser of HTML finds the tokens again, and no element, comment or half character of theirs.

    Strength is the absolute weight over the largest; below zero it has another colour.
    """
    page = found()._repr_html_()
    page.encode()
    read = Reader(page)
    assert read.texts == SHOWN and read.tags == {"div", "b", "span"} and not read.comments
    assert read.titles == [f"reward {weight:.4g}" for weight in REWARD]
    painted = [re.search(r"rgba\((\d+),\d+,\d+,([\d.]+)\)", style) for style in read.styles]
    assert [float(m[2]) for m in painted if m] == [0, 0.25, 1, 0.5, 0.75, 1]
    assert [m[1] for m in painted if m][2:4] == ["53", "200"]


def test_terms_that_differ_have_a_line_each() -> None:
    kl = [2.0, 0.0, 0.0, 0.0, 0.0, 0.5]
    read = Reader(found(kl)._repr_html_())
    assert read.texts == SHOWN * 2 and read.titles[0] == "reward 0 | kl 2"
    assert len(found(kl).text().splitlines()) == 2
    assert len(found(REWARD).text().splitlines()) == 1, "the KL's weights are the reward's"


def test_text_is_read_with_and_without_colours() -> None:
    """Without: numbers, no escape. With: taking the escapes away leaves the running text."""
    plain = found().text()
    assert plain.startswith("reward (-0.5 to 1): ⟦a⟧0.00 ⟦ <b>&⟧0.25 ⟦<!--⟧1.00")
    assert "\x1b" not in plain and len(plain.splitlines()) == 1
    coloured = found().text(colours=True)
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == "reward (-0.5 to 1): " + "".join(SHOWN)
    backs = re.findall(r"48;5;(\d+)m", coloured)
    assert backs == ["153", "26", "210", "69", "26"], "none for weight 0; red below"
    assert coloured.count("\x1b[0m") == len(backs) and coloured.endswith("\x1b[0m")


def test_ids_and_weights_without_any_size() -> None:
    ids = TokenWeights([3, 14], torch.zeros(2), torch.ones(2))
    assert ids.text(colours=True) == "reward (0 to 0): 3 14"
    broken = TokenWeights(["a", "b"], torch.tensor([float("nan"), 1.0]), torch.ones(2))
    assert Reader(broken._repr_html_()).titles == ["reward nan", "reward 1"]
