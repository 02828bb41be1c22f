"""Each thing that a manifest says belongs to the format that has it."""

import json

from pytest import mark

from runtime.entries import (
    Origin,
)
from runtime.manifest import Manifest
from tests.runtime.test_manifest import ABSENT, refusal


def test_refreshed_bundle_is_of_format_2(value):
    """
    What a bundle was refreshed from is read and written again, in the format that has it.
    """
    origin = {"sha256": "0" * 64, "exporter": {"jax": "0.11.2"}}
    refreshed = Manifest.from_bytes(
        json.dumps(value | {"format_version": 2, "refreshed_from": [origin]}).encode()
    )

    assert refreshed.refreshed_from == (Origin(sha256="0" * 64, exporter={"jax": "0.11.2"}),)
    assert Manifest.from_bytes(refreshed.to_bytes()) == refreshed
    assert json.loads(refreshed.to_bytes())["format_version"] == 2


@mark.parametrize(
    ("version", "origins", "message"),
    [
        (1, [], "unknown key 'refreshed_from' at $"),
        (2, ABSENT, "missing 'refreshed_from' at $"),
        (2, [], "expected at least one origin at $.refreshed_from"),
        (
            2,
            [{"sha256": "0", "exporter": {}}],
            "expected 64 hex digits at $.refreshed_from[0].sha256",
        ),
        (
            2,
            [{"sha256": "0" * 64, "exporter": {"jax": 1}}],
            "expected string, got int at $.refreshed_from[0].exporter.jax",
        ),
    ],
)
def test_format_2_is_for_refreshed_bundles(value, version, origins, message):
    """
    A bundle of format 1 has no origin, one of format 2 has at least one.
    """
    value |= {"format_version": version}
    if origins is not ABSENT:
        value |= {"refreshed_from": origins}

    assert refusal(json.dumps(value).encode()) == f"manifest.json: {message}"


@mark.parametrize(
    "origins", [[], [{"sha256": "0" * 64, "exporter": {"jax": "0.11.2"}}]], ids=["new", "refreshed"]
)
def test_lengths_are_of_format_3(value, origins):
    """
    A bundle with an input that is limited by an axis is written as 3, refreshed or not.
    """
    lengths = {"name": "n", "dtype": "int32", "shape": ["_"], "minimum": 1, "maximum": "seq"}
    value["signature"]["inputs"].append(lengths)
    value |= {"format_version": 3, "refreshed_from": origins}

    manifest = Manifest.from_bytes(json.dumps(value).encode())

    assert manifest.signature.inputs[-1].maximum == "seq"
    assert json.loads(manifest.to_bytes()) == value


def test_the_shortest_input_has_a_legal_length(value):
    """
    A minimum beyond the axis' own would leave the shortest inputs none.
    """
    lengths = {"name": "n", "dtype": "int32", "shape": ["_"], "minimum": 2, "maximum": "seq"}
    value["signature"]["inputs"].append(lengths)
    value |= {"format_version": 3, "refreshed_from": []}
    place = len(value["signature"]["inputs"]) - 1

    assert refusal(json.dumps(value).encode()) == (
        "manifest.json: expected a minimum up to 1, the minimum of axis 'seq', got 2 "
        f"at $.signature.inputs[{place}].minimum"
    )


@mark.parametrize(
    "origins", [[], [{"sha256": "0" * 64, "exporter": {"jax": "0.11.2"}}]], ids=["new", "refreshed"]
)
def test_infinities_are_of_format_4(value, origins):
    """
    A bundle with an output that may be infinite is written as 4, refreshed or not.
    """
    value["signature"]["outputs"][0] |= {"dtype": "float32", "nonfinite": "infinities"}
    value |= {"format_version": 4, "refreshed_from": origins}

    manifest = Manifest.from_bytes(json.dumps(value).encode())

    assert manifest.signature.outputs[0].nonfinite == "infinities"
    assert json.loads(manifest.to_bytes()) == value


@mark.parametrize("written", ["infinities", None])
@mark.parametrize("version", [1, 3])
def test_older_formats_know_no_infinities(value, version, written):
    """
    The key is as unknown in an older format as it is to its readers, whatever its value.
    """
    value["signature"]["outputs"][0] |= {"dtype": "float32", "nonfinite": written}
    value |= {"format_version": version} | ({"refreshed_from": []} if version > 1 else {})

    assert refusal(json.dumps(value).encode()) == (
        "manifest.json: unknown key 'nonfinite' at $.signature.outputs[0]"
    )


@mark.parametrize(
    ("key", "change", "message"),
    [
        (
            "outputs",
            {"nonfinite": "nan"},
            "expected 'infinities', got 'nan' at $.signature.outputs[0].nonfinite",
        ),
        (
            "outputs",
            {"nonfinite": True},
            "expected string, got bool at $.signature.outputs[0].nonfinite",
        ),
        (
            "outputs",
            {"nonfinite": "infinities", "dtype": "int32"},
            "expected a floating dtype for infinities, got int32 at $.signature.outputs[0].nonfinite",
        ),
        (
            "inputs",
            {"nonfinite": "infinities", "dtype": "float32"},
            "expected no nonfinite for an input, got 'infinities' at $.signature.inputs[0].nonfinite",
        ),
    ],
)
def test_infinities_are_of_floating_outputs(value, key, change, message):
    """
    What `nonfinite` cannot be, and where it cannot be, is refused.
    """
    entry = value["signature"][key][0]
    for bound in ("minimum", "maximum", "pad"):
        entry.pop(bound, None)
    entry |= {"dtype": "float32"} | change
    value |= {"format_version": 4, "refreshed_from": []}

    assert refusal(json.dumps(value).encode()) == f"manifest.json: {message}"


STAGE = {
    "kind": "text",
    "input": "text",
    "tokenizer": {"path": "preprocess/0/tokenizer.json", "bytes": 2, "sha256": "0" * 64},
    "input_ids": "ids",
    "attention_mask": "mask",
    "max_tokens": 4,
    "max_bytes": 100,
}
RAW = {"path": "golden/0.jsonl", "bytes": 2, "sha256": "0" * 64}


def with_texts(value, *stages, version=4, raw=RAW):
    """Return a manifest with stages, and a golden that begins at texts."""
    golden = value["goldens"][0] | ({} if raw is None else {"raw": raw})
    origins = {"refreshed_from": []} if version > 1 else {}
    return value | {
        "format_version": version,
        "preprocess": list(stages),
        "goldens": [golden],
        **origins,
    }


def test_texts_are_of_format_4(value):
    """
    A bundle that takes texts is read and written again, in the format that has them.
    """
    data = json.dumps(with_texts(value, STAGE)).encode()
    manifest = Manifest.from_bytes(data)

    [stage] = manifest.preprocess
    assert (stage.raw_names, stage.made) == (("text",), ("ids", "mask"))
    assert not stage.truncate
    written = json.loads(manifest.to_bytes())
    assert written["format_version"] == 4
    assert written["preprocess"] == [STAGE]
    assert written["goldens"][0]["raw"] == RAW
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    paths = [file.path for file in manifest.files]
    assert paths[-3:] == ["golden/0.safetensors", "golden/0.jsonl", "preprocess/0/tokenizer.json"]


def test_all_of_a_stage_is_kept(value):
    """
    The optional fields of a stage are read and written as well.
    """
    value["signature"]["inputs"] += [
        {"name": "kinds", "dtype": "int8", "shape": ["_", "seq"]},
        {"name": "n", "dtype": "int32", "shape": ["_"]},
    ]
    more = {"pair": "second", "token_type_ids": "kinds", "lengths": "n", "truncate": True}

    written = Manifest.from_bytes(json.dumps(with_texts(value, STAGE | more)).encode()).to_bytes()

    assert json.loads(written)["preprocess"] == [STAGE | more]


@mark.parametrize("version", [1, 3])
def test_earlier_formats_have_no_texts(value, version):
    """
    To a reader of earlier formats a stage is an unknown key, and so is a golden's text.
    """
    with_stage = with_texts(value, STAGE, version=version, raw=None)
    without = value | {"format_version": version, "goldens": [value["goldens"][0] | {"raw": RAW}]}
    if version == 3:
        without["refreshed_from"] = []

    assert refusal(json.dumps(with_stage).encode()).endswith("unknown key 'preprocess' at $")
    assert refusal(json.dumps(without).encode()).endswith("unknown key 'raw' at $.goldens[0]")


@mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "sound"}, "expected 'text' or 'image', got 'sound' at $.preprocess[0].kind"),
        ({"code": "x"}, "unknown key 'code' at $.preprocess[0]"),
        (
            {"input": "ids"},
            "expected a name that no other input has, got 'ids' at $.preprocess[0].input",
        ),
        (
            {"pair": "text"},
            "expected a name that no other input has, got 'text' at $.preprocess[0].pair",
        ),
        (
            {"input_ids": "id"},
            "expected one of ids, mask, got 'id' at $.preprocess[0].input_ids",
        ),
        (
            {"lengths": "mask", "attention_mask": None},
            "expected integers [_], got int32[_, seq] at $.preprocess[0].lengths",
        ),
        (
            {"token_type_ids": "mask"},
            "expected each input to be made once, got 'mask' at $.preprocess[0]",
        ),
        (
            {"attention_mask": None},
            (
                "expected a stage that makes 'mask' as well, whose axis 'seq' has the size that texts "
                "have, got none at $.preprocess"
            ),
        ),
        (
            {"max_tokens": 5},
            "expected 1 to 4, the size of 'ids', got 5 at $.preprocess[0].max_tokens",
        ),
        (
            {"max_tokens": 0},
            "expected 1 to 4, the size of 'ids', got 0 at $.preprocess[0].max_tokens",
        ),
        ({"max_bytes": 0}, "expected at least 1, got 0 at $.preprocess[0].max_bytes"),
        (
            {"tokenizer": STAGE["tokenizer"] | {"bytes": 2**26 + 1}},
            "expected at most 67108864 bytes, got 67108865 at $.preprocess[0].tokenizer.bytes",
        ),
        (
            {"tokenizer": STAGE["tokenizer"] | {"path": "../tokenizer.json"}},
            "expected a plain relative path, got '../tokenizer.json' at $.preprocess[0].tokenizer.path",
        ),
    ],
)
def test_stages_fit_the_signature(value, changes, message):
    """
    A stage makes inputs that are there, each of the dtype and shape that it makes.
    """
    assert refusal(json.dumps(with_texts(value, STAGE | changes)).encode()) == (
        f"manifest.json: {message}"
    )


def test_a_page_sample_is_of_format_4(value):
    """
    Permission to show a golden on the page is recorded in the manifest, and in none of an earlier format.
    """
    later = value | {"format_version": 4, "refreshed_from": [], "page_sample": True}

    manifest = Manifest.from_bytes(json.dumps(later).encode())

    assert manifest.page_sample
    assert json.loads(manifest.to_bytes())["page_sample"] is True
    earlier = json.dumps(later | {"format_version": 3}).encode()
    assert refusal(earlier).endswith("unknown key 'page_sample' at $")


def test_stages_have_goldens_that_begin_there(value):
    """
    Where there are stages a golden begins at raw inputs, and nowhere else.
    """
    without = with_texts(value, STAGE, raw=None)
    alone = with_texts(value)
    del alone["preprocess"]

    assert refusal(json.dumps(without).encode()) == (
        "manifest.json: expected a golden with raw inputs, got none at $.goldens"
    )
    assert refusal(json.dumps(alone).encode()) == (
        "manifest.json: expected no golden with raw inputs, got one at $.goldens"
    )


def test_embeddings_are_of_format_4(value):
    """
    An output format that is an embedding is read and written in the format that has it.
    """
    form = {"kind": "embedding", "output": "scores", "scores": "logits", "labels": []}
    value |= {"format_version": 4, "refreshed_from": []}

    for embedding in (form, form | {"normalized": True}):
        manifest = Manifest.from_bytes(json.dumps(value | {"output_format": embedding}).encode())
        written = json.loads(manifest.to_bytes())
        assert (written["format_version"], written["output_format"]) == (4, embedding)


@mark.parametrize(
    ("version", "changes", "message"),
    [
        (
            3,
            {"kind": "embedding"},
            (
                "expected 'raw' or 'softmax' or 'classification', got 'embedding' at "
                "$.output_format.kind"
            ),
        ),
        (3, {"normalized": True}, "unknown key 'normalized' at $.output_format"),
        (
            4,
            {"normalized": True},
            "expected true for an embedding alone, got classification at $.output_format.normalized",
        ),
    ],
)
def test_embeddings_are_of_no_earlier_format(value, version, changes, message):
    """
    Earlier formats have no embeddings, and nothing but these is normalized.
    """
    value |= {"format_version": version, "refreshed_from": []}
    value["output_format"] |= changes

    assert refusal(json.dumps(value).encode()) == f"manifest.json: {message}"


def test_fields_that_pass_through_are_of_format_4(value):
    """
    Fields that are no inputs are read and written, and have names of their own.
    """
    value |= {"format_version": 4, "refreshed_from": [], "passthrough": ["key", "id"]}

    written = Manifest.from_bytes(json.dumps(value).encode()).to_bytes()

    assert json.loads(written)["format_version"] == 4
    assert json.loads(written)["passthrough"] == ["key", "id"]
    for names, message in (
        (["ids"], "expected a name that no input has, got 'ids' at $.passthrough"),
        (["key", "key"], "expected each name once, got 'key' twice at $.passthrough"),
    ):
        data = json.dumps(value | {"passthrough": names}).encode()
        assert refusal(data) == f"manifest.json: {message}"
    earlier = json.dumps(value | {"format_version": 3}).encode()
    assert refusal(earlier) == "manifest.json: unknown key 'passthrough' at $"
