"""Small text files that people write: any Unicode that names itself, any line ends, nothing else."""

import codecs
import json
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_MAX_BYTES = 16 * 1024 * 1024
_BYTE_ORDER_MARK = "\ufeff"
# UTF-32's begins as UTF-16's does.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class NotText(Exception):
    """A file is not what was expected; the message is what was got."""


def read_text(path: str | os.PathLike[str]) -> str:
    r"""Return a file's text, its lines ended by `\n`, without a byte order mark.

    It is in UTF-8, or in UTF-16 or UTF-32 where a byte order mark says so.

    Raises:
      NotText: nothing is there, it may not be read, or it is no text.
    """
    try:
        if Path(path).is_dir():
            raise NotText("a directory")
        with Path(path).open("rb") as f:
            data = f.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise NotText("nothing there") from None
    except OSError as error:
        raise NotText(error.strerror or type(error).__name__) from None
    except ValueError:  # a name with a zero in it
        raise NotText("nothing there") from None
    if len(data) > _MAX_BYTES:
        raise NotText(f"a file of more than {_MAX_BYTES >> 20} MiB")
    text = _decode(data).replace("\r\n", "\n").replace("\r", "\n")
    for number, line in enumerate(text.split("\n"), 1):
        strange = [c for c in line if unicodedata.category(c) == "Cc" and c != "\t"]
        if _BYTE_ORDER_MARK in line:
            raise NotText(f"a byte order mark within line {number}")
        if strange:
            raise NotText(f"the control character {strange[0]!r} in line {number}")
    return text


def _decode(data: bytes) -> str:
    mark, encoding = next(((m, e) for m, e in _MARKS if data.startswith(m)), (b"", "utf-8"))
    if encoding == "utf-8" and b"\0" in data:
        raise NotText("bytes with zeros: a binary file, or UTF-16 without a byte order mark")
    try:
        return data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise NotText(f"a byte order mark of {encoding[:6].upper()}, and other bytes") from None
        line = data[: error.start].count(b"\n") + 1
        raise NotText(f"the byte {hex(error.object[error.start])} in line {line}") from None


def read_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
      NotText: it is none, or an object has a key twice.
    """
    try:
        value = json.loads(text, object_pairs_hook=_without_twice)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise NotText("JSON that is nested too deep") from None
    except UnicodeEncodeError:
        raise NotText("half of a character, as '\\ud800' alone is") from None
    except ValueError as error:
        raise NotText(str(error)) from None
    return value


def _without_twice(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise NotText(f"the key {next(k for k in keys if keys.count(k) > 1)!r} twice")
    return found
