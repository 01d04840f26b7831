"""An endpoint that speaks OpenAI's chat completions, as sections of a recipe name one."""

from typing import Literal

from pydantic import Field

from pipelines.recipe.section import Section, of_stage


class EndpointSection(Section):
    """What a section says of an endpoint; its own stage and meanings stand there."""

    kind: Literal["openai"] = "openai"
    base_url: str = Field(pattern=r"^https?://")
    model: str = Field(min_length=1)
    max_tokens: int = Field(512, ge=1)
    temperature: float = Field(0.0, ge=0)
    api_key_env: str | None = of_stage(None, None)
    timeout_seconds: float = of_stage(None, 60.0, gt=0)
    max_tries: int = of_stage(None, 4, ge=1)
    num_threads: int = of_stage(None, 8, ge=1)
    max_failed_fraction: float = of_stage(None, 0.1, ge=0, le=1)
