"""What must not happen: keys in what a run leaves behind, pickles among its files, names that
lead out of a store, open doors.
"""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from checkout import ROOT
from packaging.requirements import Requirement
from processes import ended
from runs import MakeRecipe

import pipelines.cluster.jobs
from pipelines.commands.cli import app
from pipelines.commands.plan import run_plan
from pipelines.commands.submit import packaged_command
from pipelines.errors import UserError
from pipelines.models.device import Placement
from pipelines.models.directories import resolve_model
from pipelines.models.loading import (
    hf_config,
    load_causal_lm,
    load_tokenizer,
    without_weights,
)
from pipelines.models.trusted_code import TRUSTED_CODE, code_hash, publish_code, trusted_copy
from pipelines.recipe.files import write_yaml
from pipelines.recipe.stage import Run
from pipelines.storage.hashes import CACHE
from pipelines.storage.store import RunStore
from pipelines.storage.user_key import user_key
from pipelines.train.policy import count_adapter_parameters
from pipelines.train.stage import TRAIN
from pipelines.train.start import starting_model
from pipelines.train.strategy import strategy_of

PLANTED = "planted-7f3a9c"
# Every variable that the pipeline, Ray, the trackers or an object store takes a key from.
SECRETS = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "WANDB_API_KEY",
    "HF_TOKEN",
    "SPARSEPO_WEBHOOK",
    "JUDGE_KEY",
    "MLFLOW_TRACKING_PASSWORD",
)


@pytest.fixture
def ray_logs() -> Iterator[Path]:
    """A directory with a name as short as sockets need it."""
    with tempfile.TemporaryDirectory(
        prefix="ray-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)


CONFIGURATION = """
import os
from pathlib import Path
from transformers import LlamaConfig

Path(os.environ.get("RAN_FILE", os.devnull)).write_text("ran")


class OwnConfig(LlamaConfig):
    model_type = "MODEL_TYPE"
"""
MODELING = """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def model_with_code(model_dir: Path, folder: Path, model_type: str) -> Path:
    """The tiny model with Python files that its config names; they leave the file $RAN_FILE when
    they run.
    """
    shutil.copytree(model_dir, folder)
    (folder / "configuration_own.py").write_text(CONFIGURATION.replace("MODEL_TYPE", model_type))
    (folder / "modeling_own.py").write_text(MODELING)
    config = json.loads((folder / "config.json").read_text())
    names = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
    }
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": model_type, "auto_map": names})
    )
    return folder


def test_code_of_a_model_runs_only_if_its_hash_is_listed(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused, listed, saved and loaded again, changed, named elsewhere; a listed model gives
    what the same weights give without code.
    """
    ran = tmp_path / "ran"
    monkeypatch.setenv("RAN_FILE", str(ran))
    monkeypatch.delenv(TRUSTED_CODE, raising=False)
    folder = model_with_code(model_dir, tmp_path / "own", "own_llama")
    for load in (
        lambda where: hf_config(where),
        lambda where: load_causal_lm(str(where), torch.float32),
    ):
        with pytest.raises(
            UserError,
            match=r"it needs code of its own \(configuration_own.py, modeling_own.py\), which is "
            r"not run",
        ) as error:
            load(folder)
    digest = str(error.value).rpartition("=")[2]
    assert not ran.exists()

    monkeypatch.setenv(TRUSTED_CODE, f"{'0' * 64},{digest}")
    model = load_causal_lm(str(folder), torch.float32)
    assert (type(model).__name__, ran.read_text()) == ("OwnForCausalLM", "ran")
    ids = torch.arange(3, 40)[None]
    assert torch.equal(model(ids).logits, load_causal_lm(str(model_dir), torch.float32)(ids).logits)
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "processor_config.json").write_text(
        "{}"
    )  # saving may write what the start has not
    publish_code(folder, tmp_path / "saved")
    assert (
        type(load_causal_lm(str(tmp_path / "saved"), torch.float32)).__name__ == "OwnForCausalLM"
    ), "the published copy brings the code"

    ran.unlink()
    assert code_hash(tmp_path / "saved") == code_hash(folder) == digest
    with (folder / "modeling_own.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(UserError, match="it needs code of its own"):
        load_causal_lm(str(folder), torch.float32)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"]["AutoConfig"] = "somebody/else--configuration_own.OwnConfig"
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv(TRUSTED_CODE, code_hash(folder))
    with pytest.raises(
        UserError, match=r"somebody/else--configuration_own.OwnConfig\) lies in another repository"
    ):
        hf_config(folder)
    assert not ran.exists()


def change(file: Path, **values: object) -> None:
    file.write_text(
        json.dumps({**(json.loads(file.read_text()) if file.is_file() else {}), **values})
    )


def entry(value: object) -> Callable[[Path, Path], None]:
    return lambda folder, elsewhere: change(
        folder / "config.json",
        auto_map={"AutoConfig": str(value).replace("ELSEWHERE", str(elsewhere))},
    )


def linked_file(folder: Path, elsewhere: Path) -> None:
    (folder / "configuration_own.py").unlink()
    (folder / "configuration_own.py").symlink_to(elsewhere / "configuration_own.py")


def imports(line: str) -> Callable[[Path, Path], None]:
    def build(folder: Path, elsewhere: Path) -> None:
        (folder / "modeling_own.py").write_text(line + MODELING)

    return build


# What a model's directory may name beyond its hashed files, and how that is refused although its
# hash is listed.
BEYOND = {
    "absolute path": (entry("ELSEWHERE/configuration_own.OwnConfig"), "it must be module.Class"),
    "parent": (entry("../elsewhere/configuration_own.OwnConfig"), "it must be module.Class"),
    "folder": (entry("sub/configuration_own.OwnConfig"), "it must be module.Class"),
    "package": (entry("sub.configuration_own.OwnConfig"), "it must be module.Class"),
    "number": (entry(7), "it must be module.Class"),
    "repository": (entry("some/body--configuration_own.OwnConfig"), "lies in another repository"),
    "nothing": (entry("missing.OwnConfig"), "the directory has no file missing.py"),
    "link to a file": (linked_file, "outside the directory"),
    "link to a folder": (
        lambda folder, elsewhere: (folder / "custom_generate").symlink_to(elsewhere),
        "its folder custom_generate is a link",
    ),
    "import from above": (imports("from ..elsewhere import x\n"), "imports ../elsewhere.py"),
    "import of a package": (imports("from .sub.inner import x\n"), "imports sub/inner.py"),
    "import of nothing": (imports("from . import missing\n"), "imports missing.py"),
    "in a processor's configuration": (
        lambda folder, _: change(
            folder / "preprocessor_config.json",
            auto_map={"AutoImageProcessor": {"pil": "a/b--c.D"}},
        ),
        "lies in another repository",
    ),
    "in a configuration for another version": (
        lambda folder, _: change(
            folder / "config.9.0.0.json", text_config={"auto_map": {"AutoModel": ["../c.D", None]}}
        ),
        "it must be module.Class",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BEYOND)
def test_no_hash_covers_code_beyond_the_directory(
    name: str, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused with its hash listed; and without, no hash is offered."""
    monkeypatch.setenv("RAN_FILE", str(tmp_path / "ran"))
    folder = model_with_code(model_dir, tmp_path / "own", "own_llama")
    elsewhere = model_with_code(model_dir, tmp_path / "elsewhere", "own_llama")
    build, message = BEYOND[name]
    build(folder, elsewhere)
    for listed in (code_hash(folder), ""):
        monkeypatch.setenv(TRUSTED_CODE, listed)
        with pytest.raises(UserError, match=re.escape(message)) as error:
            hf_config(folder)
        assert TRUSTED_CODE not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_a_model_without_python_files_has_no_hash_to_list(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_with_code(model_dir, tmp_path / "own", "own_llama")
    for file in folder.glob("*.py"):
        file.unlink()
    for listed in ("", code_hash(folder), hashlib.sha256().hexdigest()):
        monkeypatch.setenv(TRUSTED_CODE, listed)
        with pytest.raises(
            UserError, match="the directory has no file configuration_own.py"
        ) as error:
            hf_config(folder)
        assert TRUSTED_CODE not in str(error.value)


def test_configurations_are_part_of_the_hash(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change is refused under the old hash: of the model's, tokenizer's, generation's, a
    processor's; a file for other versions.
    """
    monkeypatch.setenv("RAN_FILE", str(tmp_path / "ran"))
    folder = model_with_code(model_dir, tmp_path / "own", "own_llama")
    (folder / "other.py").write_text("raise SystemExit('other code ran')\n")
    monkeypatch.setenv(TRUSTED_CODE, code_hash(folder))
    assert hf_config(folder).model_type == "own_llama"
    changes = {
        "config.json": {"auto_map": {"AutoConfig": "other.OwnConfig"}},
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["other.Tokenizer", None]}},
        "generation_config.json": {"custom_generate": "other"},
        "processor_config.json": {"auto_map": {"AutoProcessor": "other.Processor"}},
        "config.9.0.0.json": {"model_type": "own_llama"},
    }
    for name, values in changes.items():
        changed = tmp_path / name.removesuffix(".json")
        shutil.copytree(folder, changed)
        change(changed / name, **values)
        with pytest.raises(UserError, match="it needs code of its own"):
            load_causal_lm(str(changed), torch.float32)
        assert load_tokenizer(str(changed)).eos_token_id is not None, (
            "by what transformers has: no code runs"
        )


def test_what_runs_is_what_was_hashed(
    make_recipe: MakeRecipe, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that change after the look at them, and a configuration that says its code lies
    elsewhere, run nothing else.
    """
    monkeypatch.setenv("RAN_FILE", str(tmp_path / "ran"))
    folder = model_with_code(model_dir, tmp_path / "own", "own_llama")
    elsewhere = model_with_code(model_dir, tmp_path / "elsewhere", "own_llama")
    for file in elsewhere.glob("*.py"):
        file.write_text("raise SystemExit('code elsewhere ran')\n")
    change(folder / "config.json", _name_or_path=str(elsewhere), name_or_path=str(elsewhere))
    monkeypatch.setenv(TRUSTED_CODE, code_hash(folder))
    recipe = make_recipe(
        f"model.name_or_path={folder}", "train.lora.rank=2", "train.lora.target_modules=[q_proj]"
    )
    assert (
        count_adapter_parameters(recipe) > 0
        and type(load_causal_lm(str(folder), torch.float32)).__name__ == "OwnForCausalLM"
    )
    assert without_weights(folder).config.name_or_path == str(trusted_copy(folder, CACHE)), (
        "a model without weights takes its code from the copy too"
    )
    copy = trusted_copy(folder, tmp_path / "cache")
    assert copy is not None and code_hash(copy) == code_hash(folder)
    (folder / "modeling_own.py").write_text("raise SystemExit('changed code ran')\n")
    assert (copy / "modeling_own.py").read_text() == MODELING
    (copy / "configuration_own.py").write_text("raise SystemExit('the cache is changed')\n")
    (folder / "modeling_own.py").write_text(MODELING)
    again = trusted_copy(folder, tmp_path / "cache")
    assert again == copy and code_hash(again) == code_hash(folder), (
        "a copy that is not what was hashed is made anew"
    )


def test_a_snapshot_of_the_hubs_cache_may_link_to_its_store(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There every file is a link into `blobs`; a link to any other place is not of that cache."""
    monkeypatch.setenv("RAN_FILE", str(tmp_path / "ran"))
    downloaded = model_with_code(model_dir, tmp_path / "downloaded", "own_llama")
    snapshot, blobs = (
        tmp_path / "models--a--b" / "snapshots" / "0f",
        tmp_path / "models--a--b" / "blobs",
    )
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in downloaded.iterdir():
        shutil.copyfile(file, blobs / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    monkeypatch.setenv(TRUSTED_CODE, code_hash(downloaded))
    assert type(load_causal_lm(str(snapshot), torch.float32)).__name__ == "OwnForCausalLM"
    (snapshot / "modeling_own.py").unlink()
    (snapshot / "modeling_own.py").symlink_to(downloaded / "modeling_own.py")
    with pytest.raises(UserError, match="outside the directory"):
        hf_config(snapshot)


def test_an_adapters_base_is_trusted_by_its_own_hash(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files beside the adapter do not count; code that the adapter wants imported is refused."""
    from peft import LoraConfig, get_peft_model

    monkeypatch.setenv("RAN_FILE", str(tmp_path / "ran"))
    base = model_with_code(model_dir, tmp_path / "base", "own_llama")
    adapter = tmp_path / "adapter"
    get_peft_model(
        load_causal_lm(str(model_dir), torch.float32), LoraConfig(task_type="CAUSAL_LM")
    ).save_pretrained(adapter)
    change(adapter / "adapter_config.json", base_model_name_or_path=str(base))
    for listed in ("", code_hash(adapter)):
        monkeypatch.setenv(TRUSTED_CODE, listed)
        with pytest.raises(UserError, match=f"set {TRUSTED_CODE}={code_hash(base)}"):
            load_causal_lm(str(adapter), torch.float32)
    monkeypatch.setenv(TRUSTED_CODE, code_hash(base))
    assert type(load_causal_lm(str(adapter), torch.float32)).__name__ == "OwnForCausalLM"
    change(adapter / "adapter_config.json", megatron_config={}, megatron_core="antigravity")
    with pytest.raises(UserError, match="wants the module megatron_core = 'antigravity'"):
        resolve_model(str(adapter))


def test_kernels_of_a_repository_are_refused(model_dir: Path, tmp_path: Path) -> None:
    for number, wanted in enumerate(
        (
            {"attn_implementation": "some/kernel"},
            {"text_config": {"_attn_implementation": {"": "some/kernel@v1"}}},
        )
    ):
        folder = tmp_path / str(number)
        shutil.copytree(model_dir, folder)
        change(folder / "config.json", **wanted)
        with pytest.raises(UserError, match="config.json wants kernels of 'some/kernel"):
            hf_config(folder)


def test_a_model_with_code_keeps_its_own_tokenizer(
    make_recipe: MakeRecipe, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one's configuration would change the published model's hash: said before any work,
    by run and by plan.
    """
    folder = model_with_code(model_dir, tmp_path / "own", "llama")
    monkeypatch.setenv(TRUSTED_CODE, code_hash(folder))
    own = make_recipe(f"model.name_or_path={folder}", f"model.tokenizer={folder}")
    assert starting_model(own) == folder
    other = make_recipe(f"model.name_or_path={folder}", f"model.tokenizer={model_dir}")
    for refuse in (lambda recipe: Run(recipe).record(TRAIN), run_plan):
        with pytest.raises(UserError, match="put the tokenizer's files into the model's directory"):
            refuse(other)


def test_a_model_that_transformers_knows_needs_no_code(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TRUSTED_CODE, raising=False)
    monkeypatch.setenv("RAN_FILE", str(tmp_path / "ran"))
    folder = model_with_code(model_dir, tmp_path / "own", "llama")
    assert type(load_causal_lm(str(folder), torch.float32)).__name__ == "LlamaForCausalLM"
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_every_call_that_could_run_a_models_code_says_whether() -> None:
    """Left out, transformers asks on the terminal."""
    calls = []
    for package in ("sparsepo", "evaluation", "pipelines"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr in ("from_pretrained", "from_config")
                ):
                    owner = ast.unparse(node.func.value)
                    if owner.lower().startswith("auto"):
                        calls.append(f"{file.name}: {owner}")
                        assert "trust_remote_code" in [keyword.arg for keyword in node.keywords], (
                            calls[-1]
                        )
    assert len(calls) >= 6, calls


def calls(file: str, *names: str) -> list[dict[str, ast.expr]]:
    """Named arguments of every call of these functions, by their last names, in a file."""
    return [
        {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
        for node in ast.walk(ast.parse((ROOT / file).read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in names
    ]


def test_the_harness_is_not_told_to_run_code() -> None:
    """Its switches for unsafe tasks and for models' code are off unless they are named."""
    found = calls("pipelines/evaluate/leaderboard.py", "simple_evaluate", "TaskManager")
    assert len(found) == 2
    for arguments in found:
        assert not {"confirm_run_unsafe_code", "model_args", "trust_remote_code"} & arguments.keys()
    import inspect

    from lm_eval import simple_evaluate

    assert inspect.signature(simple_evaluate).parameters["confirm_run_unsafe_code"].default is False


def test_a_ray_of_a_command_has_no_dashboard() -> None:
    """Every start of Ray that joins no cluster says so."""
    starts = []
    for file in sorted((ROOT / "pipelines").rglob("*.py")):
        starts += calls(str(file.relative_to(ROOT)), "init")
    own = [arguments for arguments in starts if "include_dashboard" in arguments]
    assert len(own) == 1 and sum("log_to_driver" in arguments for arguments in starts) == 2
    assert ast.literal_eval(own[0]["include_dashboard"]) is False


def test_the_users_key_is_read_by_its_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made once, with no right for others."""
    monkeypatch.setattr(sys.modules["pipelines.storage.user_key"], "CACHE", tmp_path / "cache")
    key = user_key()
    assert user_key() == key and len(key) == 32
    assert (tmp_path / "cache" / "key").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_no_key_and_no_pickle_in_what_a_run_leaves(
    make_recipe: MakeRecipe, model_dir: Path, tmp_path: Path, ray_logs: Path
) -> None:
    """A whole run with every key set, in a directory for Ray's logs of its own: no file and no
    output has a key, none of ours is a pickle.

    Its model brings code that is trusted: every stage runs it, and the trained model brings it too.
    """
    own = model_with_code(model_dir, tmp_path / "own", "llama")
    overrides = (
        "train.max_steps=2",
        "objective.name=mapo",
        "mask.kind=activation",
        f"model.name_or_path={own}",
    )
    recipe = make_recipe(*overrides, f"ray.temp_dir={ray_logs}", "ray.num_cpus=2")
    file = tmp_path / "recipe.yaml"
    file.write_text(write_yaml(recipe))
    environment = {
        **os.environ,
        **{name: f"{PLANTED}-{name}" for name in SECRETS},
        TRUSTED_CODE: code_hash(own),
    }
    done = ended([sys.executable, "-m", "pipelines", "run", str(file)], environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert PLANTED not in done.stdout + done.stderr
    left = [path for path in Path(recipe.run_dir).rglob("*") if path.is_file()]
    logs = [path for path in ray_logs.rglob("logs/**/*") if path.is_file()]
    assert len(left) > 20 and len(logs) > 10
    assert [str(path) for path in left + logs if PLANTED.encode() in path.read_bytes()] == []
    ours = [path for path in left if ".ray" not in path.parts]
    assert [str(path) for path in ours if is_pickle(path.read_bytes())] == []
    published = Path(recipe.run_dir, "train", "model")
    assert json.loads((published / "config.json").read_text())["architectures"] == [
        "OwnForCausalLM"
    ]
    assert code_hash(published) == code_hash(own)
    assert is_pickle(b"\x80\x04\x95\x01") and is_pickle(b"cos\nsystem\n(S'x'\ntR.")


def is_pickle(data: bytes) -> bool:
    """Protocols 2 to 5 begin with a mark; older ones and archives with one inside by their
    opcodes or member names.
    """
    return (
        re.match(rb"\x80[\x02-\x05]|c[a-z_.]+\n\w+\n", data) is not None
        or b"data.pkl" in data[:4096]
    )


def test_names_lead_out_of_no_store(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"untouched")
    store = RunStore(str(tmp_path / "run"))
    for name in ("../outside", "reference/../../outside", "/etc/passwd", ".."):
        for action in (
            lambda name=name: store.write_bytes(name, b"x"),
            lambda name=name: store.read_bytes(name),
            lambda name=name: store.delete(name),
            lambda name=name: store.checksum(name),
            lambda name=name: store.exists(name),
        ):
            with pytest.raises(UserError, match=re.escape(f"{name!r} would leave")):
                action()
    assert outside.read_bytes() == b"untouched"


def test_a_checkpoint_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    """The files of a checkpoint are those that its state names: a manipulated one is refused
    before anything is read.
    """
    from pipelines.train.checkpoint_contents import check_files, write_state
    from pipelines.train.restore import load_checkpoint

    store = RunStore(str(tmp_path / "train"))
    elsewhere = "../../../../etc/hostname"
    write_state(
        store, 1, {"step": 1, "base": None, "files": {elsewhere: {"bytes": 1, "sha256": "0" * 64}}}
    )
    placement = Placement.choose("float32", torch.device("cpu"), 0, 1)
    with pytest.raises(UserError, match="would leave"):
        check_files(store, 1, placement)
    with pytest.raises(UserError, match="would leave"):
        load_checkpoint(store, 1, torch.nn.Linear(1, 1), None, strategy_of(placement))


@pytest.mark.slow
def test_a_directory_that_ray_cannot_use_is_one_line(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    long = tmp_path / ("x" * 90)
    done = subprocess.run(
        [sys.executable, "-c", "from pipelines.cluster import ray_session\nfrom pipelines.recipe "
            "import RaySection\nfrom pipelines.errors import UserError\n"
         f"try:\n    ray_session(RaySection(num_cpus=1, temp_dir={str(long)!r})).__enter__()\n"
         "except UserError as error:\n    print(error)"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (
        done.stdout.startswith(f"ray.temp_dir = {str(long)!r}: ") and "cannot exceed" in done.stdout
    )


def program() -> object:
    import typer

    return typer.main.get_command(app)


def test_a_jobs_package_has_code_and_recipe_alone(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No keys, no repository, no runs, no caches; the recipe with its overrides; sizes far below
    the limit.
    """
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PLANTED)
    file = tmp_path / "mine.yaml"
    file.write_text(write_yaml(make_recipe()))
    with packaged_command(["run", str(file), "train.seed=7", "--quiet"], program()) as (
        package,
        command,
    ):
        assert command == ["run", "recipe.yaml", "--quiet"]
        names = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
        tops = {name.split("/")[0] for name in names}
        assert tops == {"sparsepo", "pipelines", "evaluation", "recipe.yaml"}
        assert not [name for name in names if "__pycache__" in name or "/." in name]
        assert "seed: 7" in (package / "recipe.yaml").read_text()
        assert sum((package / name).stat().st_size for name in names) < 4 * 2**20
        assert all(PLANTED.encode() not in (package / name).read_bytes() for name in names)


def test_a_sweeps_package_has_the_recipes_it_names(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(write_yaml(make_recipe("data.validation_fraction=0.2")))
    sweep = {"run_dir": str(tmp_path / "sweep"), "recipe": str(base),
             "space": {"objective.beta": {"grid": [0.1, 0.5]}},
             "objectives": [{"metric": "validation/loss", "mode": "min"}]}  # fmt: skip
    file = tmp_path / "sweep.yaml"
    file.write_text(json.dumps(sweep))
    with packaged_command(
        ["tune", str(file), "max_concurrent_trials=1", "--resume"], program()
    ) as (package, command):
        assert command == ["tune", "sweep.yaml", "--resume"]
        assert (package / "recipes" / "base.yaml").is_file()
        from pipelines.sweep.files import load_sweep

        os.chdir(package)
        try:
            carried = load_sweep("sweep.yaml")
        finally:
            os.chdir(ROOT)
    assert carried.max_concurrent_trials == 1
    assert carried.recipe == str(package / "recipes" / "base.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing argument"),
        (("nonsense",), "submit nonsense: the command must be one of discriminator, evaluate, "),
        (("submit", "run"), "submit submit run: the command must be one of"),
        (("run", "nowhere.yaml"), "recipe 'nowhere.yaml': no such file"),
        (("status", "/runs/x"), "give --address http://HEAD:8265"),
        (
            ("status", "/runs/x", "--address", "ftp://x"),
            "--address 'ftp://x': must be http://HOST:PORT",
        ),
        (
            ("status", "/runs/x", "--address", "http://127.0.0.1:9"),
            "--address http://127.0.0.1:9: nothing answers there",
        ),
        (("status", "/runs/x", "--name", "a b"), "--name 'a b': letters, digits"),
        (
            ("status", "/runs/x", "--env", "WANDB_API_KEY"),
            "--env WANDB_API_KEY: by its name it holds a secret, and everybody who may use",
        ),
        (
            ("status", "/runs/x", "--env", "NCCL_NOT_SET_HERE"),
            "--env NCCL_NOT_SET_HERE: not set here; write NCCL_NOT_SET_HERE=VALUE",
        ),
        (
            ("status", "/runs/x", "--env", "MLFLOW_TRACKING_URI=http://x"),
            "--env MLFLOW_TRACKING_URI: not among the variables that a job needs",
        ),
        (
            ("status", "/runs/x", "--public-env", "PGPASSWORD=x"),
            "--public-env PGPASSWORD: by its name it holds a secret",
        ),
    ],
)
def test_what_cannot_be_submitted_is_one_line(
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipelines.commands.cli import main

    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(SystemExit) as caught:
        main(["submit", *arguments])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_dashboard_that_lets_everybody_in_is_warned_of(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real dashboard without tokens; then one that is none."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Anyone(BaseHTTPRequestHandler):
        status = 200

        def do_GET(self) -> None:
            self.send_response(self.status)
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Anyone)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    said: list[str] = []
    pipelines.cluster.jobs._check_access(address, "token", "a file", said.append)
    assert (
        said
        and f"warning: {address} answers without a token: whoever reaches it can run code there"
        in said[0]
    )
    Anyone.status = 404
    with pytest.raises(UserError, match="no Ray dashboard answers there"):
        pipelines.cluster.jobs._check_access(address, "token", "a file", said.append)
    server.shutdown()


def requirements() -> dict[str, list[Requirement]]:
    """Every dependency of the project by extra ('' for none), its own extras left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = {"": project["dependencies"], **project["optional-dependencies"]}
    return {
        extra: [r for text in found if (r := Requirement(text)).name != "sparsepo"]
        for extra, found in lists.items()
    }


def test_dependencies_are_pinned_and_installed_as_pinned() -> None:
    """The audit that needs no network: each dependency has one pin (torch a ceiling), and what
    is installed is what is pinned.
    """
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            pin = Requirement(line)
            pins[pin.name.lower().replace("_", "-")] = pin
    direct = {r.name.lower().replace("_", "-") for found in requirements().values() for r in found}
    assert direct - pins.keys() == set(), "without a pin"
    for name, pin in pins.items():
        assert pin.specifier.contains(distribution(name).version, prereleases=True), name
        assert name == "torch" or [s.operator for s in pin.specifier] == ["=="], name
