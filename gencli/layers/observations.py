"""p(x|code): what the outputs of a decoder mean, for each number of an example so many of them, (..., D) each.

Bernoulli for binary data, the discretised logistic of Salimans et al. 2017 (arXiv:1701.05517, one component) for 8-bit
data, Gaussian with a learned deviation for real-valued data (Rybkin et al. 2021, arXiv:2006.13202).
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gencli.kinds.image import ImageSpec
from gencli.kinds.video import VideoSpec
from gencli.layers.distributions import Bernoulli, DiscretisedLogistic, Gaussian
from gencli.model import Batch, FamilyConfig, Model, Spec, Visit
from gencli.rng import Rng
from gencli.view import View, view_of

PIXELS = (ImageSpec, VideoSpec)  # kinds whose numbers are grey values, of which the likelihood knows the levels


class BernoulliObservation(nn.Module):
    """Independent numbers in {0, 1}; one logit each."""

    distribution: Bernoulli | DiscretisedLogistic = Bernoulli()
    levels = 2

    @property
    def outputs(self) -> int:
        return self.distribution.parameters

    def standardise(self, x: Tensor) -> Tensor:
        return 2 * x - 1

    def parameters_of(self, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The decoder's outputs -> parameters of the distribution."""
        return outputs

    def log_prob(self, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        return self.distribution.log_prob(self.parameters_of(outputs), x).sum(-1)

    def mean(self, outputs: Sequence[Tensor]) -> Tensor:
        return self.distribution.mean(self.parameters_of(outputs))

    def draw(self, outputs: Sequence[Tensor], rng: Rng) -> Tensor:
        return self.distribution.from_uniform(self.parameters_of(outputs), rng.uniform(outputs[0].shape[1]))

    def symbols(self, x: Tensor) -> Tensor:
        """Numbers (B, ...) as what `visited` asks for, (B, S) int64: the first digits of all D, then the second."""
        digits = self.distribution.digits((x.flatten(1) * (self.levels - 1)).round().long())
        return digits.movedim(-1, 1).flatten(1)

    def visited(self, outputs: Sequence[Tensor], visit: Visit) -> Tensor:
        """Numbers (B, D) of the symbols that are visited, each by its distribution."""
        level = self.distribution.visited(self.parameters_of(outputs), lambda chances: visit(chances, None))
        return level.float() / (self.levels - 1)


class LogisticObservation(BernoulliObservation):
    """Independent logistic distributions cut into `levels` bins of [0, 1]; a location and a log-scale each."""

    def __init__(self, levels: int):
        super().__init__()
        self.levels = levels
        # The scale may shrink to a fraction of a bin, no further.
        self.distribution = DiscretisedLogistic(levels, 0.0, 1.0, narrowest=math.log(1 / (levels - 1)) - 3)

    def parameters_of(self, outputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Location 0.5 and scale 0.1 at the start."""
        location, log_scale = outputs
        return 0.5 + 0.5 * location, log_scale - 2.3


class GaussianObservation(nn.Module):
    """Gaussian numbers, of about unit scale when centred and scaled, with one learned deviation for each."""

    outputs = 1
    distribution = Gaussian(narrowest=-6)

    def __init__(self, size: int, centre: float, scale: float):
        super().__init__()
        self.centre, self.scale = centre, scale
        self.log_deviation = nn.Parameter(torch.zeros(size))  # in scaled units

    def standardise(self, x: Tensor) -> Tensor:
        return (x - self.centre) / self.scale

    def log_prob(self, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        log_density = self.distribution.log_prob((outputs[0], self.log_deviation), self.standardise(x))
        return (log_density - math.log(self.scale)).sum(-1)

    def mean(self, outputs: Sequence[Tensor]) -> Tensor:
        return self.centre + self.scale * outputs[0]

    def draw(self, outputs: Sequence[Tensor], rng: Rng) -> Tensor:
        noise = rng.normal(outputs[0].shape[1])
        return self.centre + self.scale * self.distribution.from_noise((outputs[0], self.log_deviation), noise)


_NAMES = {cls.__name__.removesuffix("Observation").lower(): cls
          for cls in (BernoulliObservation, LogisticObservation, GaussianObservation)}


def observation(name: str, spec: Spec, size: int) -> BernoulliObservation | GaussianObservation:
    """How the numbers of examples are distributed: bernoulli, logistic or gaussian; auto: by the levels of the data.

    Args:
        size: numbers of an example, or of a row of its view.

    Raises:
        ValueError: the numbers have no such distribution.
    """
    usual: type[nn.Module] = GaussianObservation
    if isinstance(spec, PIXELS):
        usual = {2: BernoulliObservation, None: GaussianObservation}.get(spec.levels, LogisticObservation)
    chosen = _NAMES.get(name, usual)
    if chosen is GaussianObservation:
        return GaussianObservation(size, 0.5, 0.5) if isinstance(spec, PIXELS) else GaussianObservation(size, 0.0, 1.0)
    if not isinstance(spec, PIXELS):
        raise ValueError(f"likelihood {name} fits pictures; this data is a table: use --likelihood gaussian")
    return LogisticObservation(spec.levels or 256) if chosen is LogisticObservation else BernoulliObservation()


class ObservedConfig(FamilyConfig):
    likelihood: Literal["auto", "bernoulli", "logistic", "gaussian"] = Field(
        "auto", description="p(x|z); auto: by the levels of the data: bernoulli for 2, discretised logistic for more, "
                            "gaussian for real values.")


class ObservedModel(Model):
    """A model whose latents z decode to p(x|z) by `likelihood`.

    Examples that are no pictures or films are seen through the real view of their kind. D: numbers of an example, or of
    a row of its view; P parameters of the distribution of each.
    """

    view: View | None
    observation: BernoulliObservation | GaussianObservation
    decoder: nn.Module  # z (B, ...) -> (B, P, D)

    def _observe(self, likelihood: str) -> int:
        """Settle how examples are seen and distributed; D."""
        self.view = None if isinstance(self.spec, PIXELS) else view_of(self.spec)
        size = self.view.size if self.view else self.spec.size
        self.observation = observation(likelihood, self.spec, size)
        self.density = self.view.density if self.view else isinstance(self.observation, GaussianObservation)
        return size

    def _numbers(self, batch: Batch, rng: Rng | None) -> tuple[Tensor, Tensor]:
        """What the networks see, (B, ...), and what it adds to log p(x), (B,); `rng` None: no noise."""
        if self.view is None:
            return batch.x, batch.x.new_zeros(batch.x.shape[0])
        rows, weight = self.view(batch, rng)
        return rows.float(), weight.float()

    def _examples(self, z: Tensor, rng: Rng | None) -> Batch:
        """Latents (B, ...) -> the mean of p(x|z), or with `rng` a draw from it."""
        parameters = self.decoder(z).float().unbind(1)
        x = self.observation.mean(parameters) if rng is None else self.observation.draw(parameters, rng)
        return self.view.inverse(x) if self.view else Batch(x.unflatten(1, self.spec.shape))

    def score_protocol(self) -> dict[str, Any]:
        return self.view.protocol() if self.view else super().score_protocol()
