"""Classify images with a bundle: the five likeliest of ImageNet's classes, with their probabilities.

    python -m examples.efficientnet.classify BUNDLE IMAGE…

Needs Pillow and `runtime`, and no Flax. `flower.jpg` and `china.jpg` are looked for among
scikit-learn's sample images too.
"""

import argparse
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from runtime import Model, load

SIZE = 224
SHOWN = 5


def prepared(path: Path) -> np.ndarray:
    """Return the middle of an image as the model takes it: uint8[224, 224, 3]."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def probabilities(model: Model, images: np.ndarray) -> np.ndarray:
    """Classify uint8[images, 224, 224, 3]; returns float32[images, 1000]."""
    scores = model.predict({"image": images})["output"]
    scaled = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return scaled / scaled.sum(axis=-1, keepdims=True)


def find(name: str) -> Path:
    """Return the path of an image: as it is named, or among scikit-learn's samples."""
    package = importlib.util.find_spec("sklearn.datasets.images")
    sample = Path(package.origin or "").parent / name if package else Path(name)
    return sample if sample.exists() and not Path(name).exists() else Path(name)


def main() -> None:
    """Print a line for each image."""
    parser = argparse.ArgumentParser(description="Classify images.", allow_abbrev=False)
    parser.add_argument("bundle", metavar="BUNDLE")
    parser.add_argument("images", metavar="IMAGE", nargs="+")
    arguments = parser.parse_args()
    images = np.stack([prepared(find(name)) for name in arguments.images])
    found = probabilities(load(arguments.bundle), images)
    for name, row in zip(arguments.images, found, strict=True):
        best = row.argsort()[::-1][:SHOWN]
        print(f"{name}:", ", ".join(f"{i} {row[i]:.0%}" for i in best))


if __name__ == "__main__":
    main()
