"""DPO, IPO, KTO and their metrics against TRL's own trainers, on the very batches that they
build.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparsepo import DPO, IPO, KTO, PolicyModel, ReferenceModel, UniformMask
from sparsepo.records import ModelInputs

trl = pytest.importorskip("trl")


def our_inputs(batch: dict[str, torch.Tensor]) -> ModelInputs:
    """TRL stacks all chosen rows over all rejected ones; ours alternate."""
    pairs = len(batch["input_ids"]) // 2
    order = torch.arange(2 * pairs).view(2, pairs).t().flatten()
    ids, scored = batch["input_ids"][order], torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    scored[:, :-1] = batch["completion_mask"][order][:, 1:].bool()
    rows, columns = scored.nonzero(as_tuple=True)
    return ModelInputs(
        input_ids=ids,
        attention_mask=batch["attention_mask"][order],
        position_ids=torch.arange(ids.shape[1]).expand_as(ids),
        score_rows=scored.flatten().nonzero().squeeze(1),
        labels=ids[rows, columns + 1],
        response_index=rows,
        num_pairs=pairs,
    )


@pytest.mark.parametrize(("loss_type", "objective"), [("sigmoid", DPO(0.3)), ("ipo", IPO(0.3))])
def test_losses_gradients_and_metrics_agree(
    loss_type: str, objective: Any, rows: list[dict[str, str]], model_dir: Path, tmp_path: Path
) -> None:
    def model(seed: int) -> Any:
        torch.manual_seed(seed)
        loaded = AutoModelForCausalLM.from_pretrained(model_dir)
        for parameter in loaded.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        return loaded

    arguments = trl.DPOConfig(
        output_dir=str(tmp_path),
        beta=0.3,
        loss_type=[loss_type],
        per_device_train_batch_size=6,
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    trainer = trl.DPOTrainer(
        model=model(0),
        ref_model=model(1),
        args=arguments,
        train_dataset=Dataset.from_list(rows[:12]),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    expected = {key: values[-1] for key, values in trainer._metrics["eval"].items()}

    policy = model(0).eval()
    reference = ReferenceModel(model(1))
    inputs = our_inputs({key: value.cpu() for key, value in batch.items()})
    output = objective(
        PolicyModel(policy, UniformMask())(inputs, reference.features(inputs, {"reference_logps"}))
    )
    output.losses.mean().backward()

    torch.testing.assert_close(output.losses.mean(), loss.detach(), atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(policy.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)
    for key in (
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
    ):
        total, count = output.metrics[key]
        assert float(total / count) == pytest.approx(expected[key], abs=1e-5, rel=1e-5), key
    assert abs(expected["rewards/margins"]) > 1e-3


def test_kto_s_losses_gradients_and_metrics_agree(
    rows: list[dict[str, str]], model_dir: Path, tmp_path: Path
) -> None:
    """On TRL's own mismatches, which stand in our record as the rejected responses."""

    def model(seed: int, scale: float) -> Any:
        torch.manual_seed(seed)
        loaded = AutoModelForCausalLM.from_pretrained(model_dir)
        for parameter in loaded.parameters():
            parameter.data.add_(scale * torch.randn_like(parameter))
        return loaded

    arguments = trl.KTOConfig(
        output_dir=str(tmp_path),
        beta=0.3,
        desirable_weight=1.2,
        undesirable_weight=0.7,
        per_device_train_batch_size=6,
        train_sampling_strategy="sequential",
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    given = [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": number % 3 != 1}
        for number, row in enumerate(rows[:12])
    ]
    trainer = trl.KTOTrainer(
        model=model(0, 0.05),
        ref_model=model(1, 0.08),
        args=arguments,
        train_dataset=Dataset.from_list(given),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    expected = {key: values[-1] for key, values in trainer._metrics["eval"].items()}

    keys = ("input_ids", "attention_mask", "completion_mask")
    sides = [{key: batch[prefix + key].cpu() for key in keys} for prefix in ("", "KL_")]
    width = max(side["input_ids"].shape[1] for side in sides)
    stacked = {
        key: torch.cat(
            [torch.nn.functional.pad(side[key], (0, width - side[key].shape[1])) for side in sides]
        )
        for key in sides[0]
    }
    inputs = our_inputs(stacked)
    policy, reference = model(0, 0.05).eval(), ReferenceModel(model(1, 0.08))
    features = replace(
        reference.features(inputs, {"reference_logps"}), desirable=batch["label"].cpu().bool()
    )
    output = KTO(0.3, 1.2, 0.7)(PolicyModel(policy, UniformMask())(inputs, features))
    output.losses.mean().backward()

    torch.testing.assert_close(output.losses.mean(), loss.detach(), atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(policy.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)
    means = {key: float(total / count) for key, (total, count) in output.metrics.items()}
    for key in ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"):
        assert means[key] == pytest.approx(expected[key], abs=1e-5, rel=1e-5), key
    assert means["kl/mismatched"] == pytest.approx(expected["kl"], abs=1e-5, rel=1e-5)
    assert expected["kl"] > 1e-2
