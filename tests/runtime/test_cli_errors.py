"""`python -m runtime` where something is wrong: one line, and an exit status that says what."""

import errno
import os

import jax
from pytest import mark, param, raises

from runtime.__main__ import main
from runtime.writer import BundleWriter


@mark.parametrize(
    ("arguments", "message"),
    [
        (
            [],
            "the following arguments are required: predict|verify|inspect|bench|compile|doctor|refresh",
        ),
        (["verify"], "the following arguments are required: BUNDLE"),
        (["inspect", "bundle", "--jsn"], "--jsn: no such option; did you mean --json?"),
        (["--json", "inspect", "bundle"], "--json: no such option"),
        (
            ["bench", "bundle", "--seconds", "soon"],
            "argument --seconds: invalid float value: 'soon'",
        ),
        (["verify", "--", "a", "--b"], "unrecognized arguments: --b"),
    ],
)
def test_wrong_usage_is_exit_status_2(arguments, message, capsys):
    """
    A missing argument, an unknown option and a value of another kind are one line each.
    """
    with raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_typo_of_a_command_names_the_nearest(capsys):
    """
    A command that is not there is answered with the one that was meant.
    """
    with raises(SystemExit) as caught:
        main(["verfy", "bundle"])

    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith("; did you mean 'verify'?\n")


def test_chart_of_another_kind_is_exit_status_2(classifier_bundle, capsys):
    """
    A chart that cannot be drawn is refused before any time is spent.
    """
    assert main(["bench", str(classifier_bundle), "--plot", "chart.pdf"]) == 2

    assert capsys.readouterr().err == (
        "error: --plot: expected a .svg or .png file, got chart.pdf\n"
    )


def test_chart_without_matplotlib_is_exit_status_2(classifier_bundle, capsys, monkeypatch):
    """
    Where matplotlib is not installed, --plot is refused before any time is spent.
    """
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)

    assert main(["bench", str(classifier_bundle), "--plot", "chart.svg"]) == 2

    assert capsys.readouterr().err == ("error: --plot: needs matplotlib, which is not installed\n")


@mark.parametrize(
    ("flag", "command", "name"), [("--junit", "verify", "r.xml"), ("--plot", "bench", "r.svg")]
)
@mark.parametrize(
    ("place", "expected"),
    [
        param(
            lambda folder, name: folder / "missing" / name,
            "in a directory that exists",
            id="missing",
        ),
        param(
            lambda folder, name: folder / "report" / name, "in a directory that exists", id="file"
        ),
        param(lambda folder, name: folder / f"folder-{name}", None, id="directory"),
    ],
)
def test_file_that_cannot_be_written_is_refused_first(
    classifier_bundle, tmp_path, capsys, flag, command, name, place, expected
):
    """
    A report or chart that could not be written in the end is refused before any time is spent.
    """
    (tmp_path / "report").write_text("")
    (tmp_path / f"folder-{name}").mkdir()
    file = place(tmp_path, name)

    status = main([command, str(classifier_bundle), f"{flag}={file}"])

    got = f"a file {expected}, got {file}" if expected else f"a file, got the directory {file}"
    assert status == 2
    assert capsys.readouterr().err == f"error: {flag}: expected {got}\n"


def test_file_of_another_owner_is_refused_first(classifier_bundle, tmp_path, capsys, monkeypatch):
    """
    A report that may not be written is refused before any time is spent.
    """
    report = tmp_path / "report.xml"
    monkeypatch.setattr("os.access", lambda path, _mode: path != tmp_path)  # root may do anything

    assert main(["verify", str(classifier_bundle), f"--junit={report}"]) == 2

    assert capsys.readouterr().err == (
        f"error: --junit: expected a file that may be written, got {report}\n"
    )


def test_disk_that_fills_up_is_exit_status_2(classifier_bundle, capsys):
    """
    A report that cannot be written after all is one line, not a traceback.
    """
    assert main(["verify", str(classifier_bundle), "--device=cpu", "--junit=/dev/full"]) == 2

    assert capsys.readouterr().err.splitlines()[-1] == "error: No space left on device"


def test_disk_too_full_for_a_new_bundle_is_named(classifier_bundle, tmp_path, capsys, monkeypatch):
    """
    A refreshed bundle that could not be written is an error, and nothing is left there.
    """

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(BundleWriter, "copy", full)
    out = tmp_path / "new"

    assert main(["refresh", str(classifier_bundle), "--out", str(out)]) == 2

    assert capsys.readouterr().err.splitlines()[-1] == f"error: {out}: No space left on device"
    assert list(tmp_path.iterdir()) == []


@mark.parametrize("flags", [[], ["--json"]])
def test_inspect_checks_every_file(classifier_bundle, copy_of, capsys, flags):
    """
    A bundle of which one bit is wrong is not shown as if it were whole.
    """
    bundle = copy_of(classifier_bundle)
    program = bundle / "programs/b4.stablehlo"
    data = bytearray(program.read_bytes())
    data[100] ^= 1
    program.write_bytes(data)

    assert main(["inspect", str(bundle), *flags]) == 3

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: programs/b4.stablehlo: expected sha256 ")


@mark.parametrize("command", ["verify", "inspect", "bench"])
def test_damaged_bundle_is_exit_status_3(classifier_bundle, copy_of, capsys, command):
    """
    A bundle that cannot be used is one line on stderr that names the file.
    """
    bundle = copy_of(classifier_bundle)
    (bundle / "params.safetensors").write_bytes(b"short")

    assert main([command, str(bundle)]) == 3

    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: params.safetensors: expected 448 bytes, got 5\n")


@mark.parametrize("command", ["verify", "bench"])
def test_wrong_platform_is_exit_status_3(cuda_bundle, capsys, command):
    """
    For a bundle of another platform the error names that platform and this one.
    """
    assert main([command, str(cuda_bundle), "--device", "cpu"]) == 3

    assert capsys.readouterr().err == (
        f"error: bundle {cuda_bundle}: needs platform cuda, this device is cpu; export with "
        "--platforms cpu, or name another device\n"
    )


@mark.parametrize("command", ["verify", "bench"])
def test_absent_device_is_exit_status_5(classifier_bundle, capsys, command):
    """
    A device that is not there is no fault of the bundle.
    """
    assert main([command, str(classifier_bundle), "--device", "tpu"]) == 5

    assert capsys.readouterr().err.startswith("error: device 'tpu': expected one of [")


def test_failing_device_is_exit_status_5(classifier, capsys, monkeypatch):
    """
    A device that fails while it runs a program is distinguished from a wrong bundle.
    """

    def fails(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(jax.stages.Compiled, "__call__", fails)

    assert main(["verify", str(classifier.bundle.path), "--device", "cpu"]) == 5

    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: program b1: RESOURCE_EXHAUSTED: out of memory"
    )
