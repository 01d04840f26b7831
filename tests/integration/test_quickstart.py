"""The quickstart's world, and the whole of it in one go without a network."""

import hashlib
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT
from local_executor import LocalExecutor
from processes import said_by

from evaluation.metrics import vader_scores
from pipelines.cluster.actor_pool import executed_by
from pipelines.commands import quickstart_world as world
from pipelines.commands.cli import main


def test_the_world_is_rich_enough_and_its_labels_are_right() -> None:
    """At least 300 content words; VADER gives exactly the labelled words a valence of the
    labelled sign.
    """
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    lexicon = SentimentIntensityAnalyzer().lexicon
    assert len(world.content_words()) >= 300
    assert all(lexicon[w] > 0 for w in (*world.POSITIVE, *world.PRAISE))
    assert all(lexicon[w] < 0 for w in (*world.NEGATIVE, *world.BLAME))
    neutral = {w.lower() for w in world.content_words() - world.SENTIMENT_WORDS}
    for template in (*world.TRAIN_OPENINGS, *world.TEST_OPENINGS, *world.FEELINGS, *world.ASIDES):
        neutral |= set(re.findall(r"[a-z]+", re.sub(r"\{\w+\}", "", template.lower())))
    assert not {w for w in neutral if w in lexicon}
    assert not set(world.TRAIN_OPENINGS) & set(world.TEST_OPENINGS)
    rng = random.Random(0)
    scores = vader_scores([world.continuation(rng) for _ in range(300)])
    assert sum(s > 0.2 for s in scores) > 60
    assert sum(s < -0.2 for s in scores) > 60


def test_the_default_dials_write_the_world_of_earlier_versions(tmp_path: Path) -> None:
    """To the byte: the hashes are those of the files written before there were dials."""
    world.write_world(tmp_path, 1, 200, 20, 10)
    found = {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()[:16]
        for name in ("reviews.jsonl", "prompts.jsonl")
    }
    assert found == {"reviews.jsonl": "743bb6e774795eed", "prompts.jsonl": "0d8e57ec30b25587"}
    assert (
        json.loads((tmp_path / "model/config.json").read_text())["max_position_embeddings"] == 128
    )


def without_network(command: list[str]) -> list[str]:
    """The command in a network namespace of its own with only loopback up, where the machine
    lets us make one.
    """
    if os.geteuid() == 0 and shutil.which("unshare") and shutil.which("ip"):
        probe = subprocess.run(
            ["unshare", "-n", "sh", "-c", "ip link set lo up"], capture_output=True
        )
        if probe.returncode == 0:
            return ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]
    print("no network namespace here: the quickstart runs with hub access switched off only")
    return command


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(directory in which the quickstart has run, what it printed)."""
    folder = tmp_path_factory.mktemp("checkout")
    command = without_network([sys.executable, "-m", "pipelines", "quickstart", "--quiet"])
    return folder, said_by(command, folder, dict(os.environ))


@pytest.mark.slow
def test_quickstart_ends_in_a_report_and_helps(finished: tuple[Path, str]) -> None:
    root = finished[0] / "quickstart" / "seed-0"
    page = root / "report" / "index.html"
    assert f"report: {page}" in finished[1]
    assert page.stat().st_size > 50_000 and "This is a toy world" in page.read_text()
    for name in ("mapo", "sparsepo"):
        sentiment = json.loads((root / name / "evaluation" / "sentiment.json").read_text())
        assert sentiment["num_prompts"] >= 200
        assert sentiment["reward/gain"]["low"] > 0
        before, after = (sentiment[f"distinct_2/{when}"]["mean"] for when in ("before", "after"))
        assert after > 0.8 * before
        assert sentiment["kl/policy_reference"]["mean"] > 0
        masks = json.loads((root / name / "evaluation" / "masks.json").read_text())
        assert masks["auc/chance"] == 0.5
        assert {"auc/reward_mask", "auc/random_mask", "auc/token_kl"} <= set(masks)
        assert abs(masks["auc/random_mask"]["mean"] - 0.5) < 0.05


def shell_blocks(document: str) -> list[str]:
    text = (ROOT / "docs" / document).read_text()
    return re.findall(r"^```sh\n(.*?)^```", text, re.S | re.M)


def recipe_of(document: str) -> tuple[str, str]:
    """(file name, text) of the recipe that a document has the reader write."""
    text = (ROOT / "docs" / document).read_text()
    (body,) = re.findall(r"^```yaml\n# (\S+\.yaml)\n(.*?)^```", text, re.S | re.M)
    return body


def steps_of(script: str) -> list[tuple[bool, str]]:
    """(is a sparsepo command, text) of a shell script, in order; other lines stay together."""
    found: list[tuple[bool, str]] = []
    for line in script.splitlines(keepends=True):
        is_ours = line.startswith("sparsepo ")
        if found and not is_ours and not found[-1][0]:
            found[-1] = False, found[-1][1] + line
        else:
            found.append((is_ours, line))
    return found


@pytest.mark.slow
def test_the_walk_through_of_the_documents_runs_as_it_stands(
    finished: tuple[Path, str],
    ray_cluster: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Start page, a first run, training: every command in order, in the directory in which `make
    quickstart` ran; in this process, training on the session's Ray.

    Commands as processes, and actors, are the quickstart's and test_security.py's.
    """
    folder, _ = finished
    name, text = recipe_of("recipes.md")
    (folder / name).write_text(text)
    pages = ("index.md", "recipes.md", "training.md")
    steps = steps_of("".join(block for page in pages for block in shell_blocks(page)))
    assert sum(is_ours for is_ours, _ in steps) >= 10
    monkeypatch.chdir(folder)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    said = ""
    with executed_by(LocalExecutor()):
        for is_ours, line in steps:
            if is_ours:
                with pytest.raises(SystemExit) as ended:
                    main(shlex.split(line)[1:])
                out, error = capfd.readouterr()
                assert not ended.value.code, f"{line}{out}{error}"
                said += out + error
            else:
                said_by(["bash", "-ec", line], folder, {**os.environ, "PATH": path})
    assert said.count("prepare: already done, skipped") >= 1, "the second run of the same recipe"
    for report in ("comparison", "runs/comparison"):
        assert list((folder / report).rglob("index.html"))
    assert (folder / "runs" / "base" / "sft" / "train" / "model" / "model.safetensors").is_file()


LIGHT = """
import contextlib, io, json, resource, sys
from pipelines.commands.cli import main

HEAVY = {"torch", "transformers", "ray", "pandas", "peft", "datasets", "scipy", "sklearn"}

def spent():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

found = {}
for command in json.loads(sys.argv[1]):
    text, code = io.StringIO(), 0
    before = spent()
    with contextlib.redirect_stdout(text):
        try:
            main(command)
        except SystemExit as end:
            code = end.code
    found[" ".join(command)] = [code, text.getvalue(), sorted(HEAVY & set(sys.modules))]
    print(f"{command[0]}: {spent() - before:.2f} s CPU", file=sys.stderr)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_commands_that_compute_nothing_import_nothing_heavy(finished: tuple[Path, str]) -> None:
    """In one process: help, the status and the report of a run, and `run` where all is done."""
    mapo = finished[0] / "quickstart" / "seed-0" / "mapo"
    again = ["run", str(mapo / "config.yaml")]
    commands = [["--help"], ["run", "--help"], ["status", str(mapo)], ["report", str(mapo)], again]
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, json.dumps(commands)],
        capture_output=True,
        text=True,
        cwd=finished[0],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    for command, (code, _, heavy) in found.items():
        assert (code, heavy) == (0, []), command
    said = found[" ".join(again)][1]
    for stage in ("prepare", "reference", "train", "evaluate"):
        assert f"{stage}: already done, skipped" in said
    assert f"{mapo}/report/index.html" in said
    assert found[f"status {mapo}"][1].count(" done ") == 4, "the page of all three lies above"
