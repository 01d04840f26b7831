"""The documents' sentences are short enough to be read once."""

from pathlib import Path

import pytest
from checkout import ROOT
from prose import sentences, words

LIMIT = 25
GENERATED = ("keys.md",)
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in GENERATED),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_no_sentence_is_long(page: Path) -> None:
    found = sentences(page.read_text())
    assert found
    assert [(words(s), s) for s in found if words(s) > LIMIT] == []


TEXT = """# A heading. Of two sentences.

One is `a.b. c` here, e.g. so. Two (see [the page](page.md#x.y)) ends
on another line! Is it 0.5 of 3? **Bold. Then**

* A point with `x`, `y` and `z`
  goes on.
1. Another: 0.61 [0.5, 0.7] | no table

| a table. | is none |
|---|---|

    indented. code

```yaml
key: value. Other
```
::: sparsepo.DPO
![a picture. here](picture.png)
"""


def test_sentences_are_what_a_reader_takes_for_one() -> None:
    """Taken apart by hand: code in a row is one word, a number with its interval too."""
    found = sentences(TEXT)
    assert found == [
        "One is code here, e.g. so.",
        "Two (see the page) ends on another line!",
        "Is it 0.5 of 3?",
        "Bold.",
        "Then",
        "A point with code goes on.",
        "Another: 0.61 [0.5, 0.7] | no table",
    ]
    assert [words(sentence) for sentence in found] == [6, 8, 5, 1, 1, 6, 4]
