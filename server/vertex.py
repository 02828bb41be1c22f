"""Vertex AI's dialect: `instances` in, `predictions` out."""

from typing import Any

import orjson

from server.errors import MalformedRequest
from server.instances import arrays_from, row_sizes
from server.predictions import predictions_from
from server.reply import Reply, reply
from server.service import Service


async def predict(service: Service, body: bytes) -> Reply:
    """Answer a request body.

    Raises:
      Exception: whatever `status.status_of` knows; see `Service.answer`.
    """
    model = service.model
    instances = instances_of(body)
    arrays = arrays_from(instances, model.signature)
    answer = await service.answer(arrays)
    sizes = row_sizes(instances, model.signature) if model.signature.axes else ()
    form = model.manifest.output_format
    predictions = predictions_from(answer.outputs, model.signature, form, sizes)
    return reply({"predictions": predictions})


def instances_of(body: bytes) -> list[Any]:
    """Take `instances` out of a request body.

    Raises:
      MalformedRequest: not `{"instances": [...], "parameters": {...}}`.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedRequest(f"body: expected JSON, got {error}") from None
    if not isinstance(value, dict) or "instances" not in value:
        raise MalformedRequest('body: expected {"instances": [...]}, got none')
    unknown = sorted(set(value) - {"instances", "parameters"})
    if unknown:
        raise MalformedRequest(f"body: expected instances and parameters, got {unknown[0]!r}")
    if not isinstance(value["instances"], list):
        raise MalformedRequest("instances: expected an array, got something else")
    if not isinstance(value.get("parameters"), dict | None):
        raise MalformedRequest("parameters: expected an object, got something else")
    instances: list[Any] = value["instances"]
    return instances
