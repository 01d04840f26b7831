"""Check the manifests of this directory against KubeRay's own schemas: python validate.py
DIRECTORY_OF_CRDS

The directory holds KubeRay's CustomResourceDefinitions (*.yaml, or *.json.gz as tests/kuberay has
them without descriptions). Stricter than the API server, which drops what it does not know: an
unknown field is an error here. Prints one line per manifest; exit code 1 if one does not fit.
"""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft7Validator


def main(crds: Path, manifests: Path) -> int:
    schemas = {
        kind: schema
        for file in sorted([*crds.glob("*.yaml"), *crds.glob("*.json.gz")])
        for kind, schema in _schemas(file)
    }
    if not schemas:
        print(f"{crds}: no CustomResourceDefinition there", file=sys.stderr)
        return 2
    bad = 0
    for file in sorted(manifests.glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            kind = (document.get("apiVersion"), document.get("kind"))
            if kind not in schemas:
                continue
            problems = sorted(
                Draft7Validator(schemas[kind]).iter_errors(document),
                key=lambda p: [str(part) for part in p.absolute_path],
            )
            for problem in problems:
                print(
                    f"{file.name}: {'.'.join(map(str, problem.absolute_path)) or kind[1]}: "
                    f"{problem.message}"
                )
            bad += bool(problems)
            if not problems:
                print(f"{file.name}: {kind[1]} fits")
    return int(bad > 0)


def _schemas(file: Path) -> list[tuple[tuple[str, str], dict[str, Any]]]:
    found = []
    text = gzip.decompress(file.read_bytes()).decode() if file.suffix == ".gz" else file.read_text()
    for crd in yaml.safe_load_all(text) if file.suffix != ".gz" else [json.loads(text)]:
        for version in crd["spec"]["versions"]:
            name = f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]
            found.append((name, _strict(version["schema"]["openAPIV3Schema"])))
    return found


def _strict(schema: Any, at_top: bool = True) -> Any:
    """JSON Schema of an OpenAPI schema, with unknown fields refused."""
    if isinstance(schema, list):
        return [_strict(item, False) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {
        key: _strict(value, False)
        for key, value in schema.items()
        if key not in ("default", "description", "properties")
    }
    if "properties" in schema:
        # Names of properties are no keywords: keep them all.
        found["properties"] = {
            name: _strict(value, False) for name, value in schema["properties"].items()
        }
        if at_top:
            found["properties"]["metadata"] = {"type": "object"}
        if (
            not schema.get("x-kubernetes-preserve-unknown-fields")
            and "additionalProperties" not in schema
        ):
            found["additionalProperties"] = False
    return found


if __name__ == "__main__":
    sys.exit(
        main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent)
    )
