"""Train the digits in one framework, say how good it is, and export what was trained.

python -m examples.frameworks.train keras --out build/frameworks/keras
"""

import argparse
import importlib
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

from examples.digits.train import digits
from export import export_model

FRAMEWORKS = ("keras", "equinox", "haiku", "plain")
GOLDEN_ROWS = 32


def main() -> None:
    """Train and export."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("framework", choices=FRAMEWORKS)
    parser.add_argument("--out", type=Path, metavar="DIR", help="the bundle to write")
    arguments = parser.parse_args()
    name = arguments.framework
    example = importlib.import_module(f"examples.frameworks.{name}_digits")
    (images, labels), (held_out, expected) = digits()
    trained = example.train(images, labels)
    scores = example.answer(trained, held_out)
    accuracy = np.mean(scores.argmax(axis=-1) == expected)
    print(f"held-out accuracy {accuracy:.4f} on {len(expected)} digits", flush=True)
    model, params = example.what_to_export(trained)
    report = export_model(
        model,
        params,
        inputs=example.INPUTS,
        output="classification:logits",
        labels=tuple("0123456789"),
        golden={"image": held_out[:GOLDEN_ROWS].astype(np.float32)},
        name=f"digits-{name}",
        out=arguments.out or Path("build/frameworks") / name,
        overwrite=True,
    )
    print(report)


if __name__ == "__main__":
    main()
