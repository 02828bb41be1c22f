"""Params from every form that training leaves them in, each written by its own library."""

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from flax.training import checkpoints
from safetensors.numpy import save, save_file

from export import CheckpointError
from export.checkpoints import ACCEPTED, read_params
from tests.export.conftest import TREE, B, W, marked

ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def same(got, expected):
    """Compare trees: keys, NumPy dtypes and bytes."""
    got, expected = (
        {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (got, expected)
    )
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert isinstance(got[name], np.ndarray | np.generic)
        assert got[name].dtype == value.dtype
        assert got[name].tobytes() == np.asarray(value).tobytes()
    return True


def orbax(path, tree):
    """Write one Orbax checkpoint."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


def test_a_standard_checkpoint_is_restored_as_numpy(tmp_path):
    """StandardCheckpointer's arrays are restored as NumPy, bfloat16 included."""
    device_tree = jax.tree.map(jnp.asarray, TREE)
    assert same(read_params(orbax(tmp_path / "c", device_tree)), TREE)


def test_a_pytree_checkpoint_is_restored_as_numpy(tmp_path):
    """The older PyTreeCheckpointer's arrays are restored as NumPy."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "c", TREE)
    assert same(read_params(tmp_path / "c"), TREE)


def test_the_newest_step_is_taken(steps):
    """Of a directory of steps the highest number is read, not the last by name."""
    assert same(read_params(steps), marked(12))


def test_a_step_is_named_by_its_directory(steps):
    """`ckpt/3` is step 3."""
    assert same(read_params(steps / "3"), marked(3))


def test_an_absent_step_names_those_there_are(steps):
    """A step that is not there is refused with the steps that are."""
    with pytest.raises(CheckpointError) as caught:
        read_params(steps / "4")
    assert str(caught.value) == (
        f"params {steps}/4: expected a file or directory, got nothing there; {steps} has the steps "
        "1, 3, 12"
    )


def test_an_unfinished_step_is_not_taken(steps):
    """A step whose save was interrupted does not count, and is refused when named."""
    unfinished = steps / "13.orbax-checkpoint-tmp-7"
    (steps / "12").rename(unfinished)

    assert same(read_params(steps), marked(3))
    with pytest.raises(CheckpointError) as caught:
        read_params(unfinished)
    assert str(caught.value) == (
        f"params {unfinished}: expected a finished checkpoint, got one that is not"
    )


def test_an_empty_step_is_not_taken(steps):
    """A directory that only has a step's name is no step."""
    (steps / "99").mkdir()
    assert same(read_params(steps), marked(12))


@pytest.mark.parametrize("name", ["default", "params", "variables", "state", "model", "weights"])
def test_a_composite_step_gives_the_item_with_the_params(tmp_path, name):
    """Of a step's items the one with arrays is read, whatever else the step has."""
    items = {name: ocp.args.StandardSave(TREE), "extra": ocp.args.JsonSave({"a": 1})}
    with ocp.CheckpointManager(tmp_path / "c") as manager:
        manager.save(1, args=ocp.args.Composite(**items))
    assert same(read_params(tmp_path / "c"), TREE)


def test_a_composite_step_with_a_choice_names_the_items(tmp_path):
    """Two items that could be meant are named, and either can be given."""
    items = {"student": ocp.args.StandardSave(TREE), "teacher": ocp.args.StandardSave(marked(9))}
    with ocp.CheckpointManager(tmp_path / "c") as manager:
        manager.save(1, args=ocp.args.Composite(**items))

    with pytest.raises(CheckpointError, match="expected one item, got student, teacher; name the"):
        read_params(tmp_path / "c")
    assert same(read_params(tmp_path / "c/1/teacher"), marked(9))


STATISTICS = {"Dense_0": {"mean": B}}


@pytest.mark.parametrize(
    ("beside", "taken"),
    [
        ({"batch_stats": STATISTICS}, {"batch_stats": STATISTICS}),
        ({"batch_stats": STATISTICS, "opt_state": [TREE]}, {"batch_stats": STATISTICS}),
        ({"ema": marked(9)}, {}),
        ({"history": {"loss": B}}, {}),
    ],
    ids=["statistics", "optimizer", "copy", "others"],
)
def test_collections_that_are_items_beside_the_params_are_read(tmp_path, beside, taken):
    """Params and batch statistics saved as two items are the variables of one model."""
    items = {"params": TREE, **beside}
    with ocp.CheckpointManager(tmp_path / "c") as manager:
        saved = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        manager.save(1, args=ocp.args.Composite(**saved))

    assert same(read_params(tmp_path / "c"), {"params": TREE, **taken} if taken else TREE)


@pytest.mark.parametrize("as_item", [False, True])
def test_a_checkpoint_of_one_array_is_that_array(tmp_path, as_item):
    """What ArrayCheckpointHandler saved, alone or as an item, is an array and no tree."""
    if as_item:
        with ocp.CheckpointManager(tmp_path / "c") as manager:
            manager.save(1, args=ocp.args.Composite(params=ocp.args.ArraySave(W)))
    else:
        with ocp.Checkpointer(ocp.ArrayCheckpointHandler()) as checkpointer:
            checkpointer.save(tmp_path / "c", args=ocp.args.ArraySave(W))

    assert same(read_params(tmp_path / "c"), W)


@pytest.mark.e2e
def test_a_checkpoint_of_eight_devices_loads_on_one(tmp_path):
    """Arrays that were sharded over 8 devices are restored whole where there is one."""
    code = """
import sys, jax, jax.numpy as jnp, orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec
mesh = jax.make_mesh((8,), ("data",))
x = jnp.arange(64, dtype=jnp.bfloat16).reshape(16, 4)
x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
assert len(x.sharding.device_set) == 8
with ocp.StandardCheckpointer() as c:
    c.save(sys.argv[1], {"x": x})
"""
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    path = str(tmp_path / "c")
    subprocess.run([sys.executable, "-c", code, path], env=env, check=True)

    assert len(jax.devices()) == 1
    assert same(read_params(path), {"x": np.arange(64).astype(ml_dtypes.bfloat16).reshape(16, 4)})


def test_flax_msgpack(tmp_path):
    """Output of `flax.serialization.to_bytes` is read from a file of any name."""
    for name in ("params.msgpack", "weights.flax", "noname"):
        (tmp_path / name).write_bytes(serialization.to_bytes(TREE))
        assert same(read_params(tmp_path / name), TREE)


@pytest.mark.filterwarnings("ignore:Flax Checkpointing:DeprecationWarning")
@pytest.mark.parametrize("with_orbax", [True, False], ids=["orbax", "msgpack"])
def test_flax_training_checkpoints(tmp_path, monkeypatch, with_orbax):
    """
    The newest checkpoint_N is read, in today's form and in the older msgpack one, and so
    is one that is named.
    """
    monkeypatch.setattr(flax.config, "_values", dict(flax.config._values))
    flax.config.update("flax_use_orbax_checkpointing", with_orbax)
    for step in (9, 10):
        checkpoints.save_checkpoint(tmp_path / "c", marked(step), step, keep=5)

    assert (tmp_path / "c/checkpoint_10").is_dir() == with_orbax
    assert same(read_params(tmp_path / "c"), marked(10))
    assert same(read_params(tmp_path / "c/checkpoint_9"), marked(9))


@pytest.mark.parametrize("separator", [".", "/"])
def test_safetensors(tmp_path, separator):
    """Names joined by dots or slashes become a tree."""
    flat = {f"Dense_0{separator}kernel": W, f"Dense_0{separator}bias": B, "count": np.int32([3])}
    save_file(flat, tmp_path / "p.safetensors")
    save_file(flat, tmp_path / "noname")
    tree = {"Dense_0": {"kernel": W, "bias": B}, "count": np.int32([3])}

    assert same(read_params(tmp_path / "p.safetensors"), tree)
    assert same(read_params(tmp_path / "noname"), tree)


def test_safetensors_names_with_dots_below_slashes(tmp_path):
    """Where names have slashes, a dot is a part of the name."""
    save_file({"layer.0/w": W}, tmp_path / "p.safetensors")
    assert same(read_params(tmp_path / "p.safetensors"), {"layer.0": {"w": W}})


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["p.pkl", "p.bin"])
def test_a_pickle_is_read_only_when_allowed(tmp_path, name, protocol):
    """A pickle of any protocol is recognized, refused, and read with --allow-pickle."""
    path = tmp_path / name
    path.write_bytes(pickle.dumps(TREE, protocol))
    if name == "p.bin" and protocol < 2:
        with pytest.raises(CheckpointError, match=r"got a file of another form"):
            read_params(path)
        return

    with pytest.raises(CheckpointError) as caught:
        read_params(path)
    assert str(caught.value) == (
        f"params {path}: a pickle can run any code when it is read; pass --allow-pickle if you "
        "trust where it comes from"
    )
    assert same(read_params(path, allow_pickle=True), TREE)


class Boom:
    """Ends the test if it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was read",))


@pytest.mark.parametrize("name", ["p.pkl", "p.msgpack", "p.safetensors", "checkpoint_1"])
def test_no_name_makes_a_pickle_run(tmp_path, name):
    """A pickle runs nothing under any name unless it is allowed."""
    (tmp_path / name).write_bytes(pickle.dumps(Boom()))
    with pytest.raises(CheckpointError):
        read_params(tmp_path / name)
    with pytest.raises(CheckpointError):
        read_params(tmp_path)


@pytest.mark.parametrize("name", ["p.safetensors", "p.msgpack", "p.pkl", "p.bin"])
@pytest.mark.parametrize("data", [b"", b"\x00", b"{}", b"\xff" * 100, b"hello, world\n" * 9])
def test_a_file_that_is_something_else_is_one_line(tmp_path, name, data):
    """Whatever is in a file, it is refused in one line that names it."""
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        read_params(path, allow_pickle=True)
    assert str(caught.value).startswith(f"params {path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["msgpack", "safetensors", "pkl"])
def test_a_file_cut_short_is_one_line(tmp_path, form):
    """A file that was not copied whole is refused, wherever it ends."""
    writers = {
        "msgpack": lambda: serialization.to_bytes({"w": W, "b": B}),
        "safetensors": lambda: save({"w": W, "b": B}),
        "pkl": lambda: pickle.dumps({"w": W, "b": B}),
    }
    data = writers[form]()
    path = tmp_path / f"p.{form}"
    for end in range(1, len(data) - 1, 7):
        path.write_bytes(data[:end])
        with pytest.raises(CheckpointError) as caught:
            read_params(path, allow_pickle=True)
        assert str(caught.value).startswith(f"params {path}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.e2e
def test_a_damaged_orbax_checkpoint_is_noticed(tmp_path):
    """A checkpoint with any of its files missing, empty, cut short or altered is refused."""
    # In a process of its own: readers that fail go on complaining in the background.
    code = """
import pathlib, shutil, sys
from export import CheckpointError
from export.checkpoints import read_params
whole = pathlib.Path(sys.argv[1])
change = {
    "absent": None,
    "empty": lambda data: b"",
    "short": lambda data: data[: len(data) // 2],
    "altered": lambda data: bytes(255 - byte for byte in data),
}
for part in ("d", "ocdbt.process_0", "manifest.ocdbt", "_METADATA"):
    for name, damage in change.items():
        path = whole.parent / f"{part}-{name}"
        shutil.copytree(whole, path)
        for file in [path / part, *(path / part).rglob("*")]:
            if file.is_file() and damage:
                file.write_bytes(damage(file.read_bytes()))
            elif file.is_file():
                file.unlink()
        try:
            read_params(path)
        except CheckpointError as error:
            assert str(error).startswith(f"params {path}: cannot be read: "), error
            assert len(str(error).splitlines()) == 1, error
            print(path.name)
"""
    path = orbax(tmp_path / "c", {"w": np.arange(9000.0), "b": B})
    ran = subprocess.run([sys.executable, "-c", code, path], env=ENV, capture_output=True)

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.decode().split() == [
        f"{part}-{name}"
        for part in ("d", "ocdbt.process_0", "manifest.ocdbt", "_METADATA")
        for name in ("absent", "empty", "short", "altered")
    ]


@pytest.mark.e2e
def test_a_damaged_checkpoint_prints_one_line(tmp_path):
    """The command prints nothing but the error, whatever Orbax prints."""
    path = orbax(tmp_path / "c", {"w": W})
    (path / "manifest.ocdbt").write_bytes(b"damaged")
    (tmp_path / "m.py").write_text("def apply(params, x):\n    return x\n")
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "export",
            "m.py:apply",
            "--input",
            "x:float32[_,3]",
            "--params",
            "c",
            "--out",
            "b",
        ],
        cwd=tmp_path,
        env=ENV,
        capture_output=True,
        text=True,
    )

    lines = ran.stderr.splitlines()
    assert (ran.returncode, ran.stdout) == (1, "")
    assert lines[0].endswith("] reading params")
    assert lines[1].startswith("error: params c: cannot be read: ")
    assert len(lines) == 2


def write_npz(path):
    """Write arrays as NumPy does."""
    np.savez(path, w=W)


def write_torch(path):
    """Write what torch.save writes: a zip of a pickle and its storages."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"w": [1.0]}))
        file.writestr("archive/data/0", b"1234")


def write_zip(path):
    """Write any other zip."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("notes.txt", "no weights")


@pytest.mark.parametrize(
    ("name", "write", "what"),
    [
        ("empty.msgpack", lambda path: path.touch(), "an empty file"),
        ("params.npz", write_npz, "a NumPy .npz file"),
        ("w.npy", lambda path: np.save(path, W), "a NumPy file"),
        ("model.pt", write_torch, "a PyTorch file"),
        ("params.zip", write_zip, "a zip file"),
        ("broken.zip", lambda path: path.write_bytes(b"PK\3\4 and no more"), "a zip file"),
        ("w.h5", lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "an HDF5 file"),
        ("w.gguf", lambda path: path.write_bytes(b"GGUF" + bytes(99)), "a GGUF file"),
        ("p.pkl.gz", lambda path: path.write_bytes(b"\x1f\x8b" + bytes(99)), "a gzip file"),
        ("a.msgpack", lambda path: path.write_bytes(b"\x93\1\2\3"), "a file of another form"),
        ("notes.txt", lambda path: path.write_text("hello, world"), "a file of another form"),
    ],
)
def test_the_error_of_a_file_of_another_form_lists_those_accepted(tmp_path, name, write, what):
    """For a file without params in a known form, the error names its format, and the accepted ones."""
    path = tmp_path / name
    write(path)
    for place in (path, tmp_path):
        if place == tmp_path:
            path.rename(tmp_path / "checkpoint_1")  # as one step among others
            path = tmp_path / "checkpoint_1"
        with pytest.raises(CheckpointError) as caught:
            read_params(place)
        assert str(caught.value) == f"params {path}: expected {ACCEPTED}, got {what}"


def test_a_directory_that_is_no_checkpoint_says_what_it_has(tmp_path):
    """A directory of other things is refused with what is in it."""
    folder = tmp_path / "c"
    folder.mkdir()
    with pytest.raises(CheckpointError, match="got a directory with nothing in it"):
        read_params(folder)
    (folder / "notes.txt").touch()
    with pytest.raises(CheckpointError) as caught:
        read_params(folder)
    assert str(caught.value) == (
        f"params {folder}: expected {ACCEPTED}, got a directory with notes.txt"
    )
