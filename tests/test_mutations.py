"""The list of faults in tests/mutations: each stands in its file and names a test that is there.
That the tests go red is seen by check.py, which takes long.
"""

import ast
from collections import Counter

import pytest
from mutations.check import ROOT, Fault, read_faults
from test_architecture import ROOMS

FAULTS = read_faults()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.file}: {fault.find}")
def test_a_fault_can_be_made_and_names_its_test(fault: Fault) -> None:
    source = (ROOT / fault.file).read_text()
    faulty = fault.applied(source)
    assert ast.dump(ast.parse(faulty)) != ast.dump(ast.parse(source))
    file, _, name = fault.test.partition("::")
    functions = {
        node.name
        for node in ast.parse((ROOT / file).read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    assert name.partition("[")[0] in functions


def test_every_room_has_faults() -> None:
    """Three in each at least, fourteen in the library, eight in evaluation; no two are the same."""
    assert len(set(FAULTS)) == len(FAULTS) >= 60
    found = Counter(
        "/".join(fault.file.split("/")[: 2 if fault.file.startswith("pipelines/") else 1])
        for fault in FAULTS
    )
    assert found.keys() == {"sparsepo", "evaluation", *(f"pipelines/{room}" for room in ROOMS)}
    assert found["sparsepo"] >= 14 and found["evaluation"] >= 8
    assert min(found.values()) >= 3


def test_a_text_that_stands_there_twice_or_not_at_all_is_no_fault() -> None:
    fault = Fault("a.py", "x", "y", "")
    assert fault.applied("x = 1") == "y = 1"
    for source in ("", "x = x"):
        with pytest.raises(ValueError, match=r"a\.py holds [02] times: x"):
            fault.applied(source)
