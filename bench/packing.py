"""What an argument costs, and what packing small params saves.

    python -m bench.packing

One model of 400 small params and MiniLM, each compiled with its params as separate
arguments, packed as the exporter packs them, and (the small one) baked into the program, which is
the floor: a call without arguments. All are called in turn; medians.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from bench.machine import heading
from export.packing import SMALL_BYTES, plan_packing

LAYERS = 200


def small_model(width: int):
    """Make a chain of 200 layers, 400 params."""
    rng = np.random.default_rng(0)
    params = {}
    for i in range(LAYERS):
        params[f"{i}/kernel"] = (rng.standard_normal((width, width)) / width**0.5).astype(
            np.float32
        )
        params[f"{i}/bias"] = rng.standard_normal(width).astype(np.float32)

    def apply(p, x):
        for i in range(LAYERS):
            x = jnp.tanh(x @ p[f"{i}/kernel"] + p[f"{i}/bias"])
        return x

    return params, apply, (np.ones((1, width), np.float32),)


def minilm():
    """Read MiniLM, 8 sentences of 32 tokens."""
    from examples.minilm.model import spec
    from export.matching import flatten

    wanted = spec()
    params = {"/".join(path): leaf for path, leaf in flatten(wanted.params).items()}
    treedef = jax.tree.structure(wanted.params)

    def apply(p, ids, mask):
        leaves = [p["/".join(path)] for path in flatten(wanted.params)]
        return wanted.model.apply(jax.tree.unflatten(treedef, leaves), ids, mask)

    ids = np.ones((8, 32), np.int32)
    return params, apply, (ids, ids)


def compiled(params, apply, inputs, small_bytes):
    """Compile with params packed up to a size; 0 leaves all apart."""
    packing = plan_packing(params, small_bytes)
    arguments = tuple(jax.device_put(a) for a in packing.pack(params).values())
    program = jax.jit(lambda a, x: apply(packing.unpack(a), *x)).lower(arguments, inputs).compile()
    return lambda: program(arguments, inputs), len(arguments)


def baked(params, apply, inputs):
    """Compile with params as constants."""
    placed = {name: jax.device_put(a) for name, a in params.items()}
    program = jax.jit(lambda x: apply(placed, *x)).lower(inputs).compile()
    return lambda: program(inputs)


def medians(calls, rounds):
    """Time calls in turn; medians in microseconds."""
    taken = [[] for _ in calls]
    for i in range(rounds + 20):
        for k, call in enumerate(calls):
            begin = time.perf_counter()
            jax.block_until_ready(call())
            if i >= 20:
                taken[k].append(time.perf_counter() - begin)
    return [statistics.median(t) * 1e6 for t in taken]


def main() -> None:
    print(heading())
    for asynchronous in (True, False):
        print(f"asynchronous dispatch {asynchronous}")
        jax.config.update("jax_cpu_enable_async_dispatch", asynchronous)
        jax.clear_caches()
        from jax.extend import backend

        backend.clear_backends()
        for width in (4, 16, 32, 64):
            model = small_model(width)
            apart, count = compiled(*model, 0)
            packed, fewer = compiled(*model, SMALL_BYTES)
            a, p, b = medians([apart, packed, baked(*model)], 600)
            print(
                f"400 params of {width}: {count} arguments {a:.0f} µs, {fewer} packed {p:.0f} µs, baked "
                f"{b:.0f} µs; packing leaves {(p - b) / (a - b):.2f} of the arguments' cost, "
                f"{p / a:.2f} of the call",
                flush=True,
            )
        model = minilm()
        apart, count = compiled(*model, 0)
        packed, fewer = compiled(*model, SMALL_BYTES)
        a, p = medians([apart, packed], 40)
        print(
            f"MiniLM 8×32: {count} arguments {a / 1e3:.1f} ms, {fewer} packed {p / 1e3:.1f} ms, ratio {p / a:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
