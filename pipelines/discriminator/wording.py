"""What an editor is asked, and what of its answer is the edit."""

import re

_ASK = """Below is what an assistant was asked, and its reply. Make the reply better:
more helpful, more truthful and harmless. Change as few words as you can, and keep
the order and the words of all that is good already. If nothing can be better,
repeat the reply.

[Asked]
{asked}

[Reply]
{reply}

Write the better reply between <reply> and </reply>, and nothing else."""
_EDIT = re.compile(r"<reply>(.*?)</reply>", re.S)


def editing_messages(asked: str, reply: str) -> list[dict[str, str]]:
    """The question to an editor. What stands in the texts cannot end its own part of it."""
    parts = {
        name: re.sub(r"</?reply>", "", text) for name, text in (("asked", asked), ("reply", reply))
    }
    return [{"role": "user", "content": _ASK.format(**parts)}]


def parse_edit(answer: str) -> str | None:
    """The first reply in an answer, without space around it; None if there is none."""
    found = _EDIT.search(answer)
    text = "" if found is None else found[1].strip()
    return text or None
