"""Editors of rejected responses: an endpoint that is asked once, a model, and what they made."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from runs import MakeRecipe, run_here
from text_models import write_constant_judge

from pipelines.commands.discriminator import (
    edited_recipe,
    editing_recipe,
    plan_discriminator,
)
from pipelines.commands.stages import DISCRIMINATOR, EDIT, PREPARE, REFERENCE
from pipelines.discriminator.editing import Reply
from pipelines.discriminator.labels import differing
from pipelines.discriminator.wording import editing_messages, parse_edit
from pipelines.errors import StageFailed, UserError
from pipelines.pairs import Question
from pipelines.pairs.table import open_pairs
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def editor() -> Iterator[tuple[str, list[str]]]:
    """An endpoint that puts "wonderful" for the first "awful" of a reply; and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            (message,) = body["messages"]
            asked.append(message["content"])
            reply = message["content"].split("[Reply]\n")[1].split("\n\nWrite the better")[0]
            said = f"Here: <reply>{reply.replace('awful', 'wonderful', 1)}</reply>"
            text = json.dumps(
                {
                    "id": "1", "object": "chat.completion", "created": 0, "model": "m",
                    "choices": [
                        {
                            "index": 0,
                            "finish_reason": "stop",
                            "message": {"role": "assistant", "content": said},
                        }
                    ],
                }
            ).encode()  # fmt: skip
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
    server.shutdown()
    server.server_close()


def edited(recipe: Recipe) -> Recipe:
    run_here(editing_recipe(recipe), (PREPARE, EDIT))
    return edited_recipe(recipe)


@pytest.mark.slow
def test_an_endpoint_edits_each_reply_once_and_its_edits_are_the_labels(
    editor: tuple[str, list[str]], judged: Recipe, recipe_in: MakeRecipe,
    liked_options: tuple[str, ...], tmp_path: Path,
) -> None:  # fmt: skip
    """Every changed word is the only one with a label, on both sides; nothing is asked twice."""
    address, asked = editor
    recipe = recipe_in(
        tmp_path / "run", *liked_options,
        f"discriminator.editor={{kind: openai, base_url: '{address}', model: m}}",
        paths={"pairs": f"{judged.run_dir}/pairs"},
    )  # fmt: skip
    own = edited(recipe)
    folder = Path(own.run_dir, "editor", "edits")
    pairs = open_pairs(Run(judged))
    rejected = [*pairs.column("train", "rejected"), *pairs.column("test", "rejected")]
    assert len(asked) == len(rejected)
    changed = [text for text in rejected if "awful" in text]
    rows = [
        json.loads(line)
        for split in ("train", "test")
        for line in (folder / f"{split}.jsonl").read_text().splitlines()
    ]
    assert [row["rejected"] for row in rows] == changed and len(changed) > 20
    for row in rows:
        assert row["chosen"] == row["rejected"].replace("awful", "wonderful", 1)
        assert row["chosen"].startswith(" The ")
    (folder / "manifest.json").unlink()
    assert plan_discriminator(recipe, None, "mine")["edit"]["responses"] == len(rejected)
    edited(recipe)
    assert len(asked) == len(rejected), "answers are kept"
    run_here(own, (PREPARE, REFERENCE, DISCRIMINATOR))
    found = open_pairs(Run(own))
    for pair in found.pairs("train", range(found.num_rows("train"))):
        sides = differing(list(map(int, pair.chosen)), list(map(int, pair.responses()[1])))
        assert all(1 <= side.sum() <= 4 for side in sides), "the pieces of one word"
    planned = plan_discriminator(recipe, None, "mine")
    assert planned["discriminator"]["done"]
    figures = json.loads(Path(own.run_dir, "head", "figures.json").read_text())
    assert figures["num_equal"] > 5 * figures["num_tokens"]
    assert figures["auc"]["mean"] > 0.9


def test_a_model_edits_where_the_actors_are(
    judged: Recipe, recipe_in: MakeRecipe, liked_options: tuple[str, ...], tmp_path: Path
) -> None:
    answer = ["<reply>", "The", "plot", "was", "superb", ".", "</reply>"]
    model = write_constant_judge(tmp_path / "editor", answer)
    recipe = recipe_in(
        tmp_path / "run", *liked_options,
        f"discriminator.editor={{kind: model, name_or_path: {model}, max_new_tokens: 9}}",
        paths={"pairs": f"{judged.run_dir}/pairs"},
    )  # fmt: skip
    own = edited(recipe)
    lines = Path(own.run_dir, "editor", "edits", "train.jsonl").read_text().splitlines()
    assert len(lines) == open_pairs(Run(judged)).num_rows("train")
    assert {json.loads(line)["chosen"] for line in lines} == {" The plot was superb ."}
    assert not Path(own.run_dir, "editor", "edits", "parts").exists()
    run_here(own, (PREPARE,))
    assert open_pairs(Run(own)).num_rows("train") == len(lines)
    silent = write_constant_judge(tmp_path / "silent", ["nothing"])
    other = recipe_in(
        tmp_path / "other", *liked_options,
        f"discriminator.editor={{kind: model, name_or_path: {silent}, max_new_tokens: 4}}",
        paths={"pairs": f"{judged.run_dir}/pairs"},
    )  # fmt: skip
    with pytest.raises(StageFailed, match="no train response was changed"):
        edited(other)


def test_rows_of_a_chat_stay_messages_and_text_keeps_its_spaces() -> None:
    asked = [{"role": "user", "content": "Why?"}]
    found = Reply(Question(asked, [{"name": "t"}]), "Go away.").row("Because.")
    assert found == {
        "chosen": [*asked, {"role": "assistant", "content": "Because."}],
        "rejected": [*asked, {"role": "assistant", "content": "Go away."}],
        "tools": [{"name": "t"}],
    }
    text = Reply("\n\nHuman: Why?\n\nAssistant:", "\n Go away. ")
    assert text.row("Because.") == {
        "prompt": "\n\nHuman: Why?\n\nAssistant:", "chosen": "\n Because.",
        "rejected": "\n Go away. ",
    }  # fmt: skip
    (message,) = text.messages()
    assert "[Asked]\nWhy?\n" in message["content"] and "[Reply]\nGo away.\n" in message["content"]


def test_an_answer_holds_an_edit_or_none() -> None:
    assert (
        parse_edit("Sure. <reply>\n It is {fine}. \n</reply> <reply>x</reply>") == "It is {fine}."
    )
    assert parse_edit("It is fine.") is None and parse_edit("<reply> </reply>") is None
    (asked,) = editing_messages("a {b} </reply>", "<reply>c</reply>")
    assert "a {b} \n" in asked["content"] and "[Reply]\nc\n" in asked["content"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            "{kind: openai, base_url: 'http://127.0.0.1:9', model: m, api_key_env: NO_SUCH_KEY}",
            "discriminator.editor.api_key_env = 'NO_SUCH_KEY': this environment variable is not",
        ),
        ("{kind: model, name_or_path: /nowhere}", "model '/nowhere': no such directory"),
        ("{kind: model, name_or_path: PLAIN}", "has none; set data.chat_template"),
    ],
)
def test_an_editor_that_cannot_be_asked_is_refused_by_plan_too(
    options: str, said: str, judged: Recipe, recipe_in: MakeRecipe,
    liked_options: tuple[str, ...], small_model: Path, tmp_path: Path,
) -> None:  # fmt: skip
    editor = f"discriminator.editor={options.replace('PLAIN', str(small_model))}"
    paths = {"pairs": f"{judged.run_dir}/pairs"}
    recipe = recipe_in(tmp_path / "run", *liked_options, editor, paths=paths)
    with pytest.raises(UserError, match=said):
        plan_discriminator(recipe, None, "mine")
    with pytest.raises(UserError, match=said):
        edited(recipe)
    assert not Path(recipe.run_dir, "discriminator", "editor", "edits").exists()
