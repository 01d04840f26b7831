"""What a model card says to its readers' programs: how to load model and masks, what to cite."""

import inspect
import re
from pprint import pformat

from pipelines.recipe import ActivationMaskConfig, LearnedMaskConfig, Recipe, public_name
from sparsepo.masks import MASKS
from sparsepo.objectives import OBJECTIVES

_SOURCE = re.compile(r"Source: (?!ours).*?arXiv:(\d{4}\.\d{5})")
_PAPER = """@inproceedings{christopoulou-etal-2025-sparsepo,
  title = {{SparsePO}: Controlling Preference Alignment of {LLM}s via Sparse Token Masks},
  author = {Christopoulou, Fenia and Cardenas, Ronald and Lampouras, Gerasimos and Bou Ammar, \
Haitham and Wang, Jun},
  booktitle = {Findings of the Association for Computational Linguistics: EMNLP 2025},
  pages = {25477--25503},
  year = {2025},
  url = {https://arxiv.org/abs/2410.05102}
}
"""

_LOADERS = {
    True: ("peft", "AutoPeftModelForCausalLM"),
    False: ("transformers", "AutoModelForCausalLM"),
}


def model_text(repository: str | None, base: str, is_adapter: bool, has_code: bool) -> str:
    """How the model is loaded.

    Args:
        repository: its name on the Hub; a reader of a directory is in it. base: public name.
            has_code: whether it brings code of its own.
    """
    library, class_ = _LOADERS[is_adapter]
    imported = (
        f"from {library} import {class_}\nfrom transformers import AutoTokenizer"
        if is_adapter
        else f"from {library} import {class_}, AutoTokenizer"
    )
    given = f'"{repository or "."}"' + ", trust_remote_code=True" * has_code
    note = f"The weights are an adapter of `{base}`, which peft loads with it.\n\n" * is_adapter
    note += "It brings Python code of its own: read that first.\n\n" * has_code
    return (
        f"{note}```python\n{imported}\n\nmodel = {class_}.from_pretrained({given})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({given})\n```\n"
    )


def masks_text(recipe: Recipe, folder: str, stored: tuple[str, ...]) -> str:
    """How the run's token masks weigh a response; nothing where tokens are not weighed.

    Args:
        folder: of the masks, seen from the card. stored: features of the mask that lie there.
    """
    mask = recipe.mask
    if mask.kind == "none":
        return ""
    reference = public_name(recipe.model.reference or recipe.model.name_or_path)
    options = ""
    if isinstance(mask, LearnedMaskConfig):
        imported = "from sparsepo import LearnedMasks, token_weights"
        made = f'masks = LearnedMasks.from_pretrained("{folder}")'
    else:
        imported = "from sparsepo import token_weights\nfrom sparsepo.masks import MASKS"
        made = f'masks = MASKS["{mask.kind}"](**{pformat(mask.options(), sort_dicts=False)})'
    if isinstance(mask, ActivationMaskConfig):
        options = f"\n    hooks={mask.hooks!r}, mapping={mask.mapping!r},"
    return (
        f"## Token masks\n\nA mask (`{mask.kind}`) weighed every token of a response in training. "
        f"It is not needed to use the model. The run's reference is `{reference}`.\n\n"
        f"```python\n{imported}\nfrom transformers import AutoModelForCausalLM\n\n{made}\n"
        f'reference = AutoModelForCausalLM.from_pretrained("{reference}")\n'
        'prompt, response = "What is asked", " and what is answered"\n'
        "weights = token_weights(\n    model, masks, prompt, response, tokenizer=tokenizer, "
        f"reference=reference,{options}\n)\nprint(weights.text())\n```\n"
    ) + (_stored_text(folder, stored) if stored else "")


def _stored_text(folder: str, stored: tuple[str, ...]) -> str:
    names = ", ".join(f"`{name}`" for name in stored)
    read = ", ".join(f'"{name}": file.get_tensor(f"{{pair}}/{name}")' for name in stored)
    return (
        f"\nWhat it read of the run's own pairs ({names}) lies in `{folder}`: a value per token, "
        "first of the chosen response, then of the rejected one. A pair is called by its `pair_id` "
        "of the prepared pairs; none of its text is here.\n\n"
        "```python\nfrom safetensors import safe_open\n\n"
        f'with safe_open("{folder}/train-00000.safetensors", "pt") as file:\n'
        f'    pair = next(iter(file.keys())).partition("/")[0]\n    features = {{{read}}}\n```\n\n'
        "`token_weights(model, masks, prompt_ids, chosen_ids, other=rejected_ids, "
        "features=features)` takes them.\n"
    )


def citation(recipe: Recipe) -> str:
    """The paper that the program is of, and where the objective and the mask come from."""
    named: list[tuple[str, str, type]] = [
        ("objective", recipe.objective.name, OBJECTIVES[recipe.objective.name].load()),
        ("mask", recipe.mask.kind, MASKS[recipe.mask.kind].load()),
    ]
    lines = [
        f"- {what} `{name}`: arXiv:{found[1]}\n"
        for what, name, class_ in named
        if (found := _SOURCE.search(_documented(class_)))
    ]
    return f"```bibtex\n{_PAPER}```\n\n{''.join(lines)}"


def _documented(class_: type) -> str:
    """What a class and its module say of themselves: their sources among it."""
    return f"{class_.__doc__}\n{inspect.getmodule(class_).__doc__}"


CONTROL = """## Control

The model was tuned on wanted and unwanted responses, each behind a string of its own in front of
the prompt (arXiv:2310.00819). `control.json` has both: the joined `names` of `good`, or its `text`
where there are none. Put it in front of a prompt, after BOS, for responses of the wanted kind.
"""
