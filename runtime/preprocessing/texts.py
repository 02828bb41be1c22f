"""Texts to the arrays of one stage, row by row."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from runtime.errors import BundleError, SignatureMismatch
from runtime.preprocessing.readers import Where
from runtime.preprocessing.resources import UNLIMITED, Resources
from runtime.preprocessing.tokenizer import Encoded, Text, Tokenizer, TokenizerError, open_tokenizer
from runtime.raw_inputs import TextStage
from runtime.signature import Signature, TensorSpec, limits
from runtime.tensors import Array, numpy_dtype

# What the library has at once: it can neither be interrupted meanwhile nor frees anything, and takes
# hundreds of times the memory of the texts.
_AT_ONCE = 16
_BYTES_AT_ONCE = 1 << 18
# Ids of a row that a message shows.
_SHOWN = 12


class Tokens(NamedTuple):
    """What one row of texts became.

    Attributes:
      ids: of its tokens.
      type_ids: as many.
      truncated: whether the text had more tokens.
    """

    ids: Array
    type_ids: Array
    truncated: bool

    @property
    def size(self) -> int:
        """Return the number of tokens, which is the size on the bucketed axis."""
        return len(self.ids)

    @property
    def tokens(self) -> int:
        """Return the number of tokens, padding apart."""
        return len(self.ids)


class TextReader:
    """Makes a stage's arrays of texts. May be called from any number of threads at once.

    Args:
      stage: as the manifest has it.
      signature: of the programs.
      data: the stage's tokenizer.json, which was compared with its digest.

    Attributes:
      stage: likewise.
      axis: the bucketed axis that the number of tokens is the size of; None where it is fixed.
      pad_id: what fills the ids behind those of a text.
      row_bytes: 0: ids take about as much as the text.
      library: the package that this stands on.
      changed: what a message says where it makes something else than at export.

    Raises:
      MissingLibrary: the library tokenizers is not installed.
      BundleError: the library does not take the file, or the file does not fit the programs.
    """

    row_bytes = 0
    library = "tokenizers"
    changed = "the tokenizer gives other ids"

    def __init__(self, stage: TextStage, signature: Signature, data: bytes) -> None:
        self.stage = stage
        self._tokenizer: Tokenizer = open_tokenizer(data, stage)
        self._inputs = {spec.name: spec for spec in signature.inputs}
        ids = self._inputs[stage.input_ids]
        self.pad_id = ids.pad
        self._ids_dtype = numpy_dtype(ids.dtype)
        dim = ids.shape[1]
        self.axis = dim if isinstance(dim, str) else None
        self._fixed = None if isinstance(dim, str) else dim
        self._minimum = next((a.minimum for a in signature.axes if a.name == dim), 0)
        expect_fit(self._tokenizer, stage, ids)

    @property
    def panics(self) -> int:
        """Return the number of calls in which the library's own code failed."""
        return self._tokenizer.panics

    def read(
        self,
        columns: Mapping[str, Sequence[object]],
        where: Where,
        resources: Resources = UNLIMITED,
    ) -> list[Tokens]:
        """Return the tokens of each row; see `Reader.read`."""
        stage = self.stage
        rows: list[Text] = []
        sizes: list[int] = []
        for i, values in enumerate(zip(*(columns[n] for n in stage.raw_names), strict=True)):
            size = 0
            for name, value in zip(stage.raw_names, values, strict=True):
                size += _size(value, name, i, where)
            if size > stage.max_bytes:
                raise SignatureMismatch(
                    f"{where(stage.input, i)}: expected at most {stage.max_bytes} bytes, got {size}"
                )
            rows.append(values if stage.pair is not None else values[0])
            sizes.append(size)
        found: list[Tokens] = []
        for start, end in _pieces(sizes):
            resources.check()
            for i, one in enumerate(self._encode(rows[start:end], start, where, resources), start):
                found.append(self._expect_tokens(one, where(stage.input, i)))
        return found

    def lay_out(self, rows: Sequence[Tokens], size: int) -> dict[str, Array]:
        """Return the stage's inputs for some rows, padded on the right.

        Args:
          rows: of at most `size` tokens.
          size: of the second dimension, where it is no fixed one.
        """
        stage = self.stage
        shape = (len(rows), self._fixed if self._fixed is not None else size)
        arrays = {name: self._blank(name, shape) for name in stage.made}
        for i, row in enumerate(rows):
            end = len(row.ids)
            arrays[stage.input_ids][i, :end] = row.ids
            if stage.attention_mask is not None:
                arrays[stage.attention_mask][i, :end] = 1
            if stage.token_type_ids is not None:
                arrays[stage.token_type_ids][i, :end] = row.type_ids
            if stage.lengths is not None:
                arrays[stage.lengths][i] = end
        return arrays

    def difference(self, name: str, expected: Array, made: Array) -> str:
        """Return where a row of one input is not what was recorded; or nothing."""
        if np.array_equal(expected, made):
            return ""
        return f"expected {name} {_shown(expected)}, got {_shown(made)}"

    def _blank(self, name: str, shape: tuple[int, int]) -> Array:
        spec = self._inputs[name]
        if name == self.stage.lengths:
            return np.zeros(shape[:1], numpy_dtype(spec.dtype))
        pad = 0 if name == self.stage.attention_mask else spec.pad
        return np.full(shape, pad, numpy_dtype(spec.dtype))

    def _encode(
        self, rows: Sequence[Text], first: int, where: Where, resources: Resources
    ) -> list[Encoded]:
        """Return some rows, the first of which has this number, as the library encodes them."""
        try:
            return self._tokenizer.encode(rows)
        except TokenizerError:
            if len(rows) == 1:
                raise SignatureMismatch(
                    f"{where(self.stage.input, first)}: expected a text that its tokenizer encodes, "
                    "got one that it fails on"
                ) from None
        found: list[Encoded] = []
        for i, row in enumerate(rows, first):
            resources.check()
            found += self._encode([row], i, where, resources)
        return found

    def _expect_tokens(self, found: Encoded, where: str) -> Tokens:
        count = len(found.ids)
        if count > self.stage.max_tokens:
            raise SignatureMismatch(
                f"{where}: expected at most {self.stage.max_tokens} tokens, got {count}"
            )
        if count < self._minimum:
            unit = "token" if self._minimum == 1 else "tokens"
            raise SignatureMismatch(
                f"{where}: expected at least {self._minimum} {unit}, got {count}"
            )
        return Tokens(
            np.array(found.ids, self._ids_dtype),
            np.array(found.type_ids, np.int32),
            found.truncated,
        )


def _shown(values: Array) -> str:
    listed = np.atleast_1d(values).tolist()
    more = ", …" if len(listed) > _SHOWN else ""
    return f"[{', '.join(map(str, listed[:_SHOWN]))}{more}]"


def expect_fit(tokenizer: Tokenizer, stage: TextStage, ids: TensorSpec) -> None:
    """Refuse a tokenizer whose ids are none of the program's, or that adds more than there is place for.

    Args:
      tokenizer: of the stage.
      stage: as the manifest has it.
      ids: the input that takes the ids.

    Raises:
      BundleError: it does not fit.
    """
    path = stage.tokenizer.path
    try:
        [empty] = tokenizer.encode([("", "") if stage.pair is not None else ""])
    except TokenizerError as error:
        raise BundleError(
            f"{path}: expected a tokenizer that encodes the empty text, got one that fails: {error}"
        ) from None
    if len(empty.ids) > stage.max_tokens or empty.truncated:
        raise BundleError(
            f"{path}: expected less than {stage.max_tokens} tokens beside those of the text, got "
            f"{tokenizer.added_tokens(pair=stage.pair is not None)}"
        )
    low, high = limits(ids.dtype)
    low = low if ids.minimum is None else ids.minimum
    high = ids.maximum if isinstance(ids.maximum, int) else high
    known = {*tokenizer.vocabulary().values(), *empty.ids}
    if known and not low <= min(known) <= max(known) <= high:
        wrong = max(known) if max(known) > high else min(known)
        raise BundleError(
            f"{path}: expected ids from {low} to {high}, those of input {ids.name!r}, got {wrong}"
        )


def _pieces(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield where each piece of rows begins and ends, by the bytes of the rows."""
    start = total = 0
    for i, size in enumerate(sizes):
        if i > start and (i - start == _AT_ONCE or total + size > _BYTES_AT_ONCE):
            yield start, i
            start, total = i, 0
        total += size
    if start < len(sizes):
        yield start, len(sizes)


def _size(value: object, name: str, row: int, where: Where) -> int:
    """Return the bytes of a text in UTF-8; refuse what is none."""
    if not isinstance(value, str):
        raise SignatureMismatch(f"{where(name, row)}: expected a text, got {type(value).__name__}")
    if value.isascii():  # a long one is not copied for it
        return len(value)
    try:
        return len(value.encode())
    except UnicodeEncodeError as error:
        half = ascii(value[error.start])
        raise SignatureMismatch(
            f"{where(name, row)}: expected a text, got {half}, which is half of a character"
        ) from None
