"""Outputs that rightly hold infinities: declared, proven element by element, or refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from export import ExportError, TensorSpec, VerificationError, export_model
from runtime import load, open_bundle
from runtime.__main__ import main

W = np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3)
IDS = TensorSpec(name="ids", dtype="int32", shape=("_", "seq"), minimum=0, maximum=9)
OP_BY_OP = "(the un-exported model, op by op)"
MEANT = "; where the model means it, as for masked logits or suppressed tokens, pass"


def suppressed(params, x):
    """Return logits of which the first is never possible."""
    return (x @ params).at[:, 0].set(-jnp.inf)


def masked(params, ids):
    """Score each token, a padding one not at all."""
    return {"scores": jnp.where(ids == 0, -jnp.inf, params[ids]), "total": params[ids].sum(1)}


def test_declared_infinities_are_exported(export):
    """The bundle returns -inf where the model does, declares it in the manifest, and has format 4 for that."""
    made = export(suppressed, W, allow_infinite=["output"])

    x = np.ones((3, 3), np.float32)
    np.testing.assert_allclose(made.answer(x=x), np.asarray(suppressed(W, jnp.array(x))), 1e-5)
    assert made.manifest.format_version == 4
    assert [spec.nonfinite for spec in made.manifest.signature.outputs] == ["infinities"]
    assert made.manifest.drift["output"] < 1e-5
    assert made.report.outputs == ("output: float32[_, 3] (may be infinite)",)
    assert made.report.scale["output"] < 100
    assert made.report.notes == ()


def test_declared_infinities_do_not_loosen_the_tolerance(export):
    """What is accepted follows from the finite values beside them."""
    plain = export(lambda params, x: x @ params, W).manifest.tolerances["cpu"]["output"]
    made = export(suppressed, W, allow_infinite="output").manifest.tolerances["cpu"]["output"]

    assert made.rtol == plain.rtol
    assert plain.atol / 3 < made.atol < plain.atol * 3


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        ((-np.inf,), "-inf at [0, 0], 4 of 12"),
        ((np.inf,), "inf at [0, 0], 4 of 12"),
        ((np.inf, -np.inf), "-inf at [0, 1] and inf at [0, 0], 8 of 12"),
    ],
)
def test_undeclared_infinities_name_the_option(refusal, values, seen):
    """The refusal reports which infinities there are, where first and how many, and how to declare them."""

    def model(params, x):
        y = x @ params
        for i, value in enumerate(values):
            y = y.at[:, i].set(value)
        return y

    assert refusal(model, W) == (
        f"golden: output 'output': expected finite values, got {seen} that are not {OP_BY_OP}"
        f"{MEANT} --allow-infinite output"
    )


def test_only_the_declared_output_may_be_infinite(refusal):
    """Another output of the same model is refused, by its name."""
    message = refusal(
        lambda params, x: {"a": suppressed(params, x), "b": suppressed(params, x)},
        W,
        allow_infinite=["a"],
    )

    assert message.startswith("golden: output 'b': expected finite values, got -inf at [0, 0]")
    assert message.endswith("--allow-infinite b")


def test_nan_is_refused_where_infinities_are_allowed(refusal):
    """NaN is an error whatever is declared, and the message does not suggest allowing it."""
    message = refusal(
        lambda params, x: suppressed(params, x).at[1, 2].set(jnp.nan),
        W,
        allow_infinite=["output"],
    )

    assert message == (
        "golden: output 'output': expected finite values or infinities, got NaN at [1, 2], 1 of 12 "
        f"that are not {OP_BY_OP}; pass representative inputs with --golden FILE"
    )


@pytest.mark.parametrize("compiled", [0.0, np.inf, np.nan], ids=["finite", "other-sign", "nan"])
def test_a_program_that_is_infinite_elsewhere_is_refused(refusal, compiled):
    """A program has to return each infinity of the model, with its sign, and no NaN for it."""

    def model(params, x):
        value = compiled if isinstance(x, jax.core.Tracer) else -jnp.inf
        return (x @ params).at[:, 0].set(value)

    message = refusal(model, W, allow_infinite=["output"], kind=VerificationError)

    assert message.startswith(
        "the programs do not answer as the model does, on cpu: b1, output 'output'[0, 0]: expected "
        f"-inf, got {compiled}; max |Δ| inf, accepted "
    )


def test_masked_scores_of_every_length_are_proven(export):
    """On a bucketed axis infinities are compared in longer buckets too, and cut with the axis."""
    table = np.arange(10, dtype=np.float32)
    table[0] = 0
    made = export(masked, table, inputs=[IDS], axes={"seq": (4, 8)}, allow_infinite=["scores"])

    answer = made.predict(ids=np.array([[1, 0, 3, 0, 5]], np.int32))
    np.testing.assert_array_equal(answer["scores"], [[1, -np.inf, 3, -np.inf, 5]])
    assert answer["total"].tolist() == [9]
    assert made.manifest.drift == {"scores": 0.0, "total": 0.0}
    assert made.manifest.row_mixing == ()


def test_padding_that_moves_an_infinity_is_refused(refusal):
    """An infinity that depends on how far a row is padded is a wrong answer."""

    def last_is_impossible(params, ids):
        return params[ids].at[:, -1].set(-jnp.inf)

    message = refusal(
        last_is_impossible,
        np.arange(10, dtype=np.float32),
        inputs=[IDS],
        axes={"seq": (4, 8)},
        allow_infinite=["output"],
        kind=VerificationError,
    )

    assert "expected -inf, got " in message


def test_mixed_rows_are_recognised_by_their_infinities(refusal):
    """A row that another one makes impossible depends on it."""

    def best_of_all(params, x):
        y = x @ params
        return jnp.where(y >= y.max(axis=0), y, -jnp.inf)

    message = refusal(best_of_all, W, allow_infinite=["output"])

    assert message.startswith("a row's answer depends on the rows beside it: b2, output 'output'")
    assert "changed by inf when" in message


def test_an_infinity_that_no_golden_shows_is_noted(export, tmp_path):
    """Nothing is proven of what is not tried; rows that try it can be passed."""
    model, options = lambda _, x: jnp.where(x > 5, jnp.inf, x), {"allow_infinite": ["output"]}
    made = export(model, **options)
    rows = tmp_path / "rows.safetensors"
    save_file({"x": np.array([[1, 9, 2], [7, 7, 7]], np.float32)}, rows)

    (note,) = made.report.notes
    assert note == (
        "output 'output' may be infinite, and is not in any golden: that the program then answers "
        "as the model does is not shown; pass rows that make it so with --golden FILE"
    )
    assert export(model, golden=rows, **options).report.notes == ()


def test_casting_that_makes_an_infinity_is_refused(refusal):
    """An overflow of float16 is refused: it is not the infinity that was declared."""
    message = refusal(
        lambda params, x: x.astype(params.dtype) * 0 + params * params,
        np.full((3,), 300, np.float32),
        allow_infinite=["output"],
        dtype="float16",
    )

    assert message == (
        "golden: output 'output': expected 90000 at [0, 0], got inf with params cast to float16; "
        "export with another --dtype, or without"
    )


@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        (
            ["logit"],
            "allow_infinite: expected some of ids, logits, got 'logit'; did you mean 'logits'?",
        ),
        (["ids"], "allow_infinite: expected an output of floats, got 'ids', int32[_, 3]"),
        ([3], "allow_infinite: expected names of outputs such as ['logits'], got [3]"),
    ],
)
def test_what_cannot_be_infinite_is_not_allowed_to(refusal, allowed, message):
    """Only an output of floats that exists can be declared."""

    def model(params, x):
        return {"logits": suppressed(params, x), "ids": x.astype(jnp.int32)}

    assert refusal(model, W, allow_infinite=allowed) == message


def test_probabilities_are_never_infinite(refusal):
    """Whoever declares infinite probabilities has logits."""
    message = refusal(
        suppressed, W, allow_infinite=["output"], output="classification:probabilities"
    )

    assert message == (
        "allow_infinite: expected no output of probabilities, got 'output'; pass --output "
        "classification:logits:output if it holds logits"
    )


def test_inputs_are_not_declared_so(tmp_path):
    """An input's infinities need no declaration: a caller may send any float."""
    spec = TensorSpec(name="x", dtype="float32", shape=("_", 3), nonfinite="infinities")

    with pytest.raises(ExportError) as caught:
        export_model(suppressed, W, inputs=[spec], out=tmp_path / "bundle")

    assert str(caught.value) == (
        "input 'x': expected no nonfinite for an input, got 'infinities'; name outputs with "
        "allow_infinite"
    )


def test_the_flag_declares_outputs(command, folder):
    """`--allow-infinite` can be repeated, and overrides the file's own spec."""
    (folder / "choose.py").write_text(
        "import jax.numpy as jnp\n"
        "def choose(params, x):\n"
        "    y = (x @ params['w']).at[:, 0].set(-jnp.inf)\n"
        "    return {'a': y, 'b': -y}\n"
    )
    given = ("choose.py:choose", "--params", "affine.safetensors", "--input", "x:float32[_,3]")
    given += ("--buckets", "1,2", "--platforms", "cpu", "--out", "bundle")

    one = command(*given, "--allow-infinite", "a")
    both = command(*given, "--allow-infinite", "a", "--allow-infinite", "b", "--json")

    assert (one.status, one.error.partition(":")[0]) == (1, "golden")
    assert both.json["outputs"] == [
        "a: float32[_, 2] (may be infinite)",
        "b: float32[_, 2] (may be infinite)",
    ]


def test_every_command_shows_declared_infinities(export, tmp_path, capsys):
    """Inspecting, benching, examining and refreshing a bundle name the outputs that may be infinite."""
    made = export(suppressed, W, allow_infinite=["output"], buckets=(1,))
    fresh = tmp_path / "fresh"
    said = []
    for command in (
        ("inspect", made.path),
        ("bench", made.path, "--seconds", "0.01"),
        ("doctor", made.path),
        ("refresh", made.path, "--out", fresh),
        ("verify", fresh, "--device", "cpu"),
    ):
        assert main([str(word) for word in command]) == 0
        said.append(capsys.readouterr().out)

    assert "output            output: float32[_, 3] (may be infinite)\n" in said[0]
    assert "\nmay be infinite: output\n" in said[1]
    assert "\nmay be infinite  output output\n" in said[2]
    assert said[3].endswith("; may be infinite: output\n")
    assert said[4].startswith("ok: 1 golden checks, 0 failed;")
    assert open_bundle(fresh).manifest.format_version == 4
    assert load(fresh, "cpu").signature.outputs[0].nonfinite == "infinities"
