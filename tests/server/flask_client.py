"""Flask's test client for a service over a fake model."""

from server.config import ServerConfig
from server.http.flask_app import create_app, make_wait
from server.http.routes import make_routes


def client_of(running, config):
    """Return Flask's test client for a running service."""
    routes = make_routes(running.service, config)
    return create_app(running.service, routes, config.bodies, make_wait(running.loop)).test_client()


def client_for(running, model, **options):
    """Open a model and return Flask's test client, in front of a service that is ready."""
    running.open(model)
    return client_of(running, ServerConfig(bundle="unused", **options))


def refused(response, status, error_code):
    """Assert that a response is an error of this status and code, and return its message."""
    body = response.get_json()
    assert response.status_code == status, body
    assert response.mimetype == "application/json"
    assert set(body) == {"error", "code", "request_id"}
    assert body["code"] == error_code
    return body["error"]
