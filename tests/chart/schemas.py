"""JSON schemas of Kubernetes' objects, a file for each kind and version, as kubeconform looks for them.

    schemas.py core VERSION OUT      those of Kubernetes itself, out of the package kubernetes-validate: the files there refer to a
                                     common one, which kubeconform does not follow; here each brings what it refers to
    schemas.py crd OUT CRD.yaml …    those of custom resources, out of their definitions

A property that is not in a schema is an error, as `kubectl apply --validate=strict` has it.
"""

import json
import sys
from pathlib import Path

import yaml


def write(out: Path, kind: str, group: str, version: str, schema: dict) -> None:
    """Under the name of kubeconform's `{{.ResourceKind}}{{.KindSuffix}}`: of the group the first word only."""
    name = "-".join(part for part in (kind.lower(), group.split(".")[0], version) if part)
    (out / f"{name}.json").write_text(json.dumps(schema))


def nodes(node):
    """Every object in a document, itself included."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes(child)


def closure(schema: dict, definitions: dict) -> dict:
    """The definitions that a schema refers to, by whatever way."""
    found, open_ = {}, [schema]
    while open_:
        for node in nodes(open_.pop()):
            name = node["$ref"].rsplit("/", 1)[-1] if isinstance(node.get("$ref"), str) else None
            if name and name not in found:
                found[name] = definitions[name]
                open_.append(definitions[name])
    return found


def core(version: str, out: Path) -> None:
    import kubernetes_validate

    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    definitions = json.loads((folder / "_definitions.json").read_text())["$defs"]
    for schema in definitions.values():
        for of in schema.get("x-kubernetes-group-version-kind", []):
            # What has no metadata is no object: options, reviews, lists.
            if "metadata" in schema.get("properties", {}) and not of["kind"].endswith("List"):
                write(out, of["kind"], of["group"], of["version"], {**schema, "$defs": closure(schema, definitions)})


def crd(out: Path, files: list[str]) -> None:
    for definition in (d for file in files for d in yaml.safe_load_all(Path(file).read_text()) if d):
        spec = definition["spec"]
        for version in spec["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            for node in nodes(schema):
                if isinstance(node.get("properties"), dict) and not node.get("x-kubernetes-preserve-unknown-fields"):
                    node.setdefault("additionalProperties", False)
                # Said by an extension that nobody else knows.
                if node.pop("x-kubernetes-int-or-string", None):
                    node.pop("type", None)
                    node["anyOf"] = [{"type": "integer"}, {"type": "string"}]
            # Kubernetes' own, and left open in the definition.
            schema["properties"]["metadata"] = {"type": "object"}
            write(out, spec["names"]["kind"], spec["group"], version["name"], schema)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["core", version, out]:
            Path(out).mkdir(parents=True, exist_ok=True)
            core(version, Path(out))
        case ["crd", out, *files]:
            Path(out).mkdir(parents=True, exist_ok=True)
            crd(Path(out), files)
        case _:
            sys.exit(__doc__)
