"""Objectives and token masks in TRL's own training loop.

Needs trl 1.0 or newer (`pip install sparsepo[trl]`).
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from sparsepo.discriminator import TokenDiscriminator
from sparsepo.features import FEATURES
from sparsepo.integrations.trl_batches import (
    COLUMNS,
    PairColumns,
    head_metrics,
    in_canonical_order,
    prompts_of,
    token_batch,
)
from sparsepo.masks import MASKS, LearnedMasks, TokenMasks, decay_groups
from sparsepo.model import PolicyModel, head_of, verify_head
from sparsepo.objectives import OBJECTIVES, Objective
from sparsepo.records import Features, ModelInputs, ObjectiveOutput
from sparsepo.reference import ReferenceModel
from sparsepo.scorers import pooled_states, scorer_log_ratios

MASKS_FOLDER = "masks"  # in a checkpoint and in the saved model
# What TRL would do to its own loss, and what says that it does not.
_OWN_LOSS: dict[str, tuple[Any, ...]] = {
    "loss_type": (["sigmoid"], "sigmoid"),
    "loss_weights": (None,),
    "label_smoothing": (0.0,),
    "ld_alpha": (None,),
    "f_divergence_type": ("reverse_kl",),
    "use_weighting": (False,),
    "precompute_ref_log_probs": (False,),
    "use_liger_kernel": (False,),
    "padding_free": (False,),
}


class TokenDPOTrainer(DPOTrainer):  # type: ignore[misc]
    """TRL's DPOTrainer with a loss per token: any objective, any mask.

    Data sets, collators, arguments, PEFT, callbacks and checkpoints are TRL's. The loss is a mean
    over the micro-batch's pairs, as TRL's; an objective that couples pairs couples those of a
    micro-batch. A learned mask is a group of its own in the optimizer; its sparsity target is held
    after every step; a checkpoint and the saved model carry it in the folder `masks`
    (LearnedMasks.from_pretrained). TRL's metrics are logged under their names, masks/* beside them;
    rewards/* are the objective's, and a tie counts one half in rewards/accuracies.

    Args:
        objective: a name of OBJECTIVES, or one that is built.
        objective_options: of a name: its constructor's. beta comes from args.beta if that is not
            TRL's default.
        mask: a kind of MASKS, or one that is built; by default the objective's own.
        mask_options: of a kind: its constructor's. A learned mask's sizes come from the reference;
            by default it is `simple_all`, common, with centred weights. An activation mask takes
            `hooks` and `mapping` besides.
        mask_learning_rate, mask_weight_decay, mask_adam_eps: of a learned mask's parameters; its
            biases and norms do not decay.
        scorers: (positive, negative) models for objectives and masks that read their log ratios.
        discriminator: of the reference, for the mask that reads its values.
        topk: outcomes of the reference's distribution that a feature `reference_topk` keeps.
        **trl: DPOTrainer's arguments. Columns chosen_score and rejected_score, chosen_weights and
            rejected_weights (one per response token, the end token's too) are read if needed.
    Raises: ValueError naming an unknown objective or mask, one that does not go with the other, an
        option of `args` that belongs to TRL's own loss, or a way of training that is not supported
        (FSDP, DeepSpeed, prompt learning, images).
    """

    _tag_names = ["trl", "sparsepo"]  # noqa: RUF012

    def __init__(
        self,
        *,
        objective: str | Objective = "sparsepo",
        objective_options: Mapping[str, Any] | None = None,
        mask: str | TokenMasks | None = None,
        mask_options: Mapping[str, Any] | None = None,
        mask_learning_rate: float = 1e-3,
        mask_weight_decay: float = 0.01,
        mask_adam_eps: float = 1e-6,
        scorers: tuple[Any, Any] | None = None,
        discriminator: TokenDiscriminator | None = None,
        topk: int = 64,
        **trl: Any,
    ) -> None:
        arguments = trl.get("args") or DPOConfig(output_dir="trainer_output")
        _check_arguments(arguments)
        self.objective = _objective(objective, dict(objective_options or {}), arguments.beta)
        if self.objective.state():
            raise ValueError(
                f"objective={self.objective.name}: remembers what it has seen of batches, and "
                "this loop shows it micro-batches"
            )
        kind = _kind(mask, self.objective)
        options = dict(mask_options or {})
        if mask_options and not isinstance(kind, str):
            raise ValueError(f"mask_options={options}: the mask is built already")
        self._hooks = options.pop("hooks", "all") if kind == "activation" else "all"
        self._mapping = options.pop("mapping", "zn_rescale") if kind == "activation" else None
        self._mask_rates = {"lr": mask_learning_rate, "eps": mask_adam_eps}
        self._mask_weight_decay = mask_weight_decay
        self._scorers, self._topk = scorers, topk
        self._pair_features: frozenset[str] = frozenset()
        super().__init__(**{**trl, "args": arguments})
        self._check_training()
        verify_head(self._plain_model())
        reference = self._reference_model()
        self.masks = (
            _built(kind, options, reference, self._mapping) if isinstance(kind, str) else kind
        ).to(self.accelerator.device)
        wanted = frozenset(self.masks.requires) | frozenset(self.objective.requires)
        self._pair_features = frozenset(n for n in wanted if FEATURES[n].origin == "pairs")
        unknown = sorted(self._pair_features - {*COLUMNS, "pair_keys"})
        if unknown:
            raise ValueError(
                f"objective={self.objective.name}: reads {unknown[0]}, which pairs do not have"
            )
        self._wanted = wanted
        if "scorer_log_ratios" in wanted and scorers is None:
            raise ValueError("scorers=None: give (positive, negative), whose log ratios are read")
        if "discriminator_values" in wanted and discriminator is None:
            raise ValueError("discriminator=None: give the one whose values of tokens are read")
        collator: Any = self.data_collator  # type: ignore[has-type]
        self.data_collator = PairColumns(collator, self._pair_features)
        if scorers is not None:
            self._scorers = tuple(one.to(self.accelerator.device).eval() for one in scorers)
        self._sums: dict[str, Tensor] = {}
        self._reference = ReferenceModel(
            reference,
            self._hooks,
            self._mapping or "zn_rescale",
            self._topk,
            is_policy=self.ref_model is None,
            discriminator=discriminator,
        )
        self._policy = PolicyModel(
            self._plain_model(),
            self.masks,
            self._reference.head if "reference_hidden" in wanted else None,
            requires=self.objective.requires,
        )
        self._take_token_batches(self._plain_model())
        self.add_callback(_MaskSteps(self))

    # How the model is called.

    def _plain_model(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

    def _reference_model(self) -> Any:
        """The frozen reference; the policy itself where its base without adapters is meant."""
        if self.ref_model is None:
            return self._plain_model()
        return self.accelerator.unwrap_model(self.ref_model)

    def _take_token_batches(self, model: Any) -> None:
        """Let the model's forward take a token batch: all that wraps it is then passed on the way.

        DistributedDataParallel and autocast see a forward as any other.
        """
        usual: Callable[..., Any] = model.forward

        def forward(
            *args: Any, token_batch: tuple[ModelInputs, Features] | None = None, **given: Any
        ) -> Any:
            if token_batch is None:
                return usual(*args, **given)
            hidden = self._policy.states(token_batch[0])
            return self._policy.scores(hidden, *token_batch), hidden.detach()

        model.forward = forward

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The objective's mean over the micro-batch's pairs."""
        self.masks.train(self.model.training)
        steps = max(1, self.state.max_steps - 1)
        done = self.state.global_step / steps if self.model.training else 1.0
        self.objective.advance(min(1.0, done))
        batch = token_batch(inputs)
        scores, hidden = model(token_batch=(batch, self._features(batch, inputs)))
        output = self.objective(scores)
        self._keep_metrics(output, batch, hidden, inputs)
        loss = output.losses.mean()
        if not return_outputs:
            return loss
        plain = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            return loss, model(**plain, use_cache=False)

    def _features(self, batch: ModelInputs, inputs: dict[str, Tensor]) -> Features:
        found: dict[str, Any] = {name: inputs[name] for name in self._pair_features}
        if "external_weights" in found:
            found["external_weights"] = in_canonical_order(found["external_weights"], inputs)
        model = self._reference.causal_lm
        names = frozenset(n for n in self._wanted if FEATURES[n].origin == "reference")
        if names:
            with self._frozen(model):
                made = self._reference.features(batch, names)
            found |= {name: getattr(made, name) for name in names}
        if "scorer_log_ratios" in self._wanted:
            assert self._scorers is not None
            found["scorer_log_ratios"] = scorer_log_ratios(*self._scorers, batch)
        if "prompt_embedding" in self._wanted:
            with self._frozen(model):
                found["prompt_embedding"] = pooled_states(model, prompts_of(inputs))
        if "epoch" in self._wanted:
            epoch = int(self.state.epoch or 0)
            found["epoch"] = torch.full((batch.num_pairs,), epoch, device=batch.labels.device)
        return Features(**found)

    def _frozen(self, model: Any) -> AbstractContextManager[Any]:
        """The model as the reference: the policy without its adapters where there is no other."""
        if self.ref_model is not None:
            return nullcontext()
        return _AsReference(model)

    # What it logs.

    def _keep_metrics(
        self,
        output: ObjectiveOutput,
        batch: ModelInputs,
        hidden: Tensor,
        inputs: dict[str, Tensor],
    ) -> None:
        mode = "train" if self.model.training else "eval"
        metrics = {name: value for name, value in output.metrics.items() if name != "loss"}
        metrics |= head_metrics(hidden, head_of(self._plain_model()).detached(), batch)
        tokens = inputs["attention_mask"].sum()
        metrics["num_tokens"] = (tokens, torch.ones_like(tokens))
        names = sorted(metrics)
        sums = torch.stack(
            [torch.stack([part.detach().double() for part in metrics[name]]) for name in names]
        )
        sums = self.accelerator.reduce(sums, "sum")
        for name, (total, count) in zip(names, sums.tolist(), strict=True):
            if name == "num_tokens":
                self._total_train_tokens += int(total) if mode == "train" else 0
                self._metrics[mode][name] = [self._total_train_tokens]
            else:
                self._metrics[mode][name].append(total / count if count else 0.0)
        if mode == "train":
            for name, pair in zip(names, sums, strict=True):
                if name.startswith("masks/"):
                    self._sums[name] = self._sums.get(name, torch.zeros_like(pair)) + pair

    # The masks in the optimizer, in step and in checkpoints.

    def create_optimizer(self, *args: Any, **given: Any) -> Any:
        """TRL's, and groups for the mask's parameters."""
        optimizer = super().create_optimizer(*args, **given)
        trained = [p for p in self.masks.parameters() if p.requires_grad]
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if trained and id(trained[0]) not in held:
            known = optimizer.param_groups[0]
            for group in decay_groups(self.masks, self._mask_weight_decay):
                given = {**group, **self._mask_rates}
                kept = {n: value for n, value in given.items() if n == "params" or n in known}
                optimizer.add_param_group(kept)
        return optimizer

    def average_mask_gradients(self) -> None:
        """Over all ranks, before the optimizer's step: TRL wraps the model alone."""
        for parameter in self.masks.parameters():
            if parameter.grad is not None:
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")

    def end_mask_step(self) -> None:
        """Move the mask's threshold by what the step's micro-batches have shown.

        Its gradients go too: transformers clears those of the model alone.
        """
        self.masks.zero_grad()
        means = {name: float(total / count) for name, (total, count) in self._sums.items() if count}
        self._sums = {}
        if isinstance(self.masks, LearnedMasks) and means:
            self.masks.control(means)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if isinstance(self.masks, LearnedMasks):
            self.masks.save_pretrained(Path(output_dir or self.args.output_dir) / MASKS_FOLDER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_masks(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_masks(str(self.state.best_model_checkpoint))

    def _load_masks(self, checkpoint: str) -> None:
        if isinstance(self.masks, LearnedMasks):
            saved = LearnedMasks.from_pretrained(Path(checkpoint) / MASKS_FOLDER)
            self.masks.load_state_dict(saved.state_dict())

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns = [column for name in COLUMNS for column in COLUMNS[name]]
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *columns]))

    def _check_training(self) -> None:
        if getattr(self, "is_fsdp_enabled", False) or getattr(self, "is_deepspeed_enabled", False):
            raise ValueError("FSDP and DeepSpeed are not supported: use one process or DDP")
        if getattr(self, "_is_vision_dataset", False):
            raise ValueError("a data set with images is not supported")
        if getattr(self, "aux_loss_enabled", False):
            raise ValueError("args.router_aux_loss_coef: must be 0, the loss has no such term")
        active: Any = getattr(self.model, "active_peft_config", None)
        if getattr(active, "is_prompt_learning", False):
            raise ValueError(f"peft_config={active.peft_type}: prompt learning is not supported")


class _MaskSteps(TrainerCallback):  # type: ignore[misc]
    def __init__(self, trainer: TokenDPOTrainer) -> None:
        self._trainer = trainer

    def on_pre_optimizer_step(
        self, args: Any, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        self._trainer.average_mask_gradients()

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        self._trainer.end_mask_step()


class _AsReference:
    """The policy as its own reference: without adapters (or with TRL's copy), in eval mode."""

    def __init__(self, model: Any) -> None:
        from trl.trainer.utils import use_adapter

        self._model, self._was_training = model, model.training
        self._adapters = use_adapter(model, "ref" if "ref" in model.peft_config else None)

    def __enter__(self) -> None:
        self._adapters.__enter__()
        self._model.eval()

    def __exit__(self, *error: Any) -> None:
        self._model.train(self._was_training)
        self._adapters.__exit__(*error)


def _check_arguments(arguments: Any) -> None:
    for name, allowed in _OWN_LOSS.items():
        value = getattr(arguments, name, allowed[0])
        if value not in allowed:
            raise ValueError(
                f"args.{name}={value!r}: belongs to TRL's own loss, leave it at {allowed[0]!r}"
            )


def _objective(objective: str | Objective, options: dict[str, Any], beta: float) -> Objective:
    if isinstance(objective, Objective):
        if options:
            raise ValueError(f"objective_options={options}: the objective is built already")
        return objective
    if objective not in OBJECTIVES:
        raise ValueError(f"objective={objective!r} is not one of {', '.join(OBJECTIVES)}")
    if beta != DPOConfig.__dataclass_fields__["beta"].default:
        options.setdefault("beta", beta)
    return OBJECTIVES[objective](**options)


def _kind(mask: str | TokenMasks | None, objective: Objective) -> str | TokenMasks:
    """The kind of mask that is meant. ValueError for one that the objective cannot work with."""
    if isinstance(mask, TokenMasks):
        return mask
    kinds = sorted(objective.mask_kinds)
    meant = objective.default_mask if mask is None else mask
    if mask is None and meant not in kinds:
        meant = kinds[0]
    if meant not in kinds:
        raise ValueError(f"mask={mask!r}: {objective.name} takes {', '.join(kinds)}")
    return meant


def _built(kind: str, options: dict[str, Any], reference: Any, mapping: str | None) -> TokenMasks:
    if kind == "learned":
        usual = {"architecture": "simple_all", "sharing": "common", "weights": "centred"}
        return LearnedMasks.for_model(reference.config, **{**usual, **options})
    if kind == "activation":
        options = {**options, "signed": mapping == "none"}
    return MASKS[kind](**options)
