"""Classifier: softmax regression, multilayer perceptron or convolutional network on labelled examples.

The discriminative model that generative ones are measured with: its last hidden layer is a feature space, and it
classifies samples. Convolutional network: 3x3 convolutions with batch normalisation (Ioffe & Szegedy 2015,
arXiv:1502.03167), halved until at most 4 x 4 is left, after LeCun et al. 1998 ("Gradient-based learning applied to
document recognition"); pictures are shifted at random by up to `shift` pixels in training. Sound and drawings are read
as pictures: its log-mel spectrogram, and their ink. Series go through the same network along time alone (Wang, Yan &
Oates 2017, "Time series classification from scratch with deep neural networks", arXiv:1611.06455).

`--init RUN` puts the layer of the classes on the encoder of another model, and trains both: what that learnt without
labels helps where these are few (Hinton & Salakhutdinov 2006, Erhan et al. 2010).

It has no density of examples and draws none: it models p(y|x) alone.

Shapes: B batch, F features, K classes.
"""

import itertools
import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import DataError, UsageError
from gencli.ink import InkPicture
from gencli.kinds.audio import AudioSpec
from gencli.kinds.image import ImageSpec
from gencli.kinds.series import SeriesSpec
from gencli.kinds.strokes import StrokesSpec
from gencli.model import Batch, FamilyConfig, Graph, Loss, Model, Score, Spec
from gencli.rng import ExampleStreams, Rng
from gencli.spectrogram import SpectrogramPicture
from gencli.view import View, view_of

_LARGEST = 64  # pixels of the longer side that the convolutions see; larger pictures are averaged down
_SMALLEST = 4  # pixels of the longer side at which halving ends
_HOP, _BANDS = 0.016, 40  # of the spectrogram of sound: seconds from a frame to the next, bands


class ClassifierConfig(FamilyConfig):
    net: Literal["auto", "softmax", "mlp", "cnn"] = Field(
        "auto", description="Network; softmax: one layer; auto: mlp for tables and films, else cnn.")
    width: int | None = Field(None, ge=1, description="Units of a hidden layer (mlp, by default 256) or feature maps "
                                                      "of the first layer (cnn, by default 32).")
    depth: int = Field(2, ge=1, description="Hidden layers (mlp).")
    features: int = Field(128, ge=1, description="Units of the last hidden layer (mlp, cnn).")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the features dropped in training.")
    shift: int = Field(2, ge=0, description="Pictures, cnn: pixels by which each is moved at most in training.")


class Classifier(Model):
    """p(y|x) of labelled pictures, recordings, drawings and rows.

    Raises:
        UsageError: data without classes; net `cnn` for a table.
    """

    Config = ClassifierConfig
    kinds = frozenset({"image", "vector", "audio", "strokes", "video", "series"})
    defaults = {"lr": 4e-3, "batch_size": 128, "epochs": 4, "schedule": "cosine", "warmup": 100, "weight_decay": 0.02}
    least_steps = 500
    block = 250
    config: ClassifierConfig

    def __init__(self, config: ClassifierConfig, spec: Spec):
        super().__init__(config, spec)
        if len(spec.classes) < 2:
            raise UsageError("classifier needs labelled data of two classes or more, and this data has no labels or a "
                             "single class; give a folder for each class, or labels (a table: --label COLUMN)")
        # The network sees pictures, sound and drawings as such, or rows of the real view.
        self.seen: nn.Module = nn.Identity()
        self.standardise: nn.Module = _Centre()
        shape: tuple[int, ...] = spec.shape
        if isinstance(spec, AudioSpec):
            self.seen = picture = SpectrogramPicture(spec.rate, spec.length, _HOP, _BANDS)
            shape = picture.shape
        elif isinstance(spec, StrokesSpec):
            self.seen = drawn = InkPicture(_LARGEST)
            shape = drawn.shape
        elif isinstance(spec, SeriesSpec):
            self.seen, self.standardise = _Steps(view := view_of(spec), spec), nn.Identity()
            shape = (view.size // spec.length, spec.length)
        elif not isinstance(spec, ImageSpec):
            self.seen, self.standardise = _Rows(view := view_of(spec)), nn.Identity()
            shape = (view.size,)
        net = config.net if config.net != "auto" else "cnn" if len(shape) > 1 else "mlp"
        self.smallest_batch = 1 if net == "softmax" else 2  # for batch normalisation
        self.body, width = {"softmax": _flat, "mlp": _mlp, "cnn": _cnn}[net](shape, config)
        self.head = nn.Linear(width, len(spec.classes))
        self.shift = config.shift if net == "cnn" and len(shape) == 3 else 0

    def finetune(self, encoder: nn.Module) -> None:
        """A layer on the codes of an encoder, each brought to unit variance, in place of the own network.

        Raises:
            UsageError: nothing in the encoder learns by gradients.
        """
        x = ExampleStreams(0, torch.arange(2)).uniform(*self.spec.shape)
        parameters = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
        with torch.enable_grad():
            codes = encoder(x).flatten(1).float()
            if not codes.requires_grad:
                raise UsageError("--init: the codes of this run do not depend on weights that learn by gradients; take "
                                 "one whose encoder is a network")
            slopes = torch.autograd.grad(codes.sum(), parameters, allow_unused=True)
        for parameter, slope in zip(parameters, slopes, strict=True):  # what belongs to its decoder stays as it is
            parameter.requires_grad_(slope is not None)
        self.seen, self.standardise, self.smallest_batch = nn.Identity(), nn.Identity(), 2
        self.body = nn.Sequential(encoder, nn.Flatten(), nn.BatchNorm1d(codes.shape[1], affine=False))
        self.head = nn.Linear(codes.shape[1], len(self.spec.classes))

    def seen_as(self, x: Tensor) -> Tensor:
        """x (B, ...) -> what the last layer sees, (B, F)."""
        return self.body(self.standardise(self.seen(x)))

    # --- train

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """Cross-entropy in nats."""
        x, labels = self.seen(batch.x), _labels(batch)
        if self.shift:
            x = _moved(x, rng.integers(2 * self.shift + 1, 2), self.shift)
        features = self.body(self.standardise(x))
        if self.config.dropout:
            mask = rng.uniform(features.shape[1]) >= self.config.dropout
            features = features * mask / (1 - self.config.dropout)
        logits = self.head(features).float()
        return Loss(F.cross_entropy(logits, labels), accuracy=(logits.argmax(1) == labels).float().mean())

    # --- encode, classify, score

    def encode(self, batch: Batch, rng: Rng, *,
               output: Literal["features", "logits", "probabilities"] = "features") -> Tensor:
        """The last hidden layer (B, F), the logits or the probabilities of the classes (B, K)."""
        features = self.seen_as(batch.x)
        if output == "features":
            return features
        logits = self.head(features)
        return logits if output == "logits" else logits.softmax(1)

    def classify(self, batch: Batch) -> Tensor:
        return self.head(self.seen_as(batch.x)).float().log_softmax(1)

    def scores(self, batch: Batch, rng: Rng) -> dict[str, Score]:
        """`class_nll`: -log p(y|x) in nats; nothing for examples without labels."""
        if batch.labels is None:
            return {}
        return {"class_nll": Score(F.nll_loss(self.classify(batch), batch.labels, reduction="none"), "nats")}

    # --- export

    def graph(self) -> Graph:
        """From examples `x` to `features` (B, F) and `log_probabilities` (B, K)."""
        rng = ExampleStreams(0, torch.arange(2))
        return Graph(_Outputs(self), {"x": rng.uniform(*self.spec.shape)}, ["features", "log_probabilities"])


class _Outputs(nn.Module):
    """Features and log-probabilities as a module of its own, for export."""

    def __init__(self, model: Classifier):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.model.seen_as(x)
        return features, self.model.head(features).log_softmax(1)


def _labels(batch: Batch) -> Tensor:
    if batch.labels is None:
        raise DataError("the data has no labels to learn from; give data with labels (a table: --label COLUMN)")
    return batch.labels


def _moved(x: Tensor, by: Tensor, shift: int) -> Tensor:
    """Pictures (B, C, H, W), each shifted by its own offset (B, 2) in 0..2 shift, where `shift` means in place."""
    windows = F.pad(x, [shift] * 4).unfold(2, x.shape[2], 1).unfold(3, x.shape[3], 1)  # (B, C, S, S, H, W)
    return windows[torch.arange(len(x)), :, by[:, 0], by[:, 1]].contiguous(memory_format=torch.channels_last)


# ---------------------------------------------------------------------------------------------------------------------
# Networks: standardised x (B, ...) -> features (B, F), and F


class _Centre(nn.Module):
    """Pictures from [0, 1] to [-1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5) / 0.5


class _Rows(nn.Module):
    """Examples as rows of their view, without noise, (B, V)."""

    def __init__(self, view: View):
        super().__init__()
        self.view = view

    def forward(self, x: Tensor) -> Tensor:
        return self.view(Batch(x), None)[0].float()


class _Steps(_Rows):
    """Series as the numbers of each step, and whether they are missing, (B, V / T, T)."""

    def __init__(self, view: View, spec: SeriesSpec):
        super().__init__(view)
        self.length, self.values = spec.length, spec.size

    def forward(self, x: Tensor) -> Tensor:
        rows = super().forward(x)
        values, missing = rows[:, : self.values], rows[:, self.values :]
        steps = values.unflatten(1, (self.length, -1))
        if missing.shape[1]:
            steps = torch.cat([steps, missing.unflatten(1, (self.length, -1))], 2)
        return steps.transpose(1, 2)


def _flat(shape: tuple[int, ...], config: ClassifierConfig) -> tuple[nn.Module, int]:
    return nn.Flatten(), math.prod(shape)


def _mlp(shape: tuple[int, ...], config: ClassifierConfig) -> tuple[nn.Module, int]:
    sizes = [math.prod(shape), *[config.width or 256] * (config.depth - 1), config.features]
    layers = [layer for a, b in itertools.pairwise(sizes)
              for layer in (nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers), config.features


def _cnn(shape: tuple[int, ...], config: ClassifierConfig) -> tuple[nn.Module, int]:
    """Of pictures (C, H, W), or of series (C, T) along their time."""
    if len(shape) == 1:
        raise ValueError("net cnn fits pictures, sound, drawings and series; this data is a table: use --net mlp")
    convolution, norm, largest, average = (
        (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d) if len(shape) == 3 else
        (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d, nn.AvgPool1d))
    inputs, sides = shape[0], list(shape[1:])
    layers: list[nn.Module] = []
    if (factor := -(-max(sides) // _LARGEST)) > 1:
        layers.append(average(factor, ceil_mode=True))
        sides = [-(-side // factor) for side in sides]
    maps = config.width or 32
    most = 4 * maps
    while True:
        halved = tuple(2 if side > _SMALLEST else 1 for side in sides)
        layers += [convolution(inputs, maps, 3, padding=1, bias=False), largest(halved, ceil_mode=True), norm(maps),
                   nn.ReLU()]
        sides = [-(-side // by) for side, by in zip(sides, halved, strict=True)]
        inputs, maps = maps, min(2 * maps, most)
        if max(sides) <= _SMALLEST:
            break
    last = [nn.Flatten(), nn.Linear(inputs * math.prod(sides), config.features), nn.ReLU()]
    return nn.Sequential(*layers, *last), config.features
