"""Functions that tests run in TensorFlow, in one long-lived process: starting it takes seconds.

A test hands over a function of this file and gets its answer; see the fixture `tensorflow`.
"""

import inspect
import os
import sys
from pathlib import Path
from types import SimpleNamespace


def start():
    """Make a process ready before it imports TensorFlow: quiet, and without Keras."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    sys.modules["keras"] = None


def step(command, recipe, platform="cpu"):
    """Run a step of making a SavedModel."""
    from export import savedmodel

    return savedmodel.step(command, recipe, platform)


def run(path, signature, inputs):
    """Run a signature of a SavedModel on arrays; return its outputs by name."""
    import tensorflow as tf

    serve = tf.saved_model.load(str(path)).signatures[signature]
    outputs = serve(**{name: tf.constant(array) for name, array in inputs.items()})
    return {name: output.numpy() for name, output in outputs.items()}


def refusal(path, signature, inputs):
    """Run a signature that does not accept these arrays; return TensorFlow's error."""
    import tensorflow as tf

    try:
        run(path, signature, inputs)
    except tf.errors.OpError as error:
        return str(error.message)
    raise AssertionError("it took them")


def variables(path):
    """Return the variables that a SavedModel holds, by name."""
    import tensorflow as tf

    return {
        name: variable.numpy() for name, variable in tf.saved_model.load(str(path)).params.items()
    }


def programs(path):
    """Return the attributes of each XlaCallModule of a SavedModel: version, platforms, StableHLO."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString(Path(path, "saved_model.pb").read_bytes())
    nodes = [
        node.attr
        for function in saved.meta_graphs[0].graph_def.library.function
        for node in function.node_def
        if node.op == "XlaCallModule"
    ]
    return [
        {
            "version": attributes["version"].i,
            "platforms": [platform.decode() for platform in attributes["platforms"].list.s],
            "module": attributes["module"].s,
        }
        for attributes in nodes
    ]


def warmup(path):
    """Read the warm-up requests of a SavedModel: model, signature, inputs by name."""
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    file = Path(path, "assets.extra", "tf_serving_warmup_requests")
    found = []
    for record in tf.data.TFRecordDataset(str(file)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        inputs = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
        found.append((request.model_spec.name, request.model_spec.signature_name, inputs))
    return found


def replay(path):
    """Answer the warm-up requests of a SavedModel: inputs and outputs of each, by name."""
    import tensorflow as tf

    signatures = tf.saved_model.load(str(path)).signatures
    found = []
    for _, signature, inputs in warmup(path):
        outputs = signatures[signature](**{name: tf.constant(a) for name, a in inputs.items()})
        found.append((inputs, {name: output.numpy() for name, output in outputs.items()}))
    return found


def what_jax2tf_takes():
    """Return the parameters of the one function of jax2tf that is used, and is not public."""
    from export import savedmodel

    return list(inspect.signature(savedmodel.jax2tf._run_exported_as_tf).parameters)


def refused_convention(version, known):
    """Return the error for a program whose calling convention is too new for TensorFlow."""
    from export import savedmodel

    before = savedmodel.tfxla
    savedmodel.tfxla = SimpleNamespace(call_module_maximum_supported_version=lambda: known)
    try:
        savedmodel._expect_convention(SimpleNamespace(calling_convention_version=version))
    except savedmodel.Refusal as refusal_:
        return str(refusal_)
    finally:
        savedmodel.tfxla = before
    raise AssertionError("it took it")


def reads():
    """Return the StableHLO that this TensorFlow reads, and its own version."""
    import tensorflow as tf
    from tensorflow.compiler.mlir.stablehlo import stablehlo

    return stablehlo.get_current_version(), tf.__version__
