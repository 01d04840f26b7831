"""The models that read a recipe's pairs: whether they know its tokens and take its lengths.

Configurations and headers say so; nothing is loaded but the tokenizer.
"""

from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UserError
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
    if compared := sorted(_DISTRIBUTIONS & wanted):
        _check_distributions(recipe, found, compared[0], tokenizer)


@dataclass(frozen=True)
class Vocabularies:
    """Embeddings of the policy and of its reference, where one has more of them as padding."""

    policy: int
    reference: int

    @property
    def common(self) -> int:
        """The rows that both have, over which they are compared."""
        return min(self.policy, self.reference)

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
    found = Vocabularies(embedding_rows(policy), embedding_rows(reference))
    if found.policy == found.reference:
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
    """UserError if the starting model cannot read so long a prompt with so many new tokens.

    Args:
        key: of the recipe's section on generation. prompt_tokens: of the longest prompt.
    """
    directory = resolve_model(recipe.model.name_or_path)
    what = (
        f"a prompt of {prompt_tokens} tokens and {key}.max_new_tokens = {new_tokens} are "
        "{tokens} tokens"
    )
    check_positions("model.name_or_path", directory, prompt_tokens + new_tokens, what)


def _check_vocabulary(key: str, directory: Path, tokenizer: Path) -> None:
    """UserError if a scorer has a tokenizer of its own, with other tokens."""
    if (directory / "tokenizer.json").is_file() and (
        _vocabulary(directory) != _vocabulary(tokenizer)
    ):
        raise UserError(
            f"{key} = {directory}: its tokenizer has another vocabulary than the policy's "
            f"({tokenizer})"
        )


def _vocabulary(directory: Path) -> str:
    found: str = ask_tokenizer(
        "vocabulary", directory, lambda tokenizer: digest(tokenizer.get_vocab())
    )
    return found


def _check_distributions(
    recipe: Recipe, found: dict[str, Path], feature: str, tokenizer: Path
) -> None:
    """UserError if a KL would compare distributions of which one lacks tokens in use."""
    if "model.reference" not in found:
        return
    policy, reference = found["model.name_or_path"], found["model.reference"]
    own, other = embedding_rows(policy), embedding_rows(reference)
    used = tokens_in_use(tokenizer)
    if own != other and used["largest"] >= min(own, other):
        raise UserError(
            f"model.reference = {reference}: it has {other} tokens, the policy {policy} has "
            f"{own}; objective.name = {recipe.objective.name} compares their distributions "
            f"({feature}) over the {min(own, other)} that both have, and the tokenizer uses "
            f"{used['largest']} ({used['name']!r}): take a reference that has it, or resize it "
            "(model.resize_token_embeddings)"
        )
