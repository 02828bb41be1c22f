"""What is written is proven before it is put in place, and refused where it fails."""

import dataclasses
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from export import ExportError, RowMixing, VerificationError, export_model, exporting, verification
from export.lowering import lower, trace
from runtime import IncompatibleProgram, Model, load, open_bundle
from runtime.child_process import python_command
from runtime.verify import verify
from tests.export.conftest import verify_here

X = "x:float32[_,3]"
WEIGHTS = {"w": np.arange(6, dtype=np.float32).reshape(3, 2), "b": np.ones(2, np.float32)}


def affine(params, x):
    """A stand-in for any model."""
    return x @ params["w"] + params["b"]


def training_norm(_params, x):
    """Normalize by the statistics of the batch, as BatchNorm does when it trains."""
    return (x - x.mean(0)) / (x.std(0) + 1e-3)


def softmax_across_rows(_params, x):
    """Return one output that is row by row and one that is not."""
    return {"fine": x * 2, "mixed": jax.nn.softmax(x, axis=0)}


def capacity_routing(_params, x):
    """
    Each row goes to the expert of its own value, which takes two rows and drops the rest,
    so only copies of a row can push it out.
    """
    same = (x[:, None, 0] == x[None, :, 0]) & jnp.tri(len(x), k=-1, dtype=bool)
    return jnp.where(same.sum(1, keepdims=True) < 2, x, 0)


@pytest.mark.parametrize(
    ("model", "bucket", "output", "cause"),
    [
        (training_norm, "b2", "output", "became random"),
        (softmax_across_rows, "b2", "mixed", "became random"),
        (capacity_routing, "b4", "output", "became copies of it"),
    ],
)
def test_row_mixing_is_refused(refusal, model, bucket, output, cause):
    """
    A model whose rows depend on each other is refused, naming bucket, output, what was
    changed and by how much the answer moved.
    """
    message = refusal(model, kind=RowMixing)

    assert message.startswith(
        f"a row's answer depends on the rows beside it: {bucket}, output '{output}': row "
    )
    assert f" when the other rows {cause}" in message
    change = float(message.split("changed by ")[1].split(" ")[0])
    assert change > 0.01
    assert "'fine'" not in message
    assert message.endswith(
        "Is BatchNorm in training mode, or does something normalize or route across the batch? "
        "--allow-row-mixing exports it all the same, and a server then runs every request alone"
    )


@pytest.mark.parametrize(
    ("model", "causes"),
    [(training_norm, {"random", "zeros", "NaN", "extremes"}), (capacity_routing, {"copies of it"})],
)
def test_large_buckets_name_what_rows_depend_on(export, model, causes):
    """Where rows of a large program mix, a run for each cause names them."""
    made = export(model, allow_row_mixing=True, buckets=(1, 16))

    reasons = [reason for reason in made.manifest.row_mixing if reason.startswith("b16, ")]
    assert causes <= {reason.rpartition(" became ")[2] for reason in reasons}


def test_a_sign_of_mixing_that_no_probe_explains_is_reported(export, monkeypatch):
    """What a few runs have seen is not forgotten where no single cause shows it again."""
    made = export(capacity_routing, allow_row_mixing=True, buckets=(16,))
    monkeypatch.setattr("runtime.verify.check_rows", lambda *_, **__: [])

    (found,) = verify(made.model, independent=["b16"]).mixing
    assert str(found).startswith("b16, output 'output': row ")
    assert str(found).endswith(" when the other rows became copies of it")


def unless_most_are_zero(_params, x):
    """Let a row see the others only where all but a few of them are zeros."""
    return x + (jnp.all(x == 0, axis=1).sum() >= len(x) - 3)


def between_two_rows(_params, x):
    """Let a row at one certain place see one other at a certain place."""
    return x.at[5].add(jnp.where(jnp.isnan(x[3]), 1, 0))


def test_rows_that_meet_in_rare_cases_are_refused(refusal):
    """What shows only where all other rows are of one kind is found in large programs as well."""
    message = refusal(unless_most_are_zero, buckets=(16,), kind=RowMixing)

    assert "b16, output 'output': row " in message
    assert "changed by 1 when the other rows became zeros" in message


@pytest.mark.parametrize(
    ("model", "proven"),
    [
        (affine, ["b1", "b4", "b16"]),
        (training_norm, ["b1"]),
        (capacity_routing, ["b1"]),
        (unless_most_are_zero, ["b1"]),
        (between_two_rows, []),
    ],
)
def test_few_runs_are_for_what_structure_shows(tmp_path, monkeypatch, model, proven):
    """The process that verifies gets the programs whose structure shows independent rows."""
    passed = []

    def recorded_run(bundle, platform, independent, progress):
        passed.extend(independent)
        return verify_here(bundle, platform, independent, progress)

    monkeypatch.setattr(verification, "_run", recorded_run)
    buckets = (8, 16) if model is between_two_rows else (1, 4, 16)
    report = export_model(
        model,
        WEIGHTS,
        inputs=[X],
        buckets=buckets,
        platforms=("cpu",),
        allow_row_mixing=True,
        out=tmp_path / "b",
    )

    assert passed == proven
    assert [p.bucket for p in report.programs if p.rows_unproven is None] == proven


def test_the_report_says_what_shows_that_rows_are_independent(export):
    """The report has a line for people: structure, or the operation in its way, and the buckets."""
    assert "rows     independent by structure" in export(affine, WEIGHTS).report._lines()

    mixed = export(training_norm, allow_row_mixing=True).report
    (line,) = [line for line in mixed._lines() if line.startswith("rows ")]
    assert line.startswith(
        "rows     structure does not show that they are independent in b2, b4: reduce_sum (test_proof.py, line "
    )
    assert line.endswith("): it reduces over the batch")


@pytest.mark.parametrize(
    ("independent", "expected"), [(("b8", "b16"), [2 + 3, 1 + 2]), ((), [2 + 16, 1 + 8])]
)
def test_rows_are_proven_with_few_runs(export, monkeypatch, independent, expected):
    """Large programs whose rows are independent by structure run few batches beside their goldens."""
    model = export(affine, WEIGHTS, buckets=(1, 8, 16)).model
    runs, run = [], Model.run

    def counted(self, program, inputs):
        runs.append((program.batch, b"".join(a.tobytes() for a in inputs)))
        return run(self, program, inputs)

    monkeypatch.setattr(Model, "run", counted)
    report = verify(model, independent=independent)

    assert (report.mismatches, report.mixing) == ((), ())
    (golden,) = model.manifest.goldens
    assert golden.rows == 16
    assert [[batch for batch, _ in runs].count(b) for b in (1, 8, 16)] == [16, *expected]


def test_only_copies_show_capacity_routing(refusal):
    """The routing model passes every other change of its batch-mates."""
    message = refusal(capacity_routing, buckets=(1, 2, 4))
    assert message.count("when the other rows") == 1


@pytest.mark.parametrize("model", [training_norm, softmax_across_rows, capacity_routing])
def test_row_mixing_is_recorded_where_it_is_allowed(export, model, monkeypatch):
    """--allow-row-mixing exports the model, with goldens of each bucket and the reasons."""
    made = export(model, allow_row_mixing=True)
    m = made.manifest

    assert m.row_mixing
    assert m.row_mixing == made.report.row_mixing
    assert all(" changed by " in reason for reason in m.row_mixing)
    assert sorted(g.rows for g in m.goldens) == [1, 2, 4]
    assert verify(made.model).mismatches == ()

    # As a device would measure it that runs small buckets fastest.
    monkeypatch.setattr("runtime.model.run_times", lambda batches, _: {n: 10.0**n for n in batches})
    made.model.measure()
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    expected = model(None, x)
    for name, got in made.predict(x=x).items():
        want = expected[name] if isinstance(expected, dict) else expected
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_goldens_of_a_file_become_each_buckets_where_rows_mix(export):
    """Given golden rows are repeated or cut to each bucket of a row-mixing model."""
    golden = {"x": np.arange(9, dtype=np.float32).reshape(3, 3)}
    made = export(training_norm, allow_row_mixing=True, golden=golden)

    found = {g.rows: made.model.bundle.map(g.file)["input/x"] for g in made.manifest.goldens}
    assert sorted(found) == [1, 2, 4]
    np.testing.assert_array_equal(found[4], golden["x"][[0, 1, 2, 0]])


def test_a_model_that_does_not_mix_records_nothing(export):
    """Allowing row mixing does not make a model one that mixes."""
    made = export(affine, WEIGHTS, allow_row_mixing=True)
    assert made.manifest.row_mixing == ()


def test_cuda_alone_is_refused_where_there_is_none(refusal):
    """What cannot be verified here is refused, naming both sides."""
    assert refusal(affine, WEIGHTS, platforms=("cuda",)) == (
        "platforms: expected one that this machine has, to verify the bundle on, got cuda and a "
        "machine with cpu; add cpu, or pass --unverified"
    )


def test_an_unverified_bundle_says_so(tmp_path):
    """--unverified exports for absent platforms, and the manifest has no verified platform."""
    report = export_model(
        affine,
        WEIGHTS,
        inputs=[X],
        buckets=(1,),
        platforms=("cuda",),
        unverified=True,
        out=tmp_path / "b",
    )
    m = open_bundle(tmp_path / "b").manifest

    assert (m.platforms, m.verified, m.drift, m.row_mixing) == (("cuda",), (), {}, ())
    assert (report.verified, report.programs[0].max_error) == ((), None)
    with pytest.raises(IncompatibleProgram, match="needs platform cuda, this device is cpu"):
        load(tmp_path / "b", "cpu")


def test_an_unverified_bundle_that_may_mix_rows_says_so(tmp_path):
    """Where rows were not checked, an allowed row mixing counts as row mixing."""
    options = {"allow_row_mixing": True, "unverified": True, "platforms": ("cuda",)}
    export_model(training_norm, inputs=[X], buckets=(1, 2), out=tmp_path / "b", **options)
    assert open_bundle(tmp_path / "b").manifest.row_mixing == (
        "rows may depend on each other: it was allowed, and nothing has looked yet",
    )


def test_unverified_still_verifies_what_it_can(export):
    """--unverified is no reason to skip a platform that is here."""
    made = export(affine, WEIGHTS, unverified=True, platforms=("cpu", "cuda"))
    assert made.manifest.verified == ("cpu",)


def something_else(platforms):
    """Lower a program of the right shapes that answers something else."""

    def program(params, inputs):
        return (inputs[0] @ params[0] + 1,)

    def run(traced, _platforms):
        return lower(trace(program, *traced.arguments), platforms)

    return run


def test_programs_that_answer_wrongly_are_refused(refusal, monkeypatch):
    """A program that is not the model is caught, and the difference is shown."""
    monkeypatch.setattr(exporting, "lower", something_else(["cpu"]))
    message = refusal(lambda params, x: x @ params, WEIGHTS["w"], kind=VerificationError)

    assert message.startswith(
        "the programs do not answer as the model does, on cpu: b1, output 'output'["
    )
    assert "; max |Δ| 1, accepted " in message
    assert message.endswith("(golden/0.safetensors)")


def test_programs_that_do_not_load_are_refused(refusal, monkeypatch):
    """A program that cannot be loaded again is refused with the loader's error."""

    def broken(traced, platforms):
        return dataclasses.replace(lower(traced, platforms), exported=b"no program")

    monkeypatch.setattr(exporting, "lower", broken)
    monkeypatch.setattr(verification, "_run", _RUN)
    message = refusal(affine, WEIGHTS, buckets=(1,), kind=VerificationError)
    assert message.startswith(
        "the written bundle does not load: error: programs/b1.exported: exported by jax "
    )


_RUN = verification._run


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            "the bundle ends the process that loads it: SIGSEGV",
        ),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "the bundle ends the process that loads it: SIGKILL",
        ),
        (
            "import sys; sys.exit('no such thing')",
            "the written bundle does not load: no such thing",
        ),
        ("import sys; sys.exit(3)", "the written bundle does not load: exit status 3"),
        ("print('not JSON')", "the written bundle does not load: exit status 0"),
    ],
)
def test_a_process_that_fails_to_verify_is_reported(tmp_path, monkeypatch, code, message):
    """However the verifying process ends, the export reports it, and leaves nothing behind."""
    monkeypatch.setattr(verification, "_CHILD", code)
    with pytest.raises(VerificationError) as caught:
        export_model(
            affine, WEIGHTS, inputs=[X], buckets=(1,), platforms=("cpu",), out=tmp_path / "x" / "b"
        )
    assert str(caught.value) == message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["flax", "orbax", "optax", "tensorflow", "export"])
def test_the_verifying_process_cannot_import_flax(name):
    """What verifies a bundle has nothing of what made it."""
    prefix = verification._CHILD.split("from runtime")[0]
    ran = subprocess.run(
        python_command(f"{prefix}import {name}"),
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1
    assert f"import of {name} halted" in ran.stderr


def test_goldens_run_through_every_bucket(export):
    """Every program has answered every golden row, and the report shows the largest error."""
    made = export(affine, WEIGHTS, buckets=(1, 2, 4))
    report = verify(made.model)

    assert [check.bucket for check in report.goldens] == ["b1", "b2", "b4"]
    assert [p.bucket for p in made.report.programs] == ["b1", "b2", "b4"]
    assert all(p.max_error < 1e-5 for p in made.report.programs)


def test_refusals_are_of_one_kind():
    """Everything that an export refuses can be caught as ExportError."""
    assert issubclass(RowMixing, ExportError)
    assert issubclass(VerificationError, ExportError)
