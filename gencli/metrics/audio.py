"""Log-mel bands: how loud a recording is in each band of pitch, part by part of its time."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gencli.metrics import Inputs
from gencli.metrics.features import Space
from gencli.model import Batch

_BANDS = 40
_PARTS = 8  # equal parts of a recording
_WINDOW = 0.025  # seconds
_FLOOR = 1e-5  # power of what counts as silence


class LogMel(Space):
    """Recordings (B, T) in [-1, 1] -> (B, parts x bands): the mean of log10 mel power in each part.

    Mel bands after Davis & Mermelstein 1980, from windows of 25 ms every 10 ms. A recording is cut at its length, so
    that what follows it does not count.
    """

    name = "log-mel"

    def __init__(self, rate: int):
        self.rate = rate

    @cached_property
    def _spectrogram(self) -> Any:
        from torchaudio.transforms import MelSpectrogram

        window = max(16, round(_WINDOW * self.rate))
        points = 1 << (window - 1).bit_length()
        bands = min(_BANDS, points // 8)  # a band narrower than a point of the spectrum would be empty
        return MelSpectrogram(self.rate, points, window, max(1, window * 2 // 5), n_mels=bands)

    def describe(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        lengths = [batch.x.shape[1]] * len(batch) if batch.lengths is None else batch.lengths.tolist()
        return torch.stack([self._of_one(x[:length]) for x, length in zip(batch.x, lengths, strict=True)]), None

    def _of_one(self, x: Tensor) -> Tensor:
        """(T,) -> (parts x bands,)"""
        points = self._spectrogram.n_fft
        x = torch.nn.functional.pad(x, (0, max(0, points - len(x))))
        bands = (self._spectrogram(x.float()) + _FLOOR).log10()  # (bands, frames)
        return torch.nn.functional.adaptive_avg_pool1d(bands[None], _PARTS).flatten()


def log_mel(inputs: Inputs) -> Space:
    """The space `log-mel`."""
    spec: Any = inputs.examples.spec
    return LogMel(spec.rate)
