"""A folder with an adapter of peft, loaded here, has the logits of peft's own unmerged model; or it
is refused in one line.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from matrices import members
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.errors import UserError
from pipelines.models.loading import load_causal_lm
from pipelines.models.sizes import embedding_rows
from pipelines.models.tensors import MERGED_KINDS, check_adapter
from sparsepo.model import cut_vocabulary

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
ROWS, MORE = 19, 24
SIZES = {
    "vocab_size": ROWS,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "untied": ("llama", SIZES),
    "tied": ("llama", SIZES | {"tie_word_embeddings": True}),
    "gpt2": (
        "gpt2",
        {
            "vocab_size": ROWS,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "initializer_range": 0.3,
        },
    ),
    "mixtral": ("mixtral", SIZES | {"num_local_experts": 2}),
}
IDS = torch.tensor([[1, 5, 9, 3, 7]])


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    for name, (family, sizes) in FAMILIES.items():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).save_pretrained(
            folder / name
        )
    return {name: folder / name for name in FAMILIES}


def lora(**settings: Any) -> LoraConfig:
    layers = {"r": 4, "target_modules": ["q_proj", "up_proj"]}
    return LoraConfig(**{"task_type": "CAUSAL_LM", **layers, **settings})


def write(
    base: Path, folder: Path, config: Any, rows: int | None = None, **saving: Any
) -> torch.Tensor:
    """An adapter whose changes are not zero, on the base or on it with other embeddings; returns
    the logits of peft's model.
    """
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    adapted = get_peft_model(model, config).eval()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder, **saving)
    with torch.no_grad():
        logits: torch.Tensor = adapted(input_ids=IDS).logits
    return logits


def same(folder: Path, expected: torch.Tensor) -> Any:
    check_adapter(folder)
    model = load_causal_lm(str(folder), torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS).logits, expected, atol=2e-5, rtol=1e-5)
    assert embedding_rows(folder) == expected.shape[-1]
    return model


CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 3}},
    "all linear layers": {"target_modules": "all-linear", "bias": "all"},
    "some layers": {"layers_to_transform": [1]},
    "of the embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "of the embeddings, dora": {"target_modules": ["embed_tokens"], "use_dora": True},
    "of the head": {"target_modules": ["lm_head", "q_proj"]},
    "of both": {"target_modules": ["embed_tokens", "lm_head"]},
    "of both, tied": {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
    "embeddings whole": {"modules_to_save": ["embed_tokens"]},
    "head whole": {"modules_to_save": ["lm_head"]},
    "both whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "both whole, tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "tokens": {"trainable_token_indices": [5, 9]},
    "tokens of both": {"trainable_token_indices": {"embed_tokens": [5, 9], "lm_head": [3]}},
}
# Of layers, of embeddings, of whole matrices and of single tokens.
QUICK = ("patterns", "of the embeddings, dora", "both whole, tied", "tokens of both")


@pytest.mark.parametrize("base", ["untied", "tied"])
@pytest.mark.parametrize("change", members(CHANGES, QUICK))
def test_logits_are_those_of_peft(
    base: str, change: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    """Where embeddings and head share their weights and one is changed, the other stays; the model
    that is saved, and one that is cut, are still the same.
    """
    expected = write(bases[base], tmp_path / "adapter", lora(**CHANGES[change]))
    model = same(tmp_path / "adapter", expected)
    model.save_pretrained(tmp_path / "merged")
    again = load_causal_lm(str(tmp_path / "merged"), torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=IDS).logits, expected, atol=2e-5, rtol=1e-5)
        cut_vocabulary(again, 12)
        logits = again(input_ids=IDS).logits
    torch.testing.assert_close(logits, expected[..., :12], atol=2e-5, rtol=1e-5)


RESIZED: dict[str, dict[str, Any]] = {
    "plain": {},
    "embeddings whole": {"modules_to_save": ["embed_tokens"]},
    "both whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "both whole, tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "tokens": {"trainable_token_indices": [5, ROWS]},
    "of the embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
}


@pytest.mark.parametrize("base", ["untied", "tied"])
@pytest.mark.parametrize("change", RESIZED)
def test_embeddings_that_the_adapter_brings_replace_the_bases(
    base: str, change: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    """peft writes those of a resized base into the folder, but for a head of its own beside
    changed embeddings.
    """
    folder = tmp_path / "adapter"
    expected = write(bases[base], folder, lora(**RESIZED[change]), MORE)
    if (base, change) != ("untied", "of the embeddings"):
        same(folder, expected)
        return
    for act in (embedding_rows, lambda path: load_causal_lm(str(path), torch.float32)):
        with pytest.raises(UserError, match=f"embeddings have {MORE} rows, .*has {ROWS}, and new"):
            act(folder)


def test_saved_embeddings_of_the_same_size_and_other_families(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    """[in, out] layers, embeddings of positions, experts as parameters, and weights repeated."""
    layers = ["c_attn", "c_proj", "c_fc"]
    for number, (base, settings, saving) in enumerate(
        (
            ("tied", {}, {"save_embedding_layers": True}),
            ("gpt2", {"target_modules": layers, "fan_in_fan_out": True}, {}),
            ("gpt2", {"target_modules": layers, "use_dora": True, "fan_in_fan_out": True}, {}),
            ("gpt2", {"target_modules": ["wte", "wpe", "c_attn"]}, {}),
            ("gpt2", {"target_modules": layers, "bias": "lora_only", "lora_bias": True}, {}),
            ("mixtral", {"target_modules": ["q_proj", "gate"]}, {}),
            ("mixtral", {"target_parameters": ["mlp.experts.gate_up_proj"]}, {}),
        )
    ):
        if settings.get("lora_bias"):
            del settings["bias"]
        folder = tmp_path / str(number)
        same(folder, write(bases[base], folder, lora(**settings), **saving))


Q: dict[str, Any] = {"target_modules": ["q_proj"]}
KINDS: dict[str, Callable[[], Any]] = {
    "ADALORA": lambda: peft.AdaLoraConfig(total_step=10, task_type="CAUSAL_LM", **Q),
    "LOHA": lambda: peft.LoHaConfig(r=4, **Q),
    "LOKR": lambda: peft.LoKrConfig(r=4, **Q),
    "IA3": lambda: peft.IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "OFT": lambda: peft.OFTConfig(oft_block_size=4, **Q),
    "BOFT": lambda: peft.BOFTConfig(boft_block_size=4, **Q),
    "VERA": lambda: peft.VeraConfig(r=4, **Q),
    "VBLORA": lambda: peft.VBLoRAConfig(r=4, num_vectors=32, vector_length=4, **Q),
    "RANDLORA": lambda: peft.RandLoraConfig(r=4, **Q),
    "SHIRA": lambda: peft.ShiraConfig(r=2, **Q),
    "FOURIERFT": lambda: peft.FourierFTConfig(n_frequency=10, **Q),
    "WAVEFT": lambda: peft.WaveFTConfig(n_frequency=10, **Q),
    "HRA": lambda: peft.HRAConfig(r=4, **Q),
    "MISS": lambda: peft.MissConfig(r=4, **Q),
    "C3A": lambda: peft.C3AConfig(block_size=4, **Q),
    "ROAD": lambda: peft.RoadConfig(group_size=4, **Q),
    "DELORA": lambda: peft.DeloraConfig(r=4, **Q),
    "GRALORA": lambda: peft.GraloraConfig(r=4, **Q),
    "OSF": lambda: peft.OSFConfig(**Q),
    "LN_TUNING": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "TRAINABLE_TOKENS": lambda: peft.TrainableTokensConfig(
        token_indices=[5, 9], target_modules=["embed_tokens"]
    ),
}


@pytest.mark.slow
def test_every_kind_that_is_merged_is_merged_right(bases: dict[str, Path], tmp_path: Path) -> None:
    assert {"LORA", *KINDS} == set(MERGED_KINDS)
    for kind, config in KINDS.items():
        expected = write(bases["untied"], tmp_path / kind, config())
        same(tmp_path / kind, expected)
        plain = load_causal_lm(str(bases["untied"]), torch.float32)(input_ids=IDS).logits
        assert float((plain - expected).abs().max()) > 1e-3, kind


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (
            lambda: peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
            "peft_type = 'PROMPT_TUNING' cannot be merged into its base; kinds that can are LORA, ",
        ),
        (
            lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
            "peft_type = 'PREFIX_TUNING' cannot",
        ),
        (
            lambda: peft.AdaptionPromptConfig(
                adapter_len=2, adapter_layers=1, task_type="CAUSAL_LM"
            ),
            "peft_type = 'ADAPTION_PROMPT' cannot",
        ),
        (lambda: lora(layer_replication=[[0, 2], [1, 2]]), "layer_replication = [[0, 2], [1, 2]]:"),
        (lambda: lora(alora_invocation_tokens=[5]), "alora_invocation_tokens = [5]: it changes"),
        (lambda: lora(lora_bias=True), "lora_bias = true, and model.layers.0.mlp.up_proj has no b"),
    ],
)
def test_what_cannot_be_merged_is_said_before_anything_is_loaded(
    config: Callable[[], Any], parts: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    write(bases["untied"], tmp_path / "adapter", config())
    for act in (embedding_rows, lambda path: load_causal_lm(str(path), torch.float32)):
        with pytest.raises(UserError, match=re.escape(parts)) as caught:
            act(tmp_path / "adapter")
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_trained_token_beyond_the_base_is_named(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    config = lora(trainable_token_indices=[5, ROWS])
    write(bases["tied"], folder, config, MORE, save_embedding_layers=False)
    with pytest.raises(UserError, match=f"it trains token {ROWS}, its base .* has {ROWS} rows of"):
        embedding_rows(folder)


def test_peft_reads_what_it_wrote(bases: dict[str, Path], tmp_path: Path) -> None:
    """The expected logits are those of the folder, not of a model that peft lost a part of."""
    for number, base in enumerate(("untied", "tied")):
        folder = tmp_path / str(number)
        expected = write(bases[base], folder, lora(**CHANGES["of both"]))
        loaded = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(bases[base]), folder
        )
        with torch.no_grad():
            torch.testing.assert_close(loaded.eval()(input_ids=IDS).logits, expected)
