"""A bundle's programs, opened the plain way: compiled, and run once. Alone, it is the floor of any start.

    python -m bench.start.programs BUNDLE

Prints as JSON how long imports, compiles, params and one run of each program took, in seconds. Peers use `open_programs` in
their own environment, which has neither `runtime` nor `server`.
"""

import json
import resource
import sys
import time
from pathlib import Path

BEGIN = time.perf_counter()

import jax  # noqa: E402 (timed)
import jax.export  # noqa: E402
import ml_dtypes  # noqa: E402, F401 (NumPy then knows bfloat16)
import numpy as np  # noqa: E402

IMPORTED = time.perf_counter()


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


def open_programs(bundle: Path, cache: str | None = None) -> tuple[list, dict[str, float]]:
    """Compile each program and run it once on zeros, as servers' documentation has it for a warm-up.

    Args:
      bundle: whose programs take float and integer inputs.
      cache: folder of JAX's own cache.

    Returns:
      The first program's first answer as lists, and seconds by stage.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    seconds = {"imports": IMPORTED - BEGIN, "params": 0.0, "compiles": 0.0, "first runs": 0.0}
    clock = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[stage] += now - clock
        clock = now

    manifest = json.loads((bundle / "manifest.json").read_bytes())
    files = {file["path"]: tensors(bundle / file["path"]) for file in manifest["params"]["files"]}
    params = tuple(
        jax.device_put(files[argument["file"]][argument["name"]])
        for argument in manifest["params"]["arguments"]
    )
    jax.block_until_ready(params)
    lap("params")
    opened = []
    for program in manifest["programs"]:
        data = (bundle / program["exported"]["path"]).read_bytes()
        exported = jax.export.deserialize(bytearray(data))
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in exported.in_avals]
        inputs = tuple(np.zeros(s.shape, s.dtype) for s in shapes[len(params) :])
        opened.append((jax.jit(exported.call).lower(params, inputs).compile(), inputs))
        lap("compiles")
    answers = []
    for compiled, inputs in opened:
        answers.append(np.asarray(compiled(params, inputs)[0])[:1].tolist())
        lap("first runs")
    return answers[0], seconds


if __name__ == "__main__":
    stages = open_programs(Path(sys.argv[1]))[1]
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**stages, "cpu_seconds": time.process_time(), "peak_mib": peak_mib}))
