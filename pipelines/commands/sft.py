"""sft: a starting model from chosen responses, through the same prepare and train stages.

With sft.control it is tuned on rejected responses too, each behind its text. Two runs do that
where both stages are asked for: RUN/sft/soft trains the soft tokens, and RUN/sft the model that it
leaves. They share the pairs, and each is resumed as any training is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from pipelines.commands.plan import planned, run_plan
from pipelines.commands.run import check_before, run_stages
from pipelines.commands.stages import STAGES
from pipelines.errors import UserError
from pipelines.pairs import PREPARE
from pipelines.recipe import (
    MANIFEST,
    NoMask,
    Recipe,
    Run,
    RunPaths,
    Say,
    SFTConfig,
    SFTSection,
    load_recipe,
)
from pipelines.train import TRAIN

_STAGES = (PREPARE, TRAIN)
_SOFT = "soft"  # below the run, where the control's soft tokens are trained


def load_sft(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The supervised form of a recipe.

    Raises: UserError as `load_recipe`, and for an override of `train` in whose place section sft
        stands: it would change nothing.
    """
    recipe = load_recipe(name, overrides)
    if recipe.objective.name != "sft":
        for item in overrides:
            _refuse_unread(item)
    return sft_recipe(recipe)


def _refuse_unread(item: str) -> None:
    key, _, text = item.partition("=")
    section, _, rest = key.partition(".")
    if section != "train":
        return
    named = yaml.safe_load(text) if not rest else {rest: text}
    for field in SFTSection.model_fields:
        if isinstance(named, dict) and field in named:
            raise UserError(
                f"train.{field} is the preference run's: `sparsepo sft` takes sft.{field}"
            )


def sft_recipe(recipe: Recipe) -> Recipe:
    """The supervised form of a recipe.

    A preference recipe's goes to RUN/sft, so that both runs can stand together. Adapters are merged
    into the weights: the preference run trains adapters of its own on them.
    """
    if recipe.objective.name == "sft":
        return recipe
    own = recipe.sft.model_dump(exclude={"control"})
    if own["global_batch_size"] is None:
        del own["global_batch_size"]
    if recipe.train.lora is not None:
        own["lora"] = recipe.train.lora.model_copy(update={"save": "merged"})
    changed: dict[str, Any] = {
        "objective": SFTConfig(),
        "mask": NoMask(),
        "train": recipe.train.model_copy(update=own),
        "sft": SFTSection(control=recipe.sft.control),
        "evaluate": recipe.evaluate.model_copy(update={"model": None, "name": None, "control": ()}),
        "run_dir": f"{recipe.run_dir.rstrip('/')}/sft",
        "paths": recipe.paths.model_copy(update={"pairs": None, "reference": None}),
    }
    return recipe.model_copy(update=changed)


def run_sft(recipe: Recipe, say: Say, quiet: bool = False) -> str:
    """Fine-tune on chosen responses; returns the directory of the model."""
    sft = sft_recipe(recipe)
    parts = in_turn(sft)
    if len(parts) > 1 and not RunPaths.of(parts[0]).train.exists(MANIFEST):
        _check(parts)  # of the second one now, and not after the first one's training
    for part in parts:
        run_stages(part, _STAGES, say, quiet)
    return RunPaths.of(sft).model


def plan_sft(recipe: Recipe, tflops: float | None, name: str) -> dict[str, Any]:
    """What `run_plan` says of the supervised run; of two, their sum, with the soft tokens' training
    under "soft".
    """
    sft = sft_recipe(recipe)
    first, *rest = (run_plan(part, tflops, _STAGES, name) for part in _as_checked(in_turn(sft)))
    for then in rest:
        own, total = then[TRAIN.title], then["total"]
        sums = {
            key: first["total"][key] + (0 if own.get("done") else own[key])
            for key in ("seconds", "disk_bytes")
        }
        first = {
            PREPARE.title: first[PREPARE.title],
            _SOFT: first[TRAIN.title],
            TRAIN.title: own,
            "total": {**total, **sums, "run_dir": sft.run_dir},
        }
    return first


def planned_sft(found: Mapping[str, Any]) -> dict[str, str]:
    """As `planned`, of what `plan_sft` has found."""
    told = planned(dict(found))
    if _SOFT not in found:
        return told
    data = {PREPARE.title: told.pop(PREPARE.title)}
    return data | {_SOFT: f"{TRAIN.planned(found[_SOFT])}: soft tokens alone"} | told


def _as_checked(parts: list[Recipe]) -> list[Recipe]:
    """The runs as they can be looked at before the first one has left a model: the second one has
    its start then, with words in the place of soft tokens, which are as many.
    """
    if len(parts) == 1 or RunPaths.of(parts[0]).train.exists(MANIFEST):
        return parts
    soft, then = parts
    elsewhere = then.paths.model_copy(update={"pairs": None})
    run_dir = f"{soft.run_dir}/then"  # nothing is there, and nothing will be
    return [
        soft,
        then.model_copy(update={"model": soft.model, "paths": elsewhere, "run_dir": run_dir}),
    ]


def _check(parts: list[Recipe]) -> None:
    for part in _as_checked(parts):
        for asked in _STAGES:
            asked.check_recipe(part)
        settled = part
        for stage in STAGES:
            settled = stage.settle(settled)
        check_before(Run(settled), _STAGES, is_settled=False)


def in_turn(sft: Recipe) -> list[Recipe]:
    """The runs of a supervised recipe, in order: one, or first that of its soft tokens."""
    control = sft.control()
    if control is None or len(control.stages) == 1:
        return [sft]
    paths = RunPaths.of(sft)
    shared = sft.paths.model_copy(update={"pairs": paths.pairs.root})
    changed: dict[str, Any] = {
        "run_dir": f"{sft.run_dir.rstrip('/')}/{_SOFT}",
        "paths": shared,
        "sft": _with_stages(sft, "soft"),
        "train": sft.train.model_copy(
            update={
                "learning_rate": control.soft_learning_rate,
                "epochs": control.soft_epochs,
                "max_steps": control.soft_max_steps,
                "lora": None,
            }
        ),
    }
    soft = sft.model_copy(update=changed)
    model = sft.model
    started = model.model_copy(
        update={
            "name_or_path": RunPaths.of(soft).model,
            "tokenizer": model.tokenizer or model.name_or_path,
        }
    )
    then = {"model": started, "paths": shared, "sft": _with_stages(sft, "model")}
    return [soft, sft.model_copy(update=then)]


def _with_stages(sft: Recipe, *stages: str) -> SFTSection:
    control = sft.sft.control
    assert control is not None
    return SFTSection(control=control.model_copy(update={"stages": stages}))
