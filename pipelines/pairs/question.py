"""What a reply answers: the messages before it and the tools, or a text.

Pairs carry it beside their token ids, so that judges are asked the conversation itself.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.models import ChatTemplate, Message
from pipelines.pairs.conversation import text_of

_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class Question:
    """The messages before a reply, and the tools that it may call."""

    messages: Sequence[Message]
    tools: Sequence[Any] | None = None

    @classmethod
    def stored(cls, text: str) -> "Question":
        """What the column `conversation` of a pair holds."""
        return cls(**json.loads(text))

    @classmethod
    def turn(cls, text: str) -> "Question":
        """A single turn of the user."""
        return cls([{"role": "user", "content": text}])

    @classmethod
    def of_text(cls, prompt: str) -> "Question":
        """A prompt of a text form as messages: a transcript's turns, or one turn of the user.

        A transcript has turns of Human and Assistant and ends as the assistant begins. One that was
        cut begins with its first whole turn of the user.
        """
        first, *parts = _TRANSCRIPT.split(prompt)
        turns = [
            {"role": _ROLES[name], "content": said.strip()}
            for name, said in zip(parts[::2], parts[1::2], strict=True)
        ]
        if not turns or turns[-1] != {"role": "assistant", "content": ""}:
            return cls.turn(prompt)
        del turns[-1]
        if turns and turns[0]["role"] == "assistant":
            if first.strip():
                turns.insert(0, {"role": "user", "content": first.strip()})
            else:
                del turns[0]
        return cls(turns) if turns else cls.turn(first.strip())

    def answered(self, template: ChatTemplate, reply: str) -> str:
        """The conversation with a reply, rendered. TemplateRefused by the template."""
        answer = {"role": "assistant", "content": reply}
        return template.render([*self.messages, answer], self.tools)

    def read(self) -> str:
        """As a person reads it: roles named, or the words alone of a single turn of the user."""
        if len(self.messages) == 1 and self.messages[0]["role"] == "user" and not self.tools:
            return text_of(self.messages[0])
        return self._turns()

    def read_with(self, reply: str) -> str:
        """As a person reads it, with a reply: all roles named."""
        return f"{self._turns()}\n\nAssistant: {reply}"

    def _turns(self) -> str:
        parts = [_turn(message) for message in self.messages]
        if self.tools:
            parts.insert(0, "\n".join(["Tools:", *map(_written, self.tools)]))
        return "\n\n".join(parts)


def _turn(message: Message) -> str:
    said = [text for text in (text_of(message).strip(),) if text]
    for call in message.get("tool_calls") or ():
        function = call.get("function", call)
        said.append(f"calls {function['name']} {_written(function.get('arguments', {}))}")
    return f"{str(message['role']).capitalize()}: " + "\n".join(said)


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
