"""Raw inputs: what callers send that is no tensor, and the stages that make tensors of it.

How a stage is declared in the manifest, read with the standard library alone; what it does is in
`runtime.preprocessing`. A stage is data: which library, which file, which inputs of the programs.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from runtime.entries import File
from runtime.errors import ManifestError
from runtime.node import Node
from runtime.signature import BATCH, Signature, TensorSpec, unique

KINDS = ("text",)
MAX_TOKENIZER_BYTES = 64 * 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TextStage:
    """Texts to token ids, by a tokenizer.json.

    Attributes:
      input: the name that callers send texts by.
      pair: that of the second text of each row, for models of pairs; None for one text.
      tokenizer: tokenizer.json, as the library tokenizers reads it.
      input_ids: the input that takes the ids, int[_, size].
      attention_mask: the input that is 1 on tokens and 0 on padding, or None.
      token_type_ids: the input that tells the texts of a pair apart, or None.
      lengths: the input that takes the number of tokens of each row, int[_], or None.
      max_tokens: tokens that a row can have, those that the tokenizer adds among them.
      max_bytes: bytes of UTF-8 that a text, or the two of a pair together, can have.
      truncate: whether a text of more tokens is cut off, or else refused.
    """

    input: str
    tokenizer: File
    input_ids: str
    max_tokens: int
    max_bytes: int
    pair: str | None = None
    attention_mask: str | None = None
    token_type_ids: str | None = None
    lengths: str | None = None
    truncate: bool = False

    @property
    def raw_names(self) -> tuple[str, ...]:
        """Return the names that callers send texts by."""
        return (self.input,) if self.pair is None else (self.input, self.pair)

    @property
    def made(self) -> tuple[str, ...]:
        """Return the names of the inputs that this stage makes."""
        names = (self.input_ids, self.attention_mask, self.token_type_ids, self.lengths)
        return tuple(name for name in names if name is not None)

    @property
    def files(self) -> tuple[File, ...]:
        """Return the files of this stage."""
        return (self.tokenizer,)

    @classmethod
    def from_node(cls, node: Node) -> "TextStage":
        """Read one entry of `$.preprocess` of the kind `text`."""
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

    def to_json(self) -> dict[str, object]:
        """Write what `from_node` reads; what is default is left out."""
        value: dict[str, object] = {"kind": "text", "input": self.input, "pair": self.pair}
        value |= {"tokenizer": self.tokenizer.to_json(), "input_ids": self.input_ids}
        value |= {"attention_mask": self.attention_mask, "token_type_ids": self.token_type_ids}
        value |= {"lengths": self.lengths, "max_tokens": self.max_tokens}
        value |= {"max_bytes": self.max_bytes, "truncate": self.truncate or None}
        return {key: entry for key, entry in value.items() if entry is not None}

    def check(self, signature: Signature, where: str) -> None:
        """Compare the stage with the inputs that it makes.

        Raises:
          ManifestError: they are not there, or of another dtype or shape.
        """
        inputs = {spec.name: spec for spec in signature.inputs}
        keys = ("input_ids", "attention_mask", "token_type_ids", "lengths")
        specs: dict[str, TensorSpec] = {}
        for key in keys:
            name = getattr(self, key)
            if name is None:
                continue
            if name not in inputs:
                raise ManifestError(
                    f"expected one of {list(inputs)}, got {name!r}", f"{where}.{key}"
                )
            specs[key] = inputs[name]
        ids = specs["input_ids"]
        if "int" not in ids.dtype or len(ids.shape) != 2:
            raise ManifestError(f"expected integers [_, size], got {ids}", f"{where}.input_ids")
        for key in keys[1:]:
            spec = specs.get(key)
            shape = (BATCH,) if key == "lengths" else ids.shape
            integers = key != "attention_mask"
            if spec and (spec.shape != shape or (integers and "int" not in spec.dtype)):
                kind = "integers" if integers else "a tensor"
                wanted = f"{kind} [{', '.join(map(str, shape))}]"
                raise ManifestError(f"expected {wanted}, got {spec}", f"{where}.{key}")
        longest = longest_size(ids, signature)
        if not 1 <= self.max_tokens <= longest:
            raise ManifestError(
                f"expected 1 to {longest}, the size of {ids.name!r}, got {self.max_tokens}",
                f"{where}.max_tokens",
            )
        if self.tokenizer.bytes > MAX_TOKENIZER_BYTES:
            raise ManifestError(
                f"expected at most {MAX_TOKENIZER_BYTES} bytes, got {self.tokenizer.bytes}",
                f"{where}.tokenizer.bytes",
            )
        if self.max_bytes < 1:
            raise ManifestError(f"expected at least 1, got {self.max_bytes}", f"{where}.max_bytes")


Stage = TextStage


def read_stage(node: Node) -> Stage:
    """Read one entry of `$.preprocess`."""
    node.choice("kind", KINDS)
    return TextStage.from_node(node)


def check_stages(
    stages: Sequence[Stage], signature: Signature, passthrough: Sequence[str] = ()
) -> None:
    """Compare all stages with the signature, and with each other.

    Args:
      stages: of the manifest.
      signature: of the manifest.
      passthrough: names of fields that are no inputs.

    Raises:
      ManifestError: names the stage, as `$.preprocess[1].pair`.
    """
    inputs = [spec.name for spec in signature.inputs]
    raw: set[str] = set()
    made: set[str] = set()
    for i, stage in enumerate(stages):
        where = f"$.preprocess[{i}]"
        for key, name in _raw(stage):
            if not name or name in raw or name in inputs:
                raise ManifestError(
                    f"expected a name that no other input has, got {name!r}", f"{where}.{key}"
                )
            raw.add(name)
        stage.check(signature, where)
        for name in stage.made:
            if name in made:
                raise ManifestError(f"expected each input to be made once, got {name!r}", where)
            made.add(name)
    unique(passthrough, "$.passthrough")
    for name in passthrough:
        if not name or name in raw or name in inputs:
            raise ManifestError(f"expected a name that no input has, got {name!r}", "$.passthrough")
    axes = {dim for spec in signature.inputs if spec.name in made for dim in spec.shape[1:]} & {
        axis.name for axis in signature.axes
    }
    for spec in signature.inputs:
        shared = axes.intersection(map(str, spec.shape[1:]))
        if shared and spec.name not in made:
            raise ManifestError(
                f"expected a stage that makes {spec.name!r} as well, whose axis "
                f"{min(shared)!r} has the size that texts have, got none",
                "$.preprocess",
            )


def longest_size(spec: TensorSpec, signature: Signature) -> int:
    """Return the largest size of a tensor's second dimension."""
    dim = spec.shape[1]
    if isinstance(dim, int):
        return dim
    return next(axis.sizes[-1] for axis in signature.axes if axis.name == dim)


def _raw(stage: Stage) -> Iterator[tuple[str, str]]:
    yield "input", stage.input
    if stage.pair is not None:
        yield "pair", stage.pair
