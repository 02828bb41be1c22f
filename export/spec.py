"""What to export, as one frozen record; every flag of the command line is a field here."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from export.errors import ExportError
from export.fields import read_field
from export.preprocess import Text
from runtime.errors import nearest
from runtime.signature import Axis, TensorSpec

DEFAULT_BUCKETS = (1, 4, 8, 16, 32, 64)


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
      axes: bucketed axes beside the batch, name to increasing sizes; or to
        `"3..32,64"`, where the model takes no fewer than 3.
      platforms: what to lower for.
      output: raw, softmax, classification:logits or classification:probabilities;
        `:NAME` behind it where the model has several outputs.
      labels: names of the classes, in order.
      dtype: cast floating params to this; batch statistics stay as they are.
      matmul_precision: what dots are lowered with; None for what is in force
        (`jax_default_matmul_precision`), else jax's default.
      golden: name to rows of inputs, or a .safetensors or .npz file of them; name to texts, or
        a .jsonl file of them, where there are text inputs; None for seeded ones.
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
      preprocess: text inputs, that callers may send in place of token ids.
      reference_preprocess: the training code's own preparation, a function of a list of texts that
        returns ids by row, or a mapping with `input_ids`; it must give the tokenizer's ids for
        the golden texts.
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
    labels: Sequence[str] = ()
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
    preprocess: Sequence[Text] = ()
    reference_preprocess: Callable[..., Any] | None = None
    passthrough: Sequence[str] = ()

    def checked(self) -> "ExportSpec":
        """Return this with every field in its one form, held against what is allowed.

        Raises:
          ExportError: names the field, what it takes and what it got.
        """
        names = [field.name for field in dataclasses.fields(self)]
        fields = {name: read_field(name, getattr(self, name)) for name in names}
        if not fields["inputs"]:
            raise ExportError(
                "inputs: expected at least one, got none; pass --input 'x:float32[_,28,28,1]'"
            )
        shapes = [spec.shape for spec in fields["inputs"]]
        _check_axes(fields["axes"], {dim for s in shapes for dim in s[1:] if isinstance(dim, str)})
        _check_lengths(fields["axes"], fields["inputs"])
        taken = [spec.name for spec in fields["inputs"]]
        taken += [n for text in fields["preprocess"] for n in (text.input, text.pair)]
        for name in fields["passthrough"]:
            if name in taken:
                raise ExportError(f"passthrough: expected a name that no input has, got {name!r}")
        return ExportSpec(**fields)


def _check_axes(declared: Mapping[str, Axis], used: set[str]) -> None:
    for name in sorted(used - set(declared)):
        hint = nearest(name, declared) or f"; pass --axis {name}=32,64,128"
        raise ExportError(f"axis {name!r}: expected its sizes, got none{hint}")
    for name in sorted(set(declared) - used):
        raise ExportError(
            f"axis {name!r}: expected an input that has it, got none{nearest(name, used)}"
        )


def _check_lengths(axes: Mapping[str, Axis], inputs: Sequence[TensorSpec]) -> None:
    dims = {dim for spec in inputs if not spec.mask for dim in spec.shape}
    had = {name: axis for name, axis in axes.items() if name in dims}
    for spec in inputs:
        if not isinstance(spec.maximum, str):
            continue
        if spec.maximum not in had:
            known = f" or an axis of {', '.join(map(repr, had))}" if had else ""
            raise ExportError(
                f"input {spec.name!r}: expected a number{known} as the largest value, got "
                f"{spec.maximum!r}{nearest(spec.maximum, had)}"
            )
        least = had[spec.maximum].minimum
        if spec.minimum is not None and spec.minimum > least:
            raise ExportError(
                f"input {spec.name!r}: expected a smallest value up to {least}, the least size of "
                f"axis {spec.maximum!r}, got {spec.minimum}; pass --axis {spec.maximum}="
                f"{spec.minimum}..{','.join(map(str, had[spec.maximum].sizes))}"
            )
