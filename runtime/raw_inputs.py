"""Raw inputs: what callers send that is no tensor, and the stages that make tensors of it.

How a stage is declared in the manifest, read with the standard library alone; what it does is in
`runtime.preprocessing`. A stage is data: which library, which file, which inputs of the programs.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from runtime.entries import File
from runtime.errors import InvalidField
from runtime.image_stage import ImageStage
from runtime.node import Node, required
from runtime.signature import BATCH, Signature, TensorSpec, unique

# The inputs of programs that a text is made into.
TEXT_ROLES = ("input_ids", "attention_mask", "token_type_ids", "lengths")
MAX_TOKENIZER_BYTES = 64 * 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TextStage:
    """Texts to token ids, by a tokenizer.json.

    Attributes:
      kind: text.
      input: the name that callers send texts by.
      pair: that of the second text of each row, for models of pairs; None for one text.
      tokenizer: tokenizer.json, as the library tokenizers reads it.
      input_ids: the input that takes the ids, int[_, size].
      attention_mask: the input that is 1 on tokens and 0 on padding, or None.
      token_type_ids: the input that distinguishes the texts of a pair, or None.
      lengths: the input that takes the number of tokens of each row, int[_], or None.
      max_tokens: tokens that a row can have, those that the tokenizer adds among them.
      max_bytes: bytes of UTF-8 that a text, or the two of a pair together, can have.
      truncate: whether a text of more tokens is cut off, or else refused.
    """

    kind: str = required("text")
    input: str
    pair: str | None = None
    tokenizer: File
    input_ids: str
    attention_mask: str | None = None
    token_type_ids: str | None = None
    lengths: str | None = None
    max_tokens: int
    max_bytes: int
    truncate: bool = False

    @property
    def raw_names(self) -> tuple[str, ...]:
        """Return the names that callers send texts by."""
        return (self.input,) if self.pair is None else (self.input, self.pair)

    @property
    def made(self) -> tuple[str, ...]:
        """Return the names of the inputs that this stage makes."""
        names = (getattr(self, role) for role in TEXT_ROLES)
        return tuple(name for name in names if name is not None)

    @property
    def shared_names(self) -> tuple[str, ...]:
        """Return the names that both raw inputs and tensors are sent by: none."""
        return ()

    @property
    def files(self) -> tuple[File, ...]:
        """Return the files of this stage."""
        return (self.tokenizer,)

    @property
    def max_marks(self) -> int:
        """Return how many commas and brackets a row can have in JSON strings: all that it has."""
        return self.max_bytes

    @property
    def description(self) -> str:
        """Return what this does, for a person."""
        beyond = "cut off" if self.truncate else "refused"
        return (
            f"{' and '.join(self.raw_names)}: text, made {', '.join(self.made)}; at most "
            f"{self.max_tokens} tokens and {self.max_bytes:,} B, what is longer is {beyond}"
        )

    @classmethod
    def from_node(cls, node: Node) -> "TextStage":
        """Read one entry of `$.preprocess`, whose kind was taken."""
        return cls(
            input=node.take("input", str),
            pair=node.optional("pair", str),
            tokenizer=node.child("tokenizer", File.from_node),
            input_ids=node.take("input_ids", str),
            attention_mask=node.optional("attention_mask", str),
            token_type_ids=node.optional("token_type_ids", str),
            lengths=node.optional("lengths", str),
            max_tokens=node.take("max_tokens", int),
            max_bytes=node.take("max_bytes", int),
            truncate=node.optional("truncate", bool) or False,
        )

    def check(self, signature: Signature) -> None:
        """Raise InvalidField unless the inputs that this makes are there, of its dtypes and shapes."""
        inputs = {spec.name: spec for spec in signature.inputs}
        named = {role: name for role in TEXT_ROLES if (name := getattr(self, role)) is not None}
        for role, name in named.items():
            if name not in inputs:
                raise InvalidField(f"expected one of {', '.join(inputs)}, got {name!r}", role)
        ids = inputs[self.input_ids]
        if "int" not in ids.dtype or len(ids.shape) != 2:
            raise InvalidField(f"expected integers [_, size], got {ids}", "input_ids")
        for role, name in named.items():
            _check_beside(role, inputs[name], ids)
        longest = longest_size(ids, signature)
        if not 1 <= self.max_tokens <= longest:
            raise InvalidField(
                f"expected 1 to {longest}, the size of {ids.name!r}, got {self.max_tokens}",
                "max_tokens",
            )
        if self.tokenizer.bytes > MAX_TOKENIZER_BYTES:
            raise InvalidField(
                f"expected at most {MAX_TOKENIZER_BYTES} bytes, got {self.tokenizer.bytes}",
                *("tokenizer", "bytes"),
            )
        if self.max_bytes < 1:
            raise InvalidField(f"expected at least 1, got {self.max_bytes}", "max_bytes")


def _check_beside(role: str, spec: TensorSpec, ids: TensorSpec) -> None:
    """Raise InvalidField for an input that cannot go with that of the ids."""
    shape = (BATCH,) if role == "lengths" else ids.shape
    integers = role != "attention_mask"
    if spec.shape != shape or (integers and "int" not in spec.dtype):
        kind = "integers" if integers else "a tensor"
        raise InvalidField(f"expected {kind} [{', '.join(map(str, shape))}], got {spec}", role)


Stage = TextStage | ImageStage
_STAGES: Mapping[str, Callable[[Node], Stage]] = {
    "text": TextStage.from_node,
    "image": ImageStage.from_node,
}


def stage_from_node(node: Node) -> Stage:
    """Read one entry of `$.preprocess`, of any kind."""
    return _STAGES[node.choice("kind", _STAGES)](node)


def check_stages(
    stages: Sequence[Stage], signature: Signature, passthrough: Sequence[str] = ()
) -> None:
    """Compare all stages with the signature, and with each other.

    Args:
      stages: of the manifest.
      signature: of the manifest.
      passthrough: names of fields that are no inputs.

    Raises:
      InvalidField: at a path below the manifest, such as `("preprocess", 1, "pair")`.
    """
    inputs = [spec.name for spec in signature.inputs]
    raw: set[str] = set()
    made: set[str] = set()
    for i, stage in enumerate(stages):
        for key, name in zip(("input", "pair"), stage.raw_names, strict=False):
            # An image is sent by the name of the input that it is made into.
            if not name or name in raw or (name in inputs and name not in stage.shared_names):
                raise InvalidField(
                    f"expected a name that no other input has, got {name!r}",
                    *("preprocess", i, key),
                )
            raw.add(name)
        try:
            stage.check(signature)
        except InvalidField as error:
            raise InvalidField(str(error), "preprocess", i, *error.path) from None
        for name in stage.made:
            if name in made:
                raise InvalidField(
                    f"expected each input to be made once, got {name!r}", "preprocess", i
                )
            made.add(name)
    check_passthrough(passthrough, [*raw, *inputs])
    axes = {axis.name for axis in signature.axes}
    of_texts = {dim for spec in signature.inputs if spec.name in made for dim in spec.shape[1:]}
    for spec in signature.inputs:
        shared = axes & of_texts & set(spec.shape[1:])
        if shared and spec.name not in made:
            raise InvalidField(
                f"expected a stage that makes {spec.name!r} as well, whose axis "
                f"{min(map(str, shared))!r} has the size that texts have, got none",
                "preprocess",
            )


def check_passthrough(names: Sequence[str], taken: Iterable[str]) -> None:
    """Raise InvalidField for fields beside inputs that have no name, or that of an input."""
    unique(names, "passthrough")
    for name in names:
        if not name or name in taken:
            raise InvalidField(f"expected a name that no input has, got {name!r}", "passthrough")


def longest_size(spec: TensorSpec, signature: Signature) -> int:
    """Return the largest size of a tensor's second dimension."""
    dim = spec.shape[1]
    if isinstance(dim, int):
        return dim
    return next(axis.sizes[-1] for axis in signature.axes if axis.name == dim)
