"""What Kubernetes, KServe and the Prometheus operator take, as published or as documented."""

import ast
import functools
import importlib.util
import json
import re
from pathlib import Path

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
# The oldest release of Kubernetes that these manifests are for, and the newest that is known.
KUBERNETES = ("1.29.0", "1.37.0")

_KINDS = {
    "ClusterServingRuntime": "V1alpha1ClusterServingRuntime",
    "InferenceService": "V1beta1InferenceService",
}
_PLAIN = {"str": str, "int": int, "bool": bool, "float": float, "object": object}

# https://prometheus-operator.dev/docs/api-reference/api/ as far as it is used here.
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_DURATION = {"type": "string", "pattern": r"^\d+(ms|[smhdwy])$"}


def _closed(required, **properties):
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


_ALERT = _closed(
    ["alert", "expr"],
    alert={"type": "string"},
    expr={"type": "string"},
    **{"for": _DURATION},
    labels=_TEXTS,
    annotations=_TEXTS,
)
_GROUP = _closed(["name"], name={"type": "string"}, rules={"type": "array", "items": _ALERT})
_ENDPOINT = _closed(
    [],
    port={"type": "string"},
    path={"type": "string"},
    interval=_DURATION,
    scheme={"type": "string"},
)
_OPERATOR = {
    "PrometheusRule": _closed(["groups"], groups={"type": "array", "items": _GROUP}),
    "PodMonitor": _closed(
        ["selector", "podMetricsEndpoints"],
        selector=_closed([], matchLabels=_TEXTS),
        podMetricsEndpoints={"type": "array", "items": _ENDPOINT},
    ),
}


def load(path):
    """Return the resources of a manifest below `deploy`."""
    return list(yaml.safe_load_all((DEPLOY / path).read_text()))


def faults(resource):
    """Return what is wrong with a resource, a line for each fault."""
    group, _, _ = resource["apiVersion"].rpartition("/")
    kind = resource["kind"]
    if group == "serving.kserve.io":
        return list(_kserve(_KINDS[kind], resource, kind))
    if group == "monitoring.coreos.com":
        spec = _matching(Draft202012Validator(_OPERATOR[kind]), resource["spec"], f"{kind}.spec")
        return [*_kubernetes("objectmeta-meta-v1", resource["metadata"], f"{kind}.metadata"), *spec]
    version = re.sub(r"(\.[^/]*)?/", "-", resource["apiVersion"])
    return list(_kubernetes(f"{kind.lower()}-{version}", resource, kind))


def _matching(validator, value, where):
    for error in validator.iter_errors(value):
        yield f"{where}{error.json_path.removeprefix('$')}: {error.message}"


def _kubernetes(name, value, where):
    for version in KUBERNETES:
        yield from _matching(_validator(version, name), value, where)


@functools.cache
def _validator(version, name):
    schema = json.loads((_schemas(version) / f"{name}.json").read_text())
    return Draft202012Validator(schema, registry=_definitions(version))


@functools.cache
def _definitions(version):
    text = (_schemas(version) / "_definitions.json").read_text()
    return Resource.from_contents(json.loads(text)) @ Registry()


def _package(name):
    """Find an installed package without importing it."""
    return Path(importlib.util.find_spec(name).submodule_search_locations[0])


def _schemas(version):
    folder = _package("kubernetes_validate") / "kubernetes-json-schema"
    return folder / f"v{version}-local-strict"


def _kserve(name, value, where):
    """Compare a value with a model of KServe's SDK, and what is Kubernetes's with its schema."""
    if value is None:
        return
    if many := re.fullmatch(r"list\[(.*)\]", name):
        for index, item in enumerate(value):
            yield from _kserve(many[1], item, f"{where}[{index}]")
    elif mapping := re.fullmatch(r"dict\(str, (.*)\)", name):
        for key, item in value.items():
            yield from _kserve(mapping[1], item, f"{where}.{key}")
    elif name in _PLAIN:
        if not isinstance(value, _PLAIN[name]) or (name == "int" and isinstance(value, bool)):
            yield f"{where}: {value!r} is not of type {name}"
    elif model := _model(name):
        yield from _like(model, value, where)
    else:
        meta = "-meta-v1" if name == "V1ObjectMeta" else "-v1"
        yield from _kubernetes(name.removeprefix("V1").lower() + meta, value, where)


def _like(model, value, where):
    types, required = model
    yield from (f"{where}: {key!r} is missing" for key in required - set(value))
    for key, item in value.items():
        if key in types:
            yield from _kserve(types[key], item, f"{where}.{key}")
        else:
            yield f"{where}: {key!r} is unexpected"


@functools.cache
def _model(name):
    """Read a model of the SDK: the type of each key, and the keys that have to be there.

    Importing it would start half a server; its tables are literals.
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    path = _package("kserve") / "models" / f"{words}.py"
    if not path.exists():
        return None
    source = path.read_text()
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("openapi_types", "attribute_map")
    }
    keys = tables["attribute_map"]
    missing = re.findall(r"Invalid value for `(\w+)`, must not be `None`", source)
    types = {keys[field]: kind for field, kind in tables["openapi_types"].items()}
    return types, {keys[field] for field in missing}
