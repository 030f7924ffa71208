"""Spectrograms of sound, as networks, metrics and pages read them."""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DECADES = 2.5  # of power that are 1 in a spectrogram


class LogMel(nn.Module):
    """Sound (B, T) in [-1, 1] -> log-mel spectrogram (B, frames, bands): log10 of the power in a band, over `DECADES`.

    Silence is -2, loud speech about 1. Frame f is centred in its `hop` samples and sees `size` samples (by default
    4 hop) through a Hann window. Bands after Davis & Mermelstein 1980, from 0 to half the rate.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, rate: int, hop: int, bands: int, size: int | None = None):
        super().__init__()
        from torchaudio.functional import melscale_fbanks  # takes a second to import

        self.hop, self.size = hop, size or 4 * hop
        self.register_buffer("window", torch.hann_window(self.size), persistent=False)
        with warnings.catch_warnings(action="ignore"):  # about bands so narrow that they contain no frequency
            filters = melscale_fbanks(self.size // 2 + 1, 0.0, rate / 2, bands, rate)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            side = (self.size - self.hop) // 2
            padded = F.pad(x.float(), (side, side + -x.shape[1] % self.hop + self.hop))
            frames = padded.unfold(1, self.size, self.hop)[:, : -(-x.shape[1] // self.hop)]
            return self.bands(frames).to(self.filters.dtype)

    def bands(self, frames: Tensor) -> Tensor:
        """The bands (..., bands) of the samples (..., size) that a frame sees, computed in their own precision."""
        power = torch.fft.rfft(frames * self.window.to(frames)).abs().square()
        return torch.log10((power @ self.filters.to(frames)).clamp(min=1e-5)) / DECADES


class SpectrogramPicture(nn.Module):
    """Recordings (B, T) of any length -> pictures (B, 1, bands, frames) in about [0, 1], low bands first.

    A picture has a frame for each `hop` seconds, and all stand for `length` samples at `rate` Hz: shorter recordings
    end with silence, longer ones are cut.
    """

    def __init__(self, rate: int, length: int, hop: float, bands: int):
        super().__init__()
        self.mel = LogMel(rate, max(1, round(hop * rate)), bands)
        self.length = length
        self.shape = 1, bands, -(-length // self.mel.hop)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, max(0, self.length - x.shape[1])))[:, : self.length]
        return (self.mel(x).transpose(1, 2)[:, None] + 2) / 3
