"""Raw values in the forms that they are sent in: JSON, and plain bytes. By their kind, never by a guess.

A text is a string, or UTF-8 in `{"b64": …}`; an image is a file, in `{"b64": …}` alone, so that no
string is ever taken for a place to fetch one from.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from runtime.errors import SignatureMismatch
from runtime.records.tensors import from_base64, kind_of

RawValue = str | bytes
B64 = frozenset({"b64"})


class Form(NamedTuple):
    """How values of one kind are sent.

    Attributes:
      from_json: (value, where) to the value.
      from_bytes: (bytes, where) to the value.
    """

    from_json: Callable[[Any, str], RawValue]
    from_bytes: Callable[[bytes, str], RawValue]


def is_b64(value: Any) -> bool:
    """Whether a value of JSON is an object of bytes, `{"b64": …}`."""
    return type(value) is dict and value.keys() == B64


def text_from_json(value: Any, where: str) -> str:
    """Return a text: a string, or UTF-8 in `{"b64": …}`.

    Raises:
      SignatureMismatch: it is neither.
    """
    if isinstance(value, str):
        return value
    if not is_b64(value) or not isinstance(value["b64"], str):
        raise SignatureMismatch(f"{where}: expected a text, got {kind_of(value)}")
    return text_from_bytes(from_base64(value["b64"], where), where)


def text_from_bytes(data: bytes, where: str) -> str:
    """Return the text that bytes are in UTF-8.

    Raises:
      SignatureMismatch: they are none.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise SignatureMismatch(
            f"{where}: expected a text in UTF-8, got the byte {byte:#x} at {error.start}"
        ) from None


def image_from_json(value: Any, where: str) -> bytes:
    """Return the file in `{"b64": …}`.

    Raises:
      SignatureMismatch: it is something else, such as a string.
    """
    if not is_b64(value) or not isinstance(value["b64"], str):
        raise SignatureMismatch(
            f'{where}: expected an image as {{"b64": "…"}}, got {kind_of(value)}'
        )
    return from_base64(value["b64"], where)


def _image_from_bytes(data: bytes, _: str) -> bytes:
    return data


FORMS: Mapping[str, Form] = {
    "text": Form(text_from_json, text_from_bytes),
    "image": Form(image_from_json, _image_from_bytes),
}
