"""Find, fingerprint and load models and tokenizers.

This is the one place that decides files, dtype and device.

A model is a directory of weights, or of a peft adapter that names its base: then it is always the
base with the adapter merged. Weights are read from safetensors only; code that a model brings runs
only if it is trusted (trusted_code.py).
"""

import contextlib
import hashlib
import json
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import UserError
from pipelines.models.trusted_code import (
    code_hash,
    may_run,
    refuse_foreign_code,
    refused_code,
    trusted_copy,
)
from pipelines.storage import CACHE, RunStore, file_hash
from sparsepo import verify_head

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def resolve_model(name_or_path: str, tokenizer_only: bool = False) -> Path:
    """The local directory of a model.

    The model is a directory, or a hub name already downloaded, or (if online) fetched now. A
    location on an object store is downloaded once per machine and content, into SPARSEPO_CACHE
    (~/.cache/sparsepo).

    Raises: UserError if there is no such model, or the directory holds no config, tokenizer or
        weights.
    """
    path = (
        _from_object_store(name_or_path)
        if "://" in name_or_path
        else Path(name_or_path).expanduser()
    )
    if not path.is_dir():
        if path.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1:
            raise UserError(f"model {name_or_path!r}: no such directory")
        path = _from_hub(name_or_path)
    if (path / ADAPTER_CONFIG).is_file():
        _check_adapter(path)
        return path.resolve()
    if not (path / "config.json").is_file():
        raise UserError(f"model directory {path}: no config.json")
    if not tokenizer_only and not list(path.glob("*.safetensors")):
        raise UserError(
            f"model directory {path}: no weights (*.safetensors); pickled weights are not read"
        )
    return path.resolve()


def base_dir(directory: Path) -> Path:
    """The directory of a model's own weights: of an adapter's base model, else the model's own.

    Raises: UserError if an adapter's base is not there.
    """
    if not (directory / ADAPTER_CONFIG).is_file():
        return directory
    name = json.loads((directory / ADAPTER_CONFIG).read_text()).get("base_model_name_or_path")
    if not name:
        raise UserError(
            f"adapter {directory}: its {ADAPTER_CONFIG} names no base_model_name_or_path"
        )
    beside = directory / name
    try:
        base = resolve_model(str(beside) if not Path(name).is_dir() and beside.is_dir() else name)
    except UserError as error:
        raise UserError(f"adapter {directory}: its base {error}") from error
    if (base / ADAPTER_CONFIG).is_file():
        raise UserError(
            f"adapter {directory}: its base {base} is an adapter too; merge that one first"
        )
    return base


def _check_adapter(path: Path) -> None:
    if list(path.glob("model*.safetensors")):
        raise UserError(
            f"model directory {path}: it holds both an adapter and whole weights; keep one of them"
        )
    refuse_foreign_code(path)
    if not (path / ADAPTER_WEIGHTS).is_file():
        raise UserError(
            f"adapter {path}: no weights ({ADAPTER_WEIGHTS}); pickled weights are not read"
        )


def _from_object_store(uri: str) -> Path:
    """The downloaded copy of what lies there now.

    Other sizes or times of its files make another copy.
    """
    store = RunStore(uri.rstrip("/"))
    files = store.files()
    if not files:
        raise UserError(f"model {uri!r}: nothing lies there")
    listing = json.dumps([store.root, files])
    target = CACHE / "models" / hashlib.sha256(listing.encode()).hexdigest()[:32]
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            store.as_local_directory("") as copy,
            tempfile.TemporaryDirectory(dir=target.parent, prefix=".tmp-") as staging,
        ):
            # Whole or not at all, whoever else on this machine is at it.
            shutil.copytree(copy, Path(staging) / "model")
            with contextlib.suppress(OSError):
                (Path(staging) / "model").rename(target)
    return target


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.py"]
    try:
        return Path(snapshot_download(name, local_files_only=True, allow_patterns=patterns))
    except HFValidationError as error:
        raise UserError(f"model {name!r}: neither a directory nor a valid model name") from error
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (
        OfflineModeIsEnabled,
        LocalEntryNotFoundError,
        HfHubHTTPError,
        OSError,
        RuntimeError,
    ) as error:
        raise UserError(
            f"model {name!r}: no such directory, not downloaded before, and the model hub cannot "
            "be reached"
        ) from error


def from_directory(auto_class: Any, directory: Path, what: str = "", **settings: Any) -> Any:
    """`auto_class.from_pretrained` without network; code of the model's own runs only if trusted.

    Raises: UserError naming the directory, `what` is wrong and why.
    """
    try:
        refuse_foreign_code(directory)
        code = trusted_copy(directory, CACHE)
        return auto_class.from_pretrained(
            code or directory, local_files_only=True, trust_remote_code=code is not None, **settings
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        refused = refused_code(directory) if "trust_remote_code" in str(error) else None
        raise UserError(
            f"model directory {directory}: {what}{refused or str(error).strip().splitlines()[0]}"
        ) from error


def tokenizer_home(directory: Path) -> Path:
    """Where the tokenizer of a model directory lies: an adapter without one has its base's."""
    own = (directory / "tokenizer_config.json").is_file() or (
        directory / "tokenizer.json"
    ).is_file()
    return directory if own else base_dir(directory)


@lru_cache(maxsize=4)
def load_tokenizer(directory: str) -> Any:
    """The fast tokenizer of a local directory; UserError if it has none or no EOS token."""
    from transformers import AutoTokenizer

    tokenizer = from_directory(
        AutoTokenizer, tokenizer_home(Path(directory)), "no usable tokenizer: "
    )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {directory} has no EOS token: a response could not be ended; set "
            "eos_token in its tokenizer_config.json"
        )
    return tokenizer


def load_causal_lm(
    directory: str, dtype: torch.dtype, device: torch.device | str = "cpu", num_gpus: int = 1
) -> Any:
    """A causal language model in eval mode, without gradient checkpointing; an adapter is merged.

    Args:
        num_gpus: more than one spreads the layers over the first GPUs that this process sees.
    """
    from transformers import AutoModelForCausalLM

    base = base_dir(Path(directory))
    is_adapter = base != Path(directory)
    spread = {"device_map": "balanced"} if num_gpus > 1 else {}
    # An adapter is added in float32, or its update would be rounded to the base's precision.
    model = from_directory(
        AutoModelForCausalLM,
        base,
        dtype=torch.float32 if is_adapter else dtype,
        use_safetensors=True,
        **spread,
    )
    if is_adapter:
        from peft import PeftModel

        try:
            merged = PeftModel.from_pretrained(model, directory).merge_and_unload(safe_merge=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"model directory {directory}: {str(error).splitlines()[0]}") from error
        model = merged.to(dtype).requires_grad_(True)  # peft froze the base
    model = model.eval() if spread else model.to(device).eval()
    try:
        verify_head(model)
    except ValueError as error:
        raise UserError(f"model directory {directory}: {error}") from error
    return model


def without_weights(directory: str | Path) -> Any:
    """The modules of a model directory on the meta device: no weights, no memory.

    For an adapter they are the base's.
    """
    from transformers import AutoModelForCausalLM

    base = base_dir(Path(directory))
    config, code = hf_config(base), trusted_copy(base, CACHE)
    # Where transformers looks for the code; config.json may name another place.
    config.name_or_path = str(code or base)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=code is not None)


def hf_config(directory: str | Path) -> Any:
    """The transformers configuration of a model directory (of the base for an adapter)."""
    from transformers import AutoConfig

    return from_directory(AutoConfig, base_dir(Path(directory)))


def model_config(directory: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((base_dir(directory) / "config.json").read_text())
    return loaded


def max_positions(directory: Path) -> int | None:
    """Longest sequence the model was built for, or None if its config does not say."""
    config = model_config(directory)
    value = config.get("max_position_embeddings") or config.get("n_positions")
    return int(value) if value else None


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
        adapter = json.loads((directory / ADAPTER_CONFIG).read_text())
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


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that make up a model: the base's, then an adapter's."""
    base = base_dir(directory)
    adapter = [] if base == directory else [directory / ADAPTER_WEIGHTS]
    return sorted(base.glob("*.safetensors")) + adapter


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash of what decides token ids: the tokenizer's serialisation, template and end token."""
    parts = [
        tokenizer.backend_tokenizer.to_str(),
        str(tokenizer.chat_template),
        str(tokenizer.eos_token_id),
        str(tokenizer.bos_token_id),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def compute_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def reference_dtype(setting: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 on a GPU, float32 on CPU."""
    if setting == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[setting]
