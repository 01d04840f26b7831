"""The training loop: layouts, accumulation, adapters, checkpoints, early stop; one rank in this
process.
"""

import json
import math
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from runs import CPU, MakeRecipe, trainer_of
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pipelines.commands.plan import run_plan
from pipelines.commands.run import run_stages
from pipelines.commands.stages import PREPARE
from pipelines.errors import Diverged, UserError
from pipelines.models.device import Placement
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.storage.store import RunStore
from pipelines.train.checkpoint_contents import read_state
from pipelines.train.metrics import read_metrics
from pipelines.train.micro_batches import MicroBatchLoader
from pipelines.train.steps import completed_steps
from pipelines.train.throughput import Throughput
from pipelines.train.trainer import Trainer
from sparsepo.batching.batch_layout import BatchLayout
from sparsepo.batching.cutting import balanced_batches

pytestmark = pytest.mark.usefixtures("ray_cluster")
# The reference runs beside training: at step 1 both are the same model in the same layout.
SPARSE = (
    "objective.name=sparsepo", "mask.kind=learned", "mask.architecture=simple_last",
    "mask.sharing=independent", "mask.adam_eps=1e-4",
    "train.adam_eps=1e-4", "reference.mode=online", "train.epochs=9", "data.test_fraction=0",
    "evaluate.split=validation",
)  # fmt: skip


@pytest.fixture(scope="module")
def paths(
    recipe_in: MakeRecipe, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> dict[str, str]:
    """Pairs that the module's runs share: a tenth of them for validation."""
    root = tmp_path_factory.mktemp("pairs")
    found = {"pairs": f"{root}/pairs", "reference": f"{root}/reference"}
    run_stages(
        recipe_in(
            root / "run", "data.test_fraction=0", "data.validation_fraction=0.1", paths=found
        ),
        (PREPARE,),
        lambda line: None,
    )
    return found


@pytest.fixture
def make(recipe_in: MakeRecipe, paths: dict[str, str], tmp_path: Path) -> MakeRecipe:
    def build(name: str, *overrides: str) -> Recipe:
        return recipe_in(
            tmp_path / name, *SPARSE, "data.validation_fraction=0.1", *overrides, paths=paths
        )

    return build


def trained(recipe: Recipe, stop_at: int | None = None) -> Trainer:
    """The whole run, or one that dies once the checkpoint of step `stop_at` is committed."""
    trainer = trainer_of(recipe)

    def report(metrics: dict[str, Any]) -> None:
        if metrics["step"] == stop_at:
            assert trainer.checkpoints.failure(wait=True) is None
            raise InterruptedError

    if stop_at is None:
        trainer.run(report)
    else:
        with pytest.raises(InterruptedError):
            trainer.run(report)
    trainer.close()
    return trainer


def log(recipe: Recipe, kind: str | None = None) -> list[dict[str, Any]]:
    return [r for r in read_metrics(RunStore(f"{recipe.run_dir}/train")) if r.get("kind") == kind]


def curve(recipe: Recipe) -> torch.Tensor:
    """Loss, gradient norm and KL of every step."""
    return torch.tensor(
        [[r["loss"], r["grad_norm"], r["kl/reference_policy"]] for r in log(recipe)],
        dtype=torch.float64,
    )


def distance(one: torch.Tensor, two: torch.Tensor) -> float:
    """The largest difference, relative to the largest value of its column."""
    return float(((one - two).abs().amax(0) / one.abs().amax(0)).max())


def model_of(recipe: Recipe) -> dict[str, torch.Tensor]:
    return load_file(f"{recipe.run_dir}/train/model/model.safetensors")


PATHS = {
    "shared": (),
    "padded": ("train.layout=padded",),
    "one pair each": ("train.micro_batch_tokens=1",),
    "all at once": ("train.micro_batch_tokens=100000",),
    "checkpointed": ("train.gradient_checkpointing=true",),
}


@pytest.mark.slow
def test_layouts_accumulation_and_recomputation_change_nothing_but_rounding(
    make: MakeRecipe,
) -> None:
    """Five ways through the same 4 steps, and packed rows under a dense mask; another seed is
    the negative control.
    """
    curves = {}
    for name, options in PATHS.items():
        recipe = make(name.replace(" ", "-"), "train.max_steps=4", *options)
        trained(recipe)
        curves[name] = curve(recipe)
    packed = make("packed", "train.max_steps=4")
    trainer = trainer_of(packed)
    assert trainer.layout.kind == "shared"
    trainer.loader.layout = BatchLayout("packed", 700, is_balanced=True)
    widths = [
        batch.inputs.input_ids.shape
        for batch in trainer.loader.stream(trainer.loader.cuts("train", range(16)))
    ]
    assert all(rows == 1 and width % 128 == 0 for rows, width in widths)
    forms = [AttentionInterface()["flex_attention"]]
    trainer.run(lambda metrics: forms.append(AttentionInterface()["flex_attention"]))
    assert len(forms) > 1 and forms[0] not in forms[1:], "passes without gradients have no form"
    curves["packed"] = curve(packed)
    for name, found in curves.items():
        assert distance(curves["shared"], found) < 1e-5, name
        assert float(found[0, 0]) == pytest.approx(math.log(2), abs=1e-5), name
    assert distance(curves["shared"], curves["checkpointed"]) < 1e-6
    other = make("seed", "train.max_steps=4", "train.seed=1")
    trained(other)
    assert distance(curves["shared"], curve(other)) > 1e-3


@pytest.mark.slow
def test_compiled_layers_change_nothing_but_rounding_and_are_compiled_once(
    make: MakeRecipe, another_machine: Callable[[], AbstractContextManager[None]]
) -> None:
    """Rows of several widths, and validations without gradients: two graphs, three parts.

    Every compiled run starts from empty caches of the machine, as on another host. What the first
    has kept beside the pairs is found by the rest of its run and by a trial; the last finds it
    signed by somebody else.
    """
    plain = make("plain", "train.max_steps=3")
    trained(plain)

    def compiled(name: str, *options: str, stop_at: int | None = None) -> tuple[float, float]:
        recipe = make(name, "train.max_steps=3", "train.compile=true", *options)
        torch._dynamo.reset()
        with another_machine():
            trainer = trained(recipe, stop_at)
        if not options and stop_at is None:
            assert distance(curve(plain), curve(recipe)) < 1e-5
        counts, logged = trainer.compilation.counts(), log(recipe)[-1]
        assert counts["compilations"] == 2 >= logged["compilations"] > 0
        assert logged["compile_seconds"] > 0
        return counts["compiled_parts"], counts["compiled_parts_found"]

    assert compiled("compiled", stop_at=2) == (3, 0)
    assert compiled("compiled") == (0, 3)
    assert compiled("trial", "train.learning_rate=2e-3") == (0, 3)
    store = Run(make("trial")).paths.compiled
    (name,) = store.names()
    data = store.read_bytes(name)
    store.write_bytes(name, bytes([data[0] ^ 1]) + data[1:])
    assert compiled("signed by another") == (3, 0)


def test_low_precision_starts_at_ln_2(make: MakeRecipe) -> None:
    for precision in ("mixed", "bfloat16"):
        recipe = make(
            precision,
            "train.max_steps=2",
            f"train.precision={precision}",
            "reference.dtype=bfloat16",
        )
        trained(recipe)
        assert log(recipe)[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
        dtypes = {tensor.dtype for tensor in model_of(recipe).values()}
        assert dtypes == {torch.bfloat16 if precision == "bfloat16" else torch.float32}


@pytest.mark.slow
def test_adapters_are_trained_saved_and_resumed_with_their_masks(
    make: MakeRecipe, model_dir: Path
) -> None:
    """The base stays, adapters and masks move; adapter on its base = merged model; a stopped run
    ends with the same bits.
    """
    options = ("train.lora.rank=4", "train.max_steps=4", "train.learning_rate=1e-2")
    whole, stopped = make("whole", *options), make("stopped", *options)
    trainer = trained(whole)
    trained(stopped, stop_at=2)
    assert trained(stopped).step == 4
    folder = Path(whole.run_dir) / "train" / "model"
    adapters = load_file(folder / "adapter_model.safetensors")
    assert adapters and all("lora_" in name for name in adapters)
    again = load_file(Path(stopped.run_dir) / "train" / "model" / "adapter_model.safetensors")
    assert all(torch.equal(adapters[name], again[name]) for name in adapters)
    assert float(log(whole)[0]["loss"]) == pytest.approx(math.log(2), abs=1e-5)
    assert log(whole)[-1]["kl/reference_policy"] > 1e-3 > log(whole)[0]["kl/reference_policy"]
    fresh = {
        name: p.clone()
        for name, p in trainer_of(make("fresh", *options)).model.masks.named_parameters()
    }
    assert any(
        not torch.equal(p, fresh[name])
        for name, p in trainer.model.masks.named_parameters()
        if p.requires_grad
    )
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    for name, p in trainer.model.causal_lm.get_base_model().named_parameters():
        if "lora_" not in name:
            assert torch.equal(p, dict(base.named_parameters())[name.replace("base_layer.", "")]), (
                name
            )
    ids = AutoTokenizer.from_pretrained(folder)("The plot was", return_tensors="pt").input_ids
    merged_run = make("merged", *options, "train.lora.save=merged")
    trained(merged_run)
    merged = AutoModelForCausalLM.from_pretrained(
        f"{merged_run.run_dir}/train/model", dtype=torch.float32
    )
    adapted = PeftModel.from_pretrained(base, folder)
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_flipped_bit_sends_training_back_to_the_older_checkpoint(make: MakeRecipe) -> None:
    """Newest of two damaged: the run ends with the bits of one that was never stopped, and says
    what it did.
    """
    options = ("train.max_steps=5", "train.checkpoint_every=2")
    whole, stopped = make("whole", *options), make("stopped", *options)
    trained(whole)
    trained(stopped, stop_at=4)
    (shard,) = (Path(stopped.run_dir) / "train" / "checkpoints" / "step-00000004").glob("shard-*")
    raw = bytearray(shard.read_bytes())
    raw[-100] ^= 1
    shard.write_bytes(raw)
    trainer = trainer_of(stopped)
    assert trainer.step == 2
    trainer.run(lambda metrics: None)
    trainer.close()
    assert all(
        torch.equal(tensor, model_of(stopped)[name]) for name, tensor in model_of(whole).items()
    )
    assert completed_steps(trainer.store) == [4, 5]
    (warning,) = (record for record in log(stopped, "warning") if record["step"] == 2)
    (line,) = (message for message in warning["messages"] if "checksum" in message)
    assert line.endswith(
        f"{shard.name} is damaged: its checksum does not fit; training goes on from step 2 "
        "instead of step 4"
    )


def test_adapters_are_not_resumed_on_another_base(
    make: MakeRecipe, model_dir: Path, tmp_path: Path
) -> None:
    """A checkpoint holds adapters, masks and their moments; the base stays where it is, and its
    fingerprint is compared.
    """
    base = tmp_path / "base"
    shutil.copytree(model_dir, base)
    options = ("train.lora.rank=4", "train.max_steps=4", f"model.name_or_path={base}")
    recipe = make("run", *options)
    trained(recipe, stop_at=2)
    (shard,) = (Path(recipe.run_dir) / "train" / "checkpoints" / "step-00000002").glob("shard-*")
    names = {name.split("/", 1)[1] for name in load_file(shard)}
    assert all("lora_" in name or name.startswith("masks.") for name in names)
    assert any("lora_" in name for name in names) and any(
        name.startswith("masks.") for name in names
    )
    assert shard.stat().st_size < (base / "model.safetensors").stat().st_size / 4
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] += 0.5
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError,
        match=r"step-00000002 holds adapters of a base with fingerprint [0-9a-f]{32}, the base "
        r"here has",
    ):
        trainer_of(recipe)


def test_adapters_that_cannot_be_are_one_line(make: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match="train.lora.target_modules: the model has no module 'nowhere'; linear layers are "
        "down_proj, gate_proj",
    ):
        trainer_of(make("wrong", "train.lora.rank=4", "train.lora.target_modules=[nowhere]"))
    first = make("first", "train.lora.rank=4", "train.max_steps=1")
    trained(first)
    with pytest.raises(UserError, match="is an adapter itself; use train.lora.save=merged"):
        trainer_of(
            make("second", "train.lora.rank=4", f"model.name_or_path={first.run_dir}/train/model")
        )


@pytest.mark.slow
def test_training_stops_early_and_publishes_the_best(make: MakeRecipe) -> None:
    """A learning rate that ruins the model: validation worsens, patience ends the run, and the
    best checkpoint is the model.
    """
    options = (
        "train.learning_rate=0.02", "train.schedule=constant", "train.warmup_fraction=0",
        "train.max_steps=30", "train.validate_every=2",
        "train.checkpoint_every=1000", "train.selection.patience=3", "train.selection.publish=best",
        "train.selection.keep_best=1",
    )  # fmt: skip
    recipe, stopped = make("best", *options), make("stopped", *options)
    trained(recipe)
    values = {r["step"]: r["validation/loss"] for r in log(recipe, "validation") if r["step"] > 0}
    best = min(values, key=lambda step: values[step])
    last = max(values)
    assert best == last - 6 and last < 30, values
    store = RunStore(f"{recipe.run_dir}/train")
    assert best in completed_steps(store) and read_state(store, last)["selection"] == {
        "best": values[best],
        "best_step": best,
        "stale": 3,
    }
    folder = Path(recipe.run_dir) / "train" / "checkpoints" / f"step-{best:08d}"
    (file,) = folder.glob("shard-*")
    saved = {
        name.removeprefix("weights/causal_lm."): t
        for name, t in load_file(file).items()
        if name.startswith("weights/causal_lm.")
    }
    published = model_of(recipe)
    assert all(torch.equal(published[name], saved[name]) for name in published)
    trained(stopped, stop_at=best)
    assert trained(stopped).step == last, "patience is counted on from where the checkpoint was"


def test_a_metric_that_validations_lack_is_named(make: MakeRecipe) -> None:
    with pytest.raises(
        UserError,
        match=r"train.selection.metric = 'validation/reward': validations report validation/.*loss",
    ):
        trained(
            make(
                "none",
                "train.selection.keep_best=1",
                "train.selection.metric=validation/reward",
                "train.max_steps=1",
                "train.validate_every=1",
            )
        )
    with pytest.raises(UserError, match="set data.validation_fraction"):
        make(
            "no-data",
            "train.selection.keep_best=1",
            "train.validate_every=1",
            "data.validation_fraction=0",
        )
    with pytest.raises(
        UserError, match=r"train: selection chooses between validations: set train.validate_every"
    ):
        make("never", "train.selection.patience=2")
    with pytest.raises(UserError, match=r"train: min_workers = 3: must be at most num_workers = 2"):
        make("many", "train.min_workers=3", "train.num_workers=2")


@pytest.mark.slow
def test_a_machine_that_will_be_taken_away_leaves_a_checkpoint(make: MakeRecipe) -> None:
    """Told of before step 3: all ranks know it one step later, when they read that step."""
    recipe = make("run", "train.max_steps=5", "train.checkpoint_every=1000")
    trainer = trainer_of(recipe)
    seen: list[int] = []
    trainer.run(
        lambda metrics: seen.append(metrics["step"]), is_preempted=lambda: trainer.step == 2
    )
    assert seen == [4, 5]
    assert completed_steps(RunStore(f"{recipe.run_dir}/train")) == [4, 5]


TIMES = ("step_seconds", "elapsed_seconds", "memory_gib", "pairs_per_second", "tokens_per_second")


@pytest.mark.slow
@pytest.mark.parametrize("masks", [(), ("mask.target_sparsity=0.4",)])
def test_numbers_read_a_step_late_are_those_read_at_once(
    make: MakeRecipe, masks: tuple[str, ...]
) -> None:
    """Records, with those around a validation and a checkpoint, and weights: the same bits.

    A mask that is held at a sparsity needs each step's numbers before the next one.
    """
    options = ("train.max_steps=6", "train.validate_every=3", "train.checkpoint_every=4", *masks)
    late, at_once = (trainer_of(make(name, *options)) for name in ("late", "at-once"))
    unread: list[int] = []
    read = late._read_step

    def noted() -> Any:
        unread.append(len(late._launched))
        return read()

    late._read_step = noted  # type: ignore[method-assign]
    late.run(lambda metrics: None)
    assert max(unread) == (1 if masks else 2)
    records = [r for r in read_metrics(late.store) if "kind" not in r]
    expected = [at_once.optimizer_step()[0] for _ in range(6)]
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
    for found, wanted in zip(records, expected, strict=True):
        assert list(found) == list(wanted)
        assert all(found[key] == wanted[key] for key in found if key not in TIMES)
    for found, wanted in zip(late.model.parameters(), at_once.model.parameters(), strict=True):
        assert torch.equal(found, wanted)
    late.close()
    at_once.close()


@pytest.mark.slow
def test_a_step_lasts_as_long_whenever_its_numbers_are_read(make: MakeRecipe) -> None:
    """Before a checkpoint two steps are read one after the other; each still has its own time."""
    trainer = trainer_of(make("run", "train.max_steps=4", "train.checkpoint_every=2"))
    score = trainer._score_batch

    def slow(*given: Any, **more: Any) -> Any:
        time.sleep(0.2)
        return score(*given, **more)

    trainer._score_batch = slow  # type: ignore[method-assign]
    trainer.run(lambda metrics: None)
    records = [r for r in read_metrics(trainer.store) if "kind" not in r]
    assert len(records) == 4 and min(r["step_seconds"] for r in records) >= 0.2
    trainer.close()


def test_a_step_that_diverges_is_named_and_leaves_no_checkpoint(make: MakeRecipe) -> None:
    """The loss of step 3 is no number, step 4 is under way when it is read; the last good
    checkpoint is that of step 2.
    """
    trainer = trainer_of(make("run", "train.max_steps=6", "train.checkpoint_every=2"))
    launch = trainer._launch_step

    def broken(flag: bool) -> None:
        if trainer.step == 2:
            next(trainer.model.causal_lm.parameters()).data.fill_(math.nan)
        launch(flag)

    trainer._launch_step = broken  # type: ignore[method-assign]
    with pytest.raises(Diverged, match="not finite at step 3; .*last good checkpoint: step 2"):
        trainer.run(lambda metrics: None)
    assert completed_steps(trainer.store) == [2]
    trainer.close()


def test_balanced_batches_hold_every_row_once_within_the_budget() -> None:
    widths = [70, 300, 20, 20, 90, 41, 41, 41, 200, 8]
    batches = balanced_batches(range(10), widths, 256)
    assert sorted(row for batch in batches for row in batch) == list(range(10))
    used = [sum(widths[row] for row in batch) for batch in batches]
    assert used[0] == 300 and max(used[1:]) <= 256
    assert len(batches) == 1 + 3, "531 tokens fit into three batches of 256"
    assert max(used[1:]) - min(used[1:]) < 64
    assert balanced_batches([], [], 10) == []


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_a_batch_and_are_kept_in_step(make: MakeRecipe, world: int) -> None:
    """Every pair is in one rank's micro-batches; fillers make their numbers equal, even where a
    rank has no pair at all.
    """
    trainer = trainer_of(make("run", "train.max_steps=1", "train.micro_batch_tokens=60"))
    for rows in ([0, 1, 2, 3, 4, 5, 6], [3]):
        loaders = [
            MicroBatchLoader(
                trainer.pairs,
                trainer.source,
                trainer.layout,
                Placement(CPU, torch.float32, torch.float32, rank, world),
                True,
                True,
            )
            for rank in range(world)
        ]
        found = [loader.cuts("train", rows) for loader in loaders]
        assert len({len(cuts) for cuts in found}) == 1
        real = sorted(
            row for cuts in found for cut in cuts if not cut.is_filler for row in cut.rows
        )
        assert real == sorted(rows)
        assert any(cut.is_filler for cuts in found for cut in cuts) or len(rows) > 1


def test_reading_ahead_gives_what_reading_gives(make: MakeRecipe) -> None:
    """Two micro-batches beyond the one in use are in work, of the next batch where this one
    ends; another batch may come between.
    """
    loader = trainer_of(make("run", "train.max_steps=1", "train.micro_batch_tokens=60")).loader
    first, second = loader.cuts("train", [5, 9, 1, 7]), loader.cuts("train", [2, 3])
    plain = [list(loader.stream(cuts)) for cuts in (first, second)]
    assert len(first) > 2
    ahead = []
    for batch in loader.stream(first, second):
        assert len(loader._ahead) <= 2
        ahead.append(batch)
    assert list(loader._ahead) == second[:2]
    between = list(loader.stream(loader.cuts("validation", [0, 1])))
    assert [row for batch in between for row in batch.cut.rows] == [0, 1] or len(between) == 2
    ahead += loader.stream(second)
    assert not loader._ahead
    for found, expected in zip(ahead, plain[0] + plain[1], strict=True):
        assert found.cut == expected.cut
        assert torch.equal(found.inputs.input_ids, expected.inputs.input_ids)


def test_throughput_by_hand() -> None:
    """Two pairs of 10 and 20 tokens with the prompt once, 14 and 28 counted twice, in 2 seconds: 21
    tokens/s.

    A model of 1000 parameters, 2 layers of 8: 6 * 1000 * 30 FLOP of weights and 6 * 2 layers * 8 *
    (100 + 400) of attention.
    """
    config = AutoConfig.for_model(
        "llama", num_hidden_layers=2, hidden_size=8, num_attention_heads=2
    )
    rates = Throughput(config, 1000, is_adapted=False, frozen_parameters=0, device=CPU, world=1)
    record = rates.record([14, 28], [10, 20], 2.0)
    assert record["tokens_per_second"] == 21
    assert record["pairs_per_second"] == 1
    assert "mfu" not in record, "no peak is known for a CPU"
    rates._peak = 1e6
    assert rates.record([14, 28], [10, 20], 2.0)["mfu"] == pytest.approx(
        (6 * 1000 * 30 + 6 * 2 * 8 * 500) / 2 / 1e6
    )
    adapted = Throughput(config, 1000, is_adapted=True, frozen_parameters=1000, device=CPU, world=1)
    adapted._peak = 1e6
    assert adapted.record([14, 28], [10, 20], 2.0)["mfu"] == pytest.approx(
        (6 * 1000 * 30 + 4 * 2 * 8 * 500) / 2 / 1e6
    )


def test_plan_counts_what_a_worker_holds(make: MakeRecipe) -> None:
    """16 bytes per trained float32 parameter (weight, gradient, two moments), 8 in bfloat16; a
    frozen base 4; FSDP divides the base.
    """
    plain = trainer_of(make("plain", "train.max_steps=1"))
    policy = sum(p.numel() for p in plain.model.causal_lm.parameters())
    masks = sum(p.numel() for p in plain.model.masks.parameters() if p.requires_grad)
    adapted = trainer_of(make("adapted", "train.lora.rank=4"))
    adapters = sum(p.numel() for p in adapted.model.causal_lm.parameters() if p.requires_grad)

    def state_bytes(name: str, *options: str) -> float:
        found = run_plan(make(name, *options))["train"]
        assert (found["mask_parameters"], found["adapter_parameters"]) == (
            masks,
            adapters if "train.lora.rank=4" in options else 0,
        )
        assert found["memory_gib"] > found["state_gib"]
        return float(found["state_gib"] * 2**30)

    assert state_bytes("a") == pytest.approx(16 * policy + 16 * masks)
    assert state_bytes("b", "train.precision=bfloat16") == pytest.approx(8 * policy + 16 * masks)
    assert state_bytes("c", "train.strategy=fsdp", "train.num_workers=2") == pytest.approx(
        8 * policy + 16 * masks
    )
    assert state_bytes("d", "train.lora.rank=4") == pytest.approx(
        4 * policy + 16 * adapters + 16 * masks
    )
    assert state_bytes("e", "train.lora.rank=4", "train.precision=mixed") == pytest.approx(
        2 * policy + 16 * adapters + 16 * masks
    )


def test_the_published_folder_is_whole(make: MakeRecipe) -> None:
    recipe = make("run", "train.max_steps=1")
    trained(recipe)
    names = {p.name for p in (Path(recipe.run_dir) / "train" / "model").iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    } <= names
    (state,) = (Path(recipe.run_dir) / "train" / "checkpoints").glob("step-*/state.json")
    assert json.loads(state.read_text())["world"] == 1
