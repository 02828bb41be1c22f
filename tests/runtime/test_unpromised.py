"""Every use of JAX beyond its promised API is in three modules, and works in this JAX."""

import ast
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.export import _export
from pytest import mark

import runtime.executables
import runtime.program
import runtime.program_forms
import runtime.stablehlo
from runtime.customcalls import ALLOWED
from runtime.program import count_compiles
from runtime.program_forms import versions
from runtime.stablehlo import custom_calls

ROOT = Path(__file__).parents[2]

# JAX's promise (docs.jax.dev, "API compatibility") leaves these out.
_UNPROMISED = ("jax._src", "jax.extend", "jaxlib")


def unpromised_imports(package):
    """Return each module of a package that imports what is not promised, with what it imports."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                names.add(node.module or "")
        if strange := {name for name in names if name.startswith(_UNPROMISED)}:
            found[str(path.relative_to(ROOT))] = strange
    return found


@mark.parametrize("package", ["runtime", "server"])
def test_four_modules_have_what_is_not_promised(package):
    """
    Of what serves, program_forms.py, executables.py, program.py and stablehlo.py of runtime alone import what JAX does not promise.
    """
    expected = {
        "runtime/program_forms.py": {"jax._src.export"},
        "runtime/executables.py": {
            *("jax._src", "jax._src.interpreters", "jax._src.lax", "jax._src.lib"),
        },
        "runtime/program.py": {"jax.extend.backend"},
        "runtime/stablehlo.py": {"jax.extend", "jax.extend.mlir"},
    }

    assert unpromised_imports(package) == (expected if package == "runtime" else {})


def test_those_modules_name_it():
    """
    Their docstrings list what they take, so that a release of JAX can be compared with it.
    """
    for name in ("jax._src.export.serialization", "Exported", "window"):
        assert name in runtime.program_forms.__doc__
    for name in ("event", "NPROC", "clear_backends"):
        assert name in runtime.program.__doc__
    assert "jax.extend.mlir" in runtime.stablehlo.__doc__
    for name in ("pxla.UnloadedMeshExecutable", "get_compile_options", "jax.stages.Compiled"):
        assert name in runtime.executables.__doc__


def test_exported_is_a_dataclass_around_its_module():
    """
    A program can be put into another wrapper, and StableHLO is what a wrapper holds.
    """
    exported = jax.export.export(jax.jit(jnp.sin))(jax.ShapeDtypeStruct((2,), np.float32))

    other = dataclasses.replace(exported, mlir_module_serialized=b"other")

    assert exported.mlir_module_serialized.startswith(b"ML\xefRStableHLO_v"[:4])
    assert other.mlir_module_serialized == b"other"


def test_stablehlo_can_be_read():
    """
    An artifact's operations have names, and custom calls a target.
    """
    exported = jax.export.export(jax.jit(jnp.linalg.cholesky), platforms=("cpu",))(
        jax.ShapeDtypeStruct((2, 2), np.float32)
    )

    assert custom_calls(exported.mlir_module_serialized) == ("lapack_spotrf_ffi",)


def test_versions_are_there():
    """
    JAX still reports the versions that a wrapper is of.
    """
    assert {"jax", "jaxlib", "calling_convention", "serialization"} == set(versions())
    assert versions()["serialization"].isdigit()


def test_compilation_is_reported():
    """
    JAX still reports each program that it compiles.
    """
    compiles = count_compiles()

    jax.jit(lambda x: x - 3)(np.zeros(7, np.float32))

    assert compiles() > 0


def test_what_jax_keeps_is_what_bundles_may_call():
    """
    The custom calls that are allowed are those that JAX keeps, but for TensorFlow's.
    """
    kept = _export._CUSTOM_CALL_TARGETS_GUARANTEED_STABLE

    assert kept - ALLOWED.keys() == {"tf.call_tf_function"}
    assert ALLOWED.keys() - kept == set()
