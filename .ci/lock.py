"""Write locks/pythonX.Y.txt: every package of every extra, its version and its file's hash.

`make lock PYTHON=python3.12` runs it for that Python. It asks pip what it would install on this
kind of machine (Linux on x86_64) within constraints.txt, and installs nothing.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EXTRAS = "dev,trackers,leaderboard,aws,trl"
HEAD = """\
# Made by `make lock`, for Linux on x86_64. pip install --require-hashes -r FILE installs these; the
# package itself comes with --no-deps.
"""


def lines_of(report: dict[str, Any]) -> list[str]:
    """Of pip's report, by name; the project itself, which has no hash, is left out."""
    found = []
    for item in report["install"]:
        hashes = item["download_info"].get("archive_info", {}).get("hashes")
        name = item["metadata"]["name"].lower().replace("_", "-").replace(".", "-")
        if name == "sparsepo":
            continue
        if not hashes:
            raise SystemExit(f"{name}: pip reports no hash")
        found.append(f"{name}=={item['metadata']['version']} --hash=sha256:{hashes['sha256']}")
    return sorted(found)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--report", str(report), "-c", "constraints.txt"]
        subprocess.run([*command, f".[{EXTRAS}]"], cwd=ROOT, check=True)
        found = lines_of(json.loads(report.read_text()))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    target = ROOT / "locks" / f"python{version}.txt"
    target.parent.mkdir(exist_ok=True)
    target.write_text(HEAD + "".join(f"{line}\n" for line in found))
    print(f"{target.relative_to(ROOT)}: {len(found)} packages")


if __name__ == "__main__":
    main()
