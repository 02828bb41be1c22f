"""Bundles of earlier dates: read for ever, run for as long as jax promises it.

See tests/data/freeze.py. A frozen bundle is never regenerated in place.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from pytest import fixture, mark

from runtime import assert_bundle_matches_goldens, load, open_bundle
from runtime.__main__ import main
from runtime.entries import OutputFormat
from tests.data.freeze import freeze_lengths, freeze_suppressed

BUNDLES = Path(__file__).parent.parent / "data" / "bundles"

DESCRIPTION = """\
model             mood version 7, exported 2026-11-22T00:00:00Z
digest            070d1a82a5319598573eecc9f61556a826526c76221bc9085cd16b4a8b1a19f5
made with         hloserve 0.1.0, jax 0.12.0.1, jaxlib 0.12.0.1, flax 0.12.12, stablehlo 1.18.0, calling_convention 10, serialization 12
platforms         cpu, cuda; verified on cpu
input             ids: int32[_, seq] (values 0..15, padded with 15)
input             mask: int32[_, seq] (a mask)
output            mood: float32[_, 3]
output            scores: float32[_, seq, 2]
axis              seq = 4, 8
format            classification of mood (probabilities), labels negative, neutral, positive
64-bit types      off
matmul precision  highest
params            7 in 2 arguments, 0.0 MB
drift             mood: 3e-08 between buckets
drift             scores: 6e-08 between buckets
tolerance         cpu mood: 0.0135 + 0.03·|expected|
tolerance         cpu scores: 0.0227 + 0.03·|expected|
tolerance         cuda mood: 0.0135 + 0.03·|expected|
tolerance         cuda scores: 0.0227 + 0.03·|expected|
goldens           4 (16 rows)
files             13, 37,388 B, all as recorded

program  exported  stablehlo  custom calls
b1-seq4   4,736 B    3,655 B             -
b4-seq4   4,764 B    3,683 B             -
b1-seq8   4,736 B    3,655 B             -
b4-seq8   4,764 B    3,683 B             -
"""
ENTRIES = [
    ("params/Dense_0/bias", "float32", (8,), "packed/float32", 0),
    ("params/Dense_0/kernel", "float32", (8, 8), "packed/float32", 8),
    ("params/Dense_1/bias", "float32", (3,), "packed/float32", 72),
    ("params/Dense_1/kernel", "float32", (8, 3), "packed/float32", 75),
    ("params/Dense_2/bias", "float32", (2,), "packed/float32", 99),
    ("params/Dense_2/kernel", "float32", (8, 2), "packed/float32", 101),
    ("params/Embed_0/embedding", "bfloat16", (16, 8), "params/Embed_0/embedding", 0),
]
MOOD = [0.33208, 0.3388, 0.32912]


@fixture
def frozen():
    """The first bundle of format 1, of 2026-11-22."""
    return BUNDLES / "format-1_2026-11-22"


def test_frozen_bundle_is_as_it_was(frozen):
    """
    Not a byte of the frozen bundle has changed since its date.
    """
    digest = hashlib.sha256((frozen / "manifest.json").read_bytes()).hexdigest()
    bundle = open_bundle(frozen)
    for file in bundle.manifest.files:
        bundle.read(file)

    assert (
        digest
        == bundle.digest
        == "070d1a82a5319598573eecc9f61556a826526c76221bc9085cd16b4a8b1a19f5"
    )


def test_frozen_manifest_is_read(frozen, capsys):
    """
    Its manifest is read with the same content as at its date.
    """
    assert main(["inspect", str(frozen)]) == 0

    assert capsys.readouterr().out == DESCRIPTION


def test_frozen_manifest_is_written_the_same(frozen):
    """
    Today's writer writes the same bytes as then: format 1 has not drifted.
    """
    assert open_bundle(frozen).manifest.to_bytes() == (frozen / "manifest.json").read_bytes()


def test_frozen_params_are_found(frozen):
    """
    Its params lie where the manifest says, with the dtypes of then.
    """
    bundle = open_bundle(frozen)
    tensors = bundle.map(bundle.manifest.params.files[0])
    params = bundle.manifest.params

    assert [(e.name, e.dtype, e.shape, e.argument, e.offset) for e in params.entries] == ENTRIES
    assert {name: (t.dtype.name, t.shape) for name, t in tensors.items()} == {
        a.name: (a.dtype, a.shape) for a in params.arguments
    }


def test_frozen_bundle_reproduces_its_goldens(frozen):
    """
    Its programs answer as they did. To be retired when no jax promises it, see freeze.py.
    """
    assert_bundle_matches_goldens(frozen, "cpu")


def test_frozen_bundle_verifies(frozen, capsys):
    """
    Verification finds nothing wrong. To be retired when no jax promises it, see freeze.py.
    """
    assert main(["verify", str(frozen), "--device", "cpu"]) == 0

    assert capsys.readouterr().out.startswith("ok: 24 golden checks, 0 failed; ")


def test_frozen_bundle_predicts(frozen):
    """
    A sequence between two buckets gets the answer of then. To be retired when no jax promises it,
    see freeze.py.
    """
    answers = load(frozen, "cpu").predict({"ids": np.array([[1, 2, 3, 5, 8]], np.int32)})

    np.testing.assert_allclose(answers["mood"], [MOOD], atol=1e-4)
    assert answers["scores"].shape == (1, 5, 2)


@fixture
def refreshed():
    """The first bundle of format 2, of 2026-11-23: the other one, refreshed."""
    return BUNDLES / "format-2_2026-11-23"


def test_frozen_bundle_of_format_2_is_as_it_was(refreshed, frozen):
    """
    Not a byte of it has changed, its manifest is written the same, and it knows where it is from.
    """
    bundle = open_bundle(refreshed)
    bundle.check()

    assert bundle.digest == "3e789e5c17a8f490a4614725c0e6d8102841276dbb5f6c2d754a3ad9f84d9a51"
    assert bundle.manifest.to_bytes() == (refreshed / "manifest.json").read_bytes()
    assert [o.sha256 for o in bundle.manifest.refreshed_from] == [open_bundle(frozen).digest]


def test_frozen_bundle_of_format_2_reproduces_its_goldens(refreshed):
    """
    Its programs answer as they did. To be retired when no jax promises it, see freeze.py.
    """
    assert_bundle_matches_goldens(refreshed, "cpu")


@fixture
def with_lengths():
    """The first bundle of format 3, of 2026-11-28: a sum over each row's own length."""
    return BUNDLES / "format-3_2026-11-28"


def test_frozen_bundle_of_format_3_is_as_it_was(with_lengths):
    """
    Not a byte of it has changed, and its manifest is written the same.
    """
    bundle = open_bundle(with_lengths)
    bundle.check()

    assert bundle.digest == "7d3550cd4486b4ff67a3aa0a7a2601a88f10ae5009632723b51262b794ef99fe"
    assert bundle.manifest.to_bytes() == (with_lengths / "manifest.json").read_bytes()


def test_frozen_bundle_of_format_3_answers(with_lengths):
    """
    Its programs answer as they did. To be retired when no jax promises it, see freeze.py.
    """
    assert_bundle_matches_goldens(with_lengths, "cpu")

    rows = {"ids": np.array([[1, 2, 3, 5, 8]] * 2, np.int32), "lengths": np.array([2, 5], np.int32)}
    answers = load(with_lengths, "cpu").predict(rows)
    np.testing.assert_array_equal(answers["output"], [[6, 8], [38, 43]])


@fixture
def with_infinities():
    """The first bundle of format 4, of 2026-11-30: logits and scores that hold -inf."""
    return BUNDLES / "format-4_2026-11-30"


def test_frozen_bundle_of_format_4_is_as_it_was(with_infinities):
    """
    Not a byte of it has changed, and its manifest is written the same.
    """
    bundle = open_bundle(with_infinities)
    bundle.check()

    assert bundle.digest == "5a5bdeeae505e00b1ffefb5ce9a1935ca3b2a12830c9dbdaa6ff3524549aba09"
    assert bundle.manifest.to_bytes() == (with_infinities / "manifest.json").read_bytes()


def test_frozen_bundle_of_format_4_answers(with_infinities):
    """
    Its programs answer as they did. To be retired when no jax promises it, see freeze.py.
    """
    assert_bundle_matches_goldens(with_infinities, "cpu")

    answers = load(with_infinities, "cpu").predict({"ids": np.array([[8, 0, 3]], np.int32)})
    np.testing.assert_array_equal(answers["logits"], [[0.515625, -np.inf, 0.578125]])
    np.testing.assert_array_equal(answers["scores"], [[0.375, -np.inf, 0.140625]])


@mark.parametrize(
    ("freeze", "name"),
    [(freeze_lengths, "format-3_2026-11-28"), (freeze_suppressed, "format-4_2026-11-30")],
    ids=["lengths", "suppressed"],
)
def test_bundles_are_exported_in_the_format_of_then(tmp_path, monkeypatch, freeze, name):
    """
    What says nothing new is written today as at the date of a frozen bundle: in the lowest format that
    can say it, with the same keys in the same order.
    """
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")  # the script sets it

    freeze(str(tmp_path / "bundle"))

    assert _as_written(tmp_path / "bundle") == _as_written(BUNDLES / name)


def _as_written(bundle):
    """Return a manifest in its order, without what another jax, or another machine, may change."""
    value = json.loads((bundle / "manifest.json").read_bytes(), object_pairs_hook=list)
    machine = ("exporter", "tolerances", "drift", "sha256", "bytes")

    def rest(one):
        if isinstance(one, tuple):
            return one[0], rest(one[1])
        if isinstance(one, list):
            return [
                rest(item) for item in one if not (isinstance(item, tuple) and item[0] in machine)
            ]
        return one

    return rest(value)


@fixture
def with_texts():
    """The first bundle of format 4 that takes texts, of 2026-11-30: vectors of pairs of them."""
    return BUNDLES / "format-4-texts_2026-11-30"


def test_frozen_bundle_of_texts_is_as_it_was(with_texts):
    """
    Not a byte of it has changed, and its manifest is written the same.
    """
    bundle = open_bundle(with_texts)
    bundle.check()

    assert bundle.digest == "c5afebe0637b3ccc95925dd128fe2f3741afb832e7b2301b4fcfd41d44228e7e"
    assert bundle.manifest.to_bytes() == (with_texts / "manifest.json").read_bytes()
    assert bundle.manifest.passthrough == ("key",)
    assert bundle.manifest.output_format == OutputFormat(
        kind="embedding", output="vector", normalized=True
    )


def test_frozen_bundle_of_texts_answers(with_texts):
    """
    Its tokenizer returns the ids of then, and its programs answer as they did. To be retired when no jax
    promises it, see freeze.py.
    """
    assert_bundle_matches_goldens(with_texts, "cpu")

    model = load(with_texts, "cpu")
    answers = model.predict({"text": ["the cat sat", "a"], "second": ["a dog ran away . !", ""]})
    np.testing.assert_array_equal(
        answers["vector"], [[3.65625, 3.84375, 4.03125], [0.890625, 0.96875, 1.046875]]
    )
    assert [kinds.tolist() for kinds in answers["kinds"]] == [
        [0, 0, 0, 0, 1, 1, 1, 1],
        [0, 0, 0, 1],
    ]
