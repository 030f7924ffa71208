"""Log-mel bands: how loud a recording is in each band of pitch, part by part of its time."""

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gencli.metrics import Inputs
from gencli.metrics.features import Space
from gencli.model import Batch
from gencli.spectrogram import DECADES
from gencli.spectrogram import LogMel as LogMelSpectrogram

_BANDS = 40
_PARTS = 8  # equal parts of a recording
_WINDOW = 0.025  # seconds


class LogMel(Space):
    """Recordings (B, T) in [-1, 1] -> (B, parts x bands): the mean of the log-mel spectrogram in each part.

    In decades of power, from windows of 25 ms every 10 ms. A recording is cut at its length, so that padding does not
    count.
    """

    name = "log-mel"

    def __init__(self, rate: int):
        self.rate = rate

    @cached_property
    def _spectrogram(self) -> LogMelSpectrogram:
        size = max(16, round(_WINDOW * self.rate))
        bands = min(_BANDS, size // 8)  # a band narrower than a point of the spectrum would be empty
        return LogMelSpectrogram(self.rate, max(1, size * 2 // 5), bands, size)

    def describe(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return torch.stack([self._of_one(x) for x in batch.pieces()]), None

    def _of_one(self, x: Tensor) -> Tensor:
        """(T,) -> (parts x bands,)"""
        bands = self._spectrogram(F.pad(x, (0, max(0, 1 - len(x))))[None]).transpose(1, 2)  # (1, bands, frames)
        return DECADES * F.adaptive_avg_pool1d(bands, _PARTS).flatten()


def log_mel(inputs: Inputs) -> Space:
    """The space `log-mel`."""
    spec: Any = inputs.examples.spec
    return LogMel(spec.rate)
