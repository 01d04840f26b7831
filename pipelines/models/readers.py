"""The models that read a recipe's pairs: whether they know its tokens and take its lengths.

Configurations and headers say so; nothing is loaded but the tokenizer.
"""

from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UserError
from pipelines.models.control import recorded_control
from pipelines.models.directories import base_dir, max_positions, resolve_model
from pipelines.models.fingerprints import ask_tokenizer, check_family
from pipelines.models.sizes import check_tokenizer, embedding_rows, tokens_in_use
from pipelines.recipe import Recipe, ReferenceSection
from pipelines.storage import digest
from sparsepo.features import FEATURES

_DISTRIBUTIONS = {"reference_hidden", "reference_topk"}  # token by token beside the policy's


def readers(recipe: Recipe) -> dict[str, str]:
    """Key of the recipe -> name of every model that reads its pairs as token ids.

    An embedder of its own reads texts, with its own tokenizer.
    """
    model, wanted = recipe.model, recipe.required_features() | recipe.stored_features()
    origins = {FEATURES[name].origin for name in wanted}
    scorers = (model.positive_scorer, model.negative_scorer)
    reads = (
        "reference" in origins
        or ("embedder" in origins and model.embedder is None)
        or ("scorers" in origins and None in scorers)
    )
    named = {
        "model.name_or_path": model.name_or_path,
        "model.reference": model.reference if reads else None,
        "model.positive_scorer": model.positive_scorer if "scorers" in origins else None,
        "model.negative_scorer": model.negative_scorer if "scorers" in origins else None,
        "evaluate.model": recipe.evaluate.model,
    }
    return {key: name for key, name in named.items() if name is not None}


def check_families(recipe: Recipe) -> None:
    """UserError for a model of the recipe that is of no family that is tuned here."""
    for key, name in readers(recipe).items():
        check_family(key, resolve_model(name))


def check_readers(recipe: Recipe) -> None:
    """UserError for a model that cannot read the recipe's pairs, or not beside the others.

    It is no causal language model, its embeddings lack tokens of the tokenizer, its positions are
    fewer than the longest row, an adapter does not fit its base, a scorer has another vocabulary,
    or one of policy and reference lacks tokens of the other where their distributions are compared.
    """
    tokenizer = resolve_model(
        recipe.model.tokenizer or recipe.model.name_or_path, tokenizer_only=True
    )
    found = {key: resolve_model(name) for key, name in readers(recipe).items()}
    for key, directory in found.items():
        check_family(key, directory)
        if key.endswith("_scorer"):
            _check_vocabulary(key, directory, tokenizer)
        if key == "evaluate.model":
            _check_ids(key, directory, tokenizer)
        if key != "model.reference":
            check_tokenizer(key, directory, tokenizer)
        elif recipe.reference.max_failed_fraction <= _USUAL:
            try:
                check_tokenizer(key, directory, tokenizer)
            except UserError as error:
                raise UserError(
                    f"{error}; with reference.max_failed_fraction above {_USUAL} rows with such "
                    "tokens are left out"
                ) from None
        check_positions(key, directory, longest_row(recipe), _ROW)
    wanted = recipe.required_features() | recipe.stored_features()
    start = found["model.name_or_path"]
    if (compared := sorted(_DISTRIBUTIONS & wanted)) and "model.reference" in found:
        why = f"objective.name = {recipe.objective.name} compares"
        reference = ("model.reference", found["model.reference"])
        _check_distributions(start, reference, f"{why} {{}} ({compared[0]})", tokenizer)
    if "evaluate.model" in found:
        key = "model.reference" if recipe.model.reference else "model.name_or_path"
        reference = (key, resolve_model(recipe.model.reference or recipe.model.name_or_path))
        evaluated = found["evaluate.model"]
        _check_distributions(evaluated, reference, "an evaluation compares {}", tokenizer)


@dataclass(frozen=True)
class Vocabularies:
    """Embeddings of the policy and of its reference, where one has more of them as padding.

    Attributes:
        soft: the first row of a soft token, which is never predicted; None without any.
    """

    policy: int
    reference: int
    soft: int | None = None

    @property
    def common(self) -> int:
        """The rows that both have, over which they are compared."""
        rows = min(self.policy, self.reference)
        return rows if self.soft is None else min(rows, self.soft)

    def __str__(self) -> str:
        return (
            f"the policy has {self.policy} rows of embeddings, the reference {self.reference}: "
            f"compared over the {self.common} that both have"
        )


def padded_vocabularies(recipe: Recipe) -> Vocabularies | None:
    """The sizes of a policy and a reference that differ by embeddings which no token uses.

    None where both have as many, and where the tokenizer uses rows that one of them lacks: these
    are no padding, so nothing is cut.
    """
    if recipe.model.reference is None:
        return None
    policy, reference = map(resolve_model, (recipe.model.name_or_path, recipe.model.reference))
    check_family("model.reference", reference)
    controls = map(recorded_control, (policy, reference))
    soft = [each.first for each in controls if each is not None and each.first is not None]
    rows = embedding_rows(policy), embedding_rows(reference)
    found = Vocabularies(*rows, soft=min(soft, default=None))
    if found.policy == found.reference == found.common:
        return None
    name = recipe.model.tokenizer or recipe.model.name_or_path
    used = tokens_in_use(resolve_model(name, tokenizer_only=True))
    return found if used["largest"] < found.common else None


def models_are_here(recipe: Recipe) -> bool:
    """Whether all of them lie on this machine, bases of adapters too: nothing is fetched."""
    names = [*readers(recipe).values(), recipe.model.tokenizer or recipe.model.name_or_path]
    if not all(Path(name).is_dir() for name in names):
        return False
    try:
        return all(base_dir(Path(name)).is_dir() for name in names)
    except UserError:
        return False


def num_known_tokens(recipe: Recipe, tokenizer: Path) -> int | None:
    """Ids below this have embeddings in the starting model; None if all of its tokenizer's have.

    Args:
        tokenizer: its directory.
    """
    rows = embedding_rows(resolve_model(recipe.model.name_or_path))
    return rows if tokens_in_use(tokenizer)["last"] >= rows else None


_USUAL: float = ReferenceSection.model_fields["max_failed_fraction"].default
_ROW = "data.max_prompt_tokens + max_response_tokens = {tokens} (or data.max_tokens)"


def longest_row(recipe: Recipe) -> int:
    """Tokens of the longest prompt with its response."""
    data = recipe.data
    whole = data.max_prompt_tokens + data.max_response_tokens
    return whole if data.max_tokens is None else min(whole, data.max_tokens)


def check_positions(key: str, directory: Path, tokens: int, what: str) -> None:
    """UserError if so many tokens are more than a model reads.

    Args:
        key: of the recipe, which names the model. what: has so many; {tokens} is the number.
    """
    limit = max_positions(directory)
    if limit is not None and tokens > limit:
        raise UserError(
            f"{what.format(tokens=tokens)}: the model reads at most {limit} tokens ({key} = "
            f"{directory})"
        )


def check_generation(recipe: Recipe, key: str, prompt_tokens: int, new_tokens: int) -> None:
    """UserError if a sampled model cannot read so long a prompt with so many new tokens.

    Args:
        key: of the recipe's section on generation. prompt_tokens: of the longest prompt.
    """
    what = (
        f"a prompt of {prompt_tokens} tokens and {key}.max_new_tokens = {new_tokens} are "
        "{tokens} tokens"
    )
    sampled = {
        "model.name_or_path": recipe.model.name_or_path,
        "evaluate.model": recipe.evaluate.model,
    }
    for named, model in sampled.items():
        if model is not None:
            check_positions(named, resolve_model(model), prompt_tokens + new_tokens, what)


def _check_vocabulary(key: str, directory: Path, tokenizer: Path) -> None:
    """UserError if a scorer has a tokenizer of its own, with other tokens."""
    if (directory / "tokenizer.json").is_file() and (
        _vocabulary(directory) != _vocabulary(tokenizer)
    ):
        raise UserError(
            f"{key} = {directory}: its tokenizer has another vocabulary than the policy's "
            f"({tokenizer})"
        )


def _check_ids(key: str, directory: Path, tokenizer: Path) -> None:
    """UserError if a model has a tokenizer of its own to which a token has another id.

    More tokens, as padding that a trainer added, are all right.
    """
    if not (directory / "tokenizer.json").is_file() or (
        _vocabulary(directory) == _vocabulary(tokenizer)
    ):
        return
    from pipelines.models.loading import load_tokenizer

    own = load_tokenizer(str(directory)).get_vocab()
    pairs = load_tokenizer(str(tokenizer)).get_vocab()
    for token, number in sorted(pairs.items(), key=lambda item: item[1]):
        if own.get(token) != number:
            said = own.get(token, "none")
            raise UserError(
                f"{key} = {directory}: its tokenizer has other tokens than the one that encodes "
                f"the pairs ({tokenizer}): {token!r} is {number} there, {said} here"
            )


def _vocabulary(directory: Path) -> str:
    found: str = ask_tokenizer(
        "vocabulary", directory, lambda tokenizer: digest(tokenizer.get_vocab())
    )
    return found


def _check_distributions(policy: Path, named: tuple[str, Path], why: str, tokenizer: Path) -> None:
    """UserError if a KL would compare distributions of which one lacks tokens in use.

    Args:
        named: key and directory of the reference. why: they are compared, {} being the two.
    """
    key, reference = named
    own, other = embedding_rows(policy), embedding_rows(reference)
    used = tokens_in_use(tokenizer)
    if own != other and used["largest"] >= min(own, other):
        raise UserError(
            f"{key} = {reference}: it has {other} tokens, the policy {policy} has "
            f"{own}; {why.format('their distributions')} over the {min(own, other)} that both "
            f"have, and the tokenizer uses {used['largest']} ({used['name']!r}): take a reference "
            "that has it, or resize it (model.resize_token_embeddings)"
        )
