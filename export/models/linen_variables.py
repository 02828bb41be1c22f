"""What variables a linen Module has: those that init makes, and those that it is called with."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen

from export.calling import MODES, Call, Inputs, Params
from export.errors import ExportError
from export.forms import BOXED
from export.matching import Path, flatten
from export.reading import Apply, of_shape, traces

# Collections for looking into a model, which answers without: what modules sow by default, and
# zeros that are added where gradients are wanted.
NEEDLESS = ("intermediates", "perturbations")


@dataclasses.dataclass(frozen=True, slots=True)
class Called:
    """A module with its variables by name.

    Attributes:
      model: the module.
      names: its variables, a name in the place of each.
      shapes: shape and dtype of each, by name.
      inputs: shapes and dtypes of the inputs by name, of one bucket.
    """

    model: linen.Module
    names: dict[str, Any]
    shapes: dict[str, jax.ShapeDtypeStruct]
    inputs: Inputs

    @classmethod
    def of(
        cls,
        model: linen.Module,
        listed: Mapping[str, Any],
        extra: Mapping[Path, Any],
        inputs: Inputs,
    ) -> "Called":
        """Return a module with the variables that init lists, and with others that may be read.

        Args:
          model: the module.
          listed: shapes and dtypes of the variables that init makes.
          extra: other variables by path.
          inputs: shapes and dtypes of the inputs by name.
        """
        own = flatten(listed)
        names = dict(jax.tree.unflatten(jax.tree.structure(listed), ["/".join(p) for p in own]))
        _insert(names, [path for path, leaf in extra.items() if hasattr(leaf, "shape")])
        placed = set(jax.tree.leaves(names))
        every = {"/".join(path): leaf for path, leaf in {**extra, **own}.items()}
        shapes = {name: of_shape(leaf) for name, leaf in every.items() if name in placed}
        return cls(model, names, shapes, inputs)

    def apply(self, call: Call) -> Apply:
        """Return the module as a function of its variables and inputs."""

        def apply(named: Params, given: Inputs) -> Any:
            args, kwargs = call.bind(given)
            variables = jax.tree.map(lambda name: named[name], self.names)
            return self.model.apply(variables, *args, **kwargs)

        return apply

    def traces(self, call: Call) -> bool:
        """Whether the module can be called so."""
        return traces(self.apply(call), self.shapes, self.inputs)

    def without_needless(self, call: Call, saved: Collection[str]) -> "Called":
        """Return the module without those collections that it can be called without.

        Args:
          call: how it is called.
          saved: collections that are there; they stay, but for those that are never needed.
        """
        smaller = self
        for name in self.names:
            if name != "params" and (name not in saved or name in NEEDLESS):
                smaller = smaller._without(name, call)
        return smaller

    def _without(self, collection: str, call: Call) -> "Called":
        names = {name: tree for name, tree in self.names.items() if name != collection}
        kept = set(jax.tree.leaves(names))
        shapes = {name: shape for name, shape in self.shapes.items() if name in kept}
        smaller = dataclasses.replace(self, names=names, shapes=shapes)
        return smaller if smaller.traces(call) else self


@dataclasses.dataclass(frozen=True, slots=True)
class Initialized:
    """What init makes of a module.

    Attributes:
      call: the way to call it in which it can be made; the first one if it cannot.
      variables: shapes and dtypes of its variables; None if it cannot be made here, because that
        takes a mesh, or a file, or it is wrong.
      boxes: path of an array in a box, such as of `nn.with_partitioning`, to that of the box.
      failure: why it cannot be made.
    """

    call: Call
    variables: dict[str, Any] | None
    boxes: dict[Path, Path]
    failure: Exception | None = None


def initialized(model: linen.Module, ways: Sequence[Call], inputs: Inputs) -> Initialized:
    """Trace init, in the first of several ways in which it can be.

    Raises:
      ExportError: the inputs are not those of the model.
    """
    failures: list[Exception] = []
    for call in ways:
        try:
            return Initialized(call, *_variables(model, call, inputs))
        except ExportError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever the user's model raises)
            failures.append(error)
    return Initialized(ways[0], None, {}, failures[0])


def _variables(
    model: linen.Module, call: Call, inputs: Inputs
) -> tuple[dict[str, Any], dict[Path, Path]]:
    """Return shapes and dtypes of the variables that init makes, without intermediates, and boxes."""

    def init(values: Sequence[Any]) -> Any:
        args, kwargs = call.bind(dict(zip(inputs, values, strict=True)))
        keys = {name: jax.random.key(0) for name in ("params", "dropout")}
        made = model.init(keys, *args, **kwargs)
        return linen.meta.unbox(made), made

    # As a list: JAX sorts the keys of a dict, and inputs by place would be swapped.
    made, boxed = jax.eval_shape(init, list(inputs.values()))
    boxes = dict(zip(flatten(boxed), flatten(made), strict=True))
    return {name: tree for name, tree in made.items() if name != "intermediates"}, boxes


def made_in_training(
    model: linen.Module, call: Call, inputs: Inputs, saved: Mapping[Path, Any]
) -> set[Path]:
    """Return the paths of saved variables that init makes, of that shape, where it is to train."""
    found: set[Path] = set()
    for switches in _training(call, inputs):
        try:
            made, _ = _variables(model, dataclasses.replace(call, switches=switches), inputs)
        except Exception:  # noqa: BLE001, S112 (training may take more than the inputs)
            continue
        shapes = {path: array.shape for path, array in flatten(made).items()}
        found |= {path for path, leaf in saved.items() if shapes.get(path) == np.shape(leaf)}
    return found


def copies_of_params(saved: Mapping[Path, Any]) -> set[str]:
    """Return what stands beside the params and has all their paths and shapes, as their moving average.

    Args:
      saved: leaves of a checkpoint by path, its collections first.
    """
    trees: dict[str, dict[Path, Any]] = {}
    for (name, *inside), leaf in saved.items():
        path = tuple(inside[:-1] if inside[-1:] == [BOXED] else inside)
        trees.setdefault(name, {})[path] = np.shape(leaf)
    params = trees.pop("params", None)
    return {name for name, tree in trees.items() if tree == params}


def _training(call: Call, inputs: Inputs) -> Iterator[dict[str, Any]]:
    """Yield switches for training: those that are known all at once, others one by one."""
    free = [p for p in call.parameters if p.name not in inputs]
    known = {p.name: not MODES[p.name] for p in free if p.name in MODES}
    if known:
        yield {**call.switches, **known}
    for p in free:
        value = call.switches.get(p.name, p.default)
        if p.name not in known and isinstance(value, bool):
            yield {**call.switches, **known, p.name: not value}


def _insert(names: dict[str, Any], paths: Collection[Path]) -> None:
    """Insert variables of other paths into a tree of names, where they do not take another's place."""
    for path in paths:
        here: Any = names
        for word in path[:-1]:
            here = here.setdefault(word, {}) if isinstance(here, dict) else None
        if len(path) > 1 and isinstance(here, dict):
            here.setdefault(path[-1], "/".join(path))
