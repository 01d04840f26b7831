"""What computes nothing imports nothing heavy, shown in one fresh interpreter."""

import json
import sys

import pytest
from checkout import ROOT
from processes import ended

HEAVY = ("torch", "transformers", "ray", "pandas", "peft", "datasets", "scipy", "sklearn")
# What is done -> statements. They run one after the other in one interpreter, so a case is charged
# with what the ones before it have not imported.
CASES = {
    "read a recipe": (
        "from pipelines.recipe import load_recipe\n"
        "for name in ('hh-dpo', 'hh-mapo', 'hh-sparsepo-common', 'hh-tis-dpo'):\n"
        "    load_recipe(name).stored_features()\n"
        "assert 'pyarrow' not in sys.modules, 'no table is read'"
    ),
    "reach the whole recipe room": (
        "import pipelines.recipe\n"
        "for name in pipelines.recipe.__all__:\n"
        "    getattr(pipelines.recipe, name)\n"
        "assert 'pyarrow' not in sys.modules, 'no table is read'"
    ),
    "store a file": (
        "import pipelines.storage, tempfile\n"
        "for name in pipelines.storage.__all__:\n"
        "    getattr(pipelines.storage, name)\n"
        "from pipelines.storage import RunStore\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    RunStore(folder).write_json('a.json', 1)\n"
        "    assert RunStore(folder).read_json('a.json') == 1\n"
        "assert 'pyarrow.parquet' not in sys.modules, 'no table is read'"
    ),
    "ask the library what it has": (
        "import sparsepo\n"
        "from sparsepo.masks import MASKS\n"
        "assert sparsepo.OBJECTIVES['mapo'].default_mask in MASKS\n"
        "assert sparsepo.FEATURES['activation_mask'].origin == 'reference'"
    ),
    "watch a run": (
        "import tempfile\n"
        "from pipelines.commands.watch import Pages\n"
        "from pipelines.storage import RunStore\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    RunStore(folder).write_bytes('config.yaml', b'paths: {}\\ntrain: {}\\n')\n"
        '    line = b\'{"step": 1, "loss": 1.0}\\n\'\n'
        "    RunStore(folder).write_bytes('train/metrics/part-1-1-train.jsonl', line)\n"
        "    told = Pages(folder).answer('data', {}).content\n"
        "    assert b'\"loss\": [1.0]' in told, told\n"
        "assert 'matplotlib' not in sys.modules, 'the browser draws'"
    ),
    "import the report": "from pipelines.commands.report import run_report",
}
PROGRAM = """
import json, sys
heavy, cases = json.loads(sys.argv[1])
known, found = set(), {}
for name, code in cases.items():
    exec(code, {"sys": sys})
    found[name] = sorted(set(heavy) & sys.modules.keys() - known)
    known |= set(found[name])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, list[str]]:
    """Case -> heavy modules that it was the first to import."""
    done = ended([sys.executable, "-c", PROGRAM, json.dumps([HEAVY, CASES])], folder=ROOT)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("case", CASES)
def test_nothing_heavy_is_imported_to(case: str, imported: dict[str, list[str]]) -> None:
    assert imported[case] == []
