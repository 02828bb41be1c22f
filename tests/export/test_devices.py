"""Models that name devices: several are refused before anything is lowered, one is fine."""

import json
import subprocess
import sys

from pytest import fixture, mark

from tests.serving import ROOT

pytestmark = mark.e2e

CONSTRAINT = "jax.lax.with_sharding_constraint over 8 devices (mesh data=8)"
MAPPED = "jax.shard_map or jax.pmap over 8 devices"
LEAVE_OUT = "leave it out for inference, or give it a mesh of one device"
ANOTHER = "export a function that computes the same on one device"
# What was seen of each model, and what to do.
REFUSALS = {
    "constraint": (CONSTRAINT, LEAVE_OUT),
    "constraint in a loop": (CONSTRAINT, LEAVE_OUT),
    "shard_map": (f"{MAPPED} (mesh data=8)", ANOTHER),
    "pmap": (MAPPED, ANOTHER),
    "jit": ("jax.jit with shardings over 8 devices (mesh data=8)", LEAVE_OUT),
    "device_put": ("jax.device_put over 8 devices (mesh data=8)", LEAVE_OUT),
    "array": (
        "an array of the model's code over 8 devices (mesh data=8)",
        "pass it through jax.device_get first",
    ),
    "legacy mesh": (CONSTRAINT, LEAVE_OUT),
    "mesh": (CONSTRAINT, LEAVE_OUT),
    "shard_map, mesh": (f"{MAPPED} (mesh data=8)", ANOTHER),
    "reshard, explicit mesh": ("jax.sharding.reshard over 8 devices (mesh data=8)", LEAVE_OUT),
}


@fixture(scope="module")
def outcomes():
    """What became of each model, by group; found by one process that has eight devices."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.export.on_eight_devices"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # JAX itself prints where a sharding does not divide.
    return json.loads(done.stdout.splitlines()[-1])


@mark.parametrize("group", ["eight", "eight, few rows"])
@mark.parametrize("name", REFUSALS)
def test_several_devices_are_refused_by_name(outcomes, group, name):
    """Whatever puts a computation on eight devices is named, whether or not its rows divide."""
    seen, advice = REFUSALS[name]

    assert outcomes[group][name] == (
        f"model: expected a computation on 1 device, got {seen}; {advice}"
    )


@mark.parametrize("group", ["one", "another one"])
def test_one_device_is_fine(outcomes, group):
    """The same models over one device, JAX's default or another, are exported and answer."""
    assert outcomes[group] == {name: [4.0, 4.0, 4.0] for name in REFUSALS}


def test_a_mesh_that_a_model_does_not_need_is_lifted(outcomes):
    """Inside a mesh of eight, and with params that lie on eight devices, others are exported."""
    assert set(map(tuple, outcomes["unaffected"].values())) == {(4.0, 4.0, 4.0)}
