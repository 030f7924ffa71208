"""What adversarial families share: losses of critic and generator, a critic of patches, an alarm.

| loss           | critic                           | generator        | source                                  |
|----------------|----------------------------------|------------------|-----------------------------------------|
| minimax        | softplus(-real) + softplus(fake) | -softplus(fake)  | Goodfellow et al. 2014                  |
| non-saturating | the same                         | softplus(-fake)  | Goodfellow et al. 2014, section 3       |
| least-squares  | (real - 1)^2 / 2 + fake^2 / 2    | (fake - 1)^2 / 2 | Mao et al. 2016, arXiv:1611.04076       |
| hinge          | relu(1 - real) + relu(1 + fake)  | -fake            | Lim & Ye 2017, arXiv:1705.02894         |
| wgan-gp        | fake - real + w (|grad| - 1)^2   | -fake            | Gulrajani et al. 2017, arXiv:1704.00028 |

`real` and `fake` are the critic's scores (logits) of real examples and of the generator's. The penalty of wgan-gp is
not part of the table `LOSSES`.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

_Scores = Callable[[Tensor], Tensor]
LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], _Scores]] = {  # (critic, generator), one value a score
    "minimax": (lambda real, fake: F.softplus(-real) + F.softplus(fake), lambda fake: -F.softplus(fake)),
    "non-saturating": (lambda real, fake: F.softplus(-real) + F.softplus(fake), lambda fake: F.softplus(-fake)),
    "least-squares": (lambda real, fake: ((real - 1) ** 2 + fake**2) / 2, lambda fake: (fake - 1) ** 2 / 2),
    "hinge": (lambda real, fake: F.relu(1 - real) + F.relu(1 + fake), lambda fake: -fake),
    "wgan-gp": (lambda real, fake: fake - real, lambda fake: -fake),
}


def latest(history: list[dict[str, float]], name: str, count: int) -> list[float]:
    """The newest `count` values of a logged number, oldest first; empty if there are not that many."""
    values = [record[name] for record in history if name in record]
    return values[-count:] if len(values) >= count else []


def spread(x: Tensor) -> Tensor:
    """The root mean square distance of two of B examples (B, ...), from the identity E|x - y|^2 = 2 Var(x)."""
    return (2 * x.detach().float().var(0).sum()).sqrt()


def collapsed(history: list[dict[str, float]], advice: str) -> str | None:
    """A sentence if generated examples have become alike, by the part `diversity` of the critic's loss."""
    diversity = latest(history, "critic/diversity", 3)
    if diversity and max(diversity) < 0.1:
        return (f"the generator has collapsed: its examples differ by {diversity[-1]:.1%} as much as real ones; "
                f"try {advice}")
    return None


def certain(history: list[dict[str, float]], advice: str) -> str | None:
    """A sentence if the critic, whose loss cannot be negative, has long been right about every example."""
    loss = latest(history, "critic/loss", 10)
    if loss and max(loss) < 0.01:
        return (f"the critic wins: its loss has been below {max(loss):.1g} and the generator learns nothing; "
                f"try {advice}")
    return None


# ---------------------------------------------------------------------------------------------------------------------
# The critic of patches


class PatchCritic(nn.Module):
    """PatchGAN (Isola et al. 2017, arXiv:1611.07004, appendix 6.1.2): a score for each of the overlapping patches.

    (B, C, H, W) -> (B, h, w) float32. A patch has 70 x 70 pixels where 3 layers halve the picture, 34 with 2, 16
    with 1. Normalised over each map of each picture by itself (Ulyanov et al. 2016, arXiv:1607.08022), so that no score
    depends on other pictures of the batch, real or generated.
    """

    def __init__(self, channels: int, width: int, layers: int):
        super().__init__()
        maps = [width * min(2**level, 8) for level in range(layers + 1)]
        stages = [nn.Sequential(nn.Conv2d(channels, maps[0], 4, 2, 1), nn.LeakyReLU(0.2))]
        for level in range(layers):
            stride = 2 if level < layers - 1 else 1
            stages.append(nn.Sequential(nn.Conv2d(maps[level], maps[level + 1], 4, stride, 1, bias=False),
                                        nn.InstanceNorm2d(maps[level + 1], affine=True), nn.LeakyReLU(0.2)))
        self.stages = nn.ModuleList(stages)
        self.score = nn.Conv2d(maps[-1], 1, 4, 1, 1)

    @staticmethod
    def layers_for(side: int) -> int:
        """The layers, at most the 3 of the paper, whose patches are about as large as `side` pixels or smaller."""
        return 3 if side >= 64 else 2 if side >= 32 else 1

    @staticmethod
    def smallest(layers: int) -> int:
        """The pixels of the shorter side that so many layers need."""
        return 3 * 2**layers

    def features(self, x: Tensor) -> list[Tensor]:
        """The maps of each layer, (B, ., ., .), the finest first."""
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.features(x)[-1]).squeeze(1).float()
