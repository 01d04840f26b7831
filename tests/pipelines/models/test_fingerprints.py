"""Fingerprints without loading: the same values as from a loaded model, and never a stale one."""

import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkout import ROOT
from families import UNLIKE, tiny_config
from runs import MakeRecipe
from safetensors import safe_open
from text_models import write_chain_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import pipelines.models.accelerator
import pipelines.models.contents
import pipelines.models.fingerprints
import pipelines.storage.facts
import pipelines.storage.hashes
from pipelines.errors import UserError
from pipelines.models.accelerator import _may_have_gpu, device_kind, dtype_name
from pipelines.models.directories import max_positions
from pipelines.models.fingerprints import (
    ask_tokenizer,
    model_shape,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from pipelines.models.loading import load_tokenizer
from pipelines.models.response_ends import ResponseEnds, response_ends
from pipelines.models.sizes import embedding_rows, tokens_in_use
from pipelines.models.trusted_code import TRUSTED_CODE, code_hash
from pipelines.recipe.files import write_yaml
from pipelines.reference.cost import count_parameters, settle_mode
from pipelines.reference.formats import formats_of
from pipelines.reference.origins import origins_of
from pipelines.storage.facts import remembered
from pipelines.storage.hashes import digest, file_hash

Change = Callable[[Path], None]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, empty."""
    monkeypatch.setattr(pipelines.storage.facts, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(pipelines.storage.hashes, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    return write_chain_model(tmp_path / "chat", listed=[1, 2], has_template=True)


def loads(directory: Path) -> int:
    """How many tokenizers are loaded to tell a directory's fingerprint and end of responses."""
    asked = []

    def question(tokenizer: Any) -> list[Any]:
        asked.append(tokenizer)
        return [len(tokenizer), tokenizer.chat_template]

    first = ask_tokenizer("test", directory, question)
    tokenizer = AutoTokenizer.from_pretrained(
        directory if (directory / "tokenizer.json").is_file() else directory.parent / "chat"
    )
    assert first == [len(tokenizer), tokenizer.chat_template], "a stale answer"
    return len(asked)


def adapter_of(base: Path, folder: Path) -> Path:
    folder.mkdir()
    settings = {"base_model_name_or_path": str(base), "peft_type": "LORA", "r": 4}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "adapter_model.safetensors").write_bytes(b"\2" + b"\0" * 7 + b"{}")
    return folder


def test_a_tokenizers_fingerprint_is_of_its_serialisation_template_and_ends(
    model_dir: Path, chat: Path, tmp_path: Path, cache: Path
) -> None:
    """Computed here from a loaded one; asked twice, from the files and from the cache.

    A loaded one that pads and truncates has another serialisation: the files decide.
    """
    for directory in (model_dir, chat):
        loaded = AutoTokenizer.from_pretrained(directory)
        text = "\0".join(
            str(part)
            for part in (
                loaded.backend_tokenizer.to_str(),
                loaded.chat_template,
                loaded.eos_token_id,
                loaded.bos_token_id,
            )
        )
        expected = hashlib.sha256(text.encode()).hexdigest()[:32]
        load_tokenizer(str(directory))(["a"], truncation=True, max_length=3)
        assert tokenizer_fingerprint(directory) == expected
        assert tokenizer_fingerprint(directory) == expected
    adapter = adapter_of(chat, tmp_path / "adapter")
    assert tokenizer_fingerprint(adapter) == tokenizer_fingerprint(chat)
    assert response_ends(str(adapter)) == response_ends(str(chat))
    assert loads(adapter) == 1 and loads(adapter) == 0


def rewrite(path: Path, old: str, new: str) -> None:
    """Other content of the same size and modification time."""
    before = path.stat()
    text = path.read_text()
    assert len(old) == len(new) and old in text
    path.write_text(text.replace(old, new))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns and path.stat().st_size == before.st_size


def swap_templates(folder: Path) -> None:
    """The template's place and time stay, the file is another's."""
    other = folder.parent / "other.jinja"
    shutil.copy2(folder / "chat_template.jinja", other)
    rewrite(other, "<turn>", "<ask>.")
    other.rename(folder / "chat_template.jinja")


def add_template(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("{{ messages | length }}")


def set_values(folder: Path, name: str, **values: Any) -> None:
    file = folder / name
    found = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**found, **values}))


CHANGES: dict[str, Change] = {
    "template": lambda folder: rewrite(folder / "chat_template.jinja", "<turn>", "<ask>."),
    "swapped": swap_templates,
    "named-template": add_template,
    "vocabulary": lambda folder: rewrite(folder / "tokenizer.json", '"four"', '"fear"'),
    "settings": lambda folder: set_values(folder, "tokenizer_config.json", model_max_length=7),
    "config": lambda folder: set_values(folder, "config.json", vocab_size=11),
    "map": lambda folder: set_values(folder, "special_tokens_map.json", eos_token="<turn>"),
    "added": lambda folder: set_values(folder, "added_tokens.json"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_tokenizer_is_asked_again_when_a_file_changes(
    change: str, chat: Path, cache: Path
) -> None:
    assert loads(chat) == 1 and loads(chat) == 0
    CHANGES[change](chat)
    assert loads(chat) == 1 and loads(chat) == 0
    (chat / "model.safetensors").write_bytes(b"other weights")
    assert loads(chat) == 0, "no tokenizer reads weights"


def test_a_process_that_loaded_a_tokenizer_gets_the_changed_one(chat: Path) -> None:
    before = load_tokenizer(str(chat))
    assert load_tokenizer(str(chat)) is before
    CHANGES["template"](chat)
    assert load_tokenizer(str(chat)).chat_template == before.chat_template.replace(
        "<turn>", "<ask>."
    )


def test_a_file_that_settings_name_elsewhere_counts(
    chat: Path, tmp_path: Path, cache: Path
) -> None:
    """Transformers takes a path in tokenizer_config.json over the directory's own file."""
    elsewhere = tmp_path / "elsewhere.json"
    shutil.copy(chat / "tokenizer.json", elsewhere)
    set_values(chat, "tokenizer_config.json", tokenizer_file=str(elsewhere), note="x" * 5000)
    assert loads(chat) == 1 and loads(chat) == 0
    rewrite(elsewhere, '"four"', '"fear"')
    assert loads(chat) == 1


def test_files_too_large_to_read_are_known_by_size_and_times(
    chat: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines.models.contents, "_LARGEST_READ", 100)
    assert loads(chat) == 1 and loads(chat) == 0
    CHANGES["template"](chat)
    assert loads(chat) == 1


@pytest.mark.parametrize("library", ["transformers", "tokenizers", "jinja2", "tiktoken"])
def test_other_libraries_are_asked_again(
    library: str, chat: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, versions = importlib.metadata.version, pipelines.models.fingerprints._read_with
    assert loads(chat) == 1 and model_shape(chat).hidden_size == 12
    try:
        monkeypatch.setattr(
            importlib.metadata, "version", lambda name: "0" if name == library else version(name)
        )
        versions.cache_clear()
        assert loads(chat) == 1 and loads(chat) == 0
    finally:
        monkeypatch.undo()
        versions.cache_clear()


def test_this_rooms_own_code_is_among_what_reads(tmp_path: Path) -> None:
    """The hash over the modules' bytes, computed here."""
    room = Path(pipelines.models.fingerprints.__file__).parent
    code = b"".join(file.read_bytes() for file in sorted(room.glob("*.py")))
    assert pipelines.models.fingerprints._read_with()["code"] == hashlib.sha256(code).hexdigest()


TOKENIZER_CODE = """
import os
from pathlib import Path
from transformers import PreTrainedTokenizerFast


class OwnTokenizer(PreTrainedTokenizerFast):
    @property
    def eos_token_id(self):
        return int(Path(os.environ["END_FILE"]).read_text())
"""


def test_a_tokenizer_with_code_of_its_own_is_loaded_every_time(
    chat: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code reads a file that nobody else knows of: the fingerprint follows it."""
    end = tmp_path / "end"
    monkeypatch.setenv("END_FILE", str(end))
    (chat / "tokenization_own.py").write_text(TOKENIZER_CODE)
    set_values(
        chat,
        "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]},
    )
    found = []
    monkeypatch.setenv(TRUSTED_CODE, code_hash(chat))
    for number in ("1", "2", "1"):
        end.write_text(number)
        found.append((tokenizer_fingerprint(chat), response_ends(str(chat)).ids[0]))
    assert found[0] == found[2] != found[1] and [ids for _, ids in found] == [1, 2, 1]


def test_an_adapter_with_a_tokenizer_of_its_own(chat: Path, tmp_path: Path, cache: Path) -> None:
    """Its own files decide, and the base's configuration; without the base it still has one."""
    adapter = adapter_of(chat, tmp_path / "adapter")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(chat / name, adapter / name)
    assert loads(adapter) == 1 and loads(adapter) == 0
    CHANGES["template"](adapter)
    assert loads(adapter) == 1 and loads(adapter) == 0
    CHANGES["config"](chat)
    assert loads(adapter) == 1 and loads(adapter) == 0
    before = tokenizer_fingerprint(adapter)
    chat.rename(tmp_path / "gone")
    assert tokenizer_fingerprint(adapter) == before


def test_ends_of_a_model_with_the_tokenizer_of_another(
    chat: Path, tmp_path: Path, cache: Path
) -> None:
    """One tokenizer, two models that list other ends: a word is left out, and named."""
    other = write_chain_model(tmp_path / "other", listed=[6], has_template=True)
    for _ in range(2):
        assert response_ends(str(chat), str(chat)) == ResponseEnds((1, 2))
        assert response_ends(str(other), str(chat)) == ResponseEnds((1, 2), ("two (6)",))


def test_a_snapshot_of_links_is_what_they_point_to(chat: Path, tmp_path: Path, cache: Path) -> None:
    """As in the hub's cache: a link that points to another blob, a blob that changes in place."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0f"
    snapshot.mkdir(parents=True)
    shutil.copytree(chat, blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert loads(snapshot) == 1 and loads(snapshot) == 0
    CHANGES["template"](blobs)
    assert loads(snapshot) == 1 and loads(snapshot) == 0
    link = snapshot / "chat_template.jinja"
    link.unlink()
    (chat / "chat_template.jinja").write_text("{{ messages | length }}")
    link.symlink_to(chat / "chat_template.jinja")
    assert loads(snapshot) == 1 and loads(snapshot) == 0
    (snapshot / "lost.json").symlink_to(tmp_path / "nowhere")
    assert loads(snapshot) == 0, "a link to nothing is no file"


def test_a_cache_that_cannot_be_written_costs_time_alone(chat: Path, cache: Path) -> None:
    cache.write_text("a file where the folder would be")
    assert loads(chat) == 1 and loads(chat) == 1
    assert (
        file_hash(chat / "config.json")
        == hashlib.sha256((chat / "config.json").read_bytes()).hexdigest()
    )


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda entry: b"",
    "cut": lambda entry: entry[: len(entry) // 2],
    "list": lambda entry: b"[]",
    "fact": lambda entry: entry.replace(b"[1, 2]", b"[1, 3]"),
    "binary": lambda entry: b"\xff\x00" + entry,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_counts_as_none(damage: str, cache: Path) -> None:
    found = []

    def fact() -> list[int]:
        found.append(1)
        return [1, 2]

    for times in (1, 1):
        assert remembered("a", lambda: "key", fact) == [1, 2] and len(found) == times
    (entry,) = (cache / "facts").iterdir()
    before = entry.read_bytes()
    entry.write_bytes(DAMAGE[damage](before))
    damaged = entry.read_bytes()
    (cache / "reader").hardlink_to(entry)
    assert remembered("a", lambda: "key", fact) == [1, 2] and len(found) == 2
    assert entry.read_bytes() == before != damaged, "repaired"
    assert (cache / "reader").read_bytes() == damaged, "who reads meanwhile reads one whole file"
    other = remembered("b", lambda: "key", lambda: "other")
    shutil.copy(next((cache / "facts").glob("b-*")), entry)
    assert other == "other" and remembered("a", lambda: "key", fact) == [1, 2], "another's entry"


def test_what_changes_while_it_is_looked_at_is_not_kept(cache: Path) -> None:
    state = {"content": 0}

    def look() -> int:
        state["content"] += 1
        return state["content"]

    assert remembered("a", lambda: dict(state), look) == 1
    state["content"] = 0
    assert remembered("a", lambda: dict(state), lambda: "new") == "new"


def test_a_file_hash_is_kept_until_the_file_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry of another file's hash, with its check, shows what comes from the cache. A file that
    changed a moment ago is not kept: it may change again within the same tick of the clock.
    """

    def sha(file: Path) -> str:
        return hashlib.sha256(file.read_bytes()).hexdigest()

    file, entries = tmp_path / "weights", cache / "file_hashes.json"
    file.write_text("one")
    assert file_hash(file) == sha(file) and not entries.exists()
    monkeypatch.setattr(pipelines.storage.hashes, "_SETTLED_NS", 0)
    assert file_hash(file) == sha(file)
    kept = json.loads(entries.read_text())
    *state, _, _ = entry = kept[str(file)]
    marked = [*state, "kept", digest([str(file), *state, "kept"])[:8]]
    entries.write_text(json.dumps({str(file): marked}))
    assert file_hash(file) == "kept"
    rewrite(file, "one", "two")
    assert file_hash(file) == sha(file) != entry[-2], "a restored mtime hides nothing"
    assert list(json.loads(entries.read_text())) == [str(file)], "one entry per file"
    *now, value, check = json.loads(entries.read_text())[str(file)]
    flipped = json.dumps({str(file): [*now, f"0{value[1:]}", check]}).encode()
    nested = b"[" * 100_000
    others = (f'{{"{file}": {v}}}'.encode() for v in (3, [], [1], [1, 2], nested.decode()))
    for damaged in (b"", b"[]", b"\xff", flipped, nested, *others):
        entries.write_bytes(damaged)
        assert file_hash(file) == sha(file)


def test_a_fingerprint_is_of_all_that_computes(
    model_dir: Path, tmp_path: Path, cache: Path
) -> None:
    """Weights and configurations, an adapter's and its base's; not where the base lies, nor what
    wrote its configuration.
    """
    base = Path(shutil.copytree(model_dir, tmp_path / "base"))
    adapter = adapter_of(base, tmp_path / "adapter")

    def other_weights(folder: Path) -> None:
        file = next(folder.glob("*.safetensors"))
        file.write_bytes(file.read_bytes() + b"more")

    found = [(weights_fingerprint(base), weights_fingerprint(adapter))]
    for folder, change in (
        (adapter, other_weights),
        (adapter, lambda folder: set_values(folder, "adapter_config.json", r=8)),
        (base, other_weights),
        (base, lambda folder: set_values(folder, "config.json", rms_norm_eps=0.5)),
    ):
        change(folder)
        found.append((weights_fingerprint(base), weights_fingerprint(adapter)))
        assert (found[-1][0] != found[-2][0]) == (folder == base)
        assert found[-1][1] not in [fingerprint for both in found[:-1] for fingerprint in both]
    moved = Path(shutil.copytree(base, tmp_path / "moved"))
    set_values(moved, "config.json", transformers_version="0", _name_or_path="elsewhere")
    set_values(adapter, "adapter_config.json", base_model_name_or_path=str(moved))
    assert (weights_fingerprint(moved), weights_fingerprint(adapter)) == found[-1]


def test_published_weights_that_changed_are_refused(
    model_dir: Path, tmp_path: Path, cache: Path
) -> None:
    """By the manifest of the training that published them, and by no other."""
    folder = Path(shutil.copytree(model_dir, tmp_path / "train" / "model"))
    (file,) = folder.glob("*.safetensors")
    published = {f"model/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest()}
    set_values(folder.parent, "manifest.json", stage="train", outputs=published)
    assert weights_fingerprint(folder) == weights_fingerprint(model_dir)
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(UserError, match=f"{file.name} is damaged: it is not what training publis"):
        weights_fingerprint(folder)
    set_values(folder.parent, "manifest.json", stage="another program's")
    assert weights_fingerprint(folder) != weights_fingerprint(model_dir)


@pytest.mark.parametrize("case", UNLIKE)
def test_sizes_and_parameters_are_those_of_the_loaded_model(
    case: str, tmp_path: Path, cache: Path
) -> None:
    """Of the configuration as transformers has it, and of the tensors that lie in the files: tied
    ones once. An adapter has those of its base.
    """
    config = tiny_config(case, vocabulary=40)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / case)
    hidden = model(input_ids=torch.tensor([[3, 4]]), output_hidden_states=True).hidden_states
    head = model.get_output_embeddings().weight
    for directory in (tmp_path / case, adapter_of(tmp_path / case, tmp_path / "adapter")):
        for _ in range(2):
            shape = model_shape(directory)
            assert shape.num_layers == len(hidden) - 1
            assert (shape.vocabulary, shape.state_size) == tuple(head.shape)
            assert shape.hidden_size == config.hidden_size
        with safe_open(tmp_path / case / "model.safetensors", "pt") as file:
            stored = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        assert count_parameters(directory) == sum(map(math.prod, stored))
        named = sum(p.numel() for p in model.parameters())
        buffers = sum(b.numel() for name, b in model.named_buffers() if name in model.state_dict())
        assert count_parameters(directory) == named + buffers
    longest = None if case in ("bloom", "mamba") else 128
    assert max_positions(tmp_path / case) == longest
    set_values(tmp_path / case, "config.json", vocab_size=41)
    assert model_shape(tmp_path / case).vocabulary == 41


def test_a_configuration_without_sizes_is_named(tmp_path: Path, cache: Path) -> None:
    config = {"model_type": "vit_mae"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"model directory {tmp_path}: its configuration lacks"):
        model_shape(tmp_path)


@pytest.mark.parametrize(
    ("build", "driver", "device", "expected"),
    [
        ("cuda = hip = None", "libc.so.6", "/dev/null", False),
        ("cuda = None", "libc.so.6", "/dev/null", False),
        ("cuda, hip = None, '6.4'", "libc.so.6", "/dev/none", False),
        ("cuda, hip = None, '6.4'", "libnone.so", "/dev/null", True),
        ("cuda = '13.0'", "libc.so.6", "/dev/none", True),
        ("cuda, hip = '13.0', None", "libnone.so", "/dev/null", False),
    ],
)
def test_torch_is_asked_for_a_gpu_only_where_one_is_possible(
    build: str,
    driver: str,
    device: str,
    expected: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A build without CUDA and ROCm, or one without its driver, has none."""
    assert device_kind() == ("cuda" if torch.cuda.is_available() else "cpu")
    assert _may_have_gpu() or not torch.cuda.is_available()
    monkeypatch.setattr(pipelines.models.accelerator, "_CUDA_DRIVER", driver)
    monkeypatch.setattr(pipelines.models.accelerator, "_ROCM_DEVICES", ("/dev/none", device))
    (tmp_path / "version.py").write_text(build)
    origin = str(tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin=origin))
    assert _may_have_gpu() is expected
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert _may_have_gpu() is True, "who cannot tell asks torch"
    assert [dtype_name("auto", kind) for kind in ("cuda", "cpu")] == ["bfloat16", "float32"]
    assert dtype_name("float32", "cuda") == "float32"


LIGHT = """
import json, os, sys
from pathlib import Path
from pipelines.models import (
    device_kind, resolve_model, response_ends, tokenizer_fingerprint, weights_fingerprint,
)
from pipelines.models.directories import max_positions
from pipelines.models.sizes import embedding_rows, tokens_in_use
from pipelines.recipe import load_recipe
from pipelines.recipe import Run
from pipelines.reference import (
    REFERENCE, check_hooks, count_parameters, feature_origins, scoring_device, settle_mode,
)
from pipelines.reference.formats import formats_of, head_bytes
from pipelines.storage.facts import remembered
from pipelines.train.start import starting_model

def facts(name):
    directory = resolve_model(name)
    return [
        weights_fingerprint(directory), tokenizer_fingerprint(directory),
        list(response_ends(name).ids), max_positions(directory), count_parameters(directory),
        embedding_rows(directory), tokens_in_use(directory),
    ]

def of_recipe(file):
    recipe = load_recipe(file)
    settled = settle_mode(recipe, scoring_device())
    if "reference_layers" not in recipe.required_features():
        check_hooks(recipe)
    wanted = settled.stored_features()
    formats = formats_of(settled, wanted, "float32")
    return [
        str(starting_model(recipe)), feature_origins(recipe),
        {k: v for k, v in Run(settled).inputs(REFERENCE).origins.items() if v and k in wanted},
        {name: form.to_json() for name, form in formats.items()},
        {name: form.token_bytes() for name, form in formats.items()},
        head_bytes(settled, wanted, "float32"), settled.reference.mode,
    ]

def two_processes(folder):
    "Both find out the same fact at once; each gets it, and it lies there whole."
    ready, go = os.pipe()
    children = []
    for size in (10**6, 2 * 10**6):
        own = lambda: "x" * size
        pid = os.fork()
        if not pid:
            os.read(ready, 1)
            os._exit(any(remembered("race", lambda: n, own).strip("x") for n in range(40)))
        children.append(pid)
    os.write(go, b"ab")
    codes = [os.waitpid(pid, 0)[1] for pid in children]
    def lost():
        raise AssertionError("not kept")
    return codes, {len(remembered("race", lambda: n, lost)) for n in range(40)}

answers = {}
for kind, argument in json.loads(sys.argv[1]):
    answers[f"{kind} {argument}"] = {"facts": facts, "recipe": of_recipe}[kind](argument)
    heavy = {"torch", "transformers", "ray", "pandas", "peft"} & set(sys.modules)
    assert not heavy, (kind, argument, heavy)
codes, sizes = two_processes(sys.argv[2])
assert codes == [0, 0] and sizes <= {10**6, 2 * 10**6}
print(json.dumps({"device": device_kind(), **answers}))
"""


@pytest.mark.slow
def test_what_records_need_is_known_without_heavy_imports(
    model_dir: Path,
    recipe_in: MakeRecipe,
    chat: Path,
    tmp_path: Path,
    cache: Path,
) -> None:
    """In a fresh process, as in this one: places and fingerprints of directories, an adapter and a
    model of the hub's cache; what recipes of every origin of features record.
    """
    hub = tmp_path / "hub" / "models--own--chat"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text("0f" * 20)
    shutil.copytree(chat, hub / "snapshots" / ("0f" * 20))
    adapter = adapter_of(model_dir, tmp_path / "adapter")
    embedder = tmp_path / "embedder"
    shutil.copytree(model_dir, embedder)
    learned = ("objective.name=sparsepo", "mask.kind=learned", "mask.architecture=simple_all")
    wanted = {
        "layers": (*learned, "train.epochs=50"),
        "int8": (*learned, "reference.layers_dtype=int8", "reference.mode=stored"),
        "kl": ("objective.name=tdpo1",),
        "topk": ("objective.name=tdpo1", "reference.topk=32"),
        "mapo": ("objective.name=dpo",),
        "rpo": ("objective.name=rpo", "objective.beta=1", f"model.embedder={embedder}"),
        "tis": (
            "objective.name=tis_dpo",
            f"model.positive_scorer={chat}",
            f"model.negative_scorer={adapter}",
        ),
    }
    asked = [("facts", str(folder)) for folder in (model_dir, chat, adapter)]
    expected: dict[str, Any] = {}
    for _, name in asked:
        directory = Path(name)
        expected[f"facts {name}"] = [
            weights_fingerprint(directory),
            tokenizer_fingerprint(directory),
            list(response_ends(name).ids),
            max_positions(directory),
            count_parameters(directory),
            embedding_rows(directory),
            tokens_in_use(directory),
        ]
    for name in wanted:
        recipe = recipe_in(tmp_path / "run", *wanted[name])
        file = tmp_path / f"{name}.yaml"
        file.write_text(write_yaml(recipe))
        asked.append(("recipe", str(file)))
        settled = settle_mode(recipe, "cpu")
        formats = formats_of(settled, settled.stored_features(), "float32")
        expected[f"recipe {file}"] = [
            str(model_dir),
            {
                feature: how
                for feature, how in origins_of(recipe, recipe.required_features()).items()
                if feature in ("scorer_log_ratios", "prompt_embedding")
            },
            {k: v for k, v in origins_of(settled, settled.stored_features()).items() if v},
            {feature: form.to_json() for feature, form in formats.items()},
        ]
    tokenizer_fingerprint(hub / "snapshots" / ("0f" * 20))
    response_ends(str(hub / "snapshots" / ("0f" * 20)))
    tokens_in_use(hub / "snapshots" / ("0f" * 20))
    asked.append(("facts", "own/chat"))
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, json.dumps(asked), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={
            **os.environ,
            "SPARSEPO_CACHE": str(cache),
            "HF_HUB_CACHE": str(hub.parent),
        },
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("device") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert found.pop("facts own/chat") == found[f"facts {chat}"]
    for name, values in expected.items():
        assert found[name][: len(values)] == values, name
    assert found[f"recipe {tmp_path / 'layers.yaml'}"][-1] == "stored"
