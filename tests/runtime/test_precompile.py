"""Programs compiled before they are served: for numbers of threads, and for other machines."""

import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from pytest import mark, raises

from runtime import BundleError, GoldenMismatch, open_bundle
from runtime.__main__ import main
from runtime.cache_files import FOLDER, LIST
from runtime.executable_cache import ExecutableCache, required_features
from runtime.precompile import precompile
from runtime.program import count_compiles, cpu_threads
from runtime.startup import start
from tests.altered_bundles import FROZEN, with_deadly_program

ROOT = Path(__file__).parents[2]
SCALE = {"scale": np.float32(1)}
X86 = mark.skipif(platform.machine() != "x86_64", reason="instructions are x86's")


def kept(folder):
    """List the executables of a cache."""
    return sorted((folder / FOLDER).glob("*.xla"))


def test_each_number_of_threads_has_programs_of_its_own(tmp_path):
    """What is compiled for one thread is beside what is compiled for three, and all are listed."""
    said = []

    digest = precompile(open_bundle(FROZEN), tmp_path, "cpu", threads=(1, 3), progress=said.append)

    names = [path.name for path in kept(tmp_path)]
    assert [sum(f"-t{n}.xla" in name for name in names) for n in (1, 3)] == [4, 4]
    listed = (tmp_path / FOLDER / LIST).read_bytes()
    assert digest == f"sha256:{hashlib.sha256(listed).hexdigest()}"
    assert set(names) <= {line.split("  ")[1] for line in listed.decode().splitlines()}
    assert [line for line in said if line.startswith("compiling for")] == [
        "compiling for 1 thread",
        "compiling for 3 threads",
    ]


@X86
def test_portable_programs_need_no_more_than_avx2(tmp_path):
    """A program for any machine uses no instructions that many lack."""
    precompile(
        open_bundle(FROZEN), tmp_path, "cpu", threads=(1,), portable=True, progress=lambda _: None
    )

    for path in kept(tmp_path):
        needed = required_features(path.read_bytes())
        assert needed
        assert not any("avx512" in feature for feature in needed)


def test_listed_executables_are_loaded_without_a_compile(tmp_path):
    """With the digest of its list any directory is used, whoever wrote it, read-only as it is."""
    threads = (cpu_threads(),)
    digest = precompile(
        open_bundle(FROZEN), tmp_path, "cpu", threads=threads, progress=lambda _: None
    )
    compiles = count_compiles()
    before = compiles()

    cache = ExecutableCache(None, vouched=(tmp_path / FOLDER, digest))
    started = start(open_bundle(FROZEN), "cpu", cache=cache, isolated=False)

    assert (started.compiled, compiles() - before) == (0, 0)


@mark.parametrize("change", ["digest", "list", "file", "gone"])
def test_executables_that_are_not_listed_are_not_loaded(tmp_path, change):
    """With another list, or another file than the listed one, programs are compiled anew, and a line has the reason."""
    said = []
    digest = precompile(
        open_bundle(FROZEN), tmp_path, "cpu", threads=(cpu_threads(),), progress=lambda _: None
    )
    folder = tmp_path / FOLDER
    if change == "digest":
        digest = "sha256:" + "0" * 64
    elif change == "list":
        (folder / LIST).write_text("")
    elif change == "file":
        with kept(tmp_path)[0].open("ab") as file:
            file.write(b"more")
    else:
        kept(tmp_path)[0].unlink()

    cache = ExecutableCache(None, said.append, vouched=(folder, digest))
    started = start(open_bundle(FROZEN), "cpu", cache=cache, isolated=False)

    assert started.compiled == (4 if change in ("digest", "list") else 1)
    assert len(said) == 1
    assert said[0].startswith("executable cache: ")
    assert not started.failed


def test_a_bundle_that_crashes_is_an_error(tmp_path):
    """What ends the process that compiles is reported in one line, and nothing is left."""
    bundle = with_deadly_program(tmp_path / "deadly")

    with raises(BundleError, match="ended the process that compiled it: SIGSEGV"):
        precompile(open_bundle(bundle), tmp_path / "cache", "cpu", progress=lambda _: None)

    assert not (tmp_path / "cache" / FOLDER / LIST).exists()


def test_a_bundle_that_answers_wrongly_is_an_error(tmp_path, monkeypatch):
    """Programs that do not reproduce the goldens are refused, and not kept."""
    monkeypatch.setattr(
        "runtime.precompile._CHILD",
        "import sys\n"
        "from runtime.program import Program\n"
        "call = Program.call\n"
        "Program.call = lambda *given: tuple(a + 1 for a in call(*given))\n"
        "from runtime.precompile import child\n"
        "sys.exit(child(sys.argv[1:]))",
    )

    with raises(GoldenMismatch, match=r"^\d+ golden checks failed on this device, first: b"):
        precompile(open_bundle(FROZEN), tmp_path, "cpu", progress=lambda _: None)

    assert kept(tmp_path) == []


def test_the_command_prints_the_digest(tmp_path, capsys):
    """`compile` ends with what `--executables-digest` takes."""
    status = main(["compile", str(FROZEN), "--cache", str(tmp_path), "--device", "cpu"])

    out = capsys.readouterr().out
    digest = hashlib.sha256((tmp_path / FOLDER / LIST).read_bytes()).hexdigest()
    assert (status, out) == (0, f"executables of {FROZEN} in {tmp_path}: sha256:{digest}\n")


@mark.parametrize("threads", ["0", "two", "1,,2", "-1", "9999"])
def test_threads_are_numbers(tmp_path, capsys, threads):
    """What is no number of threads is refused before anything is done."""
    with raises(SystemExit):
        main(["compile", str(FROZEN), "--cache", str(tmp_path / "c"), "--threads", threads])

    assert f"expected numbers such as 1,2,4, got '{threads}'" in capsys.readouterr().err
    assert not os.path.lexists(tmp_path / "c")


def test_linear_algebra_runs_in_a_process_that_only_loads_it(exported, tmp_path):
    """The functions of LAPACK are found also where nothing is lowered, which would find them."""

    def factor(params, x):
        return params["scale"] * jnp.linalg.cholesky(x @ x.mT + 4 * jnp.eye(3))

    bundle = exported("cholesky", factor, SCALE, inputs=["x:float32[_,3,3]"], buckets=(1, 2))
    precompile(open_bundle(bundle), tmp_path, "cpu", progress=lambda _: None)

    command = ["-m", "runtime", "verify", str(bundle), "--startup", "--cache", str(tmp_path)]
    ended = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)

    assert ended.returncode == 0
    assert ended.stderr.startswith("loaded 2 of 2 programs from the executable cache\n")
