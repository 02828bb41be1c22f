"""metadata.json of an output folder: which run it is of, and how far that is complete.

It is replaced after each shard, all at once, and is the mark that a shard counts: what is in the folder
beyond it is written again. No times are in it, so that runs of the same inputs leave the same bytes.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from runtime.batch_prediction.blocks import Position
from runtime.batch_prediction.output import Output, OutputError

NAME = "metadata.json"
_VERSION = 1


@dataclasses.dataclass(slots=True)
class Progress:
    """How far a run is complete.

    Attributes:
      shards: that are written.
      rows: of the inputs, in these shards.
      predictions: among them.
      errors: among them, and files that could not be read.
      position: where the next shard begins.
      complete: whether it is the whole run.
    """

    shards: int = 0
    rows: int = 0
    predictions: int = 0
    errors: int = 0
    position: Position = dataclasses.field(default_factory=Position)
    complete: bool = False


class Ledger:
    """The record of a run in its output folder.

    Args:
      output: the folder.
      run: what the run is, as JSON values: all that its bytes follow from.
      notes: more to record, which need not be the same when the run goes on.

    Attributes:
      progress: as it was recorded last.
    """

    def __init__(
        self, output: Output, run: Mapping[str, Any], notes: Mapping[str, Any] | None = None
    ) -> None:
        self._output = output
        self._run = json.loads(json.dumps(run))
        self._notes = dict(notes or {})
        self.progress = Progress()

    def begin(self, *, overwrite: bool, resumable: bool) -> bool:
        """Find out where to begin, and record the run.

        Args:
          overwrite: whether what an earlier run left is removed.
          resumable: whether the inputs can be read from another place than their beginning.

        Returns:
          Whether the run goes on where an earlier one stopped.

        Raises:
          OutputError: the folder has something else.
        """
        found = expect_usable(self._output, overwrite=overwrite, resumable=resumable)
        others = [name for name in self._output.names() if name != NAME]
        if found is not None and not overwrite:
            self._go_on(found)
        self.record(self.progress)
        for name in others:
            if _beyond(name, self.progress.shards):
                self._output.remove(name)
        return self.progress.shards > 0

    def record(self, progress: Progress) -> None:
        """Replace the record."""
        self.progress = progress
        done = {**dataclasses.asdict(progress)}
        if progress.complete:
            del done["position"]
        value = {"version": _VERSION, **self._run, **self._notes, "progress": done}
        self._output.write(NAME, json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n")

    def _go_on(self, found: Mapping[str, Any]) -> None:
        for name, wanted in self._run.items():
            if found.get(name) != wanted:
                got = _difference(name, wanted, found.get(name))
                raise OutputError(
                    f"--out {self._output}: expected the run that was begun here, with {got}; pass --overwrite, "
                    "or take another folder"
                )
        progress = found["progress"]
        if progress["shards"]:
            position = Position(**progress["position"])
            self.progress = Progress(**{**progress, "position": position})


def expect_usable(output: Output, *, overwrite: bool, resumable: bool) -> Mapping[str, Any] | None:
    """Refuse a folder that no run may write, whatever its bundle.

    Args:
      output: the folder.
      overwrite: whether what an earlier run left is removed.
      resumable: whether the inputs can be read from another place than their beginning.

    Returns:
      The record of an earlier run; None where there is none.

    Raises:
      OutputError: the folder has something else, or a run that is complete or cannot go on.
    """
    data = output.read(NAME)
    if data is None:
        other = next((name for name in output.names() if name != NAME), None)
        if other is not None:
            raise OutputError(
                f"--out {output}: expected an empty folder, or that of an earlier run, got {other!r} in it; "
                "take another folder"
            )
        return None
    found = _parsed(output, data)
    if overwrite:
        return found
    if found["progress"]["complete"]:
        raise OutputError(
            f"--out {output}: expected an empty folder, got the complete output of a run; pass --overwrite, or "
            "take another folder"
        )
    if found["progress"]["shards"] and not resumable:
        raise OutputError(
            f"--out {output}: expected inputs that can be read from where the run stopped, got stdin; pass "
            "--overwrite"
        )
    return found


def _parsed(output: Output, data: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(data)
        if value["version"] == _VERSION and isinstance(value["progress"], dict):
            return dict(value)
    except (ValueError, KeyError, TypeError):
        pass
    raise OutputError(
        f"--out {output}: expected metadata.json of an earlier run, got another file of this name; take "
        "another folder"
    )


def _difference(name: str, wanted: Any, found: Any) -> str:
    """Name the first value that differs, as `NAME X, got Y`: found, then wanted."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key in (*wanted, *found):
            if wanted.get(key) != found.get(key):
                return _difference(f"{name} {key}", wanted.get(key), found.get(key))
    if isinstance(wanted, list) and isinstance(found, list):
        if len(wanted) != len(found):
            return f"{len(found)} {name}, got {len(wanted)}"
        for one, other in zip(wanted, found, strict=True):
            if one != other:
                own = one.get("name", "") if isinstance(one, dict) else ""
                return _difference(f"{name} {own}".rstrip(), one, other)
    return f"{name} {json.dumps(found)}, got {json.dumps(wanted)}"


def _beyond(name: str, shards: int) -> bool:
    """Whether a file is a shard that does not count."""
    kind, dash, rest = name.partition("-")
    number = rest.partition(".")[0]
    return (
        bool(dash)
        and kind in ("predictions", "errors")
        and number.isdecimal()
        and int(number) >= shards
    )
