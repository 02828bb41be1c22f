"""Params of dtypes that bundles do not have, stored in ones they have.

A complex param is stored as pairs of real numbers along a last axis of its own, a narrow
integer as an 8-bit one, a small float of another kind as its bytes. The model gets back
what it had, bit for bit: a program begins by putting such params together.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from export.calling import Adapted, Inputs, Params
from export.errors import few_names
from runtime.signature import DTYPE_BYTES
from runtime.tensors import Array

_REAL = {"complex64": "float32", "complex128": "float64"}
_WIDER = {"int2": "int8", "int4": "int8", "uint2": "uint8", "uint4": "uint8"}
_BYTES = (
    *("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fnuz"),
    *("float8_e5m2fnuz", "float8_e8m0fnu"),
)
PARAM_DTYPES = (*DTYPE_BYTES, *_REAL, *_WIDER, *_BYTES)


def with_stored_params(adapted: Adapted) -> Adapted:
    """Return a model that takes its params as they are stored, and answers the same.

    Params that are stored as another dtype are not castable.
    """
    dtypes = {name: array.dtype for name, array in adapted.params.items() if stores(array.dtype)}
    if not dtypes:
        return adapted

    def apply(named: Params, given: Inputs) -> Any:
        whole = {n: restored(named[n], dtype) for n, dtype in dtypes.items()}
        return adapted.apply({**named, **whole}, given)

    params = {name: stored(array) for name, array in adapted.params.items()}
    kinds = dict.fromkeys((d.name, params[n].dtype.name) for n, d in dtypes.items())
    notes = [
        f"{dtype} params are stored as {'pairs of ' * (dtype in _REAL)}{to}: "
        f"{few_names([n for n, d in dtypes.items() if d.name == dtype])}"
        for dtype, to in kinds
    ]
    return dataclasses.replace(
        adapted,
        apply=apply,
        params=params,
        castable=adapted.castable - dtypes.keys(),
        notes=(*adapted.notes, *notes),
    )


def stores(dtype: Any) -> bool:
    """Whether params of this dtype are stored as another."""
    return np.dtype(dtype).name in (*_REAL, *_WIDER, *_BYTES)


def stored(array: Array) -> Array:
    """Return an array as it is stored; one of a dtype that bundles have is that array.

    Args:
      array: dtype[...].

    Returns:
      float[..., 2] (real, imaginary) for a complex array, else an array of the same shape.
    """
    name = array.dtype.name
    if name in _REAL:
        return np.stack([array.real, array.imag], axis=-1)
    if name in _WIDER:
        return array.astype(_WIDER[name])
    return array.view(np.uint8) if name in _BYTES else array


def restored(array: Any, dtype: Any) -> Any:
    """Return an array of a dtype from its stored form; traceable.

    A complex array gets the width of its pairs, which are narrower where 64-bit types are off.
    """
    name = np.dtype(dtype).name
    if name in _REAL:
        take = jax.lax.index_in_dim
        return jax.lax.complex(
            take(array, 0, -1, keepdims=False), take(array, 1, -1, keepdims=False)
        )
    if name in _WIDER:
        return jax.lax.convert_element_type(array, dtype)
    return jax.lax.bitcast_convert_type(array, dtype) if name in _BYTES else array
