"""The flags of text inputs, to the field `preprocess` of an ExportSpec."""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from export.errors import ExportError
from export.input_options import expect_declared, pair
from export.preprocess import Text, read_preprocess, texts_of, tokenizer_file
from runtime.commandline import Parser
from runtime.errors import nearest
from runtime.raw_inputs import TEXT_ROLES


def add_text_flags(parser: Parser) -> None:
    """Add the flags that say what an ExportSpec's `preprocess` does."""
    texts = parser.add_argument_group("text inputs")
    texts.add_argument(
        "--text",
        action="append",
        dest="preprocess",
        default=[],
        metavar="NAME=TOKENIZER",
        help="a text that callers may send in place of token ids, and its tokenizer.json or a folder of "
        "save_pretrained; repeatable",
    )
    texts.add_argument(
        "--text-input",
        action="append",
        dest="text_inputs",
        default=[],
        metavar="NAME.ROLE=INPUT",
        help="the input that takes a text's input_ids, attention_mask, token_type_ids or lengths (default: "
        "by its name or form): text.input_ids=x; repeatable",
    )
    texts.add_argument(
        "--text-pair",
        action="append",
        dest="text_pairs",
        default=[],
        metavar="NAME=SECOND",
        help="the name that callers send the second text of a pair by; repeatable",
    )
    texts.add_argument(
        "--truncate",
        action="append",
        dest="truncated",
        default=[],
        metavar="NAME",
        help="cut off this text where it has too many tokens, instead of refusing it; repeatable",
    )


def declared_texts(arguments: argparse.Namespace) -> tuple[Text, ...]:
    """Return the texts that flags declare, whose tokenizers are there.

    Raises:
      ExportError: a flag does not read, or names none.
    """
    texts = []
    for text in arguments.preprocess:
        name, source = pair("--text", text, "text=tokenizer.json")
        tokenizer_file(source, f"text {name!r}")
        texts.append(Text(name, tokenizer=source))
    return tuple(texts_of(read_preprocess(texts)))


def changed_texts(
    declared: Sequence[Text], texts: Sequence[Text], arguments: argparse.Namespace
) -> tuple[Text, ...]:
    """Return the texts of a spec with what flags say of them.

    Args:
      declared: of MODEL.
      texts: that `declared_texts` returned; those of the spec are replaced by any.
      arguments: of the command line.

    Raises:
      ExportError: a flag does not read, or names none of the texts.
    """
    if texts or arguments.text_inputs or arguments.text_pairs or arguments.truncated:
        return _with_roles(texts or declared, arguments)
    return tuple(declared)


def _with_roles(declared: Sequence[Text], arguments: argparse.Namespace) -> tuple[Text, ...]:
    """Return texts with what further flags say of them."""
    texts = {text.input: text for text in declared}

    def change(flag: str, name: str, **values: Any) -> None:
        expect_declared(flag, name, texts, "text")
        texts[name] = dataclasses.replace(texts[name], **values)

    for word in arguments.text_inputs:
        place, value = pair("--text-input", word, "text.input_ids=x")
        name, _, role = place.partition(".")
        if role not in TEXT_ROLES:
            raise ExportError(
                f"--text-input: expected NAME.ROLE=INPUT with a ROLE of {', '.join(TEXT_ROLES)}, got "
                f"{word!r}{nearest(role, TEXT_ROLES)}"
            )
        change("--text-input", name, **{role: value})
    for word in arguments.text_pairs:
        name, value = pair("--text-pair", word, "text=second")
        change("--text-pair", name, pair=value)
    for name in arguments.truncated:
        change("--truncate", name, truncate=True)
    return tuple(texts_of(read_preprocess(texts.values())))
