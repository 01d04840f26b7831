"""Imports point one way, between packages and between the rooms of pipelines; only pipelines knows
Ray; nothing pickles; the library speaks to library users.
"""

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from checkout import ROOT

# From the ground up: a room may import from those before it, and errors from everywhere.
ROOMS = (
    "storage", "recipe", "models", "cluster", "pairs", "reference", "train", "evaluate",
    "discriminator", "sweep", "export", "merge", "commands",
)  # fmt: skip


@cache
def import_nodes(file: Path) -> tuple[ast.Import | ast.ImportFrom, ...]:
    """What a file imports, lazily too; each file is parsed once for all tests."""
    return tuple(
        node
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    )


def imports(package: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for file in (ROOT / package).rglob("*.py"):
        names = set()
        for node in import_nodes(file):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif node.module:
                names.add(node.module.split(".")[0])
        found[str(file.relative_to(ROOT))] = names
    return found


def offenders(package: str, forbidden: set[str]) -> dict[str, set[str]]:
    return {
        file: names & forbidden for file, names in imports(package).items() if names & forbidden
    }


def test_arrows() -> None:
    assert not offenders(
        "sparsepo", {"pipelines", "evaluation", "ray", "pydantic", "datasets", "tests"}
    )
    assert not offenders("evaluation", {"pipelines", "ray", "tests"})
    assert not offenders("pipelines", {"tests"})
    assert imports("pipelines")["pipelines/pairs/prepare.py"] & {"ray"}, (
        "the walk must be able to see an import"
    )


_COUNTS = {"cluster_resources", "available_resources", "total_resources_per_node", "list_nodes"}


def counting(source: str) -> set[str]:
    """What a module asks Ray of a cluster's machines."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            is_ray = isinstance(node.value, ast.Name) and node.value.id == "ray"
            names |= {node.attr} & (_COUNTS | ({"nodes"} if is_ray else set()))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ray":
            names |= {alias.name for alias in node.names} & (_COUNTS | {"nodes"})
    return names


def test_one_module_counts_what_a_cluster_has() -> None:
    found = {
        str(file.relative_to(ROOT)): names
        for file in (ROOT / "pipelines").rglob("*.py")
        if (names := counting(file.read_text()))
    }
    assert found == {"pipelines/cluster/resources.py": {"nodes"}}
    assert counting("import ray\nray.cluster_resources()['CPU']") == {"cluster_resources"}
    assert counting("from ray import nodes") == {"nodes"}
    assert counting("from ray.util.state import list_nodes") == {"list_nodes"}
    assert not counting("store.nodes()"), "of another's"


def test_no_pickle() -> None:
    for package in ("sparsepo", "evaluation", "pipelines"):
        assert not offenders(
            package, {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
        )
        for file in (ROOT / package).rglob("*.py"):
            assert "torch.load" not in file.read_text(), file


def test_names_say_what_is_inside() -> None:
    vague = {"utils.py", "common.py", "helpers.py", "core.py", "misc.py"}
    assert not [
        f
        for p in ("sparsepo", "evaluation", "pipelines")
        for f in (ROOT / p).rglob("*.py")
        if f.name in vague
    ]


@cache
def surface(room: str) -> set[str]:
    """What a room offers to others: the names of its stub."""
    stub = ROOT / "pipelines" / room / "__init__.pyi"
    return {
        alias.name
        for node in import_nodes(stub)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def room_faults(root: Path, rooms: tuple[str, ...]) -> Iterator[str]:
    """What breaks the house's rules below a copy of pipelines: modules outside rooms, arrows that
    run back, imports past a surface; lazy imports count like others.
    """
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root)
        if path.parts[0] == "deploy" or str(path) in ("__init__.py", "__main__.py", "errors.py"):
            continue
        own = path.parts[0]
        if own not in rooms:
            yield f"{path} stands in no room"
            continue
        for node in import_nodes(file):
            if isinstance(node, ast.Import):
                modules = [(alias.name, "") for alias in node.names]
            else:
                if node.level:
                    yield f"{path}:{node.lineno} imports relatively"
                modules = [(node.module or "", alias.name) for alias in node.names]
            for module, name in modules:
                parts = module.split(".")
                if parts[0] != "pipelines" or parts[1:2] == ["errors"]:
                    continue
                if len(parts) == 1:
                    yield f"{path}:{node.lineno} imports a room as a module: {module} {name}"
                elif parts[1] not in rooms:
                    yield f"{path}:{node.lineno} imports {module}, which is no room"
                elif parts[1] == own:
                    if len(parts) == 2 and not (root / own / f"{name}.py").exists():
                        yield f"{path}:{node.lineno} goes out of its own door for {name}"
                elif rooms.index(parts[1]) > rooms.index(own):
                    yield f"{path}:{node.lineno} runs back from {own} to {parts[1]}"
                elif len(parts) > 2 or name not in surface(parts[1]):
                    yield f"{path}:{node.lineno} passes the surface of {parts[1]}: {module} {name}"


def test_rooms() -> None:
    folders = {
        path.parent.name for path in (ROOT / "pipelines").glob("*/__init__.py")
    }  # data folders have none
    assert folders == set(ROOMS)
    assert list(room_faults(ROOT / "pipelines", ROOMS)) == []


@pytest.mark.parametrize(
    ("file", "line", "fault"),
    [
        ("storage/store.py", "def f():\n    from pipelines.recipe import Recipe\n", "runs back"),
        ("train/stage.py", "from pipelines.pairs.table import PairTable\n", "passes the surface"),
        ("train/stage.py", "from pipelines.pairs import digest_of\n", "passes the surface"),
        ("train/stage.py", "import pipelines.pairs.table\n", "passes the surface"),
        ("train/stage.py", "from pipelines import pairs\n", "imports a room"),
        ("train/stage.py", "from .policy import build_policy\n", "imports relatively"),
        ("train/stage.py", "from pipelines.train import run_train\n", "out of its own door"),
        ("lonely.py", "", "stands in no room"),
        ("attic/old.py", "", "stands in no room"),
    ],
)
def test_the_walk_sees_every_kind_of_fault(
    tmp_path: Path, file: str, line: str, fault: str
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(line)
    (found,) = room_faults(tmp_path, ROOMS)
    assert fault in found


@pytest.mark.parametrize("room", ROOMS)
def test_surfaces_hold_what_others_use(room: str) -> None:
    """Every offered name is there, and some other room, the command line or a program takes it."""
    module = importlib.import_module(f"pipelines.{room}")
    taken = set()
    for file in (ROOT / "pipelines").rglob("*.py"):
        if file.parent.name != room:
            for node in import_nodes(file):
                if isinstance(node, ast.ImportFrom) and node.module == f"pipelines.{room}":
                    taken |= {alias.name for alias in node.names}
    assert set(module.__all__) == surface(room) == taken
    for name in surface(room):
        assert getattr(module, name) is not None


def test_modules_import_in_no_circle() -> None:
    """Inside a room too, lazy imports included."""
    arrows: dict[str, set[str]] = {}
    for file in (ROOT / "pipelines").rglob("*.py"):
        own = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        arrows[own] = set()
        for node in import_nodes(file):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipelines."):
                arrows[own] |= {str(node.module), *(f"{node.module}.{a.name}" for a in node.names)}
    arrows = {module: targets & arrows.keys() for module, targets in arrows.items()}
    while free := {module for module, targets in arrows.items() if not targets}:
        arrows = {m: targets - free for m, targets in arrows.items() if m not in free}
    assert not arrows


def test_the_library_speaks_to_library_users() -> None:
    """Recipe keys, stages and commands are the pipeline's words."""
    words = re.compile(
        r"\b(data|train|mask|objective|reference|evaluate|model|paths|ray)\.[a-z_0-9]+=|"
        r"\b(mask|objective|train)\.[a-z_]+\b|\bsparsepo (run|prepare|reference|train|evaluate)\b|"
        r"\b(prepare|reference|train|evaluate) stage\b|\brecipes?\b"
    )
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno}: {node.value}"
        for file in (ROOT / "sparsepo").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if words.search(node.value)
    ]
    assert found == []


def test_the_architecture_page_names_rooms_in_order_and_what_they_offer() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", page.split("## Rooms")[1], re.M)
    assert tuple(room for room, _ in rows) == ROOMS
    for room, names in rows:
        assert set(re.findall(r"`(\w+)`", names)) <= surface(room), room


def test_the_decisions_page_has_a_section_for_each_room() -> None:
    """In their order, then the two packages beneath; every decision has a reason and says what
    follows from it.
    """
    page = (ROOT / "docs" / "decisions.md").read_text()
    parts = re.split(r"^## (.+)$", page, flags=re.M)[1:]
    assert tuple(parts[::2]) == (*ROOMS, "sparsepo", "evaluation")
    for section in parts[1::2]:
        head, *rows = re.findall(r"^\| (.*) \|$", section, re.M)
        assert head == "decision | reason | consequence" and rows
        for row in rows:
            assert [bool(cell.strip()) for cell in row.split(" | ")] == [True] * 3, row


# What runs on other machines than the command: actors, tasks, ranks.
WORKERS = (
    "pairs/tasks.py", "pairs/writer.py", "reference/actor.py", "reference/features.py",
    "reference/store.py", "reference/other_models.py", "train/worker.py", "train/trainer.py",
    "train/policy.py", "train/micro_batches.py", "train/checkpoint.py", "train/restore.py",
    "train/checkpoint_contents.py", "train/host_copies.py", "train/compilation.py",
    "evaluate/actor.py", "evaluate/text_scorer.py", "evaluate/token_weights.py",
    "evaluate/facts.py", "merge/actor.py",
    "evaluate/evaluated_models.py", "evaluate/pair_scoring.py", "evaluate/response_drawing.py",
    "merge/fit.py", "discriminator/training.py", "discriminator/checkpoint.py",
)  # fmt: skip


@pytest.mark.parametrize("file", WORKERS)
def test_workers_take_facts_and_build_no_record(file: str) -> None:
    """They import neither a run nor a stage, so they cannot ask for a record."""
    taken = {
        alias.name
        for node in import_nodes(ROOT / "pipelines" / file)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert not taken & {
        "Run", "Stage", "StageRecord", "PREPARE", "REFERENCE", "TRAIN", "EVALUATE", "SAMPLE",
        "run_facts", "training_facts", "open_pairs",
    }  # fmt: skip


def calls(file: str) -> set[str]:
    """Dotted names of everything that a module calls."""
    return {
        ast.unparse(node.func)
        for node in ast.walk(ast.parse((ROOT / "pipelines" / file).read_text()))
        if isinstance(node, ast.Call)
    }


def test_ray_is_the_engine() -> None:
    """Stages prepare, score and evaluate with Ray Data, train with Ray Train, search with Tune."""
    assert "ray.data.from_items" in calls("pairs/prepare.py")
    assert "ray.remote" in calls("pairs/tasks.py")
    assert {"ray.data.from_items", "ray.data.ActorPoolStrategy"} <= calls("cluster/actor_pool.py")
    for file in (
        "reference/scoring", "evaluate/benchmarks", "evaluate/sample", "evaluate/execute",
        "merge/stage",
    ):  # fmt: skip
        assert "run_tasks" in calls(f"{file}.py"), file
    assert {"trainer_class", "ScalingConfig"} <= calls("train/fit.py")
    assert (
        "class LeanTrainer(TorchTrainer)" in (ROOT / "pipelines/train/lean_trainer.py").read_text()
    )
    assert {"tune.Tuner", "tune.Tuner.restore"} <= calls("sweep/stage.py")


# Files that others name: Hugging Face's and peft's; apart: a package's, data sets', the
# quickstart's own world.
OTHERS = {
    "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
    "modules.json", "adapter_config.json", "adapter_model.safetensors", "recipe.json",
}  # fmt: skip
APART = {"recipe/run_paths.py", "commands/quickstart.py", "commands/quickstart_world.py",
         "commands/submit.py", "pairs/snapshots.py"}  # fmt: skip


def test_the_names_of_a_runs_files_stand_in_one_place() -> None:
    """recipe/run_paths.py alone spells them, but for parts that are made of a number or a name."""
    spelled = re.compile(r"\w[\w/-]*\.(jsonl?|yaml|csv|html|safetensors|parquet)")
    for room in ROOMS[3:] + ("recipe",):
        for file in sorted((ROOT / "pipelines" / room).glob("*.py")):
            if f"{room}/{file.name}" in APART:
                continue
            tree = ast.parse(file.read_text())
            docs = {
                id(node.body[0].value)
                for node in ast.walk(tree)
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                and node.body
                and isinstance(node.body[0], ast.Expr)
            }
            found = {
                node.value
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and id(node) not in docs
                and spelled.fullmatch(node.value)
            }
            assert found <= OTHERS, file


def test_commands_know_no_stage_by_name() -> None:
    """run, status, submit and the command line loop over the list of stages."""
    from pipelines.commands.stages import STAGES

    names = {stage.name for stage in STAGES} - {"report"}  # it is a command of its own, too
    for file in ("run", "status", "submit", "cli"):
        tree = ast.parse((ROOT / "pipelines" / "commands" / f"{file}.py").read_text())
        spelled = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert not names & spelled, file
