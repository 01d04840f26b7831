"""What is said of options and arguments that a command does not take."""

from typing import Any


def usage_message(error: Any) -> str:
    """The line for an error of the parser, with what to type instead.

    A key of a recipe that is given as an option is answered with the override that is meant.
    """
    context = getattr(error, "ctx", None)
    said = str(error.format_message())
    command = getattr(context, "command_path", None) or "sparsepo"
    name = getattr(error, "option_name", None)
    if name and context is not None and "overrides" in {p.name for p in context.command.params}:
        from pipelines.recipe import Recipe, key_meant

        meant = key_meant(Recipe, name.lstrip("-").replace("-", "_"))
        if meant is not None:
            said = f"no such option: {name}; {meant} is meant, write {meant}=VALUE"
    return f"{said.rstrip('.')} (`{command} -h` shows what it takes)"
