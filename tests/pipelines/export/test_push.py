"""An export on its way to the Hub: a server on this machine that speaks the Hub's API keeps what
huggingface_hub's own client sends.

The client reads its address once, when it is imported: the commands of a test run one after the
other in a process of their own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, Hub, serving_hub
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from pipelines.recipe.schema import Recipe

pytestmark = pytest.mark.slow
Export = Callable[..., Path]
WRONG = "hf_aWrongTokenOfTheTests98765432"
# The client waits 1, 2, 4, 8 and 8 s between its tries at a hub that is away: here hundredths.
PROGRAM = """
import contextlib, io, json, os, sys, time
from pipelines.commands.cli import main
sleep = time.sleep
time.sleep = lambda seconds: sleep(seconds / 100)
for token, *given in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(["export", *given])
        except SystemExit as ended:
            code = ended.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""
Said = tuple[int, str, str]


def commands(address: str, *given: tuple[str, ...], **environment: str) -> list[Said]:
    """Exit code, output and error of every `sparsepo export` of (token, arguments...)."""
    online = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", **environment}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(given)],
        env={**os.environ, **online},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(said) == len(given)
    for _, out, error in said:
        assert TOKEN not in out + error and WRONG not in out + error
    return [(code, out, error) for code, out, error in said]


def arrived(hub: Hub, repository: str) -> dict[str, bytes]:
    found = hub.files(repository)
    found.pop(".gitattributes")
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def folder(learned_run: Recipe, exported: Export) -> Path:
    return exported(learned_run)


def test_what_arrives_is_the_export_and_loads(
    learned_run: Recipe, tmp_path: Path, folder: Path
) -> None:
    """Weights as large files. One command makes and sends; the card names the repository."""
    run, new = learned_run.run_dir, str(tmp_path / "new")
    with serving_hub(tmp_path / "hub") as hub:
        first, again, short = commands(
            hub.url,
            (TOKEN, run, "--to", new, "--push", "me/it"),
            (TOKEN, run, "--to", new, "--push", "me/it"),
            (TOKEN, run, "--to", str(folder), "--push", "it", "--public"),
            HF_HUB_DISABLE_XET="1",
        )
        assert first[0] == 0 and f"export: sent to {hub.url}/me/it\n" in first[1], first
        assert again[0] == 0 and "export: me/it has all of it already\n" in again[1], again
        assert short[0] == 0 and f"export: sent to {hub.url}/tester/it\n" in short[1], short
        assert hub.visibility == {"me/it": "private", "tester/it": "public"}
        assert sum("PUT /lfs-object/" in request for request in hub.heard) == 2, "model, masks"
        assert sum("/commit/" in request for request in hub.heard) == 2
    assert arrived(hub, "me/it") == files(Path(new))
    assert not any(TOKEN.encode() in content for content in files(Path(new)).values())
    assert arrived(hub, "tester/it") == files(folder)
    there = tmp_path / "hub" / "me" / "it"
    card = ModelCard.load(there / "README.md")
    assert 'from_pretrained("me/it")' in card.text
    assert card.data.to_dict()["model-index"][0]["name"] == "me/it"
    ids = torch.tensor([[1, 5, 9, 3]])
    found, own = (
        AutoModelForCausalLM.from_pretrained(place)(input_ids=ids).logits
        for place in (there, Path(run) / "train" / "model")
    )
    assert torch.equal(found, own)


def test_an_interrupted_sending_goes_on(learned_run: Recipe, tmp_path: Path, folder: Path) -> None:
    """A part of the export is there: the rest comes. Other files are refused, none is lost."""
    given = (TOKEN, learned_run.run_dir, "--to", str(folder), "--push")
    before = files(folder)
    with serving_hub(tmp_path / "hub", large=(".none",)) as hub:
        hub.put("me/half", ".gitattributes", b"")
        hub.put("me/half", "model.safetensors", (folder / "model.safetensors").read_bytes())
        hub.put("me/other", "README.md", b"somebody's")
        half, other = commands(hub.url, (*given, "me/half"), (*given, "me/other"))
        assert half[0] == 0 and arrived(hub, "me/half") == before
        line = "--push me/other: the repository holds other files already (README.md): name another"
        assert other == (2, "", f"error: {line}\n")
        assert hub.files("me/other") == {"README.md": b"somebody's"}
    assert files(folder) == before


def test_what_the_hub_refuses_is_one_line(
    learned_run: Recipe, tmp_path: Path, folder: Path
) -> None:
    """Wrong token and lacking rights: 2. A hub that fails or is away: 1. The export stays."""
    run, before = learned_run.run_dir, files(folder)
    new = tmp_path / "new"
    faults = {
        "POST /api/repos/create": 403, "POST /api/models/me/full/commit/main": 507,
        "GET /api/models/me/away/tree/main": 0,
    }  # fmt: skip
    made = {"me/full", "me/away"}

    def fault(request: str) -> int | None:
        return faults.get(request)

    there = ("--to", str(folder), "--push")
    with serving_hub(tmp_path / "hub") as hub:
        for name in made:
            hub.put(name, ".gitattributes", b"")
        hub.fault = fault
        wrong, late, forbidden, full, away = commands(
            hub.url,
            (WRONG, run, "--to", str(new), "--push", "me/it"),
            (WRONG, run, *there, "me/it"),
            (TOKEN, run, *there, "me/it"),
            (TOKEN, run, *there, "me/full"),
            (TOKEN, run, *there, "me/away"),
            HF_HUB_DISABLE_XET="1",
        )
        assert not any("commit" in request and "me/it" in request for request in hub.heard)
    unknown = f"error: --push: {hub.url} refuses it: HF_TOKEN is no token that it knows; "
    assert wrong == (2, "", f"{unknown}nothing was written\n") and not new.exists()
    assert late == (2, "", f"{unknown}the export is kept\n")
    kept = f"{folder} is kept: the same command sends it again\n"
    assert forbidden[0] == 2
    assert forbidden[2].endswith(f"the token of HF_TOKEN may not write there; {kept}")
    assert full[0] == 1 and f"{hub.url} does not take it now: 507: " in full[2]
    assert full[2].endswith(kept)
    assert away[0] == 1 and f"{hub.url} cannot be reached: " in away[2]
    (nobody,) = commands(hub.url, (TOKEN, run, *there, "me/it"))  # it has gone
    assert nobody[0] == 1 and f"{hub.url} cannot be reached: " in nobody[2]
    assert all(said[2].count("\n") == 1 for said in (wrong, late, forbidden, full, away, nobody))
    assert files(folder) == before
