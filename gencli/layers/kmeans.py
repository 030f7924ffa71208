"""K-means: spread-out starting centres (Arthur & Vassilvitskii 2007, "k-means++") and Lloyd iterations (1982)."""

import torch
from torch import Tensor


def plus_plus(x: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Centres drawn from x (N, D), each far from those before it: (k, D), fewer if x has fewer distinct examples."""
    centres = x[torch.randint(len(x), (1,), generator=generator)]
    distance = (x - centres[0]).square().sum(1)  # squared, to the nearest centre
    while len(centres) < k and distance.any():
        centres = torch.cat([centres, x[torch.multinomial(distance, 1, generator=generator)]])
        distance = torch.minimum(distance, (x - centres[-1]).square().sum(1))
    return centres


def lloyd(x: Tensor, centres: Tensor, iterations: int = 20) -> Tensor:
    """Centres (k, D) moved to the mean of those of x (N, D) that are nearest to them; a centre without any stays."""
    for _ in range(iterations):
        nearest = torch.cdist(x, centres).argmin(1)
        counts = torch.bincount(nearest, minlength=len(centres))[:, None].to(x.dtype)
        sums = torch.zeros_like(centres).index_add_(0, nearest, x)
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return centres
