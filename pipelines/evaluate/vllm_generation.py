"""Sampling with vLLM through ray.data.llm, where vLLM is installed.

Nobody has run this against a real vLLM yet: rows go in and come out as Ray's processor documents
them, which a test holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

from pipelines.cluster import Resources, quieten_ray_data
from pipelines.errors import UserError
from pipelines.models import ResponseEnds, may_run
from pipelines.recipe import GenerationSection


@dataclass(frozen=True)
class Request:
    """One sample to draw. Its seed is its own, so it does not depend on what is drawn beside it."""

    prompt_ids: Sequence[int]
    settings: GenerationSection
    seed: int

    def row(self, number: int, ends: ResponseEnds) -> dict[str, Any]:
        """For vLLM's engine: the same distribution as `generation.generate` draws from."""
        sampling = {
            "max_tokens": self.settings.max_new_tokens,
            "temperature": self.settings.temperature,
            "top_p": self.settings.top_p if self.settings.temperature > 0 else 1.0,
            "top_k": 0,
            "repetition_penalty": 1.0,
            "seed": self.seed % 2**31,
            "stop_token_ids": list(ends.ids),
            "skip_special_tokens": False,
            "detokenize": False,
        }
        return {
            "number": number,
            "tokenized_prompt": [int(i) for i in self.prompt_ids],
            "sampling_params": sampling,
        }


def require_vllm() -> None:
    """UserError if vLLM is not installed here."""
    if util.find_spec("vllm") is None:
        raise UserError(
            "generation.engine = 'vllm': vLLM is not installed; install it on every node, or take "
            "engine=transformers"
        )


def vllm_samples(model: str, ends: ResponseEnds, requests: Sequence[Request]) -> list[list[int]]:
    """The continuation for each request by the model in a directory.

    It goes up to and including the first end token. Needs a running Ray. The engine is started once
    for all requests.
    """
    import ray.data

    require_vllm()
    quieten_ray_data()
    sampler = vllm_processor(model, concurrency=max(1, int(Resources.now().gpus())))
    rows = [request.row(number, ends) for number, request in enumerate(requests)]
    found = {
        row["number"]: ends.cut([int(i) for i in row["ids"]])
        for row in sampler(ray.data.from_items(rows)).iter_rows()
    }
    return [found[number] for number in range(len(requests))]


def vllm_processor(model: str, concurrency: int) -> Any:
    """Ray's processor from `Request.row`s to rows of number and ids."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    config = vLLMEngineProcessorConfig(
        model_source=model,
        # generation_config: none of the model's own defaults, as in `generation.generate`.
        engine_kwargs={
            "trust_remote_code": may_run(Path(model)),
            "enable_prefix_caching": True,
            "generation_config": "vllm",
        },
        concurrency=concurrency,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        log_engine_metrics=False,
    )
    return build_processor(
        config, postprocess=lambda row: {"number": row["number"], "ids": row["generated_tokens"]}
    )
