"""The features `digits`: a fixed network for handwritten digits and letters, whose weights are part of gencli.

A small convolutional network that gencli trained (`tests/benchmarks/digits_network.py` is the recipe) on the 60,000
training digits of MNIST and 242 characters of Omniglot (Lake et al. 2015, MIT licence). Unlike a classifier that each
machine trains for itself it is the same everywhere: it is computed in float64 on the processor, so that what is printed
does not depend on the machine, its vector instructions or its threads.

Pictures of more channels are averaged to grey, rounded to 8 bits, and those of other sizes brought to 28 x 28 by
bilinear interpolation that averages where it makes smaller. It expects what MNIST looks like: light on black.
"""

import hashlib
from importlib import resources

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor

from gencli.errors import ModelError
from gencli.metrics import Inputs
from gencli.metrics.features import Space
from gencli.model import Batch

_SHA256 = "06442cef458213dde2d396ddd621243d39762dd295c7e608de4022fd8b4cc47f"
_SIDE = 28


class Digits(Space):
    """Pictures (B, C, H, W) in [0, 1] -> the last hidden layer (B, 64), and log-probabilities of the ten digits."""

    name = "digits"
    dtype = torch.float64
    block = 250
    classes = tuple("0123456789")

    def __init__(self, weights: dict[str, Tensor], digest: str):
        self._weights = {name: tensor.double() for name, tensor in weights.items()}
        self._convolutions = sum(name.startswith("convolution.") for name in weights) // 2
        self.digest = digest
        self.identity = {"network": digest}

    def describe(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        x = seen(batch.x)
        for number in range(self._convolutions):
            weight, bias = self._of(f"convolution.{number}")
            x = F.max_pool2d(F.conv2d(x, weight, padding=1), 2, ceil_mode=True)  # before the bias, as in training
            x = (x + bias[:, None, None]).relu()
        features = F.linear(x.flatten(1), *self._of("hidden")).relu()
        return features, F.linear(features, *self._of("classes")).log_softmax(1)

    def _of(self, layer: str) -> tuple[Tensor, Tensor]:
        return self._weights[f"{layer}.weight"], self._weights[f"{layer}.bias"]


def seen(x: Tensor) -> Tensor:
    """Pictures (B, C, H, W) in [0, 1] -> what the network sees of them, (B, 1, 28, 28) float64 in [-1, 1]."""
    grey = (x.double() * 255).round().clamp(0, 255).mean(1, keepdim=True).round() / 255
    if grey.shape[2:] != (_SIDE, _SIDE):
        grey = F.interpolate(grey, (_SIDE, _SIDE), mode="bilinear", antialias=True)
    return (grey - 0.5) / 0.5


def digits(inputs: Inputs) -> Space:
    """The space `digits`.

    Raises:
        ModelError: the file of the weights is missing, or is not the published one.
    """
    try:
        content = (resources.files("gencli.metrics") / "weights" / "digits.safetensors").read_bytes()
    except OSError as error:
        raise ModelError(f"features digits: {error}; install gencli again, its weights are part of it") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != _SHA256:
        raise ModelError(f"features digits: the weights have the SHA-256 {digest[:16]}..., and those of this version "
                         f"{_SHA256[:16]}...; install gencli again")
    return Digits(load(content), digest)
