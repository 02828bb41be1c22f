"""`import hloserve`: the names of the two halves in one place."""

import subprocess
import sys
from pathlib import Path

from pytest import mark, raises

import export
import hloserve
import runtime


def test_every_name_is_that_of_its_home():
    """What the facade names is the very object that `export` or `runtime` names."""
    for name in hloserve.__all__:
        home = export if hasattr(export, name) else runtime
        assert getattr(hloserve, name) == getattr(home, name)
    assert set(hloserve.__all__) <= set(dir(hloserve))
    assert {*export.__all__, *runtime.__all__} - set(hloserve.__all__) == {"parse_input"}


def test_errors_of_both_halves_are_there():
    """All that a caller may want to catch is found under the one name."""
    errors = {
        name
        for package in (export, runtime)
        for name in package.__all__
        if isinstance(getattr(package, name), type)
        and issubclass(getattr(package, name), Exception)
    }

    assert errors <= set(hloserve.__all__)


def test_an_unknown_name_is_an_attribute_error():
    """A name that is not there is refused as Python does it."""
    with raises(AttributeError, match=r"^module 'hloserve' has no attribute 'lod'$"):
        hloserve.lod  # noqa: B018


def test_packages_say_that_they_are_typed():
    """Type checkers read the annotations of an installed package only beside py.typed."""
    for name in ("export", "hloserve", "runtime", "server"):
        assert (Path(hloserve.__file__).parents[1] / name / "py.typed").is_file()


@mark.e2e
@mark.parametrize(
    ("used", "absent"),
    [("hloserve", {"numpy", "jax", "flax"}), ("hloserve.load", {"flax", "export", "server"})],
)
def test_only_what_is_used_is_imported(used, absent):
    """The facade alone needs the standard library; the runtime's names never bring Flax."""
    code = f"import hloserve, sys; {used}; print({absent} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert (done.stdout, done.stderr) == ("set()\n", "")
