"""The server, with two additions for the process that watches it.

    python -m bench.soak.served [OPTION…]

SIGUSR1 has it collect garbage, so that what is left is still referenced. With SOAK_LEAK_BYTES
it leaks: the control that shows that a soak would see it. Every batch keeps its inputs, as many
bytes, and an array on the device; every tenth a file descriptor; every twentieth a thread.
"""

import gc
import os
import runpy
import signal
import threading

import jax

from runtime.model import Model

BYTES = int(os.environ.get("SOAK_LEAK_BYTES", "0"))

_run = Model.run
_kept = []


def leak(self, program, arrays):
    # Bytes that are written are resident; zeros might not be.
    kept = [[a.copy() for a in arrays], b"x" * BYTES, jax.device_put(arrays[0], self.device)]
    _kept.append(kept)
    if len(_kept) % 10 == 0:
        kept.append(os.open(os.devnull, os.O_RDONLY))
    if len(_kept) % 20 == 0:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    return _run(self, program, arrays)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, lambda *_: gc.collect())
    if BYTES:
        Model.run = leak
    runpy.run_module("server", run_name="__main__", alter_sys=True)
