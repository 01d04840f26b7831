"""Which variables `submit` sends with a job: what is on the list, or said to be public, and in
neither case what looks like a secret.
"""

import pytest

from pipelines.commands.job_environment import job_environment
from pipelines.errors import UserError

SHA = "5f3a" * 16


def sent(*items: str) -> dict[str, str]:
    said: list[str] = []
    found = job_environment(items, (), said.append)
    assert said == []
    return found


def test_what_a_job_needs_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is set here, or as it is written; the hashes of trusted code although they are long."""
    monkeypatch.setenv("SPARSEPO_TRUSTED_CODE", f"{SHA},{SHA}")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth0")
    found = sent(
        "SPARSEPO_TRUSTED_CODE", "NCCL_SOCKET_IFNAME", "TOKENIZERS_PARALLELISM=false",
        "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True", "WANDB_MODE=online",
        "AWS_ENDPOINT_URL=http://minio.storage:9000", "HF_HOME=/mnt/Models2024/Llama-3-8B-Instruct",
        "CUDA_VISIBLE_DEVICES=GPU-5f3a1b2c-77aa-41d0-9e77-0a1b2c3d4e5f", "TZ=",
    )  # fmt: skip
    assert found["SPARSEPO_TRUSTED_CODE"] == f"{SHA},{SHA}" and found["TZ"] == ""
    assert found["NCCL_SOCKET_IFNAME"] == "eth0" and len(found) == 9


@pytest.mark.parametrize("option", ["--env", "--public-env"])
@pytest.mark.parametrize(
    "name",
    [
        "OPENAI_APIKEY", "PGPASSWORD", "SPARSEPO_WEBHOOK", "WANDB_API_KEY", "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "DB_PASS",
        "GOOGLE_APPLICATION_CREDENTIALS", "RAY_AUTH_TOKEN", "mysecret", "SENTRY_DSN",
        "TORCH_HUB_TOKEN", "NCCL_KEYFILE", "STORAGE_CONNECTION_STRING",
    ],
)  # fmt: skip
def test_names_of_secrets_are_refused(option: str, name: str) -> None:
    """On the list or off it; the value is not repeated."""
    arguments = ([f"{name}=plain"], []) if option == "--env" else ([], [f"{name}=plain"])
    with pytest.raises(UserError, match=f"{option} {name}: by its name it holds a secret") as error:
        job_environment(*arguments, print)
    assert "plain" not in str(error.value)


@pytest.mark.parametrize(
    "value",
    [
        "https://me:pw@host/x", "postgres://user@host/db", "https://host/?access_token=abc",
        "AccountKey=abc;x", "password: abc", "Bearer abc", "-----BEGIN PRIVATE KEY-----",
        "sk-abcdefgh", "hf_abcdefghijkl", "ghp_abcdefghijkl", "AKIAABCDEFGHIJKL", "eyJhbGciOiJI",
        "https://hooks.slack.com/services/T/B/x", "https://discord.com/api/webhooks/1/x",
        "x 9f8e7d6c5b4a39281706f5e4d3c2b1a0", "wJalrXUtnFEMIK7MDENGbPxRfiCY",
    ],
)  # fmt: skip
def test_values_that_look_like_secrets_are_refused(value: str) -> None:
    """Under a name of the list, by a prefix, and under one said to be public; not repeated."""
    for forwarded, public in (
        ([f"HF_ENDPOINT={value}"], []), ([f"VLLM_X={value}"], []), ([], [f"MINE={value}"])
    ):  # fmt: skip
        with pytest.raises(UserError, match="its value looks like a secret") as error:
            job_environment(forwarded, public, print)
        assert value not in str(error.value)


def test_other_names_are_sent_only_as_public_and_with_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    with pytest.raises(UserError, match="--env MLFLOW_TRACKING_URI: not among the variables that a "
                       "job needs .*--public-env MLFLOW_TRACKING_URI"):  # fmt: skip
        sent("MLFLOW_TRACKING_URI")
    said: list[str] = []
    found = job_environment(["TZ=UTC"], ["MLFLOW_TRACKING_URI", "LANG=C"], said.append)
    assert found == {"TZ": "UTC", "MLFLOW_TRACKING_URI": "http://mlflow:5000", "LANG": "C"}
    assert said == [
        "warning: --public-env MLFLOW_TRACKING_URI: everybody who may use the cluster can read its "
        "value"
    ]
    for item in ("A B=1", "=x", "1A=2", "--follow"):
        with pytest.raises(UserError, match="must be NAME or NAME=VALUE"):
            sent(item)
