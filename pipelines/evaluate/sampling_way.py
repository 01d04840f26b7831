"""How the samples of a stage are drawn: batch by batch with `generate`, or captured.

A small job is over before a captured step would have been made. Which way it is follows from the
recipe, the number of samples and whether actors have GPUs: a resumed stage takes the same one.
"""

import math
from typing import Any, Literal

from pipelines.recipe import GenerationSection
from pipelines.storage import digest

Way = Literal["batches", "captured"]
CAPTURED_TASK = 8192  # samples of a captured task
_STEP_SECONDS = 0.03  # of `generate`, whatever the batch
_LEAST_SECONDS = 30.0  # of a job that is captured


def way_of(gpus: float, samples: int, batch: int, settings: GenerationSection) -> Way:
    """How actors with so many GPUs draw.

    Args:
        samples: of one model, with these settings. batch: those that `generate` draws at once.
    """
    seconds = math.ceil(samples / batch) * settings.max_new_tokens * _STEP_SECONDS
    pays = gpus > 0 and settings.engine == "transformers" and seconds >= _LEAST_SECONDS
    return "captured" if pays else "batches"


def sample_seed(*names: Any) -> int:
    """The seed, below 2**64, of the sample that these JSON values name."""
    return int(digest(list(names))[:16], 16)
