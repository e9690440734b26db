"""Makes tests/data/kubernetes.json of the definitions that JobSet and KubeRay publish: `python3 .ci/crds.py FILE.yaml ...`.

In:  their CustomResourceDefinitions: config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml of kubernetes-sigs/jobset and
     ray-operator/config/crd/bases/ray.io_rayjobs.yaml of ray-project/kuberay (both Apache-2.0).
Out: one JSON Schema per kind and version. Prose is left out, unknown keys are refused as by `kubectl apply --validate=strict`, and what
     occurs several times (the pod's template) is there once.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

OUT = Path(__file__).resolve().parents[1] / "tests/data/kubernetes.json"
ONCE = 300
"""Characters from which a part that occurs again is kept once."""


def strict(schema: Any) -> Any:
    """Return a schema without prose, in which objects have no other keys than those named."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if key not in ("description", "default") and not key.startswith("x-")}
    if isinstance(schema.get("properties"), dict):
        kept["properties"] = {name: strict(each) for name, each in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            kept["additionalProperties"] = False
    return {key: value if key in ("properties", "enum", "required") else strict(value) for key, value in kept.items()}


def shared(schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the schemas with parts that occur several times moved to $defs."""
    counts: Counter[str] = Counter()

    def count(node: Any) -> None:
        if isinstance(node, dict):
            text = json.dumps(node, sort_keys=True)
            if len(text) > ONCE:
                counts[text] += 1
                if counts[text] > 1:
                    return
        for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            count(each)

    count(schemas)
    definitions: dict[str, Any] = {}

    def replace(node: Any, *, top: bool = False) -> Any:
        if isinstance(node, list):
            return [replace(each) for each in node]
        if not isinstance(node, dict):
            return node
        text = json.dumps(node, sort_keys=True)
        if not top and counts[text] > 1:
            name = hashlib.sha256(text.encode()).hexdigest()[:8]
            if name not in definitions:
                definitions[name] = {}
                definitions[name] = {key: replace(each) for key, each in node.items()}
            return {"$ref": f"#/$defs/{name}"}
        return {key: replace(each) for key, each in node.items()}

    made = replace(schemas, top=True)
    return {"$defs": dict(sorted({**made, **definitions}.items()))}


def main(files: list[str]) -> None:
    """Write OUT from the files."""
    schemas = {}
    for file in files:
        spec = yaml.safe_load(Path(file).read_text())["spec"]
        for version in spec["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            schemas[f"{spec['group']}.{version['name']}.{spec['names']['kind']}"] = schema
    OUT.write_text(json.dumps(shared(schemas), separators=(",", ":")) + "\n")
    print(f"{OUT}: {OUT.stat().st_size:,} bytes, {', '.join(schemas)}")


if __name__ == "__main__":
    main(sys.argv[1:])
