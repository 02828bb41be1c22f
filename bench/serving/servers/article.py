"""The article's own server: Flask, pickled params, compiled at the first request.

gunicorn --workers 4 bench.serving.servers.article:app
"""

import os
import pickle
from pathlib import Path

import jax
from flask import Flask, Response, jsonify, request

from examples.text_classifier.reference import predict

app = Flask(__name__)
# The article pickles jax's arrays, which are on the device once unpickled; ours are NumPy's.
PARAMS = jax.device_put(pickle.loads(Path(os.environ["BENCH_PARAMS"]).read_bytes()))  # noqa: S301 (we wrote it)


@app.get("/health")
def health() -> Response:
    return jsonify(status="healthy")


@app.post("/predict")
def answer() -> Response:
    return jsonify(predictions=predict(PARAMS, request.get_json()["instances"]))
