"""The manifest: what a bundle says about itself, read with the standard library alone.

Fields are written in their order, by `runtime.node.to_json`. A reader refuses what it does not
know: unknown keys, duplicate keys, other versions.

Version log
  1 (2026-11): first format.
  2 (2026-11): adds `refreshed_from`. A bundle that was never refreshed is still written as 1.
  3 (2026-11): an input's `maximum` can be an axis. One without such an input is written as 1 or 2.
  4 (2026-11): an output's `nonfinite`; `preprocess`, and a golden's `raw`; the output format
     `embedding`; `passthrough`; `page_sample`. One without them is written as 1, 2 or 3.
"""

import dataclasses
import itertools
import json
import math
import re
import reprlib
from collections.abc import Mapping

from runtime.entries import (
    PLATFORMS,
    File,
    Golden,
    Origin,
    OutputFormat,
    Params,
    ProgramEntry,
    Tolerance,
    strings,
)
from runtime.errors import InvalidField, ManifestError, UnsupportedFormat
from runtime.node import Node, to_json, typed
from runtime.raw_inputs import Stage, check_stages, stage_from_node
from runtime.signature import Signature, increasing, unique

FORMAT_VERSIONS = (1, 2, 3, 4)
# The largest real manifest is a few MB (tens of thousands of params); the rest is an attack.
MAX_MANIFEST_BYTES = 64 * 1024 * 1024
# Of them it has a few for each param. Reading takes time by their number, not by the bytes.
_MAX_VALUES = 500_000
_INTEGER_DIGITS = 20  # of 64 bits, or of a sign and 63


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that a bundle says about itself.

    Attributes:
      name: the model's name, as routes use it.
      version: the model's version, digits.
      created: UTC time of the export, RFC 3339.
      exporter: versions of hloserve, jax, jaxlib, flax, stablehlo, of the calling
        convention and of the serialization.
      platforms: what the programs were lowered for.
      verified: platforms on which the goldens were reproduced at export; empty for
        a bundle exported with --unverified.
      x64: whether 64-bit types are on while lowering and calling.
      matmul_precision: what the dots were lowered with: asked for, else in force; None for jax's default.
      signature: inputs, outputs, axes.
      buckets: batch sizes, increasing.
      output_format: how predictions are written for people.
      tolerances: platform, then output, to the accepted difference.
      drift: output to the largest difference seen between buckets, on the exporting
        machine.
      row_mixing: why rows are not independent, one sentence each; empty for a model
        whose rows are. A server must never batch requests together when not empty.
      programs: one per bucket.
      goldens: inputs and expected outputs.
      params: the weights.
      preprocess: the stages that prepare raw inputs, texts and images; empty where callers send
        tensors only.
      passthrough: names of fields that instances may have beside their inputs, such as `key`; the
        model does not see them.
      page_sample: whether a server's page may show the first golden row, to all who can open it.
      refreshed_from: the bundles that this one was refreshed from, the exported one first;
        empty for one that was exported.
    """

    name: str
    version: str
    created: str
    exporter: Mapping[str, str]
    platforms: tuple[str, ...]
    verified: tuple[str, ...]
    x64: bool
    matmul_precision: str | None
    signature: Signature
    buckets: tuple[int, ...]
    output_format: OutputFormat
    tolerances: Mapping[str, Mapping[str, Tolerance]]
    drift: Mapping[str, float]
    row_mixing: tuple[str, ...]
    programs: tuple[ProgramEntry, ...]
    goldens: tuple[Golden, ...]
    params: Params
    preprocess: tuple[Stage, ...] = ()
    passthrough: tuple[str, ...] = ()
    page_sample: bool = False
    refreshed_from: tuple[Origin, ...] = ()

    @property
    def files(self) -> tuple[File, ...]:
        """Return every file that belongs to the bundle, the manifest apart."""
        programs = [f for p in self.programs for f in (p.exported, p.stablehlo)]
        goldens = [f for golden in self.goldens for f in golden.files]
        stages = [f for stage in self.preprocess for f in stage.files]
        return (*self.params.files, *programs, *goldens, *stages)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """Read manifest.json.

        Raises:
          UnsupportedFormat: another format_version; looked at before anything else.
          ManifestError: anything that the format does not allow.
        """
        if len(data) > MAX_MANIFEST_BYTES:
            limit = f"expected at most {MAX_MANIFEST_BYTES} bytes, got {len(data)}"
            raise ManifestError(limit, "$")
        # Before each value but the first is one of these; in texts they count as well.
        values = sum(map(data.count, (b",", b"[", b"{")))
        if values > _MAX_VALUES:
            raise ManifestError(f"expected at most {_MAX_VALUES:,} values, got {values:,}", "$")
        try:
            value = json.loads(
                data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_int=_integer
            )
            json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate is no text
        except RecursionError:
            raise ManifestError("expected less nesting", "$") from None
        except ValueError as error:
            raise ManifestError(f"expected strict JSON in UTF-8: {error}", "$") from None
        node = Node(value)
        version = node.take("format_version", int)
        if version not in FORMAT_VERSIONS:
            known = f"{', '.join(map(str, FORMAT_VERSIONS[:-1]))} or {FORMAT_VERSIONS[-1]}"
            raise UnsupportedFormat(
                f"manifest.json: expected format_version {known}, got {version}; "
                "re-export the model, or serve it with the release that wrote it"
            )
        node.version = version
        return node.whole(cls._from_node)

    @classmethod
    def _from_node(cls, node: Node) -> "Manifest":
        version = node.version
        manifest = cls(
            name=node.take("name", str),
            version=node.take("version", str),
            created=node.take("created", str),
            exporter=strings(node, "exporter"),
            platforms=_platforms(node, "platforms"),
            verified=_platforms(node, "verified"),
            x64=node.take("x64", bool),
            matmul_precision=node.optional("matmul_precision", str),
            signature=node.child("signature", Signature.from_node),
            buckets=node.items("buckets", int),
            output_format=node.child("output_format", OutputFormat.from_node),
            tolerances=node.mapping("tolerances", _tolerances),
            drift={
                name: typed(value, float, f"$.drift.{name}")
                for name, value in node.take("drift", dict).items()
            },
            row_mixing=node.items("row_mixing", str),
            params=node.child("params", Params.from_node),
            programs=node.each("programs", ProgramEntry.from_node),
            goldens=node.each("goldens", Golden.from_node),
            refreshed_from=node.each("refreshed_from", Origin.from_node) if version > 1 else (),
            preprocess=node.each("preprocess", stage_from_node)
            if version >= 4 and node.has("preprocess")
            else (),
            passthrough=node.items("passthrough", str)
            if version >= 4 and node.has("passthrough")
            else (),
            page_sample=version >= 4 and bool(node.optional("page_sample", bool)),
        )
        manifest._check()
        if version == 2 and not manifest.refreshed_from:
            raise ManifestError("expected at least one origin", "$.refreshed_from")
        for i, spec in enumerate(manifest.signature.inputs):
            if version < 3 and isinstance(spec.maximum, str):
                raise ManifestError("expected int, got string", f"$.signature.inputs[{i}].maximum")
        return manifest

    @property
    def format_version(self) -> int:
        """Return the lowest version that can say this."""
        if self.preprocess or self.passthrough or self.page_sample:
            return 4
        if self.output_format.kind == "embedding":
            return 4
        if any(spec.nonfinite for spec in self.signature.outputs):
            return 4
        if any(isinstance(spec.maximum, str) for spec in self.signature.inputs):
            return 3
        return 2 if self.refreshed_from else 1

    def _check(self) -> None:
        check_name(self.name)
        check_version(self.version)
        increasing(self.buckets, "buckets")
        unique(file.path for file in self.files)
        check_stages(self.preprocess, self.signature, self.passthrough)
        self._check_platforms()
        self._check_programs()
        self._check_goldens()
        self._check_outputs()

    def _check_platforms(self) -> None:
        if not self.platforms:
            raise ManifestError("expected at least one platform", "$.platforms")
        unique(self.platforms, "platforms")
        unique(self.verified, "verified")
        strange = sorted(set(self.verified) - set(self.platforms))
        if strange:
            raise ManifestError(
                f"expected some of {list(self.platforms)}, got {strange[0]!r}", "$.verified"
            )
        if set(self.tolerances) != set(self.platforms):
            raise ManifestError(
                f"expected {list(self.platforms)}, got {list(self.tolerances)}", "$.tolerances"
            )

    def _check_outputs(self) -> None:
        outputs = {spec.name: spec for spec in self.signature.outputs}
        for platform, tolerances in self.tolerances.items():
            if set(tolerances) != set(outputs):
                raise ManifestError(
                    f"expected {list(outputs)}, got {list(tolerances)}", f"$.tolerances.{platform}"
                )
        strange = sorted(set(self.drift) - set(outputs))
        if strange:
            raise ManifestError(f"expected some of {list(outputs)}, got {strange[0]!r}", "$.drift")
        self.output_format.check(self.signature.outputs)

    def _check_programs(self) -> None:
        """There is one program for each combination of batch and axis sizes."""
        names = [axis.name for axis in self.signature.axes]
        for i, program in enumerate(self.programs):
            if sorted(program.axes) != sorted(names):
                raise ManifestError(
                    f"expected axes {names}, got {list(program.axes)}", f"$.programs[{i}].axes"
                )
        sizes = [self.buckets, *(axis.sizes for axis in self.signature.axes)]
        expected = math.prod(map(len, sizes))
        got = sorted((p.batch, *(p.axes[n] for n in names)) for p in self.programs)
        # Counted first: a few lines of sizes can multiply to more buckets than memory holds.
        if len(got) != expected or got != sorted(itertools.product(*sizes)):
            raise ManifestError(
                f"expected one program for each of {expected} buckets, got {reprlib.repr(got)}",
                "$.programs",
            )

    def _check_goldens(self) -> None:
        if not self.goldens:
            raise ManifestError("expected at least one golden", "$.goldens")
        axes = self.signature.axes
        names = [axis.name for axis in axes]
        for i, golden in enumerate(self.goldens):
            where = f"$.goldens[{i}].axes"
            if sorted(golden.axes) != sorted(names):
                raise ManifestError(f"expected axes {names}, got {list(golden.axes)}", where)
            for axis in axes:
                size = golden.axes[axis.name]
                if not axis.minimum <= size <= axis.sizes[-1]:
                    raise ManifestError(
                        f"expected a size from {axis.minimum} to {axis.sizes[-1]}, got {size}",
                        f"{where}.{axis.name}",
                    )
        if not any(all(g.axes[a.name] <= a.sizes[0] for a in axes) for g in self.goldens):
            raise ManifestError("expected a golden that the shortest buckets hold", "$.goldens")
        if bool(self.preprocess) != any(golden.raw for golden in self.goldens):
            got = "none" if self.preprocess else "one"
            expected = (
                "a golden with raw inputs" if self.preprocess else "no golden with raw inputs"
            )
            raise ManifestError(f"expected {expected}, got {got}", "$.goldens")
        rows = sorted({golden.rows for golden in self.goldens})
        if self.row_mixing and not set(self.buckets) <= set(rows):
            raise ManifestError(
                f"expected goldens of {list(self.buckets)} rows where rows are mixed, got {rows}",
                "$.goldens",
            )

    def to_bytes(self) -> bytes:
        """Write what `from_bytes` reads, the same bytes for equal manifests."""
        version = self.format_version
        value = {"format_version": version, **to_json(self)}
        if version > 1:
            value.setdefault("refreshed_from", [])  # which these formats require
        return _readable(value).encode() + b"\n"


def check_name(name: str) -> None:
    """Raise InvalidField for what is no name of a model, which routes and file names have in them."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", name):
        raise InvalidField(f"expected letters, digits, '_.-', got {name!r}", "name")


def check_version(version: str) -> None:
    """Raise InvalidField for what is no version of a model."""
    if not re.fullmatch(r"[0-9]{1,18}", version):
        raise InvalidField(f"expected digits, got {version!r}", "version")


def _readable(value: object, indent: str = "") -> str:
    """Write JSON with one line for each object that fits one, for eyes and for diffs."""
    flat = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not isinstance(value, dict | list) or len(flat) + len(indent) <= 100:
        return flat
    inner = indent + " "
    if isinstance(value, dict):
        parts = [f"{json.dumps(k)}: {_readable(v, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(inner + part for part in parts) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + _readable(v, inner) for v in value) + f"\n{indent}]"


def _integer(text: str) -> int:
    """Read an integer of 64 bits. Longer ones are no sizes, and multiplying them takes for ever."""
    if len(text) > _INTEGER_DIGITS:
        raise ManifestError(f"expected integers of 64 bits, got one of {len(text)} digits", "$")
    return int(text)


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise ManifestError(f"duplicate key {name!r}", "$")
        found[name] = value
    return found


def _platforms(node: Node, key: str) -> tuple[str, ...]:
    return tuple(
        node.check(f"{key}[{i}]", name, PLATFORMS) for i, name in enumerate(node.items(key, str))
    )


def _tolerances(node: Node) -> dict[str, Tolerance]:
    return {name: node.child(name, Tolerance.from_node) for name in node.names()}
