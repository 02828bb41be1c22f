"""Small files of tokenizers: a word each, lower case, between a token that begins and one that ends."""

import json

WORDS = ("the", "cat", "sat", "on", "a", "mat", "dog", "ran", "away", ",", ".", "!")
VOCABULARY = {"[PAD]": 0, "[UNK]": 1, "[BEGIN]": 2, "[END]": 3} | {
    word: i for i, word in enumerate(WORDS, 4)
}
SPECIAL = ("[PAD]", "[UNK]", "[BEGIN]", "[END]")


def words(change=lambda _: None):
    """Return tokenizer.json of a tokenizer of words, after a function has changed its value."""
    value = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": VOCABULARY[token],
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token in SPECIAL
        ],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_special("[BEGIN]"), _sequence("A"), _special("[END]")],
            "pair": [
                *(_special("[BEGIN]"), _sequence("A"), _special("[END]")),
                *(_sequence("B", 1), _special("[END]", 1)),
            ],
            "special_tokens": {
                token: {"id": token, "ids": [VOCABULARY[token]], "tokens": [token]}
                for token in ("[BEGIN]", "[END]")
            },
        },
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": dict(VOCABULARY), "unk_token": "[UNK]"},
    }
    change(value)
    return json.dumps(value).encode()


def splitting(pattern):
    """Return a change that has a file split texts by a pattern."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return lambda value: value.update(pre_tokenizer=split | {"invert": False})


def ids(text):
    """Return the ids that a text of known words has."""
    return [2, *(VOCABULARY[word] for word in text.split()), 3]


def _special(token, kind=0):
    return {"SpecialToken": {"id": token, "type_id": kind}}


def _sequence(name, kind=0):
    return {"Sequence": {"id": name, "type_id": kind}}
