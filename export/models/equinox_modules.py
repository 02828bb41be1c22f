"""An Equinox Module taken apart: its arrays by name, and what else it is."""

import dataclasses
import io
from collections.abc import Iterator, Sequence
from typing import Any

import equinox as eqx
import jax

from export.calling import Params
from export.checkpoints import SavedBy, as_tree
from export.errors import ExportError, ParamsError, few_names, first_line
from export.matching import Path, flatten, words
from export.models.factories import make
from export.models.frameworks import framework_in

# What names of a state begin with.
STATE = "state"
# What each leaf in an `.eqx` file begins with.
_NPY = b"\x93NUMPY"


def unjitted(model: Any) -> Any:
    """Return what `eqx.filter_jit` wraps, which is a Module itself; anything else as it is."""
    wrapper = type(eqx.filter_jit(lambda: None))
    return model.__wrapped__ if isinstance(model, wrapper) else model


def without_weights(factory: Any) -> Any:
    """Make a module without its weights, which would be random ones; a tuple of it and its State if it has one."""

    def made() -> Any:
        return make(factory, {"key": jax.random.PRNGKey(0)})[0]

    module = eqx.filter_eval_shape(made)
    if isinstance(module, eqx.Module) and _markers(module):
        return eqx.filter_eval_shape(eqx.nn.make_with_state(made))
    return module


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """A module, with its state if it has one, taken apart.

    Attributes:
      name: of the module's class.
      tree: the module, or a tuple of it and its State, in inference mode.
      own: its arrays by path, which are what is exported.
      treedef: of the tree.
      places: of the arrays among its leaves.
    """

    name: str
    tree: Any
    own: dict[Path, Any]
    treedef: Any
    places: tuple[int, ...]

    @classmethod
    def of(cls, model: Any) -> "Parts":
        """Take a module, or a tuple of one and its State, apart in inference mode.

        Raises:
          ExportError: it is neither, or a module whose State is not beside it.
        """
        tree = eqx.nn.inference_mode(model)
        module = tree[0] if isinstance(tree, tuple) else tree
        if isinstance(tree, tuple) and not (len(tree) == 2 and isinstance(tree[1], eqx.nn.State)):
            raise ExportError(
                "model: expected an Equinox Module, or a tuple of one and its State, got a tuple of "
                f"{', '.join(type(part).__name__ for part in tree)}{_of_partition(tree)}"
            )
        if not isinstance(tree, tuple) and _markers(tree):
            raise ExportError(
                f"model: expected (model, state), as eqx.nn.make_with_state returns them, got a "
                f"{type(module).__name__} alone, whose state has {few_names(_markers(tree))}"
            )
        leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
        places = tuple(i for i, (_, leaf) in enumerate(leaves) if _is_param(leaf))
        paths = (_path(leaves[i][0], tree) for i in places)
        own = {path: leaves[i][1] for i, path in zip(places, paths, strict=True)}
        return cls(type(module).__name__, tree, own, treedef, places)

    @property
    def stateful(self) -> bool:
        """Whether there is a State beside the module."""
        return isinstance(self.tree, tuple)

    def rebuilt(self, named: Params) -> Any:
        """Return the tree with other arrays."""
        leaves = jax.tree.leaves(self.tree)
        for place, path in zip(self.places, self.own, strict=True):
            leaves[place] = named["/".join(path)]
        return jax.tree.unflatten(self.treedef, leaves)

    def modules(self) -> Iterator[Any]:
        """Yield the modules in it that are not Equinox's own."""
        ahead = [self.tree]
        while ahead:
            node = ahead.pop(0)
            if isinstance(node, eqx.Module):
                ahead += [getattr(node, f.name, None) for f in dataclasses.fields(node)]
                if not type(node).__module__.startswith("equinox."):
                    yield node
            elif isinstance(node, list | tuple | dict):
                ahead += node.values() if isinstance(node, dict) else node


def _of_partition(parts: tuple[Any, ...]) -> str:
    """Return how the parts of `eqx.partition` are passed, for what may be them."""
    if len(parts) == 2 and isinstance(parts[0], eqx.Module) and type(parts[0]) is type(parts[1]):
        return "; the two parts of eqx.partition go as model and params"
    return ""


def _is_param(leaf: Any) -> bool:
    """Whether a leaf is an array that training may move: a key, and what NumPy holds, stay as they are."""
    if not isinstance(leaf, jax.ShapeDtypeStruct | jax.Array):
        return False
    return not jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _path(path: Sequence[Any], tree: Any) -> Path:
    """Return the words of a leaf's path: those of a state begin with `state`, and name its owner."""
    found = tuple(words(path))
    if not isinstance(tree, tuple):
        return found
    part, *rest = found
    if part == "0":
        return tuple(rest)
    markers = _markers(tree[0])
    place = int(rest[0])
    owner = markers[place].split(".")[1:] if place < len(markers) else [rest[0]]
    return (STATE, *owner, *rest[1:])


def _markers(module: Any) -> list[str]:
    """Return what a State calls each of its parts, in its order: the class, and the path in it."""

    def is_index(node: Any) -> bool:
        return isinstance(node, eqx.nn.StateIndex)

    indices = filter(is_index, jax.tree.leaves(module, is_leaf=is_index))
    return list(dict.fromkeys(str(index.marker) for index in indices))


def with_params(one: Parts, params: Any) -> tuple[Parts, dict[Path, Any] | None]:
    """Return a module with the params that are of its own form; or as it is, and those by path.

    Raises:
      ParamsError: they are of another form.
    """
    if params is None:
        return one, None
    if isinstance(params, SavedBy):
        return Parts.of(_deserialised(one, params)), None
    if framework_in(params) != "equinox":
        return one, flatten(as_tree(params))
    if one.stateful and isinstance(params, eqx.Module):
        params = (params, one.tree[1])
    try:
        combined = eqx.combine(params, one.tree)
    except ValueError as error:
        raise ParamsError(
            f"params: expected the arrays of {one.name} as eqx.partition returns them, got another "
            f"tree: {first_line(error)}"
        ) from error
    return Parts.of(combined), None


def _deserialised(one: Parts, saved: SavedBy) -> Any:
    """Return a tree with the arrays of an `.eqx` file, behind a line of JSON if it has one.

    Raises:
      ParamsError: it is another model's; in Equinox's own words.
    """
    file = io.BytesIO(saved.data)
    if saved.data[:1] == b"{":
        file.readline()
    try:
        tree = eqx.tree_deserialise_leaves(file, one.tree)
    except Exception as error:
        raise ParamsError(
            f"params {saved.name}: expected those of {one.name}, got: {_why_not(one, saved, error)}"
        ) from error
    if rest := len(file.read()):
        raise ParamsError(
            f"params {saved.name}: expected those of {one.name}, got {rest} bytes more; was it saved "
            "with a state, or with more layers?"
        )
    return tree


def _why_not(one: Parts, saved: SavedBy, error: BaseException) -> str:
    """Return why an `.eqx` file is not a model's: what its cause is, which Equinox's own words may lack."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    start = saved.data.partition(b"\n")[2] if saved.data[:1] == b"{" else saved.data
    if start and not start.startswith(_NPY):
        return "no file of eqx.tree_serialise_leaves"
    if any(isinstance(link, EOFError) for link in chain):
        state = ", or without its state, (model, state)" if one.stateful else ""
        return f"fewer arrays; was it saved of a smaller model{state}?"
    said = next((text for text in map(first_line, chain[1:]) if "at leaf" not in text), None)
    return said or first_line(chain[-1])
