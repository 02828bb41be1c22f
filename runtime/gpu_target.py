"""Programs compiled for a GPU that is not here; the child of `gpu_check`.

XLA compiles for a described device as for one that is there, with its CUDA plugin and no library of
CUDA. What JAX does not promise, beside what `program_forms` lists:

* `jax.experimental.topologies.get_topology_desc` with `target_config` for the platform `cuda`

Nothing runs. How the libraries on the card do, and which of several kernels would be measured to be the
fastest there, is not found out.
"""

import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from runtime.accelerators import CARDS, Card
from runtime.bundle import open_bundle
from runtime.device import Device
from runtime.errors import first_line
from runtime.jax_settings import lifted
from runtime.program_forms import Arguments, expect_signature, read_program
from runtime.signature import bucket_name

_CUSTOM_CALL = re.compile(r'custom_call_target="([^"]+)"')


def described_device(card: Card) -> Device:
    """Return a device of a kind that is not here; programs can be compiled for it and not be run."""
    topology = topologies.get_topology_desc(
        platform="cuda",
        topology_name=card.name,
        topology="1x1x1",
        target_config=card.target_config,
    )
    return topology.devices[0]


def main(argv: Sequence[str]) -> None:
    """Compile programs of a bundle for a card; print a line of JSON before and after each.

    Args:
      argv: the bundle's directory, the card's name, and the names of the programs.
    """
    path, card, *names = argv
    device = described_device(CARDS[card])
    bundle = open_bundle(Path(path))
    manifest = bundle.manifest
    entries = {
        bucket_name(
            manifest.signature, [p.axes[axis.name] for axis in manifest.signature.axes], p.batch
        ): p
        for p in manifest.programs
    }
    for name in names:
        _print({"begin": name})
        begin = time.perf_counter()
        try:
            with lifted(x64=manifest.x64):
                arguments = Arguments.of(entries[name], manifest, device)
                exported, _, _ = read_program(bundle.read, entries[name], manifest)
                expect_signature(exported, arguments)
                jitted = jax.jit(exported.call, keep_unused=True)
                compiled = jitted.lower(arguments.params, arguments.inputs).compile()
            found = _about(compiled)
        except Exception as error:  # noqa: BLE001 (whatever it is, the program does not compile)
            found = {"reason": first_line(error) or type(error).__name__}
        _print({"program": name, "seconds": time.perf_counter() - begin, **found})


def _about(compiled: Any) -> dict[str, Any]:
    memory = compiled.memory_analysis()
    return {
        "argument_bytes": int(memory.argument_size_in_bytes),
        "temp_bytes": int(memory.temp_size_in_bytes),
        "output_bytes": int(memory.output_size_in_bytes),
        "custom_calls": sorted(set(_CUSTOM_CALL.findall(compiled.as_text()))),
    }


def _print(found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
