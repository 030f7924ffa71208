"""What adversarial families share: losses, what keeps a critic gentle, alarms, a critic of patches.

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
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from gencli.rng import Rng

C = TypeVar("C", bound=nn.Module)
_Scores = Callable[[Tensor], Tensor]
LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], _Scores]] = {  # (critic, generator), one value a score
    "minimax": (lambda real, fake: F.softplus(-real) + F.softplus(fake), lambda fake: -F.softplus(fake)),
    "non-saturating": (lambda real, fake: F.softplus(-real) + F.softplus(fake), lambda fake: F.softplus(-fake)),
    "least-squares": (lambda real, fake: ((real - 1) ** 2 + fake**2) / 2, lambda fake: (fake - 1) ** 2 / 2),
    "hinge": (lambda real, fake: F.relu(1 - real) + F.relu(1 + fake), lambda fake: -fake),
    "wgan-gp": (lambda real, fake: fake - real, lambda fake: -fake),
}

# Of the scores of a spectrally normalised critic. Its few layers are too flat else to tell more than chance; the critic
# of Miyato et al. 2018 has seven, whose kernels overlap more.
SCALE = 6.0


# ---------------------------------------------------------------------------------------------------------------------
# What keeps a critic gentle


def spectrally_normalised(critic: C) -> C:
    """The critic, each of whose weights is divided by its largest singular value from now on.

    Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks", arXiv:1802.05957: a kernel counts
    as the matrix of its output maps and all else, and a forward pass in training mode is one step of power iteration.
    """
    for layer in list(critic.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d | nn.Embedding):
            parametrizations.spectral_norm(layer)
    return critic


def steepness(scores: Tensor, x: Tensor) -> Tensor:
    """Squared norms of the gradients of scores (B, ...), each by its own example of x (B, ...): (B,), differentiable.

    At real examples half their mean is the penalty R1 of Mescheder et al. 2018, "Which Training Methods for GANs do
    actually Converge?", arXiv:1801.04406.
    """
    gradient, = torch.autograd.grad(scores.sum(), x, create_graph=True)
    return gradient.square().flatten(1).sum(1)


def augmented(x: Tensor, probability: float, rng: Rng) -> Tensor:
    """Pictures (B, C, H, W) in [-1, 1], real or generated, each changed at random by operations that have a gradient.

    DiffAugment (Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training", arXiv:2006.10738): in
    turn its colours (brightness, saturation, contrast), its place (by an eighth of its sides, 0 where nothing was) and
    a hole (half as high and wide, 0), each with this probability; 1 as in the paper.
    """
    height, width = x.shape[2:]
    done = (rng.uniform(3) < probability)[..., None, None, None]
    brightness, saturation, contrast = rng.uniform(3)[..., None, None, None].unbind(1)
    grey = x.mean(1, keepdim=True)
    coloured = grey + 2 * saturation * (x - grey)
    mean = coloured.mean((1, 2, 3), keepdim=True)
    coloured = mean + (0.5 + contrast) * (coloured - mean) + brightness - 0.5
    x = torch.where(done[:, 0], coloured, x)

    def origins(side: int, lowest: int, highest: int) -> Tensor:
        """(B, side): the coordinates of a side, counted from a place of its own for each picture."""
        return torch.arange(side, device=x.device) - (lowest + rng.integers(highest - lowest + 1))[:, None]

    down, right = round(height / 8), round(width / 8)
    rows, columns = origins(height, -down, down), origins(width, -right, right)
    there = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None]
    example = torch.arange(len(x), device=x.device)[:, None, None]
    moved = x.permute(0, 2, 3, 1)[example, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None]]
    x = torch.where(done[:, 1], moved.permute(0, 3, 1, 2) * there, x)

    tall, wide = round(height / 2), round(width / 2)  # as in the paper, a hole may lie half outside
    rows = origins(height, -(tall // 2), height - 1 - tall // 2 + tall % 2)
    columns = origins(width, -(wide // 2), width - 1 - wide // 2 + wide % 2)
    hole = ((rows >= 0) & (rows < tall))[:, None, :, None] & ((columns >= 0) & (columns < wide))[:, None, None]
    return torch.where(done[:, 2] & hole, 0.0, x)


# ---------------------------------------------------------------------------------------------------------------------
# Alarms


def latest(history: list[dict[str, float]], name: str, count: int) -> list[float]:
    """The newest `count` values of a logged number, oldest first; empty if there are not that many."""
    values = [record[name] for record in history if name in record]
    return values[-count:] if len(values) >= count else []


def spread(x: Tensor) -> Tensor:
    """The root mean square distance of two of B examples (B, ...), from the identity E|x - y|^2 = 2 Var(x)."""
    return (2 * x.detach().float().var(0).sum()).sqrt()


def coverage(real: Tensor, fake: Tensor, cells: int = 10) -> Tensor:
    """How far the places of generated examples are those of B real ones, 0 to 1: what their histograms have in common.

    The histogram is over cells around k-means of the real examples, as of Richardson & Weiss 2018, "On GANs and GMMs",
    arXiv:1805.12462: an example counts for the nearest one however poor it is, so that a low number tells that some
    places are empty, not that examples are bad. By chance alone it is about 1 - sqrt(cells / (pi B)). Both (B, ...).
    """
    real, fake = (x.detach().float().flatten(1) for x in (real, fake))
    centres = real[: max(1, min(cells, len(real) // 4))]
    for _ in range(5):
        nearest = torch.cdist(real, centres).argmin(1)
        count = nearest.bincount(minlength=len(centres)).clamp(min=1)[:, None]
        centres = torch.zeros_like(centres).index_add(0, nearest, real) / count
    histograms = [torch.cdist(x, centres).argmin(1).bincount(minlength=len(centres)) / len(x) for x in (real, fake)]
    return torch.minimum(*histograms).sum()


def collapsed(history: list[dict[str, float]], advice: str) -> str | None:
    """A sentence if generated examples have become alike, by the part `diversity` of the critic's loss."""
    diversity = latest(history, "critic/diversity", 3)
    if diversity and max(diversity) < 0.1:
        return (f"the generator has collapsed: its examples differ by {diversity[-1]:.1%} as much as real ones; "
                f"try {advice}")
    return None


def dropped(history: list[dict[str, float]], advice: str) -> str | None:
    """A sentence if the generator has long left modes out, by the part `coverage` of the critic's loss."""
    common = latest(history, "critic/coverage", 10)
    if common and max(common) < 0.5:
        return (f"modes are dropped: only {common[-1]:.0%} of generated examples are where real ones are as frequent; "
                f"try {advice}")
    return None


def oscillating(history: list[dict[str, float]], advice: str) -> str | None:
    """A sentence if critic and generator have long chased each other without coming closer (Mescheder et al. 2018).

    The gap of the scores of real and generated examples then swings, by as much as half of it or more, and one
    frequency of at least three cycles has most of its variance: more than white noise has once in a million (Fisher
    1929, "Tests of Significance in Harmonic Analysis"). Swings within a line of the log do not show.
    """
    count = 40
    real, fake = (torch.tensor(latest(history, f"critic/{name}", count)) for name in ("real", "fake"))
    if not len(real):
        return None
    gap = real - fake
    time = torch.linspace(-1, 1, count)
    swing = gap - gap.mean() - time * (time @ gap) / (time @ time)
    power = torch.fft.rfft(swing).abs().square()[1:-1]
    strongest = int(power.argmax())
    share, amplitude = power[strongest] / power.sum(), 2 * power[strongest].sqrt() / count
    by_chance = len(power) * (1 - share) ** (len(power) - 1)
    if strongest >= 2 and by_chance < 1e-6 and amplitude > gap.mean().abs() / 2:
        return (f"critic and generator oscillate: the gap of their scores swings by {amplitude:.2g} around "
                f"{gap.mean():.2g} every {count / (strongest + 1):.0f} lines of the log; try {advice}")
    return None


def certain(history: list[dict[str, float]], advice: str) -> str | None:
    """A sentence if the critic, whose loss cannot be negative, has long been right about every example."""
    loss = latest(history, "critic/loss", 10)
    if loss and max(loss) < 0.01:
        return (f"the critic wins: its loss has been below {max(loss):.1g} and the generator learns nothing; "
                f"try {advice}")
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Critics of wholes and of patches


class ProjectionCritic(nn.Module):
    """Features, then a score: (B, *example), (B,) -> (B,) float32.

    With classes, the score gains the product of the features with a vector of the class (Miyato & Koyama 2018, "cGANs
    with Projection Discriminator", arXiv:1802.05637). It is multiplied by `scale`.

    Args:
        features: any layers that make (B, size) of examples.
    """

    def __init__(self, features: nn.Module, size: int, classes: int, scale: float):
        super().__init__()
        self.scale = scale
        self.features = features
        self.score = nn.Linear(size, 1)
        self.classes = nn.Embedding(classes, size) if classes else None

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        features = self.features(x)
        score = self.score(features).squeeze(1)
        if self.classes is not None:
            assert labels is not None
            of_each = F.linear(features, self.classes.weight)  # (B, classes), far fewer numbers than vectors of classes
            score = score + of_each.gather(1, labels[:, None]).squeeze(1)
        return self.scale * score.float()


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
