"""Class names from a file: one a line, or JSON; what looks like anything else is refused.

A line is a label as it stands, so a file whose lines have an index or columns is no list of
labels: to take the whole line would be as wrong as to guess which part of it is meant. A JSON list
says all of them without doubt.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from export.errors import ExportError
from runtime.localpaths import url_of, why_not_read
from runtime.textfiles import NotText, read_json, read_text

_EXPECTED = (
    "one label a line, a JSON list of labels, or a JSON object of labels by index or with id2label"
)
# A first line such as [PAD] or {name} is a label, one such as ["cat", is not.
_BRACKETED = re.compile(r"\[[A-Za-z][^\[\]\"',:]*\]|\{[A-Za-z][^{}\"',:]*\}")
_INDEX_FIRST = re.compile(r"[\"']?-?\d+[\"']?\s*[\s,;:=|]\s*\S")
_INDEX_LAST = re.compile(r".*\S\s*[\t,;:=|]\s*[\"']?(-?\d+)[\"']?")
_QUOTED = re.compile(r"([\"']).*\1,?")
_LISTED = re.compile(r"[-*] +\S.*")


class LabelsOfFile(tuple[str, ...]):  # noqa: SLOT001 (a tuple cannot have slots)
    """Labels that know the file they come from.

    Attributes:
      file: as it was named.
    """

    file: str

    def __new__(cls, labels: Iterable[str], file: str) -> Self:
        """Make a tuple of labels."""
        made = super().__new__(cls, labels)
        made.file = file
        return made


def labels_of(text: str | os.PathLike[str], what: str = "labels") -> tuple[str, ...]:
    """Return the labels that are written as `a,b,c`, or that a file of this name has.

    Args:
      text: the labels, or the path of a file.
      what: the option or field in messages.

    Raises:
      ExportError: it is neither, or the file is none of labels.
    """
    text = os.fspath(text)
    # Path.exists raises for long names.
    if (url_of(text) and "," not in text) or os.path.exists(text):  # noqa: PTH110
        return read_labels(text, what)
    if "," not in text:
        raise ExportError(
            f"{what}: expected a,b,c or a file with a name on each line, got {text!r}, which is "
            "no file"
        )
    return tuple(word.strip() for word in text.split(","))


def read_labels(path: str | os.PathLike[str], what: str = "--labels") -> LabelsOfFile:
    """Read labels, in the order of their classes, from a text or JSON file.

    Args:
      path: of the file.
      what: the option or field in messages.

    Raises:
      ExportError: it has none, or what its labels are is not plain; names the line or key.
    """
    if reason := why_not_read(path):
        raise ExportError(f"{what}: {reason}")
    try:
        text = read_text(path)
        found = _json_labels(text) if _is_json(text, os.fspath(path)) else _line_labels(text)
        return LabelsOfFile(found, os.fspath(path))
    except NotText as error:
        raise ExportError(f"{what} {path}: expected text in UTF-8, got {error}") from None
    except _Refused as error:
        raise ExportError(f"{what} {path}{error}") from None


class _Refused(Exception):
    """What is wrong in a file, from its place on."""

    def __init__(self, place: str, expected: str, got: str) -> None:
        super().__init__(f"{place and f', {place}'}: expected {expected}, got {got}")


def _is_json(text: str, name: str) -> bool:
    first = text.strip().partition("\n")[0].rstrip()
    begins = first[:1] in ("[", "{") and _BRACKETED.fullmatch(first) is None
    return begins or name.lower().endswith(".json")


def _line_labels(text: str) -> list[str]:
    lines = [line.strip() for line in text.rstrip().split("\n")]
    if lines == [""]:
        raise _Refused("", _EXPECTED, "an empty file")
    if form := _other_form(lines):
        raise _Refused(
            "line 1",
            "a label alone",
            f"{_short(lines[0])}: {form}; write the labels alone, one a line in the order of their "
            "classes, or as a JSON list, which takes them as they are",
        )
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            raise _Refused(f"line {number}", "a label", "an empty line")
        if line in seen:
            again = f"the {_short(line)} of line {seen[line]} again"
            raise _Refused(f"line {number}", "each label once", again)
        seen[line] = number
    return lines


def _other_form(lines: Sequence[str]) -> str:
    """Return what lines look like that are no labels by themselves, or nothing."""
    given = [line for line in lines if line]
    rest = given[len(given) > 2 :]  # the first of several may be a header
    columns = [{line.count(separator) for line in given} for separator in ",;"]
    forms = {
        "the quotes would be part of it": all(map(_QUOTED.fullmatch, given)),
        "the file looks like a table with tabs": any("\t" in line for line in given),
        "the file looks like labels behind their indices": all(map(_INDEX_FIRST.match, rest)),
        "the file looks like labels before their indices": all(map(_INDEX_LAST.fullmatch, rest)),
        "the file looks like a list within one line": len(given) == 1 and "," in given[0],
        "the file looks like CSV": any(len(c) == 1 and c != {0} for c in columns),
        "the file looks like a list in YAML or Markdown": all(map(_LISTED.fullmatch, given)),
    }
    return next((form for form, found in forms.items() if found), "")


def _json_labels(text: str) -> list[str]:
    try:
        value = read_json(text)
    except NotText as error:
        raise _Refused("", "JSON, by its name or its beginning", str(error)) from None
    if isinstance(value, list):
        return _checked([(f"[{i}]", label) for i, label in enumerate(value)])
    if not isinstance(value, dict):
        raise _Refused("", _EXPECTED, _short(value))
    if isinstance(value.get("id2label"), dict):
        return _by_index(value["id2label"], "id2label")
    if isinstance(value.get("label2id"), dict) and "id2label" not in value:
        return _inverted(value["label2id"], "label2id")
    return _by_index(value, "")


def _by_index(labels: Mapping[str, Any], where: str) -> list[str]:
    place = where and f"key {where!r}"
    count = len(labels)
    if not count:
        raise _Refused(place, _EXPECTED, "an empty object")
    wanted = [str(i) for i in range(count)]
    strange = [key for key in labels if key not in set(wanted)]
    if strange:
        numbers = all(re.fullmatch(r"\d+", key) for key in labels)
        if numbers:
            missing = next(key for key in wanted if key not in labels)
            what = f"each of the indices 0 to {count - 1} as a key, as there are {count}"
            raise _Refused(place, what, f"{_short(strange[0])} and no {missing!r}")
        hint = ""
        if all(type(value) is int for value in labels.values()):
            hint = "; if that is labels with their indices, put it under the key label2id"
        raise _Refused(place, _EXPECTED, f"an object with the key {_short(strange[0])}{hint}")
    return _checked([(f"key {'.'.join(filter(None, (where, k)))!r}", labels[k]) for k in wanted])


def _inverted(indices: Mapping[str, Any], where: str) -> list[str]:
    found: dict[int, str] = {}
    for label, index in indices.items():
        place = f"key {f'{where}.{label}'!r}"
        if type(index) is not int or not 0 <= index < len(indices):
            wanted = f"an index of 0 to {len(indices) - 1}, as there are {len(indices)} labels"
            raise _Refused(place, wanted, _short(index))
        if index in found:
            raise _Refused(place, "each index once", f"the {index} of {found[index]!r} again")
        found[index] = label
    if not found:
        raise _Refused(f"key {where!r}", _EXPECTED, "an empty object")
    return _checked([(f"key {f'{where}.{found[i]}'!r}", found[i]) for i in sorted(found)])


def _checked(labels: Sequence[tuple[str, Any]]) -> list[str]:
    if not labels:
        raise _Refused("", _EXPECTED, "an empty list")
    seen: dict[str, str] = {}
    for place, label in labels:
        if not isinstance(label, str):
            raise _Refused(place, "a label as a string", _short(label))
        if not label.strip():
            raise _Refused(place, "a label", repr(label))
        if label in seen:
            raise _Refused(place, "each label once", f"the {_short(label)} of {seen[label]} again")
        seen[label] = place
    return [label for _, label in labels]


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
