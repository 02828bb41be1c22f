"""A tokenizer.json, read by the library tokenizers, which is imported when a bundle has one.

A file can do more than be wrong: it can end the process, or never come to an end. So it is tried in
a process of its own first; see `runtime.preprocessing.sandbox`.
"""

import importlib
import importlib.metadata
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from runtime.errors import BundleError, MissingLibrary, first_line
from runtime.preprocessing.panics import OUTPUT
from runtime.raw_inputs import MAX_TOKENIZER_BYTES, TextStage

Text = str | tuple[str, str]


class TokenizerError(Exception):
    """A tokenizer.json is not one that can be used; the message is what was got."""


class TokenizerPanic(TokenizerError):
    """The library's own code failed, as on a pattern that takes too many steps on a text."""


class Encoded(NamedTuple):
    """A text, or a pair of them, as tokens.

    Attributes:
      ids: of the tokens, those that the tokenizer adds among them.
      type_ids: 0 for those of the first text, 1 for those of the second.
      truncated: whether there were more tokens.
    """

    ids: list[int]
    type_ids: list[int]
    truncated: bool


class Tokenizer:
    """A tokenizer, with the padding and truncation of its file switched off.

    `encode` may be called from any number of threads at once; the library releases the GIL.

    Args:
      data: tokenizer.json.
      max_tokens: where longer texts are cut off; None to cut off none.

    Attributes:
      stored_max_tokens: where the file itself would cut off texts, or None.
      stored_padding: the file's own padding, as the library describes it, or None.
      panics: number of calls of `encode` in which the library's own code failed.

    Raises:
      MissingLibrary: the library is not installed.
      TokenizerError: the library does not take the file.
    """

    def __init__(self, data: bytes, max_tokens: int | None = None) -> None:
        if len(data) > MAX_TOKENIZER_BYTES:
            raise TokenizerError(f"{len(data)} bytes, more than {MAX_TOKENIZER_BYTES}")
        library = _library()
        try:
            text = data.decode("utf-8")
            self._tokenizer = caught(lambda: library.Tokenizer.from_str(text))
        except UnicodeDecodeError:
            raise TokenizerError("bytes that are no UTF-8") from None
        stored = self._tokenizer.truncation or {}
        self.stored_max_tokens: int | None = stored.get("max_length")
        self.stored_padding: dict[str, Any] | None = self._tokenizer.padding
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.panics = 0
        self._counting = threading.Lock()
        self._truncates = max_tokens is not None
        if max_tokens is not None:
            # Which side goes, and of which text of a pair, is what the model was trained with.
            kept = {key: stored[key] for key in ("strategy", "direction") if key in stored}
            caught(lambda: self._tokenizer.enable_truncation(max_tokens, **kept))

    def encode(self, texts: Sequence[Text]) -> list[Encoded]:
        """Return texts as tokens.

        Args:
          texts: each a text, or the two of a pair.

        Raises:
          TokenizerError: the library fails on one of them.
        """
        try:
            found = caught(lambda: self._tokenizer.encode_batch_fast(list(texts)))
        except TokenizerPanic:
            with self._counting:
                self.panics += 1
            raise
        return [
            Encoded(one.ids, one.type_ids, self._truncates and bool(one.overflowing))
            for one in found
        ]

    def vocabulary(self) -> dict[str, int]:
        """Return the ids by the tokens, with those that were added."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    def added_tokens(self, *, pair: bool) -> int:
        """Return the number of tokens that are added to each text, or pair of texts."""
        return int(self._tokenizer.num_special_tokens_to_add(pair))

    def special_ids(self) -> set[int]:
        """Return the ids of tokens that are no text, such as those of a mask."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token_id for token_id, token in added.items() if token.special}

    def decode(self, ids: Sequence[int]) -> str:
        """Return tokens as a text, without those that are no text.

        Raises:
          TokenizerError: the library fails on them.
        """
        return str(caught(lambda: self._tokenizer.decode(list(ids), skip_special_tokens=True)))


def caught[T](call: Callable[[], T]) -> T:
    """Call the library; what it raises becomes a TokenizerError, and a panic a TokenizerPanic.

    Its panics are no Exception, and their class has no other name than this one.
    """
    try:
        with OUTPUT.limited():
            return call()
    except Exception as error:  # noqa: BLE001 (whatever the library raises)
        raise TokenizerError(first_line(error)) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        OUTPUT.close()
        raise TokenizerPanic(first_line(error)) from None


def open_tokenizer(data: bytes, stage: TextStage) -> Tokenizer:
    """Return the tokenizer of a stage.

    Args:
      data: its tokenizer.json, which was compared with its digest.
      stage: as the manifest has it.

    Raises:
      MissingLibrary: the library is not installed.
      BundleError: the library does not take the file.
    """
    try:
        return Tokenizer(data, stage.max_tokens if stage.truncate else None)
    except TokenizerError as error:
        raise BundleError(
            f"{stage.tokenizer.path}: expected a tokenizer that tokenizers {library_version()} "
            f"reads, got {error}"
        ) from None


def library_version() -> str:
    """Return the version of the library that is installed.

    Raises:
      MissingLibrary: none is.
    """
    try:
        return importlib.metadata.version("tokenizers")
    except importlib.metadata.PackageNotFoundError:
        raise _missing() from None


def _library() -> Any:
    # Its own pool of threads and a fork do not go together: the child would wait for ever. It reads
    # this at its first use; who wants more than one core calls it from several threads.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        return importlib.import_module("tokenizers")
    except ModuleNotFoundError:
        raise _missing() from None


def _missing() -> MissingLibrary:
    return MissingLibrary(
        "text inputs: expected the package tokenizers, got none installed; "
        "pip install 'hloserve[text]'"
    )
