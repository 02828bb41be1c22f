"""What to export, as one frozen record; every flag of the command line is a field here."""

import dataclasses
import difflib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import ExportError
from runtime.manifest import PLATFORMS, SCORES, OutputFormat
from runtime.signature import BATCH, DTYPE_BYTES, TensorSpec

DEFAULT_BUCKETS = (1, 4, 8, 16, 32, 64)
PRECISIONS = ("default", "high", "highest", "bfloat16", "tensorfloat32", "float32")
CAST_DTYPES = ("bfloat16", "float16", "float32")

_INPUT = re.compile(r"\s*(?P<name>[^:\s]+)\s*:\s*(?P<dtype>\w+)\s*\[(?P<shape>[^\]]*)\]\s*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


def nearest(word: str, options: Iterable[str]) -> str:
    """Write "; did you mean 'x'?" for the option nearest to a word, or nothing."""
    close = difflib.get_close_matches(word, list(options), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def parse_input(text: str) -> TensorSpec:
    """Read `name:dtype[_, 28, seq]`.

    Raises:
      ExportError: it does not read so, or the dtype is unknown.
    """
    match = _INPUT.fullmatch(text)
    if match is None or not _NAME.fullmatch(match["name"]):
        raise ExportError(
            f"input {text!r}: expected NAME:DTYPE[_, SIZE, …] such as x:float32[_,28,28,1]"
        )
    dtype = match["dtype"]
    if dtype not in DTYPE_BYTES:
        raise ExportError(
            f"input {match['name']!r}: expected a dtype of {', '.join(DTYPE_BYTES)}, "
            f"got {dtype!r}{nearest(dtype, DTYPE_BYTES)}"
        )
    dims: list[int | str] = []
    for i, word in enumerate(match["shape"].split(",")):
        dim = word.strip()
        is_axis = dim.isidentifier() and (dim == BATCH) == (i == 0)
        if not (is_axis or (dim.isdigit() and i > 0)):
            raise ExportError(
                f"input {match['name']!r}: expected [{BATCH}, …] with sizes or axis names "
                f"after the batch, got {dim!r} in {text!r}"
            )
        dims.append(dim if is_axis else int(dim))
    return TensorSpec(name=match["name"], dtype=dtype, shape=tuple(dims))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExportSpec:
    """A model and how to export it.

    Attributes:
      model: a flax.linen Module, a flax.nnx Module or a factory of one (called with
        `rngs=`), or a function `apply(params, inputs)`; see `export.models.adapt`.
      params: the weights, a tree of arrays or a path that `--params` takes. None for
        an nnx Module that has them.
      inputs: each a TensorSpec or `"name:dtype[_, 28, seq]"`.
      buckets: batch sizes, increasing; one program each.
      axes: bucketed axes beside the batch, name to increasing sizes.
      platforms: what to lower for.
      output: raw, softmax, classification:logits or classification:probabilities;
        `:NAME` behind it where the model has several outputs.
      labels: names of the classes, in order.
      dtype: cast floating params to this; batch statistics stay as they are.
      matmul_precision: what dots are lowered with; None for jax's default.
      golden: name to rows of inputs, or a .safetensors or .npz file of them; None
        for seeded ones.
      seed: of the seeded inputs.
      name: the model's name in routes.
      version: digits.
      allow_row_mixing: export a model whose rows depend on each other; it is
        recorded, and a server never batches its requests.
      unverified: export for platforms that this machine cannot check; it is recorded.
      params_path: subtree of the params to take, such as `ema_params`.
      allow_pickle: read params from a pickle, which can run any code.
    """

    model: Any
    params: Any = None
    inputs: Sequence[TensorSpec | str] = ()
    buckets: Sequence[int] = DEFAULT_BUCKETS
    axes: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    platforms: Sequence[str] = ("cpu", "cuda")
    output: str = "raw"
    labels: Sequence[str] = ()
    dtype: str | None = None
    matmul_precision: str | None = None
    golden: Mapping[str, Any] | str | Path | None = None
    seed: int = 0
    name: str = "model"
    version: str = "1"
    allow_row_mixing: bool = False
    unverified: bool = False
    params_path: str | None = None
    allow_pickle: bool = False

    def checked(self) -> "ExportSpec":
        """Return this with inputs parsed and every field held against what is allowed.

        Raises:
          ExportError: names the field, what it takes and what it got.
        """
        inputs = tuple(parse_input(i) if isinstance(i, str) else i for i in self.inputs)
        if not inputs:
            raise ExportError(
                "inputs: expected at least one, got none; pass --input 'x:float32[_,28,28,1]'"
            )
        unique("inputs", [spec.name for spec in inputs])
        buckets = increasing("buckets", self.buckets)
        axes = {name: increasing(f"axis {name!r}", sizes) for name, sizes in self.axes.items()}
        used = {dim for spec in inputs for dim in spec.shape[1:] if isinstance(dim, str)}
        _check_axes(axes, used)
        for spec in inputs:
            _check_input(spec)
        for platform in self.platforms:
            _one_of("platforms", platform, PLATFORMS)
        if not self.platforms:
            raise ExportError("platforms: expected at least one, got none")
        unique("platforms", list(self.platforms))
        if self.dtype is not None:
            _one_of("dtype", self.dtype, CAST_DTYPES)
        if self.matmul_precision is not None:
            _one_of("matmul_precision", self.matmul_precision, PRECISIONS)
        parse_output(self.output)
        if self.seed < 0:
            raise ExportError(f"seed: expected 0 or more, got {self.seed}")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", self.name):
            raise ExportError(f"name: expected letters, digits, '_.-', got {self.name!r}")
        if not re.fullmatch(r"[0-9]{1,18}", self.version):
            raise ExportError(f"version: expected digits, got {self.version!r}")
        return dataclasses.replace(self, inputs=inputs, buckets=buckets, axes=axes)


def parse_output(text: str) -> OutputFormat:
    """Read an output format: `raw`, `softmax[:OUTPUT]`, `classification:SCORES[:OUTPUT]`.

    Raises:
      ExportError: it does not read so.
    """
    kind, *rest = text.split(":")
    if kind == "raw" and not rest:
        return OutputFormat()
    if kind == "softmax" and len(rest) <= 1:
        return OutputFormat(kind=kind, output=rest[0] if rest else None)
    if kind == "classification" and rest and rest[0] in SCORES and len(rest) <= 2:
        return OutputFormat(kind=kind, scores=rest[0], output=rest[1] if rest[1:] else None)
    forms = ("raw", "softmax", "classification:logits", "classification:probabilities")
    raise ExportError(f"output: expected {', '.join(forms)}, got {text!r}{nearest(text, forms)}")


def increasing(what: str, sizes: Sequence[int]) -> tuple[int, ...]:
    """Return sizes as a tuple if they increase from 1 on.

    Raises:
      ExportError: they do not.
    """
    values = tuple(sizes)
    whole = all(type(v) is int and v >= 1 for v in values)
    if not values or not whole or any(a >= b for a, b in itertools.pairwise(values)):
        raise ExportError(f"{what}: expected increasing sizes from 1 on, got {list(values)}")
    return values


def _check_axes(declared: Mapping[str, Sequence[int]], used: set[str]) -> None:
    for name in sorted(used - set(declared)):
        hint = nearest(name, declared) or f"; pass --axis {name}=32,64,128"
        raise ExportError(f"axis {name!r}: expected its sizes, got none{hint}")
    for name in sorted(set(declared) - used):
        raise ExportError(
            f"axis {name!r}: expected an input that has it, got none{nearest(name, used)}"
        )


def _check_input(spec: TensorSpec) -> None:
    floating = "float" in spec.dtype
    if floating and (spec.minimum is not None or spec.maximum is not None):
        raise ExportError(
            f"input {spec.name!r}: expected an integer dtype for a range, got {spec.dtype}"
        )
    if spec.minimum is not None and spec.maximum is not None and spec.minimum > spec.maximum:
        raise ExportError(
            f"input {spec.name!r}: expected a range, got {spec.minimum}:{spec.maximum}"
        )
    if not floating and not float(spec.pad).is_integer():
        raise ExportError(f"input {spec.name!r}: expected a pad of {spec.dtype}, got {spec.pad}")
    if spec.dtype != "bool" and not floating:
        info = np.iinfo(spec.dtype)
        for bound in (spec.minimum, spec.maximum, int(spec.pad)):
            if bound is not None and not info.min <= bound <= info.max:
                raise ExportError(
                    f"input {spec.name!r}: expected values of {spec.dtype}, got {bound}"
                )
    if spec.mask and not any(isinstance(dim, str) for dim in spec.shape[1:]):
        raise ExportError(f"input {spec.name!r}: expected a bucketed axis for a mask, got {spec}")


def _one_of(what: str, value: str, options: Sequence[str]) -> None:
    if value not in options:
        raise ExportError(
            f"{what}: expected {', '.join(options)}, got {value!r}{nearest(value, options)}"
        )


def unique(what: str, names: Sequence[str]) -> None:
    """Raise ExportError if a name stands twice."""
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ExportError(f"{what}: expected each name once, got {twice[0]!r} twice")
