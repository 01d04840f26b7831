"""Objectives and the shared metrics against TRL's own trainers, on the very batches they build."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparsepo import (
    CPO,
    DPO,
    IPO,
    KTO,
    LOSSES,
    ORPO,
    SFT,
    WPO,
    AlphaPO,
    Features,
    LengthSplitMask,
    Objective,
    ObjectiveOutput,
    PolicyModel,
    ReferenceModel,
    Sum,
    TokenScores,
    UniformMask,
    Weighted,
)
from sparsepo.masks import TokenMasks
from sparsepo.records import ModelInputs

trl = pytest.importorskip("trl")

# What TRL calls them.
THEIRS = {
    "exo": "exo_pair",
    "nca": "nca_pair",
    "sppo": "sppo_hard",
    "reverse": "reverse_kl",
    "forward": "forward_kl",
    "js": "js_divergence",
    "alpha": "alpha_divergence",
}
METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)


def our_inputs(ids: torch.Tensor, attention: torch.Tensor, completion: torch.Tensor) -> ModelInputs:
    """TRL stacks all chosen rows over all rejected ones; ours alternate."""
    pairs = len(ids) // 2
    order = torch.arange(2 * pairs).view(2, pairs).t().flatten()
    ids, scored = ids[order], torch.zeros_like(ids, dtype=torch.bool)
    scored[:, :-1] = completion[order][:, 1:].bool()
    rows, columns = scored.nonzero(as_tuple=True)
    return ModelInputs(
        input_ids=ids,
        attention_mask=attention[order],
        position_ids=torch.arange(ids.shape[1]).expand_as(ids),
        score_rows=scored.flatten().nonzero().squeeze(1),
        labels=ids[rows, columns + 1],
        response_index=rows,
        num_pairs=pairs,
    )


def a_policy(model_dir: Path) -> Any:
    torch.manual_seed(0)
    loaded = AutoModelForCausalLM.from_pretrained(model_dir)
    for parameter in loaded.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return loaded


def its_reference(model_dir: Path) -> Any:
    """Near the policy, so that no e^R magnifies what is rounded."""
    loaded = a_policy(model_dir)
    for parameter in loaded.parameters():
        parameter.data.add_(0.01 * torch.randn_like(parameter))
    return loaded


@dataclass
class Theirs:
    """A trainer of TRL with one batch; the same batch as our inputs, with the reference's features,
    and the same policy.
    """

    trainer: Any
    batch: Any
    inputs: ModelInputs
    features: Features
    policy: Any

    def loss(self) -> torch.Tensor:
        """TRL's, after its backward."""
        self.trainer.model.eval()
        self.trainer.model.zero_grad()
        loss = self.trainer.compute_loss(self.trainer.model, self.batch)
        loss.backward()
        return loss.detach()

    def ours(self, objective: Objective, masks: TokenMasks | None = None) -> ObjectiveOutput:
        self.policy.zero_grad()
        model = PolicyModel(self.policy, masks or UniformMask(), requires=objective.requires)
        return objective(model(self.inputs, self.features))

    def gradients(self) -> list[torch.Tensor]:
        return [parameter.grad for parameter in self.trainer.model.parameters()]


def arguments(config: type, folder: Path, **options: Any) -> Any:
    return config(
        output_dir=str(folder), per_device_train_batch_size=6, report_to="none", use_cpu=True,
        bf16=False, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def dpo_trainer(
    rows: list[dict[str, str]], model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Theirs:
    trainer = trl.DPOTrainer(
        model=a_policy(model_dir),
        ref_model=its_reference(model_dir),
        args=arguments(trl.DPOConfig, tmp_path_factory.mktemp("dpo"), beta=0.3, use_weighting=True),
        train_dataset=Dataset.from_list(rows[:12]),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    found = {key: value.cpu() for key, value in batch.items()}
    inputs = our_inputs(found["input_ids"], found["attention_mask"], found["completion_mask"])
    features = ReferenceModel(its_reference(model_dir)).features(inputs, {"reference_logps"})
    return Theirs(trainer, batch, inputs, features, a_policy(model_dir).eval())


def set_to(
    theirs: Theirs,
    loss: str,
    smoothing: float = 0.0,
    divergence: str = "reverse",
    is_weighted: bool = False,
) -> Theirs:
    trainer = theirs.trainer
    trainer.loss_types, trainer.f_divergence_type = (
        [THEIRS.get(loss, loss)],
        THEIRS.get(divergence, divergence),
    )
    trainer.label_smoothing, trainer.use_weighting = smoothing, is_weighted
    trainer.ld_alpha, trainer.loss_weights = None, [1.0]
    return theirs


def assert_agreement(
    theirs: Theirs,
    objective: Objective,
    steepness: float = 1.0,
    masks: TokenMasks | None = None,
) -> ObjectiveOutput:
    """Loss and gradients to 1e-5 (of the largest one where that is over 1; times how much more a
    loss magnifies the rounding of its logit).
    """
    loss, output = theirs.loss(), theirs.ours(objective, masks)
    output.losses.mean().backward()
    torch.testing.assert_close(output.losses.mean(), loss, atol=1e-5, rtol=1e-5)
    within = 1e-5 * steepness * max(1.0, *(float(g.abs().max()) for g in theirs.gradients()))
    for mine, other in zip(theirs.policy.parameters(), theirs.gradients(), strict=True):
        torch.testing.assert_close(mine.grad, other, atol=within, rtol=1e-4)
    assert float(output.losses.detach().std()) > 1e-4
    return output


def means(output: ObjectiveOutput) -> dict[str, float]:
    return {key: float(output.metrics[key][0] / output.metrics[key][1]) for key in METRICS}


@pytest.mark.parametrize("name", ["ipo", *LOSSES])
def test_losses_gradients_and_metrics_agree(name: str, dpo_trainer: Theirs) -> None:
    """Every loss of `dpo`, and IPO. TRL logs the rewards of sums with sigmoid_norm too, we those of
    means per token, as the loss reads them.
    """
    smoothing = {"robust": 0.1, "exo": 0.1}.get(name, 0.0)
    theirs = set_to(dpo_trainer, name, smoothing)
    objective = IPO(0.3) if name == "ipo" else DPO(0.3, smoothing, loss=name)  # type: ignore[arg-type]
    output = assert_agreement(theirs, objective, 20 if name == "discopop" else 1)
    expected = {key: values[-1] for key, values in theirs.trainer._metrics["eval"].items()}
    differing = {"rewards/chosen", "rewards/rejected", "rewards/margins"}
    for key, value in means(output).items():
        is_close = value == pytest.approx(expected[key], abs=1e-5, rel=1e-5)
        assert is_close != (name == "sigmoid_norm" and key in differing), key
    assert abs(expected["rewards/margins"]) > 1e-3


@pytest.mark.parametrize("divergence", ["forward", "js", "alpha"])
@pytest.mark.parametrize("loss", [name for name in LOSSES if LOSSES[name].is_of_difference])
def test_divergences_agree(loss: str, divergence: str, dpo_trainer: Theirs) -> None:
    """TRL logs rewards of R whatever the divergence; ours make the loss's margin."""
    smoothing = {"robust": 0.1, "exo": 0.1}.get(loss, 0.0)
    theirs = set_to(dpo_trainer, loss, smoothing, divergence)
    objective = DPO(0.3, smoothing, loss=loss, divergence=divergence)  # type: ignore[arg-type]
    output = assert_agreement(theirs, objective, 20 if loss == "discopop" else 1)
    logged = theirs.trainer._metrics["eval"]["rewards/margins"][-1]
    assert means(output)["rewards/margins"] != pytest.approx(logged, rel=1e-3)


def test_ld_dpo_agrees(dpo_trainer: Theirs) -> None:
    """DPO with tokens beyond the shorter response's length weighed 0.4; its rewards too."""
    theirs = set_to(dpo_trainer, "sigmoid")
    theirs.trainer.ld_alpha = 0.4
    output = assert_agreement(theirs, Weighted(0.3), masks=LengthSplitMask(0.4))
    expected = {key: values[-1] for key, values in theirs.trainer._metrics["eval"].items()}
    for key in METRICS[:4]:
        assert means(output)[key] == pytest.approx(expected[key], abs=1e-5, rel=1e-5), key


def test_a_sum_agrees_in_one_micro_batch(dpo_trainer: Theirs) -> None:
    """MPO. TRL's supervised term is the mean over a micro-batch's tokens, ours over the batch's."""
    theirs = set_to(dpo_trainer, "sigmoid")
    theirs.trainer.loss_types = ["sigmoid", "bco_pair", "sft"]
    theirs.trainer.loss_weights = [0.8, 0.2, 1.0]
    terms = [(0.8, DPO(0.3)), (0.2, DPO(0.3, loss="bco_pair")), (1.0, SFT())]
    assert_agreement(theirs, Sum(terms))


def test_sigmoid_has_no_label_smoothing_there(dpo_trainer: Theirs) -> None:
    """TRL ignores it with `sigmoid`; ours is the conservative DPO of Mitchell (2023)."""
    loss = set_to(dpo_trainer, "sigmoid", 0.1).loss()
    torch.testing.assert_close(loss, set_to(dpo_trainer, "sigmoid").loss())
    smoothed = dpo_trainer.ours(DPO(0.3, 0.1))
    assert abs(float((smoothed.losses.mean() - loss).detach())) > 1e-3


class Unclamped(WPO):
    def pair_weights(self, scores: TokenScores) -> torch.Tensor:
        surplus = scores.policy_logps.detach() - scores.require("policy_square_sum").log()
        return (scores.per_response(surplus) / scores.lengths()).sum(1).exp()


@pytest.mark.parametrize("loss", ["sigmoid", "apo_zero", "sppo"])
def test_wpos_weights_agree_but_for_the_clamp(loss: str, dpo_trainer: Theirs) -> None:
    """TRL does not clamp the product at 1, as the authors do: with ours unclamped loss and
    gradients agree, and pairs above 1 make the difference. (There is no hinge: TRL's own backward
    fails with it.)
    """
    theirs = set_to(dpo_trainer, loss, is_weighted=True)
    assert_agreement(theirs, Unclamped(0.3, loss=loss))  # type: ignore[arg-type]


def test_the_clamp_shows_where_the_policy_finds_responses_likely(
    dpo_trainer: Theirs, model_dir: Path
) -> None:
    """A policy that has learnt the tokens of the first half of the pairs."""
    inputs, policy = dpo_trainer.inputs, a_policy(model_dir).eval()
    optimizer = torch.optim.Adam(policy.parameters(), 3e-3)
    for _ in range(12):
        logps = PolicyModel(policy, UniformMask())(inputs, Features()).policy_logps
        (-logps[inputs.response_index < inputs.num_pairs].mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        model = PolicyModel(policy, UniformMask(), requires=WPO.requires)
        scores = model(inputs, dpo_trainer.features)
    above = Unclamped(0.3).pair_weights(scores) > 1
    assert above.any()
    assert not above.all()
    clamped, free = (kind(0.3)(scores).losses for kind in (WPO, Unclamped))
    assert torch.equal(clamped[~above], free[~above])
    torch.testing.assert_close(clamped[above], DPO(0.3)(scores).losses[above])
    assert (clamped[above] < free[above]).all()
    theirs = set_to(dpo_trainer, "sigmoid", is_weighted=True)
    before = a_policy(model_dir).state_dict()
    theirs.trainer.model.load_state_dict(policy.state_dict())
    loss = theirs.loss()
    theirs.trainer.model.load_state_dict(before)
    torch.testing.assert_close(free.mean(), loss, atol=1e-5, rtol=1e-5)


def preference_trainer(
    kind: str, rows: list[dict[str, str]], model_dir: Path, folder: Path, **options: Any
) -> Theirs:
    """CPO's or ORPO's, which want responses as they are."""
    from trl.experimental import cpo, orpo

    config, trainer_class = {
        "cpo": (cpo.CPOConfig, cpo.CPOTrainer),
        "orpo": (orpo.ORPOConfig, orpo.ORPOTrainer),
    }[kind]
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = trainer_class(
        model=a_policy(model_dir),
        args=arguments(config, folder, **options),
        train_dataset=Dataset.from_list(rows[:12]),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    joined = trainer.concatenated_inputs(batch, padding_value=tokenizer.pad_token_id)
    labels = joined["concatenated_labels"].cpu()
    ids, attention = (
        joined[f"concatenated_{name}"].cpu() for name in ("input_ids", "attention_mask")
    )
    inputs = our_inputs(ids, attention, labels != -100)
    return Theirs(trainer, batch, inputs, Features(), a_policy(model_dir).eval())


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        (CPO(0.3, nll_coef=0.0), {"beta": 0.3, "cpo_alpha": 0.0}),
        (CPO(0.3, 0.1, nll_coef=0.0), {"beta": 0.3, "label_smoothing": 0.1, "cpo_alpha": 0.0}),
        (
            AlphaPO(2.5, 0.1, 0.25),
            {"loss_type": "alphapo", "beta": 2.5, "simpo_gamma": 0.1, "alpha": 0.25},
        ),
    ],
)
def test_cpo_and_alphapo_agree(
    objective: Objective,
    options: dict[str, Any],
    rows: list[dict[str, str]],
    model_dir: Path,
    tmp_path: Path,
) -> None:
    theirs = preference_trainer("cpo", rows, model_dir, tmp_path, **options)
    assert_agreement(theirs, objective)


def test_cpos_nll_is_each_responses_mean_and_theirs_the_micro_batchs(
    rows: list[dict[str, str]], model_dir: Path, tmp_path: Path
) -> None:
    """TRL averages over all chosen tokens of a micro-batch, which a cut of the batch changes."""
    theirs = preference_trainer("cpo", rows, model_dir, tmp_path, beta=0.3)
    loss = theirs.loss()
    scores = PolicyModel(theirs.policy, UniformMask())(theirs.inputs, Features())
    chosen, lengths = scores.per_response(scores.policy_logps)[:, 0], scores.lengths()[:, 0]
    without = CPO(0.3, nll_coef=0.0)(scores).losses.mean()
    torch.testing.assert_close(without - chosen.sum() / lengths.sum(), loss, atol=1e-5, rtol=1e-5)
    mine = CPO(0.3)(scores).losses.mean()
    torch.testing.assert_close(mine, without - (chosen / lengths).mean())
    assert abs(float((mine - loss).detach())) > 1e-3


def test_orpos_odds_agree_and_its_nll_is_of_the_response_alone(
    rows: list[dict[str, str]], model_dir: Path, tmp_path: Path
) -> None:
    """TRL's NLL covers the prompt too, and averages over all tokens of a micro-batch."""
    theirs = preference_trainer("orpo", rows, model_dir, tmp_path, beta=0.3)
    loss, policy, inputs = theirs.loss(), theirs.policy, theirs.inputs
    scores = PolicyModel(policy, UniformMask())(inputs, Features())
    output = ORPO(0.3, nll_coef=0.0)(scores)
    with torch.no_grad():
        logits = policy(inputs.input_ids[::2], attention_mask=inputs.attention_mask[::2]).logits
    targets = inputs.input_ids[::2].masked_fill(inputs.attention_mask[::2] == 0, -100)
    nll = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
    torch.testing.assert_close(output.losses.mean() + nll, loss, atol=1e-5, rtol=1e-5)
    assert abs(float((ORPO(0.3)(scores).losses.mean() - loss).detach())) > 1e-3
    _, logged = theirs.trainer.get_batch_loss_metrics(theirs.trainer.model, theirs.batch)
    for key in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert means(output)[key] == pytest.approx(logged[key], abs=1e-5, rel=1e-5)


def test_kto_agrees(rows: list[dict[str, str]], model_dir: Path, tmp_path: Path) -> None:
    """On TRL's own mismatches, which stand in our record as the rejected responses."""

    def reference() -> Any:
        torch.manual_seed(1)
        loaded = AutoModelForCausalLM.from_pretrained(model_dir)
        for parameter in loaded.parameters():
            parameter.data.add_(0.08 * torch.randn_like(parameter))
        return loaded

    options: dict[str, Any] = {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.7}
    given = [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": number % 3 != 1}
        for number, row in enumerate(rows[:12])
    ]
    trainer = trl.KTOTrainer(
        model=a_policy(model_dir),
        ref_model=reference(),
        args=arguments(trl.KTOConfig, tmp_path, train_sampling_strategy="sequential", **options),
        train_dataset=Dataset.from_list(given),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    names = ("input_ids", "attention_mask", "completion_mask")
    width = max(batch[prefix + names[0]].shape[1] for prefix in ("", "KL_"))

    def padded(name: str) -> torch.Tensor:
        return torch.nn.functional.pad(batch[name].cpu(), (0, width - batch[name].shape[1]))

    inputs = our_inputs(*(torch.cat([padded(name), padded(f"KL_{name}")]) for name in names))
    features = ReferenceModel(reference()).features(inputs, {"reference_logps"})
    features = replace(features, desirable=batch["label"].cpu().bool())
    theirs = Theirs(trainer, batch, inputs, features, a_policy(model_dir).eval())
    output = assert_agreement(theirs, KTO(**options))
    expected = {key: values[-1] for key, values in trainer._metrics["eval"].items()}
    found = {key: float(total / count) for key, (total, count) in output.metrics.items()}
    for key in ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"):
        assert found[key] == pytest.approx(expected[key], abs=1e-5, rel=1e-5), key
    assert found["kl/mismatched"] == pytest.approx(expected["kl"], abs=1e-5, rel=1e-5)
    assert expected["kl"] > 1e-2
