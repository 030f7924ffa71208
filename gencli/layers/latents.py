"""Latent codes as symbols: numbers with the prior N(0, 1), each cut into bins of equal mass, for the codec.

A bin stands for its median. Given an example, a number has the mass that its Gaussian N(mean, deviation^2) has in each
bin, which never diverges more from the prior than the Gaussian itself does (data processing inequality). Bins should be
narrow beside the deviations: in the middle they are 1/1600 wide, at 3 from it 1/70.

Shapes: B batch, Z numbers of a code.
"""

import torch
from torch import Tensor

from gencli.model import Visit

_DIGIT = 64  # a bin is two digits of so many values: a table of all bins would be long
_BINS = _DIGIT**2
_LEAST = 1e-30  # of the mass of a bin, which has to be more than nothing


def visit_prior(count: int, size: int, visit: Visit) -> Tensor:
    """Codes (B, Z) of symbols that are visited by N(0, 1): all bins are as likely."""
    even = torch.ones(count, size, _DIGIT, dtype=torch.float64)
    return _medians(_DIGIT * visit(even, None) + visit(even, None))


def visit_posterior(mean: Tensor, deviation: Tensor, visit: Visit) -> Tensor:
    """Codes (B, Z) of symbols that are visited by N(mean, deviation^2), (B, Z) both."""
    mean, deviation = mean.double()[..., None], deviation.double()[..., None]
    upper = visit(_masses(mean, deviation, _edges(torch.arange(0, _BINS + 1, _DIGIT))), None)
    lower = visit(_masses(mean, deviation, _edges(_DIGIT * upper[..., None] + torch.arange(_DIGIT + 1))), None)
    return _medians(_DIGIT * upper + lower)


def _edges(number: Tensor) -> Tensor:
    """Where the bins of these numbers begin."""
    return torch.special.ndtri(number.double() / _BINS)


def _medians(bin: Tensor) -> Tensor:
    return torch.special.ndtri((bin.double() + 0.5) / _BINS).float()


def _masses(mean: Tensor, deviation: Tensor, edges: Tensor) -> Tensor:
    """Those between neighbouring edges, from the nearer tail, where differences do not cancel."""
    z = (edges - mean) / deviation
    below, above = torch.special.ndtr(z), torch.special.ndtr(-z)
    return torch.where(z[..., :-1] > 0, above[..., :-1] - above[..., 1:], below[..., 1:] - below[..., :-1]) + _LEAST
