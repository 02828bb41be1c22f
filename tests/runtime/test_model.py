"""A loaded model: what it answers, what it refuses, and that it never compiles again."""

import concurrent.futures
import math
import threading
import types

import jax
import numpy as np
from jax import monitoring
from pytest import fixture, mark, param, raises

from runtime import SignatureMismatch, load, open_bundle
from runtime.model import _nearest_to_zero
from runtime.signature import TensorSpec

COMPILE = "/jax/core/compile/backend_compile_duration"


def params_of(bundle):
    """Read a bundle's params by the model's own names, in the layout of the format."""
    opened = open_bundle(bundle)
    params = opened.manifest.params
    arguments = opened.map(params.files[0])
    return {
        entry.name: arguments[entry.argument]
        .reshape(-1)[entry.offset : entry.offset + math.prod(entry.shape)]
        .reshape(entry.shape)
        for entry in params.entries
    }


@fixture(scope="module")
def classify(classifier_bundle):
    """The classifier in NumPy."""
    p = params_of(classifier_bundle)

    def classify(x):
        hidden = np.maximum(x @ p["params/Dense_1/kernel"] + p["params/Dense_1/bias"], 0)
        return hidden @ p["params/Dense_0/kernel"] + p["params/Dense_0/bias"]

    return classify


@fixture(scope="module")
def tag(tagger_bundle):
    """The tagger in NumPy."""
    p = params_of(tagger_bundle)

    def tag(ids, mask):
        tokens = p["params/Embed_0/embedding"][ids]
        mean = (tokens * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        return {
            "mean": mean,
            "scores": tokens @ p["params/Dense_0/kernel"] + p["params/Dense_0/bias"],
        }

    return tag


@fixture
def compilations():
    """The compilations that JAX reports from now on."""
    seen = []

    def listen(event, _seconds, **_):
        if event == COMPILE:
            seen.append(event)

    monitoring.register_event_duration_secs_listener(listen)
    yield seen
    monitoring.unregister_event_duration_listener(listen)


def some_rows(count, seed=0):
    """Make legal rows for the classifier."""
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


def assert_close(actual, expected):
    """Compare what float32 programs answer with what NumPy does."""
    assert actual.dtype == np.float32
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=1e-4)


@mark.parametrize("count", [0, 1, 2, 3, 4, 5, 7, 8, 11, 40])
def test_rows_of_any_number_are_answered_in_order(classifier, classify, count):
    """
    No rows, one, a full bucket, between buckets and beyond the largest: each gets its answer.
    """
    rows = some_rows(count)

    answers = classifier.predict({"x": rows})

    assert list(answers) == ["output"]
    assert_close(answers["output"], classify(rows))


@mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8])
@mark.parametrize("count", [1, 3, 6])
def test_sequences_of_any_length_are_answered(tagger, tag, count, length):
    """
    Outputs with the bucketed axis have the request's length, and padding means nothing to them.
    """
    ids = np.random.default_rng(0).integers(0, 10, (count, length)).astype(np.int32)

    answers = tagger.predict({"ids": ids})

    expected = tag(ids, np.ones((count, length)))
    assert sorted(answers) == ["mean", "scores"]
    for name in answers:
        assert_close(answers[name], expected[name])


def test_mask_left_out_is_all_ones(tagger):
    """
    Omitting the mask returns bit for bit the answer of a mask of ones.
    """
    ids = np.array([[1, 2, 3], [4, 5, 6]], np.int32)

    left_out = tagger.predict({"ids": ids})
    given = tagger.predict({"ids": ids, "mask": np.ones((2, 3), np.int32)})

    assert all(left_out[name].tobytes() == given[name].tobytes() for name in given)


def test_mask_of_the_caller_is_honoured(tagger, tag):
    """
    A mask marks what is real within the caller's own rows.
    """
    ids = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
    mask = np.array([[1, 1, 0], [1, 0, 0]], np.int32)

    answers = tagger.predict({"ids": ids, "mask": mask})

    assert_close(answers["mean"], tag(ids, mask)["mean"])


def test_no_rows_have_the_outputs_of_some(tagger):
    """
    An empty answer has each output's dtype and the request's length.
    """
    answers = tagger.predict({"ids": np.zeros((0, 3), np.int32)})

    assert {n: (a.dtype.name, a.shape) for n, a in answers.items()} == {
        "mean": ("float32", (0, 6)),
        "scores": ("float32", (0, 3, 2)),
    }


def test_answer_does_not_depend_on_the_request(classifier):
    """
    Within a bucket a row's answer is bit for bit the same whatever else is in the batch.
    """
    rows = some_rows(4)
    alone = classifier.predict({"x": np.stack([rows[0], *some_rows(3, seed=1)])})["output"][0]
    moved = classifier.predict({"x": np.stack([*some_rows(3, seed=2), rows[0]])})["output"][3]

    assert alone.tobytes() == moved.tobytes()


def test_answers_are_the_callers_own(classifier, classify):
    """
    Writing to the inputs afterwards changes no answer, and inputs are never written to.
    """
    rows = some_rows(4)
    before = rows.copy()
    answers = classifier.predict({"x": rows})
    assert (rows == before).all()
    rows[:] = 0

    assert_close(answers["output"], classify(before))


@mark.parametrize(
    "arrange",
    [
        param(lambda rows: rows[::2], id="every-other"),
        param(np.asfortranarray, id="fortran-order"),
        param(lambda rows: np.broadcast_to(rows[:1], (4, 4)), id="read-only"),
        param(jax.numpy.asarray, id="jax-array"),
    ],
)
def test_arrays_of_any_layout_are_answered(classifier, classify, arrange):
    """
    How an array lies in memory does not matter, nor whether it is a jax array.
    """
    rows = arrange(some_rows(8))

    assert_close(classifier.predict({"x": rows})["output"], classify(np.asarray(rows)))


@mark.parametrize(
    ("inputs", "message"),
    [
        param(
            {"x": np.zeros((1, 4))},
            "input 'x': expected float32[_, 4], got float64[1, 4]",
            id="dtype",
        ),
        param(
            {"x": np.zeros((1, 5), np.float32)},
            "input 'x': expected float32[_, 4], got float32[1, 5]",
            id="shape",
        ),
        param(
            {"x": np.zeros(4, np.float32)},
            "input 'x': expected float32[_, 4], got float32[4]",
            id="row-without-batch",
        ),
        param(
            {"y": np.zeros((1, 4), np.float32)},
            "inputs: expected ['x'], got 'y' and no 'x'",
            id="name",
        ),
        param({}, "input 'x': expected float32[_, 4], got nothing", id="nothing"),
    ],
)
def test_wrong_inputs_are_refused(classifier, inputs, message):
    """
    Nothing is cast, reshaped or guessed: the error names what was expected.
    """
    with raises(SignatureMismatch) as caught:
        classifier.predict(inputs)

    assert str(caught.value) == message


@mark.parametrize(
    ("names", "got"),
    [
        (["idz"], "'idz' and no 'ids'; did you mean 'ids'?"),
        (["ids", "maks"], "'maks' as well; did you mean 'mask'?"),
        ([0, None, "b"], "'0', 'None', 'b' and no 'ids'"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(tagger, names, got):
    """
    A misspelt name is refused with the one that was meant, and which inputs are missing.
    """
    with raises(SignatureMismatch) as caught:
        tagger.predict(dict.fromkeys(names, np.zeros((1, 4), np.int32)))

    assert str(caught.value) == f"inputs: expected ['ids', 'mask'], got {got}"


@mark.parametrize(
    ("inputs", "kind"),
    [
        param(None, "NoneType", id="nothing"),
        param([np.zeros((1, 4), np.int32)], "list", id="list"),
        param(np.zeros((1, 4), np.int32), "ndarray", id="array"),
        param("ids", "str", id="text"),
    ],
)
def test_inputs_that_are_no_dict_are_refused(tagger, inputs, kind):
    """
    Arrays come by name: anything else is refused with the names and tensors the model takes.
    """
    with raises(SignatureMismatch) as caught:
        tagger.predict(inputs)

    assert str(caught.value) == (
        "inputs: expected a dict {'ids': int32[_, seq], 'mask': int32[_, seq]}, got " + kind
    )


def test_any_mapping_will_do(classifier):
    """
    Inputs may come in any mapping, as NumPy's own archives do.
    """
    x = np.ones((2, 4), np.float32)

    answers = classifier.predict(types.MappingProxyType({"x": x}))

    assert answers["output"].tolist() == classifier.predict({"x": x})["output"].tolist()


def test_index_out_of_range_is_refused(tagger):
    """
    A token beyond the table is an error, where XLA would clamp it silently.
    """
    with raises(SignatureMismatch) as caught:
        tagger.predict({"ids": np.array([[10]], np.int32)})

    assert str(caught.value) == "input 'ids': expected values <= 9, got 10"


def test_sequence_beyond_the_longest_bucket_is_refused(tagger):
    """
    A sequence is never cut to fit.
    """
    with raises(SignatureMismatch) as caught:
        tagger.predict({"ids": np.zeros((1, 9), np.int32)})

    assert str(caught.value) == "axis 'seq': expected at most 8, got 9"


def test_nothing_is_compiled_after_loading(tagger_bundle, compilations):
    """
    Loading compiles every program once; no request of any size compiles anything.
    """
    model = load(tagger_bundle, "cpu")
    loading = len(compilations)
    for count in (0, 1, 2, 4, 5, 9):
        for length in (1, 4, 6, 8):
            model.predict({"ids": np.zeros((count, length), np.int32)})

    assert loading >= len(model.manifest.programs)
    assert len(compilations) == loading


def test_wrong_shape_raises_instead_of_compiling(classifier, compilations):
    """
    A program called with another shape raises: it is compiled ahead of time.
    """
    program = classifier.groups[()].programs[2]

    with raises(TypeError):
        program.call(classifier.params, (some_rows(3),))

    assert compilations == []


def test_threads_get_their_own_rows(classifier, classify):
    """
    Sixteen threads that predict at once each get the answers to their own rows.
    """
    ready = threading.Barrier(16, timeout=60)

    def ask(seed):
        ready.wait()
        for turn in range(20):
            rows = some_rows(1 + (seed + turn) % 9, seed=seed * 100 + turn)
            assert_close(classifier.predict({"x": rows})["output"], classify(rows))
        return seed

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answered = list(pool.map(ask, range(16), timeout=120))

    assert answered == list(range(16))


def test_64_bits_are_kept_in_a_32_bit_process(wide_bundle):
    """
    A bundle with 64-bit types answers in them, though this process has them switched off.
    """
    assert not jax.config.jax_enable_x64
    model = load(wide_bundle, "cpu")

    answers = model.predict({"x": np.array([[2**40 + 5, -1], [2**62, 0], [1, 2]], np.int64)})

    assert answers["output"].dtype == np.int64
    assert answers["output"].tolist() == [[2**40 + 12, 6], [2**62 + 7, 7], [8, 9]]
    assert not jax.config.jax_enable_x64


def test_64_bits_are_kept_in_every_thread(wide_bundle):
    """
    The switch to 64-bit types is thrown in whatever thread predicts.
    """
    model = load(wide_bundle, "cpu")
    rows = np.array([[2**40 + 5, 0]], np.int64)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: model.predict({"x": rows})["output"], range(4)))

    assert [a.tolist() for a in answers] == [[[2**40 + 12, 7]]] * 4


def test_32_bits_do_not_pass_for_64(wide_bundle):
    """
    An int32 array is not widened for a program that takes int64.
    """
    with raises(SignatureMismatch) as caught:
        load(wide_bundle, "cpu").predict({"x": np.zeros((1, 2), np.int32)})

    assert str(caught.value) == "input 'x': expected int64[_, 2], got int32[1, 2]"


def test_params_are_put_on_the_device_once(classifier):
    """
    All programs share one copy of the params.
    """
    assert [(p.shape, p.dtype) for p in classifier.params] == [((80,), np.float32)]
    assert all(p.device == classifier.device for p in classifier.params)


def test_plans_follow_measured_times(classifier):
    """
    After loading, every bucket's cost is the time that it took on this device.
    """
    costs = classifier.groups[()].planner.costs

    assert sorted(costs) == [1, 2, 4]
    assert all(0 < cost < math.inf for cost in costs.values())


@mark.parametrize(
    ("minimum", "maximum", "value"),
    [(None, None, 0), (3, 9, 3), (-9, -3, -3), (-1, 1, 0), (None, -2, -2)],
)
def test_warm_up_uses_legal_values(minimum, maximum, value):
    """
    Programs are timed with zeros, or the legal value nearest to zero.
    """
    spec = TensorSpec(name="x", dtype="int32", shape=("_",), minimum=minimum, maximum=maximum)

    assert _nearest_to_zero(spec) == value
