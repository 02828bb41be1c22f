"""Small params packed into one argument per dtype, and cut out of it again."""

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.packing import SMALL_BYTES, plan_packing
from runtime.entries import Param
from runtime.tensors import ALIGNMENT

DTYPES = [np.dtype(d) for d in ("bool", "int8", "int32", "uint64", "float16", "float32")]
DTYPES.append(np.dtype(ml_dtypes.bfloat16))


def array(seed, shape, dtype):
    """Draw zeros and ones, which every dtype has."""
    return np.random.default_rng(seed).integers(0, 2, shape).astype(dtype)


@st.composite
def trees(draw):
    """Draw named arrays of few shapes and dtypes, scalars and empty ones among them."""
    shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
    kinds = draw(st.lists(st.tuples(shapes, st.sampled_from(DTYPES)), max_size=12))
    return {f"layer/{i}": array(i, shape, dtype) for i, (shape, dtype) in enumerate(kinds)}


@pytest.mark.property
@settings(deadline=None)
@given(params=trees(), small_bytes=st.sampled_from([0, 8, 64, SMALL_BYTES]))
def test_unpacking_gives_what_was_packed(params, small_bytes):
    """Unpacking returns every param under its name, with its bytes, shape and dtype."""
    packing = plan_packing(params, small_bytes)
    arguments = packing.pack(params)
    with jax.enable_x64(True), jax.disable_jit():
        back = packing.unpack([arguments[name] for name in packing.arguments])

    assert list(back) == list(params)
    for name, expected in params.items():
        assert (back[name].dtype, back[name].shape) == (expected.dtype, expected.shape)
        assert np.asarray(back[name]).tobytes() == expected.tobytes()


@pytest.mark.property
@given(params=trees(), small_bytes=st.sampled_from([0, 8, 64, SMALL_BYTES]))
def test_only_small_params_of_one_dtype_share_an_argument(params, small_bytes):
    """A packed argument has one dtype, whole cache lines, and no param over the limit."""
    packing = plan_packing(params, small_bytes)
    arguments = packing.pack(params)

    assert tuple(arguments) == packing.arguments
    for entry in packing.entries:
        inside = [e for e in packing.entries if e.argument == entry.argument]
        assert arguments[entry.argument].dtype.name == entry.dtype
        if len(inside) > 1:
            assert entry.argument == f"packed/{entry.dtype}"
            assert params[entry.name].nbytes <= small_bytes
            assert arguments[entry.argument].nbytes % ALIGNMENT == 0
    sizes = [a.nbytes for name, a in arguments.items() if not name.startswith("packed/")]
    assert sum(1 for size in sizes if size <= small_bytes) <= len(DTYPES)


def test_the_threshold_is_inclusive():
    """An array of exactly the limit is packed, one of a byte more is not."""
    params = {
        "a": np.zeros(SMALL_BYTES, np.int8),
        "b": np.zeros(SMALL_BYTES + 1, np.int8),
        "c": np.zeros(1, np.int8),
    }
    assert plan_packing(params).arguments == ("packed/int8", "b")


def test_a_lone_small_param_is_not_packed():
    """One small array of its dtype stays an argument of its own."""
    params = {"scale": np.ones(2, np.float32), "count": np.ones(2, np.int32)}
    packing = plan_packing(params)

    assert packing.arguments == ("scale", "count")
    assert all(e.argument == e.name and e.offset == 0 for e in packing.entries)


def test_params_keep_the_models_order():
    """Arguments are in the order of their first params; offsets count elements."""
    params = {
        "big": np.zeros((100, 100), np.float32),
        "bias": np.zeros(3, np.float32),
        "half": np.zeros(2, np.float16),
        "scale": np.zeros((2, 2), np.float32),
        "more": np.zeros(4, np.float16),
    }
    packing = plan_packing(params)

    assert packing.arguments == ("big", "packed/float32", "packed/float16")
    assert packing.entries == (
        Param(name="big", dtype="float32", shape=(100, 100), argument="big"),
        Param(name="bias", dtype="float32", shape=(3,), argument="packed/float32"),
        Param(name="half", dtype="float16", shape=(2,), argument="packed/float16"),
        Param(name="scale", dtype="float32", shape=(2, 2), argument="packed/float32", offset=3),
        Param(name="more", dtype="float16", shape=(4,), argument="packed/float16", offset=2),
    )
    assert {n: a.shape for n, a in packing.pack(params).items()} == {
        "big": (100, 100),
        "packed/float32": (16,),
        "packed/float16": (32,),
    }


def test_a_model_of_many_small_params_has_few_arguments(export):
    """The bundle names each param and in place, and the model answers from there."""
    params = {f"layer{i}": {"w": np.full(3, i, np.float32), "n": np.int32(i)} for i in range(20)}

    def model(params, x):
        for layer in params.values():
            x = x + layer["w"] * layer["n"]
        return x

    made = export(model, params)
    x = np.ones((2, 3), np.float32)

    np.testing.assert_allclose(made.answer(x=x), model(params, x))
    assert [(a.name, a.shape) for a in made.manifest.params.arguments] == [
        ("packed/int32", (32,)),
        ("packed/float32", (64,)),
    ]
    assert len(made.manifest.params.entries) == 40
    stored = made.model.bundle.map(made.manifest.params.files[0])
    for entry in made.manifest.params.entries:
        size = int(np.prod(entry.shape))
        part = stored[entry.argument][entry.offset : entry.offset + size]
        layer, leaf = entry.name.split("/")
        np.testing.assert_array_equal(part.reshape(entry.shape), params[layer][leaf])


def test_a_param_named_as_a_packed_argument_is_refused(refusal):
    """A param called `packed/float32` would be taken for the argument of that name."""
    params = {"packed/float32": np.ones(3, np.float32), "a": np.ones(3, np.float32)}
    message = refusal(lambda p, x: x + p["a"] + p["packed/float32"], params)
    assert message == "params: expected no param named 'packed/…', got 'packed/float32'"
