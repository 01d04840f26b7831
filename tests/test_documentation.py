"""What the documents show works: python blocks run, commands and recipes exist, linked files are
there.
"""

import ast
import html
import itertools
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import typer
import yaml
from checkout import ROOT

from pipelines.commands.cli import app
from pipelines.merge import load_merge
from pipelines.merge.schema import MapSection, Merge
from pipelines.recipe import Recipe, unknown_key_message
from pipelines.recipe.files import packaged, validate_recipe
from pipelines.sweep import load_sweep

PROGRAMS = ("sparsepo", "make", "ray", "python", "pytest", "kubectl", "docker")
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def test_the_library_example_has_five_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Log ratios 0.5 - 0.1 chosen, 0.3 rejected: DPO's logit is 0.1 * 0.1, the loss log(1 +
    exp(-0.01)) = 0.6882. Five statements.
    """
    (example,) = [
        b for b in blocks((ROOT / "docs/library.md").read_text(), "python") if "DPO(beta=0.1)" in b
    ]
    assert len(ast.parse(example).body) <= 6  # five and the import
    exec(compile(example, "docs/library.md", "exec"), {})
    assert "0.6882" in capsys.readouterr().out


QUESTIONS = (
    "what-does-it-do-for-me",
    "is-my-data-in-the-right-form",
    "can-it-tune-my-model",
    "how-long-does-it-take-and-how-much-memory",
    "which-beta-and-how-sparse",
    "how-do-i-go-on-after-a-stop",
    "how-do-i-compare-two-runs",
    "how-do-i-run-on-a-cluster",
    "can-i-use-it-with-trl",
    "what-went-wrong",
)


def test_ten_questions_have_answers_at_their_anchors() -> None:
    """In the words of a newcomer; README and the first page lead there."""
    page = (ROOT / "docs" / "questions.md").read_text()
    parts = re.split(r"^## (.+)$", page, flags=re.M)[1:]
    answers = {anchor(title): body for title, body in zip(parts[::2], parts[1::2], strict=True)}
    assert tuple(answers) == QUESTIONS
    for name, answer in answers.items():
        assert 20 <= len(answer.split()) <= 150, name
        assert "](" in answer, f"{name} leads on"
    for start in (ROOT / "README.md", ROOT / "docs" / "index.md"):
        assert "questions.md" in start.read_text()


def test_links_lead_to_anchors_that_are_there() -> None:
    """Every link of a document into another, with the heading that it names."""
    for document in DOCUMENTS:
        for path, name in re.findall(r"\]\(([\w./-]*\.md)?#([\w-]+)\)", document.read_text()):
            target = (document.parent / path) if path else document
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.M)
            assert name in map(anchor, headings), f"{document.name}: {path}#{name}"


def anchor(title: str) -> str:
    """The anchor of a heading, as the site makes it."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip())


def test_the_readme_fits_a_screen_and_a_half() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 600
    first = text.split("\n\n")[1]
    assert not re.search(r"\b[A-Z]{2,}\b", first), "no acronym in the first sentences"
    assert first.count(".") == 2


@pytest.mark.parametrize(
    "example",
    [
        b
        for file in sorted((ROOT / "docs").glob("*.md"))
        for b in blocks(file.read_text(), "python")
    ],
)
def test_examples_print_what_their_comments_say(
    example: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile(example, "docs", "exec"), {})
    said = re.findall(r"^print\(.*\)  # (.*)$", example, re.M)
    assert said and capsys.readouterr().out.splitlines() == said


def test_readme_recipe_is_valid() -> None:
    (recipe,) = blocks((ROOT / "README.md").read_text(), "yaml")
    assert validate_recipe(yaml.safe_load(recipe)).objective.name == "sparsepo"


NEEDED = {
    "run_dir": "runs/mine",
    "model": {"name_or_path": "model"},
    "data": {"sources": [{"path": "pairs.jsonl"}]},
}
NEEDED_OF_A_SWEEP = {
    "run_dir": "runs/sweep",
    "recipe": "hh-surprise",
    "overrides": ["evaluate.benchmarks=[preference,sentiment]"],
    "space": {"objective.beta": {"grid": [0.1, 1.0]}},
    "objectives": [{"metric": "evaluation/sentiment/reward/after", "mode": "max"}],
}


@pytest.mark.parametrize(
    "block",
    [block for document in DOCUMENTS for block in blocks(document.read_text(), "yaml")],
)
def test_recipes_and_sweeps_are_valid_also_in_part(block: str, tmp_path: Path) -> None:
    """What a block leaves out is added: every key, value and combination is one that is taken."""
    part = yaml.safe_load(block)
    if "models" in part:
        file = tmp_path / "merge.yaml"
        file.write_text(block)
        load_merge(str(file))
    elif part.keys() - Recipe.model_fields.keys():
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump({**NEEDED_OF_A_SWEEP, **part}))
        load_sweep(str(file))
    else:
        assert validate_recipe({**NEEDED, **part}).run_dir


def test_the_page_of_merges_has_every_key_and_the_packaged_merge_loads() -> None:
    page = (ROOT / "docs" / "merge.md").read_text().partition("## Every key of a merge")[2]
    named = set(re.findall(r"`([a-z_.]+)`", page))
    below = {f"map.{key}" for key in MapSection.model_fields}
    assert Merge.model_fields.keys() | below <= named
    for name in packaged("merge"):
        assert len(load_merge(name).models) == 2


def test_the_objective_of_the_page_is_the_one_that_a_test_trains_with() -> None:
    (shown,) = blocks((ROOT / "docs" / "extending.md").read_text(), "py")
    assert shown == (ROOT / "tests" / "integration" / "new_objective" / "hinge.py").read_text()


def command_lines(text: str) -> list[list[str]]:
    """Every shell command of a document's fenced blocks, as words: environment settings left
    out, `--` and srun taken apart.
    """
    found = []
    for language, block in fenced(text):
        if language not in ("", "sh", "console", "bash"):
            continue
        inline = r"<<'END'\n.*?\nEND\n|python -c \"\n.*?\n\".*?\n"
        script = re.sub(inline, "\n", block, flags=re.S).replace("\\\n", " ")
        for line in script.splitlines():
            if not re.match(
                rf"\s*(?:[A-Z_]+=\S+ |srun )*(?:\.venv/bin/)?(?:{'|'.join(PROGRAMS)})\b", line
            ):
                continue
            words = shlex.split(line, comments=True)
            while words[0] == "srun" or re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if "--" in words:
                found += [words[: words.index("--")], words[words.index("--") + 1 :]]
            else:
                found.append(words)
    return found


def fenced(text: str) -> list[tuple[str, str]]:
    """(language, body) of every fenced block."""
    found: list[tuple[str, str]] = []
    language: str | None = None
    for line in text.splitlines(keepends=True):
        if line.startswith("```"):
            language = line.strip("`\n") if language is None else None
            if language is not None:
                found.append((language, ""))
        elif language is not None:
            found[-1] = (language, found[-1][1] + line)
    return found


def check_command(words: list[str]) -> None:
    """The program's own parser takes it, or the files and targets it names are there."""
    program, *arguments = words
    program = program.removeprefix(".venv/bin/")
    commands: Any = typer.main.get_command(app)
    if program == "sparsepo" and arguments[0].startswith("-"):
        options = {name for option in commands.params for name in option.opts}
        assert set(arguments) <= options | {"--help", "-h"}, words
    elif program == "sparsepo":
        context = commands.commands[arguments[0]].make_context(
            arguments[0], list(arguments[1:]), resilient_parsing=False
        )
        if arguments[0] == "submit":
            check_command(["sparsepo", *context.params["command"]])
        if arguments[0] == "job":
            group = commands.commands["job"]
            group.commands[arguments[1]].make_context(arguments[1], list(arguments[2:]))
    elif program == "ray":
        from ray.scripts.scripts import cli

        command = cli.commands[arguments[0]]
        known = {name for option in command.params for name in option.opts}
        assert {word.split("=")[0] for word in arguments if word.startswith("--")} <= known, words
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text()
        assert all(re.search(rf"^{target}:", makefile, re.M) for target in arguments), words
    elif program in ("python", "pytest") and arguments[0] != "-":
        assert (ROOT / arguments[0]).exists(), words
        if program == "python":
            script = (ROOT / arguments[0]).read_text()
            assert all(
                f'"{word.split("=")[0]}"' in script for word in arguments if word.startswith("--")
            ), words
    elif program in ("kubectl", "docker"):
        files = [word for flag, word in itertools.pairwise(arguments) if flag in ("-f", "-k")]
        assert all((ROOT / file).exists() for file in files), words


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_commands_are_ones_that_the_programs_take(document: Path) -> None:
    """The walk-through of docs/index.md, docs/recipes.md and docs/training.md is run as it stands
    in test_quickstart.py.
    """
    for words in command_lines(document.read_text()):
        check_command(words)


def test_a_wrong_command_would_be_found() -> None:
    for line in (
        "sparsepo run x.yaml --nonsense",
        "ray start --hed",
        "make nonsense",
        "sparsepo submit run x --nonsense",
        "kubectl apply -f nowhere.yaml",
    ):
        with pytest.raises((AssertionError, Exception)):
            check_command(shlex.split(line))


def messages() -> list[re.Pattern[str]]:
    """Every text of the code with enough of its own in it, what is filled in left open."""
    found = []
    for file in sorted([*(ROOT / "pipelines").rglob("*.py"), *(ROOT / "sparsepo").rglob("*.py")]):
        for node in ast.walk(ast.parse(file.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            fixed: list[str | None] = []
            for part in parts:
                # Texts for str.format have their gaps inside.
                is_text = isinstance(part, ast.Constant) and isinstance(part.value, str)
                fixed += (
                    [
                        None if piece.startswith("{") else piece
                        for piece in re.split(r"(\{\w+\})", part.value)
                    ]
                    if is_text
                    else [None]
                )
            if sum(len(part) for part in fixed if part) >= 15:
                found.append(
                    re.compile(
                        "".join(
                            ".+?" if part is None else re.escape(part.replace("`", ""))
                            for part in fixed
                        )
                    )
                )
    return found


@pytest.mark.slow
def test_every_error_of_the_troubleshooting_page_is_one_that_is_said() -> None:
    """Each quoted line has a whole message of the code in it."""
    known = messages()
    quoted = re.findall(
        r"^\*\*\d+\. (.*?)\*\* ", (ROOT / "docs" / "troubleshooting.md").read_text(), re.M
    )
    assert len(quoted) >= 20
    unsaid = [
        line
        for heading in quoted
        for line in re.findall(r"`([^`]{12,})`", heading)
        if not any(m.search(line) for m in known)
    ]
    assert unsaid == []
    assert not any(m.search("the cluster has no more coffee for this run") for m in known)


# What looks like a key: names of libraries and files.
NO_KEYS = {"evaluate.Metric", "evaluate.combine", "evaluate.load", "ray.data.llm", "train.jsonl"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_keys_that_the_text_names_are_keys(document: Path) -> None:
    """In inline code: `train.epochs`, `mask.kind: random`, `train.lora={rank: 16}`."""
    sections = "data|model|objective|mask|reference|train|evaluate|sample|schedule|paths|ray"
    key = rf"`((?:{sections})(?:\.\w+(?:\[\d*\])?)+)(?:[=:][^`]*)?`"
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.S | re.M)
    named = {re.sub(r"\[\d*\]", "", name) for name in re.findall(key, text)} - NO_KEYS
    assert [said for name in sorted(named) if (said := unknown_key_message(Recipe, name))] == []


def dead_links(site: Path) -> Iterator[str]:
    """Links from a page of a built site to a page, file or anchor of it that is not there."""
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        for link in re.findall(r'href="([^"]+)"', page.read_text()):
            path, _, name = html.unescape(link).partition("#")
            if "://" in path or path.startswith(("mailto:", "data:")):
                continue
            target = (page.parent / unquote(path)).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            wanted = f'id="{unquote(name)}"' if name else ""
            if not target.exists() or wanted not in target.read_text(errors="replace"):
                yield f"{page.relative_to(site)}: {link}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Strict: a warning fails it. Links lead somewhere. Every public name of the library is in the
    API page.
    """
    import sparsepo

    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "-f",
        str(ROOT / ".ci" / "mkdocs.yml"),
        "--site-dir",
        str(tmp_path),
    ]
    built = subprocess.run(
        command, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stdout + built.stderr
    assert list(dead_links(tmp_path)) == []
    page = (tmp_path / "api" / "index.html").read_text()
    constants = {"FEATURES", "LOSSES", "OBJECTIVES"}
    assert [
        name
        for name in sparsepo.__all__
        if f'id="sparsepo.{name}"' not in page and name not in constants
    ] == []


def test_the_versions_agree() -> None:
    import sparsepo

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert sparsepo.__version__ == project["version"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()
    for file in (ROOT / "pipelines" / "deploy").rglob("*.yaml"):
        for tag in re.findall(r"sparsepo:(\S+)|newTag: (\S+)", file.read_text()):
            assert project["version"] in tag, file


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_commands_and_links_exist(document: Path) -> None:
    text = document.read_text()
    commands = {
        command.name or command.callback.__name__
        for command in app.registered_commands
        if command.callback
    }
    named = set(
        re.findall(
            r"\bsparsepo ([a-z]+)\b(?= [A-Za-z./-]+\.yaml| RECIPE| SWEEP| runs/| seed=|`)", text
        )
    )
    assert named <= commands
    for recipe in re.findall(r"sparsepo run ((?:imdb|hh)-[a-z0-9-]+)", text):
        assert recipe in packaged("recipe")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (document.parent / link).exists(), link
