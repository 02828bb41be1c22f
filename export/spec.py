"""What to export, as one frozen record; every flag of the command line is a field here."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from export.declarations import Declaration
from export.errors import ExportError
from export.fields import read_field
from export.preprocess import Declared
from runtime.errors import InvalidField, nearest
from runtime.raw_inputs import check_passthrough
from runtime.signature import Axis, TensorSpec, check_inputs

DEFAULT_BUCKETS = (1, 4, 8, 16, 32, 64)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExportSpec(Declaration):
    """A model and how to export it.

    Attributes:
      model: a flax.linen Module, a flax.nnx Module or a factory of one (called with
        `rngs=`), a Keras Layer or Model, an Equinox Module or a tuple of one and its State or a
        factory of these (called with `key=`), what `hk.transform` returned, or a function
        `apply(params, inputs)`; see `export.models.registry.adapt`.
      params: the weights, a tree of arrays or a path that `--params` takes. None for
        a model that has them.
      inputs: each a TensorSpec or `"name:dtype[_, 28, seq]"`. Empty for a Keras model that says
        what it takes.
      buckets: batch sizes, increasing; one program each.
      axes: bucketed axes beside the batch, name to increasing sizes; or to
        `"3..32,64"`, where the model takes no fewer than 3.
      platforms: what to lower for.
      output: raw, softmax, classification:logits or classification:probabilities;
        `:NAME` behind it where the model has several outputs.
      labels: names of the classes, in order; or a file of them, as `--labels` takes it.
      dtype: cast floating params to this; batch statistics stay as they are.
      matmul_precision: what dots are lowered with; None for what is in force
        (`jax_default_matmul_precision`), else jax's default.
      golden: name to rows of inputs, or a .safetensors or .npz file of them; name to texts, or to
        images as bytes or paths, or a .jsonl file of them, where there are such inputs; None for
        seeded ones.
      seed: of the seeded inputs.
      name: the model's name in routes.
      version: digits.
      allow_infinite: names of outputs that rightly hold infinities, such as masked logits.
        NaN is refused all the same.
      allow_row_mixing: export a model whose rows depend on each other; it is
        recorded, and a server never batches its requests.
      unverified: export for platforms that this machine cannot check; it is recorded.
      params_path: subtree of the params to take, such as `ema_params`.
      allow_pickle: read params from a pickle, which can run any code.
      call_args: arguments of the model that are no inputs, by name, such as
        `{"enable_dropout": False}`; they win over what the exporter would pass.
      preprocess: text inputs, that callers may send in place of token ids, and image inputs.
      reference_preprocess: the training code's own preparation. For texts a function of a list of
        them that returns ids by row, or a mapping with `input_ids`; it must give the tokenizer's ids
        for the golden texts. For images a function of a list of files, as bytes, that returns the
        model's inputs; they must be made of the same pixels, within `pixel_tolerance`.
      pixel_tolerance: levels of 255 that pixels of a golden image may be apart, in the mean and in
        the worst one; None for 1 and 8.
      page_sample: show the first golden row on the server's page, for all who can open it.
      passthrough: names of fields that instances may have beside their inputs, such as `key`; a
        server accepts and ignores them.
    """

    model: Any
    params: Any = None
    inputs: Sequence[TensorSpec | str] = ()
    buckets: Sequence[int] = DEFAULT_BUCKETS
    axes: Mapping[str, Sequence[int] | str | Axis] = dataclasses.field(default_factory=dict)
    platforms: Sequence[str] = ("cpu", "cuda")
    output: str = "raw"
    labels: Sequence[str] | os.PathLike[str] = ()
    dtype: str | None = None
    matmul_precision: str | None = None
    golden: Mapping[str, Any] | str | Path | None = None
    seed: int = 0
    name: str = "model"
    version: str = "1"
    allow_infinite: Sequence[str] = ()
    allow_row_mixing: bool = False
    unverified: bool = False
    params_path: str | None = None
    allow_pickle: bool = False
    call_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocess: Sequence[Declared] = ()
    reference_preprocess: Callable[..., Any] | None = None
    pixel_tolerance: Sequence[float] | None = None
    page_sample: bool = False
    passthrough: Sequence[str] = ()

    def checked(self) -> "ExportSpec":
        """Return this with every field in its one form, checked.

        Raises:
          ExportError: names the field, what it takes and what it got.
        """
        names = [field.name for field in dataclasses.fields(self)]
        fields = {name: read_field(name, getattr(self, name)) for name in names}
        _check_together(fields["inputs"], fields["axes"])
        taken = [spec.name for spec in fields["inputs"]]
        taken += [name for stage in fields["preprocess"] for name in stage.names]
        try:
            check_passthrough(fields["passthrough"], taken)
        except InvalidField as error:
            raise ExportError(f"passthrough: {error}") from None
        return ExportSpec(**fields)


def _check_together(inputs: Sequence[TensorSpec], axes: Mapping[str, Axis]) -> None:
    """Raise ExportError for inputs and axes that are no signature, or an axis that no input has."""
    try:
        check_inputs(inputs, tuple(axes.values()))
    except InvalidField as error:
        raise ExportError(_advised(error, inputs, axes)) from None
    used = {dim for spec in inputs for dim in spec.shape[1:]}
    for name in sorted(set(axes) - used):
        raise ExportError(
            f"axis {name!r}: expected an input that has it, got none{nearest(name, map(str, used))}"
        )


def _advised(error: InvalidField, inputs: Sequence[TensorSpec], axes: Mapping[str, Axis]) -> str:
    """Return what is wrong with inputs in the words of options, and what to pass instead."""
    match error.path:
        case (_, int(i), "shape", int(place)):
            name = str(inputs[i].shape[place])
            hint = nearest(name, axes) or f"; pass --axis {name}=32,64,128"
            return f"axis {name!r}: expected its sizes, got none{hint}"
        case (_, int(i), "maximum"):
            of_inputs = {dim for spec in inputs if not spec.mask for dim in spec.shape}
            advice = nearest(str(inputs[i].maximum), set(axes) & of_inputs)
        case (_, int(i), "minimum"):
            axis = axes[str(inputs[i].maximum)]
            sizes = ",".join(map(str, axis.sizes))
            advice = f"; pass --axis {axis.name}={inputs[i].minimum}..{sizes}"
        case (_, int(i), "nonfinite"):
            advice = "; name outputs with allow_infinite"
        case _:
            advice = "" if inputs else "; pass --input 'x:float32[_,28,28,1]'"
            return f"{error.path[0]}: {error}{advice}"
    return f"input {inputs[i].name!r}: {error}{advice}"
