"""Folders of weights: shards, an index, and what is not one of them."""

import json

import ml_dtypes
import numpy as np
import pytest
from flax import serialization
from safetensors.numpy import save_file

from export import CheckpointError
from export.checkpoints import read_params
from tests.export.test_saved_forms import DENSE, B, W


def folder(tmp_path):
    """Make a folder with a configuration."""
    place = tmp_path / "pretrained"
    place.mkdir()
    (place / "config.json").write_text("{}")
    return place


def save_index(place, name, weight_map):
    """Write which shard has which param."""
    (place / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def shards_of_safetensors(place):
    """Write two shards and their index."""
    save_file({"dense.bias": B}, place / "model-00001-of-00002.safetensors")
    save_file({"dense.kernel": W}, place / "model-00002-of-00002.safetensors")
    files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    index = dict(zip(("dense.bias", "dense.kernel"), files, strict=True))
    save_index(place, "model.safetensors.index.json", index)


def shards_of_msgpack(place):
    """Write two shards as Flax models of transformers do."""
    names = ("flax_model-00001-of-00002.msgpack", "flax_model-00002-of-00002.msgpack")
    for name, tree in zip(names, ({"bias": B}, {"kernel": W}), strict=True):
        (place / name).write_bytes(serialization.to_bytes({"dense": tree}))
    index = dict(zip(("dense/bias", "dense/kernel"), names, strict=True))
    save_index(place, "flax_model.msgpack.index.json", index)


def shards_without_an_index(place):
    """Write numbered shards alone."""
    shards_of_safetensors(place)
    (place / "model.safetensors.index.json").unlink()


def flax_beside_torch(place):
    """Write what the hub has of a model in several frameworks."""
    (place / "flax_model.msgpack").write_bytes(serialization.to_bytes(DENSE))
    save_file({"dense.weight": W.T.copy(), "dense.bias": B}, place / "model.safetensors")
    (place / "pytorch_model.bin").write_bytes(b"PK")


@pytest.mark.parametrize(
    "write",
    [
        lambda place: save_file({"dense.kernel": W, "dense.bias": B}, place / "model.safetensors"),
        lambda place: (place / "flax_model.msgpack").write_bytes(serialization.to_bytes(DENSE)),
        lambda place: (place / "weights.msgpack").write_bytes(serialization.to_bytes(DENSE)),
        shards_of_safetensors,
        shards_of_msgpack,
        shards_without_an_index,
        flax_beside_torch,
    ],
    ids=["safetensors", "msgpack", "other name", "shards", "msgpack shards", "no index", "several"],
)
def test_folders_of_save_pretrained_are_read(tmp_path, write):
    """Weights beside config.json are found, whole or in shards; Flax's own are preferred."""
    place = folder(tmp_path)
    write(place)
    found = read_params(place)
    assert found.keys() == {"dense"}
    assert found["dense"].keys() == {"kernel", "bias"}
    np.testing.assert_array_equal(found["dense"]["kernel"], W)
    np.testing.assert_array_equal(found["dense"]["bias"], B)


def test_an_index_is_read_by_its_own_name(tmp_path):
    """--params may name the index."""
    place = folder(tmp_path)
    shards_of_safetensors(place)
    found = read_params(place / "model.safetensors.index.json")
    np.testing.assert_array_equal(found["dense"]["kernel"], W)


def test_one_shard_stands_for_all(tmp_path):
    """--params may name a shard: it is read together with the others."""
    place = folder(tmp_path)
    shards_of_safetensors(place)
    for shard in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        assert read_params(place / shard)["dense"].keys() == {"kernel", "bias"}


SECOND = "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda place: (place / SECOND).unlink(),
            f"params {{index}}: expected all shards, got no {SECOND}",
        ),
        (
            lambda place: save_file({"dense.scale": W}, place / SECOND),
            f"params {{index}}: expected 'dense.kernel' in {SECOND}, as the index says, got none there",
        ),
        (
            lambda place: save_file({"dense.kernel": W, "dense.bias": B}, place / SECOND),
            (
                "params {index}: expected each param in one shard: 'dense/bias' is there twice, or a part "
                "of its path is a param"
            ),
        ),
        (
            lambda place: save_index(
                place, "model.safetensors.index.json", {"w": "../w.safetensors"}
            ),
            (
                "params {index}: expected names of .safetensors or .msgpack files beside it, got "
                "'../w.safetensors'"
            ),
        ),
        (
            lambda place: (place / "model.safetensors.index.json").write_text("[]"),
            (
                "params {index}: expected an object with a weight_map of names to files, got something "
                "else"
            ),
        ),
    ],
    ids=["absent", "other", "twice", "outside", "no index"],
)
def test_shards_that_are_not_those_of_the_index_are_refused(tmp_path, damage, message):
    """A shard that is absent, has something else or lies elsewhere is named."""
    place = folder(tmp_path)
    shards_of_safetensors(place)
    damage(place)
    with pytest.raises(CheckpointError) as caught:
        read_params(place)
    assert str(caught.value) == message.format(index=place / "model.safetensors.index.json")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("pytorch_model.bin", "tf_model.h5"),
            (
                "expected weights of Flax or safetensors beside config.json, got pytorch_model.bin, "
                "tf_model.h5; save them with save_pretrained of a Flax model, or as safetensors"
            ),
        ),
        (
            ("a.safetensors", "b.safetensors"),
            "expected one file of weights, got a.safetensors, b.safetensors; name the file",
        ),
    ],
    ids=["torch alone", "two"],
)
def test_a_folder_of_other_weights_says_so(tmp_path, names, message):
    """A folder that has PyTorch's weights alone, or several files, is refused with their names."""
    place = folder(tmp_path)
    for name in names:
        (place / name).write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        read_params(place)
    assert str(caught.value) == f"params {place}: {message}"


def test_safetensors_of_dtypes_that_bundles_lack_are_read(tmp_path):
    """complex64 and the other 8-bit floats of the format are read unchanged."""
    tensors = {
        "c": np.array([1 + 2j, -3j], np.complex64),
        "f": np.array([1, -2], ml_dtypes.float8_e4m3fnuz),
    }
    save_file(tensors, tmp_path / "p.safetensors")
    found = read_params(tmp_path / "p.safetensors")
    assert {n: (a.dtype, a.tobytes()) for n, a in found.items()} == {
        n: (a.dtype, a.tobytes()) for n, a in tensors.items()
    }
