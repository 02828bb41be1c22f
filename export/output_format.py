"""How predictions are written for people, checked with the outputs that the model has."""

import dataclasses
from collections.abc import Sequence
from typing import cast

from export.errors import ExportError
from export.fields import parse_output
from export.labels import LabelsOfFile
from export.spec import ExportSpec
from runtime.entries import OutputFormat
from runtime.errors import InvalidField, nearest
from runtime.signature import Signature


def output_format(spec: ExportSpec, signature: Signature) -> OutputFormat:
    """Return how predictions are written, as the spec asks for it and the signature allows.

    Raises:
      ExportError: there is no such output, or it has other classes than there are labels.
    """
    wanted = parse_output(spec.output)
    if wanted.kind == "raw":
        if spec.labels:
            raise ExportError(
                "labels: expected --output classification:logits or :probabilities with them, got raw"
            )
        return wanted
    names = [output.name for output in signature.outputs]
    if wanted.output is None and len(names) > 1:
        raise ExportError(
            f"output: expected {spec.output}:NAME with a NAME of {', '.join(names)}, got no name"
        )
    name = wanted.output or names[0]
    labels = cast("Sequence[str]", spec.labels)  # a file was read
    made = dataclasses.replace(wanted, output=name, labels=tuple(labels))
    try:
        made.check(signature.outputs)
    except InvalidField as error:
        if error.path[-1] == "output" and name in names:
            raise ExportError(f"output {name!r}: {error}") from None
        if error.path[-1] == "output":
            raise ExportError(f"output: {error}{nearest(name, names)}") from None
        source = f" of {labels.file}" if isinstance(labels, LabelsOfFile) else ""
        raise ExportError(f"labels{source}: {error}") from None
    output = next(o for o in signature.outputs if o.name == name)
    if wanted.kind == "embedding":
        return made
    if len(output.shape) != 2 or "float" not in output.dtype:
        raise ExportError(
            f"output {name!r}: expected floats [_, classes] for {wanted.kind}, got {output}"
        )
    if output.nonfinite and wanted.scores == "probabilities":
        raise ExportError(
            f"allow_infinite: expected no output of probabilities, got {name!r}; pass --output "
            f"classification:logits:{name} if it holds logits"
        )
    return made
