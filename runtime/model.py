"""All programs of a bundle on one device: a request only ever picks among them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from runtime.buckets import Planner, pick
from runtime.bundle import Bundle
from runtime.claims import params_bytes
from runtime.device import Device, free_memory, named, platform_of
from runtime.errors import InvalidInput, SignatureMismatch
from runtime.inputs import Checked, Checker
from runtime.manifest import Manifest
from runtime.preprocessing.preparation import Preparer, open_preparer
from runtime.program import Program
from runtime.records.arguments import exact_arrays
from runtime.records.predictions import Nonfinite, as_values, is_as_declared, predictions_from
from runtime.room import check_memory
from runtime.run_times import run_times
from runtime.signature import Signature, TensorSpec, bucket_name
from runtime.staging import stage, unstage
from runtime.tensors import Array, numpy_dtype


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """The programs that share their axis sizes: the same computation in several batches.

    Attributes:
      sizes: size of each bucketed axis, in the signature's order.
      programs: batch to program.
      planner: covers rows by their buckets.
    """

    sizes: tuple[int, ...]
    programs: Mapping[int, Program]
    planner: Planner


class Model:
    """A bundle, ready to answer on one device.

    `predict` may be called from any number of threads at once. The plan of which
    buckets cover how many rows follows `measure`, which `load` calls once.

    Attributes:
      bundle: what it was loaded from.
      device: the jax device it runs on.
      params: the device's params, in calling order.
      groups: axis sizes to the programs of those sizes.
      output_names: in the signature's order.
      checker: of the signature.
      preparer: makes tensors of raw inputs; None where there are none.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        programs: tuple[Program, ...],
        params: tuple[object, ...],
    ) -> None:
        self.bundle = bundle
        self.device = device
        self.params = params
        raw_names = [name for stage in bundle.manifest.preprocess for name in stage.raw_names]
        self.checker = Checker(bundle.manifest.signature, raw_names)
        self.preparer: Preparer | None = open_preparer(bundle, self.checker)
        self.output_names = tuple(spec.name for spec in bundle.manifest.signature.outputs)
        self.groups = _groups(bundle.manifest, programs)

    @property
    def manifest(self) -> Manifest:
        """Return what the bundle says about itself."""
        return self.bundle.manifest

    @property
    def signature(self) -> Signature:
        """Return the inputs, outputs and axes that `predict` takes and returns."""
        return self.bundle.manifest.signature

    @property
    def platform(self) -> str:
        """Return the device's platform: cpu, cuda and so on."""
        return platform_of(self.device)

    @property
    def device_name(self) -> str:
        """Return the device's name among those of this machine, such as `cpu:0` or `cuda:1`."""
        return named(self.device)

    def predict(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Answer rows.

        Args:
          inputs: name to array of exactly the signature's dtype and shape, or nested lists of
            such numbers, all with the same number of rows, 0 or more; beyond the largest bucket
            they are split. int64 is taken for narrower integers where every value fits. A
            bucketed axis may have any size up to the largest; masks may be left out. Where the
            bundle takes texts or images: name to a list of them, each image the bytes of a file,
            in place of the inputs that are made of these.

        Returns:
          Output name to array, row for row. They can be read-only. An output that has the axis
          of the texts' lengths is an array of objects, an array for each row, where texts of
          one call have several lengths.

        Raises:
          SignatureMismatch: the inputs do not fit.
          ExecutionError: the device failed.
        """
        answers, order = self._answer_rows(inputs)
        return dict(zip(self.output_names, _in_order(answers, order), strict=True))

    def _answer_rows(
        self, inputs: Mapping[str, Any]
    ) -> tuple[list[tuple[Array, ...]], Sequence[Sequence[int]]]:
        """Return the answers to rows of the same sizes, and for each of these which rows they are."""
        if not isinstance(inputs, Mapping):
            raise _no_mapping(self.signature, self.preparer, inputs)
        preparer = self.preparer
        raw = {n: v for n, v in inputs.items() if preparer and preparer.is_raw(n, v)}
        tensors = {n: v for n, v in inputs.items() if n not in raw} if raw else inputs
        exact: Mapping[str, Any] = exact_arrays(self.signature, tensors)
        if preparer is None or not raw:
            checked = self.checker.check(exact)
            return [self._cover(checked)], [range(checked.rows)]
        prepared = preparer.prepare({**raw, **exact})
        return [self._cover(part) for part in prepared.parts], prepared.order

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the names of the classes, in order; none where the bundle has none."""
        return self.manifest.output_format.labels

    def classify(self, inputs: Mapping[str, object]) -> list[dict[str, Any]]:
        """Answer rows as a server's `predictions` do.

        Args:
          inputs: as for `predict`.

        Returns:
          For each row its label, the confidence in it, and the probabilities of all classes:
          the values that a client reads from the server's JSON.

        Raises:
          InvalidInput: the inputs do not fit, or the bundle is of no classification.
          ExecutionError: the device failed.
        """
        form = self.manifest.output_format
        if form.kind != "classification":
            raise InvalidInput(
                f"classify: expected a bundle with the output format classification, got "
                f"{form.kind}; export it with --output classification:logits"
            )
        answers, order = self._answer_rows(inputs)
        declared = all(
            is_as_declared(spec, output)
            for answer in answers
            for spec, output in zip(self.signature.outputs, answer, strict=True)
        )
        policy: Nonfinite | None = None if declared else "null"
        predictions: list[dict[str, Any]] = [{}] * sum(map(len, order))
        for answer, members in zip(answers, order, strict=True):
            outputs = dict(zip(self.output_names, answer, strict=True))
            written = as_values(predictions_from(outputs, self.signature, form, policy))
            for row, prediction in zip(members, written, strict=True):
                predictions[row] = prediction
        return predictions

    def group(self, sizes: tuple[int, ...]) -> Group:
        """Return the programs with the shortest axes that hold these sizes."""
        if not sizes:
            return self.groups[()]
        axes = self.signature.axes
        picked = (pick(size, axis.sizes) for size, axis in zip(sizes, axes, strict=True))
        return self.groups[tuple(size for size in picked if size is not None)]

    def run(self, program: Program, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
        """Run one program on inputs of exactly its shapes; see `Program.call`."""
        return program.call(self.params, inputs)

    def answer(self, group: Group, batch: int, rows: Checked) -> tuple[Array, ...]:
        """Answer rows with one program: stage, run, unstage.

        Args:
          group: holds the program.
          batch: its bucket.
          rows: at least 1, at most `batch`.

        Returns:
          Outputs in the signature's order, for the real rows and the real axes.
        """
        inputs = stage(self.signature, (rows,), batch, group.sizes)
        return unstage(self.signature, (rows,), self.run(group.programs[batch], inputs))[0]

    def _cover(self, checked: Checked) -> tuple[Array, ...]:
        """Answer any number of rows, in the buckets of the cheapest plan."""
        group = self.group(checked.sizes)
        answers = []
        start = 0
        for bucket in group.planner.plan(checked.rows):
            end = min(start + bucket, checked.rows)
            answers.append(self.answer(group, bucket, checked.cut(start, end)))
            start = end
        if len(answers) == 1:
            return answers[0]
        if not answers:
            return tuple(self.no_rows(checked.sizes).values())
        return tuple(np.concatenate(pieces) for pieces in zip(*answers, strict=True))

    def _named(self, sizes: tuple[int, ...]) -> dict[str, int]:
        return dict(zip((axis.name for axis in self.signature.axes), sizes, strict=True))

    def no_rows(self, sizes: tuple[int, ...]) -> dict[str, Array]:
        """Return the answer to zero rows, at these sizes of the bucketed axes."""
        named = self._named(sizes)
        return {
            spec.name: np.empty(spec.concrete(0, named), numpy_dtype(spec.dtype))
            for spec in self.signature.outputs
        }

    def measure(
        self, known: Mapping[str, float] | None = None, *, warm: bool = False
    ) -> dict[str, float]:
        """Plan by the programs' run times from now on.

        Args:
          known: seconds of each program by its bucket's name, where they were measured on such a
            device before; a group that lacks one is measured.
          warm: whether each program ran already. A first run does what a device does once only
            (page weights in, pick algorithms), so that no request pays for it, and takes up to
            twenty times as long as others: it is never planned by.

        Returns:
          The seconds of each program, by its bucket's name.
        """
        found: dict[str, float] = {}
        for sizes, group in self.groups.items():
            names = {batch: bucket_name(self.signature, sizes, batch) for batch in group.programs}
            if known is not None and all(name in known for name in names.values()):
                costs = {batch: known[name] for batch, name in names.items()}
                if not warm:
                    self._warm_up(group)
            else:
                if not warm:
                    self._warm_up(group)
                costs = self._measured(group)
            planner = Planner(costs, mixed=bool(self.manifest.row_mixing))
            self.groups[sizes] = dataclasses.replace(group, planner=planner)
            found |= {names[batch]: cost for batch, cost in costs.items()}
        return found

    def _warm_up(self, group: Group) -> None:
        for batch, program in group.programs.items():
            program.call(self.params, self.blank(batch, group.sizes))

    def _measured(self, group: Group) -> dict[int, float]:
        def prepare(batch: int) -> Callable[[], object]:
            program, inputs = group.programs[batch], self.blank(batch, group.sizes)
            return lambda: program.call(self.params, inputs)

        return run_times(group.programs, prepare)

    def data_dependent(self, sizes: tuple[int, ...], batch: int) -> bool:
        """Whether how long a program runs depends on its inputs, so that measured times say little.

        Args:
          sizes: of its bucketed axes.
          batch: its bucket.
        """
        return self.groups[sizes].programs[batch].data_dependent

    def check_memory(self, at_once: int = 1) -> None:
        """Refuse programs that the device has too little memory left to run.

        Args:
          at_once: runs that are under way together.

        Raises:
          DoesNotFit: names the bucket and the bytes.
        """
        named = {
            bucket_name(self.signature, group.sizes, batch): program
            for group in self.groups.values()
            for batch, program in group.programs.items()
        }
        check_memory(named, params_bytes(self.manifest), free_memory(self.device), at_once)

    def canary(self) -> None:
        """Run the smallest program on inputs that cannot be at fault.

        Raises:
          ExecutionError: the device does not work.
        """
        sizes, group = next(iter(self.groups.items()))
        batch = min(group.programs)
        self.run(group.programs[batch], self.blank(batch, sizes))

    def blank(self, rows: int, sizes: tuple[int, ...]) -> tuple[Array, ...]:
        """Make legal inputs that mean nothing: zeros, or the legal value nearest to zero.

        Args:
          rows: size of the batch axis.
          sizes: size of each bucketed axis.
        """
        named = self._named(sizes)
        return tuple(
            np.full(spec.concrete(rows, named), _nearest_to_zero(spec), numpy_dtype(spec.dtype))
            for spec in self.signature.inputs
        )


def _in_order(
    answers: Sequence[tuple[Array, ...]], order: Sequence[Sequence[int]]
) -> tuple[Array, ...]:
    """Return the rows of several parts in the order that they were asked in.

    Args:
      answers: of each part, in the signature's order.
      order: for each part, which rows these are.
    """
    if len(answers) == 1:
        return answers[0]
    found = []
    for pieces in zip(*answers, strict=True):
        alike = len({piece.shape[1:] for piece in pieces}) == 1
        shape = pieces[0].shape[1:] if alike else ()
        rows = sum(map(len, order))
        out = np.empty((rows, *shape), pieces[0].dtype if alike else object)
        for members, piece in zip(order, pieces, strict=True):
            if alike:
                out[list(members)] = piece
            else:
                for i, row in zip(members, piece, strict=True):
                    out[i] = row
        found.append(out)
    return tuple(found)


def _no_mapping(
    signature: Signature, preparer: Preparer | None, inputs: object
) -> SignatureMismatch:
    tensors = {spec.name: str(spec) for spec in signature.inputs}
    raw = (
        {name: tensors.get(name, "") for name in preparer.expected_names}
        | {name: f"{kind}s [_]" for name, kind in preparer.kinds.items()}
        if preparer is not None
        else {}
    )
    forms = [
        "{" + ", ".join(f"{name!r}: {what}" for name, what in form.items()) + "}"
        for form in (raw, tensors)
        if form
    ]
    return SignatureMismatch(
        f"inputs: expected a dict {' or '.join(forms)}, got {type(inputs).__name__}"
    )


def _groups(manifest: Manifest, programs: tuple[Program, ...]) -> dict[tuple[int, ...], Group]:
    names = [axis.name for axis in manifest.signature.axes]
    found: dict[tuple[int, ...], dict[int, Program]] = {}
    for program in programs:
        found.setdefault(tuple(program.axes[n] for n in names), {})[program.batch] = program
    return {
        sizes: Group(sizes, members, Planner(dict.fromkeys(members, 1.0)))
        for sizes, members in sorted(found.items())
    }


def _nearest_to_zero(spec: TensorSpec) -> int:
    low = 0 if spec.minimum is None else max(spec.minimum, 0)
    return min(low, spec.maximum) if isinstance(spec.maximum, int) else low
