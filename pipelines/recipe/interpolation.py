"""Interpolation in recipes and sweeps: references to their own keys, and nothing from outside.

OmegaConf's resolvers read the environment (oc.env), parse text into further ones (oc.decode,
oc.create) or run what another package has registered. What they give would be written into
config.yaml, the job's package and the report.
"""

from collections.abc import Iterator
from typing import Any

from omegaconf.grammar_parser import OmegaConfGrammarParser, parse

from pipelines.errors import UserError


def refuse_resolvers(value: Any, where: str, key: str = "") -> None:
    """Check every string of a mapping, list or value before anything in it is resolved.

    Args:
        where: what the value belongs to, for the message. key: its own key there.
    Raises: UserError naming the key of a string that calls a resolver, however deep; OmegaConf's
        GrammarParseError for a string that is no interpolation.
    """
    for name, text in _strings(value, key):
        if _calls_resolver(parse(text)):
            raise UserError(
                f"{where}, {name}: a resolver (${{name:...}}, such as oc.env) is not run, what it "
                "reads would be written into config.yaml; write the value, or refer to a key as "
                "${key}"
            )


def refuse_unresolved(value: Any) -> None:
    """UserError naming the key of a resolved string that config.yaml cannot hold.

    Read again from there, the string would be an interpolation.
    """
    for name, _ in _strings(value, ""):
        raise UserError(
            f"{name}: no value can hold the text '${{': config.yaml could not be read again"
        )


def _strings(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """(key, string) of every string that may hold an interpolation."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _strings(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _strings(item, f"{key}[{number}]")
    elif isinstance(value, str) and "${" in value:
        yield key, value


def _calls_resolver(node: Any) -> bool:
    """Whether a parse tree holds a resolver; one whose name is an interpolation itself counts."""
    if isinstance(node, OmegaConfGrammarParser.InterpolationResolverContext):
        return True
    children = node.getChildren() if hasattr(node, "getChildren") else ()
    return any(_calls_resolver(child) for child in children)
