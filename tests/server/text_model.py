"""A fake model that takes texts: a real tokenizer maps words to ids, and the model sums these."""

import numpy as np

from runtime.entries import File, OutputFormat
from runtime.preprocessing.preparation import Preparer
from runtime.preprocessing.texts import TextReader
from runtime.raw_inputs import TextStage
from runtime.signature import Axis, Signature, TensorSpec
from tests.server.fakes import ECHO, FakeModel
from tests.tokenizer_files import words

STAGE = TextStage(
    input="text",
    tokenizer=File(path="preprocess/0/tokenizer.json", bytes=1, sha256="0" * 64),
    input_ids="ids",
    attention_mask="mask",
    max_tokens=8,
    max_bytes=60,
)
# The sum of a text's ids.
TOTAL = Signature(
    inputs=ECHO.inputs,
    outputs=(TensorSpec(name="total", dtype="int32", shape=("_",)),),
    axes=(Axis(name="seq", sizes=(4, 8)),),
)
# And three times the number beside the text.
WITH_AGE = Signature(
    inputs=(*ECHO.inputs, TensorSpec(name="age", dtype="int32", shape=("_",))),
    outputs=TOTAL.outputs,
    axes=TOTAL.axes,
)

# The sum of a text's ids, and their number.
VECTORS = Signature(
    inputs=ECHO.inputs,
    outputs=(TensorSpec(name="vector", dtype="float32", shape=("_", 2)),),
    axes=TOTAL.axes,
)


def total(ids, mask, age=0):
    """Return the sum of the ids that are no padding, and three times the age."""
    return ((ids * mask).sum(axis=1, dtype=np.int32) + 3 * age,)


class TextModel(FakeModel):
    """Sums the ids of texts.

    Attributes:
      prepared: the texts of each call that prepared some.
      before_preparing: called before each of these.
    """

    def __init__(self, signature=TOTAL, stage=STAGE, **options):
        function = None if signature is ECHO else total
        super().__init__(signature=signature, function=function, **options)
        self.manifest.preprocess = (stage,)
        reader = TextReader(stage, signature, words())
        self.preparer = Preparer([reader], signature, self.checker)
        self.prepared = []
        self.before_preparing = lambda _: None
        prepare = self.preparer.prepare

        def recorded(inputs, where, resources):
            self.prepared.append([str(text) for text in inputs[stage.input]])
            self.before_preparing(inputs)
            return prepare(inputs, where, resources)

        self.preparer.prepare = recorded


class EmbeddingModel(TextModel):
    """Embeds a text as the sum of its ids and their number."""

    def __init__(self, *, normalized=False):
        form = OutputFormat(kind="embedding", output="vector", normalized=normalized)
        super().__init__(VECTORS, output_format=form)
        self.function = lambda ids, mask: (
            np.stack([(ids * mask).sum(axis=1), mask.sum(axis=1)], axis=1).astype(np.float32),
        )
