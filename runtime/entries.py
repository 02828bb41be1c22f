"""The entries of a manifest: files, programs, params, goldens, tolerances, output formatting.

Each reads itself, key by key; `runtime.node.to_json` writes them all.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

from runtime.errors import InvalidField, ManifestError
from runtime.node import Node, required, typed
from runtime.signature import DTYPE_BYTES, TensorSpec, unique

MANIFEST_NAME = "manifest.json"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
OUTPUT_KINDS = ("raw", "softmax", "classification", "embedding")
SCORES = ("logits", "probabilities")

_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_LONGEST_PATH = 1024  # as long as a name at gs:// can be
_AXES = 64  # as many as an array can have
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of the bundle: its path below the bundle, size and SHA-256 in hex."""

    path: str
    bytes: int
    sha256: str

    @classmethod
    def from_node(cls, node: Node) -> "File":
        """Read a file entry; a path can only point below the bundle."""
        path = node.take("path", str)
        if len(path) > _LONGEST_PATH:
            raise ManifestError(
                f"expected a path of at most {_LONGEST_PATH:,} characters, got {len(path):,}",
                f"{node.where}.path",
            )
        if not _PATH.fullmatch(path) or path == MANIFEST_NAME:
            raise ManifestError(
                f"expected a plain relative path, got {path!r}", f"{node.where}.path"
            )
        size = node.take("bytes", int)
        if size < 0:
            raise ManifestError(f"expected a size, got {size}", f"{node.where}.bytes")
        return cls(path=path, bytes=size, sha256=_digest(node))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProgramEntry:
    """One program: the bucket it is for and the two forms it is stored in.

    Attributes:
      batch: rows it takes.
      axes: size of each bucketed axis, in the signature's order.
      exported: what `jax.export` wrote.
      stablehlo: the StableHLO portable artifact inside it.
      custom_calls: targets of the custom calls it contains, sorted.
    """

    batch: int
    axes: Mapping[str, int]
    exported: File
    stablehlo: File
    custom_calls: tuple[str, ...] = required(())

    @classmethod
    def from_node(cls, node: Node) -> "ProgramEntry":
        """Read one entry of `$.programs`."""
        batch = node.take("batch", int)
        if batch < 1:
            raise ManifestError(f"expected at least 1, got {batch}", f"{node.where}.batch")
        return cls(
            batch=batch,
            axes=_sizes(node),
            exported=node.child("exported", File.from_node),
            stablehlo=node.child("stablehlo", File.from_node),
            custom_calls=node.items("custom_calls", str),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """One array that every program takes before its inputs, and the file it is in."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str

    @classmethod
    def from_node(cls, node: Node) -> "Argument":
        """Read one entry of `$.params.arguments`."""
        return cls(
            name=node.take("name", str),
            dtype=node.choice("dtype", DTYPE_BYTES),
            shape=_shape(node),
            file=node.take("file", str),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Param:
    """A param of the model, and its place: in `argument`, from element `offset` on."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    argument: str
    offset: int = required(0)

    @classmethod
    def from_node(cls, node: Node) -> "Param":
        """Read one entry of `$.params.entries`."""
        return cls(
            name=node.take("name", str),
            dtype=node.choice("dtype", DTYPE_BYTES),
            shape=_shape(node),
            argument=node.take("argument", str),
            offset=node.take("offset", int),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """The weights: files, the arguments in calling order, and the model's own names."""

    files: tuple[File, ...]
    arguments: tuple[Argument, ...]
    entries: tuple[Param, ...]

    @classmethod
    def from_node(cls, node: Node) -> "Params":
        """Read `$.params`."""
        params = cls(
            files=node.each("files", File.from_node),
            arguments=node.each("arguments", Argument.from_node),
            entries=node.each("entries", Param.from_node),
        )
        unique((a.name for a in params.arguments), "arguments")
        unique((p.name for p in params.entries), "entries")
        files = {file.path for file in params.files}
        for i, argument in enumerate(params.arguments):
            if argument.file not in files:
                raise ManifestError(
                    f"expected one of the params files, got {argument.file!r}",
                    f"{node.where}.arguments[{i}].file",
                )
        arguments = {argument.name: argument for argument in params.arguments}
        for i, entry in enumerate(params.entries):
            if not _holds(arguments.get(entry.argument), entry):
                raise ManifestError(
                    f"expected a place in one of the arguments, got {entry.argument!r} from "
                    f"element {entry.offset} on",
                    f"{node.where}.entries[{i}]",
                )
        return params


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """Inputs at one set of axis sizes and the answers of the un-exported model.

    Attributes:
      axes: size of each bucketed axis that the inputs have; any up to the largest.
      rows: how many rows; a bucket is filled with them in a cycle.
      file: safetensors with `input/NAME` and `output/NAME`.
      raw: JSON lines, a row each, that the inputs were prepared from; None where they are tensors
        from the beginning.
    """

    axes: Mapping[str, int]
    rows: int
    file: File
    raw: File | None = None

    @property
    def files(self) -> tuple[File, ...]:
        """Return the files of this golden."""
        return (self.file,) if self.raw is None else (self.file, self.raw)

    @classmethod
    def from_node(cls, node: Node) -> "Golden":
        """Read one entry of `$.goldens`."""
        rows = node.take("rows", int)
        if rows < 1:
            raise ManifestError(f"expected at least 1, got {rows}", f"{node.where}.rows")
        raw = node.version >= 4 and node.has("raw")
        return cls(
            axes=_sizes(node),
            rows=rows,
            file=node.child("file", File.from_node),
            raw=node.child("raw", File.from_node) if raw else None,
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """Largest accepted |got - expected|: `atol + rtol * |expected|`, element by element."""

    atol: float
    rtol: float

    @classmethod
    def from_node(cls, node: Node) -> "Tolerance":
        """Read one tolerance."""
        tolerance = cls(atol=node.take("atol", float), rtol=node.take("rtol", float))
        if tolerance.atol < 0 or tolerance.rtol < 0:
            raise ManifestError("expected no negative tolerance", node.where)
        return tolerance


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OutputFormat:
    """How a prediction is written for people: as is, as probabilities, as a label, or as a vector.

    Attributes:
      kind: raw, softmax, classification or embedding.
      output: the output that is formatted; None when raw.
      scores: whether the output is logits or probabilities.
      labels: names of the classes, in order; empty when there are none.
      normalized: whether each row of an embedding is scaled to length one.
    """

    kind: str = required("raw")
    output: str | None = required(None)
    scores: str = required("logits")
    labels: tuple[str, ...] = required(())
    normalized: bool = False

    @classmethod
    def from_node(cls, node: Node) -> "OutputFormat":
        """Read `$.output_format`."""
        # The last kind is of format 4.
        latest = node.version >= 4
        return cls(
            kind=node.choice("kind", OUTPUT_KINDS if latest else OUTPUT_KINDS[:-1]),
            output=node.optional("output", str),
            scores=node.choice("scores", SCORES),
            labels=node.items("labels", str),
            normalized=(node.optional("normalized", bool) if latest else None) or False,
        )

    def check(self, outputs: Sequence[TensorSpec]) -> None:
        """Raise InvalidField unless this formats one of the outputs, with a label for each class."""
        if self.normalized and self.kind != "embedding":
            raise InvalidField(
                f"expected true for an embedding alone, got {self.kind}",
                *("output_format", "normalized"),
            )
        if self.kind == "raw":
            return
        by_name = {output.name: output for output in outputs}
        if self.output not in by_name:
            raise InvalidField(
                f"expected one of {', '.join(by_name)}, got {self.output!r}",
                *("output_format", "output"),
            )
        output = by_name[self.output]
        if self.kind == "embedding":
            self._check_embedding(output)
        if self.labels and len(self.labels) != output.shape[-1]:
            raise InvalidField(
                f"expected {output.shape[-1]} for {output}, got {len(self.labels)}",
                *("output_format", "labels"),
            )
        unique(self.labels, "output_format", "labels")

    def _check_embedding(self, output: TensorSpec) -> None:
        if len(output.shape) != 2 or "float" not in output.dtype:
            raise InvalidField(
                f"expected floats [_, size] for an embedding, got {output}",
                *("output_format", "output"),
            )
        if self.labels:
            raise InvalidField(
                f"expected none for an embedding, got {len(self.labels)}",
                *("output_format", "labels"),
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A bundle that another was refreshed from: the SHA-256 of its manifest, and its exporter."""

    sha256: str
    exporter: Mapping[str, str]

    @classmethod
    def from_node(cls, node: Node) -> "Origin":
        """Read one entry of `$.refreshed_from`."""
        return cls(sha256=_digest(node), exporter=strings(node, "exporter"))


def strings(node: Node, key: str) -> dict[str, str]:
    """Take an object whose values are strings."""
    values = node.take(key, dict)
    return {name: typed(value, str, f"{node.where}.{key}.{name}") for name, value in values.items()}


def _digest(node: Node) -> str:
    digest = node.take("sha256", str)
    if not _SHA256.fullmatch(digest):
        raise ManifestError("expected 64 hex digits", f"{node.where}.sha256")
    return digest


def _holds(argument: Argument | None, entry: Param) -> bool:
    """Return whether a param is inside an argument of its dtype."""
    if argument is None or argument.dtype != entry.dtype:
        return False
    last = math.prod(argument.shape) - math.prod(entry.shape)
    return 0 <= entry.offset <= last


def _shape(node: Node) -> tuple[int, ...]:
    shape = node.items("shape", int)
    if len(shape) > _AXES:
        raise ManifestError(
            f"expected at most {_AXES} sizes, got {len(shape)}", f"{node.where}.shape"
        )
    if any(dim < 0 for dim in shape):
        raise ManifestError(f"expected sizes, got {list(shape)}", f"{node.where}.shape")
    return shape


def _sizes(node: Node) -> dict[str, int]:
    sizes = node.take("axes", dict)
    return {name: typed(size, int, f"{node.where}.axes.{name}") for name, size in sizes.items()}
