"""A bundle's programs behind mosec: the plain way, with JAX's own cache on disk.

Runs in the peers' environment, which has neither `runtime` nor `server`. BENCH_BUNDLE is the bundle, BENCH_CACHE
the folder of JAX's cache. Every program is compiled, or read from the cache, and run once on zeros before mosec
is ready, as mosec's documentation has it for a warm-up.
"""

import json
import os
from pathlib import Path

import jax
import ml_dtypes  # noqa: F401 (NumPy then knows bfloat16)
import numpy as np
from mosec import Server, Worker

BUNDLE = Path(os.environ["BENCH_BUNDLE"])


def tensors(path: Path) -> dict[str, np.ndarray]:
    """Read a safetensors file: a header of JSON, and arrays behind it."""
    data = np.memmap(path, np.uint8, "r")
    size = int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8 : 8 + size].tobytes())
    names = {"F32": "float32", "I32": "int32", "I64": "int64", "BF16": "bfloat16", "BOOL": "bool"}
    return {
        name: data[8 + size + begin : 8 + size + end]
        .view(np.dtype(names[entry["dtype"]]))
        .reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
        for begin, end in [entry["data_offsets"]]
    }


class Programs(Worker):
    """Answers with the bundle's smallest program."""

    def __init__(self) -> None:
        super().__init__()
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        jax.config.update("jax_compilation_cache_dir", os.environ["BENCH_CACHE"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        manifest = json.loads((BUNDLE / "manifest.json").read_bytes())
        files = {
            file["path"]: tensors(BUNDLE / file["path"]) for file in manifest["params"]["files"]
        }
        params = tuple(
            jax.device_put(files[argument["file"]][argument["name"]])
            for argument in manifest["params"]["arguments"]
        )
        jax.block_until_ready(params)
        self._first = None
        for program in manifest["programs"]:
            data = (BUNDLE / program["exported"]["path"]).read_bytes()
            exported = jax.export.deserialize(bytearray(data))
            shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in exported.in_avals]
            inputs = tuple(np.zeros(s.shape, s.dtype) for s in shapes[len(params) :])
            compiled = jax.jit(exported.call).lower(params, inputs).compile()
            answer = np.asarray(compiled(params, inputs)[0])
            self._first = self._first if self._first is not None else answer[:1].tolist()

    def forward(self, _data):
        return {"predictions": self._first}


if __name__ == "__main__":
    server = Server()
    server.append_worker(Programs, num=1, route="/predict")
    server.run()
