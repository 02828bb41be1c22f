"""What an export did: for people a table, for machines JSON."""

import dataclasses
import io
import json
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from export.errors import few_names
from runtime.invocation import spelled

Progress = Callable[[str], None]

# What a batch prediction job of Vertex AI sends at a time by default.
_VERTEX_BATCH = 64

_SERVING = (
    "TensorFlow Serving runs it with --xla_cpu_compilation_enabled=true; its GPU image has no "
    "compiler for such programs: serve it on CPU there"
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProgramReport:
    """One program. Figures are of the device that verified it; None if none did.

    Attributes:
      bucket: such as `b8-seq32`.
      program_bytes: both stored forms together.
      flops: floating point operations of one run, as XLA counts them.
      bytes_accessed: bytes that one run moves, as XLA counts them.
      temp_bytes: memory that one run needs beside params, inputs and outputs.
      max_error: largest difference from the goldens.
      rows_unproven: what keeps the model's structure from showing that rows are independent; None
        where it shows that.
    """

    bucket: str
    program_bytes: int
    flops: float | None
    bytes_accessed: float | None
    temp_bytes: float | None
    max_error: float | None
    rows_unproven: str | None

    @property
    def batch(self) -> int:
        """Return the rows it takes."""
        return int(self.bucket[1:].partition("-")[0])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SavedModelReport:
    """A SavedModel for TensorFlow.

    Attributes:
      path: where it is.
      signatures: name to the inputs it takes.
      variables: one for each param.
      warmup_requests: that TensorFlow Serving runs while it loads the model.
      tensorflow: the version that made and ran it.
      stablehlo: the version that its programs are written in.
      written_as: the version in which jax wrote them.
      calling_convention: of its programs.
      verified: platforms on which TensorFlow reproduced every golden.
      max_error: largest difference from the goldens; None where it was not verified.
    """

    path: str
    signatures: dict[str, str]
    variables: int
    warmup_requests: int
    tensorflow: str
    stablehlo: str
    written_as: str
    calling_convention: int
    verified: tuple[str, ...]
    max_error: float | None

    def lines(self) -> list[str]:
        """Write it for people, with what TensorFlow Serving needs to run it."""
        rewritten = self.stablehlo != self.written_as
        error = "" if self.max_error is None else f", max error {self.max_error:.2g}"
        form = f"StableHLO {self.stablehlo}" + f", rewritten from {self.written_as}" * rewritten
        form += f", calling convention {self.calling_convention}"
        proof = f"TensorFlow {self.tensorflow} on {', '.join(self.verified) or 'nothing'}{error}"
        return [
            f"SavedModel {self.path}: {self.variables} variables, {self.warmup_requests} warm-up requests",
            *(f"  {name}({inputs})" for name, inputs in self.signatures.items()),
            f"  {form}; verified by {proof}",
            f"  {_SERVING}",
        ]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an export did.

    Attributes:
      bundle: where it is; None after a dry run.
      name: of the model.
      version: of the model.
      inputs: each as `name: dtype[shape]`.
      outputs: each as `name: dtype[shape]`.
      output_format: how predictions are written.
      accepted: on the first platform, output to the accepted difference from a golden.
      scale: output to its largest value in the goldens, to judge differences by.
      platforms: what the programs were lowered for.
      verified: where the goldens were reproduced.
      params_bytes: all weights.
      programs: one per bucket.
      drift: output to the largest difference between buckets.
      cast_drift: output to the largest change that `dtype` made.
      row_mixing: ways in which rows depend on each other.
      notes: what was decided on the user's behalf.
      savedmodel: what was made for TensorFlow, if that was asked for.
      compiles_for: GPUs that it was compiled for and fits into; nothing ran there.
    """

    bundle: str | None
    name: str
    version: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    output_format: str
    accepted: dict[str, str]
    scale: dict[str, float]
    platforms: tuple[str, ...]
    verified: tuple[str, ...]
    params_bytes: int
    programs: tuple[ProgramReport, ...]
    drift: dict[str, float]
    cast_drift: dict[str, float]
    row_mixing: tuple[str, ...]
    notes: tuple[str, ...]
    savedmodel: SavedModelReport | None = None
    compiles_for: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Write it for machines."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def __str__(self) -> str:
        """Return what the command prints, without colors."""
        file = io.StringIO()
        self.print(Console(file=file, force_terminal=False, soft_wrap=True))
        return file.getvalue().rstrip("\n")

    def print(self, console: Console | None = None) -> None:
        """Write it for people: a table per program, then what else there is to know.

        Args:
          console: where to; None for stdout.
        """
        console = console or Console(soft_wrap=True)
        table = Table(title=f"{self.name} version {self.version}", title_justify="left")
        table.add_column("bucket")
        for column in ("program", "FLOPs", "moved", "temp", "golden max error"):
            table.add_column(column, justify="right")
        for p in self.programs:
            table.add_row(
                p.bucket,
                size(p.program_bytes),
                count(p.flops),
                size(p.bytes_accessed),
                size(p.temp_bytes),
                "-" if p.max_error is None else f"{p.max_error:.2g}",
            )
        console.print(table)
        for line in self._lines():
            console.print(line, markup=False, highlight=False)

    def _lines(self) -> list[str]:
        lines = [f"inputs   {', '.join(self.inputs)}", f"outputs  {', '.join(self.outputs)}"]
        lines.append(f"format   {self.output_format}")
        lines.append(f"params   {size(self.params_bytes)}, one copy for all programs")
        lines.append(
            f"lowered for {', '.join(self.platforms)}; verified on {', '.join(self.verified) or 'nothing'}"
        )
        if self.compiles_for:
            lines.append(f"compiles for {', '.join(self.compiles_for)}; nothing ran there")
        lines.append(f"rows     {self._rows()}")
        accepted = ", ".join(f"{name} {text}" for name, text in self.accepted.items())
        lines.append(f"accepted difference from goldens, on {self.platforms[0]}: {accepted}")
        if self.drift:
            lines.append(f"drift between buckets: {self._judged(self.drift)}")
        if self.cast_drift:
            lines.append(f"drift from casting params: {self._judged(self.cast_drift)}")
        lines += [f"note: {note}" for note in self.notes]
        largest = max(program.batch for program in self.programs)
        if largest < _VERTEX_BATCH:
            lines.append(
                f"for Vertex AI batch prediction add {_VERTEX_BATCH} to --buckets: it sends "
                f"{_VERTEX_BATCH} instances a request, the largest bucket is {largest}"
            )
        lines += [f"warning: rows are mixed: {text}" for text in self.row_mixing]
        if self.savedmodel:
            lines += self.savedmodel.lines()
        if self.bundle:
            serve = spelled("python -m server")
            lines.append(f"bundle   {self.bundle}; next: {serve} --bundle {self.bundle}")
        else:
            lines.append("dry run: nothing was written")
        return lines

    def _rows(self) -> str:
        """Return whether the model's structure shows that rows are independent, or what is in its way."""
        unproven = [p for p in self.programs if p.rows_unproven]
        if not unproven:
            return "independent by structure"
        buckets = few_names([p.bucket for p in unproven])
        return (
            f"structure does not show that they are independent in {buckets}: "
            f"{unproven[0].rows_unproven}"
        )

    def _judged(self, values: dict[str, float]) -> str:
        """Write differences beside the largest value that they are differences of."""
        return ", ".join(
            f"{n} {v:.2g} (of values up to {self.scale[n]:.2g})" for n, v in values.items()
        )


def size(value: float | None) -> str:
    """Write bytes for people: 57 kB, 90.3 MB."""
    return "-" if value is None else _scaled(value, ("B", "kB", "MB", "GB", "TB"))


def count(value: float | None) -> str:
    """Write a count for people: 5.7 G."""
    return "-" if value is None else _scaled(value, ("", "k", "M", "G", "T", "P"))


def _scaled(value: float, units: tuple[str, ...]) -> str:
    unit = 0
    while abs(value) >= 1000 and unit < len(units) - 1:
        value /= 1000
        unit += 1
    return f"{value:.3g} {units[unit]}".strip()
