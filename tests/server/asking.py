"""A server without jax, asked through Flask's test client."""

from server.config import ServerConfig
from server.http.flask_app import create_app, make_wait
from server.http.routes import make_routes


def client_of(running, config):
    """Give Flask's test client for a running service."""
    routes = make_routes(running.service, config)
    return create_app(running.service, routes, config.bodies, make_wait(running.loop)).test_client()


def client_for(running, model, **options):
    """Open a model and give Flask's test client, in front of a service that is ready."""
    running.open(model)
    return client_of(running, ServerConfig(bundle="unused", **options))


def refused(answer, status, slug):
    """Check an error's form and give its text."""
    body = answer.get_json()
    assert answer.status_code == status, body
    assert answer.mimetype == "application/json"
    assert set(body) == {"error", "code", "request_id"}
    assert body["code"] == slug
    return body["error"]
