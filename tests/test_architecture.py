"""Imports point one way: pipelines -> evaluation -> sparsepo; only pipelines knows Ray; nothing
pickles.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent


def imports(package: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for file in (ROOT / package).rglob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
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
    assert imports("pipelines")["pipelines/prepare.py"] & {"ray"}, (
        "the walk must be able to see an import"
    )


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
