"""The programs without a server: what the model itself can do.

    python -m bench.serving.bare BUNDLE BODIES

Reads a number of seconds a line and answers each with rows/s and the median of one call with
one row. Rows of BODIES are laid out beforehand in full batches of each program's best size,
so that nothing but programs runs while the clock does.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from runtime import load
from runtime.model import Group, Model


def best(group: Group) -> int:
    """Return the batch size with most rows a second."""
    return max(group.programs, key=lambda rows: rows / group.planner.cost(rows))


class Bare:
    """A bundle's programs, and a mix of rows for them."""

    def __init__(self, bundle: Path, bodies: Path) -> None:
        model = load(bundle)
        model.measure()
        lines = [bytes.fromhex(line.split()[1]) for line in bodies.read_text().splitlines()]
        rows = [self._arrays(model, json.loads(line)["instances"][0]) for line in lines]
        by_size: dict[tuple[int, ...], list] = {}
        for sizes, arrays in rows:
            by_size.setdefault(sizes, []).append(arrays)
        # Of each length's batches as many as the mix has rows of it.
        self._calls = []
        for sizes, members in by_size.items():
            group = model.groups[sizes]
            size = best(group)
            batch = self._batch(members, size)
            self._calls.append((len(members) / size, size, group.programs[size], batch))
        first_sizes, first = rows[0]
        group = model.groups[first_sizes]
        self._one = (group.programs[min(group.programs)], self._batch([first], min(group.programs)))
        self._model = model

    @staticmethod
    def _arrays(model: Model, instance) -> tuple:
        named = (
            instance if isinstance(instance, dict) else {model.signature.inputs[0].name: instance}
        )
        inputs = {
            spec.name: np.array([named[spec.name]], spec.dtype) for spec in model.signature.inputs
        }
        sizes = ()
        if model.signature.axes:
            length = next(iter(inputs.values())).shape[1]
            sizes = (next(s for s in model.signature.axes[0].sizes if s >= length),)
            inputs = {
                name: np.pad(array, ((0, 0), (0, sizes[0] - length)))
                for name, array in inputs.items()
            }
        return sizes, tuple(inputs.values())

    @staticmethod
    def _batch(members: list, size: int) -> tuple:
        chosen = [members[i % len(members)] for i in range(size)]
        return tuple(np.concatenate(arrays) for arrays in zip(*chosen, strict=True))

    def run(self, seconds: float) -> dict[str, float]:
        """Run the mix for some time."""
        # Programs take turns by how much of the mix is still owed to each.
        owed = [0.0] * len(self._calls)
        rows = 0
        begin = time.perf_counter()
        while (taken := time.perf_counter() - begin) < seconds:
            for i, (share, _, _, _) in enumerate(self._calls):
                owed[i] += share
            for i, (_, size, program, batch) in enumerate(self._calls):
                while owed[i] >= 1:
                    self._model.run(program, batch)
                    owed[i] -= 1
                    rows += size
        singles = []
        for _ in range(200):
            before = time.perf_counter()
            self._model.run(*self._one)
            singles.append(time.perf_counter() - before)
        return {"per_second": rows / taken, "p50_us": float(np.median(singles)) * 1e6}


def main() -> None:
    bare = Bare(Path(sys.argv[1]), Path(sys.argv[2]))
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(bare.run(float(line))), flush=True)


if __name__ == "__main__":
    main()
