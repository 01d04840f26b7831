"""weigh: the tokens of one response, and what a run's mask weighs them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from pipelines.errors import UserError
from pipelines.evaluate.precision import compute_dtype, in_dtype
from pipelines.models import (
    TokenTexts,
    compute_device,
    load_tokenizer,
    resolve_model,
)
from pipelines.pairs import ChatRenderer, Conversation, PairEncoder, RawPair, RowRejected
from pipelines.recipe import MANIFEST, DataSection, Run
from pipelines.reference import load_discriminator, load_reference
from pipelines.train import TRAIN, completed_steps, open_policy, training_facts
from sparsepo import TokenWeights, token_weights
from sparsepo.features import FEATURES


def response_weights(
    run: Run,
    prompt: str,
    response: str,
    other: str | None = None,
    side: Literal["chosen", "rejected"] = "chosen",
    step: int | None = None,
    is_chat: bool = False,
) -> TokenWeights:
    """The weights of one response by a trained run's mask, its tokens as training would see them.

    Args:
        prompt: a text that the response goes on, or with is_chat a turn of the user, which the
            chat template renders. other: the pair's other response. step: of a checkpoint; None is
            the published model.
    Raises: UserError if the run weighs no tokens, its mask reads what comes with pairs alone, or
        the texts cannot be encoded.
    """
    mask = run.recipe.mask
    if mask.kind == "none":
        raise UserError(
            f"objective.name={run.recipe.objective.name} with mask.kind=none: this run has no mask "
            "that weighs tokens"
        )
    known = {"reference", "step", "loop"}
    for name in sorted(mask.requires() - {"pair_keys"}):
        if FEATURES[name].origin not in known:
            raise UserError(
                f"mask.kind={mask.kind} reads {name}, which is known of the run's own pairs alone: "
                "`sparsepo evaluate` with evaluate.benchmarks=[masks] shows these"
            )
    _require_trained(run, step)
    facts = training_facts(run)
    name = facts.model.tokenizer or facts.model.name_or_path
    tokenizer = load_tokenizer(str(resolve_model(name, tokenizer_only=True)))
    given = [response] if other is None else [response, other]
    try:
        asked, answers = encoded_texts(tokenizer, run.recipe.data, prompt, given, is_chat)
    except RowRejected as reason:
        raise UserError(f"these texts make no pair: {reason}") from reason
    device = compute_device()
    dtype = compute_dtype(facts, device)
    reference = load_reference(in_dtype(facts.reference.model, dtype), device)
    policy = open_policy(facts, step, reference.head, dtype, device)
    model = facts.reference.model
    try:
        found = token_weights(
            policy.causal_lm,
            policy.masks,
            asked,
            answers[0],
            reference=reference.causal_lm,
            side=side,
            other=answers[1] if len(answers) > 1 else None,
            hooks=model.hooks,
            mapping=model.mapping,
            discriminator=None
            if model.discriminator is None
            else load_discriminator(model.discriminator),
        )
    except ValueError as error:
        raise UserError(f"mask.kind={mask.kind}: {error}") from error
    return replace(found, tokens=TokenTexts(tokenizer)(answers[0]))


def _require_trained(run: Run, step: int | None) -> None:
    run.record(TRAIN).check()
    store = run.paths.train
    steps = completed_steps(store)
    if step is None and not store.exists(MANIFEST):
        kept = f", or name a checkpoint with --step ({', '.join(map(str, steps))})" if steps else ""
        raise UserError(
            f"{run.recipe.run_dir} has no trained model: run `sparsepo train` to its end{kept}"
        )
    if step is not None and step not in steps:
        raise UserError(
            f"{run.recipe.run_dir} has no checkpoint of step {step}: there are "
            f"{', '.join(map(str, steps)) or 'none'}"
        )


def weight_lines(found: TokenWeights, has_colours: bool = False) -> Iterator[str]:
    """One line per token: reward weight, KL weight, the token's text in quotes.

    Before them the response, its weights as colours, where there are any.
    """
    if has_colours:
        yield from found.text(colours=True).splitlines()
        yield ""
    yield f"{'reward':>8} {'kl':>8}  token"
    begins = found.begins()
    for i, (token, reward, kl) in enumerate(
        zip(found.tokens, found.reward.tolist(), found.kl.tolist(), strict=True)
    ):
        if i in begins:
            yield f"{'':>17}  --- a segment begins"
        yield f"{reward:8.4f} {kl:8.4f}  {json.dumps(token, ensure_ascii=False)}"


def encoded_texts(
    tokenizer: Any, data: DataSection, prompt: str, responses: Sequence[str], is_chat: bool
) -> tuple[list[int], list[list[int]]]:
    """Token ids of a prompt and its responses, as those of a pair with these texts.

    Raises: RowRejected if they make no pair.
    """
    if is_chat:
        asked = {"role": "user", "content": prompt}
        sides = [
            Conversation([asked, {"role": "assistant", "content": reply}]) for reply in responses
        ]
        raw = ChatRenderer(tokenizer, data).pair(*sides)
    else:
        raw = RawPair(prompt, responses[0], responses[1] if len(responses) > 1 else None)
    pair = PairEncoder(tokenizer, data).encode(raw)
    return pair.prompt, [ids for ids in (pair.chosen, pair.rejected) if ids is not None]
