"""What a user types and sees: exit codes, one-line errors, every command's help."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from pipelines.commands.cli import main
from pipelines.commands.ending import way_on
from pipelines.errors import DamagedCheckpoint, Diverged, GateFailed, StageFailed, UserError

COMMANDS = (
    "run",
    "prepare",
    "reference",
    "train",
    "evaluate",
    "report",
    "sft",
    "sample",
    "tune",
    "plan",
    "status",
    "quickstart",
    "export",
)


def sparsepo(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nowhere.yaml"), "recipe 'nowhere.yaml': no such file"),
        (
            ("run", "hh-dpo", "objective.bet=1"),
            "unknown config key 'objective.bet': did you mean 'objective.beta'?",
        ),
        (("train", "hh-dpo", "train.learning_rate=-3"), "train.learning_rate = -3"),
        (("run", "hh-dpo", "model.name_or_path=/nowhere"), "model '/nowhere': no such directory"),
        (
            ("plan", "hh-dpo", "model.name_or_path=not/downloaded"),
            "model 'not/downloaded': no such directory",
        ),
        (("report", "/nowhere"), "holds no finished training run"),
        (("status", "/nowhere"), "no run here"),
        (("tune", "/nowhere.yaml"), "no such file"),
        (("quickstart", "sed=1"), "quickstart option 'sed=1': allowed are seed=N and dir=PATH"),
        (("quickstart", "seed=x"), "seed = 'x'"),
        (("runn",), "No such command 'runn'. Did you mean 'run'?"),
        (("run",), "Missing argument 'RECIPE' (`sparsepo run -h` shows what it takes)"),
        (
            ("run", "hh-dpo", "--lr", "1e-5"),
            "no such option: --lr; train.learning_rate is meant, write train.learning_rate=VALUE",
        ),
        (("plan", "hh-dpo", "--train.max-steps=3"), "train.max_steps is meant, write train.max_st"),
        (("status", ".", "--lr", "1"), "No such option: --lr"),
    ],
)
def test_user_errors_are_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    code, _, err = sparsepo(capsys, *arguments)
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
    assert err.strip().count("\n") == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError, 2),
        (DamagedCheckpoint, 2),
        (GateFailed, 3),
        (StageFailed, 1),
        (Diverged, 1),
    ],
)
def test_every_kind_of_error_has_its_exit_code(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
    code: int,
) -> None:
    def ends(*_: object) -> None:
        raise error("what happened")

    monkeypatch.setattr("pipelines.commands.report.run_report", ends)
    assert sparsepo(capsys, "report", "somewhere") == (code, "", "error: what happened\n")


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        code, out, _ = sparsepo(capsys, command, "--help")
        assert code == 0
        assert command in out
        assert sparsepo(capsys, command, "-h") == (0, out, "")
    assert sparsepo(capsys, "-h") == sparsepo(capsys, "--help")
    assert sparsepo(capsys, "job", "logs", "-h") == sparsepo(capsys, "job", "logs", "--help")


def test_a_command_that_is_asked_alone_keeps_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    """As `submit` asks the command that it submits."""
    from pipelines.commands.cli import _commands

    _commands.cache_clear()
    for name in ("plan", "status"):
        alone = _commands().commands[name].make_context(name, [], resilient_parsing=True)
        assert alone.help_option_names == ["-h", "--help"]
        assert sparsepo(capsys, name, "-h") == sparsepo(capsys, name, "--help")


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = sparsepo(capsys, "--version")
    first, second = out.splitlines()
    assert (code, err, first) == (0, "", f"sparsepo {metadata.version('sparsepo')}")
    assert f"torch {metadata.version('torch')}" in second.split(", ")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("r", {"run", "reference", "report"}),
        ("run hh-k", {"hh-kto"}),
        ("run hh-dpo-", {"hh-dpo-losses", "hh-dpo-shift"}),
        ("run mi", {"mine.yaml"}),
        ("run ./mi", set()),  # the shell's own names of files
        ("tune imdb-m", {"imdb-mapo-keep-fraction"}),
        ("plan imdb-f", {"imdb-frontier", "imdb-frontier-sparsity"}),
        ("run hh-dpo train.warm", {"train.warmup_fraction"}),
        ("run hh-dpo train.precision = b", {"bfloat16"}),
        ("run hh-dpo train.precision =", {"auto", "float32", "mixed", "bfloat16"}),
        ("tune imdb-frontier searcher.", {"searcher.name", "searcher.startup_trials"}),
        ("job l", {"list", "logs"}),
    ],
)
def test_what_bash_is_offered(
    words: str,
    found: set[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.yaml").touch()
    monkeypatch.chdir(tmp_path)
    asked = {
        "_SPARSEPO_COMPLETE": "complete_bash",
        "COMP_WORDS": f"sparsepo {words}",
        "COMP_CWORD": str(len(words.split())),
    }
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    offered = set(sparsepo(capsys)[1].split())
    assert found == offered or (found <= offered and words.startswith("tune imdb-frontier"))


def test_zsh_takes_a_key_and_its_value_for_one_word(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_SPARSEPO_COMPLETE", "complete_zsh")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "sparsepo run hh-dpo train.precision=b")
    assert '"train.precision=bfloat16"' in sparsepo(capsys)[1]


def test_module_and_script_are_the_same_program() -> None:
    script = Path(sys.executable).with_name("sparsepo")
    outputs = {
        subprocess.run(c, capture_output=True, text=True).stdout
        for c in ([str(script), "--help"], [sys.executable, "-m", "pipelines", "--help"])
    }
    assert len(outputs) == 1
    assert "quickstart" in outputs.pop()


def test_plan_is_exact_after_prepare_and_close_before(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, pairs_file: Path, model_dir: Path
) -> None:
    import json

    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"run_dir: {tmp_path}/run\nmodel: {{name_or_path: {model_dir}}}\n"
        f"data: {{sources: [{{path: {pairs_file}}}], test_fraction: 0.2, max_prompt_tokens: 24, "
        f"max_response_tokens: 24}}\n"
        "objective: {name: tdpo1}\n"
    )
    code, out, _ = sparsepo(capsys, "plan", str(recipe), "--json")
    assert code == 0
    plan = json.loads(out)
    assert not (tmp_path / "run").exists(), "plan writes nothing"
    assert sum(plan["data"]["pairs"].values()) == 120
    assert plan["reference"]["bytes_per_scored_token"] == 4 + 4 * 128
    capped = json.loads(
        sparsepo(
            capsys,
            *("plan", str(recipe), "data.max_train_pairs=10", "data.max_test_pairs=5", "--json"),
        )[1]
    )
    assert capped["data"]["pairs"] == {"train": 10, "validation": 0, "test": 5}
    from safetensors.torch import load_file

    assert plan["train"]["parameters"] == sum(
        t.numel() for t in load_file(model_dir / "model.safetensors").values()
    )


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["run", "my recipe.yaml", "a=1"], "; go on with: sparsepo run 'my recipe.yaml' a=1"),
        (["tune", "s.yaml"], "; go on with: sparsepo tune s.yaml --resume"),
        (["tune", "s.yaml", "--resume"], "; go on with: sparsepo tune s.yaml --resume"),
        (["plan", "r.yaml"], ""),
        (["--help"], ""),
    ],
)
def test_who_is_stopped_is_told_what_to_type(given: list[str], line: str) -> None:
    assert way_on(given) == line
