"""prepare --show: what it prints is what was stored."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from runs import MakeRecipe, run_here

from pipelines.commands.cli import main
from pipelines.commands.stages import PREPARE
from pipelines.models.loading import load_tokenizer
from pipelines.pairs.show import shown
from pipelines.pairs.table import open_pairs
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
LONG = " The plot was good" * 9


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def prepared(
    recipe_in: MakeRecipe,
    model_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
    ray_cluster: None,
) -> Recipe:
    """Texts with scores, conversations of two answers, rows with a label; a third are no pairs."""
    folder = tmp_path_factory.mktemp("show")
    model = folder / "model"
    shutil.copytree(model_dir, model)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    texts: list[Any] = [
        {"prompt": "Is it\x1b[2J?", "chosen": " gut ✓", "rejected": LONG, "chosen_score": 2.5,
         "rejected_score": 1},
        {"prompt": "and", "chosen": " x", "rejected": " y", "chosen_score": 2, "rejected_score": 1},
        {"prompt": "p", "chosen": "", "rejected": " y", "chosen_score": 2, "rejected_score": 1},
        7,
        *({"prompt": f"p{n}", "chosen": " a", "rejected": " a"} for n in range(4)),
    ]  # fmt: skip
    start = [turn("user", "why ?")]
    end = [turn("user", "really ?"), turn("assistant", "so")]
    chats = [
        {
            "chosen": [*start, turn("assistant", "good"), *end],
            "rejected": [*start, turn("assistant", "bad"), *end],
        }
    ]
    labels = [{"prompt": f"q{n % 5}", "response": f" r{n}", "label": n < 5} for n in range(11)]
    recipe = recipe_in(
        folder / "run",
        f"data.sources=[{{path: {write(folder / 'texts.jsonl', texts)}}}, "
        f"{{path: {write(folder / 'chats.jsonl', chats)}}}, "
        f"{{path: {write(folder / 'labels.jsonl', labels)}}}]",
        "data.test_fraction=0",
        "data.scored_turns=all",
        "data.max_response_tokens=32",
        "data.rows_per_task=2",
        "data.shard_pairs=3",
        model={"name_or_path": str(model)},
        evaluate={"benchmarks": []},
    )
    run_here(recipe, (PREPARE,))
    return recipe


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    with pytest.raises(SystemExit) as ended:
        main(["prepare", *arguments])
    assert ended.value.code == 0
    return capsys.readouterr().out.splitlines()


def test_pairs_of_every_source_and_what_was_dropped(
    prepared: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a finished stage, in a pipe: no Ray, no colours."""
    lines = printed(capsys, f"{prepared.run_dir}/config.yaml", "--show", "4", "--quiet")
    texts, chats, labels = (source.path for source in prepared.data.sources)
    assert lines[:6] == [
        f"data source {texts!r}: text (prompt, chosen, rejected: text; chosen_score, "
        "rejected_score: scores)",
        f"data source {chats!r}: conversational (chosen, rejected: messages)",
        f"data source {labels!r}: unpaired (prompt, response: text; label: true or false)",
        "chat: no BOS, a response ends with </s>",
        "text: BOS from the tokenizer, a response ends with </s>",
        "scored tokens stand in ⟦ ⟧",
    ]
    text = "\n".join(lines)
    tokenizer = load_tokenizer(str(prepared.model.name_or_path))
    cut = tokenizer.decode(tokenizer(LONG).input_ids[1:33])
    assert (
        f"""
1. train, texts.jsonl:1 (data.sources[0])
   prompt ({len(tokenizer("Is it" + chr(27) + "[2J?").input_ids)} tokens)
      <s>Is it\\x1b[2J?
   chosen ({len(tokenizer(" gut ✓").input_ids)} tokens, score 2.5)
      ⟦ gut ✓</s>⟧
   rejected (32 tokens, score 1, cut: no end token)
      ⟦{cut}⟧
"""
        in text
    )
    asked = re.search(r"\n2\. train, chats.jsonl:1 \(data.sources\[1\]\)\n(.*?)\n\n", text, re.S)
    assert asked is not None
    assert re.sub(r"\(\d+ tokens, \d+ scored\)", "(scored)", asked[1].split("\n", 1)[1]) == (
        "      user: why ?</s>\n"
        "      assistant:\n"
        "   chosen (scored)\n"
        "      ⟦ good</s>⟧\n"
        "      user: really ?</s>\n"
        "      assistant:⟦ so</s>⟧\n"
        "   rejected (scored)\n"
        "      ⟦ bad</s>⟧\n"
        "      user: really ?</s>\n"
        "      assistant:⟦ so</s>⟧"
    )
    assert "3. train, labels.jsonl:" in text and "4. train, texts.jsonl:2 (data.sour" in text
    assert "\n5. " not in text
    assert lines[lines.index("dropped: 7") :] == [
        "dropped: 7",
        "   4  chosen and rejected are identical: texts.jsonl:5, texts.jsonl:6, texts.jsonl:7, ...",
        "   1  empty response: texts.jsonl:3",
        "   1  the line is not a JSON object: texts.jsonl:4",
        "   1  no response with the other label is left for this prompt: labels.jsonl:11",
    ]


def test_a_terminal_has_colours_in_place_of_brackets(prepared: Recipe) -> None:
    (line,) = [line for line in shown(Run(prepared), 1, is_terminal=True) if "gut" in line]
    assert line == "      \x1b[32m gut ✓\x1b[7m</s>\x1b[27m\x1b[0m"
    plain, coloured = (
        "\n".join(shown(Run(prepared), 9, is_terminal)) for is_terminal in (False, True)
    )
    assert re.sub(r"\x1b\[\d+m", "", coloured).replace("in green", "") == re.sub(
        "[⟦⟧]", "", plain.replace("in ⟦ ⟧", "")
    )


def test_a_source_that_has_gone_is_named_with_its_row(prepared: Recipe, tmp_path: Path) -> None:
    gone = prepared.model_copy(
        update={
            "data": prepared.data.model_copy(
                update={
                    "sources": tuple(
                        source.model_copy(update={"path": f"/gone/{number}.jsonl"})
                        for number, source in enumerate(prepared.data.sources)
                    )
                }
            )
        }
    )
    assert "1. train, /gone/0.jsonl, row 0 (data.sources[0])" in list(shown(Run(gone), 1))


def test_any_number_of_tasks_makes_the_same_pairs(
    prepared: Recipe, recipe_in: MakeRecipe, tmp_path: Path
) -> None:
    """Also those of labelled rows, which lie between each other's."""
    again = prepared.model_copy(
        update={
            "run_dir": str(tmp_path / "run"),
            "data": prepared.data.model_copy(update={"rows_per_task": 100}),
        }
    )
    run_here(again, (PREPARE,))
    columns = ["pair_id", "source", "row", "chosen_ids"]
    stored = [
        (pairs.values("train", range(pairs.num_rows("train")), columns), Path(run_dir, "pairs"))
        for run_dir in (prepared.run_dir, again.run_dir)
        for pairs in [open_pairs(Run(prepared if run_dir == prepared.run_dir else again))]
    ]
    (first, one), (second, other) = stored
    assert first == second and len(first) == 8
    places = [(source, row) for _, source, row, _ in first]
    assert places == sorted(places)
    assert (one / "rejected_rows.jsonl").read_text() == (other / "rejected_rows.jsonl").read_text()
