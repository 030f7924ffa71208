"""The features `scattering`: of any pictures, without a network that would have to be trained or fetched.

Scattering coefficients (Bruna & Mallat 2013, "Invariant scattering convolution networks", arXiv:1203.1513): the moduli
of wavelet transforms, of one order and of two, averaged over the picture. They say how much of which width and
direction there is, and how that is modulated. *Departure*: they are averaged over the whole picture, not over windows,
so that they say nothing of where in it things are, and there are fewer of them than examples.

The Morlet wavelets are closed forms and all is computed in float64 on the processor, so that what is printed does not
depend on the machine, its vector instructions or its threads. Pictures of all sizes and channels are taken as they are,
rounded to 8 bits; features have the unit of a grey level of 255, and those of another size are other features.
"""

import hashlib
import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from gencli.metrics import Inputs
from gencli.metrics.features import Space
from gencli.model import Batch

_SCALES, _DIRECTIONS = 2, 4
_WIDTH, _FREQUENCY = 0.8, 3 * math.pi / 4  # of the finest wavelet: pixels, radians a pixel
_BORDER = 2**_SCALES  # pixels by which a picture is continued on all sides
_ALIASES = 2  # periods of the spectrum to each side that are added up
_AT_ONCE = 2**19  # numbers of pictures transformed together
# There is no file of weights whose digest could be given: that of the definition stands for it.
_DEFINITION = f"Morlet {_SCALES} {_DIRECTIONS} {_WIDTH} {_FREQUENCY} {_BORDER} {_ALIASES}; replicated; mean of moduli"


class Scattering(Space):
    """Pictures (B, C, H, W) in [0, 1] -> (B, 25 C): of each channel the mean, 8 moduli, 16 moduli of moduli."""

    name = "scattering"
    dtype = torch.float64
    digest = hashlib.sha256(_DEFINITION.encode()).hexdigest()
    identity = {"network": digest}

    def describe(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        parts = batch.x.split(max(1, _AT_ONCE // batch.x[0].numel()))
        return torch.cat([coefficients((part.double() * 255).round().clamp(0, 255)) for part in parts]), None


def coefficients(x: Tensor) -> Tensor:
    """Scattering coefficients of pictures (B, C, H, W) float64, averaged over each picture: (B, 25 C)."""
    wide = F.pad(x, [_BORDER] * 4, mode="replicate")
    found = [x.mean((2, 3))]
    spectrum = torch.fft.fft2(wide)
    filters = wavelets(*wide.shape[2:])
    for scale, of_scale in enumerate(filters):
        for wavelet in of_scale:
            modulus = torch.fft.ifft2(spectrum * wavelet).abs()
            found.append(_mean(modulus))
            if coarser := filters[scale + 1 :]:
                again = torch.fft.fft2(modulus)
                found += [_mean(torch.fft.ifft2(again * other).abs()) for other in torch.cat(coarser)]
    return torch.cat(found, 1)


def _mean(wide: Tensor) -> Tensor:
    """The mean over the picture itself, without its border: (B, C, H, W) -> (B, C)."""
    return wide[..., _BORDER:-_BORDER, _BORDER:-_BORDER].mean((2, 3))


@lru_cache(maxsize=4)
def wavelets(height: int, width: int) -> list[Tensor]:
    """The spectra of Morlet wavelets on a periodic grid: of each scale those of all directions, (directions, H, W).

    A Gaussian around the wave vector, less one around 0, so that a constant picture has no response.
    """
    period = 2 * math.pi
    y, x = (torch.fft.fftfreq(side, dtype=torch.float64) * period for side in (height, width))

    def gaussian(frequency: float, angle: float, spread: float) -> Tensor:
        total = torch.zeros(height, width, dtype=torch.float64)
        for down in range(-_ALIASES, _ALIASES + 1):
            for right in range(-_ALIASES, _ALIASES + 1):
                fy, fx = (y + period * down)[:, None], (x + period * right)[None]
                along = math.cos(angle) * fx + math.sin(angle) * fy - frequency
                across = (math.cos(angle) * fy - math.sin(angle) * fx) * _DIRECTIONS / 4
                total += torch.exp(-(spread**2) / 2 * (along.square() + across.square()))
        return total

    filters = []
    for scale in range(_SCALES):
        of_scale = []
        for direction in range(_DIRECTIONS):
            angle, spread = math.pi * direction / _DIRECTIONS, _WIDTH * 2**scale
            wave, constant = gaussian(_FREQUENCY / 2**scale, angle, spread), gaussian(0.0, angle, spread)
            of_scale.append(wave - constant * (wave[0, 0] / constant[0, 0]))
        filters.append(torch.stack(of_scale))
    return filters


def scattering(inputs: Inputs) -> Space:
    """The space `scattering`."""
    return Scattering()
