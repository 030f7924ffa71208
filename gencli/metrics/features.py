"""Feature spaces, in which samples are compared with data: examples (B, ...) -> features (B, D).

- `pixels`: the numbers of a picture.
- `columns`: the columns of a table, standardised by the training data.
- `classifier`: the last hidden layer of a small network trained on the labelled training data of the model. It is kept
  in the cache folder, under a name that says data and settings, so that it is trained once.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from gencli.data.dataset import Dataset, Shuffled
from gencli.errors import DataError, ResourceError, UsageError, did_you_mean
from gencli.metrics import Progress, silent
from gencli.model import AnySpec, Batch, ImageSpec, VectorSpec
from gencli.publish import publish
from gencli.rng import derive_seed


class Pixels(nn.Module):
    """(B, C, H, W) -> (B, C H W) in [0, 1]."""

    name: ClassVar[str] = "pixels"

    def features(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Columns(nn.Module):
    """(B, D) in the units of the data -> (B, D) with mean 0 and deviation 1 in the training data."""

    name: ClassVar[str] = "columns"
    mean: Tensor
    scale: Tensor

    def __init__(self, spec: VectorSpec):
        super().__init__()
        self.register_buffer("mean", torch.tensor(spec.mean))
        self.register_buffer("scale", torch.tensor(spec.scale))

    def features(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.scale


class Classifier(nn.Module):
    """A convolutional network with 128 features before its last layer; pictures of any size, halved to at most 32."""

    name: ClassVar[str] = "classifier"

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(channels, 32, nn.MaxPool2d(2)), *_convolution(32, 64, nn.MaxPool2d(2)),
            *_convolution(64, 64, nn.AdaptiveAvgPool2d(4)), nn.Flatten(), nn.Linear(64 * 16, 128), nn.ReLU())
        self.head = nn.Linear(128, classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 128)."""
        side = max(x.shape[2:])
        if side > 32:
            x = F.avg_pool2d(x, -(-side // 32), ceil_mode=True)
        return self.body(x * 2 - 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K) logits."""
        return self.head(self.features(x))


def _convolution(channels: int, maps: int, pool: nn.Module) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, maps, 3, padding=1, bias=False), pool, nn.BatchNorm2d(maps), nn.ReLU()


Space = Pixels | Columns | Classifier


def feature_space(name: str, spec: AnySpec, training: Dataset | None = None, progress: Progress = silent) -> Space:
    """The feature space of that name for examples of `spec`.

    Args:
        training: the labelled training data that a classifier learns from, where none is in the cache.
        progress: called with the steps of that training and their number.

    Raises:
        UsageError: no such space, or it does not fit the examples.
        DataError: a classifier is to be trained, and the data has no labels.
    """
    spaces: tuple[str, ...] = ()
    if isinstance(spec, ImageSpec):
        spaces = ("pixels", "classifier")
    elif isinstance(spec, VectorSpec):
        spaces = ("columns",)
    if name not in spaces:
        raise UsageError(f"{spec.kind}s have no features called {name!r}{did_you_mean(name, spaces)}")
    if name == "classifier":
        return classifier(training, progress)
    return Columns(spec) if isinstance(spec, VectorSpec) else Pixels()


def default_space(spec: AnySpec, training: Dataset | None) -> str:
    """The space to compare in where the user names none: the classifier where there are labels to train it on."""
    if isinstance(spec, VectorSpec):
        return "columns"
    return "classifier" if training is not None and training.labels is not None else "pixels"


def compute(space: Space, batches: Iterable[Batch]) -> Tensor:
    """Features of all examples, (N, D) float32."""
    with torch.no_grad():
        parts = [space.features(batch.x.float().cpu()) for batch in batches]
    return torch.cat(parts) if parts else torch.empty(0, 0)


# ---------------------------------------------------------------------------------------------------------------------
# The classifier: trained once, then read from the cache

@dataclass(frozen=True)
class _Settings:
    version: int = 1  # of the network
    batch_size: int = 128
    epochs: int = 3
    least_steps: int = 500
    lr: float = 0.01  # at its highest
    shift: int = 2  # pixels by which pictures are moved at most
    seed: int = 0


_SETTINGS = _Settings()


def classifier(training: Dataset | None, progress: Progress = silent) -> Classifier:
    """The classifier of the data, from the cache or newly trained."""
    if training is None or training.labels is None or not isinstance(training.spec, ImageSpec):
        raise DataError(f"{training.name if training else 'the model'}: no labels to train a classifier on; "
                        f"choose --features pixels")
    identity = json.dumps([asdict(_SETTINGS), training.spec.model_dump(mode="json"), training.fingerprint,
                           training.split, len(training), training.protocol], sort_keys=True, default=str)
    path = cache_folder() / f"classifier-{hashlib.sha256(identity.encode()).hexdigest()[:32]}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(_SETTINGS.seed, "classifier"))
        network = Classifier(training.spec.channels, len(training.spec.classes))
    try:
        network.load_state_dict(load(path.read_bytes()))
    except (OSError, SafetensorError, RuntimeError):  # not there, damaged, or of another shape
        network = _trained(network, training, progress)
        with suppress(ResourceError), publish(path) as file:  # a cache that cannot be written costs time, no more
            file.write(save(network.state_dict()))
    return network.eval()


@torch.enable_grad()
def _trained(network: Classifier, training: Dataset, progress: Progress) -> Classifier:
    """Adam with one cycle of the learning rate (Smith & Topin 2017, arXiv:1708.07120), pictures moved by up to 2."""
    steps = max(_SETTINGS.least_steps, _SETTINGS.epochs * len(training) // _SETTINGS.batch_size)
    network = network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _SETTINGS.lr, total_steps=steps)
    order = Shuffled(training, min(_SETTINGS.batch_size, len(training)), _SETTINGS.seed, torch.device("cpu"))
    for step in range(steps):
        batch, rng = order[step]
        assert batch.labels is not None
        x = _moved(batch.x, rng.integers(2 * _SETTINGS.shift + 1, 2))
        loss = F.cross_entropy(network(x), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(step + 1, steps)
    return network.to(memory_format=torch.contiguous_format)  # as it will come from the cache


def _moved(x: Tensor, by: Tensor) -> Tensor:
    """Pictures (B, C, H, W), each moved by its own offset (B, 2) in 0..2 shift, where shift is no move."""
    windows = F.pad(x, [_SETTINGS.shift] * 4).unfold(2, x.shape[2], 1).unfold(3, x.shape[3], 1)  # (B, C, 5, 5, H, W)
    return windows[torch.arange(len(x)), :, by[:, 0], by[:, 1]].contiguous(memory_format=torch.channels_last)


def cache_folder() -> Path:
    """Where files are kept that can be made again: GENCLI_CACHE, or the platform's folder for them."""
    if chosen := os.environ.get("GENCLI_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "gencli" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "gencli"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gencli"
