"""A damaged or hostile bundle causes an error in the process that opens it, and nothing else."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from pytest import fixture, mark, param, raises

from runtime import BundleError, IntegrityError, guard, load, open_bundle, probe
from runtime.__main__ import main
from runtime.cache_files import FOLDER
from runtime.executable_cache import ExecutableCache
from tests.altered_bundles import FROZEN, altered, deadly, with_deadly_program, with_other_golden

ROOT = Path(__file__).parents[2]

pytestmark = mark.e2e


@fixture(scope="session")
def deadly_bundle(tmp_path_factory):
    """A bundle whose digests are right, and whose first program is deadly."""
    return with_deadly_program(tmp_path_factory.mktemp("deadly") / "bundle")


def run(*command):
    """Run Python; return its exit status and what it wrote."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_the_bundle_is_deadly(deadly_bundle):
    """
    Without a child the process ends by a signal: what follows is not for nothing.
    """
    status, *_ = run("-c", f"from runtime import load; load({str(deadly_bundle)!r}, 'cpu')")

    assert status == -signal.SIGSEGV


def test_probe_reports_the_signal(deadly_bundle):
    """
    A bundle that ends the process that opens it is a BundleError that names the signal.
    """
    with raises(BundleError) as caught, probe.probing(open_bundle(deadly_bundle), "cpu"):
        pass

    assert str(caught.value) == (
        f"bundle {deadly_bundle}: ended the process that opened it: SIGSEGV; it is damaged, or "
        "made to do that"
    )


def test_isolated_loading_survives(deadly_bundle):
    """
    `load` opens a bundle in another process first on request.
    """
    with raises(BundleError, match="ended the process that opened it: SIGSEGV"):
        load(deadly_bundle, "cpu", isolated=True)

    assert load(FROZEN, "cpu", isolated=True).manifest.name == "mood"


@fixture
def ran(monkeypatch):
    """The folders for compiled programs that children were given, one for each child."""
    run, folders = probe._run, []

    def count(bundle, device, compiled):
        folders.append(compiled)
        return run(bundle, device, compiled)

    monkeypatch.setattr(probe, "_run", count)
    return folders


def test_bundle_that_came_through_is_remembered(tmp_path, ran):
    """
    A bundle that opened well is not opened twice, with the same jaxlib and on the same device.
    """
    bundle = open_bundle(FROZEN)

    for _ in range(2):
        with probe.probing(bundle, "cpu", cache=ExecutableCache(tmp_path)):
            pass
    assert len(ran) == 1
    with probe.probing(bundle, "cpu:0", cache=ExecutableCache(tmp_path)):
        pass
    assert len(ran) == 2


def test_what_cannot_be_remembered_is_opened_all_the_same(tmp_path, ran):
    """
    Where nothing can be written a bundle is opened in another process each time.
    """
    (tmp_path / FOLDER).touch()

    for _ in range(2):
        with probe.probing(open_bundle(FROZEN), "cpu", cache=ExecutableCache(tmp_path)):
            pass

    assert len(ran) == 2


def test_deadly_bundle_is_not_remembered(deadly_bundle, tmp_path):
    """
    What ended a process is tried again each time.
    """
    for _ in range(2):
        with (
            raises(BundleError),
            probe.probing(open_bundle(deadly_bundle), "cpu", cache=ExecutableCache(tmp_path)),
        ):
            pass

    assert list((tmp_path / FOLDER).iterdir()) == []


def test_what_is_wrong_otherwise_is_left_to_find(cuda_bundle, tmp_path):
    """
    A bundle that is refused with an error has not crashed: the process that opens it next reports the reason.
    """
    with probe.probing(open_bundle(cuda_bundle), "cpu", cache=ExecutableCache(tmp_path)):
        pass

    assert list((tmp_path / FOLDER).iterdir()) == []


def test_files_on_their_way_are_waited_for(deadly_bundle):
    """
    A bundle that is being fetched is opened once its files are there.
    """
    bundle = open_bundle(deadly_bundle)
    asked = []
    coming = type(bundle)(bundle.path, bundle.manifest, bundle.digest, asked.append)

    with raises(BundleError, match="SIGSEGV"), probe.probing(coming, "cpu"):
        pass

    assert asked == list(bundle.manifest.files)


def test_endless_bundle_is_given_up(deadly_bundle, monkeypatch):
    """
    A bundle that is not open after a long time is thought never to be.
    """
    monkeypatch.setattr(probe, "_TIMEOUT_S", 0.01)

    with raises(BundleError) as caught, probe.probing(open_bundle(deadly_bundle), "cpu"):
        pass

    assert str(caught.value) == (
        f"bundle {deadly_bundle}: the process that opened it was not done after 0.01 s; if it is "
        "not damaged, require its digest"
    )


_COUNTED = """
import sys
from runtime import load
from runtime.program import count_compiles
compiles = count_compiles()
load(sys.argv[1], "cpu", isolated=True)
print(compiles())
"""


def test_nothing_is_compiled_twice():
    """
    What the child compiled is loaded, and not compiled again.
    """
    status, out, err = run("-c", _COUNTED, str(FROZEN))

    assert (status, out.strip()) == (0, "0"), err


def test_what_was_compiled_is_not_kept(ran):
    """
    The folder that two processes share is removed when the bundle is open.
    """
    load(FROZEN, "cpu", isolated=True)

    assert [Path(folder).exists() for folder in ran] == [False]


def test_no_room_for_compiled_programs_is_no_failure(monkeypatch, ran):
    """
    Where no temporary folder can be made, both processes compile.
    """

    def refuse(*_, **__):
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr(probe, "temporary_directory", refuse)

    assert load(FROZEN, "cpu", isolated=True).manifest.name == "mood"
    assert ran == [""]


@mark.parametrize(
    ("status", "words"),
    [
        (-signal.SIGABRT, "SIGABRT; it is damaged, or made to do that"),
        (-signal.SIGKILL, "SIGKILL; was there memory enough?"),
        (-40, "signal 40; it is damaged, or made to do that"),
        (1, "exit status 1; it is damaged, or made to do that"),
    ],
)
def test_ends_are_described(status, words):
    """
    Whatever ended a process is named, with what it is a sign of.
    """
    assert guard.exit_description(status) == words


@mark.parametrize("command", ["verify", "bench"])
def test_commands_end_with_an_error(deadly_bundle, command):
    """
    A command that opens the bundle prints one line and ends with 3, not by the signal.
    """
    status, out, err = run("-m", "runtime", command, str(deadly_bundle), "--device", "cpu")

    assert (status, out) == (3, "")
    assert err.splitlines()[-1] == (
        "error: the bundle ended the process that opened it: SIGSEGV; it is damaged, or made to "
        "do that"
    )


def test_refresh_leaves_nothing_of_a_deadly_bundle(tmp_path):
    """
    A new bundle is not there where the old one ended its making; the next writer sweeps up.
    """
    command = ("-m", "runtime", "refresh", "--device", "cpu", "--out", str(tmp_path / "new"))
    bundle = altered(FROZEN, tmp_path / "old", {"programs/b1-seq4.stablehlo": deadly})

    assert run(*command, str(bundle))[0] == 3
    assert not (tmp_path / "new").exists()
    assert run(*command, str(FROZEN))[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "old"]


def test_what_is_expendable_goes_first():
    """
    Where memory runs out the system ends the child, not the process behind it.
    """
    code = "from runtime.guard import mark_expendable as b; b(); print(open('/proc/self/oom_score_adj').read())"

    assert run("-c", code)[1].strip() == "1000"


@mark.parametrize(
    ("ending", "status"),
    [
        param("raise SystemExit(7)", 7, id="exit-status"),
        param("pass", 0, id="end"),
        param("os.abort()", 3, id="crash"),
        param("os.kill(os.getpid(), signal.SIGKILL)", 5, id="killed"),
        param("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, id="signal"),
        param("os.kill(os.getpid(), 40)", -40, id="signal-of-real-time"),
    ],
)
def test_guard_ends_as_its_child_did(ending, status):
    """
    An exit status and a signal that was sent are passed on; a crash is a bundle's fault.
    """
    code = f"import os, signal; from runtime.guard import run_in_child; run_in_child(); {ending}"

    assert run("-c", code)[0] == status


@contextlib.contextmanager
def guarded(setting_up=""):
    """Run a command that waits in a child for ever; return the command and the child's number."""
    code = (
        "import os, signal; from runtime.guard import run_in_child; run_in_child(); "
        f"{setting_up}\nprint(os.getpid(), flush=True); signal.pause()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with process:
        yield process, int(process.stdout.readline())


def test_guard_passes_signals_on():
    """
    A signal to the command ends its child: nothing is left behind.
    """
    with guarded() as (process, child):
        process.terminate()

    assert process.returncode == -signal.SIGTERM
    with raises(ProcessLookupError):
        os.kill(child, 0)


def test_second_interrupt_ends_what_does_not_hear():
    """
    A child in native code does not react to Ctrl-C; a second one ends it.
    """
    with guarded("signal.signal(signal.SIGINT, signal.SIG_IGN)") as (process, child):
        while process.poll() is None:
            process.send_signal(signal.SIGINT)

    assert process.returncode == -signal.SIGTERM
    with raises(ProcessLookupError):
        os.kill(child, 0)


def test_interrupted_command_says_nothing():
    """
    Ctrl-C ends a command by the signal, without a traceback.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime", "verify", str(FROZEN), "--device", "cpu"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stderr.readline().startswith("compiling ")
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stderr.read()

    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in rest


def test_required_digest_is_the_only_one_taken(capsys):
    """
    With --require-digest a command takes the bundle of this digest, and refuses any other.
    """
    digest = hashlib.sha256((FROZEN / "manifest.json").read_bytes()).hexdigest()
    other = "0" * 64

    assert main(["inspect", str(FROZEN), "--require-digest", f"sha256:{digest}"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(FROZEN), "--require-digest", f"sha256:{other}"]) == 3
    assert capsys.readouterr().err == (
        f"error: manifest.json: expected the digest sha256:{other}, got sha256:{digest}\n"
    )


@mark.parametrize("digest", ["0" * 64, "sha256:" + "0" * 63, "sha256:" + "F" * 64, "md5:00"])
def test_digest_that_is_none_is_wrong_usage(capsys, digest):
    """
    A digest is written as inspect shows it, in full.
    """
    with raises(SystemExit) as ended:
        main(["verify", str(FROZEN), "--require-digest", digest])

    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"error: argument --require-digest: expected sha256: and 64 hex digits, got {digest!r}\n"
    )


def test_libraries_pin_bundles_too(classifier_bundle, tmp_path):
    """
    `open_bundle` and `load` take a digest; another golden is another bundle.
    """
    digest = f"sha256:{open_bundle(classifier_bundle).digest}"
    wrong = with_other_golden(classifier_bundle, tmp_path / "wrong")

    assert open_bundle(classifier_bundle, require_digest=digest).manifest.name == "classifier"
    with raises(IntegrityError, match="expected the digest sha256:"):
        load(wrong, "cpu", require_digest=digest)
