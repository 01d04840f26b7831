"""What `run` refuses, `plan` refuses: every bad recipe of the suite, in one line, with nothing
written and no Ray started.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import MakeRecipe, silent

from pipelines.commands.plan import run_plan
from pipelines.commands.run import run_stages
from pipelines.commands.stages import RUN
from pipelines.errors import UserError
from pipelines.models.directories import ADAPTER_CONFIG
from pipelines.recipe.schema import Recipe

Options = list[str]


class World:
    """Inputs to spoil, below one folder.

    Attributes:
        folder: for copies. model: the tiny model. pairs: a file of pairs.
    """

    def __init__(self, folder: Path, model: Path, pairs: Path) -> None:
        self.folder, self.model, self.pairs = folder, model, pairs

    def copy(self, **changes: Any) -> Path:
        """A copy of the model with another configuration."""
        found = self.folder / "copy"
        shutil.copytree(self.model, found)
        config = json.loads((found / "config.json").read_text())
        (found / "config.json").write_text(json.dumps(config | changes))
        return found

    def without(self, name: str) -> Path:
        found = self.copy()
        (found / name).unlink()
        return found

    def with_tokenizer(self, **settings: Any) -> Path:
        found = self.copy()
        file = found / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        (found / "special_tokens_map.json").unlink(missing_ok=True)
        return found

    def adapter(self, **settings: Any) -> Path:
        """A folder that says it is an adapter; its weights are no adapter's."""
        found = self.folder / "adapter"
        found.mkdir()
        wanted = {"peft_type": "LORA", "base_model_name_or_path": str(self.model), **settings}
        (found / ADAPTER_CONFIG).write_text(json.dumps(wanted))
        shutil.copy(self.model / "model.safetensors", found / "adapter_model.safetensors")
        return found

    def file(self, text: str, name: str = "file.jsonl") -> Path:
        (self.folder / name).write_text(text)
        return self.folder / name

    def source(self, text: str, **more: str) -> str:
        keys = ", ".join(f"{key}: {value}" for key, value in more.items())
        return f"data.sources=[{{path: {self.file(text)}{', ' + keys if keys else ''}}}]"


ROW = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
CHOSEN = '{"prompt": "a", "chosen": "b"}\n'
SCORERS = "objective.name=tis_dpo"


def _embedder(world: World) -> Options:
    folder = world.copy()
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    return [f"model.embedder={folder}", "objective.name=rpo"]


def _split(world: World) -> Options:
    for name in ("train", "test"):
        (world.folder / "data").mkdir(exist_ok=True)
        (world.folder / "data" / f"{name}.jsonl").write_text(ROW)
    return [f"data.sources=[{{path: {world.folder / 'data'}}}]"]


def _saved(world: World) -> Options:
    (world.folder / "saved").mkdir()
    for name in ("state.json", "data.arrow"):
        (world.folder / "saved" / name).write_text("{}")
    return [f"data.sources=[{{path: {world.folder / 'saved'}}}]"]


def _other_run(world: World) -> Options:
    """Its place holds another recipe's training."""
    begun = {"schema_version": 2, "settings": {}, "inputs": {}}
    (world.folder / "run" / "train").mkdir(parents=True)
    (world.folder / "run" / "train" / "started.json").write_text(json.dumps(begun))
    return []


def _with_whole_weights(world: World) -> Options:
    folder = world.adapter()
    shutil.copy(world.model / "model.safetensors", folder / "model.safetensors")
    return [f"model.name_or_path={folder}"]


def _pickled(world: World) -> Options:
    folder = world.adapter()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    return [f"model.name_or_path={folder}"]


# What is wrong -> the overrides that make it, and a part of the line.
BAD: dict[str, tuple[Callable[[World], Options], str]] = {
    "no model": (lambda w: ["model.name_or_path=/nowhere"], "model '/nowhere': no such directory"),
    "no reference": (lambda w: ["model.reference=/nowhere"], "model '/nowhere': no such directory"),
    "no tokenizer": (lambda w: ["model.tokenizer=/nowhere"], "model '/nowhere': no such directory"),
    "no scorer": (
        lambda w: [SCORERS, f"model.positive_scorer={w.model}", "model.negative_scorer=/nowhere"],
        "model '/nowhere': no such directory",
    ),
    "no embedder": (
        lambda w: ["objective.name=rpo", "model.embedder=/nowhere"], "'/nowhere': no such directory"
    ),
    "pooling of an embedder": (_embedder, "pooling max_tokens is not supported"),
    "no configuration": (
        lambda w: [f"model.name_or_path={w.without('config.json')}"], "no config.json"
    ),
    "no weights": (
        lambda w: [f"model.name_or_path={w.without('model.safetensors')}"], "no weights"
    ),
    "no end token": (
        lambda w: [f"model.name_or_path={w.with_tokenizer(eos_token=None)}"], "has no EOS token"
    ),
    "an adapter and whole weights": (_with_whole_weights, "both an adapter and whole weights"),
    "an adapter in a pickle": (_pickled, "pickled weights are not read"),
    "an adapter without its base": (
        lambda w: [f"model.name_or_path={w.adapter(base_model_name_or_path='/nowhere')}"],
        "its base model '/nowhere': no such directory",
    ),
    "an adapter of no base": (
        lambda w: [f"model.reference={w.adapter(base_model_name_or_path=None)}"],
        "names no base_model_name_or_path",
    ),
    "embeddings of another size": (
        lambda w: [f"model.reference={w.copy(vocab_size=7)}"], "config.json says vocab_size = 7"
    ),
    "rows that are too long": (
        lambda w: ["data.max_prompt_tokens=200"], "the model reads at most 128 tokens"
    ),
    "rows too long for the reference": (
        lambda w: [f"model.reference={w.copy(max_position_embeddings=40)}"], "at most 40 tokens"
    ),
    "samples that are too long": (
        lambda w: ["evaluate.generation.max_new_tokens=500"], "are 524 tokens"
    ),
    "no source": (
        lambda w: ["data.sources=[{path: /nowhere/x.jsonl}]"], "'/nowhere/x.jsonl': no such file"
    ),
    "no held-out source": (
        lambda w: ["data.test=[{path: /nowhere/x.jsonl}]"], "'/nowhere/x.jsonl': no such file"
    ),
    "an empty source": (lambda w: [w.source("")], "holds no row"),
    "a format that is none": (
        lambda w: [f"data.sources=[{{path: {w.file(ROW, 'file.txt')}}}]"], "format not recognised"
    ),
    "no such column": (
        lambda w: [w.source(ROW, form="text", columns="{chosen: good}")], "has no column 'good'"
    ),
    "nothing rejected": (
        lambda w: [w.source(CHOSEN, form="chosen_only")], "has no rejected responses"
    ),
    "rows of two forms": (
        lambda w: [w.source(ROW + '{"messages": [{"role": "user", "content": "a"}]}\n')],
        "mixes forms: text (prompt, chosen, rejected) at file.jsonl:1",
    ),
    "columns of two forms": (
        lambda w: [w.source('{"prompt": "p", "response": "a", "completion": "b", "label": 1}\n')],
        "two forms fit, unpaired of text",
    ),
    "a form that nothing fits": (
        lambda w: [w.source('{"chosen": " a", "rejected": " b"}\n')], "nothing asks for them"
    ),
    "labels that are none": (
        lambda w: [w.source('{"prompt": "p", "response": "a", "label": "safe"}\n')],
        "label is 'safe', neither true nor false",
    ),
    "messages as text": (
        lambda w: [w.source('{"prompt": "p", "chosen": "[{\'role\': 1}]", "rejected": "b"}\n')],
        "chosen is the text of messages (JSON)",
    ),
    "no scores": (
        lambda w: ["objective.name=odpo", "data.min_gap=0.1", w.source(ROW)], "has no scores"
    ),
    "no token weights": (
        lambda w: ["objective.name=mapo", "mask.kind=external", w.source(ROW)],
        "has no token weights",
    ),
    "a key that files cannot follow": (
        lambda w: [w.source(ROW, subset="a")], "subset = 'a' is of Hugging Face data sets"
    ),
    "several splits": (_split, "say which with split"),
    "a saved data set": (_saved, "save_to_disk"),
    "no such hook": (
        lambda w: ["objective.name=mapo", "mask.kind=activation", "mask.hooks=[attn.nothing]"],
        "mask.hooks",
    ),
    "no such layer for adapters": (
        lambda w: ["train.lora={target_modules: [nothing]}"], "linear layers are"
    ),
    "an adapter of an adapter": (
        lambda w: ["train.lora={save: adapter}", f"model.name_or_path={_real_adapter(w)}"],
        "is an adapter itself",
    ),
    "more workers than CPUs": (
        lambda w: ["train.num_workers=3", "ray.num_cpus=2"], "train.num_workers = 3 x 1 CPUs"
    ),
    "more CPUs than there are": (
        lambda w: ["train.cpus_per_worker=5", "ray.num_cpus=2"], "train.num_workers = 1 x 5 CPUs"
    ),
    "no GPU": (
        lambda w: ["train.use_gpu=true", "ray.num_gpus=0"], "with a GPU each: the cluster has 0"
    ),
    "a reference over more GPUs": (
        lambda w: ["reference.gpus_per_model=2", "ray.num_gpus=0"],
        "reference: 2 GPUs for one model, but the cluster has 0",
    ),
    "nothing held out": (lambda w: ["data.test_fraction=0"], "needs held-out pairs"),
    "no words": (lambda w: ["evaluate.key_words=/nowhere"], "key_words = '/nowhere': no such file"),
    "no programming tasks": (
        lambda w: ["evaluate.benchmarks=[code]", "evaluate.code={tasks: /nowhere}"],
        "evaluate.code.tasks = '/nowhere': no such file",
    ),
    "a task that is none": (
        lambda w: ["evaluate.benchmarks=[code]", f"evaluate.code={{tasks: {w.file('[]')}}}"],
        "row 1: not a JSON object",
    ),
    "no chat template": (
        lambda w: [
            "evaluate.benchmarks=[code]",
            f"evaluate.code={{tasks: {w.file(ROW)}, apply_chat_template: true}}",
        ],
        "has no chat template",
    ),
    "no judge": (
        lambda w: [
            "evaluate.benchmarks=[dialogue]",
            "evaluate.judge={kind: reward_model, model: /nowhere}",
        ],
        "evaluate.judge.model: model '/nowhere'",
    ),
    "no key of a judge": (
        lambda w: [
            "evaluate.benchmarks=[dialogue]",
            "evaluate.judge={kind: openai, base_url: 'http://x', model: m, api_key_env: NOT_SET_1}",
        ],
        "this environment variable is not set",
    ),
    "no such label": (
        lambda w: [f"evaluate.reward={{kind: classifier, model: {w.model}, label: happy}}"],
        "evaluate.reward.label = 'happy'",
    ),
    "another run's place": (_other_run, "holds another run's train stage"),
}  # fmt: skip


def _real_adapter(world: World) -> Path:
    """One that fits: a low-rank update of a query's weights that is zero."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = world.adapter(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", lora_alpha=2)
    name = "model.layers.0.self_attn.q_proj"
    rows, columns = load_file(world.model / "model.safetensors")[f"{name}.weight"].shape
    halves = {"A": torch.zeros(2, columns), "B": torch.zeros(rows, 2)}
    save_file(
        {f"base_model.model.{name}.lora_{half}.weight": it for half, it in halves.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


@pytest.fixture
def world(tmp_path: Path, model_dir: Path, pairs_file: Path) -> World:
    return World(tmp_path, model_dir, pairs_file)


def refused(recipe: Recipe, part: str, folder: Path) -> None:
    """By both, in the same line; nothing is written, and no Ray started."""
    import ray

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    was_there, lines = ray.is_initialized(), []
    for act in (run_plan, lambda recipe: run_stages(recipe, RUN, silent, quiet=True)):
        with pytest.raises(UserError) as caught:
            act(recipe)
        lines.append(str(caught.value))
    assert lines[0] == lines[1]
    assert part in lines[0] and "\n" not in lines[0], lines[0]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert ray.is_initialized() == was_there


@pytest.mark.parametrize("case", BAD)
def test_plan_and_run_refuse_the_same(case: str, world: World, make_recipe: MakeRecipe) -> None:
    options, part = BAD[case]
    refused(make_recipe(*options(world)), part, world.folder)


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed(
    tracker: str, world: World, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, tracker, None)
    recipe = make_recipe(f"train.trackers=[tensorboard,{tracker}]")
    part = f"train.trackers names {tracker}, which is not installed: pip install {tracker}"
    refused(recipe, part, world.folder)


def test_a_stage_alone_asks_nothing_of_the_machines_of_others(make_recipe: MakeRecipe) -> None:
    """Pairs may be prepared where nothing could be trained."""
    from pipelines.commands.run import check_before
    from pipelines.commands.stages import PREPARE, TRAIN
    from pipelines.recipe.stage import Run

    recipe = make_recipe("train.num_workers=64", "ray.num_cpus=2")
    check_before(Run(recipe), (PREPARE,))
    with pytest.raises(UserError, match="train.num_workers = 64 x 1 CPUs: the cluster has 2"):
        check_before(Run(recipe), (TRAIN,))
