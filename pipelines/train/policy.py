"""The model that is trained: loaded, adapted, laid out, compiled, spread, and written out again."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import UserError
from pipelines.models import (
    ADAPTER_CONFIG,
    Control,
    Placement,
    add_rows,
    base_dir,
    batch_layout,
    control_of,
    hf_config,
    load_causal_lm,
    load_tokenizer,
    may_run,
    merged,
    merged_adapter,
    micro_batch_tokens,
    publish_code,
    recorded_control,
    resolve_model,
    with_soft_tokens,
    without_weights,
)
from pipelines.recipe import MASKS, MODEL, Recipe
from pipelines.storage import RunStore
from pipelines.train.adapters import adapted, soft_prompts, trained_rows
from pipelines.train.builders import build_mask
from pipelines.train.compilation import Compilation, num_widths
from pipelines.train.facts import TrainingFacts
from pipelines.train.restore import load_checkpoint
from pipelines.train.steps import step_folder
from pipelines.train.strategy import Strategy, strategy_of
from sparsepo.backbone import (
    checkpoint_activations,
    decoder_layers,
    freeze_other_parts,
    plain_attention,
    run_backbone,
    transformer_of,
)
from sparsepo.batching.batch_layout import BatchLayout
from sparsepo.batching.layouts import TokenizedPair, padded_layout
from sparsepo.kernels.token_scoring import LMHead
from sparsepo.masks import LearnedMasks, TokenMasks
from sparsepo.model import PolicyModel, cut_head, cut_vocabulary


def build_masks(facts: TrainingFacts) -> TokenMasks:
    """The masks for the reference model.

    Learned ones are freshly initialised from train.seed.
    """
    reference = hf_config(resolve_model(facts.reference.model.name))
    return build_mask(facts.mask, reference, facts.train.seed)


def load_policy_model(facts: TrainingFacts, placement: Placement) -> Any:
    """The starting model on the rank's device, with fresh adapters under LoRA.

    Where the soft tokens of a control are trained, it has them, and the rest is frozen.
    """
    lora, name, control = facts.train.lora, facts.model.name_or_path, facts.control
    directory = resolve_model(name)
    # A frozen base needs no master weights.
    is_frozen = lora is not None or facts.trains_control
    causal_lm = load_causal_lm(
        str(directory), placement.compute if is_frozen else placement.weights, placement.device
    )
    freeze_other_parts(causal_lm)
    if facts.trains_control:
        assert control is not None
        add_rows(causal_lm, control)
        return soft_prompts(causal_lm, control, placement.weights)
    if lora is None:
        return causal_lm
    with torch.random.fork_rng():
        torch.manual_seed(facts.train.seed)
        return adapted(causal_lm, lora, directory, placement.weights, name, _soft_ids(control))


def _soft_ids(control: Control | None) -> tuple[int, ...]:
    return () if control is None else control.soft_ids


def count_adapter_parameters(recipe: Recipe) -> int:
    """Parameters of the recipe's adapters or soft tokens, without memory for any; 0 without."""
    if recipe.train.lora is None and not recipe.trains_control():
        return 0
    directory, control = resolve_model(recipe.model.name_or_path), control_of(recipe)
    with torch.device("meta"):
        model = without_weights(directory)
        if recipe.trains_control():
            assert control is not None
            add_rows(model, control)
            found = soft_prompts(model, control, torch.float32)
        else:
            assert recipe.train.lora is not None
            found = adapted(
                model,
                recipe.train.lora,
                directory,
                torch.float32,
                recipe.model.name_or_path,
                _soft_ids(control),
            )
    return sum(p.numel() for p in found.parameters() if p.requires_grad)


def there_and_back(causal_lm: Any, compute: torch.dtype) -> None:
    """Two padded sequences through a model, and gradients back to its embeddings; none are kept.

    Args:
        compute: dtype of matrix products; adapters and masks have other weights than a frozen base.
    """
    embeddings = transformer_of(causal_lm).get_input_embeddings()
    rows = padded_layout([TokenizedPair([0, 1], [2, 3], [2])]).to(embeddings.weight.device)
    embedded: list[torch.Tensor] = []

    def follow(_layer: Any, _inputs: Any, states: torch.Tensor) -> torch.Tensor:
        embedded.append(states.detach().requires_grad_())
        return embedded[-1].clone()  # which a model may change in place

    device, casts = embeddings.weight.device.type, compute != torch.float32
    hook = embeddings.register_forward_hook(follow)
    try:
        with plain_attention(), torch.autocast(device, dtype=torch.bfloat16, enabled=casts):
            states = run_backbone(causal_lm, rows).last_hidden_state
            torch.autograd.grad(states.float().sum(), embedded)
    finally:
        hook.remove()


def choose_layout(
    facts: TrainingFacts, models: Sequence[Any], placement: Placement, most: int | None
) -> BatchLayout:
    """The training's layout, for which the models are prepared: policy, and online reference.

    A micro-batch has at most `most` tokens.

    Raises: UserError if the models cannot take what is asked for.
    """
    wanted = micro_batch_tokens(
        facts.train, facts.model.name_or_path, facts.gpus_per_run, placement.device
    )
    budget = wanted if most is None else min(wanted, most)
    layout = batch_layout(
        "train.layout",
        facts.train.layout,
        models,
        budget,
        is_balanced=True,
        longest=facts.reference.model.longest,
    )
    return replace(layout, num_widths=num_widths())


def build_policy(
    facts: TrainingFacts,
    causal_lm: Any,
    head: LMHead | None,
    strategy: Strategy,
    compilation: Compilation | None,
) -> PolicyModel:
    """Policy and masks on the rank's device: checkpointed, compiled, spread as asked for."""
    train = facts.train
    transformer, device = transformer_of(causal_lm), strategy.placement.device
    if train.gradient_checkpointing:
        checkpoint_activations(transformer)
        if train.lora is not None:
            transformer.enable_input_require_grads()
    if compilation is not None:
        compilation.compile(decoder_layers(transformer))
    policy = PolicyModel(
        causal_lm, build_masks(facts), head, facts.vocabulary, facts.objective.requires()
    ).to(device)
    strategy.spread(policy)
    return policy


def write_model(
    facts: TrainingFacts,
    causal_lm: Any,
    strategy: Strategy,
    folder: Path | None,
    copies: Mapping[str, torch.Tensor],
) -> None:
    """The trained model in Hugging Face layout with its tokenizer, into the folder of rank 0.

    Every rank must call it, the others with None: a sharded model is put together one parameter at
    a time.

    Args:
        copies: parameters of the policy that lie on the host already, by name.
    """
    state = {}
    for name, parameter in causal_lm.named_parameters():
        copy = copies.get(f"causal_lm.{name}")
        whole = strategy.full_tensor(parameter) if copy is None else copy
        if folder is not None:
            state[name] = whole.cpu()
    if folder is None:
        return
    saved = causal_lm.state_dict().keys()
    state |= {name: buffer.cpu() for name, buffer in causal_lm.named_buffers() if name in saved}
    if facts.trains_control:
        assert facts.control is not None
        causal_lm = load_causal_lm(
            str(resolve_model(facts.model.name_or_path)), strategy.placement.weights
        )
        add_rows(causal_lm, facts.control)
        trained_rows(causal_lm, facts.control, state)
        causal_lm.save_pretrained(folder)
    else:
        causal_lm.save_pretrained(folder, state_dict=state)
    if facts.train.lora is not None:
        (folder / "README.md").unlink(missing_ok=True)  # ours is written at the end of the stage
        if facts.train.lora.save == "merged":
            start = load_causal_lm(
                str(resolve_model(facts.model.name_or_path)), torch.float32
            )  # as it is on disk, which may be an adapter too
            whole = merged_adapter(start, folder).to(strategy.placement.weights)
            for file in folder.iterdir():
                file.unlink()
            whole.save_pretrained(folder)
    model = facts.model
    directory = resolve_model(model.tokenizer or model.name_or_path, tokenizer_only=True)
    start = resolve_model(model.name_or_path)
    control = facts.control or recorded_control(start)
    if control is not None:
        control.write(folder)
    tokenizer = with_soft_tokens(facts.chat.on(load_tokenizer(str(directory))), control)
    base = base_dir(start)
    if may_run(base):
        # The trained model is trusted as far as the one it comes from: it has the same code,
        # configuration and tokenizer.
        if not (folder / ADAPTER_CONFIG).is_file():
            publish_code(base, folder)
            if facts.chat.template is not None:
                (folder / "chat_template.jinja").write_text(tokenizer.chat_template)
        return
    tokenizer.save_pretrained(folder)


def open_untrained(
    facts: TrainingFacts, head: LMHead | None, dtype: torch.dtype, device: torch.device
) -> PolicyModel:
    """The policy before any step, in eval mode: the starting model with fresh masks.

    It is cut to the rows over which it is compared with the reference.

    Args:
        head: of the reference, for the masks.
    """
    causal_lm = load_causal_lm(
        str(resolve_model(facts.model.name_or_path)),
        dtype,
        device,
        vocabulary=facts.reference.model.vocabulary,
    )
    return PolicyModel(causal_lm, build_masks(facts), head).to(device).eval()


def open_policy(
    facts: TrainingFacts,
    step: int | None,
    head: LMHead | None,
    dtype: torch.dtype,
    device: torch.device,
) -> PolicyModel:
    """The trained policy with its masks, in eval mode; adapters are merged.

    It is cut to the rows over which it is compared with the reference.

    Args:
        step: of a checkpoint; None is the published model. head: of the reference, for the masks.
    Raises: UserError if a file of the checkpoint cannot be read.
    """
    store, masks = RunStore(facts.root), build_masks(facts)
    vocabulary, requires = facts.reference.model.vocabulary, facts.objective.requires()
    if step is None:
        with store.as_local_directory(MODEL) as folder:
            causal_lm = load_causal_lm(str(folder), dtype, device, vocabulary=vocabulary)
        if isinstance(masks, LearnedMasks):
            with store.as_local_directory(MASKS) as folder:
                masks = LearnedMasks.from_pretrained(folder)
        return PolicyModel(causal_lm, masks, head, requires=requires).to(device).eval()
    placement = Placement.choose(facts.train.precision, device, rank=0, world=1)
    causal_lm = load_policy_model(facts, placement)
    policy = PolicyModel(causal_lm, masks, head, requires=requires).to(device)
    try:
        load_checkpoint(store, step, policy, None, strategy_of(placement), facts.base)
    except OSError as error:
        raise UserError(
            f"{store.root}/{step_folder(step)}: cannot be read: {str(error).splitlines()[0]}"
        ) from error
    if facts.train.lora is not None or facts.trains_control:
        policy.causal_lm = merged(policy.causal_lm)
    policy.causal_lm.to(dtype)
    if vocabulary is not None:
        has_soft = facts.control is not None and facts.control.soft_ids
        (cut_head if has_soft else cut_vocabulary)(policy.causal_lm, vocabulary)
    return policy.to(device).eval()
