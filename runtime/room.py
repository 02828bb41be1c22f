"""Whether programs fit into a device's memory, known before one of them runs and finds out.

To find out is an error on a GPU; on a CPU the kernel ends the process without a word.
"""

import math
from collections.abc import Mapping

from runtime.errors import DoesNotFit
from runtime.manifest import Manifest
from runtime.program import Program
from runtime.signature import DTYPE_BYTES


def params_bytes(manifest: Manifest) -> int:
    """Give the bytes of the params, which all programs share."""
    arguments = manifest.params.arguments
    return sum(math.prod(a.shape) * DTYPE_BYTES[a.dtype] for a in arguments)


def needs(program: Program) -> int | None:
    """Give the bytes a program takes while it runs, params included; None if XLA does not say."""
    costs = program.costs()
    parts = ("argument_bytes", "output_bytes", "temp_bytes")
    return int(sum(costs[part] for part in parts)) if costs.keys() >= set(parts) else None


def expect_room(
    programs: Mapping[str, Program], params: int, free: int | None, at_once: int
) -> None:
    """Refuse programs that need more than is free. What nobody tells is no reason to.

    Args:
      programs: by the names of their buckets.
      params: their bytes, which are on the device already.
      free: bytes that the device has left; None if it does not say.
      at_once: runs that share it.

    Raises:
      DoesNotFit: names the least of the programs that do not fit, and the most of those that do.
    """
    if free is None:
        return
    found = {name: needs(program) for name, program in programs.items()}
    beside = {name: (n - params) * at_once for name, n in found.items() if n is not None}
    ordered = sorted(beside, key=beside.__getitem__)
    fitting = [name for name in ordered if beside[name] <= free]
    if len(fitting) < len(ordered):
        least = ordered[len(fitting)]
        smaller = f"export no bucket above {fitting[-1]}, or " if fitting else ""
        raise DoesNotFit(
            f"bucket {least}: expected {beside[least]:,} B of memory free beside the params, got "
            f"{free:,} B; {smaller}serve it where more is free"
        )
