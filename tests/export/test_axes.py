"""A second bucketed axis: declared, padded, masked, cropped, and proven not to matter."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from export import TensorSpec, VerificationError
from runtime import SignatureMismatch
from runtime.description import description
from runtime.node import to_json
from runtime.signature import Axis

IDS = TensorSpec(name="ids", dtype="int32", shape=("_", "seq"), minimum=0, maximum=9)
MASK = TensorSpec(name="mask", dtype="int32", shape=("_", "seq"), mask=True)
RANGED = dataclasses.replace(MASK, minimum=0, maximum=1)
TABLE = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)


def mean(params, ids):
    """Average over all positions, the padded ones too."""
    return params[ids].mean(1)


def masked(params, ids, mask):
    """Average over real positions; also return each position's own vector and the ids."""
    weight = mask[..., None].astype(jnp.float32)
    vectors = params[ids]
    return {
        "mean": (vectors * weight).sum(1) / weight.sum(1),
        "vectors": vectors,
        "last": ids[:, ::-1],
    }


@pytest.fixture(scope="module")
def lengths():
    """Requests of every length up to the longest bucket."""
    rng = np.random.default_rng(1)
    return [rng.integers(0, 10, (3, n), dtype=np.int32) for n in range(1, 9)]


@pytest.fixture(scope="module")
def bundle(export):
    """The masked model with sizes 4 and 8."""

    def apply(params, ids, mask):
        found = masked(params, ids, mask)
        return {"mean": found["mean"], "vectors": found["vectors"]}

    return export(apply, TABLE, inputs=[IDS, MASK], axes={"seq": (4, 8)}, buckets=(1, 2))


def test_a_masked_model_answers_every_length(bundle, lengths):
    """
    A request of any length up to the longest gets the model's own answer for exactly that
    length, whether it brings a mask or not, and outputs with the axis are cropped to it.
    """
    for ids in lengths:
        mask = np.ones_like(ids)
        for inputs in ({"ids": ids}, {"ids": ids, "mask": mask}):
            got = bundle.predict(**inputs)
            expected = masked(TABLE, ids, mask)
            assert got["vectors"].shape == (3, ids.shape[1], 4)
            np.testing.assert_allclose(got["mean"], expected["mean"], rtol=1e-5)
            np.testing.assert_array_equal(got["vectors"], expected["vectors"])


def test_a_callers_mask_is_used(bundle, lengths):
    """A mask that hides real positions is the one the model sees."""
    ids = lengths[5]
    mask = np.array([[1, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]], np.int32)
    expected = masked(TABLE, ids, mask)["mean"]
    np.testing.assert_allclose(bundle.predict(ids=ids, mask=mask)["mean"], expected, rtol=1e-5)


def test_the_axis_is_declared(bundle):
    """Sizes, mask, pad and the outputs that have the axis are in the manifest."""
    m = bundle.manifest

    assert m.signature.inputs == (IDS, RANGED)
    assert [(axis.name, axis.sizes) for axis in m.signature.axes] == [("seq", (4, 8))]
    assert {o.name: str(o) for o in m.signature.outputs} == {
        "mean": "float32[_, 4]",
        "vectors": "float32[_, seq, 4]",
    }
    assert [p.exported.path for p in m.programs] == [
        f"programs/b{batch}-seq{size}.exported" for size in (4, 8) for batch in (1, 2)
    ]


def test_goldens_lie_at_and_between_the_sizes(bundle):
    """Goldens have each size of the axis, one between it and the next smaller, and the least."""
    assert [dict(g.axes) for g in bundle.manifest.goldens] == [
        {"seq": 4},
        {"seq": 8},
        {"seq": 2},
        {"seq": 6},
        {"seq": 1},
    ]


def test_goldens_are_the_models_answers_at_their_own_length(bundle):
    """What a golden expects was computed without padding."""
    for golden in bundle.manifest.goldens:
        tensors = bundle.model.bundle.map(golden.file)
        ids = tensors["input/ids"]
        assert ids.shape == (4, golden.axes["seq"])
        np.testing.assert_allclose(tensors["output/mean"], TABLE[ids].mean(1), rtol=1e-5)


def test_an_unmasked_mean_is_refused(refusal):
    """A model whose answer changes with padding is refused, saying where and by how much."""
    message = refusal(
        mean, TABLE, inputs=[IDS], axes={"seq": (4, 8)}, buckets=(1, 2), kind=VerificationError
    )
    assert message.startswith(
        "the programs do not answer as the model does, on cpu: b1-seq8, output 'output'["
    )
    assert "; max |Δ| " in message
    assert message.endswith(
        "does padding of a bucketed axis mean something to the model? Give it a mask, or one size"
    )


def test_a_model_that_reads_from_the_end_is_refused(refusal):
    """Where padding moves what a position means, that output is named."""
    message = refusal(masked, TABLE, inputs=[IDS, MASK], axes={"seq": (4, 8)}, buckets=(1,))
    assert "b1-seq8, output 'last'[" in message


def test_padding_is_caught_below_the_smallest_size_too(refusal):
    """With one size there are still shorter requests, and they are proven as well."""
    message = refusal(mean, TABLE, inputs=[IDS], axes={"seq": (4,)}, buckets=(1,))
    assert "b1-seq4, output 'output'" in message
    assert message.count("(golden/1.safetensors)") == 1


def skipping_nines(params, ids):
    """Average over all positions but those whose id is 9."""
    weight = (ids != 9)[..., None].astype(jnp.float32)
    return (params[ids] * weight).sum(1) / jnp.maximum(weight.sum(1), 1)


def test_a_pad_value_that_the_model_skips_needs_no_mask(export, refusal, lengths):
    """Padded with the id that it ignores, a model may have the axis; with another not."""
    options = {"axes": {"seq": (4, 8)}, "buckets": (1, 2)}
    made = export(skipping_nines, TABLE, inputs=[dataclasses.replace(IDS, pad=9)], **options)

    assert made.manifest.signature.inputs[0].pad == 9
    for ids in lengths:
        np.testing.assert_allclose(
            made.answer(ids=ids), skipping_nines(TABLE, ids), rtol=1e-5, atol=1e-6
        )
    assert "max |Δ|" in refusal(skipping_nines, TABLE, inputs=[IDS], **options)


def test_two_axes_make_programs_for_every_pair(export):
    """Two bucketed axes with several inputs: each pair of sizes has its programs."""

    def attend(_params, query, key, mask):
        weight = jnp.exp(jnp.einsum("bqd,bkd->bqk", query, key)) * mask[:, None, :]
        return weight @ key / weight.sum(-1, keepdims=True)

    inputs = ["query:float32[_,q,2]", "key:float32[_,k,2]"]
    mask = TensorSpec(name="mask", dtype="float32", shape=("_", "k"), mask=True)
    made = export(attend, inputs=[*inputs, mask], axes={"q": (2, 4), "k": (3, 6)}, buckets=(2,))

    rng = np.random.default_rng(0)
    for q, k in [(1, 1), (2, 3), (3, 5), (4, 6), (4, 2)]:
        query = rng.standard_normal((3, q, 2)).astype(np.float32)
        key = rng.standard_normal((3, k, 2)).astype(np.float32)
        expected = attend(None, query, key, np.ones((3, k), np.float32))
        np.testing.assert_allclose(
            made.answer(query=query, key=key), expected, rtol=1e-4, atol=1e-5
        )
    assert len(made.manifest.programs) == 4
    assert str(made.manifest.signature.outputs[0]) == "float32[_, q, 2]"
    assert {tuple(g.axes.values()) for g in made.manifest.goldens} == {
        *((q, k) for q in (2, 4) for k in (3, 6)),
        *((q, k) for q in (1, 3) for k in (2, 5)),
        (1, 1),
    }


def test_an_output_axis_that_follows_none_is_refused(refusal):
    """An output whose size moves with the axis but is not the axis is refused."""
    message = refusal(
        lambda _params, ids: jnp.pad(ids, ((0, 0), (0, 1))),
        inputs=[IDS],
        axes={"seq": (4, 8)},
        buckets=(1, 2),
    )
    assert message == (
        "output 'output': expected axis 1 to be fixed or one of seq, got [1, 5], [2, 5], [1, 9] in "
        "different buckets"
    )


def test_an_output_of_the_only_size_is_distinguished_from_a_fixed_one(plan):
    """With one size an output of that width is still found to be fixed, or to follow it."""

    def both(_params, ids):
        return {"follows": ids, "fixed": jax.nn.one_hot(ids[:, 0], 6)}

    made = plan(both, inputs=[IDS], axes={"seq": (6,)})
    assert {o.name: o.shape for o in made.signature.outputs} == {
        "fixed": ("_", 6),
        "follows": ("_", "seq"),
    }


def test_given_goldens_stand_beside_seeded_ones(plan):
    """With a bucketed axis, goldens of one length are not enough: seeded ones are added."""
    ids = np.full((2, 3), 7, np.int32)
    made = plan(masked, TABLE, inputs=[IDS, MASK], axes={"seq": (4, 8)}, golden={"ids": ids})

    assert [sizes for sizes, _, _ in made.goldens] == [
        {"seq": 3},
        {"seq": 4},
        {"seq": 8},
        {"seq": 2},
        {"seq": 6},
        {"seq": 1},
    ]
    _, inputs, _ = made.goldens[0]
    np.testing.assert_array_equal(inputs[0], ids)
    np.testing.assert_array_equal(inputs[1], np.ones_like(ids))


def top_three(_params, scores, mask):
    """Return the three best places, which needs three."""
    best, at = jax.lax.top_k(jnp.where(mask > 0, scores, -1e9), 3)
    return {"best": best, "at": at}


SCORES = "scores:float32[_,seq]"
NEEDS_THREE = "this was at seq=2: if the model needs more than that, pass --axis seq=MIN..4,8"


def test_a_model_that_needs_more_says_how_to_declare_it(refusal):
    """A model that fails at a length below its first size is refused with what to declare."""
    message = refusal(top_three, inputs=[SCORES, MASK], axes={"seq": (4, 8)}, buckets=(1,))
    assert message.startswith("the model cannot be run op by op: ValueError: ")
    assert message.endswith(f"; {NEEDS_THREE}")


def test_answers_that_are_not_finite_at_the_least_length_say_so(refusal):
    """A model without a finite answer for one position is refused, with the declaration that it needs."""

    def spread(_params, scores, mask):
        mean = (scores * mask).sum(1) / mask.sum(1)
        square = ((scores - mean[:, None]) ** 2 * mask).sum(1)
        return square / (mask.sum(1) - 1)

    options = {"inputs": [SCORES, MASK], "buckets": (1,)}
    message = refusal(spread, axes={"seq": (4,)}, **options)
    assert message.startswith("golden: output 'output': expected finite values, got NaN at [0], 4 ")
    assert message.endswith("at seq=1: if the model needs more than that, pass --axis seq=MIN..4")


def test_a_failure_at_a_buckets_own_size_has_nothing_to_do_with_it(refusal):
    """Where a model fails at the first size itself, no minimum is offered."""

    def picky(_params, scores, mask):
        assert isinstance(scores, jax.core.Tracer), "no"
        return (scores * mask).sum(1)

    message = refusal(picky, inputs=[SCORES, MASK], axes={"seq": (4,)}, buckets=(1,))
    assert message.startswith(
        "the model cannot be run op by op: AssertionError: no (test_axes.py, "
    )
    assert message.endswith(")")


def test_an_output_of_another_shape_at_the_least_length_says_so(refusal):
    """A model that pads short inputs by itself returns another shape there, and is refused."""

    def windows(_params, scores, mask):
        wide = jnp.pad(scores, ((0, 0), (0, max(0, 3 - scores.shape[1])))) * mask.max()
        return {"same": wide}

    message = refusal(windows, inputs=[SCORES, MASK], axes={"seq": (4, 8)}, buckets=(1,))
    assert message == (
        "output 'same': expected float32[_, seq] of the un-exported model, got float32[4, 3]; "
        + NEEDS_THREE
    )


@pytest.mark.parametrize(
    "declared", ["3..4,8", " 3 .. 4, 8 ", Axis(name="seq", sizes=(4, 8), minimum=3)]
)
def test_a_minimum_is_declared_in_one_way_or_another(plan, declared):
    """As on the command line or as an Axis; goldens lie at the minimum and above it."""
    made = plan(top_three, inputs=[SCORES, MASK], axes={"seq": declared}, buckets=(1,))

    assert made.signature.axes == (Axis(name="seq", sizes=(4, 8), minimum=3),)
    assert [sizes["seq"] for sizes, _, _ in made.goldens] == [4, 8, 3, 6]


def test_inputs_below_the_minimum_are_refused(export):
    """The minimum is in the manifest, shorter inputs are refused and the least is answered."""
    made = export(top_three, inputs=[SCORES, MASK], axes={"seq": "3..4,8"}, buckets=(1, 2))
    scores = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)

    assert to_json(made.manifest.signature.axes[0]) == {
        "name": "seq",
        "sizes": [4, 8],
        "minimum": 3,
    }
    assert "seq = 4, 8 (at least 3)\n" in description(made.model.bundle)
    for length in (3, 4, 7):
        best, _ = jax.lax.top_k(scores[:, :length], 3)
        np.testing.assert_array_equal(made.predict(scores=scores[:, :length])["best"], best)
    with pytest.raises(SignatureMismatch, match=r"^axis 'seq': expected at least 3, got 2$"):
        made.predict(scores=scores[:, :2])


def test_an_empty_sequence_is_refused(bundle):
    """Unless a model was proven for it, an input of no elements is no input."""
    with pytest.raises(SignatureMismatch, match=r"^axis 'seq': expected at least 1, got 0$"):
        bundle.predict(ids=np.zeros((2, 0), np.int32))


def test_a_model_can_be_proven_for_empty_sequences(export):
    """With a minimum of 0 there is a golden of no elements, and such a request is answered."""

    def total(_params, scores):
        return scores.sum(1)

    made = export(total, inputs=[SCORES], axes={"seq": "0..4"}, buckets=(1, 2))

    assert [dict(g.axes) for g in made.manifest.goldens] == [{"seq": 4}, {"seq": 2}, {"seq": 0}]
    assert made.answer(scores=np.zeros((3, 0), np.float32)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64"])
def test_a_mask_of_integers_is_0_or_1(plan, dtype):
    """The range of an integer mask is recorded, so that a 2 is refused."""
    mask = dataclasses.replace(MASK, dtype=dtype)
    made = plan(masked, TABLE, inputs=[IDS, mask], axes={"seq": (4,)}, buckets=(1,))
    recorded = made.signature.inputs[1]
    assert (recorded.minimum, recorded.maximum) == (0, 1)


@pytest.mark.parametrize("dtype", ["bool", "float32"])
def test_other_masks_have_no_range(plan, dtype):
    """A mask of booleans can be nothing else, and one of floats has no range."""
    mask = dataclasses.replace(MASK, dtype=dtype)
    made = plan(masked, TABLE, inputs=[IDS, mask], axes={"seq": (4,)}, buckets=(1,))
    assert made.signature.inputs[1] == mask


def test_a_mask_of_other_values_is_refused(bundle, lengths):
    """What is neither 0 nor 1 is refused."""
    ids = lengths[4]
    with pytest.raises(SignatureMismatch, match=r"^input 'mask': expected values <= 1, got 2$"):
        bundle.predict(ids=ids, mask=np.full_like(ids, 2))
    with pytest.raises(SignatureMismatch, match=r"^input 'mask': expected values >= 0, got -1$"):
        bundle.predict(ids=ids, mask=np.full_like(ids, -1))


def test_a_masks_own_range_stands(plan):
    """A range that the user declared for a mask is kept."""
    mask = dataclasses.replace(MASK, maximum=3)
    made = plan(masked, TABLE, inputs=[IDS, mask], axes={"seq": (4,)}, buckets=(1,))
    recorded = made.signature.inputs[1]
    assert (recorded.minimum, recorded.maximum) == (0, 3)


LENGTHS = TensorSpec(name="lengths", dtype="int32", shape=("_",), minimum=1, maximum="seq")


class Recurrent(nn.Module):
    """A GRU's state after each row's own number of steps."""

    @nn.compact
    def __call__(self, ids, lengths):
        carry, _ = nn.RNN(nn.GRUCell(4), return_carry=True)(
            nn.Embed(10, 4)(ids), seq_lengths=lengths
        )
        return carry


def test_a_model_that_takes_lengths_answers_every_length(export, lengths):
    """
    Rows of any length up to the longest, with lengths of their own within it, get the
    un-exported model's answers; longer ones than the row are refused.
    """
    model = Recurrent()
    params = model.init(jax.random.key(0), lengths[0], np.ones(3, np.int32))
    bundle = export(model, params, inputs=[IDS, LENGTHS], axes={"seq": (4, 8)}, buckets=(1, 2))

    for ids in lengths:
        size = ids.shape[1]
        own = np.array([1, (size + 1) // 2, size], np.int32)
        expected = model.apply(params, ids, own)
        np.testing.assert_allclose(
            bundle.predict(ids=ids, lengths=own)["output"], expected, rtol=1e-4, atol=1e-6
        )
        with pytest.raises(SignatureMismatch, match=f"<= {size}, the size of axis 'seq', got"):
            bundle.predict(ids=ids, lengths=own + 1)


def test_lengths_that_have_no_range_are_asked_for(refusal):
    """Where padding changes answers and an input may be the lengths, its range is named."""

    def total(params, ids, n):
        real = jnp.arange(ids.shape[1]) < n[:, None]
        return (params[ids] * real[..., None]).sum(1)

    message = refusal(
        total,
        TABLE,
        inputs=[IDS, "n:int32[_]"],
        axes={"seq": (4, 8)},
        buckets=(1, 2),
        kind=VerificationError,
    )

    assert message.endswith(
        "; does padding of a bucketed axis mean something to the model? Give it a mask, or one "
        "size; where 'n' is a length, pass --range n=1:seq"
    )


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"maximum": "sq"},
            (
                "input 'lengths': expected a number or an axis of 'seq' as maximum, got "
                "'sq'; did you mean 'seq'?"
            ),
        ),
        (
            {"minimum": 2},
            (
                "input 'lengths': expected a minimum up to 1, the minimum of axis 'seq', "
                "got 2; pass --axis seq=2..4,8"
            ),
        ),
        (
            {"dtype": "float32"},
            "input 'lengths': expected an integer dtype for a range, got float32",
        ),
        ({"maximum": "a b"}, "input 'lengths': expected a number as maximum, got 'a b'"),
    ],
)
def test_a_length_has_an_axis(refusal, limits, message):
    """A length that no row can have, or that cannot be checked, is refused before anything is traced."""
    spec = dataclasses.replace(LENGTHS, **limits)

    assert refusal(mean, TABLE, inputs=[IDS, spec], axes={"seq": (4, 8)}) == message
