"""Compiling for GPUs that are not here, with a compiler that is a script; tests/gpucheck uses the real one."""

import json
import sys

from pytest import fixture, mark, param, raises

from runtime import gpu_check
from runtime.__main__ import main
from runtime.accelerators import CARDS
from runtime.bundle import open_bundle
from runtime.card_report import CardReport, ProgramOnCard, keep_report, read_report, report_file
from runtime.errors import BundleError, IncompatibleProgram
from runtime.gpu_check import NoPlugin, check_cards, chosen_programs

VERSIONS = {"jax": "0.12.0.1", "jaxlib": "0.12.0.1", "jax-cuda12-plugin": "0.12.0.1"}
# Called as the compiler is: card and programs come last.
COMPILER = """#!{python}
import json, os, signal, sys
card, *names = sys.argv[8:]
def say(**found): print(json.dumps(found), flush=True)
def compiled(name, **more):
    say(program=name, seconds=1.5, **{{"argument_bytes": 1000, "temp_bytes": 200, "output_bytes": 4,
        "custom_calls": ["__cublas$gemm"], **more}})
print("a line that is none of ours")
for name in names:
    say(begin=name)
    {behaviour}
    compiled(name)
"""


@fixture
def cuda_bundle(classifier_bundle):
    """A bundle for cpu and cuda with several buckets."""
    return open_bundle(classifier_bundle)


@fixture
def compiler(tmp_path, monkeypatch):
    """Has a script compile that does something before each program."""

    def use(behaviour="pass"):
        file = tmp_path / "compiler"
        file.write_text(COMPILER.format(python=sys.executable, behaviour=behaviour))
        file.chmod(0o755)
        monkeypatch.setattr(gpu_check, "find_environment", lambda: (str(file), VERSIONS))

    return use


def check(bundle, *cards, limit_s=30.0, **more):
    """Check a bundle for cards; return the report and the progress."""
    said = []
    chosen = [CARDS[card] for card in cards]
    report = check_cards(bundle, chosen, limit_s=limit_s, progress=said.append, **more)
    return report, said


def test_the_smallest_and_the_largest_of_each_group_are_compiled(tagger_bundle):
    """Of each combination of axis sizes there are two programs, or all of them on request."""
    bundle = open_bundle(tagger_bundle)
    every = chosen_programs(bundle, everything=True)
    few = chosen_programs(bundle, everything=False)

    assert len(every) == len(bundle.manifest.programs)
    assert set(few) <= set(every)
    sizes = {name.partition("-")[2] for name in every}
    for size in sizes:
        members = [n for n in every if n.partition("-")[2] == size]
        batches = sorted(int(n.partition("-")[0][1:]) for n in members)
        picked = sorted(int(n.partition("-")[0][1:]) for n in few if n.partition("-")[2] == size)
        assert picked == sorted({batches[0], batches[-1]})


def test_each_card_has_its_figures(cuda_bundle, compiler):
    """A report has each program's memory and custom calls, by card, and names what was compiled."""
    compiler()
    names = chosen_programs(cuda_bundle, everything=False)

    report, said = check(cuda_bundle, "t4", "h100")

    assert said == [f"compiling {name} for {card}" for card in ("t4", "h100") for name in names]
    assert report.programs[0] == ProgramOnCard(
        card="t4",
        program=names[0],
        seconds=1.5,
        argument_bytes=1000,
        temp_bytes=200,
        output_bytes=4,
        custom_calls=("__cublas$gemm",),
    )
    assert [one.program for one in report.of(CARDS["h100"])] == names
    assert report.refusals == ()


@mark.parametrize(
    ("behaviour", "reason"),
    [
        param(
            "if name == FIRST: say(program=name, seconds=1.0, reason='UNIMPLEMENTED: no such thing'); continue",
            "UNIMPLEMENTED: no such thing",
            id="refused",
        ),
        param(
            "if name == FIRST: os.kill(os.getpid(), signal.SIGFPE)",
            "it ended the process that compiled it: SIGFPE",
            id="crashes",
        ),
        param(
            "if name == FIRST: print('I0000 00:00:1.5   7 x.cc:3] out of luck', file=sys.stderr); sys.exit(9)",
            "it ended the process that compiled it: exit status 9 (out of luck)",
            id="ends",
        ),
    ],
)
def test_a_program_that_does_not_compile_leaves_the_others_to_be(
    cuda_bundle, compiler, behaviour, reason
):
    """Whatever one program does to the process that compiles it, the rest gets another process."""
    first, *others = chosen_programs(cuda_bundle, everything=False)
    compiler(behaviour.replace("FIRST", repr(first)))

    report, _ = check(cuda_bundle, "l4")

    assert [(one.program, one.reason) for one in report.programs] == [
        (first, reason),
        *((name, "") for name in others),
    ]
    assert report.refusals == (f"program {first} on l4: expected it to compile, got: {reason}",)


def test_a_program_that_takes_too_long_is_ended(cuda_bundle, compiler):
    """What is not done within its limit does not compile; the next one begins in a new process."""
    first, *others = chosen_programs(cuda_bundle, everything=False)
    compiler(f"if name == {first!r}: signal.pause()")

    report, _ = check(cuda_bundle, "t4", limit_s=20.0)

    assert [(one.program, one.reason) for one in report.programs] == [
        (first, "it was not compiled within 20 s"),
        *((name, "") for name in others),
    ]


@mark.parametrize(
    ("reason", "advised"),
    [
        ("ALG_DOT_BF16_BF16_F32", True),
        ("no bfloat16 here: BF16", True),
        ("out of registers", False),
    ],
)
def test_a_card_without_bfloat16_is_distinguished_from_others(
    cuda_bundle, compiler, reason, advised
):
    """Only where the reason is bfloat16, and the card has none, another dtype is recommended."""
    compiler(f"say(program=name, seconds=1.0, reason={reason!r}); continue")

    report, _ = check(cuda_bundle, "t4", "l4")

    advice = "; t4 has no bfloat16 in hardware: compute in float16 or float32, or choose a card from l4 on"
    assert {one.reason for one in report.of(CARDS["l4"])} == {reason}
    assert {one.reason for one in report.of(CARDS["t4"])} == {reason + advice * advised}


def test_a_process_that_never_begins_is_no_verdict_on_the_bundle(cuda_bundle, compiler):
    """Where not even the card could be described, that is the error, and no program is blamed."""
    compiler("sys.exit(4)")
    gpu_file = gpu_check.find_environment()[0]
    with open(gpu_file, "r+") as file:  # noqa: PTH123
        text = file.read().replace("    say(begin=name)", "    sys.exit(4)")
        file.seek(0)
        file.truncate()
        file.write(text)

    with raises(BundleError) as error:
        check(cuda_bundle, "t4")

    assert str(error.value) == ("card t4: it ended the process that compiled it: exit status 4")


def test_a_bundle_for_cpus_alone_is_refused(tmp_path, cuda_bundle, compiler):
    """What was not lowered for cuda is refused before anything is compiled."""
    compiler()
    manifest = json.loads((cuda_bundle.path / "manifest.json").read_text())
    for file in cuda_bundle.path.rglob("*"):
        if file.is_file() and file.name != "manifest.json":
            target = tmp_path / "b" / file.relative_to(cuda_bundle.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    manifest["platforms"] = ["cpu"]
    manifest["tolerances"] = {"cpu": manifest["tolerances"]["cpu"]}
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))

    with raises(IncompatibleProgram) as error:
        check(open_bundle(tmp_path / "b"), "t4")

    assert str(error.value) == (
        f"bundle {tmp_path}/b: expected platform cuda, got cpu; export with --platforms cpu,cuda"
    )


def report_of(*programs, jax="0.12.0.1"):
    """Make a report of programs given as (card, program, temp bytes, reason)."""
    return CardReport(
        bundle="0" * 64,
        versions={"jax": jax},
        programs=tuple(
            ProgramOnCard(card=card, program=program, temp_bytes=temp, reason=reason)
            for card, program, temp, reason in programs
        ),
    )


def test_a_report_is_kept_beside_its_bundle_with_what_was_known_of_other_cards(tmp_path):
    """A card's programs replace those of before; what another version or bundle had is dropped."""
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    first = report_of(("t4", "b1", 1, ""), ("l4", "b1", 2, "no"))
    second = report_of(("l4", "b1", 3, ""), ("l4", "b8", 4, ""))

    assert keep_report(bundle, first) == tmp_path / "bundle.cards.json" == report_file(bundle)
    assert read_report(bundle, "0" * 64) == first
    keep_report(bundle, second)
    kept = read_report(bundle, "0" * 64)
    assert kept.programs == (first.programs[0], *second.programs)
    assert read_report(bundle, "1" * 64) is None
    keep_report(bundle, report_of(("h100", "b1", 5, ""), jax="0.13.0"))
    assert [one.card for one in read_report(bundle, "0" * 64).programs] == ["h100"]
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["bundle.cards.json"]


@mark.parametrize(
    "text", ["", "{", "[]", '{"format": 2}', '{"format": 1, "bundle": "0"}', "[" * 99999]
)
def test_a_file_that_is_no_report_is_none(tmp_path, text):
    """A file in the report's place that is no report is ignored."""
    (tmp_path / "b.cards.json").write_text(text)

    assert read_report(tmp_path / "b", "0" * 64) is None


def test_what_does_not_fit_is_refused_with_both_figures():
    """JAX takes three quarters of a card's memory; a run with more is named."""
    report = report_of(("t4", "b8", 12_000_000_000, ""), ("l4", "b8", 12_000_000_000, ""))

    assert [one.fits for one in report.programs] == [False, True]
    (line,) = report.refusals
    assert line == (
        "program b8 on t4: expected at most 11.7 GB of memory, got 12 GB; choose a card with more, or "
        "export smaller buckets"
    )


@mark.parametrize(
    ("behaviour", "status", "last"),
    [
        ("pass", 0, "ok: compiles for t4"),
        (
            "compiled(name, temp_bytes=16 * 10**9); continue",
            5,
            "FAILED: does not run on t4",
        ),
        (
            "say(program=name, seconds=1.0, reason='no'); continue",
            3,
            "FAILED: does not run on t4",
        ),
    ],
)
def test_the_command_has_a_table_a_report_and_a_status(
    copy_of, classifier_bundle, compiler, capsys, behaviour, status, last
):
    """Exit status 3 where a program does not compile, 5 where one does not fit, 0 where all is well."""
    compiler(behaviour)
    bundle = copy_of(classifier_bundle)

    found = main(["compile", str(bundle), "--target", "t4"])

    out, err = capsys.readouterr()
    assert found == status
    lines = out.splitlines()
    assert lines[0] == (
        "compiled with jax 0.12.0.1, jaxlib 0.12.0.1, jax-cuda12-plugin 0.12.0.1; nothing ran on a card"
    )
    heading = [
        "card",
        "program",
        "compiles",
        "temp",
        "in",
        "all",
        "of",
        "memory",
        "custom",
        "calls",
    ]
    assert lines[2].split() == heading
    assert lines[-1] == last
    assert f"report {bundle}.cards.json" in err
    assert read_report(bundle, open_bundle(bundle).digest).of(CARDS["t4"])

    assert main(["compile", str(bundle), "--target", "t4", "--json"]) == status
    report = json.loads(capsys.readouterr().out)
    assert list(report["cards"]) == ["t4"]
    assert report["cards"]["t4"]["usable_bytes"] == 11_741_872_128


@mark.parametrize(
    ("options", "message"),
    [
        (
            [],
            "--cache: expected a directory, got none; or pass --target for GPUs that are not here",
        ),
        (["--json", "--cache", "c"], "--json: expected --target beside it"),
        (
            ["--target", "t4", "--device", "cpu"],
            "--device and --target: expected one of them, got both: for a GPU that is not here nothing is kept",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    classifier_bundle, capsys, options, message
):
    """What is for this machine's devices and what is for others is not mixed."""
    assert main(["compile", str(classifier_bundle), *options]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_card_that_is_not_known_is_one_line(classifier_bundle, capsys):
    """The error lists the known cards."""
    with raises(SystemExit) as ended:
        main(["compile", str(classifier_bundle), "--target", "t4,rtx"])

    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: argument --target: expected a card among t4, l4, a100, a100-80gb, h100, h200, got 'rtx'\n"
    )


def test_without_the_plugin_the_command_says_how_to_have_it(
    cuda_bundle, capsys, monkeypatch, tmp_path
):
    """What compiles for GPUs is nowhere unless it was set up: exit status 2 and the two ways to."""
    monkeypatch.setattr(gpu_check, "_ENVIRONMENT", tmp_path / "none")

    assert main(["compile", str(cuda_bundle.path), "--target", "t4"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: --target: expected XLA's CUDA plugin, got none; in a checkout ./build.sh gpucheck makes"
    )


def test_a_plugin_of_another_version_is_refused():
    """The plugin and jax have to be of one release."""
    with raises(NoPlugin) as error:
        gpu_check._matching("/p", {"jax": "0.12.0.1", "jax-cuda12-plugin": "0.11.2"})

    assert str(error.value) == (
        "/p: expected jax-cuda12-plugin of jax 0.12.0.1, got 0.11.2; install the same version of both"
    )
