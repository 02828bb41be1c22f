"""`python -m export` refused: wrong usage, status 2, and what does not fit, status 1."""

from pathlib import Path

import numpy as np
import pytest

from export import ExportError, export_model

X = "x:float32[_,3]"

pytestmark = pytest.mark.usefixtures("folder")
NO_WEIGHTS = (
    "params: expected the weights of the nnx.Module, got none; pass --params, or a trained module in "
    "place of "
)
NO_MODEL = (
    "model: expected an ExportSpec, a model of Flax, Keras, Equinox or Haiku or its factory, or "
    "apply(params, inputs), got "
)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ot", "b"], "--ot: no such option; did you mean --out?"),
        (["models.py:spec", "--ot=b"], "--ot: no such option; did you mean --out?"),
        (["models.py:spec", "--outt", "b"], "--outt: no such option; did you mean --out?"),
        (
            ["models.py:spec", "--out", "b", "--bucket", "1"],
            "--bucket: no such option; did you mean --buckets?",
        ),
        (
            ["models.py:spec", "--out", "b", "--matmul_precision", "high"],
            "--matmul_precision: no such option; did you mean --matmul-precision?",
        ),
        (["--out", "b", "--zzzzzz"], "--zzzzzz: no such option"),
        (["-o", "b"], "-o: no such option; did you mean --out?"),
        ([], "the following arguments are required: MODEL, --out"),
        (["models.py:spec"], "the following arguments are required: --out"),
        (
            ["models.py:spec", "--out", "b", "--dtype", "bfloat61"],
            (
                "argument --dtype: invalid choice: 'bfloat61' (choose from 'bfloat16', 'float16', "
                "'float32'); did you mean 'bfloat16'?"
            ),
        ),
        (
            ["models.py:spec", "--out", "b", "--matmul-precision", "higest"],
            (
                "argument --matmul-precision: invalid choice: 'higest' (choose from 'default', 'high', "
                "'highest', 'bfloat16', 'tensorfloat32', 'float32'); did you mean 'highest'?"
            ),
        ),
        (
            ["models.py:spec", "--out", "b", "--seed", "x"],
            "argument --seed: invalid int value: 'x'",
        ),
        (["models.py:spec", "more", "--out", "b"], "unrecognized arguments: more"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(command, words, message):
    """A typo of an option names the nearest one, whatever else is missing."""
    ran = command(*words)

    assert (ran.status, ran.out, ran.err.replace('"', "'")) == (2, "", f"error: {message}\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["models.py"],
            "model 'models.py': expected pkg.mod:attr, path/to/file.py:attr or path/to/model.keras",
        ),
        (
            ["models.py:affine", "--input", "x:float23[_,3]"],
            (
                "input 'x': expected a dtype of bool, int8, int16, int32, int64, uint8, uint16, uint32, "
                "uint64, float16, bfloat16, float32, float64, float8_e4m3fn, float8_e5m2, got "
                "'float23'; did you mean 'float32'?"
            ),
        ),
        (
            ["models.py:affine", "--input", "x=float32[_,3]"],
            (
                "input 'x=float32[_,3]': expected NAME:DTYPE[_, SIZE, …] such as x:float32[_,28,28,1]; "
                "write x:float32[_,3]"
            ),
        ),
        (
            ["models.py:affine", "--input", "x:float32[3]"],
            (
                "input 'x': expected [_, …] with sizes or axis names after the batch, got 3 in "
                "'x:float32[3]'; the batch comes first, and is written _"
            ),
        ),
        (
            ["models.py:affine", "--input", X, "--input", X],
            "inputs: expected each name once, got 'x' twice",
        ),
        (
            ["models.py:affine", "--input", "ids:int32[_,4]", "--range", "idz=0:9"],
            "--range: expected an input of ids, got 'idz'; did you mean 'ids'?",
        ),
        (
            ["models.py:affine", "--input", "ids:int32[_,4]", "--range", "ids=0-9"],
            "--range: expected NAME=LOW:HIGH such as ids=0:30521, got 'ids=0-9'",
        ),
        (
            ["models.py:affine", "--input", "ids:int32[_,4]", "--range", "ids=9:0"],
            "input 'ids': expected a maximum of at least the minimum 9, got 0",
        ),
        (
            ["models.py:affine", "--input", "ids:uint8[_,4]", "--range", "ids=0:256"],
            "input 'ids': expected a maximum of uint8, got 256",
        ),
        (
            ["models.py:affine", "--input", X, "--range", "x=0:1"],
            "input 'x': expected an integer dtype for a range, got float32",
        ),
        (
            ["models.py:affine", "--input", "ids:int32[_,seq]", "--mask", "idss"],
            "--mask: expected an input of ids, got 'idss'; did you mean 'ids'?",
        ),
        (
            ["models.py:affine", "--input", X, "--mask", "x"],
            "input 'x': expected a bucketed axis for a mask, got float32[_, 3]",
        ),
        (
            ["models.py:affine", "--input", "ids:int32[_,seq]", "--pad", "ids=none"],
            "--pad: expected NAME=NUMBER, got 'ids=none'",
        ),
        (
            ["models.py:affine", "--input", "ids:int32[_,seq]", "--axis", "seq=8,4"],
            "axis 'seq': expected increasing sizes from 1 on, got [8, 4]",
        ),
        (
            ["models.py:affine", "--input", "ids:int32[_,seq]", "--axis", "seq"],
            "--axis: expected seq=32,64,128, got 'seq'",
        ),
        (
            ["models.py:spec", "--buckets", "1,x"],
            "buckets: expected sizes such as 1,8,32, got '1,x'",
        ),
        (
            ["models.py:spec", "--buckets", "0,4"],
            "buckets: expected increasing sizes from 1 on, got [0, 4]",
        ),
        (
            ["models.py:spec", "--platforms", "cpu,cude"],
            "platforms: expected cpu, cuda, rocm, tpu, got 'cude'; did you mean 'cuda'?",
        ),
        (
            ["models.py:spec", "--platforms", "cpu,cpu"],
            "platforms: expected each name once, got 'cpu' twice",
        ),
        (
            ["models.py:spec", "--output", "classification:logit"],
            (
                "output: expected raw, softmax, classification:logits, classification:probabilities, "
                "embedding, embedding:normalized, "
                "got 'classification:logit'; did you mean 'classification:logits'?"
            ),
        ),
        (
            ["models.py:spec", "--name", "a/b"],
            "name: expected letters, digits, '_.-', got 'a/b'",
        ),
        (["models.py:spec", "--version", "1.2"], "version: expected digits, got '1.2'"),
        (
            ["models.py:affine", "--input", "ids:int32[_,seq]", "--axis", "seq=5..4,8"],
            "axis 'seq': expected a minimum up to its first size 4, got 5",
        ),
        (
            ["models.py:affine", "--input", "ids:int32[_,seq]", "--axis", "seq=..4"],
            (
                "axis 'seq': expected sizes such as 32,64, or 3..32,64 for lengths from 3 on, got "
                "'..4'"
            ),
        ),
        (["models.py:spec", "--seed", "-3"], "seed: expected 0 or more, got -3"),
        (
            ["models.py:spec", "--params-path", ""],
            "params_path: expected keys joined by '.' such as 'ema_params', got ''",
        ),
    ],
)
def test_a_value_that_does_not_read_is_one_line_and_status_2(command, words, message):
    """A value that is wrong by itself is wrong usage, whichever option it is of."""
    ran = command(*words, "--out", "b")

    assert (ran.status, ran.error, ran.out) == (2, message, "")
    assert not Path("b").exists()


def test_values_that_look_like_options_are_none(command):
    """A negative number is a value, not an option that does not exist."""
    ran = command("models.py:spec", "--out", "b", "--dry-run", "--seed", "-3")
    assert ran.error == "seed: expected 0 or more, got -3"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["modles.py:spec"],
            (
                "model file modles.py: expected a Python file, got nothing there; did you mean "
                "'models.py'?"
            ),
        ),
        (
            ["models.py:Dens"],
            (
                "model 'models.py:Dens': expected an attribute of models.py, got 'Dens'; did you mean "
                "'Dense'?"
            ),
        ),
        (
            ["no_such_module:spec"],
            (
                "model 'no_such_module:spec': no_such_module cannot be imported: ModuleNotFoundError: "
                "No module named 'no_such_module'"
            ),
        ),
        (
            ["models.py:number", "--input", X],
            f"{NO_MODEL}int",
        ),
        (
            ["models.py:train", "--input", X],
            f"{NO_MODEL}NoneType from calling train()",
        ),
        (
            ["models.py:broken_spec"],
            "broken_spec: RuntimeError: no such thing (models.py, line 63)",
        ),
        (
            ["models.py:broken", "--input", X, "--params", "net.safetensors"],
            "the model cannot be traced: RuntimeError: no such thing (models.py, line 60)",
        ),
        (
            ["models.py:Net", "--input", X],
            f"{NO_WEIGHTS}Net",
        ),
        (
            ["models.py:make_net", "--input", X],
            f"{NO_WEIGHTS}make_net",
        ),
        (
            ["models.py:Dense", "--input", X],
            "params: expected the weights of the linen Module, got none; pass --params",
        ),
        (
            ["models.py:affine"],
            "inputs: expected at least one, got none; pass --input 'x:float32[_,28,28,1]'",
        ),
        (
            ["models.py:affine", "--input", "ids:int32[_,seq]"],
            "axis 'seq': expected its sizes, got none; pass --axis seq=32,64,128",
        ),
        (
            ["models.py:affine", "--input", "ids:int32[_,seq]", "--axis", "sec=4,8"],
            "axis 'seq': expected its sizes, got none; did you mean 'sec'?",
        ),
        (
            ["models.py:affine", "--input", X, "--axis", "seq=4,8"],
            "axis 'seq': expected an input that has it, got none",
        ),
        (
            ["models.py:affine", "--input", "ids:int32[_,4]", "--range", "ids=0:seq"],
            "input 'ids': expected a number as maximum, got 'seq'",
        ),
        (
            ["models.py:spec", "--output", "softmax:outptu"],
            "output: expected one of output, got 'outptu'; did you mean 'output'?",
        ),
        (
            ["models.py:spec", "--output", "softmax", "--labels", "a,b,c"],
            "labels: expected 2 for float32[_, 2], got 3",
        ),
        (
            ["models.py:spec", "--labels", "a,b"],
            "labels: expected --output classification:logits or :probabilities with them, got raw",
        ),
        (
            ["models.py:affine", "--params", "affine.safetensor", "--input", X],
            (
                "params affine.safetensor: expected a file or directory, got nothing there; did you "
                "mean 'affine.safetensors'?"
            ),
        ),
        (
            [
                "models.py:net",
                "--params",
                "state.safetensors",
                "--params-path",
                "parms",
                "--input",
                X,
            ],
            "params path 'parms': expected one of params, got 'parms'; did you mean 'params'?",
        ),
        (
            ["models.py:difference", "--input", "a:float32[_,3]", "--input", "bb:float32[_,3]"],
            "inputs: expected a, b as the model has them, got a, bb; did you mean 'b'?",
        ),
        (
            ["models.py:spec", "--golden", "golden.npz"],
            (
                "golden golden.npz: expected .safetensors or .npz of inputs by name, got nothing there"
            ),
        ),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_status_1(command, words, message):
    """A refusal names what was expected, what was got and the nearest valid name."""
    ran = command(*words, "--out", "b")

    assert (ran.status, ran.error, ran.out) == (1, message, "")
    assert not Path("b").exists()


def test_a_name_in_another_case_is_found(command):
    """`Cnn` for `CNN` is a near miss, and where nothing is near the module's own names are listed."""
    Path("nets.py").write_text(
        "import numpy as np\nfrom flax import linen as nn\nfrom pathlib import Path\n"
        "class CNN(nn.Module):\n    pass\ndef make_cnn():\n    return CNN()\ncnn_1 = CNN()\n"
    )
    wrong = {
        word: command(f"nets.py:{word}", "--out", "b") for word in ("Cnn", "MAKE_CNN", "Model")
    }

    assert {word: (ran.status, ran.error.partition("got ")[2]) for word, ran in wrong.items()} == {
        "Cnn": (1, "'Cnn'; did you mean 'CNN'?"),
        "MAKE_CNN": (1, "'MAKE_CNN'; did you mean 'make_cnn'?"),
        "Model": (1, "'Model'; it has CNN, make_cnn, cnn_1"),
    }


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda _: None, "nothing there"),
        (
            lambda file: file.with_name("golden.npz").touch(),
            "nothing there; did you mean 'golden.npz'?",
        ),
        (lambda file: file.mkdir(), "a directory"),
        (lambda file: file.touch(), "an empty file"),
        (lambda file: file.write_text("x,y\n1,2\n3,4\n"), "a text file"),
        (lambda file: file.write_bytes(b"\x89HDF\r\n\x1a\n\0\0"), "a file of another form"),
        (
            lambda file: file.write_bytes(b"\x93NUMPY\x01\0"),
            "one array without a name; write it with np.savez('golden.npz', NAME=array)",
        ),
    ],
    ids=["nothing", "near", "directory", "empty", "text", "binary", "npy"],
)
def test_golden_inputs_are_looked_at_before_the_model(command, make, got):
    """A file that cannot be one of golden inputs is refused before the model is even imported."""
    Path("slow.py").write_text("raise RuntimeError('imported')\n")
    make(Path("goldn.npz"))
    ran = command("slow.py:spec", "--golden", "goldn.npz", "--out", "b")

    assert (ran.status, ran.error, len(ran.err.splitlines())) == (
        1,
        f"golden goldn.npz: expected .safetensors or .npz of inputs by name, got {got}",
        1,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--params", "nothing"],
            "params nothing: expected a file or directory, got nothing there",
        ),
        (
            ["--params", "hf://owner/name"],
            (
                "params: expected a path on this machine or gs://, got 'hf://owner/name'; copy it "
                "here first, and pass that"
            ),
        ),
        (["--config", "c.json"], "--config c.json: expected a JSON file, got nothing there"),
        (
            ["--labels", "l.txt"],
            (
                "--labels: expected a,b,c or a file with a name on each line, got 'l.txt', which is "
                "no file"
            ),
        ),
    ],
)
def test_every_file_is_looked_for_before_the_model_is_imported(command, words, message):
    """A model can take long to import: whatever is named beside it is there by then."""
    Path("slow.py").write_text("raise RuntimeError('imported')\n")

    assert command("slow.py:spec", *words, "--out", "b").error == message


def test_golden_inputs_that_do_not_fit_are_refused_before_tracing(command):
    """The rows of a golden file are compared with the inputs before params are read."""
    np.savez("golden.npz", x=np.ones((2, 4), np.float32))
    ran = command("models.py:spec", "--golden", "golden.npz", "--out", "b")

    assert ran.error == "golden: input 'x': expected float32[_, 3], got float32[2, 4]"
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["models.py:spec", "--out", "URL"], "argument --out: "),
        (["models.py:spec", "--out", "b", "--savedmodel", "URL"], "argument --savedmodel: "),
        (["models.py:spec", "--out", "b", "--golden", "URL"], "argument --golden: "),
        (["models.py:Dense", "--out", "b", "--config", "URL"], "argument --config: "),
        (["models.py:spec", "--out", "b", "--labels", "URL"], "--labels: "),
        (["URL", "--out", "b"], "model: "),
    ],
)
def test_every_path_option_refuses_a_url(command, folder, words, message):
    """No option takes a URL for a path, and no folder `gs:` is made."""
    ran = command(*("gs://bucket/models/iris" if word == "URL" else word for word in words))

    assert (ran.status, len(ran.err.splitlines())) == (2, 1)
    assert ran.error.startswith(
        f"{message}expected a path on this machine, got 'gs://bucket/models/iris'; "
    )
    assert "gcloud storage cp -r " in ran.error
    assert not (folder / "gs:").exists()


@pytest.mark.parametrize("what", ["out", "savedmodel", "golden"])
@pytest.mark.parametrize("url", ["gs://bucket/iris", Path("gs://bucket/iris")])
def test_python_callers_are_refused_a_url_too(what, url, folder):
    """`export_model` writes to no URL and takes goldens from none, dry run or not."""
    before = sorted(folder.iterdir())
    options = {"out": "b", what: url, "inputs": [X], "buckets": (1,), "platforms": ("cpu",)}

    for dry_run in (True, False):
        with pytest.raises(
            ExportError, match="^" + what + ": expected a path on this machine, got 'gs://"
        ):
            export_model(lambda _p, x: x, None, dry_run=dry_run, **options)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b""])
@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_a_config_is_read_as_editors_write_it(command, mark, end):
    """A byte order mark and Windows' line ends in a configuration change nothing."""
    Path("c.json").write_bytes(mark + b'{"featuers": 2,' + end + b'"scale": 3.0}' + end)
    words = ("--params", "dense.safetensors", "--input", X, "--platforms", "cpu", "--buckets", "1")
    ran = command("models.py:Dense", *words, "--config", "c.json", "--out", "b", "--dry-run")

    assert ran.status == 0, ran.err
    assert "note: --config: ignored featuers, which the model does not take" in ran.err


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda file: file.mkdir(), "a directory"),
        (lambda _: None, "nothing there"),
        (lambda file: file.write_bytes(b'{"a": "\xe9"}'), "the byte 0xe9 in line 1"),
        (lambda file: file.write_text('{"a": 1, "a": 2}'), "the key 'a' twice"),
    ],
)
def test_a_config_that_is_no_json_file_is_one_line(command, make, got):
    """A configuration that is not there, no text or has a key twice is refused by name."""
    make(Path("c.json"))
    ran = command("models.py:Dense", "--config", "c.json", "--input", X, "--out", "b")

    assert (ran.status, ran.error) == (1, f"--config c.json: expected a JSON file, got {got}")


def test_a_model_file_that_is_a_folder_is_said(command, folder):
    """A package is no Python file, and is not called absent."""
    (folder / "pack.py").mkdir()
    ran = command("pack.py:spec", "--out", "b")

    assert ran.error == "model file pack.py: expected a Python file, got a directory"


def test_a_script_that_exits_is_no_model(command):
    """A file that ends the process when imported is refused, not obeyed."""
    Path("script.py").write_text("import sys\nsys.exit('usage: script.py')\n")
    ran = command("script.py:spec", "--out", "b")

    assert ran.status == 1
    assert ran.error == (
        "model 'script.py:spec': script.py cannot be imported: SystemExit: usage: script.py "
        "(script.py, line 2)"
    )
