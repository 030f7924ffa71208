"""Boltzmann machines: the restricted machine that families are made of, and log Z by summation or annealing.

log Z is summed over all states where they can be enumerated, else it is estimated by annealed importance sampling
(AIS) from the base rates: Salakhutdinov & Murray 2008, "On the Quantitative Analysis of Deep Belief Networks".

Shapes: B batch, D visible and H hidden units, M chains.
"""

import copy
import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from gencli.errors import UsageError
from gencli.kinds.image import ImageSpec
from gencli.layers.visible_units import BernoulliUnits, GaussianUnits, draw_bernoulli
from gencli.model import Batch, Diagnostic, Given, Model, Spec
from gencli.rng import Rng, StepStream, generator
from gencli.view import View, noise_of_pass, view_of

ENUMERABLE = 20  # units whose states are all visited for an exact log Z
ACTIVITY = 0.1  # of the hidden units at the start, and where they are centred: about that of a trained machine
# Learning rate, relative to --lr, of what starts as a machine that has converged: steps as large as those that it began
# with would be noise, which costs more nats than another layer can win.
REFINING = 0.1


# ---------------------------------------------------------------------------------------------------------------------
# log Z


class LogPartition(BaseModel):
    """log Z in nats and how it was computed; of an estimate also the standard error, and that of the way back."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    error: float | None = None
    kind: Literal["exact", "estimate"] = "exact"
    reverse: float | None = None  # annealed from the model to the base rates
    reverse_error: float | None = None
    protocol: dict[str, Any] = {}


class Machine(nn.Module):
    """What has a log Z that is expensive: it is kept for as long as the weights stay what they are."""

    def __init__(self) -> None:
        super().__init__()
        self._log_z: tuple[str, LogPartition] | None = None  # the last one, and a digest of its weights

    @property
    def enumerable(self) -> bool:
        """Whether log Z is summed over states."""
        raise NotImplementedError

    def sum_over_states(self) -> float:
        """log Z, summed in float64 over states of an `enumerable` machine."""
        raise NotImplementedError

    def ais(self, chains: int, temperatures: int, ais_seed: int) -> LogPartition:
        """log Z by annealing M chains from the base rates to the model, and back from where they ended."""
        raise NotImplementedError

    def log_partition(self, chains: int | None = None, temperatures: int | None = None,
                      ais_seed: int | None = None) -> LogPartition:
        """log Z: the exact sum where the states can be enumerated, else by AIS.

        The last one, if it is that of these weights and was computed with these options; else it is computed, and kept.

        Args:
            chains: independent runs M, over which the weights are averaged; 100 if there is no last one.
            temperatures: steps from the base rates to the model, close to each other towards its end; 10,000.
            ais_seed: of the noise of the runs, which are the same for all examples; 0.

        Raises:
            UsageError: too few chains or temperatures.
        """
        arguments = {"chains": chains, "temperatures": temperatures, "ais_seed": ais_seed}
        required = {name: value for name, value in arguments.items() if value is not None}
        options = {"chains": 100, "temperatures": 10_000, "ais_seed": 0} | required
        if options["chains"] < 2 or options["temperatures"] < 1:
            raise UsageError(f"chains={options['chains']}, temperatures={options['temperatures']}: AIS needs at least "
                             f"2 chains, for its error bar, and 1 temperature")
        weights = self._digest()
        if self._log_z is not None and self._log_z[0] == weights:
            last = self._log_z[1]
            if last.kind == "exact" or required.items() <= last.protocol.items():
                return last
        log_z = LogPartition(value=self.sum_over_states()) if self.enumerable else self.ais(**options)
        self._log_z = weights, log_z
        return log_z

    def protocol(self) -> dict[str, Any]:
        """How the last log Z was found, for the record of a score."""
        log_z = self.log_partition()
        return {"log_z": log_z.value, "log_z_error": log_z.error, **log_z.protocol}

    def diagnose(self) -> list[Diagnostic]:
        """`log_z`; of an estimate also `log_z_reverse`, found by annealing the other way.

        With few temperatures AIS errs to a smaller log Z, which flatters the model, and its way back to a larger one:
        `log_z_reverse` starts where the forward runs ended, drawn by their weights (bidirectional Monte Carlo, Grosse
        et al. 2015, arXiv:1511.02543, with these for exact samples). If they agree the annealing is slow enough.
        """
        log_z = self.log_partition()
        diagnoses = [Diagnostic("log_z", log_z.value, "nats", log_z.kind, log_z.error, log_z.protocol)]
        if log_z.reverse is not None:
            diagnoses.append(Diagnostic("log_z_reverse", log_z.reverse, "nats", "estimate", log_z.reverse_error,
                                        log_z.protocol))
        return diagnoses

    def findings(self) -> dict[str, Any]:
        """log Z, if it is known for these weights."""
        if self._log_z is None or self._log_z[0] != self._digest():
            return {}
        weights, log_z = self._log_z
        return {"log_z": {"weights": weights, **log_z.model_dump()}}

    def load_findings(self, found: dict[str, Any]) -> None:
        """Take log Z up; it is used while the weights are the same."""
        if "log_z" in found:
            log_z = dict(found["log_z"])
            self._log_z = log_z.pop("weights"), LogPartition(**log_z)

    def _digest(self) -> str:
        """Of everything that log Z is a function of."""
        digest = hashlib.blake2b(digest_size=16)
        for tensor in self.state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# The restricted machine


@dataclass
class Links:
    """What each layer tells the other, with the weights made ready for many steps."""

    up: Tensor  # (D, H)
    up_bias: Tensor  # (H,)
    down: Tensor  # (H, D)
    down_bias: Tensor  # (D,)

    def logits(self, v: Tensor) -> Tensor:
        """v (B, D), as it is -> logits of p(h|v), (B, H)."""
        return (v @ self.up).to(v.dtype) + self.up_bias

    def shift(self, h: Tensor) -> Tensor:
        """What hidden units (B, H) add to the biases of the visible ones, (B, D)."""
        return (h @ self.down).to(h.dtype) + self.down_bias


class RestrictedMachine(Machine):
    """E(v, h) = E(v) - bias . h - ((v - mean) / variance) W (h - ACTIVITY), h binary.

    Visible units are centred at the mean of the data and hidden units at the activity they start with (Montavon &
    Mueller 2012).
    """

    def __init__(self, visible: BernoulliUnits | GaussianUnits, hidden: int):
        super().__init__()
        self.visible = visible
        self.hidden = hidden
        self.size = len(visible.bias)
        self.weight = nn.Parameter(torch.empty(self.size, hidden))
        nn.init.normal_(self.weight, std=0.01)
        self.bias = nn.Parameter(torch.full((hidden,), math.log(ACTIVITY / (1 - ACTIVITY))))

    # --- the two conditional distributions and the marginal

    def links(self) -> Links:
        weight = rounded(self.weight)
        up = rounded(self.visible.scale_weight(weight))
        # `mv` and not `@`, which autocast would round: this is added to every example alike.
        up_bias = self.bias - torch.mv(self.visible.scale_weight(self.weight).T, self.visible.mean)
        return Links(up, up_bias, weight.T, -ACTIVITY * self.weight.sum(1))

    def hidden_logits(self, v: Tensor) -> Tensor:
        """v (B, D) -> logits of p(h|v), (B, H)."""
        return self.links().logits(v)

    def free_energy(self, v: Tensor) -> Tensor:
        """F(v) = -log sum_h exp(-E(v, h)) in nats, v (B, D) in the units of the visible layer -> (B,)."""
        logits = self.hidden_logits(v)
        return self.visible.energy(v) - (F.softplus(logits) - ACTIVITY * (logits - self.bias)).sum(1)

    @torch.no_grad()
    def gibbs(self, h: Tensor, steps: int, noise: Rng, links: Links | None = None) -> Tensor:
        """Hidden states (M, H) after `steps` steps h -> v -> h."""
        links = links or self.links()
        for _ in range(steps):
            v = self.visible.draw(links.shift(h), noise)
            h = draw_bernoulli(torch.sigmoid(links.logits(v)), noise)
        return h

    # --- train

    def contrast(self, data: Tensor, chains: Tensor | None, steps: int, rng: Rng) -> tuple[Tensor, Tensor]:
        """The gap of mean energies between data and chains, in nats, at p(h|v) for h; and the chains, moved on.

        Where p(h|v) is held fixed, the gradient of the energy is that of the free energy.

        Args:
            data: visible units (B, D).
            chains: persistent hidden states (M, H); None: chains start at the data.
            steps: Gibbs steps that the chains make.
        """
        count = len(data) if chains is None else len(chains)
        noise = CoarseStream.of_step(count, rng)
        with torch.no_grad():
            links = self.links()
            h = draw_bernoulli(torch.sigmoid(links.logits(data)), noise) if chains is None else chains
            h = self.gibbs(h, steps - 1, noise, links)
            states = torch.cat([data, self.visible.draw(links.shift(h), noise)])
            p = torch.sigmoid(links.logits(states))
            if chains is not None:
                h = draw_bernoulli(p[len(data) :], noise)
            # What each state counts: the mean over the data less the mean over the chains.
            share = torch.cat([data.new_full((len(data), 1), 1 / len(data)), data.new_full((count, 1), -1 / count)])
            centred = share * (p - ACTIVITY)
            statistic = (rounded(states).T @ rounded(centred)).float()
            statistic.addr_(self.visible.mean, centred.sum(0), alpha=-1)
        visible = torch.dot(self.visible.energy(states), share[:, 0])
        hidden = torch.dot(self.bias, (share * p).sum(0))
        linked = torch.dot(self.visible.scale_weight(self.weight).flatten(), statistic.flatten())
        return visible - hidden - linked, h

    # --- log Z

    @property
    def _summed(self) -> Literal["hidden", "visible"] | None:
        """The units over whose states Z is summed exactly; None if both have too many."""
        if self.hidden <= ENUMERABLE:
            return "hidden"
        return "visible" if self.size <= ENUMERABLE and isinstance(self.visible, BernoulliUnits) else None

    @property
    def enumerable(self) -> bool:
        return self._summed is not None

    @torch.no_grad()
    def sum_over_states(self) -> float:
        machine = copy.deepcopy(self).double()
        if self._summed == "hidden":
            links = machine.links()
            return log_sum(h @ machine.bias + machine.visible.log_partition(links.shift(h))
                           for h in binary_states(self.hidden, self.weight.device))
        return log_sum(-machine.free_energy(v) for v in binary_states(self.size, self.weight.device))

    def ais(self, chains: int, temperatures: int, ais_seed: int) -> LogPartition:
        device = self.weight.device
        noise = StepStream(chains, generator(ais_seed, "ais", device=device))
        v = self.visible.draw(torch.zeros(chains, self.size, device=device), noise, 0.0)
        log_weight, v = self._anneal(v, schedule(temperatures), noise)
        value, error = log_mean(log_weight)
        reverse, reverse_error = self.reverse_ais(v[resampled(log_weight, noise)], temperatures, noise)
        return LogPartition(value=self._base_log_partition() + value, error=error, kind="estimate",
                            reverse=reverse, reverse_error=reverse_error,
                            protocol={"method": "AIS", "chains": chains, "temperatures": temperatures,
                                      "ais_seed": ais_seed})

    def reverse_ais(self, v: Tensor, temperatures: int, noise: Rng) -> tuple[float, float]:
        """log Z and its standard error by annealing draws v (M, D) of the model to the base rates."""
        log_weight, _ = self._anneal(v, schedule(temperatures)[::-1], noise)
        value, error = log_mean(log_weight)
        return self._base_log_partition() - value, error

    def _base_log_partition(self) -> float:
        """log Z at temperature 0: the visible units at their base rates, the hidden ones as these imply on average."""
        return self.visible.base_log_partition() + float(F.softplus(self.bias.detach().double()).sum())

    @torch.no_grad()
    def _anneal(self, v: Tensor, betas: list[float], noise: Rng) -> tuple[Tensor, Tensor]:
        """Chains v (M, D) led through p*_beta: importance weights log p*_last / p*_first (M,) float64, and their ends.

        -log p*_beta(v) = (1 - beta) E_base(v) + beta (E(v) + E_centre(v)) - sum_j log(1 + exp(bias_j + beta pull_j(v)))

        with pull_j(v) = logit_j(v) - bias_j, 0 at the mean of the data, and E_centre(v) = ACTIVITY sum_j pull_j(v).
        (From hidden units either way, instead, the pixels of a machine turned over lead its chains astray.)
        """
        links = self.links()
        log_weight = torch.zeros(len(v), dtype=torch.float64, device=v.device)
        for before, after in itertools.pairwise(betas):
            pull = links.logits(v) - self.bias
            logits, earlier = (torch.add(self.bias, pull, alpha=beta) for beta in (after, before))
            gain = (F.softplus(logits) - F.softplus(earlier)).sum(1, dtype=torch.float64)
            centre = ACTIVITY * pull.sum(1)
            log_weight += gain + (after - before) * (self.visible.base_energy(v) - self.visible.energy(v) - centre)
            v = self.visible.draw(links.shift(draw_bernoulli(torch.sigmoid(logits), noise)), noise, after)
        return log_weight, v


# ---------------------------------------------------------------------------------------------------------------------
# What families of machines share


class BoltzmannModel(Model):
    """A family whose lowest layer are units that see an example, and whose codes are hidden units that chains draw."""

    splits = False  # each batch moves on the chains
    view: View | None

    def units_of(self, spec: Spec) -> BernoulliUnits | GaussianUnits:
        """New units that see examples of `spec`: Bernoulli for binary pictures, else Gaussian ones of the real view."""
        picture = isinstance(spec, ImageSpec)
        self.view = None if isinstance(spec, ImageSpec) and spec.levels == 2 else view_of(spec)
        self.density = self.view is not None and self.view.density
        self._seen = 0  # examples of the pass that finds the base rates
        if self.view is None:
            return BernoulliUnits(spec.size)
        # A pixel that hardly varies has the unit of a grey level.
        return GaussianUnits(self.view.size, 1 / 255 if picture else 0.0)

    @property
    def visible(self) -> BernoulliUnits | GaussianUnits:
        """The units that see an example."""
        raise NotImplementedError

    def accumulate_visible(self, batch: Batch) -> None:
        """A batch of the pass that finds the base rates; `visible.finish` ends it."""
        noise = noise_of_pass(self._seen, len(batch), batch.x.device)
        self._seen += len(batch)
        self.visible.accumulate(self.view(batch, noise)[0] if self.view else batch.x.flatten(1))

    def units(self, batch: Batch, rng: Rng | None) -> tuple[Tensor, Tensor | float]:
        """The visible units of examples (B, D), and what they add to log p(x); `rng` None: no noise."""
        if self.view is None:
            return batch.x.flatten(1), 0.0
        rows, weight = self.view(batch, rng)
        return self.visible.standardise(rows.float()), weight - self.visible.log_scale()

    def examples(self, v: Tensor) -> Batch:
        """The inverse of `units`."""
        x = self.visible.restore(v)
        return self.view.inverse(x) if self.view else Batch(x.unflatten(1, self.spec.shape))

    def alarm(self, history: list[dict[str, float]]) -> str | None:
        """Divergence: the energies of data and chains differ by more than ten nats for each visible unit."""
        gaps = [abs(record["loss"]) for record in history[-3:] if "loss" in record]
        if len(gaps) == 3 and min(gaps) > 10 * len(self.visible.bias):
            return (f"data and chains have come into modes apart, whose energies differ by {gaps[-1]:.3g} nats; try a "
                    f"smaller --lr")
        return None

    # --- what chains of hidden units draw

    def begin(self, noise: Rng) -> Tensor:
        """Probabilities of the hidden units at the start of a chain for each example, (B, H)."""
        raise NotImplementedError

    def walk(self, h: Tensor, steps: int, noise: Rng) -> Tensor:
        """Hidden states (B, H) after `steps` Gibbs steps."""
        raise NotImplementedError

    def generate(self, h: Tensor, noise: Rng | None) -> Batch:
        """Examples drawn given hidden units (B, H); `noise` None: their means."""
        raise NotImplementedError

    def _chain(self, noise: Rng, steps: list[int], code: Tensor | None = None) -> list[Tensor]:
        """The start of a chain, drawn from `code` or where chains `begin`, and where it is after each so many steps."""
        states = [draw_bernoulli(self.begin(noise) if code is None else code, noise)]
        for count in steps:
            states.append(self.walk(states[-1], count, noise))
        return states

    def prior(self, rng: Rng) -> Tensor:
        """Hidden states of Gibbs chains of 1000 steps, (B, H)."""
        return self._chain(ChainStreams(rng), [1000])[-1]

    def sample(self, rng: Rng, given: Given | None = None, *, steps: int = 1000, draw: bool | None = None) -> Batch:
        """The end of a Gibbs chain of `steps` steps for each example.

        `draw`: a draw given the hidden units, or its mean; by default the mean for pictures alone, as is the custom.

        Raises:
            UsageError: `steps` is negative.
        """
        return self.film(rng, 2, given, steps=steps, draw=draw)[-1]

    def film(self, rng: Rng, frames: int, given: Given | None = None, code: Tensor | None = None, *,
             steps: int = 1000, draw: bool | None = None) -> list[Batch]:
        """Gibbs chains at `frames` even times; from `code`, e.g. that of data, or from where chains begin."""
        if steps < 0:
            raise UsageError(f"steps={steps}: a chain makes 0 steps or more")
        noise = ChainStreams(rng)
        states = self._chain(noise, torch.linspace(0, steps, frames).round().long().diff().tolist(), code)
        draw = not isinstance(self.spec, ImageSpec) if draw is None else draw
        # The last is drawn first, so that it is the same however many there are.
        return [self.generate(h, noise if draw else None) for h in reversed(states)][::-1]

    def decode(self, code: Tensor, rng: Rng | None = None, *, steps: int = 0, draw: bool = False) -> Batch:
        """The mean of an example given hidden units (B, H), or with `draw` a draw.

        `steps`: Gibbs steps made before, from hidden units drawn with these probabilities.
        """
        if steps and rng is not None:
            return self.film(rng, 2, code=code, steps=steps, draw=draw)[-1]
        return self.generate(code, rng if draw else None)

    def interpolate(self, a: Tensor, b: Tensor, frames: int) -> Tensor:
        """A straight line: every point of it is a vector of probabilities."""
        t = torch.linspace(0, 1, frames, dtype=a.dtype, device=a.device)[:, None]
        return (1 - t) * a + t * b


# ---------------------------------------------------------------------------------------------------------------------
# Annealing and enumeration, whatever the machine


def schedule(temperatures: int) -> list[float]:
    """Inverse temperatures from 0 to 1, as dense as in Salakhutdinov & Murray 2008: 500 to 0.5, 4000 to 0.9, 10000."""
    knots = np.array([0, 500, 4500, 14500]) / 14500
    return np.interp(np.linspace(0, 1, temperatures + 1), knots, [0, 0.5, 0.9, 1]).tolist()


def log_mean(log_weights: Tensor) -> tuple[float, float]:
    """log of the mean of M weights, and its standard error by the delta method."""
    highest = log_weights.max()
    weights = torch.exp(log_weights - highest)
    error = weights.std() / weights.mean() / math.sqrt(len(weights))
    return float(highest + weights.mean().log()), float(error)


def resampled(log_weight: Tensor, noise: Rng) -> Tensor:
    """Systematic resampling of M chains, their numbers (M,): each as often as its weight says, to within one."""
    places = (torch.arange(len(log_weight), device=log_weight.device) + noise.uniform()[0]) / len(log_weight)
    ends = torch.searchsorted(torch.softmax(log_weight, 0).cumsum(0), places.double())
    return ends.clamp(max=len(log_weight) - 1)


def binary_states(units: int, device: torch.device) -> Iterator[Tensor]:
    """All states of binary units, (up to 4096, units) float64 at a time."""
    for part in torch.arange(2**units, device=device).split(4096):
        yield (part[:, None] >> torch.arange(units, device=device) & 1).double()


def log_sum(blocks: Iterator[Tensor]) -> float:
    """log of the sum of exponentials of all numbers in all blocks."""
    return float(torch.logsumexp(torch.stack([torch.logsumexp(block, 0) for block in blocks]), 0))


def rounded(tensor: Tensor) -> Tensor:
    """As autocast gives it to a matrix product, for several of them; 0 and 1 stay what they are."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


# ---------------------------------------------------------------------------------------------------------------------
# Noise of chains


class CoarseStream(StepStream):
    """The noise of a training step with uniform numbers of 16 bits, which cost half as much as those of torch."""

    @classmethod
    def of_step(cls, chains: int, rng: Rng) -> "CoarseStream":
        """That of M chains in a step, which need not be as many as its examples."""
        return cls(chains, torch.Generator(rng.device).manual_seed(int(rng.integers(2**31)[0])))

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        count = len(self) * math.prod(shape)
        words = torch.empty(-(-count // 4), dtype=torch.int64, device=self.device)
        bits = words.random_(-(2**63), None, generator=self.generator).view(torch.int16)[:count]
        return bits.to(dtype).mul_(2**-16).add_(0.5 + 2**-17).view(len(self), *shape)


class ChainStreams:
    """The noise of Gibbs chains, one for each example, on torch's own generators seeded by the streams of `rng`.

    A chain takes about a million numbers; the streams themselves would take a hundred times as long.
    """

    def __init__(self, rng: Rng):
        self.device = rng.device
        # Drawn on the CPU, so that a sample is the same on every device.
        self._sources = [torch.Generator().manual_seed(seed) for seed in rng.integers(2**52).tolist()]

    def __len__(self) -> int:
        return len(self._sources)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.stack([torch.rand(shape, generator=g, dtype=dtype) for g in self._sources]).to(self.device)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.stack([torch.randn(shape, generator=g, dtype=dtype) for g in self._sources]).to(self.device)

    def integers(self, high: int, *shape: int) -> Tensor:
        return (self.uniform(*shape, dtype=torch.float64) * high).long()

    def spread(self) -> Tensor:
        return self.uniform()
