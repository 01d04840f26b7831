"""How the discriminator of tokens is trained, and who edits responses for it."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipelines.recipe.endpoint import EndpointSection
from pipelines.recipe.location import Model
from pipelines.recipe.section import Section, of_stage

TOKEN_STATES = "token_states"  # the feature of the reference that a discriminator learns from


class EndpointEditor(EndpointSection):
    """Any endpoint that speaks OpenAI's chat completions.

    base_url: up to and without /chat/completions. model: its name at the endpoint. max_tokens,
    temperature: of an answer. api_key_env: environment variable with the key, if the endpoint wants
    one. timeout_seconds: of a try. max_tries: of one response. num_threads: responses at once.
    max_failed_fraction: responses that may stay without an edit; their pairs are left out.
    """

    STAGE: ClassVar[str | None] = "discriminator"


class ModelEditor(Section):
    """A chat model that edits where the actors are.

    name_or_path: its directory or name; its tokenizer has a chat template. max_new_tokens,
    temperature, top_p: of an answer; temperature 0 takes the likeliest token. seed: of its samples.
    batch_responses: responses per task.
    """

    STAGE: ClassVar[str | None] = "discriminator"
    kind: Literal["model"] = "model"
    name_or_path: Model
    max_new_tokens: int = Field(256, ge=1)
    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = 0
    batch_responses: int = of_stage(None, 32, ge=1)


Editor = Annotated[EndpointEditor | ModelEditor, Field(discriminator="kind")]


class DiscriminatorSection(Section):
    """What `sparsepo discriminator` trains: two classes on frozen states of the reference's tokens.

    layer: of the reference, 1 to L; the last by default. A recipe that names one refuses a
    model.discriminator of another. editor: who improves rejected responses, whose edits are then
    aligned with them; without one, chosen responses are. equal: tokens that both responses share
    are left out, or neutral (wanted: 1/2). epochs: times that every pair is seen. max_steps: the
    last step, where it comes first. batch_pairs: per step. learning_rate: at its first step; it
    falls to zero linearly. weight_decay: AdamW's, of the map. seed: of the order of pairs.
    checkpoint_every: steps. held_out: the split that the figures are of.
    """

    STAGE: ClassVar[str | None] = "discriminator"
    layer: int | None = Field(None, ge=1)
    editor: Editor | None = None
    equal: Literal["left_out", "neutral"] = "left_out"
    epochs: float = Field(2.0, gt=0)
    max_steps: int | None = Field(None, ge=1)
    batch_pairs: int = Field(64, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    seed: int = 0
    held_out: Literal["validation", "test"] = "test"
    checkpoint_every: int = of_stage(None, 100, ge=1)
