"""Inputs as people write them elsewhere, in the notation of this project; for what a refusal advises.

Advised is what the words can mean alone. A number in the batch's place may be a batch of that size as
well as the first axis of a row, and `i8` is int8 to XLA and int64 to NumPy: these are said, not guessed.
"""

import re
from collections.abc import Sequence

from runtime.errors import nearest
from runtime.signature import BATCH, DTYPE_BYTES

# Words for a size that is not known, and for any number of them: NumPy's, Keras's, MLIR's.
UNKNOWN = ("None", "none", "null", "-1", "?", "*", ":")
_ANY = ("...", "…")
# What people call the batch, without regard to case.
_BATCH = (BATCH, "b", "n", "bs", "bsz", "batch", "batchsize", "batch_size", "batch_dim")
_ALIASES = {
    **{f"{f}{bits}": f"float{bits}" for f in ("f", "fp") for bits in (16, 32, 64)},
    **{f"{i}{bits}": f"int{bits}" for i in ("i", "s") for bits in (16, 32, 64)},
    **{f"u{bits}": f"uint{bits}" for bits in (16, 32, 64)},
    "f2": "float16",
    "f4": "float32",
    "i2": "int16",
    "s8": "int8",
    "u1": "uint8",
    "u2": "uint16",
    "half": "float16",
    "single": "float32",
    "double": "float64",
    "bf16": "bfloat16",
    "short": "int16",
    "long": "int64",
    "bool_": "bool",
    "boolean": "bool",
    "pred": "bool",
}
_AMBIGUOUS = {
    "i1": ("bool", "MLIR", "int8"),
    "i4": ("a 4-bit integer", "XLA", "int32"),
    "u4": ("a 4-bit integer", "XLA", "uint32"),
    "i8": ("int8", "XLA", "int64"),
    "u8": ("uint8", "XLA", "uint64"),
    "f8": ("an 8-bit float", "XLA", "float64"),
}
_TENSOR = re.compile(
    r"(?:(?P<name>[A-Za-z_][\w.-]*)\s*[:=]\s*)?"
    r"(?P<dtype>[A-Za-z<>=|][\w.<>=|]*)?\s*[\[(](?P<shape>[^\])]*)[\])]?"
    r"(?:\s*[:,]?\s*(?P<behind>[A-Za-z][\w.]*))?"
)


def dtype_hint(word: str) -> str:
    """Return what to advise for a word that is no dtype here, or nothing."""
    plain = _plain(word)
    if plain in _AMBIGUOUS:
        one, who, other = _AMBIGUOUS[plain]
        return f"; {word} is {one} to {who} and {other} to NumPy"
    if known := _dtype(word):
        return f"; did you mean {known!r}?"
    usual = "32" if plain in ("float", "int", "uint") else ""
    return nearest(f"{plain}{usual}", DTYPE_BYTES)


def shape_hint(words: Sequence[str], text: str) -> str:
    """Return what to advise for sizes that are no shape here, or nothing.

    Args:
      words: the sizes, as they were written.
      text: of the whole input, or nothing.
    """
    if any(word in _ANY for word in words):
        return "; write every size out"
    if any(word in UNKNOWN or word == BATCH for word in words[1:]):
        return f"; an axis of several lengths has a name, and sizes: [{BATCH},seq] with --axis seq=32,64"
    meant = rewritten(text)
    if words and _is_batch(words[0]) and words[0] != BATCH:
        return f"; the batch is written {BATCH}{f': {meant}' if meant else ''}"
    if meant and any(re.search(r"[\s;]", word) for word in words):
        return f"; write {meant}"
    first = f"; the batch comes first, and is written {BATCH}"
    return first if words[:1] != [BATCH] else ""


def rewritten(text: str) -> str:
    """Return an input in this project's notation as far as it can mean one thing alone, else nothing.

    NAME and DTYPE stand for what it does not say.
    """
    match = _TENSOR.fullmatch(text.strip().strip("'\""))
    if match is None:
        return ""
    words = [word for word in re.split(r"[,;\s]+", match["shape"]) if word]
    first, rest = words[:1], words[1:]
    known = all(w.isdecimal() or (w.isidentifier() and w not in (*UNKNOWN, BATCH)) for w in rest)
    if not known or not any(map(_is_batch, first)):
        return ""
    dtype = _dtype(match["dtype"] or match["behind"] or "")
    return f"{match['name'] or 'NAME'}:{dtype or 'DTYPE'}[{','.join((BATCH, *rest))}]"


def _is_batch(word: str) -> bool:
    return word in UNKNOWN or word.lower() in _BATCH


def _plain(word: str) -> str:
    """Return a dtype's name without its library, byte order and capitals: jnp.float32, <f4, TYPE_FP32."""
    last = word.rpartition(".")[2].lower().lstrip("<>=|")
    return last.removeprefix("type_").removeprefix("dt_")


def _dtype(word: str) -> str:
    plain = _plain(word)
    return plain if plain in DTYPE_BYTES else _ALIASES.get(plain, "")
