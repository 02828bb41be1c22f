"""`python -m runtime doctor`: does a bundle load, here and elsewhere, and for how long."""

import dataclasses
import datetime as dt
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from pytest import fixture, mark, raises

from runtime import device, doctor, model, open_bundle
from runtime.__main__ import main
from runtime.doctor import examine, written
from runtime.promises import JAX_BUILD_DATES
from tests.altered_bundles import (
    altered,
    with_deadly_program,
    with_expired_programs,
    with_other_golden,
)

DAY = dt.date(2026, 11, 23)
HERE = jax.__version__


@fixture(autouse=True)
def memory(monkeypatch):
    """A machine with a gigabyte left, whatever is going on in this one."""
    monkeypatch.setattr(doctor, "free_memory", lambda _: 10**9)


@fixture(scope="session")
def tree_bundle(exported):
    """x float32[_, 3] times an orthogonal basis, by custom calls for cpu and cuda; bucket 1."""
    return exported(
        "tree",
        lambda params, x: x @ jnp.linalg.qr(params["kernel"])[0],
        {"kernel": np.eye(3, dtype=np.float32) + 0.5},
        inputs=["x:float32[_,3]"],
        buckets=(1,),
    )


def found(bundle, *asked, device="cpu"):
    """Examine a bundle as of a fixed day."""
    return examine(open_bundle(bundle), device, list(asked), DAY)


def facts_of(findings):
    """Return what a person reads: each fact under its name, and the table's lines under ""."""
    text, _, table = written(findings).partition("\n\n")
    facts = dict(re.split(r" {2,}", line, maxsplit=1) for line in text.splitlines())
    return facts | {"": table.splitlines()}


def test_healthy_bundle_is_described(classifier_bundle):
    """
    A person reads what loads here, until when that is promised, and what memory it takes.
    """
    findings = found(classifier_bundle)
    windows = {p["form"]: p for p in findings["promises"]}

    facts = facts_of(findings)

    assert findings["exit_status"] == 0
    assert [line.split() for line in facts.pop("")] == [
        ["program", "form", "params", "needs"],
        *(
            [p["bucket"], "exported", "320", "B", f"{p['needs_bytes']}", "B"]
            for p in findings["programs"]
        ),
    ]
    assert facts == {
        "bundle": f"{classifier_bundle}, classifier version 1",
        "digest": f"sha256:{open_bundle(classifier_bundle).digest}",
        "loads here": f"yes, from .exported; {findings['golden_checks']} golden checks passed",
        **{
            f".{form}": f"promised to jax builds of {p['first_build']} to {p['last_build']}, "
            f"{p['days_left']} days left (by jax {HERE})"
            for form, p in windows.items()
        },
        f"jax {HERE}": f"built {JAX_BUILD_DATES[HERE]}: promised to load .exported",
        "platforms": "cpu, cuda; verified on cpu",
        "device": "cpu (cpu), 1,000,000,000 B free",
    }


def test_memory_is_what_each_program_takes(classifier_bundle):
    """
    A program needs its params, inputs, outputs and XLA's estimate of temporary memory.
    """
    findings = found(classifier_bundle)

    params = findings["programs"][0]["params_bytes"]
    needs = [program["needs_bytes"] for program in findings["programs"]]
    assert params == 320
    assert needs == sorted(needs)
    # Four inputs and three outputs to a row, of four bytes each.
    assert needs[0] >= params + 7 * 4


def test_program_that_does_not_fit_is_found(classifier_bundle, monkeypatch):
    """
    Where a program needs more than is free the bundle does not load, and the finding names the program.
    """
    monkeypatch.setattr(model, "free_memory", lambda _: 100)
    findings = found(classifier_bundle)

    assert findings["exit_status"] == 3
    assert facts_of(findings)["loads here"].startswith("NO: bucket b1: expected ")


def test_unknown_memory_is_no_failure(classifier_bundle, monkeypatch):
    """
    A device that does not report its free memory is described without it.
    """
    monkeypatch.setattr(doctor, "free_memory", lambda _: None)
    findings = found(classifier_bundle)

    assert findings["exit_status"] == 0
    assert facts_of(findings)["device"] == "cpu (cpu)"


@mark.parametrize(
    ("asked", "status", "line"),
    [
        (("0.12.0.1", None), 0, "built 2026-10-21: promised to load .exported"),
        (
            ("0.14", None),
            0,
            "its build date is not known, taken for 2026-11-23: promised to load .exported",
        ),
        (("0.14", dt.date(2027, 4, 1)), 0, "built 2027-04-01: promised to load .stablehlo"),
        (("0.12", None), 0, "built 2026-10-19: promised to load .exported"),
        (
            ("0.11.3", None),
            0,
            "its build date is not known, taken for 2026-09-17: promised to load .exported",
        ),
        (("0.30", dt.date(2032, 1, 1)), 1, "built 2032-01-01: NOT promised to load it"),
        (("0.4.30", None), 1, "older than any that reads bundles: NOT promised to load it"),
    ],
)
def test_other_versions_are_judged_by_their_dates(classifier_bundle, tmp_path, asked, status, line):
    """
    A requested version loads one of the two forms, or none, by its build date.
    """

    def old(manifest):
        manifest["exporter"] |= {"jax": "0.11.2", "jaxlib": "0.11.2"}

    findings = found(altered(classifier_bundle, tmp_path / "b", {"manifest.json": old}), asked)

    assert findings["exit_status"] == status
    assert facts_of(findings)[f"jax {asked[0]}"] == line


def test_custom_calls_have_their_own_promise(tree_bundle):
    """
    Each custom call is listed with what it runs; StableHLO's promise does not hold with them.
    """
    findings = found(tree_bundle, ("0.30", dt.date(2029, 1, 1)))

    assert findings["exit_status"] == 1
    assert findings["asked"][0]["promised_from"] is None
    last = findings["promises"][0]["last_build"]
    calls = [line for line in written(findings).splitlines() if line.startswith("custom call")]
    assert [line.split(maxsplit=2)[2] for line in calls] == [
        f"{target} ({runs}): kept up to jax builds of {last}, by .exported alone"
        for target, runs in (
            ("cusolver_geqrf_ffi", "a library of CUDA"),
            ("cusolver_orgqr_ffi", "a library of CUDA"),
            ("lapack_sgeqrf_ffi", "LAPACK, on a CPU"),
            ("lapack_sorgqr_ffi", "LAPACK, on a CPU"),
        )
    ]


def test_custom_call_that_is_not_run_is_named(classifier_bundle, tmp_path):
    """
    A custom call that is not allowed is named, and the bundle does not load.
    """

    def lie(manifest):
        manifest["programs"][0]["custom_calls"] = ["surprise"]

    findings = found(altered(classifier_bundle, tmp_path / "b", {"manifest.json": lie}))

    assert findings["exit_status"] == 3
    assert facts_of(findings)["custom call"] == "surprise: NOT one that is run"


def test_aged_bundle_says_what_it_loads_from(classifier_bundle, tmp_path):
    """
    Programs that came from StableHLO are shown as such, each with the reason.
    """
    findings = found(with_expired_programs(classifier_bundle, tmp_path / "old"))

    assert findings["exit_status"] == 0
    assert facts_of(findings)["loads here"].startswith(
        "yes, 3 programs from .stablehlo; see refresh; "
    )
    assert [program["form"] for program in findings["programs"]] == ["stablehlo"] * 3
    assert "6-month" in findings["programs"][0]["why"]


def test_wrong_answers_are_no_loading(classifier_bundle, tmp_path):
    """
    A bundle that does not reproduce its goldens does not load: exit status 4.
    """
    findings = found(with_other_golden(classifier_bundle, tmp_path / "wrong"))

    assert findings["exit_status"] == 4
    outcome = facts_of(findings)["loads here"]
    assert re.match(r"NO: \d+ golden checks failed, first: b1, output 'output'", outcome)


def test_bundle_for_another_platform_is_examined_all_the_same(cuda_bundle):
    """
    What does not load here still has its promises and platforms reported: exit status 3.
    """
    findings = found(cuda_bundle)

    assert findings["exit_status"] == 3
    assert findings["promises"]
    facts = facts_of(findings)
    assert facts["loads here"].startswith(f"NO: bundle {cuda_bundle}: needs platform cuda, ")
    assert facts["platforms"] == "cuda; verified on none"


def test_absent_device_is_distinguished(classifier_bundle):
    """
    A device that is not there has an exit status of its own, and no memory.
    """
    findings = found(classifier_bundle, device="cuda")

    assert (findings["exit_status"], findings["device"]) == (5, None)
    assert facts_of(findings)["device"] == "none"


def test_nothing_is_promised_of_a_strange_writer(classifier_bundle, tmp_path):
    """
    A bundle of a jax that could not have written it loads here, without a compatibility window.
    """
    old = {"manifest.json": lambda m: m["exporter"].update(jax="0.1", jaxlib="0.1")}
    findings = found(altered(classifier_bundle, tmp_path / "b", old))

    assert (findings["loads"], findings["exit_status"]) == (True, 1)


@mark.e2e
def test_deadly_bundle_is_examined_all_the_same(tmp_path):
    """
    A bundle that ends the process that opens it has its promises reported, and the signal: exit status 3.
    """
    bundle = with_deadly_program(tmp_path / "deadly")

    findings = found(bundle)

    assert findings["exit_status"] == 3
    assert findings["promises"]
    assert facts_of(findings)["loads here"] == (
        f"NO: bundle {bundle}: ended the process that opened it: SIGSEGV; it is damaged, or made "
        "to do that"
    )


def test_memory_is_reported_where_params_do_not_fit(classifier_bundle, monkeypatch):
    """
    A device without memory for the params fails, and the table has the memory of each program.
    """

    def full(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nat length")

    monkeypatch.setattr(jax, "device_put", full)
    findings = found(classifier_bundle)

    assert findings["exit_status"] == 5
    assert findings["error"] == "params: RESOURCE_EXHAUSTED: Out of memory"
    assert all(program["needs_bytes"] for program in findings["programs"])


def test_memory_that_runs_out_is_reported(classifier_bundle, monkeypatch):
    """
    Where this process gets no memory for the goldens, that is a finding like any other.
    """

    def full(*_):
        raise MemoryError("Unable to allocate 1 TiB")

    monkeypatch.setattr(doctor, "check_goldens", full)
    findings = found(classifier_bundle)

    assert findings["exit_status"] == 5
    assert facts_of(findings)["loads here"] == "NO: not enough memory: Unable to allocate 1 TiB"


def test_json_says_what_is_no_bundle(tmp_path, capsys):
    """
    --json is JSON where there is nothing to examine, too.
    """
    assert main(["doctor", str(tmp_path), "--json"]) == 3

    assert json.loads(capsys.readouterr().out) == {
        "bundle": str(tmp_path),
        "loads": False,
        "error": f"bundle {tmp_path}: expected manifest.json, got no regular file of that name; an "
        "export that was interrupted leaves none",
        "exit_status": 3,
    }


@mark.parametrize("command", [[], ["doctor"], ["verify"]])
def test_help_has_the_exit_statuses(capsys, command):
    """
    Whoever writes a CI job finds in --help what each exit status means.
    """
    with raises(SystemExit):
        main([*command, "--help"])

    text = " ".join(capsys.readouterr().out.split())
    assert all(f" {status} " in text.partition("Exit status:")[2] for status in range(6))


@mark.parametrize("command", ["doctor", "inspect"])
def test_text_of_a_bundle_cannot_draw(classifier_bundle, tmp_path, capsys, command):
    """
    What was written into a manifest is shown with its control characters spelt out.
    """

    def draw(manifest):
        manifest["exporter"] |= {"jax": "0.12.0.1\x1b[2J\nloads here  yes"}

    bundle = altered(classifier_bundle, tmp_path / "b", {"manifest.json": draw})

    main([command, str(bundle)])

    printed = capsys.readouterr().out
    assert "0.12.0.1\\x1b[2J\\nloads here  yes" in printed
    assert "\x1b" not in printed


def test_error_about_a_bundle_cannot_draw(tagger_bundle, tmp_path, capsys):
    """
    Control characters of a manifest are escaped in an error, which stays one line.
    """

    def draw(manifest):
        manifest["exporter"] |= {"jax": "0.1\x1b[2J\nok: 24 golden checks"}

    changes = dict.fromkeys(
        ("programs/b1-seq4.exported", "programs/b1-seq4.stablehlo"), bytes.upper
    )
    bundle = altered(tagger_bundle, tmp_path / "b", {"manifest.json": draw, **changes})

    assert main(["verify", str(bundle)]) == 3

    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        "error: programs/b1-seq4.exported: exported by jax 0.1\\x1b[2J\\nok: 24 golden checks, "
    )


def test_machines_read_json(classifier_bundle, capsys):
    """
    --json prints the findings; the command ends with their exit status.
    """
    asked = ["--jax", "0.12.0.1", "--jax", "0.30=2032-01-01", "--jax", "0.30=2027-01-01"]
    command = ["doctor", str(classifier_bundle), "--device", "cpu", "--json", *asked]

    assert main(command) == 1

    findings = json.loads(capsys.readouterr().out)
    assert [judged["promised_from"] is None for judged in findings["asked"]] == [False, True, False]
    assert findings["digest"] == f"sha256:{open_bundle(classifier_bundle).digest}"
    assert findings["platforms"] == ["cpu", "cuda"]


@mark.parametrize("asked", ["new", "0.14=tomorrow", "0.14=", "=2027-01-01", "\u0660.14"])
def test_version_that_is_none_is_refused(classifier_bundle, capsys, asked):
    """
    What is no version, or no date, is wrong usage.
    """
    with raises(SystemExit) as ended:
        main(["doctor", str(classifier_bundle), "--jax", asked])

    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: argument --jax: expected a version such as 0.14, or 0.14=2027-02-01, got "
        f"{asked!r}\n"
    )


@dataclasses.dataclass
class Gpu:
    """The properties of a CUDA device."""

    platform: str = "gpu"
    client: object = dataclasses.field(
        default_factory=lambda: SimpleNamespace(platform_version="PJRT C API\ncuda 12090")
    )

    def memory_stats(self):
        """Return the memory."""
        return {"bytes_limit": 1000, "bytes_in_use": 400}


def test_driver_and_cuda_are_reported(tmp_path, monkeypatch):
    """
    A CUDA device has the version of its runtime, and the driver's as the kernel reports it.
    """
    facts_of = tmp_path / "version"
    facts_of.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15\nGCC version: 12\n"
    )
    monkeypatch.setattr(device, "_DRIVER", facts_of)

    assert device.driver_versions(Gpu()) == {
        "runtime": "PJRT C API, cuda 12090",
        "driver": "NVIDIA UNIX x86_64 Kernel Module  570.86.15",
    }
    assert device.free_memory(Gpu()) == 600


def test_cpu_has_the_memory_of_machine_and_container(tmp_path, monkeypatch):
    """
    What a CPU has left is what the machine has, or less where its container is limited.
    """
    cpu = SimpleNamespace(platform="cpu", memory_stats=lambda: None)
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    monkeypatch.setattr(device, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(device, "_CGROUP", tmp_path)
    assert device.free_memory(cpu) == 4_096_000

    (tmp_path / "memory.current").write_text("1000000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert device.free_memory(cpu) == 4_096_000

    (tmp_path / "memory.max").write_text("3000000\n")
    assert device.free_memory(cpu) == 2_000_000

    (tmp_path / "memory.max").write_text("1000000\n")
    assert device.free_memory(cpu) == 0


def test_files_that_were_read_leave_a_container_its_memory(tmp_path, monkeypatch):
    """
    What a container keeps of the files it has read is free: it makes way for other uses.
    """
    monkeypatch.setattr(device, "_MEMORY", tmp_path / "nothing")
    monkeypatch.setattr(device, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2900000\n")
    (tmp_path / "memory.stat").write_text(
        "anon 400000\nfile 2500000\ninactive_file 1500000\nactive_file 900000\nshmem 100000\n"
    )

    cpu = SimpleNamespace(platform="cpu", memory_stats=lambda: None)
    assert device.free_memory(cpu) == 2_500_000


def test_machine_that_says_nothing_has_no_memory_to_tell(tmp_path, monkeypatch):
    """
    Where no free memory is reported, no figure is invented.
    """
    monkeypatch.setattr(device, "_MEMORY", tmp_path / "nothing")
    monkeypatch.setattr(device, "_CGROUP", tmp_path)

    assert device.free_memory(SimpleNamespace(platform="cpu", memory_stats=lambda: None)) is None
    assert device.free_memory(SimpleNamespace(platform="tpu", memory_stats=lambda: None)) is None
