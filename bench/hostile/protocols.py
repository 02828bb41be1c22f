"""Texts written as requests of each protocol."""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bench.hostile.texts import Value


class Request(NamedTuple):
    """An HTTP request.

    Attributes:
      path: of the URL.
      body: its bytes.
      headers: of it.
    """

    path: str
    body: bytes
    headers: dict[str, str]


class Protocol(NamedTuple):
    """A way to ask in JSON.

    Attributes:
      write: returns the request for texts, given as the sources of JSON values.
      read: returns the answers, one for each text, of an answer's JSON value.
      each: whether a text that is refused is so by itself.
    """

    write: Callable[[Sequence[bytes]], Request]
    read: Callable[[Any], list[Any]]
    each: bool = False


_JSON = {"content-type": "application/json"}
_PREDICT, _COLUMNS, _INFER = "/predict", "/v1/models/small:predict", "/v2/models/small/infer"


def _json(path: str, before: bytes, after: bytes, around: bytes = b"%b") -> Any:
    def write(texts: Sequence[bytes]) -> Request:
        listed = b", ".join(around.replace(b"%b", text) for text in texts)
        return Request(path, before + listed + after, _JSON)

    return write


def _tensor(texts: Sequence[bytes]) -> Request:
    head = b'{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [%d], "data": ['
    return Request(_INFER, head % len(texts) + b", ".join(texts) + b"]}]}", _JSON)


def _predictions(answer: Any) -> list[Any]:
    return list(answer["predictions"])


def _outputs(answer: Any) -> list[Any]:
    return list(answer["outputs"])


def _data(answer: Any) -> list[Any]:
    [output] = answer["outputs"]
    rows, size = output["shape"]
    return [output["data"][i * size : (i + 1) * size] for i in range(rows)]


def _embeddings(answer: Any) -> list[Any]:
    return [row["embedding"] for row in answer["data"]]


_NAMED = b'{"text": %b}'
_EACH = b'], "parameters": {"row_errors": true}}'
PROTOCOLS: dict[str, Protocol] = {
    "Vertex": Protocol(_json(_PREDICT, b'{"instances": [', b"]}"), _predictions),
    "Vertex, named": Protocol(_json(_PREDICT, b'{"instances": [', b"]}", _NAMED), _predictions),
    "Vertex, row errors": Protocol(_json(_PREDICT, b'{"instances": [', _EACH), _predictions, each=True),
    "Vertex, named, row errors": Protocol(_json(_PREDICT, b'{"instances": [', _EACH, _NAMED), _predictions, each=True),
    "Vertex, columns of tables": Protocol(_json(_PREDICT, b'{"instances": [', b"]}", b"[%b]"), _predictions),
    "TensorFlow Serving, rows": Protocol(_json(_COLUMNS, b'{"instances": [', b"]}", _NAMED), _predictions),
    "TensorFlow Serving, columns": Protocol(_json(_COLUMNS, b'{"inputs": {"text": [', b"]}}"), _outputs),
    "TensorFlow Serving, a column": Protocol(_json(_COLUMNS, b'{"inputs": [', b"]}"), _outputs),
    "Open Inference Protocol": Protocol(_tensor, _data),
    "OpenAI": Protocol(_json("/v1/embeddings", b'{"input": [', b"]}"), _embeddings),
    "TEI": Protocol(_json("/embed", b'{"normalize": false, "inputs": [', b"]}"), list),
}  # fmt: skip


def plain(text: bytes) -> Request:
    """Return a text as a request of plain text."""
    return Request(_PREDICT, text, {"content-type": "text/plain"})


def elements(texts: Sequence[bytes]) -> bytes:
    """Return texts as the elements of a tensor of BYTES."""
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def binary(rows: int, data: bytes) -> Request:
    """Return a tensor of BYTES as a binary request of the Open Inference Protocol."""
    parameters = {"binary_data_size": len(data)}
    tensor = {"name": "text", "datatype": "BYTES", "shape": [rows], "parameters": parameters}
    head = json.dumps({"inputs": [tensor]}).encode()
    kind = {"content-type": "application/octet-stream"}
    return Request(_INFER, head + data, kind | {"inference-header-content-length": str(len(head))})


def sources(values: Sequence[Value]) -> list[bytes]:
    """Return texts as the sources of JSON values."""
    return [value.json for value in values if value.json is not None]
