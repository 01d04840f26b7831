"""A response ends with its turn, wherever it is sampled or measured: with chat models whose turn
has an end of its own.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import MakeRecipe
from text_models import write_chain_model
from transformers import AutoModelForCausalLM, GenerationConfig

from pipelines.commands.run import run_stages
from pipelines.commands.stages import EVALUATE, PREPARE, SAMPLE
from pipelines.evaluate.actor import Evaluator
from pipelines.evaluate.facts import EvaluationFacts
from pipelines.evaluate.leaderboard import run_tasks_of
from pipelines.evaluate.sample import (
    CandidateSampler,
    DrawCandidates,
    sampling_facts,
)
from pipelines.evaluate.stage import ends_of
from pipelines.evaluate.tasks import SamplePrompts, WritePrograms
from pipelines.models.chat_template import ChatSettings
from pipelines.models.generation import generate
from pipelines.models.loading import load_causal_lm, load_tokenizer
from pipelines.models.response_ends import ResponseEnds, end_of_turn, response_ends
from pipelines.pairs.table import open_pairs
from pipelines.recipe.evaluation import GenerationSection, LeaderboardSection
from pipelines.recipe.files import validate_recipe
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.train.stage import training_facts

EOS, TURN, ASK, ONE, TWO, THREE, FOUR, JUNK = 1, 2, 3, 5, 6, 7, 8, 9
GREEDY = GenerationSection(temperature=0.0, max_new_tokens=6)


def test_ends_come_from_tokenizer_template_and_the_models_list(
    tmp_path: Path, model_dir: Path
) -> None:
    """Either source alone tells of <turn>.

    A listed id that is a word to the tokenizer is none, and is named.
    """

    def ends(**settings: Any) -> ResponseEnds:
        return response_ends(
            str(write_chain_model(tmp_path / str(len(list(tmp_path.iterdir()))), **settings))
        )

    assert ends(listed=None, has_template=True) == ResponseEnds((EOS, TURN))
    assert ends(listed=[TURN, EOS], has_template=False) == ResponseEnds((EOS, TURN))
    assert ends(listed=TURN, has_template=True) == ResponseEnds((EOS, TURN))
    assert ends(listed=None, has_template=False) == ResponseEnds((EOS,))
    assert ends(listed=[EOS, TWO], has_template=False) == ResponseEnds((EOS,), ("two (6)",))
    tokenizer = load_tokenizer(str(model_dir))
    assert response_ends(str(model_dir)) == ResponseEnds((tokenizer.eos_token_id,)), (
        "the quickstart's world"
    )


def test_the_recipes_template_says_where_a_turn_ends(tmp_path: Path) -> None:
    """In place of the tokenizer's own, as a text or by the name of one of its templates."""
    folder = write_chain_model(tmp_path / "model", listed=None, has_template=True)
    tokenizer = load_tokenizer(str(folder))
    ends_in = "{% for m in messages %}{{ m.content + 'MARK' }} {% endfor %}"
    turn, eos = (ends_in.replace("MARK", mark) for mark in ("<turn>", tokenizer.eos_token))

    def ends(template: str | None) -> ResponseEnds:
        return response_ends(str(folder), chat=ChatSettings(template))

    assert ends(None) == ends(turn) == ResponseEnds((EOS, TURN))
    assert ends(eos) == ends("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert ends(eos) == ResponseEnds((EOS,))
    tokenizer.chat_template = {"default": eos, "talk": turn}
    assert end_of_turn(tokenizer, ChatSettings("talk")) == TURN
    assert end_of_turn(tokenizer, ChatSettings("default")) == EOS
    tokenizer.chat_template = None


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{{ messages | length }}",
        "{{ x.y.z }}",
    ],
)
def test_templates_without_an_end_of_turn_have_none(tmp_path: Path, template: str) -> None:
    tokenizer = load_tokenizer(
        str(write_chain_model(tmp_path / "model", listed=None, has_template=False))
    )
    tokenizer.chat_template = template
    assert end_of_turn(tokenizer) is None
    tokenizer.chat_template = None


def test_a_batch_of_mixed_lengths_ends_each_where_it_ends(tmp_path: Path) -> None:
    """Prompts of 1 to 4 tokens, continuations of 1 to 4: each as it is alone, with its end token
    and nothing after; the model is as before.
    """
    folder = write_chain_model(tmp_path / "model", listed=[EOS, TURN], has_template=True)
    model, ends = load_causal_lm(str(folder), torch.float32), response_ends(str(folder))
    model.generation_config = own = GenerationConfig(
        eos_token_id=[EOS, TURN], repetition_penalty=3.0
    )
    prompts = [[FOUR], [ONE, TWO], [JUNK, FOUR, FOUR, ASK], [THREE, TWO, ONE], [JUNK]]
    expected = [[TURN], [THREE, TURN], [ONE, TWO, THREE, TURN], [TWO, THREE, TURN], [JUNK] * 6]
    assert generate(model, ends, prompts, GREEDY, 0) == expected
    assert [generate(model, ends, [prompt], GREEDY, 0)[0] for prompt in prompts] == expected
    sampled = generate(model, ends, prompts, GenerationSection(max_new_tokens=30), 3, num_samples=8)
    assert len({len(ids) for ids in sampled}) > 5
    for ids in sampled:
        assert not {EOS, TURN} & set(ids[:-1])
        assert ids[-1] in (EOS, TURN) or len(ids) == 30
    assert model.generation_config is own


@pytest.mark.slow
def test_the_whole_distribution_is_sampled_and_the_random_state_is_left(model_dir: Path) -> None:
    """One step of an untrained model, whose tokens are about equally likely: nearly all of them
    come, not the 50 likeliest that transformers would leave.
    """
    model = load_causal_lm(str(model_dir), torch.float32)
    size = model.config.vocab_size
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one_step = GenerationSection(max_new_tokens=1)
    drawn = generate(model, ResponseEnds((0,)), [[3]], one_step, 0, num_samples=20 * size)
    assert len({token for (token,) in drawn}) > max(60, 0.9 * size)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture(scope="module")
def chat_run(
    tmp_path_factory: pytest.TempPathFactory, recipe_in: MakeRecipe, ray_cluster: None
) -> Recipe:
    """Prepared chat pairs and a "trained" model: the start's chain with other probabilities."""
    folder = tmp_path_factory.mktemp("chat")
    start = write_chain_model(folder / "start", listed=None, has_template=True, head=0.8)
    write_chain_model(folder / "run" / "train" / "model", listed=None, has_template=True, head=1.2)
    words = ["one", "two", "three", "four", "junk"]
    rows = [
        {
            "prompt": f"{a} {b} {c}",
            **{
                side: [{"role": "assistant", "content": text}]
                for side, text in (("chosen", "two"), ("rejected", "four"))
            },
        }
        for a in words
        for b in words
        for c in words[:2]
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = recipe_in(
        folder / "run",
        f"model.name_or_path={start}",
        f"data.sources=[{{path: {folder / 'rows.jsonl'}}}]",
        "objective.name=dpo",
        "evaluate.generation.max_new_tokens=12",
        "evaluate.generation.temperature=0",
    )
    run_stages(recipe, (PREPARE,), lambda line: None)
    return recipe


def facts_of(recipe: Recipe) -> EvaluationFacts:
    run = Run(recipe)
    training = training_facts(run)
    return EvaluationFacts.of(recipe, run.paths.evaluation, training, None, ends_of(run))


def test_samples_and_their_kl_end_with_the_turn(chat_run: Recipe) -> None:
    """one two three <turn>: four tokens, the end among them.

    The KL is that of those four by a bare forward, in float64.

    The training pairs end their responses with the same token.
    """
    task = SamplePrompts(0, rows=(0, 1), order=(0, 1), temperature=0.0, temperature_number=0)
    record = Evaluator(facts_of(chat_run))(task)["sample"][1]
    assert record["policy_text"] == record["start_text"] == "one two three"
    assert record["policy_tokens"] == record["start_tokens"] == 4
    pair = open_pairs(Run(chat_run)).pairs("test", [1])[0]
    assert pair.chosen.tolist() == [TWO, TURN]
    whole = torch.tensor([[*pair.prompt.tolist(), ONE, TWO, THREE, TURN]])
    logps = {}
    for who, folder in (
        ("reference", chat_run.model.name_or_path),
        ("policy", f"{chat_run.run_dir}/train/model"),
    ):
        with torch.no_grad():
            logps[who] = (
                AutoModelForCausalLM.from_pretrained(folder)(whole)
                .logits[0, -5:-1]
                .double()
                .log_softmax(-1)
            )
    kl = (logps["policy"].exp() * (logps["policy"] - logps["reference"])).sum()
    assert kl > 0.1
    assert record["kl_policy_reference"] == pytest.approx(float(kl), rel=1e-5)


def test_candidates_and_programs_end_with_the_turn(chat_run: Recipe, tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text(
        '{"task_id": "T", "prompt": "one", "entry_point": "f", "test": "x"}\n'
    )
    sampling = "sample={num_candidates: 2, generation: {max_new_tokens: 12, temperature: 0.05}}"
    code = (
        f"evaluate.code={{tasks: {tmp_path / 'tasks.jsonl'}, generation: {{max_new_tokens: 12, "
        f"temperature: 0.05}}, apply_chat_template: true}}"
    )
    recipe = validate_recipe(chat_run.model_dump(mode="json"), [sampling, code])
    sampler = CandidateSampler(sampling_facts(recipe, Run(recipe).inputs(SAMPLE).ends))
    for way in ("batches", "captured"):
        found = sampler(DrawCandidates(0, batch_prompts=1, prompts=("four one",), way=way))
        assert found["candidates"][0]["responses"] == ["two three"] * 2 and not found["warnings"]
        task = WritePrograms(0, 0, task_ids=("T",), prompts=("junk",), num_samples=2, way=way)
        (program,) = Evaluator(facts_of(recipe))(task)["program"]
        assert program["policy_texts"] == program["start_texts"] == ["one two three"] * 2


def test_programs_are_asked_in_a_template_that_the_recipe_names(
    chat_run: Recipe, tmp_path: Path
) -> None:
    """By its name among the tokenizer's: here one that asks as the tokenizer's own does."""
    named = tmp_path / "tokenizer"
    shutil.copytree(chat_run.model.name_or_path, named)
    tokenizer = load_tokenizer(str(named))
    (named / "additional_chat_templates").mkdir()
    (named / "additional_chat_templates" / "mine.jinja").write_text(tokenizer.chat_template)
    (tmp_path / "tasks.jsonl").write_text(
        '{"task_id": "T", "prompt": "one", "entry_point": "f", "test": "x"}\n'
    )
    code = (
        f"evaluate.code={{tasks: {tmp_path / 'tasks.jsonl'}, generation: {{max_new_tokens: 12, "
        f"temperature: 0.05}}, apply_chat_template: true}}"
    )
    recipe = validate_recipe(chat_run.model_dump(mode="json"), [code])
    facts = facts_of(recipe)
    training = replace(facts.training, chat=ChatSettings("mine"))
    facts = replace(facts, training=training, tokenizer=str(named))
    task = WritePrograms(0, start=0, task_ids=("T",), prompts=("junk",), num_samples=2)
    (program,) = Evaluator(facts)(task)["program"]
    assert program["policy_texts"] == program["start_texts"] == ["one two three"] * 2


def test_what_samples_records_its_ends(chat_run: Recipe, make_recipe: MakeRecipe) -> None:
    """Another list of ends draws other samples: the evaluation is another.

    Runs with the tokenizer's end alone keep their record.
    """
    assert (
        Run(chat_run).record(EVALUATE).inputs["response_ends"]
        == Run(chat_run).record(SAMPLE).inputs["response_ends"]
        == [EOS, TURN]
    )
    pairs_only = validate_recipe(
        chat_run.model_dump(mode="json"), ["evaluate.benchmarks=[preference]"]
    )
    assert "response_ends" not in Run(pairs_only).record(EVALUATE).inputs
    assert "response_ends" not in Run(make_recipe()).record(EVALUATE).inputs


@pytest.mark.slow
def test_the_harness_stops_there_too(tmp_path: Path) -> None:
    """generate_until with a stop text that never comes: the answer is right only if it ends with
    the turn.
    """
    folder = write_chain_model(tmp_path / "model", listed=None, has_template=True)
    (tmp_path / "documents.jsonl").write_text(
        '{"q": "four one", "a": "two three"}\n{"q": "two", "a": "three"}\n'
    )
    (tmp_path / "tasks").mkdir()
    task = {
        "task": "says",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "documents.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "generation_kwargs": {"until": ["never"], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    (tmp_path / "tasks" / "says.yaml").write_text(json.dumps(task))
    model, tokenizer = load_causal_lm(str(folder), torch.float32), load_tokenizer(str(folder))
    own = model.generation_config
    section = LeaderboardSection(
        tasks=("says",), include_path=str(tmp_path / "tasks"), batch_size=2
    )
    found = run_tasks_of(section, model, tokenizer, response_ends(str(folder)), 0)
    assert found["values"]["says"]["exact_match"] == [1.0, 1.0]
    assert model.generation_config is own
