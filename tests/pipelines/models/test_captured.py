"""Captured sampling: the model's own distribution, one seed per sample, every family or none."""

from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import LlamaConfig, LlamaForCausalLM

from pipelines.models.captured import CapturedSampler, _apart, rounding_distance
from pipelines.models.draw_kernel import drawn_by_kernel
from pipelines.models.fused_norms import fused, plain_rms_norms
from pipelines.models.generation import generate
from pipelines.models.job_sampler import JobSampler
from pipelines.models.loading import load_causal_lm
from pipelines.models.response_ends import ResponseEnds
from pipelines.models.row_attention import _by_kernel, _by_mask
from pipelines.models.token_draws import _drawn_by_torch, draw_tokens, uniform_numbers
from pipelines.recipe.evaluation import GenerationSection

ENDS = ResponseEnds((3, 4))


def prompts_of(count: int, vocabulary: int, longest: int = 16) -> list[list[int]]:
    """Of 1 token and more, none of them an end; the first two are the same."""
    chance = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, longest, (count,), generator=chance).tolist()
    drawn = [torch.randint(5, vocabulary, (n,), generator=chance).tolist() for n in lengths]
    return [drawn[1], [6], *drawn[1:-1]]


@torch.no_grad()
def next_probabilities(model: Any, ids: list[int]) -> np.ndarray:
    """Of a whole forward without any cache, float64 [V]."""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    return logits.double().softmax(-1).numpy()


@pytest.mark.parametrize("num_rows", [3, 64])
def test_greedy_continuations_are_those_of_generate(num_rows: int) -> None:
    """40 prompts of 1 to 15 tokens: through 3 rows, which are filled again, and all at once."""
    model = families.tiny_model("qwen2", vocabulary=100)
    ends = ResponseEnds(tuple(range(0, 15)))  # so that many end early, each at its own token
    prompts = prompts_of(40, 100)
    settings = GenerationSection(max_new_tokens=11, temperature=0.0)
    found = CapturedSampler(model, ends, settings, 64, num_rows)(prompts, range(40))
    assert found == generate(model, ends, prompts, settings, 0)
    assert len({len(ids) for ids in found}) > 3


@torch.no_grad()
def test_rounding_is_allowed_and_a_wrong_position_is_not() -> None:
    """30 layers in bfloat16: float32's logits of the same weights are within what is allowed, those
    of a last position that is one too high are not.
    """
    config = LlamaConfig(
        vocab_size=512, hidden_size=96, intermediate_size=256, num_hidden_layers=30,
        num_attention_heads=6, num_key_value_heads=3, initializer_range=0.06,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval().to(torch.bfloat16)
    ids = torch.randint(512, (4, 40))
    whole = deepcopy(model).float()(input_ids=ids).logits[:, -1]
    rounded = model(input_ids=ids).logits[:, -1].float()
    places = torch.arange(40)[None].repeat(4, 1)
    places[:, -1] += 1
    wrong = model(input_ids=ids, position_ids=places).logits[:, -1].float()
    allowed = rounding_distance(torch.bfloat16, 30)
    assert (_apart(rounded, whole) < allowed).all()
    assert (_apart(wrong, rounded) > allowed).all()
    assert rounding_distance(torch.float32, 30) < allowed / 100
    assert rounding_distance(torch.bfloat16, 8) < allowed < rounding_distance(torch.bfloat16, 80)


@pytest.mark.parametrize("family", families.matrix())
def test_a_family_is_decoded_as_its_own_forward_says_or_refused(family: str) -> None:
    """Windows, experts, latent attention, shared keys: greedy tokens against whole forwards."""
    model = families.tiny_model(family)
    settings = GenerationSection(max_new_tokens=9, temperature=0.0)
    sampler = JobSampler(ENDS)
    prompts = prompts_of(7, 29, longest=12)
    made = sampler._sampler(model, prompts, settings)
    if family in ("llama", "gpt_neox", "gpt2", "qwen3", "cohere2", "gemma3", "mixtral", "phi"):
        assert made is not None
    if made is None:
        (warning,) = sampler.warnings
        assert "cannot be captured" in warning and "\n" not in warning
        return
    for prompt, found in zip(prompts, made(prompts, range(7)), strict=True):
        ids = list(prompt)
        for token in found:
            assert token == next_probabilities(model, ids).argmax()
            ids.append(token)
        assert len(found) == 9 or found[-1] in ENDS.ids


@pytest.mark.parametrize(
    ("temperature", "top_p"), [pytest.param(1.0, 1.0, marks=pytest.mark.slow), (0.7, 0.8)]
)
def test_samples_have_the_exact_distribution(temperature: float, top_p: float) -> None:
    """All continuations of two tokens of a vocabulary of 11, counted beside their probability.

    The probabilities are worked out here from whole forwards: tempered, then the fewest likeliest
    tokens that reach top_p. A continuation that ends has one token. Negative control: the same
    counts do not fit another temperature.
    """
    model = families.tiny_model("llama", vocabulary=11)
    model.get_output_embeddings().weight.data.mul_(1.5)
    ends, prompt, count = ResponseEnds((3,)), [5, 9, 7], 20_000

    def kept(ids: list[int], tempered: float) -> np.ndarray:
        p = next_probabilities(model, ids) ** (1 / tempered)
        p /= p.sum()
        order = np.argsort(-p)
        more = order[np.cumsum(p[order]) - p[order] >= top_p]
        p[more] = 0
        return p / p.sum()

    def exact(tempered: float) -> dict[tuple[int, ...], float]:
        first = kept(prompt, tempered)
        found: dict[tuple[int, ...], float] = {(3,): first[3]}
        for token in range(11):
            if token != 3:
                second = kept([*prompt, token], tempered)
                found |= {(token, last): first[token] * second[last] for last in range(11)}
        return found

    settings = GenerationSection(max_new_tokens=2, temperature=temperature, top_p=top_p)
    drawn = CapturedSampler(model, ends, settings, 64, 512)([prompt] * count, range(count))
    counts = Counter(tuple(ids) for ids in drawn)

    def fit(tempered: float) -> float:
        expected = {ids: count * p for ids, p in exact(tempered).items() if p > 0}
        if set(counts) - set(expected):
            return 0.0
        rare = [ids for ids, number in expected.items() if number < 5]
        often = [ids for ids in expected if ids not in rare]
        observed = [counts[ids] for ids in often] + [sum(counts[ids] for ids in rare)] * bool(rare)
        wanted = [expected[i] for i in often] + [sum(expected[i] for i in rare)] * bool(rare)
        assert len(often) > 8
        return float(chisquare(observed, wanted).pvalue)

    assert fit(temperature) > 0.01
    assert fit(0.9 * temperature) < 1e-6


def test_tokens_follow_their_cumulative_probability() -> None:
    """Every thousandth of the unit interval, against numpy; -inf is never drawn.

    600 tokens: three parts, the last one filled up.
    """
    chance = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(600, generator=chance)
    logits[[0, 255, 256, 511, 512, 599]] = -torch.inf
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    found, is_finite = draw_tokens(logits.expand(1000, -1), uniform, 1.0, 1.0)
    assert bool(is_finite.all())
    cumulative = logits.softmax(-1).double().numpy().cumsum()
    expected = np.searchsorted(cumulative, uniform.numpy() * cumulative[-1], side="right")
    assert found.tolist() == expected.tolist()
    assert not torch.isinf(logits[found]).any()
    edges = torch.tensor([2.0**-33, 1 - 2.0**-33], dtype=torch.float64)
    assert draw_tokens(logits.expand(2, -1), edges, 1.0, 1.0)[0].tolist() == [1, 598]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(("width", "group"), [(64, 3), (80, 1), (128, 4), (256, 17)])
def test_the_kernel_attends_as_torch_does(width: int, group: int, window: int | None) -> None:
    """Rows of 1 to 700 columns of 768; what lies beyond a row's columns is no number."""
    chance = torch.Generator("cuda").manual_seed(0)
    shapes = ((5, 2, group, width), (5, 2, 768, width), (5, 2, 768, width))
    query, key, value = (
        torch.randn(shape, generator=chance, device="cuda", dtype=torch.bfloat16)
        for shape in shapes
    )
    last = torch.tensor([0, 63, 64, 300, 699], device="cuda")
    expected = _by_mask(query, key, value, last, 0.1, window)
    for row, column in enumerate(last.tolist()):
        key[row, :, column + 1 :] = value[row, :, column + 1 :] = torch.nan
    found = _by_kernel(query, key, value, last, 0.1, window)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.3, 0.001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_draws_as_torch_does(dtype: torch.dtype, top_p: float) -> None:
    """But for rows whose number is within a rounding of a border; -inf and NaN among the logits."""
    chance = torch.Generator("cuda").manual_seed(0)
    logits = 3 * torch.randn(512, 49_153, generator=chance, device="cuda").to(dtype)
    logits[::2, 7::3] = -torch.inf
    uniform = uniform_numbers(range(512), 1)[:, 0].cuda()
    found, is_finite = drawn_by_kernel(logits, uniform, 0.8, top_p)
    expected, _ = _drawn_by_torch(logits, uniform, 0.8, top_p)
    assert float((found == expected).float().mean()) > 0.98
    assert bool(is_finite.all())
    logits[5, 40_000] = torch.nan
    assert drawn_by_kernel(logits, uniform, 0.8, top_p)[1].logical_not().nonzero().tolist() == [[5]]


def test_norms_are_fused_where_they_are_plain() -> None:
    """Llama's five, and none of Gemma's, which add 1 to the weight; both are left as they were."""
    llama, gemma = families.tiny_model("llama"), families.tiny_model("gemma")
    norms = plain_rms_norms(llama)
    assert (len(norms), plain_rms_norms(gemma)) == (5, [])
    states = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    module, epsilon = norms[0]
    expected = module.weight * states / (states.square().mean(-1, keepdim=True) + epsilon).sqrt()
    with fused(norms):
        assert "forward" in vars(module)
        torch.testing.assert_close(module(states), expected)
    assert "forward" not in vars(module)
    torch.testing.assert_close(module(states), expected)


def test_uniform_numbers_are_those_of_their_seed() -> None:
    """Philox's first numbers, as every version of numpy gives them; rows know nothing of others."""
    found = uniform_numbers([7, 2**64 - 1, 7], 3)
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])
    assert torch.equal(found[:, :2], uniform_numbers([7, 2**64 - 1, 7], 2))
    raw = np.random.Philox(key=7).random_raw(3) >> np.uint64(32)
    assert found[0].tolist() == [(int(number) + 0.5) / 2**32 for number in raw]
    many = uniform_numbers(range(2000), 5).numpy()
    assert chisquare(np.histogram(many, 20, (0, 1))[0]).pvalue > 0.01


def test_a_sample_depends_on_its_prompt_and_seed_alone(model_dir: Path) -> None:
    """Alone, among others, in another order, through fewer rows: the same tokens."""
    model = load_causal_lm(str(model_dir), torch.float32)
    settings, prompts = GenerationSection(max_new_tokens=8), prompts_of(30, 100)
    sampler = CapturedSampler(model, ENDS, settings, 64, 16)
    found = sampler(prompts, range(30))
    assert sampler(prompts, range(30)) == found
    assert sampler(prompts[::-1], range(29, -1, -1)) == found[::-1]
    assert sampler([prompts[4]], [4]) == [found[4]]
    assert CapturedSampler(model, ENDS, settings, 256, 3)(prompts, range(30)) == found
    assert prompts[0] == prompts[2] and found[0] != found[2], "another seed, another sample"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_error(model_dir: Path, temperature: float) -> None:
    model = load_causal_lm(str(model_dir), torch.float32)
    settings = GenerationSection(max_new_tokens=3, temperature=temperature)
    sampler = CapturedSampler(model, ENDS, settings, 64, 4)
    model.get_output_embeddings().weight.data[50] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        sampler([[5, 6]], [0])


def test_what_cannot_be_captured_is_drawn_in_batches_and_said_once() -> None:
    """Mamba keeps a state: `generate` draws, two prompts at a time, and there is one warning."""
    model = families.tiny_model("mamba")
    settings, prompts = GenerationSection(max_new_tokens=5), prompts_of(5, 29)
    sampler = JobSampler(ENDS)
    found = sampler(model, prompts, settings, range(10, 15), 2)
    assert sampler(model, prompts, settings, range(10, 15), 2) == found
    batches = [generate(model, ENDS, prompts[i : i + 2], settings, 10 + i) for i in (0, 2, 4)]
    assert found == [ids for batch in batches for ids in batch]
    (warning,) = sampler.warnings
    assert warning.startswith(
        "MambaForCausalLM is sampled in batches: its decoding cannot be captured"
    )
