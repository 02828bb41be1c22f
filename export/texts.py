"""The text inputs of an export: tokenizers that are tried, and the stages they become."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from export.errors import ExportError
from export.golden_texts import draw_texts, targets
from export.preprocess import Text, tokenizer_file
from export.reference_ids import refuse_other_ids
from export.values import short_repr
from runtime.entries import File
from runtime.errors import BundleError, nearest
from runtime.preprocessing.sandbox import try_tokenizer
from runtime.preprocessing.texts import TextReader
from runtime.preprocessing.tokenizer import Tokenizer, TokenizerError
from runtime.raw_inputs import TEXT_ROLES, TextStage, longest_size
from runtime.signature import BATCH, Signature, TensorSpec

# Before a normalizer takes accents or width away a character can have as many bytes.
_BYTES_OF_CHARACTER = 4
# There are tokens of a thousand blanks.
_LONGEST_TOKEN = 256
# Who lets texts be cut off sends long ones; as much as this is encoded in a fraction of a second.
_TRUNCATED_BYTES = 64 * 1024
# A tokenizer without a limit has a number of thirty digits in its configuration.
_NO_LIMIT = 1_000_000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OpenedText:
    """A text input with a tokenizer that was tried.

    Attributes:
      text: as it was declared.
      stage: as the manifest will have it.
      inputs: those of the programs that differ from the model's: ids, with a range.
      data: its tokenizer.json.
      tokenizer: of this, that truncates nothing.
      ranged: whether the range follows from the tokenizer.
    """

    text: Text
    stage: TextStage
    inputs: tuple[TensorSpec, ...]
    data: bytes
    tokenizer: Tokenizer
    ranged: bool

    @property
    def label(self) -> str:
        """Return what messages call this."""
        return f"text {self.text.input!r}"

    @property
    def files(self) -> tuple[tuple[str, bytes], ...]:
        """Return path and content of each file of the stage."""
        return ((self.stage.tokenizer.path, self.data),)

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what was decided on the user's behalf."""
        [ids] = self.inputs
        ranged = f"{ids.name!r} takes 0 to {ids.maximum}, the ids of {self.text.source}"
        return (*([ranged] if self.ranged else []), _limit(self.stage))

    def reader(self, signature: Signature) -> TextReader:
        """Return what makes ids of texts.

        Raises:
          ExportError: the tokenizer does not fit.
        """
        try:
            return TextReader(self.stage, signature, self.data)
        except BundleError as error:
            reason = str(error).removeprefix(f"{self.stage.tokenizer.path}: ")
            raise ExportError(
                f"{self.label}: {self.text.source}: {reason}; is it the tokenizer that the model was "
                "trained with?"
            ) from None

    def wanted(self, signature: Signature) -> int:
        """Return the number of golden rows that show all there is to show."""
        return len(targets(self.reader(signature), signature))

    def draw(self, signature: Signature, count: int, seed: list[int]) -> dict[str, list[Any]]:
        """Return golden texts by name."""
        return draw_texts(self.reader(signature), self.tokenizer, signature, count, seed)

    def refuse_difference(
        self,
        reference: Callable[..., Any],
        columns: dict[str, list[Any]],
        signature: Signature,
        tolerance: tuple[float, float],  # noqa: ARG002 (ids are the same, or others)
    ) -> None:
        """Refuse ids that are others than the training code's own; see `refuse_other_ids`."""
        refuse_other_ids(reference, columns, self.reader(signature))


def open_text(text: Text, index: int, signature: Signature) -> OpenedText:
    """Try a tokenizer and decide what its stage is.

    Args:
      text: as it was declared.
      index: of the stage.
      signature: of the model's inputs.

    Raises:
      ExportError: the tokenizer cannot be used, or does not fit the inputs.
    """
    where = f"text {text.input!r}"
    data, stored = _read(text, where)
    named = _inputs(text, signature)
    inputs = {spec.name: spec for spec in signature.inputs}
    ids = inputs[named.input_ids]
    if len(ids.shape) != 2 or "int" not in ids.dtype:
        raise ExportError(
            f"{where}: expected integers [_, size] to take the ids, got {ids.name}: {ids}"
        )
    pair = text.pair is not None
    try:
        # First those bytes that any tokenizer lets through, then as many as this one does.
        try_tokenizer(data, text.source, max_bytes=1024, pair=pair)
        tokenizer = Tokenizer(data)
    except (BundleError, TokenizerError) as error:
        other = _other_json(data)
        what = (
            f"{text.source}: expected a tokenizer, with a 'model', got {other}" if other else error
        )
        raise ExportError(f"{where}: {what}") from None
    limits = [longest_size(ids, signature), tokenizer.stored_max_tokens, stored]
    max_tokens = min(limit for limit in limits if limit is not None)
    added = tokenizer.added_tokens(pair=pair)
    if max_tokens <= added:
        raise ExportError(
            f"{where}: expected room for more than the {added} tokens that the tokenizer adds, got "
            f"{max_tokens}"
        )
    _check_padding(where, tokenizer, ids, fixed=isinstance(ids.shape[1], int))
    stage = TextStage(
        input=text.input,
        pair=text.pair,
        tokenizer=File(
            path=f"preprocess/{index}/tokenizer.json",
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        ),
        max_tokens=max_tokens,
        max_bytes=_max_bytes(tokenizer, max_tokens, truncate=text.truncate),
        truncate=text.truncate,
        **named._asdict(),
    )
    try:
        try_tokenizer(data, text.source, max_bytes=stage.max_bytes, pair=pair)
    except BundleError as error:
        raise ExportError(f"{where}: {error}") from None
    ranged = _with_range(ids, tokenizer)
    return OpenedText(
        text=text,
        stage=stage,
        inputs=(ranged,),
        data=data,
        tokenizer=tokenizer,
        ranged=ranged is not ids,
    )


def _read(text: Text, where: str) -> tuple[bytes, int | None]:
    """Return a tokenizer.json, and the limit that the configuration beside it has, if any."""
    if isinstance(text.tokenizer, str | Path):
        path = tokenizer_file(text.tokenizer, where)
        limit = _configured_limit(path.parent) if path.parent == Path(text.tokenizer) else None
        try:
            return path.read_bytes(), limit
        except OSError as error:
            raise ExportError(f"{where}: {path}: {error.strerror}") from None
    # transformers has one of the other library inside.
    one = getattr(text.tokenizer, "backend_tokenizer", text.tokenizer)
    if not hasattr(one, "to_str"):
        raise ExportError(
            f"{where}: expected a tokenizer.json, a folder with one, or a tokenizer of tokenizers or "
            f"transformers, got {type(text.tokenizer).__name__}"
        )
    limit = getattr(text.tokenizer, "model_max_length", None)
    return one.to_str().encode(), _sane(limit)


def _other_json(data: bytes) -> str:
    """Return what JSON is that is no tokenizer's, of which the library would say that its syntax is wrong."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(value, dict):
        return "JSON that is no object"
    if "model" in value:
        return ""
    keys = list(value)
    return (
        f"JSON with {', '.join(map(short_repr, keys[:3])) or 'nothing'}{' …' if keys[3:] else ''}"
    )


def _configured_limit(folder: Path) -> int | None:
    try:
        value = json.loads((folder / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return _sane(value.get("model_max_length")) if isinstance(value, dict) else None


def _sane(limit: Any) -> int | None:
    return limit if type(limit) is int and 0 < limit < _NO_LIMIT else None


class _Inputs(NamedTuple):
    input_ids: str
    attention_mask: str | None
    token_type_ids: str | None
    lengths: str | None


def _inputs(text: Text, signature: Signature) -> _Inputs:
    """Return which inputs a text is made into: those that are said, else those that it can be."""
    inputs = {spec.name: spec for spec in signature.inputs}
    for key in TEXT_ROLES:
        name = getattr(text, key)
        if name is not None and name not in inputs:
            raise ExportError(
                f"text {text.input!r}: expected an input of {', '.join(inputs)} as {key}, got "
                f"{name!r}{nearest(name, inputs)}"
            )
    said = {text.attention_mask, text.token_type_ids, text.lengths}
    ids = text.input_ids or _ids(text, signature, said)
    shape = inputs[ids].shape
    alike = [s for s in signature.inputs if s.shape == shape and s.name not in {ids, *said}]
    masks = [s.name for s in alike if s.mask]
    lengths = [
        s.name
        for s in signature.inputs
        if s.shape == (BATCH,) and (s.name == "lengths" or s.maximum == shape[1])
    ]
    named = {s.name for s in alike}
    mask = "attention_mask" if "attention_mask" in named else masks[0] if len(masks) == 1 else None
    types = "token_type_ids" if "token_type_ids" in named else None
    return _Inputs(
        ids,
        text.attention_mask or mask,
        text.token_type_ids or types,
        text.lengths or (lengths[0] if len(lengths) == 1 else None),
    )


def _ids(text: Text, signature: Signature, said: set[str | None]) -> str:
    can_be = [
        s.name
        for s in signature.inputs
        if "int" in s.dtype and len(s.shape) == 2 and not s.mask and s.name not in said
    ]
    if "input_ids" in can_be:
        return "input_ids"
    if len(can_be) != 1:
        got = ", ".join(map(repr, can_be)) or "none"
        raise ExportError(
            f"text {text.input!r}: expected one input of integers [_, size] to take the ids, got "
            f"{got}; say which with input_ids"
        )
    return can_be[0]


def _check_padding(where: str, tokenizer: Tokenizer, ids: TensorSpec, *, fixed: bool) -> None:
    """Refuse padding of the tokenizer's file that the programs would not see."""
    stored = tokenizer.stored_padding
    if stored is None:
        return
    pad = stored.get("pad_id", 0)
    if pad != ids.pad:
        raise ExportError(
            f"{where}: expected input {ids.name!r} to be padded with {pad}, as the tokenizer's file "
            f"says, got {ids.pad}; pass --pad {ids.name}={pad}"
        )
    if fixed and stored.get("direction") == "left":
        raise ExportError(
            f"{where}: expected a tokenizer that pads on the right, got one that pads on the left"
        )


def _with_range(ids: TensorSpec, tokenizer: Tokenizer) -> TensorSpec:
    """Return the input with the tokenizer's range, where none was declared."""
    if ids.maximum is not None or ids.minimum is not None:
        return ids
    known = tokenizer.vocabulary().values()
    return dataclasses.replace(ids, minimum=0, maximum=max(known, default=0))


def _max_bytes(tokenizer: Tokenizer, max_tokens: int, *, truncate: bool) -> int:
    """Return the bytes of the longest texts that can have so many tokens.

    All work on a text is done before it is cut off, or counted, so that its bytes have to be limited.
    """
    longest = max(map(len, tokenizer.vocabulary()), default=1)
    enough = max_tokens * (min(longest, _LONGEST_TOKEN) + 1) * _BYTES_OF_CHARACTER
    return max(enough, _TRUNCATED_BYTES) if truncate else enough


def _limit(stage: TextStage) -> str:
    beyond = "longer ones are cut off" if stage.truncate else "longer ones are refused"
    made = ", ".join(map(repr, stage.made))
    return (
        f"text {stage.input!r} makes {made}: at most {stage.max_tokens} tokens and "
        f"{stage.max_bytes:,} B; {beyond}"
    )
