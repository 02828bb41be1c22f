"""What batch prediction makes of the formats of its input: the instances of its requests.

https://cloud.google.com/vertex-ai/docs/predictions/get-batch-predictions
A line of JSON is an instance as it is, a row of a CSV file or a table an array of its columns, a
record or a file the object {"b64": "…"}.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any


def batch_formats(instances: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return instances as batch prediction has them of each format.

    Args:
      instances: as JSON values by the names of the inputs, the raw ones first.

    Returns:
      The name of a format to its instances, without formats that cannot have such ones; nothing
      for a single tensor, which is asked for anyway.
    """
    rows = [list(instance.values()) for instance in instances]
    alone = len(rows[0]) == 1
    if alone and not isinstance(rows[0][0], str | dict):
        return {}
    lines = [row[0] for row in rows] if alone else list(instances)
    found: dict[str, list[Any]] = {"JSON lines": lines}
    if not any(isinstance(value, list | dict) for value in rows[0]):
        # An unquoted number of a CSV file is a double, one of a table is what the column is.
        found["CSV"] = [as_doubles(row) for row in rows]
        found["BigQuery"] = rows
    if alone:
        encoded = [_as_file(row[0]) for row in rows]
        found["TFRecord"] = encoded
        found["file list"] = encoded
    return found


def _as_file(value: Any) -> Any:
    """Return a text as a record or a file of it; an image is one already."""
    if isinstance(value, str):
        return {"b64": base64.b64encode(value.encode()).decode()}
    return value


def as_doubles(value: Any) -> Any:
    """Return a JSON value with every integer as a double."""
    if isinstance(value, dict):
        return {name: as_doubles(item) for name, item in value.items()}
    if isinstance(value, list):
        return [as_doubles(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
