"""What loading a first model does once per process, done by a warm process: a table's patterns."""

import contextlib
import importlib

with contextlib.suppress(ImportError, AttributeError):
    table = importlib.import_module("transformers.conversion_mapping")
    table.get_checkpoint_conversion_mapping("llama")
