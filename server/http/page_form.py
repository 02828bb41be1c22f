"""What the page asks with: a field for each input that a caller gives, and code that asks the same."""

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from runtime.manifest import Manifest
from runtime.raw_inputs import Stage
from runtime.signature import Signature, TensorSpec
from server.protocols.oip import BYTES, DATATYPES

# A larger example would be most of the page.
_MAX_ELEMENTS = 4096
EXAMPLE_TEXT = "A short sentence."
# Where no file is named yet.
_PHOTO = "photo.jpg"


class Field(NamedTuple):
    """An input that the form has a field for.

    Attributes:
      name: of the input.
      kind: text, image or tensor.
      about: the tensor, or what a file may be.
      shape: of a tensor's row, as JSON.
      dtype: of a tensor.
      low: lowest value of a made-up row.
      high: highest value of one.
      value: what the field has at first; nothing for an image, and for a tensor of many numbers.
      dark: whether an image is drawn in white on black, as models of one channel mostly have it.
    """

    name: str
    kind: str
    about: str
    shape: str = ""
    dtype: str = ""
    low: float = 0
    high: float = 1
    value: str = ""
    dark: bool = False


def form_fields(manifest: Manifest) -> list[Field]:
    """Return the fields of a model's form: its raw inputs, then the inputs that no stage makes."""
    fields = [_raw_field(name, stage) for stage in manifest.preprocess for name in stage.raw_names]
    sizes = _sizes(manifest.signature)
    for spec in _given(manifest.signature, manifest.preprocess):
        shape = spec.concrete(1, sizes)[1:]
        low, high = _range(spec)
        small = math.prod(shape) <= _MAX_ELEMENTS
        value = json.dumps(_nested(shape, _value(spec))) if small else ""
        fields.append(
            Field(
                *(spec.name, "tensor", str(spec), json.dumps(shape), spec.dtype, low, high, value)
            )
        )
    return fields


def _raw_field(name: str, stage: Stage) -> Field:
    # Which texts and images there are is in the stage; how they are asked for is in page.js.
    value = {"text": EXAMPLE_TEXT}.get(stage.kind, "")
    dark = getattr(stage, "channels", "") == "L"
    return Field(name, stage.kind, stage.description, value=value, dark=dark)


def _range(spec: TensorSpec) -> tuple[float, float]:
    """Return the range of made-up values."""
    if "float" in spec.dtype:
        return 0, 1
    if spec.dtype == "bool":
        return 0, 1
    low = 0 if spec.minimum is None else spec.minimum
    high = spec.maximum if isinstance(spec.maximum, int) else low + 1
    return low, high


def example_instance(signature: Signature, stages: Sequence[Stage] = ()) -> dict[str, Any] | None:
    """Return a valid instance without masks; None if it would be too large to show, or has an image."""
    sizes = _sizes(signature)
    specs = _given(signature, stages)
    large = sum(math.prod(spec.concrete(1, sizes)) for spec in specs) > _MAX_ELEMENTS
    if large or any(stage.kind == "image" for stage in stages):
        return None
    texts = {name: EXAMPLE_TEXT for stage in stages for name in stage.raw_names}
    return texts | {spec.name: _nested(spec.concrete(1, sizes)[1:], _value(spec)) for spec in specs}


def _given(signature: Signature, stages: Sequence[Stage]) -> list[TensorSpec]:
    """Return the inputs that an example has: no masks, and none that a stage makes."""
    made = {name for stage in stages for name in stage.made}
    return [spec for spec in signature.inputs if not spec.mask and spec.name not in made]


def example_bodies(signature: Signature, stages: Sequence[Stage] = ()) -> Mapping[str, Any]:
    """Return a valid body for each protocol with inferences; empty if they would be too large."""
    instance = example_instance(signature, stages)
    if instance is None:
        return {}
    sizes = _sizes(signature)
    texts = [
        {"name": name, "shape": [1], "datatype": BYTES, "data": [instance[name]]}
        for stage in stages
        for name in stage.raw_names
    ]
    inputs = [
        {
            "name": spec.name,
            "shape": list(spec.concrete(1, sizes)),
            "datatype": DATATYPES[spec.dtype],
            "data": [instance[spec.name]],
        }
        for spec in _given(signature, stages)
    ]
    rows = {"instances": [instance]}
    return {"vertex": rows, "tfserving": rows, "oip": {"inputs": [*texts, *inputs]}}


def ways_to_ask(manifest: Manifest, origin: str, route: str) -> Iterator[tuple[str, str]]:
    """Yield names and code of three ways to ask a model: curl, Python, and Triton's client.

    Args:
      manifest: of the model.
      origin: of the server, as in `http://localhost:8080`.
      route: of predictions.
    """
    fields = form_fields(manifest)
    yield "curl", _curl(manifest, fields, origin + route)
    yield "Python", _python(fields, origin + route)
    if not any("float8" in field.dtype for field in fields):  # NumPy and the client have none
        yield "tritonclient", _triton(manifest, fields, origin.partition("://")[2])


def _curl(manifest: Manifest, fields: Sequence[Field], url: str) -> str:
    if all(field.kind == "image" for field in fields):
        parts = " ".join(f"-F {shlex.quote(f'{field.name}=@{_PHOTO}')}" for field in fields)
        return f"curl {parts} {shlex.quote(url)}"
    body = example_bodies(manifest.signature, manifest.preprocess).get("vertex")
    data = shlex.quote(json.dumps(body)) if body else "@request.json"
    return f"curl -d {data} {shlex.quote(url)}"


def _python(fields: Sequence[Field], url: str) -> str:
    lines = ["import json, urllib.request"]
    values = []
    for field in fields:
        if field.kind == "image":
            lines[0] = "import base64, json, urllib.request\nfrom pathlib import Path"
            value = f'{{"b64": base64.b64encode(Path("{_PHOTO}").read_bytes()).decode()}}'
        elif field.value:
            value = json.dumps(field.value) if field.kind == "text" else _literal(field.value)
        else:
            lines[0] = "import json, urllib.request\n\nimport numpy as np"
            value = f"np.zeros({field.shape}).tolist()"
        values.append(f"{json.dumps(field.name)}: {value}")
    return "\n".join(
        [
            *lines,
            "",
            f'body = json.dumps({{"instances": [{{{", ".join(values)}}}]}}).encode()',
            f"with urllib.request.urlopen({json.dumps(url)}, body) as answer:",
            '    print(json.load(answer)["predictions"])',
        ]
    )


def _literal(text: str) -> str:
    """Return JSON as Python writes it."""
    return repr(json.loads(text))


def _triton(manifest: Manifest, fields: Sequence[Field], host: str) -> str:
    images = any(field.kind == "image" for field in fields)
    lines = [
        *(["from pathlib import Path", ""] if images else []),
        "import numpy as np",
        "import tritonclient.http as triton",
        "",
        f"client = triton.InferenceServerClient({json.dumps(host)})",
    ]
    names = []
    for i, field in enumerate(fields):
        names.append(f"x{i}" if len(fields) > 1 else "x")
        if field.kind == "tensor":
            shape = [1, *json.loads(field.shape)]
            dtype = "float32" if field.dtype == "bfloat16" else field.dtype
            datatype = DATATYPES[field.dtype]
            value = f"np.full({shape}, {field.low:g}).astype({json.dumps(dtype)})"
        else:
            shape, datatype = [1], BYTES
            one = (
                f'Path("{_PHOTO}").read_bytes()'
                if field.kind == "image"
                else f"{json.dumps(field.value)}.encode()"
            )
            value = f"np.array([{one}], np.object_)"
        lines += [
            f'{names[-1]} = triton.InferInput({json.dumps(field.name)}, {shape}, "{datatype}")',
            f"{names[-1]}.set_data_from_numpy({value})",
        ]
    output = manifest.signature.outputs[0].name
    lines.append(
        f"print(client.infer({json.dumps(manifest.name)}, [{', '.join(names)}])"
        f".as_numpy({json.dumps(output)}))"
    )
    return "\n".join(lines)


def _sizes(signature: Signature) -> dict[str, int]:
    """Return a small valid size of each bucketed axis."""
    return {
        axis.name: max(axis.minimum, min(4, axis.sizes[0])) if axis.sizes[0] else 0
        for axis in signature.axes
    }


def _value(spec: TensorSpec) -> bool | int | float:
    if spec.dtype == "bool":
        return False
    if "float" in spec.dtype:
        return 0.0
    low = 0 if spec.minimum is None else max(0, spec.minimum)
    return min(low, spec.maximum) if isinstance(spec.maximum, int) else low


def _nested(shape: tuple[int, ...], value: Any) -> Any:
    for size in reversed(shape):
        value = [value] * size
    return value
