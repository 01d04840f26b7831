"""Sizes that do not fit are refused where they are known, by every command, with both numbers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from families import UNLIKE, tiny_config
from pair_stores import TEXT
from runs import MakeRecipe, silent
from safetensors.torch import load_file, save_file
from tiny_families import CONFIGS
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pipelines.commands.cli import app
from pipelines.commands.plan import plan_sweep, run_plan
from pipelines.commands.run import run_stages
from pipelines.commands.sft import run_sft
from pipelines.commands.stages import PREPARE, RUN, SAMPLE
from pipelines.commands.submit import packaged_command
from pipelines.errors import UserError
from pipelines.models.directories import max_positions
from pipelines.models.loading import load_causal_lm
from pipelines.models.readers import padded_vocabularies
from pipelines.models.sizes import embedding_rows, tokens_in_use
from pipelines.models.tensors import check_adapter, model_tensors
from pipelines.pairs.prepare import _rows_of_task
from pipelines.pairs.sources import chunks_of
from pipelines.pairs.tasks import ReadTask
from pipelines.recipe.files import write_yaml
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.reference.cost import count_parameters
from pipelines.sweep.files import load_sweep
from pipelines.sweep.stage import run_tune


def refusal(act: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused(recipe: Recipe, *parts: str) -> None:
    """By plan and run in the same line, which holds the parts, before anything is written."""
    line = refusal(lambda: run_plan(recipe))
    assert refusal(lambda: run_stages(recipe, RUN, silent)) == line
    assert [part for part in parts if part not in line] == [], line
    assert not Path(recipe.run_dir).exists()


@pytest.fixture(scope="module")
def size(model_dir: Path) -> int:
    """Tokens of the tiny model and of its tokenizer."""
    return len(AutoTokenizer.from_pretrained(model_dir))


@pytest.fixture
def with_rows(model_dir: Path, tmp_path: Path) -> Callable[[str, int], Path]:
    """The tiny model with another number of embeddings."""

    def make(name: str, rows: int) -> Path:
        folder = tmp_path / name
        shutil.copytree(model_dir, folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        model.resize_token_embeddings(rows, mean_resizing=False)
        model.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def with_token(model_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """The tiny model as it is, its tokenizer with a token more."""

    def make(name: str, **special: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(model_dir, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if special:
            tokenizer.add_special_tokens(special)
        else:
            tokenizer.add_tokens(["newword"])
        tokenizer.save_pretrained(folder)
        return folder

    return make


def test_every_command_refuses_a_tokenizer_with_more_tokens_than_embeddings(
    with_token: Callable[..., Path], make_recipe: MakeRecipe, size: int, tmp_path: Path
) -> None:
    folder = with_token("not-resized", eos_token="<|done|>")
    recipe = make_recipe(f"model.name_or_path={folder}")
    line = (
        f"model.name_or_path = {folder}: the tokenizer of {folder} has {size + 1} tokens, the "
        f"largest id in use is {size} ('<|done|>'), but the model's embeddings have {size} rows: "
        f"make them larger (model.resize_token_embeddings({size + 1})) and save the model, or take "
        "the tokenizer that it was trained with"
    )
    refused(recipe, line)
    file = tmp_path / "recipe.yaml"
    file.write_text(write_yaml(recipe))
    body = {
        "run_dir": str(tmp_path / "sweep"),
        "recipe": str(file),
        "space": {"train.seed": {"grid": [0, 1]}},
        "objectives": [{"metric": "train/rewards/margins"}],
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(body))
    sweep = load_sweep(str(tmp_path / "sweep.yaml"))

    def submit() -> None:
        with packaged_command(["run", str(file)], typer.main.get_command(app)):
            pass

    for act in (
        lambda: run_sft(recipe, silent),
        lambda: run_tune(sweep, silent),
        lambda: plan_sweep(sweep),
        lambda: run_stages(recipe, (SAMPLE,), silent),
        submit,
    ):
        assert refusal(act) == line
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "not-resized", "recipe.yaml", "sweep.yaml"
    ]  # fmt: skip


def test_tokens_of_other_kinds_count_too(
    with_token: Callable[..., Path], make_recipe: MakeRecipe, size: int
) -> None:
    """A word that was added, and a token to pad with."""
    for name, special, token in (
        ("word", {}, "newword"),
        ("pad", {"pad_token": "<|pad|>"}, "<|pad|>"),
    ):
        folder = with_token(name, **special)
        refused(make_recipe(f"model.name_or_path={folder}"), f"{size} ({token!r})", f"{size} rows")


def test_reference_and_scorers_are_looked_at_too(
    with_rows: Callable[[str, int], Path], make_recipe: MakeRecipe, size: int, model_dir: Path
) -> None:
    small = with_rows("small", size - 3)
    numbers = (f"has {size} tokens", f"have {size - 3} rows")
    refused(make_recipe(f"model.reference={small}"), f"model.reference = {small}", *numbers)
    scorers = (f"model.positive_scorer={model_dir}", f"model.negative_scorer={small}")
    refused(
        make_recipe("objective.name=tis_dpo", *scorers),
        f"model.negative_scorer = {small}",
        *numbers,
    )
    # A recipe that allows for rows that cannot be scored may have such a reference.
    loses = make_recipe(f"model.reference={small}", "reference.max_failed_fraction=0.5")
    assert run_plan(loses)["train"]["steps"] > 0
    # Nobody reads with it.
    unused = make_recipe(f"model.positive_scorer={small}", f"model.negative_scorer={small}")
    assert run_plan(unused)["train"]["steps"] > 0


def test_more_embeddings_than_tokens_are_fine(
    with_rows: Callable[[str, int], Path], make_recipe: MakeRecipe, size: int
) -> None:
    """Padded to a multiple of 64, in the policy or in the reference."""
    padded = with_rows("padded", (size + 63) // 64 * 64 + 64)
    assert run_plan(make_recipe(f"model.name_or_path={padded}"))["train"]["steps"] > 0
    assert run_plan(make_recipe(f"model.reference={padded}"))["train"]["steps"] > 0
    assert embedding_rows(padded) == (size + 63) // 64 * 64 + 64


@pytest.mark.parametrize("options", [("objective.name=tdpo1",), ("reference.topk=4",)])
def test_a_reference_without_tokens_in_use_has_no_distribution_to_compare(
    with_rows: Callable[[str, int], Path],
    make_recipe: MakeRecipe,
    size: int,
    options: tuple[str, ...],
) -> None:
    """Rows that one of the two has and the tokenizer uses are no padding, which could be cut."""
    small, lost = with_rows("small", size - 3), "reference.max_failed_fraction=0.5"
    refused(
        make_recipe("objective.name=tdpo1", *options, f"model.reference={small}", lost),
        f"model.reference = {small}: it has {size - 3} tokens, the policy",
        f"has {size}; objective.name = tdpo1 compares their distributions",
        f"over the {size - 3} that both have, and the tokenizer uses {size - 1} (",
    )
    assert padded_vocabularies(make_recipe(f"model.reference={small}", lost)) is None
    padded = with_rows("padded", size + 5)
    recipe = make_recipe("objective.name=tdpo1", *options, f"model.reference={padded}")
    assert run_plan(recipe)["train"]["steps"] > 0


def test_a_special_token_that_nothing_says_may_lie_beyond_the_embeddings(
    model_dir: Path, make_recipe: MakeRecipe, size: int, tmp_path: Path, rows: list[dict[str, str]]
) -> None:
    """As the image token of a family's models of text alone; a row that holds it is rejected."""
    folder = tmp_path / "idle"
    shutil.copytree(model_dir, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    assert tokens_in_use(folder)["largest"] == size - 1 and tokens_in_use(folder)["last"] == size
    file = tmp_path / "rows.jsonl"
    kept = [dict(row) for row in rows[:6]]
    kept[2]["chosen"] += "<image>"
    file.write_text("".join(json.dumps(row) + "\n" for row in kept))
    recipe = make_recipe(
        f"model.name_or_path={folder}", f"data.sources=[{{path: {file}}}]", "data.test_fraction=0.4"
    )
    reason = f"token {size} is beyond the model's embeddings ({size} rows)"
    assert run_plan(recipe)["data"]["rejected"] == {reason: 1}
    known = Run(recipe).inputs(PREPARE).known_tokens
    (chunk,) = chunks_of(recipe.data.sources[0], 100)
    found = _rows_of_task(ReadTask(0, TEXT, (chunk,)), recipe.data, str(folder), known)
    assert [row.get("reason") for row in found] == [None, None, reason, None, None, None]
    assert Run(recipe).record(PREPARE).inputs["known_tokens"] == size
    tokenizer.chat_template = "{% for m in messages %}<image>{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    refused(recipe, f"largest id in use is {size} ('<image>')")


@pytest.mark.parametrize("family", [*CONFIGS, *UNLIKE])
def test_sizes_from_files_are_those_of_the_loaded_model(family: str, tmp_path: Path) -> None:
    """Embeddings, parameters, and adapters on every linear layer, which fit."""
    from peft import LoraConfig, get_peft_model

    config = (
        AutoConfig.for_model(family.split("-")[0], **CONFIGS[family])
        if family in CONFIGS
        else tiny_config(family)
    )
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "model")
    assert embedding_rows(tmp_path / "model") == model.get_input_embeddings().weight.shape[0]
    saved = model.state_dict()
    buffers = sum(b.numel() for name, b in model.named_buffers() if name in saved)
    named = sum(p.numel() for p in model.parameters())
    assert count_parameters(tmp_path / "model") == named + buffers
    layers = ["x_proj", "in_proj"] if family == "mamba" else "all-linear"
    settings = {"use_dora": family == "llama", "target_modules": layers}
    adapted = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", **settings))
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "model")
    adapted.save_pretrained(tmp_path / "adapter")
    check_adapter(tmp_path / "adapter")
    assert embedding_rows(tmp_path / "adapter") == embedding_rows(tmp_path / "model")


def adapter_on(base: Path, folder: Path, rows: int | None = None, **settings: Any) -> Path:
    """A LoRA folder that names a base, made on it or on it with other embeddings."""
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(base)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    adapted = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", **settings))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)
    return folder


def test_an_adapter_with_resized_embeddings_names_both_sizes(
    model_dir: Path, make_recipe: MakeRecipe, size: int, tmp_path: Path
) -> None:
    """Unless it brings all of them (test_merged_adapters.py)."""
    q = {"target_modules": ["q_proj"]}
    half = adapter_on(model_dir, tmp_path / "half", size + 5, modules_to_save=["embed_tokens"], **q)
    held = load_file(half / "adapter_model.safetensors")
    copies = {n: t for n, t in held.items() if "original" not in n and "lm_head" not in n}
    save_file(copies, half / "adapter_model.safetensors")
    refused(
        make_recipe(f"model.name_or_path={half}"),
        f"adapter {half}: its embeddings have {size + 5} rows, its base {model_dir} has {size}, "
        "and new rows of the head are not in the adapter: save the resized base",
    )
    # Of a change that is low-rank alone, both halves say the size: [rank, tokens], [width, rank].
    change = adapter_on(model_dir, tmp_path / "change", target_modules=["embed_tokens"])
    halves = load_file(change / "adapter_model.safetensors")
    (name,) = (name for name in halves if name.endswith("lora_embedding_A"))
    halves[name] = torch.zeros(4, size + 5)
    save_file(halves, change / "adapter_model.safetensors")
    refused(
        make_recipe(f"model.reference={change}"),
        f"embed_tokens.weight has {size + 5} x 128, its base {model_dir} has {size} x 128",
    )


def test_adapters_of_other_bases_are_refused(
    model_dir: Path, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """Wider, deeper, with a rank that its two halves do not share; the adapter itself is fine."""
    fits = adapter_on(model_dir, tmp_path / "fits", target_modules=["q_proj", "down_proj"])
    assert run_plan(make_recipe(f"model.name_or_path={fits}"))["train"]["steps"] > 0
    wide, deep = tmp_path / "wide", tmp_path / "deep"
    config = AutoConfig.from_pretrained(model_dir)
    for folder, changes in ((wide, {"hidden_size": 64}), (deep, {"num_hidden_layers": 2})):
        config = AutoConfig.from_pretrained(model_dir, **changes)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(model_dir).save_pretrained(folder)

    def on(base: Path) -> Path:
        folder = tmp_path / f"on-{base.name}"
        shutil.copytree(fits, folder)
        settings = json.loads((folder / "adapter_config.json").read_text())
        settings["base_model_name_or_path"] = str(base)
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        return folder

    refused(
        make_recipe(f"model.name_or_path={on(wide)}"),
        "down_proj.weight has 128 x 320, its base",
        "has 64 x 320: name the base",
    )
    refused(
        make_recipe(f"model.reference={on(deep)}"),
        "it changes ", "layers.2.", "which its base", "made for a model with more layers",
    )  # fmt: skip
    torn = on(model_dir)
    weights = load_file(torn / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_A" in name)
    weights[name] = weights[name][:3].contiguous()
    save_file(weights, torn / "adapter_model.safetensors")
    refused(make_recipe(f"model.name_or_path={torn}"), "lora_A.weight has rank 3", "has rank 4")


def test_a_base_that_changed_since_is_named_where_the_adapter_is_loaded(
    model_dir: Path, size: int, tmp_path: Path, with_rows: Callable[[str, int], Path]
) -> None:
    """As a trained model's: with resumption and evaluation, nobody looks at it before."""
    base = with_rows("base", size)
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}
    trained = adapter_on(base, tmp_path / "trained", **settings)
    load_causal_lm(str(trained), torch.float32)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(size + 2, mean_resizing=False)
    model.save_pretrained(base)
    line = refusal(lambda: load_causal_lm(str(trained), torch.float32))
    assert f"has {size} x 128, its base {base} has {size + 2} x 128" in line


def test_files_that_contradict_themselves_are_named(
    model_dir: Path, make_recipe: MakeRecipe, size: int, tmp_path: Path
) -> None:
    """A configuration of another size, the pointer of Git LFS, a file cut off, a part missing."""

    def copy(name: str) -> Path:
        shutil.copytree(model_dir, tmp_path / name)
        return tmp_path / name

    other = copy("other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": size + 64}))
    refused(
        make_recipe(f"model.name_or_path={other}"),
        f"config.json says vocab_size = {size + 64}, model.embed_tokens.weight has {size} rows",
    )
    pointer = copy("pointer") / "model.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    refused(make_recipe(f"model.name_or_path={pointer.parent}"), "not a safetensors file, or cut")
    short = copy("short") / "model.safetensors"
    short.write_bytes(short.read_bytes()[:5])
    refused(make_recipe(f"model.reference={short.parent}"), "not a safetensors file, or cut off (5")
    parts = copy("parts")
    (parts / "model.safetensors").rename(parts / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-2.safetensors"}}
    (parts / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(make_recipe(f"model.name_or_path={parts}"), "names model-2.safetensors: no such file")


def test_files_that_transformers_does_not_read_are_left_out(
    model_dir: Path, tmp_path: Path
) -> None:
    """Some models bring their weights twice, by other names."""
    folder = tmp_path / "twice"
    shutil.copytree(model_dir, folder)
    weights = load_file(folder / "model.safetensors")
    renamed = {f"other.{name}": tensor for name, tensor in weights.items()}
    save_file(renamed, folder / "consolidated.safetensors")
    assert model_tensors(folder) == model_tensors(model_dir)
    assert count_parameters(folder) == count_parameters(model_dir)


def test_lengths_are_those_of_every_model_that_reads(
    model_dir: Path, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """The tokenizer's own directory says nothing of the models; an own embedder cuts texts."""
    short = tmp_path / "short"
    shutil.copytree(model_dir, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 40}))
    row = "data.max_prompt_tokens + max_response_tokens = 48 (or data.max_tokens): the model reads "
    both = (f"model.positive_scorer={model_dir}", f"model.negative_scorer={short}")
    cases = {
        "model.name_or_path": (f"model.name_or_path={short}", f"model.tokenizer={model_dir}"),
        "model.reference": (f"model.reference={short}",),
        "model.negative_scorer": ("objective.name=tis_dpo", *both),
    }
    for key, options in cases.items():
        refused(make_recipe(*options), row + f"at most 40 tokens ({key} = {short})")
    fits = make_recipe(f"model.reference={short}", "data.max_tokens=40")
    assert run_plan(fits)["train"]["steps"] > 0
    nested = {"model_type": "llava", "text_config": {"max_position_embeddings": 77}}
    (short / "config.json").write_text(json.dumps(nested))
    assert max_positions(short) == 77


def test_prompts_with_what_is_sampled_fit_the_model(
    make_recipe: MakeRecipe, model_dir: Path, tmp_path: Path
) -> None:
    """128 positions: 24 of the prompt leave 104; of a longer programming task fewer."""
    refused(
        make_recipe("evaluate.generation.max_new_tokens=105"),
        "a prompt of 24 tokens and evaluate.generation.max_new_tokens = 105 are 129 tokens: the "
        f"model reads at most 128 tokens (model.name_or_path = {model_dir})",
    )
    assert run_plan(make_recipe("evaluate.generation.max_new_tokens=104"))["evaluate"]
    sampling = make_recipe("sample.generation.max_new_tokens=105")
    assert run_plan(sampling)["evaluate"], "only `sample` draws these"
    line = refusal(lambda: run_stages(sampling, (SAMPLE,), silent))
    assert "sample.generation.max_new_tokens = 105 are 129 tokens" in line
    tasks = tmp_path / "tasks.jsonl"
    prompt = "def f(x):\n" + "    # the plot was lovely\n" * 3
    task = {"task_id": "a", "prompt": prompt, "entry_point": "f", "test": "def check(f): pass"}
    tasks.write_text(json.dumps(task) + "\n")
    tokens = len(AutoTokenizer.from_pretrained(model_dir)(prompt.rstrip()).input_ids)
    code = f"evaluate.code={{tasks: {tasks}, generation: {{max_new_tokens: 100}}}}"
    refused(
        make_recipe("evaluate.benchmarks=[code]", code),
        f"a prompt of {tokens} tokens and evaluate.code.generation.max_new_tokens = 100 are "
        f"{tokens + 100} tokens",
    )
