"""The requests, and their expected answers.

Dialects: Vertex AI's `instances`, which every server here speaks but Triton; the Open Inference
Protocol in JSON (`oip`), which Triton speaks, with binary tensors (`binary`), over gRPC call by
call (`grpc`), and over gRPC in streams of STREAM requests (`stream`). `bench.raw` has two more: `text`, Vertex AI's
instances that are sentences, and `openai`.
"""

import concurrent.futures
import dataclasses
import json
import math
import struct
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from server.protos import inference_pb2 as pb

INSTANCES = 64
# Requests of one stream; h2load begins another when all of them are answered.
STREAM = 64
GRPC = ("grpc", "stream")
TEXT_LENGTH, VOCABULARY = 128, 50000
# As short as sentences are: half of them below 20 tokens, one in eight beyond 32.
SENTENCE_MEDIAN, SENTENCE_SPREAD, SENTENCE_LONGEST = 20, 0.45, 128


class WrongAnswer(Exception):
    """A server answered something else than the model."""


@dataclasses.dataclass(frozen=True, slots=True)
class Workload:
    """Instances, and the model's own answer to each: a vector."""

    instances: list[Any]
    answers: np.ndarray
    field: str  # of a prediction: where the vector is
    tolerance: float
    labels: tuple[str, ...] = ()

    def body(self, index: int, dialect: str) -> tuple[bytes, int | None]:
        """Write an instance; returns the bytes of JSON too, if there are others behind them."""
        instance = self.instances[index]
        if dialect == "vertex":
            return _json({"instances": [instance]}), None
        if dialect in GRPC:
            return _message(instance), None
        tensor = {"name": "x", "shape": [1, TEXT_LENGTH], "datatype": "INT32"}
        if dialect == "oip":
            return _json({"inputs": [{**tensor, "data": instance}]}), None
        binary = np.array(instance, np.int32).tobytes()
        tensor["parameters"] = {"binary_data_size": len(binary)}
        head = _json({"inputs": [tensor], "parameters": {"binary_data_output": True}})
        return head + binary, len(head)

    def write(self, path: Path, dialect: str) -> Path:
        """Write what the load generator sends: wrk a body a line, h2load one body over and over."""
        if dialect in GRPC:
            count = STREAM if dialect == "stream" else 1
            messages = (self.body(i % len(self.instances), dialect)[0] for i in range(count))
            path.write_bytes(b"".join(struct.pack(">BI", 0, len(m)) + m for m in messages))
            return path
        lines = []
        for i in range(len(self.instances)):
            body, head = self.body(i, dialect)
            lines.append(f"{head or '-'} {body.hex()}\n")
        path.write_text("".join(lines))
        return path

    def check(self, url: str, dialect: str, at_once: int = 16) -> None:
        """Send every instance, several at once so that they share batches, and compare.

        Raises:
          WrongAnswer: a status, a label or a value is not what it has to be.
        """
        with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
            for outcome in pool.map(
                lambda i: self._check_one(url, dialect, i), range(len(self.instances))
            ):
                if outcome:
                    raise WrongAnswer(f"{url}: {outcome}")

    def _check_one(self, url: str, dialect: str, index: int) -> str:
        try:
            prediction = ask(url, dialect, *self.body(index, dialect))
        except (OSError, ValueError, grpc.RpcError) as error:
            return f"instance {index}: {error}"
        return self._compare(index, prediction)

    def _compare(self, index: int, prediction: Any) -> str:
        found = prediction
        if isinstance(prediction, dict):
            found = prediction.get(self.field)
        if isinstance(found, dict):
            found = [found.get(label) for label in self.labels]
        vector, expected = np.array(found, np.float64), self.answers[index]
        if vector.shape != expected.shape:
            return f"instance {index}: expected shape {expected.shape}, got {vector.shape}"
        off = float(np.abs(vector - expected).max())
        if not off <= self.tolerance:
            return f"instance {index}: off by {off:.1e}, allowed are {self.tolerance:.0e}"
        if isinstance(prediction, dict) and self.labels:
            label = self.labels[int(vector.argmax())]
            if prediction.get("label") != label:
                return f"instance {index}: expected {label}, got {prediction.get('label')!r}"
        return ""


def ask(url: str, dialect: str, body: bytes, head: int | None) -> Any:
    """Send one request; returns its prediction.

    Raises:
      OSError, ValueError, grpc.RpcError: no answer, another status than 200, or no JSON.
    """
    if dialect in GRPC:
        return _call(url, dialect, body)
    headers = {"Content-Type": "application/json"}
    if head is not None:
        headers = {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(head),
        }
    request = urllib.request.Request(url, body, headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310
        if reply.status != 200:
            raise OSError(f"status {reply.status}")
        answer, behind = reply.read(), reply.headers.get("Inference-Header-Content-Length")
    if dialect in ("vertex", "text"):
        return json.loads(answer)["predictions"][0]
    if dialect == "openai":
        return json.loads(answer)["data"][0]["embedding"]
    if dialect == "oip":
        return json.loads(answer)["outputs"][0]["data"]
    return np.frombuffer(answer[int(behind) :], np.float32)


def _call(url: str, dialect: str, body: bytes) -> Any:
    """Send one request over gRPC, in a stream of its own or as a call."""
    _, _, host, *path = url.split("/")
    with grpc.insecure_channel(host) as channel:
        if dialect == "stream":
            streamed = pb.ModelStreamInferResponse.FromString
            answers = channel.stream_stream("/" + "/".join(path), None, streamed)(iter([body]))
            streamed_answer = next(answers)
            if streamed_answer.error_message:
                raise ValueError(streamed_answer.error_message)
            answer = streamed_answer.infer_response
        else:
            method = channel.unary_unary(
                "/" + "/".join(path), None, pb.ModelInferResponse.FromString
            )
            answer = method(body, timeout=30)
    return np.frombuffer(answer.raw_output_contents[0], np.float32)


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _message(instance: list[int]) -> bytes:
    request = pb.ModelInferRequest(model_name="text_classifier")
    request.inputs.add(name="x", datatype="INT32", shape=[1, TEXT_LENGTH])
    request.raw_input_contents.append(np.array(instance, np.int32).tobytes())
    return request.SerializeToString()


def answers_at_all(url: str, dialect: str, body: bytes, head: int | None) -> bool:
    """Whether there is an answer yet."""
    try:
        ask(url, dialect, body, head)
    except (OSError, ValueError, grpc.RpcError):
        return False
    return True


def texts(params: Any) -> Workload:
    """Make texts of 128 tokens; the answers are those of Flax itself."""
    from examples.text_classifier.reference import LABELS, predict

    rng = np.random.default_rng(0)
    instances = rng.integers(0, VOCABULARY, (INSTANCES, TEXT_LENGTH)).tolist()
    answers = [list(a["probabilities"].values()) for a in predict(params, instances)]
    return Workload(instances, np.array(answers), "probabilities", 1e-5, LABELS)


def sentences(bundle: Path) -> Workload:
    """Make sentences of mixed length; the answers are those of the bundle, one by one."""
    from examples.minilm.model import VOCABULARY as WORDS
    from runtime import load

    rng = np.random.default_rng(0)
    lengths = rng.lognormal(math.log(SENTENCE_MEDIAN), SENTENCE_SPREAD, INSTANCES)
    instances, answers = [], []
    model = load(bundle)
    for length in np.clip(lengths, 4, SENTENCE_LONGEST).astype(int):
        ids = rng.integers(1000, WORDS, (1, length), np.int32)
        mask = np.ones_like(ids)
        instances.append({"input_ids": ids[0].tolist(), "attention_mask": mask[0].tolist()})
        answers.append(model.predict({"input_ids": ids, "attention_mask": mask})["embedding"][0])
    return Workload(instances, np.array(answers, np.float64), "embedding", 1e-4)
