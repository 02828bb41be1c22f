"""`python -m runtime`: verify, inspect and bench, for people, machines and CI."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import jax
import matplotlib as mpl
from pytest import fixture, mark, raises

from runtime import load, open_bundle, proof
from runtime.__main__ import main
from tests.altered_bundles import with_other_golden

ROOT = Path(__file__).parents[2]


@fixture
def altered(classifier_bundle, tmp_path):
    """The classifier with other expected outputs, digests and all."""
    return with_other_golden(classifier_bundle, tmp_path / "altered")


def strict(text):
    """Read JSON as other languages do: NaN and Infinity are no JSON."""

    def refuse(name):
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def test_verify_says_ok(classifier_bundle, capsys):
    """
    A right bundle is reported in one line, with exit status 0; progress goes to stderr.
    """
    status = main(["verify", str(classifier_bundle), "--device", "cpu"])

    out, err = capsys.readouterr()
    assert status == 0
    assert out == (
        "ok: 3 golden checks, 0 failed; 0 signs of rows that depend on each other; on cpu (cpu)\n"
    )
    assert sorted(err.splitlines()[:3]) == [
        "compiling programs/b1.exported (1/3)",
        "compiling programs/b2.exported (2/3)",
        "compiling programs/b4.exported (3/3)",
    ]
    assert err.splitlines()[3:] == [
        "loading params",
        "checking goldens",
        "checking rows of b1",
        "checking rows of b2",
        "checking rows of b4",
    ]


def test_altered_golden_is_exit_status_4(altered, capsys):
    """
    A bundle that does not answer as recorded fails, with a line for each failed check.
    """
    status = main(["verify", str(altered), "--device", "cpu"])

    out = capsys.readouterr().out.splitlines()
    assert status == 4
    assert [line[:24] for line in out[:3]] == [f"FAILED b{n}, output 'outpu" for n in (1, 2, 4)]
    assert out[3:] == [
        "FAILED: 3 golden checks, 3 failed; 0 signs of rows that depend on each other; on cpu (cpu)"
    ]


def test_verify_prints_json(tagger_bundle, capsys):
    """
    With --json the report is one strict JSON object, with what each program costs.
    """
    status = main(["verify", str(tagger_bundle), "--device", "cpu", "--json"])

    report = strict(capsys.readouterr().out)
    assert status == 0
    assert list(report) == [
        "bundle",
        "digest",
        "device",
        "ok",
        "golden_checks",
        "mismatches",
        "row_mixing",
        "drift",
        "programs",
    ]
    assert (report["ok"], report["golden_checks"], report["mismatches"]) == (True, 32, [])
    assert report["bundle"] == str(tagger_bundle)
    assert report["digest"] == open_bundle(tagger_bundle).digest
    assert [p["bucket"] for p in report["programs"]] == ["b1-seq4", "b4-seq4", "b1-seq8", "b4-seq8"]
    for program in report["programs"]:
        assert program["max_error"] <= 1e-5
        assert program["flops"] > 0
        assert program["argument_bytes"] > 0


def test_errors_that_are_not_finite_are_null(classifier, capsys, monkeypatch):
    """
    Where the device answers NaN the report is still JSON that every language reads.
    """
    bundle = classifier.bundle.path
    answer = type(classifier).run

    def with_nan(self, program, inputs):
        return tuple(output * math.nan for output in answer(self, program, inputs))

    monkeypatch.setattr(type(classifier), "run", with_nan)
    status = main(["verify", str(bundle), "--device", "cpu", "--json"])

    report = strict(capsys.readouterr().out)
    assert (status, report["ok"], len(report["mismatches"])) == (4, False, 3)
    assert [p["max_error"] for p in report["programs"]] == [None, None, None]
    assert "got nan; max |Δ| inf" in report["mismatches"][0]


def test_mixed_rows_on_record_are_not_a_failure(mixing_bundle, capsys):
    """
    A model that was exported with mixed rows verifies, and the report notes the mixing.
    """
    status = main(["verify", str(mixing_bundle), "--device", "cpu"])

    *lines, last = capsys.readouterr().out.splitlines()
    assert status == 0
    assert lines != []
    assert all(line.startswith("recorded b4, output 'output': row ") for line in lines)
    assert last.startswith(f"ok: 2 golden checks, 0 failed; {len(lines)} signs of rows that ")


def test_mixed_rows_without_record_are_exit_status_4(mixing_bundle, copy_of, capsys):
    """
    Rows that depend on each other fail a bundle whose manifest does not record that.
    """
    bundle = copy_of(mixing_bundle)
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"row_mixing": []}))

    status = main(["verify", str(bundle), "--device", "cpu", "--json"])

    report = strict(capsys.readouterr().out)
    assert (status, report["ok"]) == (4, False)
    assert any("when the other rows became copies of it" in line for line in report["row_mixing"])


def test_verify_screens_what_an_exporter_names(classifier_bundle, monkeypatch, capsys):
    """
    Names of programs whose rows are independent by structure go with the proof; help is without them.
    """
    named = []
    real = proof.verify

    def recorded_verify(model, *, independent, **options):
        named.extend(independent)
        return real(model, independent=independent, **options)

    monkeypatch.setattr(proof, "verify", recorded_verify)
    command = ["verify", str(classifier_bundle), "--device", "cpu"]

    assert main([*command, "--independent", "b2", "b4"]) == 0
    assert named == ["b2", "b4"]
    assert main(command) == 0
    assert named == ["b2", "b4"]

    capsys.readouterr()
    with raises(SystemExit):
        main(["verify", "--help"])
    assert "--independent" not in capsys.readouterr().out


def test_verify_writes_junit(classifier_bundle, altered, tmp_path):
    """
    CI gets a test case per golden check and per program's rows, failures with their message.
    """
    reports = []
    for bundle in (classifier_bundle, altered):
        main(["verify", str(bundle), "--device", "cpu", "--junit", str(tmp_path / "report.xml")])
        reports.append(ET.fromstring((tmp_path / "report.xml").read_bytes()))  # noqa: S314 (ours)

    good, bad = reports
    cases = [(case.get("classname"), case.get("name")) for case in good]
    assert cases == [
        ("goldens", "b1 output golden/0.safetensors"),
        ("goldens", "b2 output golden/0.safetensors"),
        ("goldens", "b4 output golden/0.safetensors"),
        ("rows", "b1"),
        ("rows", "b2"),
        ("rows", "b4"),
    ]
    assert good.attrib == {"name": "classifier on cpu", "tests": "6", "failures": "0"}
    assert bad.attrib == {"name": "classifier on cpu", "tests": "6", "failures": "3"}
    failures = [case.find("failure").get("message") for case in bad if len(case)]
    assert [text.split(",")[0] for text in failures] == ["b1", "b2", "b4"]


def test_inspect_shows_a_table(tagger_bundle, capsys):
    """
    The table has inputs and outputs, platforms, and the size of each program.
    """
    status = main(["inspect", str(tagger_bundle)])

    out = capsys.readouterr().out
    manifest = open_bundle(tagger_bundle).manifest
    facts = dict(line.split("  ", 1) for line in out.split("\n\n")[0].splitlines())
    size = sum(f.stat().st_size for f in tagger_bundle.rglob("*.*") if f.name != "manifest.json")
    assert status == 0
    assert {name: value.strip() for name, value in facts.items()} | {"drift": ""} == {
        "model": f"tagger version 1, exported {manifest.created}",
        "digest": open_bundle(tagger_bundle).digest,
        "made with": ", ".join(f"{k} {v}" for k, v in manifest.exporter.items()),
        "platforms": "cpu, cuda; verified on cpu",
        "input": "mask: int32[_, seq] (values 0..1, a mask)",  # the last of two lines
        "output": "scores: float32[_, seq, 2]",
        "axis": "seq = 4, 8",
        "format": "raw",
        "64-bit types": "off",
        "matmul precision": "default",
        "params": "3 in 1 arguments, 0.0 MB",
        "drift": "",
        "tolerance": "cuda scores: 0.004 + 0.005·|expected|",
        "goldens": "5 (20 rows)",
        "files": f"14, {size:,} B, all as recorded",
    }
    assert "input             ids: int32[_, seq] (values 0..9, padded with 0)\n" in out
    header, *programs = out.split("\n\n")[1].splitlines()
    assert header.split() == ["program", "exported", "stablehlo", "custom", "calls"]
    assert [line.split()[0] for line in programs] == ["b1-seq4", "b4-seq4", "b1-seq8", "b4-seq8"]


def test_inspect_shows_labels(classifier_bundle, capsys):
    """
    A classifier's scores and labels are shown.
    """
    main(["inspect", str(classifier_bundle)])

    assert "classification of output (logits), labels red, green, blue\n" in capsys.readouterr().out


def test_inspect_gives_machines_the_manifest(classifier_bundle, capsys):
    """
    With --json it prints manifest.json itself.
    """
    assert main(["inspect", str(classifier_bundle), "--json"]) == 0

    assert capsys.readouterr().out == (classifier_bundle / "manifest.json").read_text()


def test_inspect_needs_no_device(cuda_bundle, capsys):
    """
    A bundle for another platform can be looked at anywhere.
    """
    assert main(["inspect", str(cuda_bundle)]) == 0

    assert "platforms         cuda; verified on nothing\n" in capsys.readouterr().out


def test_bench_prints_json(classifier_bundle, capsys):
    """
    With --json each program has its medians, and the versions and hardware are there.
    """
    status = main(["bench", str(classifier_bundle), "--device", "cpu", "--seconds", "0", "--json"])

    figures = strict(capsys.readouterr().out)
    assert status == 0
    assert figures["model"] == "classifier version 1"
    assert figures["device"] == "cpu (cpu)"
    assert figures["jax"] == jax.__version__
    assert [(p["bucket"], p["rows"]) for p in figures["programs"]] == [
        ("b1", 1),
        ("b2", 2),
        ("b4", 4),
    ]
    for program in figures["programs"]:
        assert program["predict_us"] > 0
        assert program["call_us"] > 0
        assert math.isclose(
            program["rows_per_s"], program["rows"] / program["predict_us"] * 1e6, rel_tol=1e-9
        )


def test_bench_shows_a_table(classifier_bundle, capsys):
    """
    People see a line per program.
    """
    main(["bench", str(classifier_bundle), "--device", "cpu", "--seconds", "0"])

    about, table = capsys.readouterr().out.split("\n\n")
    header, *lines = table.splitlines()
    assert about == f"classifier version 1 on cpu (cpu), jax {jax.__version__}"
    assert header.split() == ["bucket", "call", "predict", "overhead", "rows/s"]
    assert [line.split()[0] for line in lines] == ["b1", "b2", "b4"]


@mark.parametrize(("suffix", "start"), [(".svg", b"<?xml"), (".png", b"\x89PNG")])
def test_bench_draws_a_chart(classifier_bundle, tmp_path, suffix, start):
    """
    With --plot the figures are drawn as an image of the type of the file's name.
    """
    chart = tmp_path / f"chart{suffix}"

    main(["bench", str(classifier_bundle), "--device=cpu", "--seconds=0", f"--plot={chart}"])

    assert chart.read_bytes().startswith(start)


def test_the_chart_of_a_bench_explains_itself(classifier_bundle, tmp_path, monkeypatch):
    """
    The chart names model, device, day and units, has its numbers, and explains what a bucket is.
    """
    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")
    file = tmp_path / "chart.svg"

    main(["bench", str(classifier_bundle), "--device=cpu", "--seconds=0", f"--plot={file}"])

    texts = re.findall(r"<text[^>]*>([^<]+)</text>", file.read_text())
    assert "classifier version 1 on cpu (cpu)" in texts
    assert {"rows per second", "milliseconds", "b1", "b2", "b4"} <= set(texts)
    [about] = [text for text in texts if "A bucket is the batch" in text]
    assert re.match(rf"\d{{4}}-\d\d-\d\d, .*, jax {re.escape(jax.__version__)}\. ", about)


@mark.e2e
def test_inspect_needs_no_jax(classifier_bundle):
    """
    Looking at a bundle imports no jax, so that it is quick and works where jax is broken.
    """
    code = (
        "import sys; from runtime.__main__ import main; status = main(sys.argv[1:]); "
        "sys.exit(status or 'jax' in sys.modules)"
    )
    command = [sys.executable, "-c", code, "inspect", str(classifier_bundle)]

    assert subprocess.run(command, capture_output=True, cwd=ROOT).returncode == 0


@mark.e2e
def test_verify_runs_as_a_process(altered):
    """
    `python -m runtime verify` works as CI calls it, exit status and all.
    """
    command = [sys.executable, "-m", "runtime", "verify", str(altered), "--device=cpu", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    assert done.returncode == 4
    assert len(strict(done.stdout)["mismatches"]) == 3


@mark.e2e
def test_reader_that_closes_the_pipe_is_no_error(classifier_bundle):
    """
    `python -m runtime inspect BUNDLE | head -1` ends quietly, as other tools do.
    """
    command = [sys.executable, "-m", "runtime", "inspect", str(classifier_bundle)]
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, env=buffered, cwd=ROOT) as process:
        process.stdout.close()
        errors = process.stderr.read()

    assert (process.returncode, errors) == (-signal.SIGPIPE, b"")


def test_bundle_is_loaded_by_what_verified_it(classifier_bundle):
    """
    The command and the library see one bundle: its digest is the same.
    """
    assert load(classifier_bundle, "cpu").bundle.digest == open_bundle(classifier_bundle).digest
