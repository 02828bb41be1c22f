"""What callers send that is no tensor: declarations that a bundle's stages are made of."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from export.declarations import Declaration
from export.errors import ExportError
from export.image_input import Image
from runtime.errors import nearest
from runtime.localpaths import why_not_read
from runtime.raw_inputs import MAX_TOKENIZER_BYTES, TEXT_ROLES

TOKENIZER_FILE = "tokenizer.json"


@dataclasses.dataclass(frozen=True, slots=True)
class Text(Declaration):
    """A text input, and how it becomes token ids.

    What is None follows the program's inputs: those of these names, or the only one that it can be.

    Attributes:
      input: the name that callers send texts by.
      tokenizer: a tokenizer.json, a folder of `save_pretrained` with one, or a tokenizer of the
        libraries tokenizers or transformers.
      input_ids: the input that takes the ids.
      attention_mask: the input that is 1 on tokens and 0 on padding.
      token_type_ids: the input that distinguishes the two texts of a row.
      lengths: the input that takes the number of tokens of each row.
      pair: the name that callers send second texts by, for models of pairs.
      truncate: cut off what is beyond the limit, which is otherwise refused.
    """

    input: str
    tokenizer: Any = dataclasses.field(kw_only=True)
    input_ids: str | None = dataclasses.field(default=None, kw_only=True)
    attention_mask: str | None = dataclasses.field(default=None, kw_only=True)
    token_type_ids: str | None = dataclasses.field(default=None, kw_only=True)
    lengths: str | None = dataclasses.field(default=None, kw_only=True)
    pair: str | None = dataclasses.field(default=None, kw_only=True)
    truncate: bool = dataclasses.field(default=False, kw_only=True)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names that callers send texts by."""
        return (self.input,) if self.pair is None else (self.input, self.pair)

    @property
    def source(self) -> str:
        """Return the tokenizer as messages name it."""
        plain = isinstance(self.tokenizer, str | os.PathLike)
        return os.fspath(self.tokenizer) if plain else type(self.tokenizer).__name__


Declared = Text | Image


def read_preprocess(value: Any) -> tuple[Declared, ...]:
    """Return the declarations of a field in their one form.

    Raises:
      ExportError: they are none.
    """
    given = [value] if isinstance(value, Text | Image) else value
    listed = isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping)
    stages = tuple(given) if listed else ()
    if not listed or not all(isinstance(stage, Text | Image) for stage in stages):
        raise ExportError(
            "preprocess: expected a list such as [Text('text', tokenizer='tokenizer.json')] or "
            f"[Image('image', 224)], got {type(value).__name__}"
        )
    names = [(kind_of(stage), name) for stage in stages for name in stage.names]
    seen: set[str] = set()
    for kind, name in names:
        if not isinstance(name, str) or not name.isidentifier():
            raise ExportError(f"{kind} {name!r}: expected a name such as {kind!r}")
        if name in seen:
            raise ExportError(f"{kind} {name!r}: expected each name once, got it twice")
        seen.add(name)
    return tuple(map(_checked, stages))


def kind_of(stage: Declared) -> str:
    """Return what messages call a declaration: text or image."""
    return type(stage).__name__.lower()


def texts_of(stages: Iterable[Declared]) -> list[Text]:
    """Return the texts among declarations."""
    return [stage for stage in stages if isinstance(stage, Text)]


def _checked(stage: Declared) -> Declared:
    if isinstance(stage, Image):
        return stage.checked()
    _check_fields(stage)
    return stage


def _check_fields(stage: Text) -> None:
    for key in TEXT_ROLES:
        name = getattr(stage, key)
        if name is not None and not isinstance(name, str):
            raise ExportError(
                f"text {stage.input!r}: expected the name of an input as {key}, got {name!r}"
            )
    if not isinstance(stage.truncate, bool):
        raise ExportError(
            f"text {stage.input!r}: expected truncate True or False, got {stage.truncate!r}"
        )


def tokenizer_file(source: str | os.PathLike[str], where: str) -> Path:
    """Return the tokenizer.json that a path means: the file, or that in a folder.

    Args:
      source: of a user.
      where: what a message calls it.

    Raises:
      ExportError: there is none, or the file is no such one by its size.
    """
    if reason := why_not_read(source):
        raise ExportError(f"{where}: {reason}")
    path = Path(source)
    try:
        if path.is_dir():
            path = _in_folder(path, where)
        size = path.stat().st_size if path.is_file() else -1
    except OSError as error:
        raise ExportError(
            f"{where}: expected {TOKENIZER_FILE}, got {error.strerror} at {source}"
        ) from None
    if size < 0:
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ExportError(
            f"{where}: expected {TOKENIZER_FILE} or a folder with it, got nothing at {source}"
            f"{nearest(path.name, beside)}"
        )
    if size > MAX_TOKENIZER_BYTES:
        raise ExportError(
            f"{where}: expected at most {MAX_TOKENIZER_BYTES} bytes, got {size} in {source}"
        )
    return path


def _in_folder(folder: Path, where: str) -> Path:
    path = folder / TOKENIZER_FILE
    if path.is_file():
        return path
    names = sorted(p.name for p in folder.iterdir())
    slow = next((n for n in names if n.endswith((".model", ".txt")) or n == "vocab.json"), None)
    hint = (
        f", which has {slow}; save it by a fast tokenizer, "
        f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained(DIR)"
        if slow
        else ""
    )
    raise ExportError(f"{where}: expected {TOKENIZER_FILE} in {folder}, got none{hint}")
