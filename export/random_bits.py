"""Random bits that a program draws, which have to be the same wherever it runs.

Threefry is defined bit by bit. What else JAX has leaves the bits to the platform's compiler.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from export.errors import ExportError
from export.jaxprs import random_sources

_SAME_EVERYWHERE = {"key<fry>"}

# How users write what jaxprs call otherwise.
_WRITTEN = {
    "key<rbg>": "rbg",
    "key<urbg>": "unsafe_rbg",
    "rng_bit_generator": "jax.lax.rng_bit_generator",
    "rng_uniform": "jax.lax.rng_uniform",
}


def refuse_foreign_bits(jaxprs: Iterable[Any], platforms: Sequence[str]) -> None:
    """Raise ExportError for random bits that each of several platforms would make differently."""
    if len(platforms) == 1:
        return
    for source in sorted({s for one in jaxprs for s in random_sources(one)} - _SAME_EVERYWHERE):
        raise ExportError(
            f"random key: expected threefry2x32 for several platforms, {', '.join(platforms)}, got "
            f"{_WRITTEN.get(source, source)}, whose bits differ between them; pin "
            "jax.random.key(0, impl='threefry2x32'), or export for one platform"
        )
