"""Every family of transformers through the stages, on a tiny model beside the tests' tokenizer."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from checkout import ROOT
from families import (
    COMPOSITES,
    FAMILIES,
    IN_THE_SUITE,
    LEFT_OUT,
    QUICK,
    SINCE,
    documented,
    matrix,
    row_of,
    tiny_config,
    tiny_model,
)
from matrices import members
from packaging.version import Version
from runs import MakeRecipe, run_here, trainer_of
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pipelines.commands.plan import run_plan
from pipelines.commands.run import run_stages
from pipelines.commands.stages import EVALUATE, PREPARE, REFERENCE, TRAIN
from pipelines.errors import UserError
from pipelines.models.families import REFUSED
from pipelines.models.fingerprints import tokenizer_fingerprint
from pipelines.models.loading import load_causal_lm
from pipelines.pairs.table import open_pairs
from pipelines.recipe.schema import Recipe
from pipelines.recipe.stage import Run
from pipelines.reference.stage import run_facts
from pipelines.reference.store import open_reference
from pipelines.train.metrics import read_metrics
from sparsepo.backbone import backbone_of, decoder_layers

pytestmark = pytest.mark.usefixtures("ray_cluster")
OPTIONS = (
    "train.max_steps=1", "train.global_batch_size=4", "evaluate.benchmarks=[preference]",
    "train.learning_rate=1e-3", "train.warmup_fraction=0", "data.shard_pairs=200",
    "objective.name=tdpo1",
)  # fmt: skip


@pytest.fixture(scope="module")
def pairs(pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Where pairs are prepared once for all families, and a file of few rows."""
    folder = tmp_path_factory.mktemp("families")
    few = folder / "pairs.jsonl"
    few.write_text("".join(pairs_file.read_text().splitlines(keepends=True)[:12]))
    return folder, few


def _paths(folder: Path, model: Path) -> dict[str, str]:
    """A tokenizer may be another one beside another family: then its pairs are, too."""
    return {"pairs": str(folder / tokenizer_fingerprint(model))}


@pytest.fixture
def made(
    model_dir: Path, tmp_path: Path, recipe_in: MakeRecipe, pairs: tuple[Path, Path]
) -> Callable[..., Recipe]:
    """A recipe on a tiny model of a family."""

    def make(family: str, *overrides: str) -> Recipe:
        folder, few = pairs
        model = tmp_path / family
        if not model.exists():
            tokenizer = AutoTokenizer.from_pretrained(model_dir)
            tiny_model(family, vocabulary=len(tokenizer) + 8).save_pretrained(model)
            tokenizer.save_pretrained(model)
        run = tmp_path / f"run-{len(list(tmp_path.glob('run-*')))}"
        paths = _paths(folder, model)
        named = f"data.sources=[{{path: {few}}}]", f"model.name_or_path={model}"
        return recipe_in(run, *named, *OPTIONS, *overrides, paths=paths)

    return make


@pytest.mark.parametrize("family", matrix())
def test_plan_reference_training_and_evaluation(family: str, made: Callable[..., Recipe]) -> None:
    """The store holds the model's own log-probabilities; online and stored references train
    alike, one step; its evaluation and its published model are there.
    """
    recipe = made(family)
    assert run_plan(recipe)["train"]["parameters"] > 0
    run_here(recipe, (PREPARE, REFERENCE))
    table = open_pairs(Run(recipe))
    stored = open_reference(run_facts(Run(recipe)), table)
    found = stored.features("train", range(2), ["reference_logps"]).reference_logps
    model = AutoModelForCausalLM.from_pretrained(recipe.model.name_or_path, dtype=torch.float32)
    torch.testing.assert_close(
        found, _plain(model, table.pairs("train", range(2))), atol=2e-5, rtol=2e-4
    )
    run_here(recipe, (TRAIN, EVALUATE))
    (first,) = [r for r in read_metrics(Run(recipe).paths.train) if "kind" not in r]
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    result = json.loads((Path(recipe.run_dir) / "evaluation" / "preference.json").read_text())
    assert result["num_pairs"] == table.num_rows("test")
    online = made(family, "reference.mode=online")
    trainer = trainer_of(online)
    trainer.run(lambda metrics: None)
    trainer.close()
    (again,) = [r for r in read_metrics(Run(online).paths.train) if "kind" not in r]
    assert again["loss"] == pytest.approx(first["loss"], abs=1e-5)
    assert again["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-3)
    published = Path(recipe.run_dir) / "train" / "model"
    trained = AutoModelForCausalLM.from_pretrained(published, dtype=torch.float32)
    assert any(
        not torch.equal(p, q) for p, q in zip(trained.parameters(), model.parameters(), strict=True)
    )


def _refused(recipe: Recipe, message: str) -> None:
    """By `plan` and by `run` in the same line, before anything is written."""
    for command in (run_plan, lambda recipe: run_stages(recipe, (PREPARE,), pytest.fail)):
        with pytest.raises(UserError, match=message):
            command(recipe)
    assert not Path(recipe.run_dir).exists()


@pytest.mark.parametrize("case", ["llama4_text", "mamba"])
def test_what_needs_hooks_is_refused_by_name_before_any_work(
    case: str, made: Callable[..., Recipe]
) -> None:
    """`plan` and `run` alike; plain DPO and masks over the last layer are planned."""
    assert run_plan(made(case, "objective.name=dpo"))["train"]["parameters"] > 0
    last = made(
        case, "objective.name=sparsepo", "mask.kind=learned", "mask.architecture=simple_last"
    )
    assert run_plan(last)["reference"]["bytes_per_scored_token"] > 0
    refused = made(case, "objective.name=mapo", "mask.kind=activation")
    _refused(
        refused,
        rf"mask.hooks: no activation hook table for model type '{case}' \(known: "
        r"gpt_neox",
    )


def test_points_that_a_family_lacks_are_refused_before_any_work(
    made: Callable[..., Recipe],
) -> None:
    refused = made("mixtral", "objective.name=mapo", "mask.kind=activation", "mask.hooks=mlp")
    _refused(
        refused,
        r"mask.hooks: hooks='mlp' \(mlp.post_act: its experts have an activation each\): "
        r"model type 'mixtral' offers resid.post_emb",
    )


@pytest.mark.parametrize("family", ["llama4", "qwen3_5", "qwen3_5_moe", "qwen4_exp", "gemma3"])
def test_language_models_are_taken_from_weights_of_composite_ones(
    family: str, tmp_path: Path
) -> None:
    """From what the whole model writes, its part for images included."""
    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(tiny_config(family)).eval()
    whole.save_pretrained(tmp_path)
    ids = torch.tensor([[3, 4, 5, 6, 7, 8]])
    with torch.no_grad():
        expected = whole(input_ids=ids).logits
        found = load_causal_lm(str(tmp_path), torch.float32)(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_weights_that_a_directory_lacks_are_not_made_up(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"], weights["model.norm.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(
        UserError, match="its weights lack model.layers.1.mlp.up_proj.weight and 1 more"
    ):
        load_causal_lm(str(tmp_path), torch.float32)


@pytest.mark.parametrize("family", members(("opt", "gemma3", "deepseek_v3"), ("opt",)))
def test_learned_masks_read_stored_states_of_every_width(
    family: str, made: Callable[..., Recipe]
) -> None:
    """OPT projects its last state: the store holds its layers' own width for masks over all of
    them, the projected one for masks over the last.
    """
    for architecture, feature in (
        ("simple_all", "reference_layers"),
        ("simple_last", "reference_hidden"),
    ):
        recipe = made(
            family, "objective.name=sparsepo", "mask.kind=learned", "reference.mode=stored",
            f"mask.architecture={architecture}",
        )  # fmt: skip
        assert run_plan(recipe)["train"]["mask_parameters"] > 0
        run_here(recipe, (PREPARE, REFERENCE, TRAIN))
        table = open_pairs(Run(recipe))
        (pair,) = table.pairs("train", range(1))
        store = open_reference(run_facts(Run(recipe)), table)
        found = getattr(store.features("train", range(1), [feature]), feature)
        model = load_causal_lm(str(recipe.model.name_or_path), torch.float32)
        own: list[torch.Tensor] = []  # what the last layer gives, before a projection
        decoder_layers(model)[-1].register_forward_hook(
            lambda _, __, out, own=own: own.append(out[0] if isinstance(out, tuple) else out)
        )
        rows = []
        for response in pair.responses():
            ids = torch.tensor([[*pair.prompt, *response]])
            with torch.no_grad():
                states = model(input_ids=ids, output_hidden_states=True).hidden_states
                last = backbone_of(model)(input_ids=ids).last_hidden_state
            final = last if last.shape[-1] == own[-1].shape[-1] else own[-1]
            every = torch.stack([*states[1:-1], final], 2)
            both = every if feature == "reference_layers" else last
            rows.append(both[0, len(pair.prompt) - 1 : -1])
        torch.testing.assert_close(found, torch.cat(rows), atol=1e-4, rtol=1e-3)


def test_adapters_of_a_composite_model_are_its_language_models(
    made: Callable[..., Recipe],
) -> None:
    recipe = made("gemma3", "train.lora={rank: 2, target_modules: all-linear}")
    assert run_plan(recipe)["train"]["adapter_parameters"] > 0
    run_here(recipe, (PREPARE, REFERENCE, TRAIN))
    saved = Path(recipe.run_dir) / "train" / "model" / "adapter_model.safetensors"
    names = list(load_file(saved))
    assert names and all(".language_model.layers." in name for name in names)


def test_plan_says_of_mixtures_that_their_routers_have_no_loss(
    made: Callable[..., Recipe],
) -> None:
    for family, experts in {"mixtral": 4, "deepseek_v3": 4, "dbrx": 4, "llama": 0}.items():
        said = run_plan(made(family))["train"].get("routers", "")
        assert said.startswith(f"{experts} experts: the routers' balancing loss") == bool(experts)


LEARNED = ("objective.name=sparsepo", "mask.kind=learned", "mask.architecture=simple_all")


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        (
            "gpt_neo",
            ("train.layout=packed",),
            "train.layout=packed: GPTNeoForCausalLM cannot: it masks by the place in the row",
        ),
        (
            "mamba",
            ("reference.layout=packed",),
            "reference.layout=packed: MambaForCausalLM cannot: it has layers of kind "
            "linear_attention",
        ),
        (
            "gemma3n_text",
            LEARNED,
            "states of all layers: .*gemma3n_text: models of type 'gemma3n_text' hand on several "
            "states per token",
        ),
        ("hrm_text", LEARNED, "states of all layers.*HrmTextForCausalLM: no list of 16 decoder"),
        (
            "longcat_flash",
            ("train.gradient_checkpointing=true",),
            "train.gradient_checkpointing=true: LongcatFlashForCausalLM: no list of 4 decoder",
        ),
    ],
)
def test_layouts_and_layers_that_a_family_lacks_are_refused_before_any_work(
    family: str, options: tuple[str, ...], message: str, made: Callable[..., Recipe]
) -> None:
    _refused(made(family, *options), message)


def test_packed_rows_of_longrope_models_are_refused_where_they_are_too_long(
    made: Callable[..., Recipe],
) -> None:
    """The recipe's longest row decides; 24 + 24 tokens are short for a model of 48."""
    recipe = made("phi3", "train.layout=packed", "reference.layout=packed")
    config = Path(recipe.model.name_or_path) / "config.json"
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.5]}
    for limit in (47, 48):
        known = json.loads(config.read_text()) | {
            "original_max_position_embeddings": limit,
            "rope_parameters": {
                **rope, "long_factor": [4.0, 8.0], "original_max_position_embeddings": limit,
            },
        }  # fmt: skip
        config.write_text(json.dumps(known))
        if limit == 47:
            _refused(recipe, "sequences beyond 47 tokens have other rotary features")
    assert run_plan(recipe)["train"]["steps"] == 1


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_families_that_are_not_tuned_are_refused_by_name(
    family: str, made: Callable[..., Recipe]
) -> None:
    recipe = made("llama")
    config = Path(recipe.model.name_or_path) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": family}))
    _refused(
        recipe, f"model.name_or_path = .*: models of type '{family}' are not tuned: "
        f"{re.escape(REFUSED[family])}",
    )  # fmt: skip


def test_an_encoder_that_is_not_set_to_decode_is_refused(made: Callable[..., Recipe]) -> None:
    recipe = made("bert-generation")
    assert run_plan(recipe)["train"]["parameters"] > 0
    config = Path(recipe.model.name_or_path) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"is_decoder": False}))
    _refused(recipe, "models of type 'bert-generation' are not tuned: they are encoders unless")


def test_every_family_of_transformers_is_in_the_matrix_or_named_with_a_reason() -> None:
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert not known - {*FAMILIES, *COMPOSITES, *REFUSED, *LEFT_OUT, *SINCE}
    assert len(matrix()) >= 140
    assert set(QUICK) <= set(IN_THE_SUITE) <= {*FAMILIES, *COMPOSITES}
    assert not {*FAMILIES, *COMPOSITES} & {*REFUSED, *LEFT_OUT}


@pytest.mark.parametrize("family", matrix())
def test_the_table_of_the_documents_is_what_is_found(family: str) -> None:
    """Kinds of layers have had other names in earlier versions of transformers."""
    page = documented(ROOT / "docs" / "families.md")
    found = row_of(family)
    if Version(transformers.__version__) >= Version("5.23"):
        assert page[family] == found
    assert page[family][1].partition(":")[0] == found[1].partition(":")[0]


def test_the_documents_name_what_is_refused() -> None:
    page = (ROOT / "docs" / "families.md").read_text()
    for family, reason in {**REFUSED, **LEFT_OUT}.items():
        assert f"`{family}`" in page and reason in page


@pytest.mark.slow
def test_mapo_weighs_tokens_by_their_activations(made: Callable[..., Recipe]) -> None:
    """Of a mixture, of ALiBi and of parallel blocks: from a plan to a policy that has moved. The
    weights are computed anew, from hooks on one module of each layer.
    """
    projections = {
        "mixtral": "layers.{}.self_attn.o_proj",
        "bloom": "h.{}.self_attention.dense",
        "cohere": "layers.{}.self_attn.o_proj",
    }
    for case, path in projections.items():
        recipe = made(
            case,
            "objective.name=mapo",
            "mask.kind=activation",
            "mask.hooks=[attn.v_out]",
            "train.max_steps=2",
        )
        assert run_plan(recipe)["reference"]["bytes_per_scored_token"] > 0
        run_here(recipe, (PREPARE, REFERENCE))
        pairs = open_pairs(Run(recipe))
        stored = (
            open_reference(run_facts(Run(recipe)), pairs)
            .features("train", range(3), ["activation_mask"])
            .activation_mask
        )
        model = AutoModelForCausalLM.from_pretrained(recipe.model.name_or_path, dtype=torch.float32)
        seen: list[torch.Tensor] = []
        for layer in range(2):
            model.base_model.get_submodule(path.format(layer)).register_forward_pre_hook(
                lambda module, args, seen=seen: seen.append(args[0].mean(-1)[0])
            )
        expected = []
        for pair in pairs.pairs("train", range(3)):
            for response in pair.responses():
                seen.clear()
                model(input_ids=torch.tensor([[*pair.prompt, *response]]))
                rows = [means[len(pair.prompt) - 1 : -1] for means in seen]
                spans = [(row - row.min()) / (row.max() - row.min()) for row in rows]
                expected.append(torch.stack(spans).mean(0))
        torch.testing.assert_close(stored, torch.cat(expected).detach(), atol=1e-4, rtol=1e-3)
        trainer = trainer_of(recipe)
        trainer.run(lambda metrics: None)
        trainer.close()
        first, second = (r for r in read_metrics(trainer.store) if "kind" not in r)
        assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
        assert first["kl/reference_policy"] < 1e-6 < second["kl/reference_policy"]


def _plain(model: torch.nn.Module, pairs: list[object]) -> torch.Tensor:
    """Log-probabilities of the responses' tokens by the model's own logits, one by one."""
    found = []
    with torch.no_grad():
        for pair in pairs:
            for response in pair.responses():
                ids = torch.tensor([[*pair.prompt, *response]])
                logits = model(input_ids=ids, use_cache=False).logits[0, len(pair.prompt) - 1 : -1]
                chosen = torch.tensor(response)[:, None].long()
                found.append(logits.float().log_softmax(-1).gather(1, chosen)[:, 0])
    return torch.cat(found)
