"""Whether programs fit into a device's memory, known before one of them runs and finds out.

To find out is an error on a GPU; on a CPU the kernel ends the process without a word.
"""

from collections.abc import Mapping

from runtime.claims import expect_free
from runtime.program import Program


def needs(program: Program) -> int | None:
    """Return the bytes a program takes while it runs, params included; None if XLA does not say."""
    costs = program.costs()
    parts = ("argument_bytes", "output_bytes", "temp_bytes")
    return int(sum(costs[part] for part in parts)) if costs.keys() >= set(parts) else None


def check_memory(
    programs: Mapping[str, Program], params: int, free: int | None, at_once: int
) -> None:
    """Refuse programs that need more than is free. What is unknown is no reason to.

    Args:
      programs: by the names of their buckets.
      params: their bytes, which are on the device already.
      free: bytes that the device has left; None if it does not say.
      at_once: runs that share it.

    Raises:
      DoesNotFit: names the smallest of the programs that do not fit, and the largest of those that do.
    """
    if free is None:
        return
    found = {name: needs(program) for name, program in programs.items()}
    expect_free({name: (n - params) * at_once for name, n in found.items() if n is not None}, free)
