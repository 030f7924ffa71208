"""The recipe of the features `digits` (gencli/metrics/digits.py): a classifier of digits and letters.

    GENCLI_DATA=DATA python tests/benchmarks/digits_network.py RUN WEIGHTS.safetensors

The 60,000 digits of MNIST's training set are ten classes, and each character of Omniglot's small background sets (Lake
et al. 2015; MIT licence) is one of its own: 242 characters by 20 people or twice as many, brought into the form of
MNIST (grey on black, the longer side 20 pixels, the centre of mass in the middle of 28 x 28) with pens of three widths.
RUN is resumed if it was interrupted. The file holds the convolutions with their batch normalisation folded in, the last
hidden layer, scaled so that the variance of its units is 1 on average over the training digits, and of the output layer
the ten digits.
"""

import argparse
import hashlib
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn

import gencli
from gencli.dataset import Dataset
from gencli.metrics.digits import Digits
from gencli.metrics.features import batches
from gencli.tensors import to_bytes

PENS = (5, 7, 9)  # pixels by which a line of 105 x 105 is widened
SETTINGS = {"net": "cnn", "width": 16, "features": 64, "epochs": 5, "batch_size": 128, "lr": 4e-3, "schedule": "cosine",
            "warmup": 100, "weight_decay": 0.02, "preview_every": 0, "precision": "fp32", "seed": 0}


def as_digit(picture: Image.Image, pen: int) -> np.ndarray:
    """A black line on white, of any size -> (28, 28) uint8 in the form of MNIST."""
    ink = picture.convert("L").point(lambda level: 255 - level).filter(ImageFilter.MaxFilter(pen))
    ink = ink.crop(ink.getbbox())
    scale = 20 / max(ink.size)
    small = np.asarray(ink.resize([max(1, round(side * scale)) for side in ink.size], Image.Resampling.LANCZOS))
    centre = [round(float((small.sum(1 - axis) * np.arange(size)).sum() / small.sum()))
              for axis, size in enumerate(small.shape)]
    top, left = (min(max(14 - c, 0), 28 - size) for c, size in zip(centre, small.shape, strict=True))
    out = np.zeros((28, 28), np.uint8)
    out[top : top + small.shape[0], left : left + small.shape[1]] = small
    return out


def characters(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Omniglot's small sets: pictures (N, 28, 28), and the number of the character of each."""
    pictures, labels, known = [], [], {}
    for archive in sorted(folder.glob("images_background_small*.zip")):
        with zipfile.ZipFile(archive) as file:
            for name in sorted(name for name in file.namelist() if name.endswith(".png")):
                label = known.setdefault(tuple(name.split("/")[1:3]), len(known))
                with Image.open(io.BytesIO(file.read(name))) as picture:
                    pictures += [as_digit(picture, pen) for pen in PENS]
                labels += [label] * len(PENS)
    return np.stack(pictures), np.array(labels)


def folded(model: nn.Module, digits: Dataset) -> dict[str, Tensor]:
    """The weights of a trained classifier in evaluation, by the names that gencli/metrics/digits.py reads."""
    features = torch.cat([model.encode(batch, None) for batch in batches(digits)])
    spread = features.var(0).mean().sqrt()
    tensors = {}
    layers = [layer for layer in model.body if isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    for count, (layer, norm) in enumerate(zip(layers[:-1:2], layers[1:-1:2], strict=True)):
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        tensors[f"convolution.{count}.weight"] = layer.weight.double() * scale[:, None, None, None]
        tensors[f"convolution.{count}.bias"] = norm.bias.double() - norm.running_mean.double() * scale
    rows = [model.spec.classes.index(digit) for digit in "0123456789"]
    tensors |= {"hidden.weight": layers[-1].weight / spread, "hidden.bias": layers[-1].bias / spread,
                "classes.weight": model.head.weight[rows] * spread, "classes.bias": model.head.bias[rows]}
    tensors = {name: tensor.detach().float() for name, tensor in tensors.items()}
    found = Digits(tensors, "").describe(digits.batch(torch.arange(100)))[0]
    assert torch.allclose(found * spread, features[:100].double(), rtol=1e-3, atol=1e-3), "not the same network"
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("weights")
    arguments = parser.parse_args()
    digits = gencli.data.load("mnist", split="train")
    letters, numbers = characters(Path(os.environ["GENCLI_DATA"]) / "omniglot")
    data = Path(arguments.run).with_suffix(".npz")
    np.savez(data, x=np.concatenate([digits.examples.numpy().reshape(-1, 28, 28), letters]),
             y=np.concatenate([digits.labels.numpy(), 10 + numbers]))
    gencli.train("classifier", f"{data}:all", arguments.run, resume=True, **SETTINGS)
    with torch.no_grad():
        content = to_bytes(folded(gencli.load(arguments.run), digits))
    Path(arguments.weights).write_bytes(content)
    print(f"{arguments.weights}: {len(content)} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
