"""Bodies that are no JSON: one raw input by itself, or a form with raw inputs as its parts."""

from collections.abc import Callable, Mapping

from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from runtime.errors import MalformedRequest
from runtime.model import Model
from server.errors import TooLarge
from server.protocols import vertex
from server.protocols.inference import ParsedRequest
from server.protocols.response import Response

FORM = "multipart/form-data"
# Content types of one raw input by itself, by its kind.
_TYPES: Mapping[str, tuple[str, ...]] = {
    "text": ("text/plain",),
    "image": ("image/jpeg", "image/png", "image/webp"),
}
# Parses a body of the content type that is given.
ReadRaw = Callable[[bytes, str, Model], ParsedRequest[Response]]


def all_types() -> tuple[str, ...]:
    """Return every content type that some model takes."""
    return (*(one for types in _TYPES.values() for one in types), FORM)


def raw_types(model: Model) -> tuple[str, ...]:
    """Return the content types of bodies that are no JSON, which a model takes."""
    preparer = model.preparer
    if preparer is None:
        return ()
    required = [n for n in preparer.expected_names if n not in preparer.optional_names]
    if not set(required) <= set(preparer.raw_names):
        return ()
    alone = _TYPES[preparer.kinds[required[0]]] if len(preparer.expected_names) == 1 else ()
    return (*alone, FORM)


def read_raw_body(
    body: bytes, content_type: str, model: Model, *, max_rows: int
) -> ParsedRequest[Response]:
    """Parse a body that is no JSON; the response will have `predictions`.

    Args:
      body: the complete body, decompressed.
      content_type: one that `raw_types` has, with its parameters.
      model: takes this.
      max_rows: limit of rows in a request.

    Raises:
      MalformedRequest: it is no form, or has other parts than the raw inputs.
      SignatureMismatch: a text is no UTF-8.
      TooLarge: more parts than max_rows rows have.
    """
    media, options = parse_options_header(content_type)
    if media.lower() != FORM:
        return vertex.read_one(body, model)
    boundary = options.get("boundary", "")
    if not boundary.isascii() or not boundary:
        raise MalformedRequest("content-type: expected a boundary with the form, got none")
    names = model.preparer.raw_names if model.preparer else ()
    columns: dict[str, list[bytes]] = {name: [] for name in names}
    skipped = model.manifest.passthrough
    for name, data in _parts(body, boundary, max_rows * len(names) + len(skipped)):
        if name in columns:
            columns[name].append(data)
        elif name not in skipped:
            expected = ", ".join(map(repr, names))
            raise MalformedRequest(f"body: expected parts {expected}, got {name[:100]!r}")
    return vertex.read_form(columns, model)


def _parts(body: bytes, boundary: str, limit: int) -> list[tuple[str, bytes]]:
    """Return name and content of each part of a form."""
    decoder = MultipartDecoder(boundary.encode(), max_parts=limit)
    found: list[tuple[str, bytearray]] = []
    try:
        decoder.receive_data(body)
        decoder.receive_data(None)
        while not isinstance(event := decoder.next_event(), Epilogue | NeedData):
            if isinstance(event, Field | File):
                found.append((event.name or "", bytearray()))
            elif isinstance(event, Data):
                found[-1][1].extend(event.data)
    except RequestEntityTooLarge:
        raise TooLarge(f"body: expected at most {limit} parts, got more") from None
    except (ValueError, LookupError):
        raise MalformedRequest("body: expected a whole form, got another one") from None
    return [(name, bytes(data)) for name, data in found]
