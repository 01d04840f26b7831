"""Locks name every package of every extra for both Pythons; the audit finds what advisories say."""

import importlib.util
import json
import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from checkout import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = {"3.11": ROOT / "locks" / "python3.11.txt", "3.12": ROOT / "locks" / "python3.12.txt"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


audit = script("audit")


def locked(python: str) -> dict[str, str]:
    found: dict[str, str] = audit.locked(LOCKS[python].read_text())
    return found


def direct() -> list[Requirement]:
    lists = [PROJECT["dependencies"], *EXTRAS.values()]
    return [r for found in lists for text in found if (r := Requirement(text)).name != "sparsepo"]


@pytest.mark.parametrize("python", LOCKS)
def test_a_lock_is_whole_and_has_hashes(python: str) -> None:
    """Each line is a name, a version and a sha256; names stand once, in order."""
    lines = [n for n in LOCKS[python].read_text().splitlines() if not n.startswith("#")]
    whole = re.compile(r"[a-z0-9-]+==\S+ --hash=sha256:[0-9a-f]{64}")
    assert [line for line in lines if not whole.fullmatch(line)] == []
    names = [line.partition("==")[0] for line in lines]
    assert names == sorted(set(names), key=lambda name: f"{name}==") and len(names) > 200


@pytest.mark.parametrize("python", LOCKS)
def test_locks_agree_with_pins_and_dependencies(python: str) -> None:
    """Every pin of constraints.txt that is needed is the locked version; every dependency of every
    extra is locked, in a version that it allows. No extra is left out.
    """
    versions = locked(python)
    for requirement in direct():
        name = canonicalize_name(requirement.name)
        assert requirement.specifier.contains(versions[name], prereleases=True), name
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            pin = Requirement(line)
            found = versions.get(canonicalize_name(pin.name))
            assert found and pin.specifier.contains(found, prereleases=True), line
    assert set(script("lock").EXTRAS.split(",")) == EXTRAS.keys()


@pytest.mark.parametrize("python", LOCKS)
def test_a_lock_holds_what_the_packages_need(python: str) -> None:
    """Found another way: the needs that the installed packages state themselves, from one to the
    next, for that Python. Extras of dependencies count where they are asked for.
    """
    versions = locked(python)
    environment = {
        "python_version": python, "python_full_version": f"{python}.0", "os_name": "posix",
        "sys_platform": "linux", "platform_machine": "x86_64", "platform_system": "Linux",
        "implementation_name": "cpython", "platform_python_implementation": "CPython",
    }  # fmt: skip
    todo, seen = direct(), set()
    while todo:
        requirement = todo.pop()
        name, extras = canonicalize_name(requirement.name), requirement.extras or {""}
        assert name in versions, name
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue  # another build of torch needs other packages
        if (name, *sorted(extras)) in seen or installed.version != versions[name]:
            continue  # another version may need others
        seen.add((name, *sorted(extras)))
        needs = [Requirement(text) for text in installed.requires or ()]
        todo += [
            need
            for need in needs
            if need.marker is None
            or any(need.marker.evaluate({**environment, "extra": extra}) for extra in extras)
        ]
    assert len(seen) > 100


def test_both_pythons_have_the_same_packages() -> None:
    """In versions of their own, where the newest ones have left the older Python behind."""
    assert locked("3.11").keys() == locked("3.12").keys()


def advisory(**changed: object) -> dict[str, object]:
    spans = [
        {"introduced": "0"},
        {"fixed": "1.2"},
        {"introduced": "2.0rc1"},
        {"last_affected": "2.3"},
    ]
    package = {"ecosystem": "PyPI", "name": "Some_Package"}
    return {
        "id": "PYSEC-1",
        "summary": "bad\nvery",
        "affected": [{"package": package, "ranges": [{"type": "ECOSYSTEM", "events": spans}]}],
        **changed,
    }


@pytest.mark.parametrize(
    ("version", "is_found"),
    [
        ("0.1", True), ("1.1.9", True), ("1.2", False), ("1.9", False), ("2.0rc1", True),
        ("2.0", True), ("2.3", True), ("2.3.post1", False), ("2.10", False),
    ],
)  # fmt: skip
def test_the_audit_reads_ranges_as_versions_go(
    tmp_path: Path, version: str, is_found: bool
) -> None:
    """From introduced on, up to fixed without it, up to last_affected with it; 2.10 follows 2.3."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.json").write_text(json.dumps(advisory()))
    line = f"some-package {version}: PYSEC-1 bad"
    assert audit.findings(tmp_path, {"some-package": version}) == (1, [line] if is_found else [])


def test_the_audit_counts_what_is_meant_and_nothing_else(tmp_path: Path) -> None:
    """Listed versions and both formats count; withdrawn ones, other ecosystems, commits and files
    that are no advisories do not.
    """
    package = {"ecosystem": "PyPI", "name": "some.package"}
    listed = [{"package": package, "versions": ["5", "6"]}]
    commits = [{"type": "GIT", "events": [{"introduced": "0"}]}]
    for name, value in {
        "yaml.yaml": advisory(id="A", affected=listed),
        "withdrawn.json": advisory(id="B", affected=listed, withdrawn="2026-01-01T00:00:00Z"),
        "npm.json": advisory(
            id="C", affected=[{**listed[0], "package": {**package, "ecosystem": "npm"}}]
        ),
        "git.json": advisory(id="D", affected=[{"package": package, "ranges": commits}]),
        "other.json": {"name": "no advisory"},
    }.items():
        text = yaml.safe_dump(value) if name.endswith("yaml") else json.dumps(value)
        (tmp_path / name).write_text(text)
    (tmp_path / "notes.txt").write_text("{")
    assert audit.findings(tmp_path, {"some-package": "6"}) == (3, ["some-package 6: A bad"])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(SystemExit, match="broken.json: cannot be read"):
        audit.findings(tmp_path, {})


def test_the_audit_of_the_locks_ends_as_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """2 without an advisory (nothing was audited), 0 with one about others, 1 with one of ours."""
    assert audit.main(tmp_path) == 2
    (tmp_path / "a.json").write_text(json.dumps(advisory()))
    assert audit.main(tmp_path) == 0
    ray = {"ecosystem": "PyPI", "name": "Ray"}
    found = [{"package": ray, "versions": [locked("3.11")["ray"]]}]
    (tmp_path / "b.json").write_text(json.dumps(advisory(id="R", affected=found)))
    capsys.readouterr()
    assert audit.main(tmp_path) == 1
    said = capsys.readouterr().out
    assert said.count(f"  ray {locked('3.11')['ray']}: R bad") == 2, "in both locks"
    assert re.search(r"python3\.12\.txt: \d+ packages, 2 advisories, 1 apply", said)
