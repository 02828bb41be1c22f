"""Programs in two forms: which one is taken, which custom calls they make, what is refused."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
from pytest import fixture, mark, raises

from runtime import IncompatibleProgram, IntegrityError, load
from runtime.__main__ import main
from runtime.customcalls import ALLOWED
from runtime.stablehlo import custom_calls
from tests.altered_bundles import altered, expired, with_expired_programs

ROWS = {"x": np.arange(12, dtype=np.float32).reshape(3, 4)}


@fixture(scope="session")
def old_bundle(classifier_bundle, tmp_path_factory):
    """The classifier as if exported years ago: no jax reads its wrappers any more."""
    return with_expired_programs(classifier_bundle, tmp_path_factory.mktemp("old") / "bundle")


def orthogonal(params, x):
    """Multiply by an orthogonal basis, which LAPACK finds."""
    return x @ jnp.linalg.qr(params["kernel"])[0]


@fixture(scope="session")
def calling_bundle(exported):
    """x float32[_, 3] times a basis, by custom calls; bucket 1."""
    kernel = {"kernel": np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)}
    return exported(
        "calling",
        orthogonal,
        kernel,
        inputs=["x:float32[_,3]"],
        buckets=(1,),
        platforms=("cpu",),
    )


def of_later_bytecode(program):
    """Raise the version of the MLIR bytecode inside a program, as a later jax would."""
    place = program.index(b"ML\xefR") + 4
    return program[:place] + bytes([60 << 1 | 1]) + program[place + 1 :]


def of_jax(version):
    """Claim that another jax wrote the bundle."""
    return {"manifest.json": lambda manifest: manifest["exporter"].update(jax=version)}


def test_expired_program_is_taken_from_its_stablehlo(old_bundle, classifier):
    """
    Where jax refuses a wrapper as expired, the StableHLO beside it answers the same, bit for bit.
    """
    model = load(old_bundle, "cpu")

    programs = [p for group in model.groups.values() for p in group.programs.values()]
    assert all("backward-compatibility window" in program.fallback for program in programs)
    np.testing.assert_array_equal(model.predict(ROWS)["output"], classifier.predict(ROWS)["output"])


def test_fallback_is_said(old_bundle):
    """
    Loading logs which program was not read, why, and what was used instead.
    """
    said = []

    load(old_bundle, "cpu", progress=said.append)

    (line,) = [s for s in said if s.startswith("programs/b1.exported is not read by this jax")]
    assert "older than the 6-month" in line
    assert line.endswith("; took programs/b1.stablehlo")


def test_expired_bundle_verifies(old_bundle, capsys):
    """
    Goldens are run through what was taken, as through any other program.
    """
    assert main(["verify", str(old_bundle), "--device", "cpu"]) == 0

    assert capsys.readouterr().out.startswith("ok: ")


def test_expired_64_bit_program_keeps_its_bits(wide_bundle, tmp_path):
    """
    The StableHLO of a program with 64-bit types is wrapped with these types on.
    """
    model = load(with_expired_programs(wide_bundle, tmp_path / "old"), "cpu")

    answer = model.predict({"x": np.array([[2**40 + 5, 1]], np.int64)})

    assert answer["output"].tolist() == [[2**40 + 12, 8]]


@mark.parametrize("broken", [of_later_bytecode, lambda _: b""])
def test_program_of_another_jax_is_taken_from_its_stablehlo(classifier_bundle, tmp_path, broken):
    """
    A wrapper, or the StableHLO inside, that another jax wrote and this one cannot read is passed over.
    """
    changes = {"programs/b1.exported": broken, **of_jax("99.0.0")}

    model = load(altered(classifier_bundle, tmp_path / "b", changes), "cpu")

    (group,) = model.groups.values()
    assert [bool(program.fallback) for program in group.programs.values()] == [True, False, False]


def test_calling_convention_outside_of_jaxs_window_is_passed_over(classifier_bundle, monkeypatch):
    """
    A calling convention that this jax has given up is found before anything is called by it.
    """
    monkeypatch.setattr(jax.export, "minimum_supported_calling_convention_version", 98)
    monkeypatch.setattr(jax.export, "maximum_supported_calling_convention_version", 99)

    model = load(classifier_bundle, "cpu")

    (group,) = model.groups.values()
    assert [program.fallback for program in group.programs.values()] == [
        "calling convention 10 is outside of this jax's window, 98 to 99"
    ] * 3


def test_what_this_jax_wrote_and_cannot_read_is_damaged(classifier_bundle, tmp_path):
    """
    A wrapper of this very jax that it does not read has not expired: it is refused.
    """
    bundle = altered(classifier_bundle, tmp_path / "b", {"programs/b1.exported": lambda _: b""})

    with raises(IncompatibleProgram) as caught:
        load(bundle, "cpu")

    assert str(caught.value).startswith("programs/b1.exported: exported by jax ")


def test_program_with_neither_form_readable_names_both(classifier_bundle, tmp_path):
    """
    Where the StableHLO is not read either, the message has the reasons for both.
    """
    changes = {"programs/b1.exported": expired, "programs/b1.stablehlo": lambda data: data[:99]}

    with raises(IncompatibleProgram) as caught:
        load(altered(classifier_bundle, tmp_path / "b", changes), "cpu")

    message = str(caught.value)
    assert "older than the 6-month" in message
    assert "; programs/b1.stablehlo: INVALID_ARGUMENT: Failed to deserialize StableHLO; " in message
    assert message.endswith("; re-export the model with a jax near this one")


def test_stablehlo_of_another_program_is_refused(classifier_bundle, tmp_path):
    """
    What is wrapped anew has to fit the manifest: the StableHLO of another bucket does not.
    """
    other = (classifier_bundle / "programs/b4.stablehlo").read_bytes()
    changes = {"programs/b1.exported": expired, "programs/b1.stablehlo": lambda _: other}

    with raises(IncompatibleProgram):
        load(altered(classifier_bundle, tmp_path / "b", changes), "cpu")


def test_stablehlo_is_checked_before_it_is_read(old_bundle, tmp_path):
    """
    The digest of a StableHLO file is compared before anything parses it.
    """
    bundle = altered(old_bundle, tmp_path / "b", {})
    path = bundle / "programs/b1.stablehlo"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    with raises(IntegrityError, match=r"programs/b1\.stablehlo: expected sha256 "):
        load(bundle, "cpu")


def test_custom_calls_are_listed(calling_bundle):
    """
    A manifest lists what its programs call.
    """
    artifact = (calling_bundle / "programs/b1.stablehlo").read_bytes()

    assert custom_calls(artifact) == ("lapack_sgeqrf_ffi", "lapack_sorgqr_ffi")
    assert load(calling_bundle, "cpu").manifest.programs[0].custom_calls == (
        "lapack_sgeqrf_ffi",
        "lapack_sorgqr_ffi",
    )


def test_custom_call_inside_a_loop_is_found():
    """
    Custom calls of inner functions and loops count as well.
    """

    def looping(x):
        return jax.lax.fori_loop(0, 3, lambda _, y: jnp.linalg.cholesky(y), x)

    exported = jax.export.export(jax.jit(looping), platforms=("cpu",))(
        jax.ShapeDtypeStruct((2, 2), np.float32)
    )

    assert custom_calls(exported.mlir_module_serialized) == ("lapack_spotrf_ffi",)


@mark.parametrize(("listed", "shown"), [([], "none"), (["lapack_sgeqrf_ffi"], "lapack_sgeqrf_ffi")])
def test_unlisted_custom_call_is_refused(calling_bundle, tmp_path, listed, shown):
    """
    A program that calls what its manifest does not list is refused before it is compiled.
    """

    def lie(manifest):
        manifest["programs"][0]["custom_calls"] = listed

    with raises(IntegrityError) as caught:
        load(altered(calling_bundle, tmp_path / "b", {"manifest.json": lie}), "cpu")

    assert str(caught.value) == (
        "programs/b1.exported: expected the custom calls that the manifest lists, "
        f"{shown}, got lapack_sgeqrf_ffi, lapack_sorgqr_ffi"
    )


@mark.parametrize("wrapped", [True, False])
def test_an_unstable_custom_call_is_refused(calling_bundle, tmp_path, wrapped):
    """
    A program that calls anything else is refused, listed or not, from either of its forms.
    """
    names = {b"lapack_sgeqrf_ffi": b"xla_ffi_callback1"}

    def replaced(data):
        for old, new in names.items():
            data = data.replace(old, new)
        return data if wrapped else expired(data)

    def listed(manifest):
        manifest["programs"][0]["custom_calls"] = ["lapack_sorgqr_ffi", "xla_ffi_callback1"]

    changes = {"manifest.json": listed, "programs/b1.exported": replaced}
    changes["programs/b1.stablehlo"] = lambda data: data.replace(*next(iter(names.items())))

    with raises(IncompatibleProgram) as caught:
        load(altered(calling_bundle, tmp_path / "b", changes), "cpu")

    form = "exported" if wrapped else "stablehlo"
    assert str(caught.value) == (
        f"programs/b1.{form}: expected custom calls that jax keeps, got 'xla_ffi_callback1'; "
        "use jax's own operations in its place"
    )


def test_callbacks_into_python_are_never_allowed():
    """
    What takes an address for an argument, or runs another framework, is not among the custom calls.
    """
    assert not [target for target in ALLOWED if "callback" in target or "python" in target]
    assert "tf.call_tf_function" not in ALLOWED


def test_server_warns_of_what_it_took_from_stablehlo(old_bundle, caplog):
    """
    A server logs one warning that its bundle has aged, and how to refresh it.
    """
    from server.compatibility import log_compatibility

    with caplog.at_level(logging.INFO):
        log_compatibility(load(old_bundle, "cpu"))

    warning, line = caplog.messages
    assert warning.startswith("3 programs came from .stablehlo, ")
    assert warning.endswith("; python -m runtime refresh mends that")
    assert line.startswith("the bundle loads from .exported with JAX built until ")
