"""How many threads programs compute with."""

import os
import subprocess
import sys

from pytest import mark

from server.cpu_limits import cores_here, share

MACHINE = len(os.sched_getaffinity(0))


@mark.parametrize(
    ("files", "expected"),
    [
        ({}, MACHINE),
        ({"cpu.max": "max 100000\n"}, MACHINE),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "110000 100000\n"}, min(2, MACHINE)),
        ({"cpu.max": "99900000 100000\n"}, MACHINE),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, MACHINE),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
    ],
)
def test_a_container_has_the_cores_of_its_limit(files, expected, tmp_path):
    """
    A limit counts as so many cores, rounded up and never more than there are; without one all
    cores of the machine do.
    """
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    assert cores_here(tmp_path) == expected


@mark.parametrize(
    ("processes", "cores", "threads"), [(1, 2, 2), (2, 2, 1), (2, 5, 2), (4, 2, 1), (1, 1, 1)]
)
def test_processes_share_the_cores(processes, cores, threads):
    """
    Each process has its part of the cores, and at least one.
    """
    assert share(processes, cores) == threads


_COUNT = """
from pathlib import Path

from runtime.program import set_cpu_threads

threads = lambda: [t for t in Path("/proc/self/task").iterdir()
                   if (t / "comm").read_text().startswith("tf_XLAEigen")]
set_cpu_threads({wanted})
import jax.numpy as jnp
jnp.ones(3).block_until_ready()
print(len(threads()))
"""


@mark.parametrize(
    ("wanted", "environment", "threads"), [(1, {}, 1), (3, {}, 3), (1, {"NPROC": "2"}, 2)]
)
def test_xla_computes_with_the_configured_number_of_threads(wanted, environment, threads):
    """
    XLA's pool is as large as the server says, or as NPROC in its environment says.
    """
    usual = {name: value for name, value in os.environ.items() if name != "NPROC"}
    ran = subprocess.run(
        [sys.executable, "-c", _COUNT.format(wanted=wanted)],
        env={**usual, **environment},
        capture_output=True,
        text=True,
        check=True,
    )

    assert int(ran.stdout) == threads
