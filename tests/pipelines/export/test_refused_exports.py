"""What an export refuses, in one line and before any work; what a death in its midst leaves; runs
and places on an object store.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from damage.damages import FOLDER, JSON
from huggingface_hub import constants
from object_store import ObjectStore
from processes import kill, started, wait_for
from runs import MakeRecipe
from small_disk import needs_root, small_disk
from transformers import AutoModelForCausalLM

from pipelines.commands.cli import main
from pipelines.errors import UserError
from pipelines.export.export import Wanted, run_export
from pipelines.recipe.files import write_yaml
from pipelines.recipe.schema import Recipe
from pipelines.storage.presence import present
from pipelines.storage.store import RunStore

Export = Callable[..., Path]


def silent(line: str) -> None:
    pass


def sweep(folder: Path, run: Path) -> list[str]:
    begun = {"schema_version": 2, "stage": "tune", "settings": {}, "inputs": {}}
    (folder / "sweep").mkdir()
    (folder / "sweep" / "started.json").write_text(json.dumps(begun))
    return [str(folder / "sweep")]


def unfinished(folder: Path, run: Path) -> list[str]:
    shutil.copytree(run, folder / "copy")
    (folder / "copy/train/manifest.json").unlink()
    return [str(folder / "copy")]


def changed(name: str) -> Callable[[Path, Path], list[str]]:
    def make(folder: Path, run: Path) -> list[str]:
        shutil.copytree(run, folder / "copy")
        file = folder / "copy" / name
        file.write_bytes(file.read_bytes()[:-1] + b"x")
        return [str(folder / "copy")]

    return make


def without_pairs(folder: Path, run: Path) -> list[str]:
    shutil.copytree(run, folder / "copy", ignore=shutil.ignore_patterns("pairs"))
    return [str(folder / "copy")]


def holding(name: str, content: str = "mine") -> Callable[[Path, Path], list[str]]:
    def make(folder: Path, run: Path) -> list[str]:
        (folder / "there").mkdir()
        (folder / "there" / name).write_text(content)
        return [str(run), "--to", str(folder / "there")]

    return make


def a_file(folder: Path, run: Path) -> list[str]:
    (folder / "file").write_text("")
    return [str(run), "--to", str(folder / "file")]


_OTHER = json.dumps({"training": "another", "files": {}, "checked": []})
REFUSED: dict[str, tuple[Callable[[Path, Path], list[str]], str]] = {
    "nowhere": (lambda f, r: [str(f / "nowhere")], "nowhere: no run here (no such directory"),
    "no run": (lambda f, r: [str(f)], "no run here (no config.yaml)"),
    "a recipe": (lambda f, r: [f"{r}/config.yaml"], "the run itself is meant: sparsepo export "),
    "a sweep": (sweep, "sweep is a sweep, which has a model per trial"),
    "not trained": (unfinished, "copy has no finished training (train "),
    "damaged weights": (changed("train/model/model.safetensors"), "is missing or damaged"),
    "damaged masks": (changed("train/masks/masks.safetensors"), "is missing or damaged"),
    "no pairs": (without_pairs, "its pairs are not at "),
    "not empty": (holding("a"), "there is not empty (a): name a directory that is empty or not"),
    "hidden files": (holding(".tmp-mine"), "there is not empty (.tmp-mine)"),
    "another's export": (holding("export.json", _OTHER), "is the export of another training"),
    "no record": (holding("export.json", "{"), "there/export.json is damaged"),
    "a file": (a_file, "file is a file: name a directory"),
    "below a file": (
        lambda f, r: [*a_file(f, r)[:1], "--to", f"{f}/file/x"], "file/x: Not a directory"
    ),
    "no name": (lambda f, r: [str(r), "--to", " "], "--to ' ': no directory can be called so"),
    "a long name": (lambda f, r: [str(r), "--to", f"{f}/{'x' * 300}"], "a name in it has 300 byte"),
    "no repository": (lambda f, r: [str(r), "--push", "a b"], "--push 'a b': no name of a reposi"),
    "three parts": (lambda f, r: [str(r), "--push", "a/b/c"], "--push 'a/b/c': no name of a repo"),
    "offline": (lambda f, r: [str(r), "--push", "me/it"], "--push: HF_HUB_OFFLINE is set, so noth"),
    "a full place": (
        lambda f, r: [str(r), "--push", holding("a")(f, r)[-1]], "there is not empty (a)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_any_work(
    case: str, learned_run: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, part = REFUSED[case]
    run = Path(learned_run.run_dir)
    given = make(tmp_path, run)
    before = {p: p.lstat().st_mtime_ns for root in (tmp_path, run) for p in root.rglob("*")}
    with pytest.raises(SystemExit) as ended:
        main(["export", *given])
    out, error = capsys.readouterr()
    assert (ended.value.code, out) == (2, ""), error
    line, *more = error.splitlines()
    assert line.startswith("error: ") and part in line and not more, error
    after = {p: p.lstat().st_mtime_ns for root in (tmp_path, run) for p in root.rglob("*")}
    assert after == before


def test_a_token_is_asked_for_online(
    learned_run: Recipe, exported: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None in the environment: one that was stored by a login is not taken."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError, match="--push: set HF_TOKEN to a token that may write"):
        exported(learned_run, push="me/it")


def test_a_run_that_evaluates_another_model_has_none(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("evaluate.model=owner/other", "evaluate.benchmarks=[preference]")
    Path(recipe.run_dir).mkdir()
    (Path(recipe.run_dir) / "config.yaml").write_text(write_yaml(recipe))
    with pytest.raises(UserError, match="evaluates owner/other and has trained nothing"):
        run_export(recipe.run_dir, Wanted(), silent)


def test_pairs_of_another_preparation_are_refused(activation_run: Recipe, tmp_path: Path) -> None:
    """The reference's record says which pairs were scored and trained on; without one training's
    own does.
    """
    shutil.copytree(activation_run.run_dir, tmp_path / "copy")
    file = tmp_path / "copy/pairs/manifest.json"
    manifest = json.loads(file.read_text())
    manifest.pop("seal")
    manifest["inputs"]["sources"] = ["0" * 64]
    file.write_text(json.dumps(manifest))
    line = "copy/pairs holds other pairs than .*copy was trained on: sources differs"
    with pytest.raises(UserError, match=line):
        run_export(str(tmp_path / "copy"), Wanted(), silent)
    train = tmp_path / "copy/train/manifest.json"
    told = json.loads(train.read_text())
    told.pop("seal")
    told["inputs"] = {"weights": "any", "pairs": "another"}
    train.write_text(json.dumps(told))
    with pytest.raises(UserError, match="was trained on: fingerprint differs"):
        run_export(str(tmp_path / "copy"), Wanted(), silent)
    assert not (tmp_path / "copy/export").exists()


def test_a_finished_export_is_not_written_again(learned_run: Recipe, exported: Export) -> None:
    """Cards are a user's to change; a changed weight is refused."""
    folder = exported(learned_run)
    (folder / "README.md").write_text("mine")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    said: list[str] = []
    assert exported(learned_run, said) == folder
    assert said == [f"export: {folder} is this run's export already, not written again"]
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=f"{weights} is missing or not what was exported"):
        exported(learned_run)


def test_an_empty_folder_and_a_link_to_one_are_filled(
    learned_run: Recipe, exported: Export, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert exported(learned_run, name="link") == tmp_path / "real"
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "config.json").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "real"]


def test_to_another_directory_too(learned_run: Recipe, exported: Export, tmp_path: Path) -> None:
    """The same files; a second time they are there already."""
    folder = exported(learned_run, push=f"{tmp_path}/shared/model")
    copy = tmp_path / "shared" / "model"
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert names == {str(p.relative_to(copy)) for p in copy.rglob("*") if p.is_file()}
    assert all((folder / name).read_bytes() == (copy / name).read_bytes() for name in names)
    said: list[str] = []
    exported(learned_run, said, push=str(copy))
    assert said[1:] == [f"export: {copy} has all of it already"]


@pytest.mark.parametrize("damage", [*JSON, FOLDER])
def test_a_damaged_record_is_one_line(damage: str, exported: Export, learned_run: Recipe) -> None:
    """It names the file and what to do; all else stays as it was."""
    folder = exported(learned_run)
    record = folder / "export.json"
    content = record.read_bytes()
    record.unlink()
    if damage == FOLDER:
        record.mkdir()
    else:
        record.write_bytes(JSON[damage](content))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(UserError) as error:
        exported(learned_run)
    (line,) = str(error.value).splitlines()
    assert str(record) in line and "remove the directory and export again" in line
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_two_commands_do_not_export_to_one_place(
    learned_run: Recipe, exported: Export, tmp_path: Path
) -> None:
    """What a dead one left is taken away; a living one is told of."""
    dead, living = (tmp_path / f".tmp-export-export-{name}" for name in ("dead", "living"))
    dead.mkdir()
    (dead / "half").write_text("")
    with (
        present(RunStore(str(living)), stage="export"),
        pytest.raises(UserError, match="export: another command exports there \\(on "),
    ):
        exported(learned_run)
    assert not list(tmp_path.glob("export*"))
    exported(learned_run)
    assert [p.name for p in tmp_path.iterdir()] == ["export"]


@needs_root
def test_a_disk_without_room_is_named_before_and_while_it_fills(
    learned_run: Recipe, tmp_path: Path
) -> None:
    size = sum(p.stat().st_size for p in (Path(learned_run.run_dir) / "train/model").iterdir())
    for free, line in (
        (
            size // 2,
            r"model: the export takes about .* GiB and the disk has .* GiB free: free",
        ),
        (size + 4096, r"^cannot write .*model: No space left on device"),
    ):
        with small_disk(tmp_path / "disk", free) as disk:
            with pytest.raises(UserError, match=line):
                run_export(learned_run.run_dir, Wanted(to=f"{disk}/model"), silent)
            assert not list(disk.iterdir())


@pytest.mark.slow
def test_a_killed_export_leaves_nothing_half(
    learned_run: Recipe, exported: Export, tmp_path: Path
) -> None:
    """Killed once its weights are written beside: nothing is there; the same again is whole."""
    log = tmp_path.parent / f"{tmp_path.name}.log"
    to = ["--to", str(tmp_path / "export")]

    def written() -> int:
        return len(list(tmp_path.glob(".tmp-export-export-*/files/model.safetensors")))

    with started(["export", learned_run.run_dir, *to], log) as process:
        wait_for(written, 1, process, log)
        kill(process)
    assert not (tmp_path / "export").exists() and written() == 1
    folder = exported(learned_run)
    assert [p.name for p in tmp_path.iterdir()] == ["export"]
    AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture
def object_store() -> Iterator[ObjectStore]:
    server = ObjectStore()
    yield server
    server.stop()


@pytest.mark.slow
def test_runs_and_places_on_an_object_store(
    learned_run: Recipe, exported: Export, object_store: ObjectStore, tmp_path: Path
) -> None:
    """From there to here and from there to there; what was interrupted there is written anew."""
    remote = RunStore("s3://bucket/run")
    here = RunStore(learned_run.run_dir)
    for name, _, _ in here.files():
        if not name.startswith((".ray", "train/checkpoints", "timeline")):
            remote.write_bytes(name, here.read_bytes(name))
    folder = Path(run_export("s3://bucket/run", Wanted(to=str(tmp_path / "copy")), silent))
    own = exported(learned_run)
    for name in ("model.safetensors", "masks/masks.safetensors", "dataset/README.md"):
        assert (folder / name).read_bytes() == (own / name).read_bytes()
    there = remote.at("export")
    there.write_bytes("export-begun", b"{}")
    there.write_bytes("model.safetensors", b"half")
    assert run_export("s3://bucket/run", Wanted(), silent) == "s3://bucket/run/export"
    assert there.read_bytes("model.safetensors") == (own / "model.safetensors").read_bytes()
    assert not there.exists("export-begun")
    said: list[str] = []
    run_export("s3://bucket/run", Wanted(), said.append)
    assert said == [
        "export: s3://bucket/run/export is this run's export already, not written again"
    ]
    remote.write_bytes("full/a", b"mine")
    with pytest.raises(UserError, match="full is not empty"):
        run_export("s3://bucket/run", Wanted(to="s3://bucket/run/full"), silent)
