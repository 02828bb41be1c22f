"""Counters, histograms and statistics, and how they are exposed."""

import contextlib
import types

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from pytest import approx, fixture, mark

from runtime.errors import ExecutionError
from server.config import ServerConfig
from server.metrics import ROWS, SECONDS, Histogram, Metrics, total
from tests.server.fakes import ECHO, FakeModel, Running
from tests.server.flask_client import client_for, client_of
from tests.server.text_model import TextModel

FAMILIES = {
    "hloserve_requests": "counter",
    "hloserve_request_failures": "counter",
    "hloserve_request_duration_seconds": "histogram",
    "hloserve_inferences": "counter",
    "hloserve_executions": "counter",
    "hloserve_bucket_executions": "counter",
    "hloserve_device_executions": "counter",
    "hloserve_device_busy_seconds": "counter",
    "hloserve_batch_rows": "histogram",
    "hloserve_padding_rows": "counter",
    "hloserve_elements": "counter",
    "hloserve_padding_elements": "counter",
    "hloserve_queue_duration_seconds": "histogram",
    "hloserve_compute_duration_seconds": "histogram",
    "hloserve_row_errors": "counter",
    "hloserve_nonfinite_outputs": "counter",
    "hloserve_ready": "gauge",
    "hloserve_queue_depth": "gauge",
    "hloserve_runs_alone": "gauge",
    "hloserve_startup_seconds": "gauge",
    "hloserve_compiles_after_ready": "counter",
    "hloserve_log_lines_dropped": "counter",
    "hloserve_bundle_info": "gauge",
    "hloserve_promised_days_left": "gauge",
    "hloserve_live_arrays": "gauge",
}


@fixture
def client(running):
    """Flask's test client, in front of a model that sums rows."""
    return client_for(running, FakeModel())


def scraped(client):
    """Scrape the metrics: the families, and every sample by its name and labels."""
    text = client.get("/metrics").get_data(as_text=True)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families.values()
        for sample in family.samples
    }
    return families, samples


def predict(client, *instances):
    """Post instances."""
    return client.post("/predict", json={"instances": list(instances)})


@mark.property
@given(st.lists(st.floats(0, 20)))
def test_a_histogram_has_each_value_below_its_bounds(values):
    """Each bound has the number of values up to it, and the last one all of them."""
    histogram = Histogram(SECONDS)
    for value in values:
        histogram.observe(value)

    for name, count in histogram.buckets():
        assert count == sum(value <= float(name) for value in values)
    assert histogram.count == len(values)
    assert histogram.sum == approx(sum(values))


COUNTED = st.lists(
    st.tuples(
        st.sampled_from(("vertex", "oip")), st.sampled_from((None, "queue_full")), st.integers(0, 1)
    )
)


@mark.property
@given(COUNTED)
def test_processes_add_up_to_what_one_would_have_counted(requests):
    """For two processes the sum is the same, whichever of them a request and its batch went to."""
    alone, two = Metrics(), (Metrics(), Metrics())
    for number, (protocol, slug, process) in enumerate(requests):
        for metrics in (alone, two[process]):
            metrics.count_inference(protocol, "200" if slug is None else "503", number, slug)
            metrics.count_batch(
                "b4", "cpu:0", 4, 1 + number % 4, 1 + number % 4, (0.0, 1.0, 3.0, number + 4.0)
            )
            metrics.queued.observe(number)
            metrics.count_padding(8, 2)
            metrics.count_request("health", "200")
            metrics.nonfinite += 1

    assert total(two) == alone
    assert total([alone]) is alone


def test_bounds_reach_from_half_a_millisecond_to_ten_seconds():
    """A batch of microseconds and one that hangs both differ from the ordinary."""
    assert (SECONDS[0], SECONDS[-1]) == (0.0005, 10.0)
    assert list(SECONDS) == sorted(set(SECONDS))
    assert list(ROWS) == sorted(set(ROWS))


def test_every_family_is_there_before_anything_happened(client):
    """A dashboard finds every name, with its type, a text and a value from the start."""
    families, samples = scraped(client)
    ours = {name: f.type for name, f in families.items() if name.startswith("hloserve_")}

    assert ours == FAMILIES
    assert all(family.documentation for family in families.values())
    assert samples["hloserve_inferences_total",] == 0
    assert samples["hloserve_compiles_after_ready_total",] == 0
    assert samples["hloserve_request_failures_total", ("reason", "rejected")] == 0
    assert "process_resident_memory_bytes" in families


def test_requests_are_counted_by_model_protocol_and_status(client):
    """Each response is counted once, by its protocol and status."""
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
    predict(client, [1, 2])
    predict(client, [1])
    client.post("/v2/models/fake/infer", json={"inputs": [tensor]})
    client.post("/v1/models/fake:predict", json={"inputs": [[1, 2]]})
    client.get("/health")
    client.get("/nothing")

    _, samples = scraped(client)

    def count(protocol, code):
        labels = {"model": "fake", "version": "1", "protocol": protocol, "code": code}
        return samples["hloserve_requests_total", *sorted(labels.items())]

    assert count("vertex", "200") == count("vertex", "400") == 1
    assert count("oip", "200") == count("tfserving", "200") == 1
    assert count("health", "200") == count("none", "404") == 1
    durations = "hloserve_request_duration_seconds_count"
    assert samples[durations, ("protocol", "vertex")] == 2
    assert samples["hloserve_request_failures_total", ("reason", "other")] == 1


def test_names_that_clients_make_up_become_no_labels(client):
    """However many models, versions, paths and methods are tried, the labels stay few."""

    def labels():
        _, samples = scraped(client)
        found = [dict(key[1:]) for key in samples if key[0] == "hloserve_requests_total"]
        assert all((label["model"], label["version"]) == ("fake", "1") for label in found)
        return {(label["protocol"], label["code"]) for label in found}

    for path in ("/v2/models/x", "/x", "/v1/models/x:predict", "/v2/models/x/versions/9/infer"):
        client.get(path)
        client.post(path, json={})
    before = labels()
    for i in range(50):
        client.get(f"/v2/models/m{i}")
        client.get(f"/x{i}")
        client.post(f"/v1/models/m{i}:predict", json={})
        client.post(f"/v2/models/fake/versions/{i + 2}/infer", json={})
        client.open("/health", method=f"M{i}")

    assert labels() - before == {("metrics", "200")}


def test_batches_and_their_padding_are_counted(client):
    """Rows, batches, buckets and padding add up: their ratio is the mean batch."""
    predict(client, [1, 2], [3, 4], [5, 6])
    predict(client, [1, 2])

    _, samples = scraped(client)

    assert samples["hloserve_inferences_total",] == 4
    assert samples["hloserve_executions_total",] == 2
    assert samples["hloserve_bucket_executions_total", ("bucket", "b4")] == 1
    assert samples["hloserve_bucket_executions_total", ("bucket", "b1")] == 1
    assert samples["hloserve_padding_rows_total",] == 1
    assert samples["hloserve_elements_total",] == 10
    assert samples["hloserve_padding_elements_total",] == 2
    assert samples["hloserve_batch_rows_sum",] == 4
    assert samples["hloserve_compute_duration_seconds_count",] == 2
    assert samples["hloserve_queue_duration_seconds_count",] == 2


def test_padding_along_an_axis_is_counted_as_well(running):
    """Of a bucketed axis the elements behind the real ones are padding."""
    client = client_for(running, FakeModel(signature=ECHO))

    predict(client, [1, 2, 3])

    _, samples = scraped(client)
    assert samples["hloserve_bucket_executions_total", ("bucket", "b1-seq4")] == 1
    assert samples["hloserve_padding_rows_total",] == 0
    assert samples["hloserve_elements_total",] == 4
    assert samples["hloserve_padding_elements_total",] == 1


def test_failures_have_one_of_four_reasons():
    """Errors of the server, of the client and of the device are counted apart."""
    reasons = {
        "queue_full": "rejected",
        "draining": "rejected",
        "not_ready": "rejected",
        "canceled": "canceled",
        "deadline": "canceled",
        "internal": "backend",
        "out_of_memory": "backend",
        "non_finite_output": "backend",
        "invalid_argument": "other",
        "too_large": "other",
        "anything": "other",
    }
    for slug, reason in reasons.items():
        metrics = Metrics()
        metrics.count_inference("vertex", "500", 0.5, slug)

        assert metrics.failures == {reason: 1}
        assert (metrics.failed.count, metrics.failed.seconds) == (1, 0.5)
        assert metrics.succeeded.count == 0


def test_a_device_error_is_the_backends(running, caplog):
    """A run that the device failed is counted as a device failure."""
    model = FakeModel()

    def fail(_):
        raise ExecutionError("no")

    model.before = fail
    client = client_for(running, model)

    predict(client, [1, 2])

    _, samples = scraped(client)
    assert samples["hloserve_request_failures_total", ("reason", "backend")] == 1
    assert samples["hloserve_inferences_total",] == 0
    assert samples["hloserve_executions_total",] == 1
    assert caplog.records


def test_answers_that_hold_nan_are_counted(running):
    """Responses that hold NaN are counted, not their whole batch."""
    model = FakeModel(function=lambda x: (np.where(x[:, 0] < 0, np.float32("nan"), x[:, 1]),))
    client = client_for(running, model)

    predict(client, [-1, 0])
    predict(client, [1, 0])

    assert scraped(client)[1]["hloserve_nonfinite_outputs_total",] == 1


def test_metrics_can_be_left_out(running):
    """With metrics switched off their path is not found, and inferences are answered and counted."""
    client = client_for(running, FakeModel(), metrics=False)

    status = client.get("/metrics").status_code
    predict(client, [1, 2])

    assert status == 404
    assert running.service.metrics.rows == 1


def test_before_the_model_is_open_the_page_says_so(running, config):
    """While loading the metrics are served, and report that the server is not ready."""
    families, samples = scraped(client_of(running, config))

    assert samples["hloserve_ready",] == 0
    assert "hloserve_bundle_info" not in families


def test_the_page_says_what_is_served(client, running):
    """Ready or draining, and which bundle on which platform."""
    labels = {"model": "fake", "version": "1", "digest": "0" * 64, "platform": "cpu"}

    _, samples = scraped(client)
    running.service.drain()
    _, draining = scraped(client)

    assert samples["hloserve_ready",] == 1
    assert draining["hloserve_ready",] == 0
    assert samples["hloserve_bundle_info", *sorted(labels.items())] == 1


def test_device_memory_is_shown_where_it_is_known():
    """A device that reports its memory has it in the metrics."""
    model = FakeModel()
    model.device = types.SimpleNamespace(memory_stats=lambda: {"bytes_in_use": 12345})
    with contextlib.closing(Running()) as running:
        _, samples = scraped(client_for(running, model))

    assert samples["hloserve_device_memory_bytes",] == 12345


def test_each_device_has_its_own_batches_and_memory_on_the_page():
    """Batches, their time and the memory in use stand by device, from the start; the sum stands beside them."""
    models = [FakeModel(device_name=f"cuda:{i}") for i in range(2)]
    for i, model in enumerate(models, 1):
        stats = {"bytes_in_use": 1000 * i}
        model.device = types.SimpleNamespace(memory_stats=lambda stats=stats: stats)
    with contextlib.closing(Running()) as running:
        running.open(models[0], replicas=models[1:])
        client = client_of(running, ServerConfig(bundle="unused"))
        _, before = scraped(client)
        for _ in range(3):
            predict(client, [1.0, 2.0])
        _, after = scraped(client)

    def of(samples, name):
        return [samples[f"hloserve_device_{name}", ("device", f"cuda:{i}")] for i in range(2)]

    assert of(before, "executions_total") == of(before, "busy_seconds_total") == [0, 0]
    assert of(after, "executions_total") == [2, 1]
    assert all(of(after, "busy_seconds_total"))
    assert of(after, "memory_in_use_bytes") == [1000, 2000]
    assert after["hloserve_device_memory_bytes",] == 3000


def test_preparation_of_texts_is_measured_where_a_bundle_takes_them(client):
    """Each request with texts has its time, tokens and cut rows on the page; without texts there are none of these."""
    without, _ = scraped(client)
    with contextlib.closing(Running()) as running:
        of_texts = client_for(running, TextModel())
        predict(of_texts, "a b c", "a")
        _, samples = scraped(of_texts)

    assert not {"hloserve_preprocess_duration_seconds", "hloserve_tokens"} & set(without)
    assert samples["hloserve_preprocess_duration_seconds_count",] == 1
    assert samples["hloserve_preprocess_duration_seconds_bucket", ("le", "+Inf")] == 1
    # Each text has two special tokens beside its words.
    assert samples["hloserve_tokens_total",] == 4 + 2 * 2
    assert samples["hloserve_truncated_rows_total",] == 0


def test_requests_that_run_alone_are_counted():
    """Where rows depend on each other the metrics show that batches hold one task."""
    with contextlib.closing(Running()) as running:
        _, samples = scraped(client_for(running, FakeModel(row_mixing=("x",))))

    assert samples["hloserve_runs_alone",] == 1


@mark.parametrize(
    "path",
    ["/v2/models/stats", "/v2/models/fake/stats", "/v2/models/fake/versions/1/stats"],
)
def test_statistics_are_tritons(client, path):
    """The statistics extension has counts and nanoseconds, of requests and of each bucket."""
    predict(client, [1, 2], [3, 4], [5, 6])
    predict(client, [1])

    (model,) = client.get(path).get_json()["model_stats"]

    assert (model["name"], model["version"]) == ("fake", "1")
    assert (model["inference_count"], model["execution_count"]) == (3, 1)
    stats = model["inference_stats"]
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert list(stats) == ["success", "fail", *parts]
    assert all(set(spent) == {"count", "ns"} for spent in stats.values())
    assert stats["success"]["count"] == stats["fail"]["count"] == 1
    assert stats["success"]["ns"] > stats["compute_infer"]["ns"] > 0
    (bucket,) = model["batch_stats"]
    assert (bucket["batch_size"], bucket["compute_infer"]["count"]) == (4, 1)
