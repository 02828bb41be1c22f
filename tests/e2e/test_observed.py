"""Metrics and logs of a server that received unusual requests: few labels, well-formed lines."""

import json
import re
import urllib.error
import urllib.request

from pytest import fixture, mark

from tests.serving import TIMEOUT_S, serving

pytestmark = mark.e2e

# Name and labels of every sample, but for the bounds of histograms.
SAMPLES = {
    "requests_total": {"model", "version", "protocol", "code"},
    "request_failures_total": {"reason"},
    "inferences_total": set(),
    "executions_total": set(),
    "bucket_executions_total": {"bucket"},
    "queue_depth": set(),
    "batch_rows": {"le"},
    "padding_rows_total": set(),
    "request_duration_seconds": {"protocol", "le"},
    "queue_duration_seconds": {"le"},
    "compute_duration_seconds": {"le"},
    "bundle_info": {"model", "version", "digest", "platform"},
    "nonfinite_outputs_total": set(),
    "compiles_after_ready_total": set(),
    "live_arrays": set(),
    "ready": set(),
}
LABEL = re.compile(r'(\w+)="([^"]*)"')
PROTOCOLS = {"vertex", "oip", "tfserving", "grpc", "health", "metrics", "page", "none"}
# Not legal in a header or a path, so neither is any of it in a label or a line of the log.
MARK = "zzmark"
SECRET = 1234.5625


@fixture(scope="module")
def server(classifier_bundle):
    """A server that logs as JSON and has received unusual requests."""
    with serving("--bundle", str(classifier_bundle), "--log-format", "json") as served:
        for number in range(200):
            ask_oddly(served, f"{MARK}{number}")
        yield served


def ask_oddly(served, name):
    """Request what does not exist, under names that no other request uses."""
    body = json.dumps({"instances": [[SECRET, 2, 3, name]]}).encode()
    headers = {
        "X-Request-Id": f"{name}\t\x1b[31m",
        "X-Forwarded-For": name,
        "traceparent": name * 100,
        "baggage": name * 1000,
    }
    paths = (f"/{name}", f"/v2/models/{name}/infer", f"/v1/models/{name}:predict", "/predict")
    for path in paths:
        request = urllib.request.Request(f"{served.url}{path}", body, headers)  # noqa: S310
        try:
            urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310
        except urllib.error.HTTPError as error:
            error.close()


def split(sample):
    """Return a sample's name, without what a histogram appends, and its labels."""
    name, _, labels = sample.partition("{")
    return re.sub(r"_(sum|count|bucket)$", "", name), dict(LABEL.findall(labels))


def test_metrics_have_the_names_that_dashboards_know(server):
    """Each name is there, with the labels that belong to it."""
    server.post({"instances": [[1, 2, 3, 4]]})

    found = {}
    for name, labels in map(split, server.counts()):
        found.setdefault(name, set()).update(labels)

    assert {name: found.get(f"hloserve_{name}") for name in SAMPLES} == SAMPLES
    assert {"process_open_fds", "process_resident_memory_bytes"} <= set(found)


def test_odd_requests_make_no_labels(server):
    """However many names clients make up, labels only have the server's own values."""
    samples = [split(sample) for sample in server.counts()]

    labels = [label for name, label in samples if name == "hloserve_requests_total"]
    assert {(label["model"], label["version"]) for label in labels} == {("classifier", "1")}
    assert {label["protocol"] for label in labels} <= PROTOCOLS
    assert {label["code"] for label in labels} <= {"200", "400", "404"}
    assert len(samples) < 250
    assert MARK not in server.get("/metrics")


def test_lines_of_the_log_are_objects(classifier_bundle):
    """Each line is JSON with a severity, and contains nothing that clients sent."""
    with serving("--bundle", str(classifier_bundle), "--log-format", "json") as served:
        ask_oddly(served, MARK)

    lines = [json.loads(line) for line in served.log.splitlines()]
    assert {line["severity"] for line in lines} == {"INFO"}
    assert lines[-1]["message"] == "stopped"
    assert MARK not in served.log
    assert str(SECRET) not in served.log
