"""Which environment variables go with a job, whose environment all users of its cluster can read.

`--env` takes names from a list, `--public-env` any other. Neither takes what looks like a secret.
"""

import os
import re
from collections.abc import Sequence

from pipelines.errors import UserError
from pipelines.recipe import Say

# What the pipeline and its libraries read, and what says where and how, never who.
_NAMES = frozenset(
    """
    AWS_DEFAULT_REGION AWS_ENDPOINT_URL AWS_REGION HF_DATASETS_CACHE HF_DATASETS_OFFLINE
    HF_ENDPOINT HF_HOME HF_HUB_CACHE HF_HUB_DISABLE_PROGRESS_BARS HF_HUB_DISABLE_TELEMETRY
    HF_HUB_ENABLE_HF_TRANSFER HF_HUB_OFFLINE LANG LC_ALL LD_LIBRARY_PATH MLFLOW_EXPERIMENT_NAME
    NO_COLOR NO_PROXY PYTHONHASHSEED RAY_ADDRESS RAY_BACKEND_LOG_LEVEL
    RAY_DATA_DISABLE_PROGRESS_BARS RAY_DEDUP_LOGS RAY_USE_MULTIPROCESSING_CPU_COUNT SPARSEPO_CACHE
    SPARSEPO_COMPILED_SHAPES SPARSEPO_TRUSTED_CODE TOKENIZERS_PARALLELISM TRANSFORMERS_OFFLINE
    TRANSFORMERS_VERBOSITY TZ WANDB_ENTITY WANDB_MODE WANDB_PROJECT WANDB_RUN_GROUP WANDB_SILENT
    """.split()
)
_PREFIXES = (
    *("CUBLAS_", "CUDA_", "CUDNN_", "GLOO_", "KMP_", "MKL_", "NCCL_", "NVIDIA_", "OMP_"),
    *("OPENBLAS_", "PYTORCH_", "TORCH_", "TORCHINDUCTOR_", "TRITON_", "UCX_", "VLLM_"),
)
_HASHES = "SPARSEPO_TRUSTED_CODE"  # long numbers, and public
_SECRET_NAME = re.compile(
    r"KEY|TOKEN(?!IZ)|SECRET|PASS|PWD|CREDENTIAL|AUTH|WEBHOOK|COOKIE|SESSION|PRIVATE|SIGNATURE"
    r"|DSN|CONNECTION_STRING|NETRC",
    re.I,
)
_SECRET_VALUE = re.compile(
    r"""
    ://[^/\s]*@                                         # a user in an address
    | (?:key|token|secret|sig|signature|passw(?:or)?d|pwd|auth)\s*[=:]\s*\S     # a field of one
    | \b(?:bearer|basic)\s+\S
    | -----BEGIN
    | \b(?:sk-|hf_|gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|A[KS]IA|AIza|ya29\.|eyJ)[\w.-]{8}
    | hooks\.slack\.com | /webhooks?/
    | (?=[A-Za-z+]*[0-9])(?=[0-9+]*[A-Za-z])[A-Za-z0-9+]{24,}                   # random letters
    """,
    re.I | re.X,
)


def job_environment(forwarded: Sequence[str], public: Sequence[str], say: Say) -> dict[str, str]:
    """Variables for the job, of NAME (as it is set here) or NAME=VALUE.

    Args:
        forwarded: of `--env`. public: of `--public-env`, each said to be readable.
    Raises: UserError for one that is not set, is not on the list (`--env`), or looks like a secret
        by its name or value; the value is not repeated.
    """
    found = {}
    for option, item in [("--env", i) for i in forwarded] + [("--public-env", i) for i in public]:
        name, sign, value = item.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UserError(f"{option} {name!r}: must be NAME or NAME=VALUE")
        known = name in _NAMES or name.startswith(_PREFIXES)
        if name not in _NAMES and _SECRET_NAME.search(name):
            raise _refused(option, name, "by its name it holds a secret")
        if option == "--env" and not known:
            raise UserError(
                f"--env {name}: not among the variables that a job needs (docs/clusters.md); if "
                f"everybody who uses the cluster may read it, send it with --public-env {name}"
            )
        if not sign and name not in os.environ:
            raise UserError(f"{option} {name}: not set here; write {name}=VALUE")
        found[name] = value if sign else os.environ[name]
        if name != _HASHES and _SECRET_VALUE.search(found[name]):
            raise _refused(option, name, "its value looks like a secret")
        if not known:
            say(f"warning: {option} {name}: everybody who may use the cluster can read its value")
    return found


def _refused(option: str, name: str, why: str) -> UserError:
    return UserError(
        f"{option} {name}: {why}, and everybody who may use the cluster can read a job's "
        "environment; set keys on its machines (docs/clusters.md)"
    )
