"""What `test_replicas.py` asks of a process with four CPU devices. Prints one JSON object.

python -m tests.runtime.on_four_devices CASE BUNDLE FOLDER
"""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import numpy as np

import runtime.replicas
from runtime.bundle import open_bundle
from runtime.device import find_devices, named
from runtime.errors import BundleError, ExecutionError
from runtime.executable_cache import ExecutableCache
from runtime.model import Model
from runtime.program import count_compiles
from runtime.startup import start

NAMES = [f"cpu:{i}" for i in range(4)]


def begun(bundle, folder, devices="all", **more):
    """Start a bundle on these devices, without a process of its own first."""
    cache = ExecutableCache(Path(folder))
    return start(open_bundle(bundle), "cpu", devices=devices, cache=cache, **more)


def answers(model, rng):
    """Return the bytes that each program answers random rows with."""
    found = []
    for sizes, group in model.groups.items():
        for batch, program in group.programs.items():
            inputs = [
                np.where(rng.random(blank.shape) < 0.5, 1, 0).astype(blank.dtype)
                for blank in model.blank(batch, sizes)
            ]
            found += [output.tobytes().hex() for output in model.run(program, tuple(inputs))]
    return found


def alike(bundle, folder):
    """Every program answers the same bits on each device, and each is compiled once for all."""
    found = {}
    for isolated in (False, True):
        compiled = count_compiles()
        started = begun(bundle, f"{folder}/{isolated}", isolated=isolated)
        models = (started.model, *started.replicas)
        each = [answers(model, np.random.default_rng(5)) for model in models]
        found[str(isolated)] = {
            "devices": [model.device_name for model in models],
            "runs on": [
                sorted({named(d) for param in model.params for d in param.devices()})
                for model in models
            ],
            "alike": all(one == each[0] for one in each),
            "compiled": started.compiled,
            "compiles": compiled(),
            "programs": sum(len(group.programs) for group in started.model.groups.values()),
            "plans": len({str(one.groups[next(iter(one.groups))].planner.costs) for one in models}),
        }
    return found


def no_bytes(bundle, folder):
    """Where programs have no bytes, each device compiles its own."""
    runtime.replicas.Copies.executable = lambda *_: None
    compiled = count_compiles()
    started = begun(bundle, folder, "1,3", isolated=False)
    models = (started.model, *started.replicas)
    return {"devices": [one.device_name for one in models], "compiles": compiled()}


def wrong(bundle, folder):
    """One device computes wrongly, another fails."""
    run = Model.run

    def altered(self, program, inputs):
        outputs = run(self, program, inputs)
        return tuple(o + 1 for o in outputs) if self.device_name == "cpu:2" else outputs

    Model.run = altered
    failed = begun(bundle, folder, isolated=False).failed

    def failing_on(name):
        def fails(self, program, inputs):
            if self.device_name == name:
                raise ExecutionError("program b1: INTERNAL: an illegal address was read")
            return run(self, program, inputs)

        return fails

    errors = []
    for name in ("cpu:3", "cpu:0"):
        Model.run = failing_on(name)
        try:
            begun(bundle, folder, isolated=False)
        except ExecutionError as error:
            errors.append(str(error))
    return {"failed": failed, "errors": errors}


def memory(bundle, folder):
    """One device has no memory left for the programs."""
    from runtime import loading, model

    def free(device):
        return 16 if named(device) == "cpu:1" else None

    loading.free_memory = model.free_memory = free
    try:
        begun(bundle, folder, isolated=False)
    except BundleError as error:
        return {"error": str(error)}
    return {}


def scaled(bundle, _folder):
    """What a bench of three devices shows, for machines and for people."""
    from runtime.__main__ import main

    out = {}
    for form in ([], ["--json"]):
        written = io.StringIO()
        with contextlib.redirect_stdout(written), contextlib.redirect_stderr(io.StringIO()):
            status = main(
                ["bench", bundle, "--devices", "0,2,3", "--device=cpu", "--seconds=0", *form]
            )
        assert status == 0
        out["".join(form)] = written.getvalue()
    return out


def names(_bundle, _folder):
    """Devices by their indexes, by platform, by name, and such as are not there."""

    def found(*asked):
        try:
            return [named(device) for device in find_devices(*asked)]
        except BundleError as error:
            return str(error)

    asked = [("cpu", "all"), (None, "all"), ("cpu", "2,0"), ("", "3"), ("cpu:1", "all")]
    asked += [("cpu:1", ""), (jax.devices()[2], "all"), ("cpu", "4"), ("cpu", "1,9")]
    return {"found": [found(*one) for one in asked]}


if __name__ == "__main__":
    case, *where = sys.argv[1:]
    print(json.dumps(globals()[case](*where)))
