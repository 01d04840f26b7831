"""What models and tokenizers are, in a hash or a few numbers, for the records of what used them.

No library is imported for what was asked before: file hashes are kept by path, size and time, and
what only a loaded tokenizer or configuration tells is kept by the content of its files.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any

from pipelines.errors import UserError
from pipelines.models.contents import config_contents, tokenizer_contents
from pipelines.models.directories import (
    ADAPTER_CONFIG,
    base_dir,
    json_of,
    model_config,
    tokenizer_home,
    weight_files,
)
from pipelines.models.families import refusal_of
from pipelines.models.trusted_code import code_hash, may_run
from pipelines.storage import file_hash, remembered

# What turns a directory's files into a tokenizer or a configuration.
_LIBRARIES = (
    "transformers",
    "tokenizers",
    "huggingface_hub",
    "jinja2",
    "sentencepiece",
    "tiktoken",
    "protobuf",
    "mistral-common",
    "peft",
    "torch",
)


def weights_fingerprint(directory: Path) -> str:
    """Hash of the config's architecture, code that runs and every weight file, an adapter's too.

    File hashes are cached by path, size and time.
    """
    digest = hashlib.sha256()
    config = model_config(directory)
    for volatile in ("transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache"):
        config.pop(volatile, None)
    digest.update(json.dumps(config, sort_keys=True).encode())
    if may_run(base_dir(directory)):
        digest.update(code_hash(base_dir(directory)).encode())
    for file in weight_files(directory):
        digest.update(f"{file.name}:{_checked_hash(file)}".encode())
    if (directory / ADAPTER_CONFIG).is_file():
        adapter = json_of(directory / ADAPTER_CONFIG)
        digest.update(
            json.dumps(
                {k: v for k, v in adapter.items() if k != "base_model_name_or_path"}, sort_keys=True
            ).encode()
        )
    return digest.hexdigest()[:32]


def _checked_hash(file: Path) -> str:
    """A weight file's hash.

    UserError if a training of ours published it (RUN/train/model) and it is not the same any more.
    """
    manifest = file.parent.parent / "manifest.json"
    found = file_hash(file)
    if file.parent.name == "model" and manifest.is_file():
        try:
            read = json.loads(manifest.read_bytes())
            expected = (
                read["outputs"].get(f"model/{file.name}") if read["stage"] == "train" else None
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            expected = None  # another program's
        if expected not in (None, found):
            raise UserError(
                f"model directory {file.parent}: {file.name} is damaged: it is not what training "
                f"published ({manifest})"
            )
    return found


def tokenizer_fingerprint(directory: Path) -> str:
    """Hash of what decides token ids: the tokenizer's serialisation, template and end token.

    Raises: UserError if the directory has no usable tokenizer.
    """
    found: str = ask_tokenizer("tokenizer", directory, _hash_of_tokenizer)
    return found


def _hash_of_tokenizer(tokenizer: Any) -> str:
    parts = [
        tokenizer.backend_tokenizer.to_str(),
        str(tokenizer.chat_template),
        str(tokenizer.eos_token_id),
        str(tokenizer.bos_token_id),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def ask_tokenizer(
    name: str, directory: Path, question: Callable[[Any], Any], about: Any = None
) -> Any:
    """A fact about the tokenizer of a model directory, which is loaded if it is not known yet.

    Code of the tokenizer's own may read anything: then it is loaded every time.

    Args:
        name: of the question. question: its answer for a loaded tokenizer, a JSON value.
        about: what else the answer depends on, a JSON value.
    Raises: UserError if the directory has no usable tokenizer.
    """

    def answer() -> Any:
        from pipelines.models.loading import fresh_tokenizer

        return question(fresh_tokenizer(str(directory)))

    if may_run(tokenizer_home(directory)):
        return answer()
    return remembered(name, lambda: [tokenizer_contents(directory), about, _read_with()], answer)


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model, as transformers reads them from its configuration.

    Attributes:
        num_layers: decoder layers. hidden_size: features of their states. state_size: features of
            the last hidden state, which the LM head reads. vocabulary: rows of the LM head.
    """

    num_layers: int
    hidden_size: int
    state_size: int
    vocabulary: int


def model_shape(directory: Path) -> ModelShape:
    """The sizes of a model directory, of the base for an adapter.

    Raises: UserError if its configuration cannot be read or lacks one.
    """

    def answer() -> dict[str, int]:
        from pipelines.models.loading import hf_config
        from sparsepo.backbone import state_size

        config = hf_config(directory)
        text = config.get_text_config()
        try:
            return asdict(
                ModelShape(
                    int(text.num_hidden_layers),
                    int(text.hidden_size),
                    state_size(config),
                    int(text.vocab_size),
                )
            )
        except (AttributeError, TypeError) as error:
            raise UserError(
                f"model directory {directory}: its configuration lacks a size ({error})"
            ) from error

    base = base_dir(directory)
    found = (
        answer()
        if may_run(base)
        else remembered("shape", lambda: [config_contents(directory), _read_with()], answer)
    )
    return ModelShape(**found)


def check_family(key: str, directory: Path) -> None:
    """UserError for a model that cannot be loaded to score tokens: its family is unknown, is of
    another kind, or needs code that is not run.

    Args:
        key: of the recipe, which names the model.
    """

    def answer() -> str | None:
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

        from pipelines.models.loading import hf_config

        config = hf_config(directory)
        return None if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else str(config.model_type)

    if may_run(base_dir(directory)):
        return
    if refusal := refusal_of(directory):
        raise UserError(f"{key} = {directory}: {refusal}")
    found = remembered("family", lambda: [config_contents(directory), _read_with()], answer)
    if found is not None:
        raise UserError(
            f"{key} = {directory}: models of type {found!r} do not predict the next token "
            "(transformers has no causal language model of this type)"
        )


@lru_cache(maxsize=1)
def _read_with() -> dict[str, str]:
    """What reads a directory's files: versions of the libraries, and this room's own code."""
    versions = {"python": python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "none"
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        code.update(file.read_bytes())
    return {**versions, "code": code.hexdigest()}
