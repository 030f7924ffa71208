"""Generative stochastic network: Bengio, Thibodeau-Laufer, Alain & Yosinski 2014, arXiv:1306.1091.

A Markov chain is trained instead of a distribution: from an example x it goes through noise to hidden units h, and a
network learns p(x|h), which undoes the noise. If it undoes it exactly, the chain x -> h -> x -> ... draws from the
distribution of the data. The denoising autoencoder is the chain of one layer of hidden units.

A step of the chain draws x from p(x|h), corrupts it, then computes the odd layers of hidden units from the layers next
to them and then the even ones, with the same weights up and down:

    h_i = n_i + tanh(b_i + W_(i-1)^T h_(i-1) + W_i h_(i+1) + m_i),    h_0 = corrupted x - its mean, n and m noise

Walkback training lets the chain run from each example and asks every state on the way for the
example it came from. So what the chain meets far away from the data leads back to it.

Pixels are Bernoulli, their grey values its means, and the noise makes them black or white (salt and pepper). Rows of a
table, and their noise, are Gaussian in the standardised view, with a learned deviation for each number. The network
starts at the base rates of the data and sees examples less their mean (Montavon & Mueller 2012), without which it would
spend its first thousands of steps on them.

Shapes: B batch, D numbers of an example, H_i units of layer i, H of all hidden layers, T steps.
"""

import itertools
import math
from collections.abc import Iterable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import UsageError
from gencli.kinds.image import ImageSpec
from gencli.layers.boltzmann import ChainStreams
from gencli.layers.filters import filters_by_layer
from gencli.layers.visible_units import BernoulliUnits, GaussianUnits
from gencli.model import (
    Batch,
    Diagnostic,
    FamilyConfig,
    Given,
    Loss,
    Model,
    NetSize,
    Phase,
    Player,
    Sizes,
    Spec,
    net_size,
)
from gencli.rng import ExampleStreams, Rng
from gencli.view import noise_of_pass, view_of

STEPS = 100  # of the chain before a sample, unless the user says otherwise
_WATCHED = 200  # steps of the chains by which the autocorrelation is measured


class GSNConfig(FamilyConfig):
    layers: int | None = Field(None, ge=1, description="Layers of hidden units; default: 2, of a table 1.")
    sizes: ClassVar = Sizes(hidden=(1500, 2500, 4000))
    net_size: NetSize = net_size(sizes)
    hidden: int = Field(1500, ge=1, description="Hidden units of a layer.")
    walkback: int | None = Field(None, ge=1, description="Steps of the chain from each example in training; default: "
                                                         "two for each layer, of a table 1.")
    salt_and_pepper: float = Field(0.4, ge=0, le=1, description="Pictures: share of the pixels that become black or "
                                                                "white, either as likely.")
    blur: float = Field(0.3, ge=0, description="Tables: deviation of the noise on the standardised numbers; the "
                                                "farther apart its modes or categories, the more the chain needs.")
    noise: float = Field(2.0, ge=0, description="Deviation of the noise before and after the tanh of hidden units, but "
                                                "for the first layer.")
    first_noise: float = Field(0.0, ge=0, description="The same in the first layer, which an example is read from.")


class GSN(Model):
    """Weights (H_(i-1), H_i) between neighbouring layers, shared by both ways; a code: all hidden units, (B, H)."""

    Config = GSNConfig
    kinds = frozenset({"image", "vector"})
    defaults = {"lr": 1e-3, "batch_size": 100, "schedule": "cosine", "ema": 0.999}
    config: GSNConfig

    def __init__(self, config: GSNConfig, spec: Spec):
        super().__init__(config, spec)
        picture = isinstance(spec, ImageSpec)
        layers = config.layers or (2 if picture else 1)
        self._walkback = config.walkback or (2 * layers if picture else 1)
        self.view = None if picture else view_of(spec)
        self.size = self.view.size if self.view else spec.size
        self.visible: BernoulliUnits | GaussianUnits = BernoulliUnits(self.size)
        if self.view:
            self.visible = GaussianUnits(self.size)
            # A broad p(x|h) would forget x in one step, and then be right to be as broad as the data.
            nn.init.constant_(self.visible.log_deviation, math.log(max(config.blur, 0.01)))
        sizes = [self.size] + [config.hidden] * layers
        self.weights = nn.ParameterList(torch.empty(a, b) for a, b in itertools.pairwise(sizes))
        self.biases = nn.ParameterList(torch.zeros(n) for n in sizes[1:])
        nn.init.xavier_uniform_(self.weights[0])
        for weight in self.weights[1:]:  # the noise of a layer must not drown the examples in the one below
            nn.init.normal_(weight, std=0.01)
        self._seen = 0  # examples of the pass that finds the base rates

    # --- the chain: its state is the hidden layers, (B, H_i) each

    def _rest(self, count: int, noise: Rng | None) -> list[Tensor]:
        """Hidden layers that know of nothing: their noise alone."""
        return [self._activity(bias.new_zeros(count, len(bias)), i, noise) for i, bias in enumerate(self.biases)]

    def _activity(self, total: Tensor, layer: int, noise: Rng | None) -> Tensor:
        """Hidden units of a layer by their sums, (B, H_i); `noise` None: without."""
        deviation = self.config.noise if layer else self.config.first_noise
        if noise is None or not deviation:
            return torch.tanh(total)
        before, after = (deviation * noise.normal(2, total.shape[1])).unbind(1)
        return torch.tanh(total + before) + after

    def _corrupt(self, v: Tensor, noise: Rng | None) -> Tensor:
        """Visible units (B, D) with noise, or as they are on average with it, less their mean."""
        if self.view is not None:
            return v if noise is None else v + self.config.blur * noise.normal(self.size)
        share = self.config.salt_and_pepper
        mean = torch.lerp(self.visible.mean, torch.full_like(self.visible.mean, 0.5), share)
        if noise is None:
            return torch.lerp(v, torch.full_like(v, 0.5), share) - mean
        u = noise.uniform(self.size)
        return torch.where(u < share, (u < share / 2).to(v.dtype), v) - mean

    def _step(self, v: Tensor, hidden: list[Tensor], noise: Rng | None) -> None:
        """Compute the hidden layers, the odd ones first, from visible units (B, D) and the layers next to them."""
        v = self._corrupt(v, noise)
        for i in (*range(0, len(hidden), 2), *range(1, len(hidden), 2)):
            total = (hidden[i - 1] if i else v) @ self.weights[i] + self.biases[i]
            if i + 1 < len(hidden):
                total = total + hidden[i + 1] @ self.weights[i + 1].T
            hidden[i] = self._activity(total, i, noise)

    def _shift(self, hidden: list[Tensor]) -> Tensor:
        """What p(x|h) adds to the biases of visible units, (B, D); the first layer decides it."""
        return (hidden[0] @ self.weights[0].T).float()

    def _advance(self, hidden: list[Tensor], noise: Rng, given: Given | None) -> None:
        """A step of the chain in which what is known of an example is kept: it then draws the rest given that."""
        v = self.visible.draw(self._shift(hidden), noise)
        if given is not None and given.known is not None:
            v = self._units(_kept(self._examples(v), given), noise)
        self._step(v, hidden, noise)

    # --- train

    def phases(self) -> list[Phase]:
        return [Phase("base rates", share=0, accumulate=self._accumulate, finish=self.visible.finish),
                Phase("train", [Player("model", list(self.parameters()), self.loss)])]

    def _accumulate(self, batch: Batch) -> None:
        noise = noise_of_pass(self._seen, len(batch), batch.x.device)
        self._seen += len(batch)
        self.visible.accumulate(self.view(batch, noise)[0] if self.view else batch.x.flatten(1))

    def _units(self, batch: Batch, noise: Rng | None) -> Tensor:
        """The visible units of examples, (B, D)."""
        if self.view is None:
            return batch.x.flatten(1)
        return self.visible.standardise(self.view(batch, noise)[0].float())

    def _examples(self, v: Tensor) -> Batch:
        """The inverse of `_units`."""
        x = self.visible.restore(v)
        return self.view.inverse(x) if self.view else Batch(x.unflatten(1, self.spec.shape))

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """Walkback: the mean of -log p(x|h) over the states of a chain that starts at x, in nats per example."""
        x = v = self._units(batch, rng)
        hidden, costs = self._rest(len(batch), rng), []
        for _ in range(self._walkback):
            self._step(v, hidden, rng)
            shift = self._shift(hidden)
            costs.append(-self.visible.log_prob(x, shift).mean())
            with torch.no_grad():
                v = self.visible.draw(shift, rng)
        return Loss(torch.stack(costs).mean(), first=costs[0], last=costs[-1])

    # --- sample, encode, decode

    def prior(self, rng: Rng) -> Tensor:
        """The hidden units of chains after 100 steps from rest, (B, H)."""
        noise = ChainStreams(rng)
        hidden = self._rest(len(rng), noise)
        for _ in range(STEPS):
            self._advance(hidden, noise, None)
        return torch.cat(hidden, dim=1)

    def sample(self, rng: Rng, given: Given | None = None, *, steps: int = STEPS, draw: bool | None = None) -> Batch:
        """The end of a chain of `steps` steps, started at rest, for each example; what is known of one is kept.

        `draw`: a draw from p(x|h), or its mean; by default the mean for pictures alone, as is the custom.

        Raises:
            UsageError: `steps` is negative.
        """
        return self.film(rng, 2, given, steps=steps, draw=draw)[-1]

    def film(self, rng: Rng, frames: int, given: Given | None = None, code: Tensor | None = None, *,
             steps: int = STEPS, draw: bool | None = None) -> list[Batch]:
        """Chains at `frames` even times; from `code`, e.g. that of data, or from rest.

        With as many frames as steps, and one more, these are the consecutive states of one chain.
        """
        if steps < 0:
            raise UsageError(f"steps={steps}: a chain makes 0 steps or more")
        noise = ChainStreams(rng)
        hidden = self._rest(len(rng), noise) if code is None else self._layers(code)
        shifts = [self._shift(hidden)]
        for count in torch.linspace(0, steps, frames).round().long().diff().tolist():
            for _ in range(count):
                self._advance(hidden, noise, given)
            shifts.append(self._shift(hidden))
        draw = self.view is not None if draw is None else draw
        # From the last on, so that it is drawn by the same noise however many there are.
        return [self._read(shift, noise if draw else None, given) for shift in reversed(shifts)][::-1]

    def _read(self, shift: Tensor, noise: Rng | None, given: Given | None = None) -> Batch:
        """The mean of p(x|h), or with noise a draw from it."""
        x = self._examples(self.visible.expect(shift) if noise is None else self.visible.draw(shift, noise))
        return x if given is None or given.known is None else _kept(x, given)

    def _layers(self, code: Tensor) -> list[Tensor]:
        """A code, layer by layer."""
        return list(code.split([len(bias) for bias in self.biases], dim=1))

    def encode(self, batch: Batch, rng: Rng) -> Tensor:
        """The hidden units that an example leads to without noise, (B, H): as many steps with it as in training."""
        v, hidden = self._units(batch, None), self._rest(batch.x.shape[0], None)
        for _ in range(self._walkback):
            self._step(v, hidden, None)
        return torch.cat(hidden, dim=1)

    def decode(self, code: Tensor, rng: Rng | None = None, *, steps: int = 0, draw: bool = False) -> Batch:
        """The mean of p(x|h) for hidden units (B, H), or with `draw` a draw from it.

        `steps`: of the chain, from these hidden units, made before.
        """
        if steps and rng is not None:
            return self.film(rng, 2, code=code, steps=steps, draw=draw)[-1]
        return self._read(self._shift(self._layers(code)), rng if draw else None)

    def interpolate(self, a: Tensor, b: Tensor, frames: int) -> Tensor:
        """A straight line: hidden units are no normal draws."""
        t = torch.linspace(0, 1, frames, dtype=a.dtype, device=a.device)[:, None]
        return (1 - t) * a + t * b

    def filters(self) -> dict[str, Tensor]:
        """The weights of each unit, (H, *example), by layer."""
        return filters_by_layer([weight.T for weight in self.weights], self.spec.shape)

    # --- score

    def diagnose(self, batches: Iterable[Batch]) -> list[Diagnostic]:
        """How well the chain mixes: `autocorrelation_time`, in steps, of the mean of p(x|h).

        Of chains of 200 steps that start at examples, a block of them. Chains that stay at theirs have about as long a
        time as they have steps; a sample of as many steps still depends on where its chain started.
        """
        batch = next(iter(batches))
        rng = ExampleStreams(0, torch.arange(len(batch)), "diagnose", self.device)
        hidden, noise, states = self._layers(self.encode(batch, rng)), ChainStreams(rng), []
        for _ in range(_WATCHED):
            self._advance(hidden, noise, None)
            states.append(self.visible.expect(self._shift(hidden)))
        time, error = autocorrelation_time(torch.stack(states, dim=1))
        return [Diagnostic("autocorrelation_time", time, "steps", "estimate", error,
                           {"chains": len(batch), "steps": _WATCHED, "start": "data"})]


def _kept(batch: Batch, given: Given) -> Batch:
    """Examples with what is known of them as it is."""
    assert given.known is not None and given.mask is not None
    return Batch(torch.where(given.mask, given.known.to(batch.x.dtype), batch.x))


def autocorrelation_time(x: Tensor) -> tuple[float, float]:
    """1 + 2 sum_t rho(t) of chains x (M, T, D), in steps, and its standard error (of a single number in their place).

    rho(t) is the autocorrelation of all numbers together, about their mean over all chains, so that chains that do not
    meet count as correlated. The sum ends at the first t of at least five times its value (Sokal 1997, "Monte Carlo
    Methods in Statistical Mechanics"). Chains in which nothing moves have the longest time there is.
    """
    chains, steps = x.shape[:2]
    x = x.double() - x.double().mean((0, 1))
    spectrum = torch.fft.rfft(x, n=2 * steps, dim=1).abs().square().sum((0, 2))
    covariance = torch.fft.irfft(spectrum)[:steps] / torch.arange(steps, 0, -1, device=x.device)
    rho = covariance / covariance[0] if covariance[0] > 0 else torch.ones_like(covariance)
    time = 2 * rho.cumsum(0) - 1
    window = int((torch.arange(steps, device=x.device) >= 5 * time).int().argmax()) or steps - 1
    value = float(time[window])
    return value, value * math.sqrt(2 * (2 * window + 1) / (chains * steps))
