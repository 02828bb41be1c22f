"""What is sent, and what has to come back.

Two dialects: Vertex AI's `instances`, which every server here speaks but Triton, and the Open
Inference Protocol, which Triton speaks.
"""

import concurrent.futures
import dataclasses
import json
import math
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

INSTANCES = 64
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

    def body(self, index: int, dialect: str) -> bytes:
        instance = self.instances[index]
        if dialect == "vertex":
            return json.dumps({"instances": [instance]}, separators=(",", ":")).encode()
        tensor = {"name": "x", "shape": [1, TEXT_LENGTH], "datatype": "INT32", "data": instance}
        return json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()

    def write(self, path: Path, dialect: str) -> Path:
        lines = [self.body(i, dialect) for i in range(len(self.instances))]
        path.write_bytes(b"\n".join(lines) + b"\n")
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
            answer = ask(url, self.body(index, dialect))
        except (OSError, ValueError) as error:
            return f"instance {index}: {error}"
        if dialect == "vertex":
            (prediction,) = answer["predictions"]
        else:
            prediction = answer["outputs"][0]["data"]
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


def ask(url: str, body: bytes) -> Any:
    """Send one request.

    Raises:
      OSError, ValueError: no answer, another status than 200, or no JSON.
    """
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310
        if reply.status != 200:
            raise OSError(f"status {reply.status}")
        return json.loads(reply.read())


def answers_at_all(url: str, body: bytes) -> bool:
    try:
        ask(url, body)
    except (OSError, ValueError):
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
