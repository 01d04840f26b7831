"""Models, tokenizers and adapters that are not there, are torn, or do not fit."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from bad_inputs.world import ADAPTER_CONFIG, Bad, Options, World

_INDEX = "model.safetensors.index.json"


def _embedder(world: World) -> Options:
    folder = world.copy()
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    return [f"model.embedder={folder}", "objective.name=rpo"]


def _dense(world: World) -> Options:
    folder = world.copy()
    modules = [{"idx": 0, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    return [f"model.embedder={folder}", "objective.name=rpo"]


def _other_words(world: World) -> Options:
    """A scorer that calls one token by another name."""
    folder = world.copy()
    content = json.loads((folder / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    words["quite-other"] = words.pop(max(words, key=lambda word: words[word]))
    content["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(content))
    scorers = (f"model.positive_scorer={world.model}", f"model.negative_scorer={folder}")
    return ["objective.name=tis_dpo", *scorers]


def _with_whole_weights(world: World) -> Options:
    folder = world.adapter()
    shutil.copy(world.model / "model.safetensors", folder / "model.safetensors")
    return [f"model.name_or_path={folder}"]


def _pickled(world: World) -> Options:
    folder = world.adapter()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    return [f"model.name_or_path={folder}"]


def _of_an_adapter(world: World) -> Options:
    base = world.adapter().rename(world.folder / "base")
    return [f"model.name_or_path={world.adapter(base_model_name_or_path=str(base))}"]


def _real_adapter(world: World) -> Path:
    """One that fits: a low-rank update of a query's weights that is zero."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = world.adapter(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", lora_alpha=2)
    name = "model.layers.0.self_attn.q_proj"
    rows, columns = load_file(world.model / "model.safetensors")[f"{name}.weight"].shape
    halves = {"A": torch.zeros(2, columns), "B": torch.zeros(rows, 2)}
    save_file(
        {f"base_model.model.{name}.lora_{half}.weight": it for half, it in halves.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


def _wider(world: World) -> Options:
    """Its base has states of another size than the one that it was made on."""
    from safetensors.torch import load_file, save_file

    folder = _real_adapter(world)
    file = folder / "adapter_model.safetensors"
    save_file({name: it.repeat(2, 2) for name, it in load_file(file).items()}, file)
    return [f"model.name_or_path={folder}"]


def _code(**more: object) -> dict[str, object]:
    return {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}, **more}


def _own_code(world: World) -> Options:
    folder = world.copy(**_code())
    (folder / "configuration_own.py").write_text("raise SystemExit('it ran')\n")
    return [f"model.name_or_path={folder}"]


def _weights(content: bytes) -> "Bad":
    def make(world: World) -> Options:
        folder = world.copy()
        (folder / "model.safetensors").write_bytes(content)
        return [f"model.name_or_path={folder}"]

    return make, "not a safetensors file, or cut off", f"({len(content)} bytes)"


def _parts(world: World) -> Options:
    folder = world.copy()
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / _INDEX).write_text(json.dumps(index))
    return [f"model.name_or_path={folder}"]


def _no_parts(world: World) -> Options:
    folder = world.copy()
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / _INDEX).write_text("[]")
    return [f"model.name_or_path={folder}"]


def _another_word(world: World) -> Options:
    """The tokenizer knows a word that the embeddings do not."""
    folder = world.copy()
    content = json.loads((folder / "tokenizer.json").read_text())
    last = max(content["model"]["vocab"].values())
    content["added_tokens"].append(
        {
            "id": last + 1,
            "content": "newword",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": False,
        }
    )
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return [f"model.name_or_path={folder}"]


_MAPO = ["objective.name=mapo", "mask.kind=activation"]


def _with_pipe(world: World) -> Options:
    """Whoever opens it waits for ever."""
    folder = world.without("generation_config.json")
    os.mkfifo(folder / "generation_config.json")
    return [f"model.name_or_path={folder}"]


def _with_ends(world: World) -> Options:
    folder = world.copy()
    (folder / "generation_config.json").write_text('{"eos_token_id": {"first": 1}}')
    return [f"model.name_or_path={folder}"]


def _negative(world: World) -> Options:
    """A header of safetensors that tells of less than no rows."""
    folder = world.copy()
    file = folder / "model.safetensors"
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    next(value for key, value in header.items() if key != "__metadata__")["shape"] = [-1, 4]
    told = json.dumps(header).encode()
    file.write_bytes(len(told).to_bytes(8, "little") + told + content[8 + size :])
    return [f"model.name_or_path={folder}"]


def _discriminator(world: World, **facts: Any) -> Options:
    """A mask that reads one which says this of itself, as `sparsepo discriminator` writes it."""
    from pipelines.models.fingerprints import tokenizer_fingerprint, weights_fingerprint
    from pipelines.storage.records import write_record
    from pipelines.storage.store import RunStore

    own = {
        "layer": 2,
        "hidden_size": 8,
        "sha256": "0" * 64,
        "reference": weights_fingerprint(world.model),
        "tokenizer": tokenizer_fingerprint(world.model),
    }
    write_record(RunStore(str(world.folder / "head")), "discriminator.json", {**own, **facts})
    return [*_JUDGED, f"model.discriminator={world.folder / 'head'}"]


def _torn_discriminator(world: World) -> Options:
    options = _discriminator(world)
    file = world.folder / "head" / "discriminator.json"
    file.write_text(file.read_text().replace('"layer": 2', '"layer": 1'))
    return options


_JUDGED = ("objective.name=weighted", "mask.kind=discriminator")
BAD: dict[str, Bad] = {
    "no discriminator": (
        [*_JUDGED, "model.discriminator=/nowhere"],
        "model.discriminator = /nowhere: no finished discriminator is there",
    ),
    "a discriminator that is not named": (
        ["objective.name=weighted", "mask={kind: segment, value: discriminator}"],
        "mask.kind=segment reads a discriminator's values: set model.discriminator",
    ),
    "a discriminator of another model": (
        lambda w: _discriminator(w, reference="another"),
        "it was trained on reference another, this recipe has ",
    ),
    "a discriminator of other tokens": (
        lambda w: _discriminator(w, tokenizer="another"),
        "it was trained on tokenizer another, this recipe has ",
    ),
    "a discriminator of another layer": (
        lambda w: [*_discriminator(w), "discriminator.layer=1"],
        "it was trained on layer 2, this recipe has discriminator.layer = 1",
    ),
    "a layer that the reference has not": (
        lambda w: [*_discriminator(w), "discriminator.layer=99"],
        "discriminator.layer = 99: ", " has layers 1 to ",
    ),
    "a discriminator that was changed": (
        _torn_discriminator, "discriminator.json is damaged: its checksum does not fit",
    ),
    "a model with a FIFO": (
        _with_pipe, "model directory ", ": generation_config.json is a FIFO, which is not read"
    ),
    "ends that are no tokens": (
        _with_ends, "generation_config.json: eos_token_id is {'first': 1}, and is to be a token id"
    ),
    "weights of less than no rows": (
        _negative, "model.safetensors: not a safetensors file, or cut off"
    ),
    "an adapter of a list of bases": (
        lambda w: [f"model.name_or_path={w.adapter(base_model_name_or_path=['x'])}"],
        "its adapter_config.json names no base_model_name_or_path",
    ),
    "a name that no model can have": (
        [f"model.name_or_path={'x' * 300}"], "a name in it has 300 bytes, at most 255 are possible"
    ),
    "no model": (["model.name_or_path=/nowhere"], "model '/nowhere': no such directory"),
    "no reference": (["model.reference=/nowhere"], "model '/nowhere': no such directory"),
    "no tokenizer": (["model.tokenizer=/nowhere"], "model '/nowhere': no such directory"),
    "a model that was never fetched": (
        ["model.name_or_path=nobody/nothing"], "model 'nobody/nothing': no such directory, not do"
    ),
    "no name of a model": (
        ["model.name_or_path=no:body"], "model 'no:body': neither a directory nor a valid model"
    ),
    "no scorer": (
        lambda w: [
            "objective.name=tis_dpo",
            f"model.positive_scorer={w.model}",
            "model.negative_scorer=/nowhere",
        ],
        "model '/nowhere': no such directory",
    ),
    "no embedder": (
        ["objective.name=rpo", "model.embedder=/nowhere"], "'/nowhere': no such directory"
    ),
    "a module of an embedder": (_dense, "Dense is not supported"),
    "a scorer of other words": (_other_words, "its tokenizer has another vocabulary than the pol"),
    "pooling of an embedder": (_embedder, "pooling max_tokens is not supported"),
    "no configuration": (
        lambda w: [f"model.name_or_path={w.without('config.json')}"], "no config.json"
    ),
    "a configuration that is no JSON": (
        lambda w: [f"model.name_or_path={_broken(w, 'config.json')}"], "config.json"
    ),
    "a tokenizer that is no JSON": (
        lambda w: [f"model.name_or_path={_broken(w, 'tokenizer.json')}"], "tokenizer"
    ),
    "a tokenizer's configuration that is no JSON": (
        lambda w: [f"model.name_or_path={_broken(w, 'tokenizer_config.json')}"], "tokenizer"
    ),
    "settings of generation that are no JSON": (
        lambda w: [f"model.name_or_path={_broken(w, 'generation_config.json')}"],
        "generation_config.json",
    ),
    "an adapter's configuration that is no JSON": (
        lambda w: [f"model.reference={_torn_adapter(w, '{')}"], "adapter_config.json"
    ),
    "an adapter's configuration that is a list": (
        lambda w: [f"model.reference={_torn_adapter(w, '[]')}"], "adapter_config.json"
    ),
    "a configuration that is a list": (
        lambda w: [f"model.reference={_broken(w, 'config.json', '[]')}"], "config.json"
    ),
    "modules of an embedder that are no JSON": (
        lambda w: ["objective.name=rpo", f"model.embedder={_broken(w, 'modules.json')}"],
        "modules.json",
    ),
    "pooling of an embedder that is no JSON": (
        lambda w: [
            "objective.name=rpo", f"model.embedder={_broken(w, '1_Pooling/config.json')}"
        ],
        "1_Pooling/config.json",
    ),
    "a model without a tokenizer": (
        lambda w: [f"model.name_or_path={w.without('tokenizer.json')}"], "tokenizer"
    ),
    "no weights": (
        lambda w: [f"model.name_or_path={w.without('model.safetensors')}"], "no weights"
    ),
    "a pointer in place of weights": _weights(b"version https://git-lfs.github.com/spec/v1\n"),
    "weights that are cut off": _weights(b"\xff\xff\0"),
    "a part of the weights missing": (_parts, "names model-2.safetensors: no such file"),
    "an index of no parts": (_no_parts, "names no files of weights"),
    "no end token": (
        lambda w: [f"model.name_or_path={w.with_tokenizer(eos_token=None)}"], "has no EOS token"
    ),
    "code of its own": (_own_code, "it needs code of its own (configuration_own.py), which is not"),
    "a family that nobody knows": (
        lambda w: [f"model.name_or_path={w.copy(model_type='nonesuch')}"], "nonesuch"
    ),
    "a model of another kind": (
        lambda w: [f"model.reference={w.copy(model_type='vit', architectures=['ViTModel'])}"],
        "models of type 'vit' do not predict the next token",
    ),
    "kernels of somebody": (
        lambda w: [f"model.name_or_path={w.copy(attn_implementation='some/kernel')}"],
        "config.json wants kernels of 'some/kernel",
    ),
    "an adapter and whole weights": (_with_whole_weights, "both an adapter and whole weights"),
    "an adapter in a pickle": (_pickled, "pickled weights are not read"),
    "an adapter without its base": (
        lambda w: [f"model.name_or_path={w.adapter(base_model_name_or_path='/nowhere')}"],
        "its base model '/nowhere': no such directory",
    ),
    "an adapter of no base": (
        lambda w: [f"model.reference={w.adapter(base_model_name_or_path=None)}"],
        "names no base_model_name_or_path",
    ),
    "an adapter on an adapter": (_of_an_adapter, "is an adapter too; merge that one first"),
    "an adapter of a wider model": (_wider, "q_proj.weight has", ", its base "),
    "an adapter that wants code": (
        lambda w: [
            f"model.name_or_path={w.adapter(megatron_config={}, megatron_core='antigravity')}"
        ],
        "wants the module megatron_core = 'antigravity'",
    ),
    "an adapter of an adapter": (
        lambda w: ["train.lora={save: adapter}", f"model.name_or_path={_real_adapter(w)}"],
        "is an adapter itself",
    ),
    "an adapter of virtual tokens": (
        lambda w: [f"model.reference={w.adapter(peft_type='PROMPT_TUNING')}"],
        "peft_type = 'PROMPT_TUNING' cannot be merged into its base",
    ),
    "an adapter for a part of the tokens": (
        lambda w: [f"model.name_or_path={w.adapter(alora_invocation_tokens=[5])}"],
        "alora_invocation_tokens = [5]: it changes the tokens after an invocation alone",
    ),
    "an adapter of repeated layers": (
        lambda w: [f"model.name_or_path={w.adapter(layer_replication=[[0, 1], [0, 1]])}"],
        "layer_replication = [[0, 1], [0, 1]]: its model has layers of the base several times",
    ),
    "an adapter of a token that is not there": (
        lambda w: [f"model.reference={w.adapter(trainable_token_indices=[3, 99999])}"],
        "it trains token 99999, its base",
    ),
    "a word without an embedding": (
        _another_word, "the largest id in use is", "('newword'), but the model's embeddings have"
    ),
    "embeddings of another size": (
        lambda w: [f"model.reference={w.copy(vocab_size=7)}"], "config.json says vocab_size = 7"
    ),
    "rows that are too long": (
        ["data.max_prompt_tokens=200"], "the model reads at most 128 tokens"
    ),
    "rows too long for the reference": (
        lambda w: [f"model.reference={w.copy(max_position_embeddings=40)}"], "at most 40 tokens"
    ),
    "samples that are too long": (["evaluate.generation.max_new_tokens=500"], "are 524 tokens"),
    "no such hook": ([*_MAPO, "mask.hooks=[attn.nothing]"], "mask.hooks"),
    "an adapter on the head": (
        ["train.lora={target_modules: [q_proj, lm_head]}"],
        "leave it out of peft's target modules",
    ),
    "no such module to train whole": (
        ["train.lora={modules_to_save: [lm_heads]}"], "the model has no module 'lm_heads'"
    ),
    "one of the layers for adapters": (
        ["train.lora={target_modules: [q_proj, nothing]}"], "the model has no module 'nothing'"
    ),
    "a rank of no layer": (
        ["train.lora={target_modules: [q_proj], rank_pattern: {up_proj: 2}}"],
        "train.lora.rank_pattern: 'up_proj' is no layer with an adapter",
    ),
    "a rank below one": (
        ["train.lora={rank_pattern: {q_proj: 0}}"], "train.lora.rank_pattern.q_proj = 0: input sho"
    ),
    "a scale of no pattern": (
        ["train.lora={alpha_pattern: {'[': 2}}"], "alpha_pattern: '[' is no pattern"
    ),
    "no such layer for adapters": (
        ["train.lora={target_modules: [nothing]}"], "linear layers are"
    ),
}  # fmt: skip


def _broken(world: World, name: str, content: str = "{") -> Path:
    folder = world.copy()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(content)
    return folder


def _torn_adapter(world: World, content: str) -> Path:
    folder = world.adapter()
    (folder / ADAPTER_CONFIG).write_text(content)
    return folder
