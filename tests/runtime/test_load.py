"""Loading: what is taken for a bundle and for a device, and what is refused."""

import json

import jax
import numpy as np
from pytest import mark, param, raises

from export import export_model
from runtime import (
    BundleError,
    DeviceUnavailable,
    IncompatibleProgram,
    IntegrityError,
    load,
    open_bundle,
)
from runtime.device import platform_of
from runtime.tensors import read_tensors, write_tensors


def scale(params, x):
    """Use a param of each dtype, so that each is an argument of its own."""
    return (x + params["shift"]) * params["factor"] + params["offset"]


@mark.parametrize(
    ("limit", "files"),
    [
        param(1, [f"params-0000{i}-of-00003.safetensors" for i in (1, 2, 3)], id="tiny"),
        param(15, [f"params-0000{i}-of-00002.safetensors" for i in (1, 2)], id="middling"),
        param(1000, ["params.safetensors"], id="large"),
    ],
)
def test_params_of_several_files_are_loaded(tmp_path, monkeypatch, limit, files):
    """
    Params beyond the size limit of a file are written to several, and read back equal.
    """
    monkeypatch.setattr("export.writing.SHARD_BYTES", limit)
    params = {
        "factor": np.array([2.0, 3.0], np.float32),
        "offset": np.array([0.5, 0.25], np.float16),
        "shift": np.array([1, -1], np.int16),
    }
    x = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)

    export_model(
        scale,
        params,
        inputs=["x:float32[_,2]"],
        buckets=(1,),
        platforms=("cpu",),
        out=tmp_path / "b",
    )

    model = load(tmp_path / "b")
    assert [file.path for file in model.manifest.params.files] == files
    assert {p.dtype.name: p.tolist() for p in model.params} == {
        array.dtype.name: array.tolist() for array in params.values()
    }
    assert model.predict({"x": x})["output"].tolist() == [[4.5, 3.25], [8.5, 9.25]]


def test_open_bundle_can_be_loaded(classifier_bundle):
    """
    A bundle that was opened already is loaded as it is, and reports its progress.
    """
    bundle = open_bundle(classifier_bundle)
    steps = []

    model = load(bundle, jax.local_devices(backend="cpu")[0], progress=steps.append)

    assert model.bundle is bundle
    assert sorted(steps[:3]) == [
        "compiling programs/b1.exported (1/3)",
        "compiling programs/b2.exported (2/3)",
        "compiling programs/b4.exported (3/3)",
    ]
    assert steps[3:] == ["loading params", "warming up"]


@mark.parametrize(
    ("device", "reason"),
    [
        ("cpu:7", "no such index)"),
        ("cpu:-1", "no such index)"),
        ("cpu:x", "no such index)"),
        ("abacus", ""),
        ("rocm", ""),
    ],
)
def test_absent_device_is_named(classifier_bundle, device, reason):
    """
    A device that is not there is an error that lists those that are; nothing else is taken.
    """
    there = [f"{platform_of(d)}:{d.id}" for d in jax.local_devices()]

    with raises(DeviceUnavailable) as caught:
        load(classifier_bundle, device)

    assert str(caught.value).startswith(
        f"device {device!r}: expected one of {there}, got none ({reason}"
    )


@mark.parametrize(("device", "kind"), [(0, "int"), (["cpu"], "list"), (b"cpu", "bytes")])
def test_device_of_another_type_is_refused(classifier_bundle, device, kind):
    """
    A device is a name or a jax device; a number is not taken for an index.
    """
    with raises(DeviceUnavailable) as caught:
        load(classifier_bundle, device)

    assert str(caught.value) == (
        "device: expected None, a name such as 'cpu' or 'cuda:1', or a jax device, got " + kind
    )


@mark.parametrize(("path", "kind"), [(None, "NoneType"), (3, "int"), (["bundle"], "list")])
def test_bundle_of_another_type_is_refused(path, kind):
    """
    What is no path at all is distinguished from a path where nothing is.
    """
    with raises(BundleError) as caught:
        load(path)

    assert str(caught.value) == f"bundle: expected the path of a directory, got {kind}"


def test_manifest_is_not_the_bundle(classifier_bundle):
    """
    The path of a bundle's manifest is refused with its directory.
    """
    path = classifier_bundle / "manifest.json"

    with raises(BundleError) as caught:
        load(path)

    assert str(caught.value) == (
        f"bundle {path}: expected a directory, got a file; name the directory that holds it"
    )


def test_platform_mismatch_names_both_sides(cuda_bundle):
    """
    For a bundle for CUDA on a CPU the error names both platforms, and what to do.
    """
    with raises(IncompatibleProgram) as caught:
        load(cuda_bundle, "cpu")

    assert str(caught.value) == (
        f"bundle {cuda_bundle}: needs platform cuda, this device is cpu; export with "
        "--platforms cpu, or name another device"
    )


def test_swapped_programs_are_refused(classifier_bundle, copy_of, redigest):
    """
    A program for another bucket is refused at loading, even with the digests recomputed.
    """
    bundle = copy_of(classifier_bundle)
    (bundle / "programs/b2.exported").write_bytes((bundle / "programs/b4.exported").read_bytes())
    redigest(bundle)

    with raises(IncompatibleProgram) as caught:
        load(bundle, "cpu")

    version = jax.__version__
    assert str(caught.value) == (
        f"programs/b2.exported: exported by jax {version}, this is jax {version} on cpu: its "
        "arguments are not those the manifest describes; re-export the model with a jax near "
        "this one"
    )


def test_signature_that_lies_about_outputs_is_refused(classifier_bundle, copy_of):
    """
    Outputs are compared with the signature too, so that answers are what callers were promised.
    """
    bundle = copy_of(classifier_bundle)
    manifest = bundle / "manifest.json"
    manifest.write_text(
        manifest.read_text().replace(
            '"name": "output", "dtype": "float32"', '"name": "output", "dtype": "float16"'
        )
    )

    with raises(IncompatibleProgram) as caught:
        load(bundle, "cpu")

    assert "its outputs are not those the manifest describes" in str(caught.value)


def of_later_bytecode(program):
    """Raise the version of the MLIR bytecode inside a program, as a later jax would."""
    place = program.index(b"ML\xefR") + 4
    return program[:place] + bytes([60 << 1 | 1]) + program[place + 1 :]


@mark.parametrize(
    "replace",
    [param(of_later_bytecode, id="later-jax"), param(lambda program: program[:0], id="empty")],
)
def test_program_outside_of_jaxs_window_is_refused(classifier_bundle, copy_of, redigest, replace):
    """
    What this jax can read in neither form is refused with both versions of jax in the message.
    """
    bundle = copy_of(classifier_bundle)
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    manifest["exporter"]["jax"] = "99.0.0"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    for form in ("exported", "stablehlo"):
        program = bundle / f"programs/b1.{form}"
        program.write_bytes(replace(program.read_bytes()))
    redigest(bundle)

    with raises(IncompatibleProgram) as caught:
        load(bundle, "cpu")

    message = str(caught.value)
    both = f"programs/b1.exported: exported by jax 99.0.0, this is jax {jax.__version__} on cpu: "
    assert message.startswith(both)
    assert message.endswith("; re-export the model with a jax near this one")


@mark.parametrize(
    ("change", "message"),
    [
        param(
            lambda tensors: tensors.pop("packed/float32"),
            "params.safetensors: expected a tensor 'packed/float32', got none",
            id="missing",
        ),
        param(
            lambda tensors: tensors.update({"packed/float32": np.zeros(79, np.float32)}),
            "params.safetensors: 'packed/float32': expected float32[80], got float32[79]",
            id="other-shape",
        ),
        param(
            lambda tensors: tensors.update({"packed/float32": np.zeros(80, np.int32)}),
            "params.safetensors: 'packed/float32': expected float32[80], got int32[80]",
            id="other-dtype",
        ),
        param(
            lambda tensors: tensors.update({"more": np.zeros(1)}),
            "params: expected no tensor 'more', got one",
            id="extra",
        ),
    ],
)
def test_params_are_held_against_the_manifest(
    classifier_bundle, copy_of, redigest, change, message
):
    """
    Params of other names, shapes or dtypes are refused, even with the digests recomputed.
    """
    bundle = copy_of(classifier_bundle)
    path = bundle / "params.safetensors"
    tensors = read_tensors(path, path.read_bytes())
    change(tensors)
    with path.open("wb") as f:
        write_tensors(f, tensors)
    redigest(bundle)

    with raises(IntegrityError) as caught:
        load(bundle, "cpu")

    assert str(caught.value) == message
