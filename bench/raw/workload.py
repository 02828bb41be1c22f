"""Real sentences, as texts and as the ids that the bundle's own tokenizer makes of them."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from bench.serving.workload import INSTANCES, Workload

_TOKENIZER = "preprocess/0/tokenizer.json"
_ENCODED = 2000


@dataclasses.dataclass(frozen=True, slots=True)
class Sentences(Workload):
    """Sentences, each as an instance of ids as well, and the model's own answers.

    Attributes:
      texts: the sentences.
    """

    texts: tuple[str, ...] = ()

    def body(self, index: int, dialect: str) -> tuple[bytes, int | None]:
        """Write a sentence: as ids, as `text`, or as OpenAI's clients do."""
        value: Any = {"instances": [self.instances[index]]}
        if dialect == "text":
            value = {"instances": [self.texts[index]]}
        elif dialect == "openai":
            value = {"input": [self.texts[index]], "model": "minilm"}
        return json.dumps(value, separators=(",", ":")).encode(), None


def tokenizer(bundle: Path) -> Tokenizer:
    """Return a bundle's tokenizer, as it is used: without padding, cut off at 128 tokens."""
    found = Tokenizer.from_file(str(bundle / _TOKENIZER))
    found.no_padding()
    found.enable_truncation(128)
    return found


def sentences(bundle: Path) -> Sentences:
    """Take sentences of film reviews; the answers are those of the bundle, one by one."""
    from examples.text_classifier.train import reviews
    from runtime import load

    texts = reviews()[1].texts[:INSTANCES]
    model, own = load(bundle), tokenizer(bundle)
    form = model.manifest.output_format
    [stage] = model.manifest.preprocess
    instances: list[Any] = []
    answers = []
    for text in texts:
        answers.append(model.predict({"text": [text]})[form.output][0])
        ids = own.encode(text).ids
        if stage.attention_mask is None:
            instances.append([*ids, *[0] * (128 - len(ids))])
        else:
            instances.append({stage.input_ids: ids, stage.attention_mask: [1] * len(ids)})
    labels = tuple(model.labels or ())
    field = "probabilities" if labels else form.output
    return Sentences(instances, np.array(answers, np.float64), field, 1e-4, labels, tuple(texts))


def encode_us(bundle: Path, texts: tuple[str, ...]) -> float:
    """Return how long a bundle's tokenizer takes for one of these sentences, in microseconds."""
    own = tokenizer(bundle)
    for text in texts:
        own.encode(text)
    begin = time.perf_counter()
    for i in range(_ENCODED):
        own.encode(texts[i % len(texts)])
    return (time.perf_counter() - begin) / _ENCODED * 1e6
