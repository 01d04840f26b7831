"""Look the packages of locks/ up in advisories that lie on this machine; no network is asked.

`make audit ADVISORIES=DIR` runs it. DIR holds files of the OSV format, JSON or YAML, at any depth:
a clone of github.com/pypa/advisory-database, say, or osv.dev's archive of PyPI, unpacked. They are
as new as that copy.

Exit code: 1 if an advisory is about a locked version, 2 if DIR holds none at all.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from packaging.version import InvalidVersion, Version

LOCKS = Path(__file__).parents[1] / "locks"


def locked(text: str) -> dict[str, str]:
    """Version by name."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+) --hash=", text, re.M))


def advisories(folder: Path) -> Iterator[dict[str, Any]]:
    """Those that are not withdrawn."""
    for file in sorted(folder.rglob("*")):
        if file.suffix not in (".json", ".yaml", ".yml") or not file.is_file():
            continue
        text = file.read_text(errors="replace")
        try:
            found = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
        except (ValueError, yaml.YAMLError) as error:
            raise SystemExit(f"{file}: cannot be read: {str(error).splitlines()[0]}") from error
        is_advisory = isinstance(found, dict) and "id" in found and "affected" in found
        if is_advisory and not found.get("withdrawn"):
            yield found


def is_affected(version: str, affected: dict[str, Any]) -> bool:
    """By the listed versions, or by a range from `introduced` to `fixed` or `last_affected`."""
    if version in affected.get("versions", ()):
        return True
    mine = Version(version)
    for span in affected.get("ranges", ()):
        if span["type"] != "ECOSYSTEM":  # others count commits
            continue
        inside = False
        for event in sorted(span["events"], key=_place):
            ((kind, at),) = event.items()
            if kind == "introduced":
                inside = inside or at == "0" or mine >= Version(at)
            elif kind == "fixed":
                inside = inside and mine < Version(at)
            elif kind == "last_affected":
                inside = inside and mine <= Version(at)
        if inside:
            return True
    return False


def _place(event: dict[str, str]) -> tuple[Version, bool]:
    ((kind, at),) = event.items()
    try:
        return Version(at), kind != "introduced"
    except InvalidVersion:
        return Version("0"), False


def findings(folder: Path, packages: dict[str, str]) -> tuple[int, list[str]]:
    """(how many advisories there are, a line for each that is about one of the packages)."""
    count, found = 0, []
    for advisory in advisories(folder):
        count += 1
        for affected in advisory["affected"]:
            package = affected.get("package", {})
            name = re.sub(r"[-_.]+", "-", package.get("name", "")).lower()
            version = packages.get(name)
            if package.get("ecosystem") == "PyPI" and version and is_affected(version, affected):
                words = (advisory.get("summary") or advisory.get("details") or "").splitlines()
                found.append(f"{name} {version}: {advisory['id']} {words[0] if words else ''}")
    return count, sorted(set(found))


def main(folder: Path) -> int:
    total = 0
    for lock in sorted(LOCKS.glob("python*.txt")):
        packages = locked(lock.read_text())
        count, found = findings(folder, packages)
        if not count:
            print(f"{folder}: holds no advisory of the OSV format", file=sys.stderr)
            return 2
        total += len(found)
        print(f"{lock.name}: {len(packages)} packages, {count} advisories, {len(found)} apply")
        print("".join(f"  {line}\n" for line in found), end="")
    return 1 if total else 0


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        raise SystemExit("make audit ADVISORIES=DIR: a directory with advisories (.ci/audit.py)")
    sys.exit(main(Path(sys.argv[1])))
