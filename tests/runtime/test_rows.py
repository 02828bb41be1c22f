"""Row independence, probed with programs that are plain functions."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pytest import MonkeyPatch, mark, param

from runtime import rows
from runtime.rows import KINDS, Mixing, bounds, count_runs, draw, find_mixing
from runtime.signature import DTYPE_BYTES, TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=("_", 3))
ROWS = np.random.default_rng(0).standard_normal((24, 3)).astype(np.float32)


def row_by_row(x):
    """Answer each row from itself alone."""
    return np.stack([np.tanh(row) * 2 for row in x])


def less_the_mean(x):
    """Mix the rows as BatchNorm in training mode does."""
    with np.errstate(all="ignore"):
        return x - x.mean(axis=0)


def less_the_last_row(x):
    """Let one row see another at a fixed place."""
    with np.errstate(all="ignore"):
        return x - x[-1:]


def where_no_other_is_not_finite(x):
    """Let NaN, and only NaN, spread to the other rows."""
    return np.where(np.isnan(x).any(), np.float32(np.nan), x)


def by_position(x):
    """Answer the same row otherwise at another position."""
    return x + np.arange(len(x), dtype=np.float32)[:, None]


def routed_to_two(x):
    """Route rows as a mixture of experts does, with room for two rows at each expert.

    Rows that are alike go to one expert, so only copies of a row fill it up; a row that comes
    third gets nothing. Other rows than copies never meet a row at its expert.
    """
    out = np.zeros_like(x)
    taken: dict[bytes, int] = {}
    for i, row in enumerate(x):
        taken[row.tobytes()] = taken.get(row.tobytes(), 0) + 1
        out[i] = row if taken[row.tobytes()] <= 2 else 0
    return out


def probe(function, batch=8, **options):
    """Probe a function of one input as a program of one batch size."""
    return find_mixing(
        lambda inputs: (function(*inputs),), [X], ["y"], (ROWS[:batch],), f"b{batch}", **options
    )


def causes(found):
    """List the causes that were found, with repetitions."""
    return sorted(mixing.cause for mixing in found)


@mark.parametrize("batch", [2, 3, 8, 16])
def test_independent_rows_are_found_clean(batch):
    """
    A function that answers each row from itself alone passes every probe.
    """
    assert probe(row_by_row, batch) == []


@mark.parametrize("batch", [2, 8, 16])
@mark.parametrize(
    ("function", "expected"),
    [
        param(less_the_mean, {"random", "zeros", "nan", "extremes", "copies"}, id="batch-mean"),
        param(less_the_last_row, {"random", "zeros", "nan", "extremes", "copies"}, id="last-row"),
        param(where_no_other_is_not_finite, {"nan"}, id="nan-spreads"),
    ],
)
def test_mixed_rows_are_found(function, batch, expected):
    """
    Any dependence of a row on another is found, with each replacement that shows it.
    """
    assert expected <= set(causes(probe(function, batch)))


@mark.parametrize("batch", [2, 8, 16])
def test_position_is_found(batch):
    """
    A row that gets another answer elsewhere in the batch is not independent.
    """
    assert causes(probe(by_position, batch)) == ["position"]


@mark.parametrize("batch", [4, 8, 16])
def test_only_copies_show_routing_with_a_capacity(batch):
    """
    A router that drops the third of like rows passes all other probes, and fails with copies.
    """
    others = [kind for kind in KINDS if kind != "copies"]

    assert probe(routed_to_two, batch=4, kinds=others) == []
    assert "copies" in causes(probe(routed_to_two, batch))


def weighted(weights):
    """Add to row i some others: weights[i] lists which, each with a factor."""

    def function(x):
        with np.errstate(all="ignore"):
            return np.stack(
                [sum((w * x[j] for j, w in row), x[i]) for i, row in enumerate(weights)]
            )

    return function


def within_blocks(size):
    """Subtract from each row the mean of its block, as ghost batch norm does."""

    def function(x):
        with np.errstate(all="ignore"):
            parts = [x[i : i + size] for i in range(0, len(x), size)]
            return np.concatenate([part - part.mean(axis=0) for part in parts])

    return function


def beside(distance):
    """Subtract from each row the one some positions before it."""

    def function(x):
        with np.errstate(all="ignore"):
            return x - np.roll(x, distance, axis=0) if distance else x

    return function


def routed(room):
    """Answer zeros to a row that has as many like it before it as there is room for."""

    def function(x):
        seen: dict[bytes, int] = {}
        kept = []
        for row in x:
            key = row.tobytes()
            seen[key] = seen.get(key, 0) + 1
            kept.append(row if seen[key] <= room else np.zeros_like(row))
        return np.stack(kept)

    return function


@st.composite
def programs(draw):
    """Draw a batch of more than one-by-one size, and a function that may mix its rows."""
    batch = draw(st.integers(rows.ONE_BY_ONE + 1, len(ROWS)))
    size = st.integers(0, batch - 1)
    terms = st.lists(st.tuples(size, st.sampled_from([-2.0, 0.5])), max_size=1)
    weights = st.lists(terms, min_size=batch, max_size=batch).map(weighted)
    sizes = size.map(lambda n: n + 1)
    kinds = [weights, size.map(beside), sizes.map(within_blocks), sizes.map(routed)]
    return batch, draw(st.one_of(*kinds))


@mark.property
@given(programs())
def test_row_in_all_places_at_once_shows_what_one_place_at_a_time_does(program):
    """
    In a large batch the quick probe finds a cause wherever the plain one does, and no more.
    """
    batch, function = program

    quick = set(causes(probe(function, batch)))
    with MonkeyPatch.context() as patch:
        patch.setattr(rows, "ONE_BY_ONE", batch)
        plain = set(causes(probe(function, batch)))

    assert plain <= quick
    assert bool(plain) == bool(quick)


def test_largest_change_is_reported():
    """
    For each output and cause the largest change is given, with where the row stood.
    """

    def nearly(x):
        return x + np.float32(0.5) * (x[-1:] == 0).all()

    (found,) = probe(nearly, kinds=["zeros"])

    assert found == Mixing(bucket="b8", output="y", position=0, cause="zeros", change=found.change)
    assert abs(found.change - 0.5) < 1e-6


def test_one_bit_is_a_change():
    """
    Rows are independent bit for bit: minus zero is not zero.
    """

    def sign_of_zero(x):
        return np.full_like(x, -0.0 if (x[-1] == x[0]).all() else 0.0)

    found = probe(sign_of_zero, kinds=["copies"])

    assert [(mixing.cause, mixing.change) for mixing in found] == [("copies", 0.0)]


def test_every_output_is_looked_at():
    """
    Of several outputs only those that mix are named.
    """
    found = find_mixing(
        lambda inputs: (row_by_row(*inputs), less_the_mean(*inputs)),
        [X],
        ["clean", "mixed"],
        (ROWS[:4],),
        "b4",
    )

    assert {mixing.output for mixing in found} == {"mixed"}


def test_rows_are_only_given_what_is_legal():
    """
    Probes stay in an integer's declared range and keep masks at 0 and 1.
    """
    ids = TensorSpec(name="ids", dtype="int32", shape=("_", "seq"), minimum=3, maximum=5)
    mask = TensorSpec(name="mask", dtype="int64", shape=("_", "seq"), mask=True)
    seen = [set(), set()]

    def look(inputs):
        for values, array in zip(seen, inputs, strict=True):
            values.update(array.ravel().tolist())
        return (inputs[0],)

    rows = (np.full((4, 6), 4, np.int32), np.ones((4, 6), np.int64))
    assert find_mixing(look, [ids, mask], ["y"], rows, "b4") == []

    assert seen == [{3, 4, 5}, {0, 1}]


def test_integers_have_no_nan():
    """
    Where no input is floating there is no probe with NaN.
    """
    ids = TensorSpec(name="ids", dtype="int32", shape=("_",))
    calls = itertools.count()

    def count(inputs):
        next(calls)
        return inputs

    find_mixing(count, [ids], ["y"], (np.arange(4, dtype=np.int32),), "b4", kinds=["nan"])

    assert next(calls) == 3  # the row itself in three positions


@mark.parametrize(("batch", "runs"), [(1, 0), (2, 2 + 2 * 4 + 1), (8, 3 + 3 * 4 + 1), (16, 3 + 5)])
def test_no_batch_is_run_twice(batch, runs):
    """
    Probes are as many as were counted beforehand, and each runs a batch of its own.
    """
    seen = []

    def look(inputs):
        seen.append(inputs[0].tobytes())
        return inputs

    if batch > 1:
        find_mixing(look, [X], ["y"], (ROWS[:batch],), f"b{batch}")

    assert len(seen) == len(set(seen)) == runs == count_runs([X], batch)


@mark.parametrize("function", [row_by_row, less_the_mean, by_position])
@mark.parametrize("batch", [2, 8, 16])
def test_several_runs_at_once_find_the_same(function, batch):
    """
    A pool of threads runs the batches, and what is found does not depend on which ends first.
    """
    with ThreadPoolExecutor(4) as pool:
        assert probe(function, batch, each=pool.map) == probe(function, batch)


def test_other_rows_are_left_alone():
    """
    The rows that are probed are not written to.
    """
    rows = ROWS[:4].copy()
    find_mixing(lambda inputs: inputs, [X], ["y"], (rows,), "b4")

    assert (rows == ROWS[:4]).all()


@mark.parametrize(
    ("cause", "sentence"),
    [
        ("random", "b8, output 'y': row 4 changed by 0.0125 when the other rows became random"),
        ("nan", "b8, output 'y': row 4 changed by 0.0125 when the other rows became NaN"),
        (
            "copies",
            "b8, output 'y': row 4 changed by 0.0125 when the other rows became copies of it",
        ),
        ("position", "b8, output 'y': row 4 changed by 0.0125 when the row moved"),
    ],
)
def test_mixing_is_said_in_a_sentence(cause, sentence):
    """
    People read which bucket, output and row changed, by how much, and why.
    """
    assert str(Mixing("b8", "y", 4, cause, 0.0125)) == sentence


@mark.parametrize("dtype", sorted(DTYPE_BYTES))
def test_values_are_drawn_for_every_dtype(dtype):
    """
    Seeded values have the dtype, are finite and are the same each time.
    """
    spec = TensorSpec(name="x", dtype=dtype, shape=("_", 4))

    one, two = (draw(spec, (5, 4), {}, np.random.default_rng(3)) for _ in range(2))

    assert (one.dtype.name, one.shape) == (dtype, (5, 4))
    assert one.tobytes() == two.tobytes()
    assert np.isfinite(one.astype(np.float64)).all()


def test_undeclared_integers_are_drawn_small():
    """
    An integer without a range may be an index, so it is drawn from 0 to 9.
    """
    spec = TensorSpec(name="x", dtype="int64", shape=("_",))

    values = draw(spec, (500,), {}, np.random.default_rng(0))

    assert set(values.tolist()) == set(range(10))


@mark.parametrize(
    ("spec", "expected"),
    [
        param(TensorSpec(name="x", dtype="bool", shape=("_",)), (0, 1), id="bool"),
        param(TensorSpec(name="x", dtype="int8", shape=("_",)), (-128, 127), id="int8"),
        param(TensorSpec(name="x", dtype="uint64", shape=("_",)), (0, 2**64 - 1), id="uint64"),
        param(
            TensorSpec(name="x", dtype="int32", shape=("_",), minimum=2),
            (2, 2**31 - 1),
            id="from-2",
        ),
        param(
            TensorSpec(name="x", dtype="bfloat16", shape=("_",)),
            (
                -float(ml_dtypes.finfo(ml_dtypes.bfloat16).max),
                float(ml_dtypes.finfo(ml_dtypes.bfloat16).max),
            ),
            id="bfloat16",
        ),
        param(
            TensorSpec(name="x", dtype="int32", shape=("_",), minimum=1, maximum="seq"),
            (1, 300),
            id="length",
        ),
        param(
            TensorSpec(name="x", dtype="int8", shape=("_",), maximum="seq"),
            (-128, 127),
            id="length-of-few-bits",
        ),
    ],
)
def test_extremes_are_the_legal_ones(spec, expected):
    """
    The extremes that other rows are given are the smallest and largest legal values.
    """
    assert bounds(spec, {"seq": 300}) == expected


def test_lengths_are_drawn_from_those_that_rows_can_have():
    """
    Each length occurs, the shortest and the longest too, and no other.
    """
    spec = TensorSpec(name="n", dtype="int32", shape=("_",), minimum=1, maximum="seq")

    values = draw(spec, (500,), {"seq": 7}, np.random.default_rng(0))

    assert set(values.tolist()) == set(range(1, 8))


def test_other_rows_have_lengths_of_their_bucket():
    """
    What other rows are replaced by is legal where a maximum is an axis.
    """
    seen = set()
    ids = TensorSpec(name="ids", dtype="int32", shape=("_", "seq"), minimum=0, maximum=3)
    lengths = TensorSpec(name="n", dtype="int32", shape=("_",), minimum=1, maximum="seq")

    def look(inputs):
        seen.update(inputs[1].tolist())
        return (inputs[0],)

    rows = (np.zeros((4, 6), np.int32), np.full(4, 2, np.int32))
    find_mixing(look, [ids, lengths], ["y"], rows, "b4")

    assert {1, 6} <= seen <= set(range(1, 7))
