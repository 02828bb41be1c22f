"""Keras models are exported as they are, by what they say of themselves."""

import os
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest

from export import ParamsError
from tests.export.models.test_flax import close

# What Keras makes of its variables when it saves them.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(autouse=True)
def without_tensorflow(monkeypatch):
    """Keras saves without it, and imports it for that where it is installed."""

    class Absent:
        def find_spec(self, name, _path=None, _target=None):
            if name == "tensorflow":
                raise ModuleNotFoundError(name)

    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])


def classifier():
    """Make a network of what needs more than weights: a scaling, statistics, dropout."""
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1), name="image"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3, name="logits"),
        ],
        name="net",
    )
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if "seed" not in variable.path:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape).astype(np.float32))
    return model


class Mode(keras.Model):
    """Has a mode of its own, which is training by default."""

    def __init__(self):
        super().__init__(name="mode")
        self.norm = keras.layers.BatchNormalization(name="norm")
        self.dropout = keras.layers.Dropout(0.5)
        self.dense = keras.layers.Dense(2, name="dense")

    def call(self, x, training=True):
        """Answer rows."""
        x = self.norm(x, training=training)
        return self.dense(self.dropout(x, training=training))


class AlwaysTraining(keras.Model):
    """Normalises by its batch whatever it is called with."""

    def __init__(self):
        super().__init__(name="always")
        self.norm = keras.layers.BatchNormalization(name="norm")

    def call(self, x):
        """Answer rows."""
        return self.norm(x, training=True)


class Noise(keras.layers.Layer):
    """Adds noise in inference too."""

    def __init__(self):
        super().__init__(name="noise")
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x):
        """Answer rows."""
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seeds)


def built(model):
    """Call a model on rows of three, so that it has its weights."""
    model(np.zeros((2, 3), np.float32))
    return model


@pytest.fixture
def images():
    """Seven images, more than the largest bucket."""
    return np.random.default_rng(1).uniform(0, 255, (7, 6, 6, 1)).astype(np.float32)


def test_a_model_needs_no_more_than_itself(export, images):
    """Input, output and params have the model's names; it answers as Keras does in inference."""
    model = classifier()

    exported = export(model, inputs=())

    assert exported.report.inputs == ("image: float32[_, 6, 6, 1]",)
    assert exported.report.outputs == ("logits: float32[_, 3]",)
    assert [p.name for p in exported.manifest.params.entries] == [
        *("net/conv/kernel", "net/conv/bias", "net/norm/gamma", "net/norm/beta"),
        *("net/norm/moving_mean", "net/norm/moving_variance"),
        *("net/logits/kernel", "net/logits/bias"),
    ]
    assert close(exported.predict(image=images)["logits"], model(images, training=False), rtol=1e-4)


def test_statistics_keep_their_dtype(plan):
    """A cast is of what training moves, and of no statistics."""
    made = plan(classifier(), inputs=(), dtype="bfloat16")

    kept = {n for n, a in made.params.items() if a.dtype == np.float32}
    assert kept == {"net/norm/moving_mean", "net/norm/moving_variance"}


def test_several_inputs_and_outputs_go_by_their_names(export):
    """Whatever structure a model is called with, a bundle takes and returns names."""
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    outputs = [keras.layers.Subtract(name="less")([a, b]), keras.layers.Add(name="more")([a, b])]
    rows = {"a": np.float32([[5, 3]]), "b": np.float32([[1, 2]])}
    for made in (keras.Model([b, a], outputs), keras.Model({"a": a, "b": b}, outputs)):
        answers = export(made, inputs=()).predict(**rows)

        assert {name: answer.tolist() for name, answer in answers.items()} == {
            "less": [[4, 1]],
            "more": [[6, 5]],
        }


def test_inputs_inside_of_others_go_by_their_own_names(export):
    """However deep a structure is, a bundle has flat names, with what names may have in them."""
    a, b, c = (keras.Input((2,), name=name) for name in ("first", "the b", "c"))
    model = keras.Model({"first": a, "rest": [b, c]}, keras.layers.Subtract()([a, b]))

    exported = export(model, inputs=())

    rows = {"first": np.float32([[5, 3]]), "the_b": np.float32([[1, 2]])}
    assert [s.name for s in exported.model.signature.inputs] == ["first", "the_b", "c"]
    assert exported.predict(**rows, c=rows["first"])["output"].tolist() == [[4, 1]]


def test_names_that_keras_counts_up_are_left_out(plan):
    """What Keras calls `keras_tensor_5` or `dense_7` has the same name in every process."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])

    made = plan(model, inputs=())

    assert [s.name for s in (*made.signature.inputs, *made.signature.outputs)] == [
        *("input", "output"),
    ]


def test_an_axis_without_a_size_is_asked_for(refusal, plan):
    """The flags that declare it are in the message, and are all it takes."""
    ids = keras.Input((None,), name="ids", dtype="int32")
    embedded = keras.layers.Embedding(10, 4, mask_zero=True)(ids)
    model = keras.Model(ids, keras.layers.GlobalAveragePooling1D()(embedded))

    assert refusal(model, inputs=()) == (
        "input 'ids': expected sizes, got (None, None); pass them as --input 'ids:int32[_,axis1]' "
        "--axis axis1=32,64,128"
    )
    made = plan(model, inputs=["ids:int32[_,axis1]"], axes={"axis1": (4, 8)})
    assert len(made.traced) == 4


def test_a_subclass_answers_in_inference_mode(export, rows):
    """A mode that is on by default is switched off, in the layers inside too."""
    model = built(Mode())

    assert close(export(model).answer(x=rows), model(rows, training=False))


def test_a_subclass_has_to_have_its_inputs_named(refusal):
    """Apart from the shapes that it was built with, it has no declaration of its inputs."""
    assert refusal(built(Mode()), inputs=()) == (
        "inputs: expected them by name, since the keras Mode does not say what it takes; it was built with input_shape (2, 3): pass --input 'x:float32[_,3]'"
    )


def test_training_that_cannot_be_switched_off_is_refused(refusal):
    """What changes the statistics of a model is no inference."""
    assert refusal(built(AlwaysTraining())) == (
        "AlwaysTraining: expected inference to leave its state alone, got always/norm/moving_mean, "
        "always/norm/moving_variance changed; is it still in training mode? A program keeps nothing "
        "between calls: what has to be kept, take as an input and return"
    )


def test_a_failure_names_its_layer(refusal):
    """What Keras wraps an error in is taken off, and the layer is named."""

    class Broken(keras.layers.Layer):
        """Raises, once it is set to."""

        fails = False

        def call(self, x):
            if self.fails:
                raise NotImplementedError("no such thing\nat all")
            return x

    model = keras.Sequential([keras.Input((3,)), Broken()])
    Broken.fails = True

    message = refusal(model, inputs=())

    line = Broken.call.__code__.co_firstlineno + 2
    assert message == (
        "the model cannot be traced: Broken.call(): NotImplementedError: no such thing "
        f"(test_keras.py, line {line})"
    )


def test_noise_in_inference_is_refused(refusal):
    """An answer that depends on a seed would be another one each time."""
    model = keras.Sequential([keras.Input((3,), name="x"), Noise()])

    assert refusal(model, inputs=()).startswith(
        "Sequential: inference needs a random key, and a program has none; pin one by exporting a "
        "function: "
    )


def test_weights_of_a_file_are_those_of_the_bundle(export, rows, tmp_path):
    """A `.weights.h5` file sets a model's weights, built or not, and leaves the model unchanged."""
    trained, other = built(Mode()), built(Mode())
    trained.save_weights(tmp_path / "trained.weights.h5")
    before = [np.asarray(v) for v in other.variables]

    for model in (other, Mode()):
        exported = export(model, tmp_path / "trained.weights.h5")

        assert close(exported.answer(x=rows), trained(rows, training=False))
    assert all((np.asarray(v) == b).all() for v, b in zip(other.variables, before, strict=True))


def test_weights_of_another_model_are_refused(refusal, tmp_path):
    """The refusal contains Keras's own message, in one line."""
    classifier().save_weights(tmp_path / "other.weights.h5")

    assert refusal(Mode(), tmp_path / "other.weights.h5", kind=ParamsError) == (
        "params other.weights.h5: Keras cannot load them: ValueError: A total of 2 objects could not "
        "be loaded"
    )


def test_params_by_their_paths_are_taken(export, refusal, rows):
    """A checkpoint of another form has the names of the variables, and all of them."""
    model = built(Mode())
    params = {v.path: np.asarray(v) + 1 for v in model.variables if "seed" not in v.path}

    exported = export(model, params)

    for variable in model.variables:
        if "seed" not in variable.path:
            variable.assign(params[variable.path])
    assert close(exported.answer(x=rows), model(rows, training=False))
    del params["mode/dense/bias"]
    assert (
        refusal(model, params) == "params do not fit the model: missing mode/dense/bias float32[2]"
    )


def test_a_model_that_was_never_called_has_no_weights(refusal):
    """Random weights are never exported."""
    assert refusal(Mode()) == (
        "params: expected the weights of the keras Mode, which was never called and has none, got "
        "none; pass --params"
    )


def test_what_is_no_layer_is_refused(refusal):
    """Not all that is Keras's is a model."""
    assert refusal(keras.Variable(np.zeros(3, np.float32)), inputs=()) == (
        "model: expected a keras Layer or Model, got Variable"
    )


def test_the_batch_that_a_model_was_built_with_is_none_of_its_own(export, rows):
    """A Sequential without keras.Input has the batch of the rows that it was trained on, and takes any."""
    model = built(keras.Sequential([keras.layers.Dense(2, name="scores")]))

    exported = export(model, inputs=())

    assert exported.report.inputs == ("input: float32[_, 3]",)
    assert close(exported.answer(input=rows), model(rows))


def test_a_layer_that_keeps_a_state_is_refused(refusal):
    """A program keeps nothing between calls; what is on is named, also where another layer wraps it."""
    for wrap in (lambda layer: layer, keras.layers.Bidirectional):
        layer = wrap(keras.layers.LSTM(2, stateful=True, name="memory"))
        model = keras.Sequential([keras.Input((4, 3), batch_size=8), layer])

        assert refusal(model, inputs=()) == (
            f"layer {layer.name!r}: expected one that keeps nothing between calls, got stateful=True; "
            "load its weights into a model with stateful=False there"
        )


def test_names_that_keras_counts_up_become_places(plan):
    """The user's own names stay beside them."""
    a, b = keras.Input((3,), name="a"), keras.Input((3,))
    outputs = [keras.layers.Dense(1)(a), keras.layers.Dense(2, name="scores")(b)]

    made = plan(keras.Model([a, b], outputs), inputs=())

    assert [s.name for s in made.signature.inputs] == ["a", "input_1"]
    assert sorted(s.name for s in made.signature.outputs) == ["output_0", "scores"]


def test_a_layer_without_weights_needs_none(export, rows):
    """One that was never called has no random weights where it has none at all."""
    exported = export(keras.layers.Rescaling(2.0))

    assert close(exported.answer(x=rows), rows * 2)


def test_layers_of_one_name_are_distinguished(plan):
    """Variables that Keras calls the same are numbered."""

    class Twins(keras.Model):
        def __init__(self):
            super().__init__(name="twins")
            self.first = keras.layers.Dense(3, name="d")
            self.second = keras.layers.Dense(3, name="d")

        def call(self, x):
            return self.second(self.first(x))

    assert list(plan(built(Twins())).params) == [
        *("twins/d/kernel", "twins/d/bias", "twins/d/kernel#1", "twins/d/bias#1"),
    ]


def test_weights_that_a_function_closes_over_are_noted(plan):
    """They are constants of every program; the model itself would have them as params."""
    model = built(keras.Sequential([keras.layers.Dense(200), keras.layers.Dense(2)]))

    (note,) = plan(lambda _params, x: model(x)).notes

    assert note.startswith("4 constants of the model's code (4.7 KiB), first used at test_keras.py")
    assert note.endswith(
        ", stay inside every program; the function closes over 'model', a model of keras: export "
        "that model itself, or pass its weights as params"
    )


def test_a_file_is_a_model(command, tmp_path, images):
    """`python -m export model.keras --out bundle/` is all it takes."""
    model = classifier()
    model.save(tmp_path / "model.keras")

    ran = command(
        *(tmp_path / "model.keras", "--out", tmp_path / "bundle", "--buckets", "1,4", "--json"),
        *("--platforms", "cpu", "--output", "classification:logits", "--labels", "a,b,c"),
    )

    assert (ran.status, ran.json["inputs"]) == (0, ["image: float32[_, 6, 6, 1]"])
    from runtime import load

    answers = load(tmp_path / "bundle", "cpu").predict({"image": images})["logits"]
    assert close(answers, model(images, training=False), rtol=1e-4)


@pytest.fixture
def of_lambda(tmp_path):
    """A file with code in it."""
    path = tmp_path / "lambda.keras"
    keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x * 2)]).save(path)
    return path


def test_a_file_that_has_code_in_it_is_refused(command, of_lambda, tmp_path):
    """Keras's own refusal, and how the model is exported all the same."""
    ran = command(of_lambda, "--out", tmp_path / "bundle")

    assert ran.status == 1
    assert ran.error == (
        f"model {of_lambda}: Keras cannot load it: ValueError: Requested the deserialization of a "
        "`Lambda` layer whose `function` is a Python lambda; with what it lacks, load it in a Python "
        "file, model = keras.saving.load_model('lambda.keras', safe_mode=False), and export "
        "file.py:model"
    )


def test_a_file_with_a_class_of_the_users_own_says_how_it_is_loaded(command, tmp_path):
    """Keras does not find the class; the argument that takes it is in the message."""
    path = tmp_path / "own.keras"
    keras.Sequential([keras.Input((3,)), Noise()]).save(path)

    ran = command(path, "--out", tmp_path / "bundle")

    assert ran.status == 1
    assert ran.error == (
        f"model {path}: Keras cannot load it: TypeError: Could not locate class 'Noise'; with what it "
        "lacks, load it in a Python file, model = keras.saving.load_model('own.keras', "
        "custom_objects={'Noise': Noise}), and export file.py:model"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.keras", "expected a .keras file, got nothing there"),
        (
            "old.h5",
            (
                "expected a .keras file, got the older format HDF5; save it anew: "
                "keras.saving.load_model('old.h5').save('old.keras')"
            ),
        ),
        (
            "text.keras",
            "expected a .keras file, got none, or part of one",
        ),
    ],
)
def test_a_file_that_is_no_model_is_refused(command, tmp_path, name, message):
    """What is wrong with it is one line."""
    path = tmp_path / name
    if name != "none.keras":
        path.write_text("no model")

    ran = command(path, "--out", tmp_path / "bundle")

    assert (ran.status, ran.error) == (1, f"model {path}: {message.format(path=path)}")


@pytest.mark.parametrize("kind", ["TextVectorization", "IndexLookup", "HashedCrossing"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_layer_that_tensorflow_alone_runs_is_refused(refusal, kind, wrapped):
    """It is named, with what to export in its place, also where it is another layer's or a class of it."""

    class Passing(keras.layers.Layer):
        def call(self, x):
            return x

    # Keras's own would import TensorFlow.
    own = type("Own", (type(kind, (Passing,), {}),), {})
    layer = own(name="words")
    wrap = keras.layers.TimeDistributed(layer) if wrapped else layer
    model = keras.Sequential([keras.Input((3, 1)), wrap])

    assert refusal(model, inputs=()) == (
        "layer 'words': Own uses TensorFlow and cannot be compiled with JAX; export the "
        "model behind it, keras.Model(that layer's output, model.outputs), and send what it makes; "
        "for texts see --text"
    )


def test_another_backend_is_refused(refusal, monkeypatch):
    """What is not computed by JAX cannot be traced."""
    model = built(Mode())
    monkeypatch.setattr(keras.config, "backend", lambda: "torch")

    assert refusal(model) == (
        "keras: expected the backend jax, got torch; set KERAS_BACKEND=jax before keras is first "
        "imported; what another backend saved is read as well"
    )


def test_the_same_file_gives_the_same_bytes(command, tmp_path, monkeypatch):
    """No name in a bundle depends on what else a process made."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    path = tmp_path / "model.keras"
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(path)
    manifests = []
    for out in ("first", "second"):
        command(path, "--out", tmp_path / out, "--buckets", "1", "--platforms", "cpu")
        manifests.append((tmp_path / out / "manifest.json").read_bytes())

    assert manifests[0] == manifests[1]
