"""Any manifest survives writing and reading, and any bytes are read or refused."""

import json
import math

import hypothesis.strategies as st
from hypothesis import given, settings
from pytest import mark, raises

from runtime.entries import (
    PLATFORMS,
    SCORES,
    Argument,
    File,
    Golden,
    OutputFormat,
    Param,
    Params,
    ProgramEntry,
    Tolerance,
)
from runtime.errors import ManifestError, UnsupportedFormat
from runtime.manifest import Manifest
from runtime.signature import DTYPE_BYTES, Axis, Signature, TensorSpec, limits
from tests.runtime.test_manifest import changed

names = st.text(min_size=1, max_size=12)


numbers = st.floats(allow_nan=False, allow_infinity=False)


plain = st.text("abcdefghijklmnopqrstuvwxyz0123456789_", min_size=1, max_size=8)


increasing = st.sets(st.integers(1, 1000), min_size=1, max_size=3).map(
    lambda sizes: tuple(sorted(sizes))
)


@st.composite
def tensors(draw, name, axes, *, is_input):
    """Draw a legal TensorSpec."""
    dtype = draw(st.sampled_from(sorted(DTYPE_BYTES)))
    dims = st.integers(0, 8) | st.sampled_from(axes) if axes else st.integers(0, 8)
    shape = ("_", *draw(st.lists(dims, max_size=3)))
    low, high = limits(dtype)
    values = numbers if math.isinf(low) else st.integers(int(low), int(high))
    if not is_input:
        return TensorSpec(name=name, dtype=dtype, shape=shape)
    first, second = sorted(draw(st.tuples(values, values)))
    ranged = not math.isinf(low)
    return TensorSpec(
        name=name,
        dtype=dtype,
        shape=shape,
        pad=draw(values),
        minimum=draw(st.none() | st.just(first)) if ranged else None,
        maximum=draw(st.none() | st.just(second)) if ranged else None,
    )


@st.composite
def manifests(draw):
    """Draw a legal Manifest."""
    paths = iter(draw(st.lists(plain, unique=True, min_size=40, max_size=40)))

    def file():
        digest = draw(st.binary(min_size=32, max_size=32)).hex()
        return File(path=f"d/{next(paths)}", bytes=draw(st.integers(0, 2**60)), sha256=digest)

    axis_names = draw(st.lists(plain.filter(lambda n: n != "_"), unique=True, max_size=2))
    axes = tuple(Axis(name=name, sizes=draw(increasing)) for name in axis_names)
    inputs = tuple(
        draw(tensors(name, axis_names, is_input=True))
        for name in draw(st.lists(names, unique=True, min_size=1, max_size=3))
    )
    for dim in {dim for spec in inputs for dim in spec.shape[1:] if isinstance(dim, str)}:
        if draw(st.booleans()):
            inputs += (TensorSpec(name=f"\1{dim}", dtype="int32", shape=("_",), maximum=dim),)
    outputs = tuple(
        draw(tensors(name, axis_names, is_input=False))
        for name in draw(st.lists(names, unique=True, min_size=1, max_size=2))
    )
    if axis_names:
        mask = TensorSpec(name="\0", dtype="bool", shape=("_", axis_names[0]), mask=True)
        inputs = (*inputs, mask)
    buckets = draw(increasing)[:2]
    axes = tuple(
        Axis(name=a.name, sizes=a.sizes[:2], minimum=draw(st.integers(0, a.sizes[0]))) for a in axes
    )
    combinations = [{}]
    for axis in axes:
        combinations = [c | {axis.name: size} for c in combinations for size in axis.sizes]
    params = file()
    argument = Argument(name=draw(names), dtype="float32", shape=(8,), file=params.path)
    platforms = tuple(draw(st.lists(st.sampled_from(PLATFORMS), unique=True, min_size=1)))
    positive = st.floats(0, 1e300)
    return Manifest(
        name=draw(plain.filter(lambda n: n[0] != "_")),
        version=str(draw(st.integers(0, 10**17))),
        created=draw(st.text()),
        exporter=draw(st.dictionaries(names, st.text(), max_size=3)),
        platforms=platforms,
        verified=tuple(draw(st.lists(st.sampled_from(platforms), unique=True))),
        x64=draw(st.booleans()),
        matmul_precision=draw(st.none() | st.text()),
        signature=Signature(inputs=inputs, outputs=outputs, axes=axes),
        buckets=buckets,
        output_format=OutputFormat(
            kind="softmax", output=outputs[0].name, scores=draw(st.sampled_from(SCORES))
        ),
        tolerances={
            platform: {o.name: Tolerance(atol=draw(positive), rtol=draw(positive)) for o in outputs}
            for platform in platforms
        },
        drift={o.name: draw(numbers) for o in outputs},
        row_mixing=tuple(draw(st.lists(st.text(), max_size=2))),
        params=Params(
            files=(params,),
            arguments=(argument,),
            entries=(
                Param(
                    name=draw(names),
                    dtype="float32",
                    shape=(2, 3),
                    argument=argument.name,
                    offset=draw(st.integers(0, 2)),
                ),
            ),
        ),
        programs=tuple(
            ProgramEntry(
                batch=batch,
                axes=sizes,
                exported=file(),
                stablehlo=file(),
                custom_calls=tuple(draw(st.lists(names, max_size=2))),
            )
            for batch in buckets
            for sizes in combinations
        ),
        goldens=tuple(
            Golden(
                axes={axis.name: draw(st.integers(axis.minimum, axis.sizes[0])) for axis in axes},
                rows=batch,
                file=file(),
            )
            for batch in buckets
        ),
    )


@mark.property
@settings(max_examples=50)
@given(manifests())
def test_any_manifest_survives_writing_and_reading(manifest):
    """
    Writing and reading returns the same manifest, and writing it again the same bytes.
    """
    data = manifest.to_bytes()

    assert Manifest.from_bytes(data) == manifest
    assert Manifest.from_bytes(data).to_bytes() == data


@mark.property
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_read_or_refused(data):
    """
    No document raises anything but the errors that the runtime documents.
    """
    with raises((ManifestError, UnsupportedFormat)):
        Manifest.from_bytes(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@mark.property
@given(data=st.data())
def test_any_replaced_value_is_read_or_refused(data):
    """
    Whatever replaces a value, reading returns a manifest or raises a documented error.
    """
    manifest = data.draw(manifests())
    value = json.loads(manifest.to_bytes())
    here, place = value, []
    while isinstance(here, dict | list) and here:
        keys = sorted(here) if isinstance(here, dict) else range(len(here))
        place.append(data.draw(st.sampled_from(keys)))
        here = here[place[-1]]
        if data.draw(st.integers(0, 4)) == 0:
            break
    broken = changed(value, tuple(place), data.draw(json_values))

    try:
        again = Manifest.from_bytes(json.dumps(broken).encode())
    except (ManifestError, UnsupportedFormat):
        return
    assert Manifest.from_bytes(again.to_bytes()) == again
