"""What a load test recommends, from the counters of the server that it measured."""

from pytest import approx

from server.bench.advice import Counts, advise, read_counts

BUCKETS = (1, 8, 64)


def counts(runs, rows, sizes=()):
    """Return counts of batches."""
    return Counts(rows, runs, dict(sizes))


def advice(found, **changed):
    """Return the recommendations for one process on two cores, with some arguments changed."""
    plain = {"requests": 10_000, "seconds": 2.0, "under_way": 64, "buckets": BUCKETS}
    return advise(found, **{**plain, "cores": 2, "processes": 1, **changed})


SMALL = counts({64: (160, 0.16)}, 10_000)


def test_a_process_for_each_core_where_programs_take_little():
    """Where most of a request is not its program's, more processes are recommended, and what they gain."""
    processes, _, _ = advice(SMALL)

    assert processes == (
        "processes: --processes 2 would answer up to 1.9 times the requests, since of the 200 µs of a "
        "request its program takes 16; each has its own copy of the model"
    )


def test_programs_that_take_all_gain_what_their_threads_did_not():
    """Where most of a request is its program's, processes gain less: its threads used all cores already."""
    processes, _, _ = advice(counts({64: (160, 1.95)}, 10_000))

    assert processes == (
        "processes: --processes 2 would answer up to 1.3 times the requests, since of the 200 µs of a "
        "request its program takes 195; each has its own copy of the model"
    )


def test_no_process_more_where_there_is_hardly_another_core():
    """One process more is not recommended where its gain is not worth its memory."""
    processes, _, _ = advice(counts({64: (160, 7.8)}, 10_000), cores=5, processes=4)

    assert processes == (
        "processes: more than 4 would answer no more, since of the 800 µs of a request its program "
        "takes 780"
    )


def test_what_the_server_chose_by_measuring_stands():
    """Processes are not recommended to a server with `--processes auto`, which has measured more than a load test can."""
    processes, _, _ = advice(SMALL, chosen="one core may be used")

    assert processes == "processes: 1, as the server chose, since one core may be used"


def test_no_process_more_than_cores():
    """More processes are not recommended to a server that has one for each core."""
    processes, _, _ = advice(SMALL, processes=2)

    assert processes == (
        "processes: 2 on 2 cores is right or enough; of the 400 µs of a request its program takes 16"
    )


def test_a_delay_where_batches_are_small_and_dear():
    """Where a batch costs much beside its rows, waiting for more rows is recommended."""
    runs = {1: (5_000, 1.0), 8: (625, 0.13)}

    _, delay, _ = advice(counts(runs, 10_000))

    assert delay == (
        "queue delay: --max-queue-delay-ms 12 would answer up to 2.2 times the requests, each as much "
        "later, since batches have 1.78 of up to 64 rows"
    )


def test_no_delay_where_batches_are_full():
    """Waiting is not recommended where batches contain all concurrent rows already."""
    _, delay, _ = advice(counts({64: (156, 1.0)}, 9_984))

    assert delay == (
        "queue delay: waiting for more rows would answer no more, since batches have 64 of up to 64 rows"
    )


def test_buckets_of_the_sizes_that_were_seen():
    """Where padding takes the time, the sizes that batches usually have are recommended as buckets."""
    sizes = {1.0: 0.0, 8.0: 0.0, 16.0: 400.0, 32.0: 625.0, 64.0: 625.0, float("inf"): 625.0}
    runs = {64: (625, 1.4)}

    _, _, buckets = advice(counts(runs, 10_000, sizes.items()))

    assert buckets == (
        "buckets: exporting with --buckets 1,8,16,32,64 would answer up to 2.1 times the requests, since "
        "75% of the rows that ran were padding"
    )


def test_no_buckets_where_little_is_padding():
    """Where nearly all rows are real, other buckets are not recommended."""
    _, _, buckets = advice(SMALL)

    assert (
        buckets
        == "buckets: others would answer no more, since 2% of the rows that ran were padding"
    )


def test_nothing_is_recommended_where_nothing_was_answered():
    """No advice is given for a server that answered nothing."""
    assert advice(counts({}, 0), requests=0) == [
        "nothing was answered, so nothing can be recommended"
    ]


def test_counts_are_read_and_subtracted():
    """Counts are those of the statistics and of the metrics, less what was counted before."""

    def batch(size, count, seconds):
        spent = {"count": count, "ns": round(seconds * 1e9)}
        nothing = {"count": count, "ns": 0}
        return {
            "batch_size": size,
            "compute_input": nothing,
            "compute_infer": spent,
            "compute_output": nothing,
        }

    def read(rows, *batches, text=""):
        return read_counts(
            {"model_stats": [{"inference_count": rows, "batch_stats": list(batches)}]}, text
        )

    before = read(5, batch(1, 5, 0.5), text='hloserve_batch_rows_bucket{le="1.0"} 5.0\n')
    after = read(
        45,
        batch(1, 5, 0.5),
        batch(8, 5, 1.0),
        batch(8, 1, 0.5),  # of another size of its axes
        text='hloserve_batch_rows_bucket{le="1.0"} 5.0\nhloserve_batch_rows_bucket{le="+Inf"} 11.0\n',
    )

    found = after.since(before)

    assert found.rows == 40
    assert found.runs == {8: (6, approx(1.5))}
    assert found.sizes == {1.0: 0.0, float("inf"): 11.0}
