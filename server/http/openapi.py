"""The description of the routes at `/openapi.json`, with the paths that this server has."""

import importlib.resources

import orjson

from server.config import ServerConfig
from server.protocols.response import Response, json_response

_PREDICT, _HEALTH = "/predict", "/health"


def openapi_response(config: ServerConfig) -> Response:
    """Return the response with the description.

    Args:
      config: with the configured routes, and whether there are metrics and a page.
    """
    text = importlib.resources.files("server.http").joinpath("openapi.json").read_bytes()
    description = orjson.loads(text)
    moved = {_PREDICT: config.predict_route, _HEALTH: config.health_route}
    left_out = {
        path for path, there in (("/metrics", config.metrics), ("/", config.page)) if not there
    }
    description["paths"] = {
        moved.get(path, path): operations
        for path, operations in description["paths"].items()
        if path not in left_out
    }
    return json_response(description)
