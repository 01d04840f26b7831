"""TokenDPOTrainer: the pipeline's losses in TRL's loop; masks that are trained, saved, resumed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from checkout import ROOT
from datasets import Dataset
from ranks import Ranks
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparsepo import (
    OBJECTIVES,
    LearnedMasks,
    PolicyModel,
    RandomMask,
    ReferenceModel,
    SparsePO,
    TokenizedPair,
    UniformMask,
    padded_layout,
)
from sparsepo.discriminator import TokenDiscriminator
from sparsepo.features import FEATURES
from sparsepo.masks import MASKS
from sparsepo.objectives.dpo_shift import DPOShift
from sparsepo.records import Features

trl = pytest.importorskip("trl")

from sparsepo.integrations.trl import TokenDPOTrainer  # noqa: E402
from sparsepo.integrations.trl_batches import in_canonical_order, token_batch  # noqa: E402

Make = Callable[..., TokenDPOTrainer]


def moved(model_dir: Path, seed: int) -> Any:
    """The tiny model, a little off: policy and reference differ."""
    torch.manual_seed(seed)
    loaded = AutoModelForCausalLM.from_pretrained(model_dir)
    for parameter in loaded.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return loaded


@pytest.fixture
def make(rows: list[dict[str, str]], model_dir: Path, tmp_path: Path) -> Make:
    """A trainer on the tiny model: make("sparsepo", mask=..., arguments={...})."""

    def build(objective: Any, arguments: dict[str, Any] | None = None, **given: Any) -> Any:
        data = given.pop("data", rows[:12])
        settings = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 4,
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 1,
            **(arguments or {}),
        }
        return TokenDPOTrainer(
            **{
                "model": moved(model_dir, 0),
                "ref_model": moved(model_dir, 1),
                "processing_class": AutoTokenizer.from_pretrained(model_dir),
                "train_dataset": Dataset.from_list(data),
                **given,
            },
            objective=objective,
            args=trl.DPOConfig(**settings),
        )

    return build


CASES: list[tuple[str, str | None, dict[str, Any]]] = [
    ("dpo", None, {}),
    ("ipo", None, {}),
    ("simpo", None, {}),
    ("tdpo2", None, {}),
    ("mapo", None, {"keep_fraction": 0.5}),
    ("mapo", "random", {"seed": 3}),
    ("sparsepo", None, {}),
    ("sparsepo", "learned", {"architecture": "simple_last", "weights": "released"}),
    ("weighted", "confidence", {}),
]


@pytest.mark.parametrize(("objective", "mask", "options"), [c for c in CASES if c[0] in OBJECTIVES])
def test_losses_and_gradients_are_the_pipelines(
    objective: str, mask: str | None, options: dict[str, Any], make: Make, model_dir: Path
) -> None:
    """The same token ids through our own layout, reference and policy: loss, gradient, rewards."""
    torch.manual_seed(5)
    trainer = make(objective, mask=mask, mask_options=options)
    if isinstance(trainer.masks, LearnedMasks):
        with torch.no_grad():  # centred masks begin at 1 everywhere
            for parameter in trainer.masks.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn_like(parameter))
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    logged = {name: values[-1] for name, values in trainer._metrics["eval"].items()}

    inputs = padded_layout(pairs_of(batch))
    policy, reference = moved(model_dir, 0).eval(), ReferenceModel(moved(model_dir, 1))
    loss_of = OBJECTIVES[objective]()
    names = frozenset(loss_of.requires) | trainer.masks.requires
    made = reference.features(inputs, {n for n in names if FEATURES[n].origin == "reference"})
    values = {name: getattr(made, name) for name in FEATURES}
    if "pair_keys" in names:
        values["pair_keys"] = batch["pair_keys"]
    masks = LearnedMasks(**trainer.masks.config) if objective == "sparsepo" else trainer.masks
    masks.load_state_dict(trainer.masks.state_dict())
    head = reference.head if "reference_hidden" in names else None
    model = PolicyModel(policy, masks.eval(), head, requires=loss_of.requires)
    output = loss_of(model(inputs, Features(**values)))
    output.losses.mean().backward()

    torch.testing.assert_close(loss, output.losses.mean(), atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(policy.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, ours.grad, atol=1e-5, rtol=1e-4)
    for ours, theirs in zip(masks.parameters(), trainer.masks.parameters(), strict=True):
        if ours.requires_grad and masks is not trainer.masks:
            assert theirs.grad is not None
            torch.testing.assert_close(theirs.grad, ours.grad, atol=1e-5, rtol=1e-4)
    for name, (total, count) in output.metrics.items():
        if name != "loss":
            assert logged[name] == pytest.approx(float(total / count), abs=1e-5), name


def pairs_of(batch: dict[str, torch.Tensor]) -> list[TokenizedPair]:
    """The pairs of TRL's batch, taken apart by hand."""
    half = len(batch["input_ids"]) // 2
    found = []
    for row in range(half):
        sides = []
        for at in (row, row + half):
            ids = batch["input_ids"][at][batch["attention_mask"][at] == 1].tolist()
            length = int(batch["completion_mask"][at].sum())
            sides.append((ids[:-length], ids[-length:]))
        assert sides[0][0] == sides[1][0]
        found.append(TokenizedPair(sides[0][0], sides[0][1], sides[1][1]))
    return found


def test_metrics_are_trls(make: Make, model_dir: Path, tmp_path: Path) -> None:
    """Every number that TRL's trainer logs for DPO is logged, with the same value."""
    ours = make("dpo")
    theirs = trl.DPOTrainer(
        model=moved(model_dir, 0),
        ref_model=moved(model_dir, 1),
        args=ours.args,
        train_dataset=ours.train_dataset,
        processing_class=AutoTokenizer.from_pretrained(model_dir),
    )
    batch = next(iter(ours.get_train_dataloader()))
    plain = {name: batch[name] for name in ("input_ids", "attention_mask", "completion_mask")}
    for trainer in (ours, theirs):
        trainer.model.train()
        trainer.compute_loss(trainer.model, plain if trainer is theirs else batch)
    expected = {name: values[-1] for name, values in theirs._metrics["train"].items()}
    assert len(expected) >= 11
    for name, value in expected.items():
        assert ours._metrics["train"][name][-1] == pytest.approx(value, abs=1e-4), name


@pytest.mark.slow
def test_masks_are_trained_saved_and_resumed_to_the_same_bits(
    make: Make, tmp_path: Path, model_dir: Path
) -> None:
    """Four steps at once, and two, a checkpoint, two: the same model, mask and threshold."""
    options = {"architecture": "simple_all", "target_sparsity": 0.5}
    steps = {"max_steps": 4, "gradient_accumulation_steps": 2, "save_strategy": "steps",
             "save_steps": 2, "per_device_train_batch_size": 2}  # fmt: skip
    torch.manual_seed(3)
    whole = make("sparsepo", steps, mask_options=options)
    before = {name: value.clone() for name, value in whole.masks.state_dict().items()}
    whole.train()
    after = whole.masks.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before if "mixer" in name)
    assert float(after["common.shift"]) != 0.0

    torch.manual_seed(4)  # other first masks: what counts comes from the checkpoint
    resumed = make("sparsepo", {**steps, "output_dir": str(tmp_path / "again")},
                   mask_options=options)  # fmt: skip
    resumed.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-2"))
    for name, value in resumed.masks.state_dict().items():
        assert torch.equal(value, after[name]), name
    for ours, theirs in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)

    whole.save_model(str(tmp_path / "saved"))
    loaded = LearnedMasks.from_pretrained(tmp_path / "saved/masks")
    assert all(torch.equal(v, after[n]) for n, v in loaded.state_dict().items())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(next(plain.parameters()), next(whole.model.parameters()))
    assert not any("mask" in name for name in load_file(tmp_path / "saved/model.safetensors"))


@pytest.mark.slow
def test_a_learning_mask_keeps_its_share_of_zeros(make: Make) -> None:
    trainer = make(
        SparsePO(beta=0.5),
        {"max_steps": 40, "learning_rate": 1e-4, "gradient_accumulation_steps": 2,
         "per_device_train_batch_size": 3},
        mask_options={"architecture": "simple_last", "target_sparsity": 0.7},
        mask_learning_rate=1e-2,
    )  # fmt: skip
    trainer.train()
    seen = [r["masks/reward_zero_fraction"] for r in trainer.state.log_history
            if "masks/reward_zero_fraction" in r]  # fmt: skip
    assert sum(seen[-8:]) / 8 == pytest.approx(0.7, abs=0.08)
    names = {id(p): name for name, p in trainer.masks.named_parameters() if p.requires_grad}
    groups = [
        (group["eps"], group["weight_decay"], {names[id(p)] for p in group["params"]})
        for group in trainer.optimizer.optimizer.param_groups
        if any(id(p) in names for p in group["params"])
    ]
    assert groups == [(1e-6, 0.01, {n for n in names.values() if n.endswith("weight")})]


@pytest.mark.slow
def test_an_adapter_is_trained_against_its_own_base(make: Make, model_dir: Path) -> None:
    """Without a reference the policy's base is one: the first loss is ln 2, the base stays."""
    from peft import LoraConfig

    trainer = make("tdpo1", {"max_steps": 3, "learning_rate": 1e-2}, ref_model=None,
                   peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))  # fmt: skip
    base = {n: p.clone() for n, p in trainer.model.named_parameters() if "lora" not in n}
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    assert float(loss.detach()) == pytest.approx(0.693147, abs=1e-5)
    assert trainer.model.training, "the reference's pass leaves the policy in its mode"
    trainer.train()
    losses = [r["loss"] for r in trainer.state.log_history if "loss" in r]
    assert losses[0] == pytest.approx(0.693147, abs=1e-5) and losses[-1] < 0.69
    for name, value in base.items():
        assert torch.equal(value, dict(trainer.model.named_parameters())[name]), name


def test_columns_go_with_their_tokens(
    make: Make, rows: list[dict[str, str]], model_dir: Path
) -> None:
    """A weight says which token of which pair it belongs to, and rows are cut."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    data, prompts = [], []
    for number, row in enumerate(rows[:8]):
        sides, prompt = {}, tokenizer(row["prompt"])["input_ids"]
        for side in ("chosen", "rejected"):
            whole = tokenizer(row["prompt"] + row[side] + tokenizer.eos_token)["input_ids"]
            sides[f"{side}_weights"] = [
                number * 100 + at + 1 for at in range(len(whole) - len(prompt))
            ]
            sides[f"{side}_tokens"] = whole[len(prompt) :]
        prompts.append(len(prompt))
        data.append({**row, **sides, "chosen_score": float(number + 1), "rejected_score": 0.0})
    for mode in ("keep_start", "keep_end"):
        trainer = make("mapo", {"max_length": max(prompts) + 3, "truncation_mode": mode},
                       mask="external", data=data)  # fmt: skip
        seen = 0
        for batch in trainer.get_train_dataloader():
            inputs = token_batch(batch)
            weights = in_canonical_order(batch["external_weights"], batch)
            assert len(weights) == len(inputs.labels) > 0
            for weight, token, response in zip(
                weights.int().tolist(), inputs.labels.tolist(), inputs.response_index, strict=True
            ):
                side = "rejected" if response % 2 else "chosen"
                assert data[weight // 100][f"{side}_tokens"][weight % 100 - 1] == token
                seen += 1
        assert seen < sum(len(one["chosen_tokens"] + one["rejected_tokens"]) for one in data)
    with pytest.raises(ValueError, match="no column 'chosen_weights'"):
        next(iter(make("mapo", mask="external").get_train_dataloader()))
    short = [{**row, "chosen_weights": [1.0]} for row in data]
    with pytest.raises(ValueError, match="chosen_weights has 1 numbers for a response of"):
        next(iter(make("mapo", mask="external", data=short).get_train_dataloader()))
    scored = make("odpo", data=data)
    batch = next(iter(scored.get_train_dataloader()))
    assert batch["preference_scores"].shape == (4, 2)
    assert bool(torch.isfinite(scored.compute_loss(scored.model, batch)))


def trained_masks(
    rank: int, world: int, rows: list[dict[str, str]], model_dir: Path, folder: Path, pairs: int
) -> dict[str, torch.Tensor]:
    """The masks after two steps of `pairs` pairs on each rank."""
    from accelerate.state import AcceleratorState, PartialState

    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world,
             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}  # fmt: skip
    if world > 1:
        os.environ.update({name: str(value) for name, value in names.items()})
    try:
        torch.manual_seed(9)
        trainer = TokenDPOTrainer(
            model=moved(model_dir, 0), ref_model=moved(model_dir, 1),
            processing_class=AutoTokenizer.from_pretrained(model_dir),
            train_dataset=Dataset.from_list(rows[:12]),
            objective=SparsePO(beta=0.5),
            mask_options={"architecture": "simple_last", "target_sparsity": 0.5},
            args=trl.DPOConfig(
                output_dir=str(folder / f"{world}-{rank}"), per_device_train_batch_size=pairs,
                max_steps=2, report_to="none", use_cpu=True, bf16=False, disable_tqdm=True,
                save_strategy="no", learning_rate=1e-3, max_grad_norm=0.0,
            ),
        )  # fmt: skip
        trainer.train()
        assert trainer.accelerator.num_processes == world
        found = {**trainer.masks.state_dict(), "model": next(trainer._plain_model().parameters())}
        return {name: value.detach().clone() for name, value in found.items()}
    finally:
        for name in names if world > 1 else ():
            os.environ.pop(name, None)
        AcceleratorState._reset_state()
        PartialState._reset_state()


@pytest.mark.slow
def test_masks_are_the_same_on_every_rank(
    ranks: Ranks, rows: list[dict[str, str]], model_dir: Path, tmp_path: Path
) -> None:
    """Two ranks of two pairs step as one process of four does, model, mask and threshold."""
    alone = trained_masks(0, 1, rows, model_dir, tmp_path, 4)
    first, second = ranks.call(trained_masks, rows, model_dir, tmp_path, 2)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"objective": "dppo"}, "objective='dppo' is not one of dpo, "),
        ({"objective": "sparsepo", "mask": "random"}, "mask='random': sparsepo takes learned"),
        ({"objective": SparsePO(), "objective_options": {"beta": 1.0}}, "is built already"),
        ({"objective": "mapo", "mask": RandomMask(), "mask_options": {"seed": 1}}, "built already"),
        ({"objective": "dpo", "arguments": {"loss_type": "ipo"}}, "args.loss_type="),
        ({"objective": "dpo", "arguments": {"label_smoothing": 0.1}}, "args.label_smoothing=0.1"),
        ({"objective": "dpo", "arguments": {"precompute_ref_log_probs": True}}, "precompute_ref"),
        ({"objective": "tis_dpo"}, "scorers=None"),
        ({"objective": "weighted", "mask": "discriminator"}, "discriminator=None"),
        ({"objective": "kto"}, "reads desirable, which pairs do not have"),
        ({"objective": "beta_dpo"}, "objective=beta_dpo: remembers what it has seen"),
    ],
)
def test_what_does_not_go_together_is_said(make: Make, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        make(**given)


def test_beta_is_trls_unless_said(make: Make) -> None:
    assert make("dpo", {"beta": 0.3}).objective.beta == 0.3
    assert make("simpo").objective.beta == OBJECTIVES["simpo"]().beta
    assert make("dpo", {"beta": 0.3}, objective_options={"beta": 0.7}).objective.beta == 0.7


@pytest.mark.slow
def test_every_kind_of_mask_can_be_named(make: Make) -> None:
    """One loss of each kind that needs no other model; the log knows the mask's share."""
    size = make("dpo").model.config.hidden_size
    heads = {"discriminator": {"discriminator": TokenDiscriminator(1, size)}}
    for kind, declared in MASKS.items():
        if kind in ("none", "learned") or declared.requires - {
            name for name, known in FEATURES.items() if known.origin in ("reference", "step")
        } - {"pair_keys", "epoch"}:
            continue
        objective = "weighted" if "weighted" in OBJECTIVES else "mapo"
        if kind not in OBJECTIVES[objective].mask_kinds:
            continue
        trainer = make(objective, mask=kind, **heads.get(kind, {}))
        trainer.model.train()
        loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
        assert bool(torch.isfinite(loss)), kind
        assert "masks/reward_mean" in trainer._metrics["train"], kind


@pytest.mark.slow
def test_a_loss_that_changes_on_the_way_is_told_how_far_it_is(make: Make) -> None:
    """dpo_shift's progress at every step, and in an evaluation."""

    class Told(DPOShift):
        seen: ClassVar[list[float]] = []

        def advance(self, progress: float) -> None:
            super().advance(progress)
            self.seen.append(self.progress)

    make(Told(), {"max_steps": 3}).train()
    assert Told.seen == [0.0, 0.5, 1.0]


def test_unmasked_is_trl(make: Make) -> None:
    """A mask object of ones under SparsePO's loss is TDPO 1."""
    trainer = make(SparsePO(beta=0.1), mask=UniformMask())
    batch = next(iter(trainer.get_train_dataloader()))
    first = trainer.compute_loss(trainer.model, batch)
    other = make("tdpo1")
    torch.testing.assert_close(first, other.compute_loss(other.model, batch))


@pytest.mark.slow
def test_the_notebook_runs(
    model_dir: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its cells in their order, on the tiny model in place of the cell of parameters."""
    cells = json.loads((ROOT / "docs/notebooks/trl.ipynb").read_text())["cells"]
    names: dict[str, Any] = {}
    for number, cell in enumerate(cell for cell in cells if cell["cell_type"] == "code"):
        source = "".join(cell["source"])
        if cell["metadata"].get("tags") == ["parameters"]:
            exec(source, names)
            given = {"model_name": str(model_dir), "pairs": pairs_file, "steps": 3,
                     "output": tmp_path / "out"}  # fmt: skip
            assert given.keys() == names.keys() - {"__builtins__"}
            names |= given
        else:
            exec(compile(source, f"cell {number}", "exec"), names)
    said = capsys.readouterr().out
    assert "parameters of the mask" in said
    assert len(names["history"]) == 3 and names["other"].state.global_step == 3
