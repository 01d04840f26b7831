"""Controls (sft.control, evaluate.control) that a run cannot have."""

import json

from bad_inputs.world import Bad, Options, World

_TEXTS = {"good": "a good one", "bad": "a bad one", "stages": "[model]"}


def _control(**changes: str) -> Options:
    """A supervised recipe with a control."""
    keys = ", ".join(f"{key}: {value}" for key, value in {**_TEXTS, **changes}.items())
    return ["objective.name=sft", f"sft.control={{{keys}}}"]


def _chosen_alone(world: World) -> Options:
    return [*_control(), *world.rows({"prompt": "a", "response": " b"}, form="chosen_only")]


def _tuned(world: World, **changes: str) -> str:
    """A model that says it was tuned with a control."""
    folder = world.copy()
    one = {"text": "a good one", "ids": [5], "names": []}
    found = {"good": one, "bad": {**one, "text": "a bad one", "ids": [6]}, "begins_as": [5, 6]}
    (folder / "control.json").write_text(json.dumps({**found, **changes}))
    return str(folder)


def _other_texts(world: World) -> Options:
    return [f"model.name_or_path={_tuned(world)}", *_control(good="another one")]


def _tuned_already(world: World) -> Options:
    return [f"model.name_or_path={_tuned(world)}", *_control(stages="[soft]")]


def _damaged(world: World) -> Options:
    return [f"model.name_or_path={_tuned(world, good='x')}", *_control()]


def _few_rows(world: World) -> Options:
    """A tokenizer with a token that no text of the rows has and the model does not know."""
    folder = world.copy()
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    last = max(max(content["model"]["vocab"].values()), *(t["id"] for t in content["added_tokens"]))
    token = {"id": last + 1, "content": "<|idle|>", "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"].append({**token, **flags})
    file.write_text(json.dumps(content))
    return [f"model.name_or_path={folder}", *_control(stages="[soft]")]


def _no_place(world: World) -> Options:
    """A model with as many positions as the longest row has, and no more."""
    folder = world.copy(max_position_embeddings=48)
    one = {"text": "a", "ids": [5], "names": []}
    found = {"good": one, "bad": {**one, "text": "b", "ids": [6]}, "begins_as": [5, 6]}
    (folder / "control.json").write_text(json.dumps(found))
    return [
        f"evaluate.model={folder}",
        "evaluate.benchmarks=[preference]",
        "evaluate.control=[bad]",
    ]


def _leaderboard(world: World) -> Options:
    tasks = "evaluate.leaderboard={tasks: [a]}"
    names = "evaluate.benchmarks=[leaderboard]"
    return [f"evaluate.model={_tuned(world)}", "evaluate.control=[good]", names, tasks]


def _vllm(world: World) -> Options:
    engine = ["evaluate.benchmarks=[sentiment]", "evaluate.generation.engine=vllm"]
    return [f"evaluate.model={_tuned(world)}", "evaluate.control=[good]", *engine]


BAD: dict[str, Bad] = {
    "an empty control": (_control(good="''"), "sft.control.good = '': string should have at least"),
    "a control of white space": (_control(bad="' '"), "bad = ' ': must be more than white space"),
    "one control for both": (
        _control(bad="a good one"), "good and bad are both 'a good one': they must differ"
    ),
    "a control's stages the wrong way round": (
        _control(stages="[model, soft]"),
        "stages = [model, soft]: allowed is [soft, model], [soft] or [model]",
    ),
    "a control without a stage": (_control(stages="[]"), "stages = []: allowed is"),
    "a stage that controls do not have": (_control(stages="[hard]"), "hard", "soft"),
    "a control in two stages in one run": (
        _control(stages="[soft, model]"),
        "sft.control.stages = [soft, model]: `sparsepo sft` trains one after the other",
    ),
    "soft tokens and adapters": (
        [*_control(stages="[soft]"), "train.lora.rank=4"],
        "train.lora.rank = 4 with sft.control.stages = [soft]: the model is frozen; leave it out",
    ),
    "a control as long as a prompt": (
        [*_control(), "data.max_prompt_tokens=3"],
        "data.max_prompt_tokens = 3: sft.control stands in front of a prompt and has 3 tokens",
    ),
    "a control without unwanted responses": (
        _chosen_alone, "has neither labels nor rejected responses: sft.control needs them"
    ),
    "another control than the model's": (
        _other_texts, "sft.control.good = 'another one': the model", "was tuned with 'a good one'"
    ),
    "soft tokens of a model with a control": (
        _tuned_already, "sft.control.stages = [soft]: the model", "was tuned with this control"
    ),
    "a damaged control": (_damaged, "control.json: damaged, it is not what training wrote"),
    "a control without a place for tokens": (
        _few_rows, "there is no place for a control; resize the model first"
    ),
    "an evaluation without the model's control": (
        ["evaluate.control=[good]"],
        "evaluate.control = [good]: model.name_or_path",
        "has no control.json: it was not tuned with a control",
    ),
    "an evaluation behind one control twice": (
        ["evaluate.control=[good, good]"], "control = [good, good]: one of them occurs twice"
    ),
    "an evaluation behind a third control": (["evaluate.control=[fair]"], "fair", "good"),
    "a control with the leaderboard": (_leaderboard, "ask without a control; leave leaderboard ou"),
    "a control with vllm": (_vllm, "'vllm' draws without a control; take engine=transformers"),
    "a control beyond the model's positions": (
        _no_place, "with 1 of the control are 49 tokens: the model reads at most 48 tokens"
    ),
}  # fmt: skip
