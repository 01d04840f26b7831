"""`python -m pipelines` is the `sparsepo` command.

It first looks whether this Python has what the program imports: a cluster may run a job with one
that has not. So nothing is imported here but the standard library.
"""

import sys
from importlib.util import find_spec

OLDEST = (3, 11)
# What the package's dependencies are imported as.
REQUIRED = (
    *("ray", "torch", "transformers", "datasets", "evaluate", "pyarrow", "fsspec", "safetensors"),
    *("numpy", "packaging", "lazy_loader", "tokenizers", "huggingface_hub", "pydantic"),
    *("omegaconf", "yaml", "typer", "tqdm", "jinja2", "matplotlib", "tensorboardX", "peft"),
    *("accelerate", "optuna", "vaderSentiment", "rouge_score", "sacrebleu", "httpx", "cronsim"),
    *("openai", "scipy", "xxhash"),
)


def obstacle(version=sys.version_info[:2], required=REQUIRED):  # type: ignore[no-untyped-def]
    """What keeps this Python from running the program, in a line; empty if nothing does."""
    here = "{} (Python {})".format(sys.executable, ".".join(map(str, version)))
    if version < OLDEST:
        return "{} is too old: Python {}.{} is needed".format(here, *OLDEST)
    lacking = [name for name in required if find_spec(name) is None]
    if not lacking:
        return ""
    return "{} lacks {}: start Ray with the Python that has sparsepo, or install it there".format(
        here, ", ".join(lacking)
    )


if __name__ == "__main__":
    if found := obstacle():
        print("error: " + found, file=sys.stderr)
        sys.exit(2)
    from pipelines.commands import main

    main()
