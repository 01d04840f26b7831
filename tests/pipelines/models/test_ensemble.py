"""Several models read together: distributions against whole forwards and the formula in float64."""

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.models.ensemble import Ensemble, Voices, load_ensemble
from pipelines.models.generation import generate
from pipelines.models.loading import load_causal_lm
from pipelines.models.merged_sampling import sample_merged
from pipelines.models.response_ends import ResponseEnds
from pipelines.recipe.evaluation import GenerationSection
from sparsepo.merging import Form, merge_logps

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
CPU, ENDS, ROWS = torch.device("cpu"), ResponseEnds((3, 4)), 29
SIZES = {
    "vocab_size": ROWS,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
}
PROMPTS = [[5, 9, 11], [7], [8, 6, 5, 20, 21, 22, 7], [12, 13]]


def write_adapter(base: Path, folder: Path, seed: int, **settings: Any) -> Path:
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(
            **{"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj", "up_proj"]} | settings
        ),
    )
    torch.manual_seed(seed)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.4 * torch.randn_like(parameter))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, two adapters of it, some that share nothing, and another model."""
    folder = tmp_path_factory.mktemp("ensemble")
    for name, seed in (("base", 0), ("other", 5)):
        torch.manual_seed(seed)
        config = AutoConfig.for_model("llama", **SIZES)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
    for name, seed in (("gpt", 7), ("other gpt", 8)):  # positions that are not relative
        torch.manual_seed(seed)
        config = AutoConfig.for_model(
            "gpt2", vocab_size=ROWS, n_embd=16, n_layer=2, n_head=4, n_positions=64,
            initializer_range=0.4,
        )  # fmt: skip
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
    base = folder / "base"
    return {
        "base": base,
        **{name: folder / name for name in ("other", "gpt", "other gpt")},
        "one": write_adapter(base, folder / "one", 1),
        "two": write_adapter(base, folder / "two", 2, r=2, use_rslora=True),
        "dora": write_adapter(base, folder / "dora", 3, use_dora=True),
        "whole head": write_adapter(base, folder / "head", 4, modules_to_save=["lm_head"]),
        "whole norm": write_adapter(base, folder / "norm", 6, modules_to_save=["norm"]),
    }


@cache
def alone(directory: Path) -> Any:
    return load_causal_lm(str(directory), torch.float32)


def ensemble_of(*directories: Path) -> Ensemble:
    return load_ensemble(directories, torch.float32, CPU, alone)


@cache
def in_float64(directory: Path) -> Any:
    return load_causal_lm(str(directory), torch.float32).double()


@torch.no_grad()
def own_probabilities(directories: Sequence[Path], ids: Sequence[int]) -> np.ndarray:
    """[K, V] of the next token: each model loaded alone, in float64, no cache and no padding."""
    rows = []
    for directory in directories:
        model = in_float64(directory)
        logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1]
        rows.append(np.exp((logits - logits.logsumexp(-1)).numpy()))
    return np.stack(rows)


CASES = {
    "absolute positions": (("gpt", "other gpt"), "models 1, 2: weights of their own in memory"),
    "whole models": (("base", "other"), "models 1, 2: weights of their own in memory"),
    "adapters": (("one", "two"), "models 1, 2: adapters of base, .* once; one forward serves all"),
    "dora": (("one", "dora", "two"), "models 1, 2, 3: .* once; a forward for each"),
    "mixed": (
        ("other", "two", "one"),
        "models 2, 3: adapters of base.*\nmodel 1: weights of their",
    ),
    "a head of its own": (("whole head", "one"), "models 1, 2: weights of their own"),
    "a norm of its own": (("one", "whole norm", "two"), "models 1, 3: adapters.*\nmodel 2: "),
}


@pytest.mark.parametrize("form", ["mixture", "product"])
@pytest.mark.parametrize("case", CASES)
def test_every_step_is_the_formula_on_each_models_own_whole_forward(
    case: str, form: Form, places: dict[str, Path]
) -> None:
    names, shared = CASES[case]
    directories = [places[name] for name in names]
    ensemble = ensemble_of(*directories)
    lines = "\n".join(ensemble.shared)
    assert re.search(shared, lines), lines
    chance = torch.Generator().manual_seed(4)
    weights = torch.rand(len(PROMPTS), len(names), generator=chance).softmax(-1)
    seen: list[torch.Tensor] = []

    def rule(logps: torch.Tensor, states: Any) -> torch.Tensor:
        seen.append(merge_logps(logps, weights, form))
        return seen[-1]

    settings = GenerationSection(max_new_tokens=5)
    found = sample_merged(ensemble, ENDS, PROMPTS, settings, 0, 1, rule)
    for i, (prompt, drawn) in enumerate(zip(PROMPTS, found, strict=True)):
        for step in range(len(drawn)):
            own = own_probabilities(directories, [*prompt, *drawn[:step]])
            w = weights[i].double().numpy()[:, None]
            expected = (w * own).sum(0) if form == "mixture" else (own**w).prod(0)
            expected /= expected.sum()
            np.testing.assert_allclose(seen[step][i].exp().numpy(), expected, atol=2e-5)
    assert max(map(len, found)) > 1


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("form", ["mixture", "product"])
def test_with_all_weight_on_one_model_the_tokens_are_those_of_generate(
    k: int, form: Form, places: dict[str, Path]
) -> None:
    """The same seed, temperature and top_p, two samples of each prompt."""
    ensemble = ensemble_of(places["base"], places["other"])
    settings = GenerationSection(max_new_tokens=9, temperature=0.8, top_p=0.9)
    weights = torch.eye(2)[k].expand(2 * len(PROMPTS), 2)
    found = sample_merged(
        ensemble, ENDS, PROMPTS, settings, 7, 2, lambda logps, _: merge_logps(logps, weights, form)
    )
    model = alone(places[("base", "other")[k]])
    assert found == generate(model, ENDS, PROMPTS, settings, 7, 2)
    assert len({tuple(ids) for ids in found}) > 4


def test_temperature_and_top_p_act_on_the_merged_distribution(places: dict[str, Path]) -> None:
    """6,000 first tokens of a mixture against its sharpened and cut distribution; sharpened
    before merging it would be another one.
    """
    directories = [places["base"], places["other"]]
    settings = GenerationSection(max_new_tokens=1, temperature=0.5, top_p=0.8)
    weights = torch.tensor([0.5, 0.5]).expand(6_000, 2)
    found = sample_merged(
        ensemble_of(*directories), ENDS, [[5, 9, 11]], settings, 0, 6_000,
        lambda logps, _: merge_logps(logps, weights, "mixture"),
    )  # fmt: skip
    counts = np.bincount([ids[0] for ids in found], minlength=ROWS) / len(found)
    own = own_probabilities(directories, [5, 9, 11])

    def drawn_from(p: np.ndarray) -> np.ndarray:
        order = np.argsort(-p)
        kept = order[: int(np.searchsorted(np.cumsum(p[order]), 0.8)) + 1]
        cut = np.zeros_like(p)
        cut[kept] = p[kept]
        return cut / cut.sum()

    def sharp(p: np.ndarray) -> np.ndarray:
        return p**2 / (p**2).sum(-1, keepdims=True)

    expected, otherwise = drawn_from(sharp(own.mean(0))), drawn_from(sharp(own).mean(0))
    assert np.abs(counts - expected).max() < 0.025 < np.abs(counts - otherwise).max()


def test_the_likeliest_token_of_the_merge_at_temperature_0(places: dict[str, Path]) -> None:
    directories = [places["base"], places["other"]]
    weights = torch.tensor([0.4, 0.6]).expand(len(PROMPTS), 2)
    found = sample_merged(
        ensemble_of(*directories), ENDS, PROMPTS,
        GenerationSection(max_new_tokens=1, temperature=0.0), 0, 1,
        lambda logps, _: merge_logps(logps, weights, "mixture"),
    )  # fmt: skip
    for prompt, ids in zip(PROMPTS, found, strict=True):
        assert ids == [
            int((np.array([0.4, 0.6]) @ own_probabilities(directories, prompt)).argmax())
        ]


def test_a_map_is_given_what_the_first_models_head_reads(places: dict[str, Path]) -> None:
    """At every step, padding left out; of adapters too, whatever their order in memory."""
    for names in (("base", "other"), ("two", "other", "one")):
        states: list[torch.Tensor] = []

        def rule(logps: torch.Tensor, read: torch.Tensor | None) -> torch.Tensor:
            assert read is not None
            states.append(read)  # noqa: B023
            return logps[0]

        found = sample_merged(
            ensemble_of(*(places[name] for name in names)), ENDS, PROMPTS,
            GenerationSection(max_new_tokens=3), 1, 1, rule, reads_states=True,
        )  # fmt: skip
        model = alone(places[names[0]])
        for i, (prompt, drawn) in enumerate(zip(PROMPTS, found, strict=True)):
            for step in range(len(drawn)):
                ids = torch.tensor([[*prompt, *drawn[:step]]])
                with torch.no_grad():
                    expected = model.model(input_ids=ids).last_hidden_state[0, -1]
                torch.testing.assert_close(states[step][i], expected, atol=2e-5, rtol=1e-4)


def test_a_family_without_a_cache_reads_all_tokens_again(places: dict[str, Path]) -> None:
    """A model that keeps nothing between steps draws what one with a cache does."""

    class Forgets(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model, self.device = model, CPU

        def get_output_embeddings(self) -> Any:
            return self.model.get_output_embeddings()

        def forward(self, past_key_values: Any = None, use_cache: bool = True, **given: Any) -> Any:
            assert past_key_values is None
            output = self.model(use_cache=False, **given)
            output.past_key_values = None
            return output

    model = alone(places["base"])
    drawn: Callable[[Any], list[list[int]]] = lambda causal_lm: sample_merged(  # noqa: E731
        Ensemble((Voices(causal_lm, (0,)),), ()), ENDS, PROMPTS,
        GenerationSection(max_new_tokens=6), 3, 1, lambda logps, _: logps[0],
    )  # fmt: skip
    assert drawn(Forgets(model)) == drawn(model)


def test_a_merge_that_leaves_no_token_is_said(places: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="no token left"):
        sample_merged(
            ensemble_of(places["base"], places["other"]), ENDS, PROMPTS, GenerationSection(), 0, 1,
            lambda logps, _: torch.full_like(logps[0], -torch.inf),
        )  # fmt: skip
