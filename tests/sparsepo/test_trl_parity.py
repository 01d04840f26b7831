"""DPO, IPO, LD-DPO and the shared metrics against TRL's own DPOTrainer, on the very batch that it
builds.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparsepo import (
    DPO,
    IPO,
    LengthSplitMask,
    PolicyModel,
    ReferenceModel,
    UniformMask,
    Weighted,
)
from sparsepo.masks import TokenMasks
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


@pytest.mark.parametrize(
    ("options", "objective", "masks"),
    [
        ({"loss_type": ["sigmoid"]}, DPO(0.3), UniformMask()),
        ({"loss_type": ["ipo"]}, IPO(0.3), UniformMask()),
        ({"ld_alpha": 0.4}, Weighted(0.3), LengthSplitMask(0.4)),
    ],
)
def test_losses_gradients_and_metrics_agree(
    options: dict[str, Any],
    objective: Any,
    masks: TokenMasks,
    rows: list[dict[str, str]],
    model_dir: Path,
    tmp_path: Path,
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
        **options,
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
        PolicyModel(policy, masks)(inputs, reference.features(inputs, {"reference_logps"}))
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
        if key.startswith("logps") and "ld_alpha" in options:
            continue  # TRL's are weighted too
        total, count = output.metrics[key]
        assert float(total / count) == pytest.approx(expected[key], abs=1e-5, rel=1e-5), key
    assert abs(expected["rewards/margins"]) > 1e-3
