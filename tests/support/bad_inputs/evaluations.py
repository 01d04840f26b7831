"""What a recipe's benchmarks need and do not get."""

import json

from bad_inputs.world import Bad, Make, Options, World


def _tasks(content: str) -> Make:
    """The code benchmark on a file of tasks."""
    return lambda world: [
        "evaluate.benchmarks=[code]",
        f"evaluate.code={{tasks: {world.file(content)}}}",
    ]


def _judged(judge: str) -> Options:
    return ["evaluate.benchmarks=[dialogue]", f"evaluate.judge={{{judge}}}"]


def _classifier(world: World, **more: str) -> str:
    keys = "".join(f", {key}: {value}" for key, value in more.items())
    labels = {"id2label": {"0": "A", "1": "B", "2": "C"}, "label2id": {"A": 0, "B": 1, "C": 2}}
    return f"model: {world.copy(**labels)}{keys}"


def _judge_with(template: str) -> Make:
    """A reward model of one output with a chat template."""

    def make(world: World) -> Options:
        folder = world.copy(id2label={"0": "A"}, label2id={"A": 0})
        (folder / "chat_template.jinja").write_text(template)
        return _judged(f"kind: reward_model, model: {folder}")

    return make


def _padded(world: World) -> Options:
    """A policy with five rows of embeddings that no token uses, and a reference without."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(world.model / "model.safetensors")
    for name, table in weights.items():
        if "embed_tokens" in name or "lm_head" in name:
            rows = len(table)
            weights[name] = torch.cat([table, torch.zeros(5, table.shape[1])])
    folder = world.copy(vocab_size=rows + 5)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return [
        f"model.name_or_path={folder}",
        f"model.reference={world.model}",
        "evaluate.benchmarks=[sentiment]",
        "evaluate.generation.engine=vllm",
    ]


_TASK = {"task_id": "a", "prompt": "def f(x):\n" + "    # the plot\n" * 60, "entry_point": "f"}
_SUMMARIES = "evaluate.benchmarks=[summarization]"

BAD: dict[str, Bad] = {
    "a gate on the KL of samples that are not the policy's own": (
        [
            "evaluate.benchmarks=[sentiment]",
            "evaluate.generation.temperature=0.5",
            "schedule.gates=[{metric: sentiment/kl/policy_reference, max: 8}]",
        ],
        "schedule.gates: metric 'sentiment/kl/policy_reference' is not reported",
        "temperature 0.5, top_p 1 are not the policy's own; name "
        "'sentiment/kl/policy_reference_off_policy'",
    ),
    "a gate on the KL of other samples where they are the policy's own": (
        [
            "evaluate.benchmarks=[sentiment]",
            "schedule.gates=[{metric: sentiment/kl/policy_reference_off_policy, max: 8}]",
        ],
        "temperature 1, top_p 1 are the policy's own; name 'sentiment/kl/policy_reference'",
    ),
    "key words that are no text": (
        lambda w: [f"evaluate.key_words={w.file(bytes(range(128, 200)), 'words.txt')}"],
        "evaluate.key_words = ", "can't decode byte",
    ),
    "tasks that are no text": (
        lambda w: [
            "evaluate.benchmarks=[code]",
            f"evaluate.code={{tasks: {w.file(bytes(range(128, 200)), 'tasks.jsonl')}}}",
        ],
        "evaluate.code.tasks = ", "can't decode byte",
    ),
    "no words": (["evaluate.key_words=/nowhere"], "key_words = '/nowhere': no such file"),
    "no programming tasks": (
        ["evaluate.benchmarks=[code]", "evaluate.code={tasks: /nowhere}"],
        "evaluate.code.tasks = '/nowhere': no such file",
    ),
    "a task that is none": (_tasks("[]"), "row 1: not a JSON object"),
    "a task that is no JSON": (_tasks("nonsense"), "row 1: not JSON"),
    "no task": (_tasks("\n"), "no tasks"),
    "a task without tests": (
        _tasks('{"task_id": 1, "text": "x"}'),
        "row 1: column test_list is missing or no list; it has task_id, text",
    ),
    "a task without a test": (
        _tasks('{"task_id": 1, "prompt": "x", "entry_point": "f"}'),
        "row 1: column test is missing",
    ),
    "a task that is too long": (
        _tasks(json.dumps({**_TASK, "test": "def check(f): pass"})),
        "evaluate.code.generation.max_new_tokens",
        "the model reads at most 128 tokens",
    ),
    "no chat template": (
        lambda w: [
            "evaluate.benchmarks=[code]",
            f"evaluate.code={{tasks: {w.file(json.dumps(_TASK))}, apply_chat_template: true}}",
        ],
        "has no chat template",
    ),
    "no chat template for the harness": (
        [
            "evaluate.benchmarks=[leaderboard]",
            "evaluate.leaderboard={tasks: [hellaswag], apply_chat_template: true}",
        ],
        "evaluate.leaderboard.apply_chat_template: the tokenizer of",
        "has no chat template",
    ),
    "no such task of the harness": (
        ["evaluate.benchmarks=[leaderboard]", "evaluate.leaderboard={tasks: [hellaswagg]}"],
        "no task 'hellaswagg'; did you mean 'hellaswag'",
    ),
    "no folder of tasks": (
        [
            "evaluate.benchmarks=[leaderboard]",
            "evaluate.leaderboard={tasks: [hellaswag], include_path: /nowhere}",
        ],
        "include_path = '/nowhere': no such directory",
    ),
    "no engine": (
        ["evaluate.benchmarks=[sentiment]", "evaluate.generation.engine=vllm"],
        "vLLM is not installed",
    ),
    "an engine that would draw padding": (
        _padded, "generation.engine = 'vllm': it would draw from all rows, and the policy has"
    ),
    "no judge": (_judged("kind: reward_model, model: /nowhere"), "evaluate.judge.model: model '/n"),
    "a judge of several outputs": (
        lambda w: _judged(f"kind: reward_model, {_classifier(w)}"), "has 3 outputs", "choose one"
    ),
    "a judge whose template is broken": (
        _judge_with("{% for m in messages %}{{ m.role }"),
        "evaluate.judge.model = ", "is no template: line 1",
    ),
    "a judge whose template refuses": (
        _judge_with("{{ raise_exception('ask me nothing') }}"),
        "evaluate.judge.model = ", "does not render a question and its answer: ask me nothing",
    ),
    "no key of a judge": (
        _judged("kind: openai, base_url: 'http://x', model: m, api_key_env: NOT_SET_1"),
        "this environment variable is not set",
    ),
    "no classifier": (
        ["evaluate.reward={kind: classifier, model: /nowhere/y}"], "evaluate.reward.model"
    ),
    "no such label": (
        lambda w: [f"evaluate.reward={{kind: classifier, {_classifier(w, label='happy')}}}"],
        "evaluate.reward.label = 'happy': the classifier", "has A, B, C",
    ),
    "no model of entailment": (
        [_SUMMARIES, "evaluate.summarization.entailment_model=/nowhere/x"],
        "evaluate.summarization.entailment_model",
    ),
    "no label of entailment": (
        lambda w: [
            _SUMMARIES,
            "evaluate.summarization={entailment_"
            + _classifier(w)
            + ", entailment_label: agrees}",
        ],
        "evaluate.summarization.entailment_label = 'agrees'",
    ),
    "no layer of a scorer": (
        lambda w: [
            _SUMMARIES,
            f"evaluate.summarization={{bert_score_model: {w.model}, bert_score_layer: 99}}",
        ],
        "bert_score_layer = 99: the model has layers 0 to",
    ),
}  # fmt: skip
