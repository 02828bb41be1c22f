"""64-bit numbers keep every bit on their way through JSON, the server and the program."""

import json
import sys

import numpy as np
from pytest import fixture, mark

from export import export_model
from tests.serving import post, serving

pytestmark = mark.e2e

# Neighbours that a double cannot distinguish, and the ends.
WHOLE = [2**53, 2**53 + 1, 2**53 + 2, -(2**53) - 1, 2**62 + 1, 2**63 - 1, -(2**63), 0]
REAL = [0.1, 1 / 3, 1 + 2**-52, -(2.0**53) - 2, 2.0**1023, sys.float_info.max, 2.0**-1022, 5e-5]


def pass_on(params, whole, real):
    """Return what came in, through a program of 64-bit types."""
    return {"whole": whole + params["none"], "real": real * params["one"]}


@fixture(scope="module")
def predict(tmp_path_factory):
    """The predict route of a server with an int64 and a float64 input."""
    bundle = tmp_path_factory.mktemp("exact") / "bundle"
    export_model(
        pass_on,
        {"none": np.zeros((), np.int64), "one": np.ones((), np.float64)},
        inputs=["whole:int64[_]", "real:float64[_]"],
        buckets=(1, 8),
        platforms=("cpu",),
        name="exact",
        out=bundle,
    )
    with serving("--bundle", str(bundle)) as served:
        yield f"{served.url}/predict"


def test_every_bit_comes_back(predict):
    """
    Integers beyond 2**53 and doubles of 17 digits come back as they were sent.
    """
    instances = [{"whole": w, "real": r} for w, r in zip(WHOLE, REAL, strict=True)]

    status, body = post(predict, json.dumps({"instances": instances}).encode())

    assert (status, body) == (200, {"predictions": instances})


@mark.parametrize(
    "text",
    ["9007199254740993.0", "9.007199254740993e15", "9223372036854775808", "-9223372036854775809"],
)
def test_integers_that_lost_a_bit_are_refused(predict, text):
    """
    A double for an integer beyond 2**53, and an integer beyond 64 bits, are refused.
    """
    body = f'{{"instances": [{{"whole": {text}, "real": 0.5}}]}}'

    status, answer = post(predict, body.encode())

    assert status == 400
    assert "'whole'" in answer["error"]
