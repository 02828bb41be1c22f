"""The addresses that a server logs once it is ready; `e2e/test_startup.py` has whole starts."""

import urllib.request

from pytest import mark

from server.config import ServerConfig
from server.startup import _addresses
from tests.serving import TIMEOUT_S, free_port, ready_line, start


@mark.parametrize(
    ("options", "predictions", "shown"),
    [
        ({}, "http://0.0.0.0:8080/predict", "http://127.0.0.1:8080/"),
        ({"host": "::", "port": 80}, "http://[::]:80/predict", "http://[::1]:80/"),
        ({"host": "10.1.2.3"}, "http://10.1.2.3:8080/predict", "http://10.1.2.3:8080/"),
        ({"page": False}, "http://0.0.0.0:8080/predict", "http://127.0.0.1:8080/health"),
        (
            {"page": False, "health_route": "/live", "predict_route": "/ask"},
            "http://0.0.0.0:8080/ask",
            "http://127.0.0.1:8080/live",
        ),
    ],
)
def test_what_a_browser_can_open_is_named(options, predictions, shown):
    """Beside the address of predictions the line has an address that a browser on this machine can open."""
    http, _, page = _addresses(ServerConfig(bundle="b", **options))

    assert (http, page) == (f"{predictions} serves", f"; open {shown}")


@mark.e2e
@mark.parametrize("options", [(), ("--no-page",)])
def test_the_ready_line_ends_with_an_address_that_answers_get(classifier_bundle, options):
    """The address at the end of the line returns 200, with the page or without."""
    with start(free_port(), "--bundle", str(classifier_bundle), *options) as process:
        address = ready_line(process).split()[-1]
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:  # noqa: S310
            status = answer.status
        process.terminate()
        process.communicate(timeout=TIMEOUT_S)

    assert status == 200
