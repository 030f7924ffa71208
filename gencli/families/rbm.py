"""Restricted Boltzmann machine: Smolensky 1986; trained by contrastive divergence (Hinton 2002).

`--chain pcd` keeps its Gibbs chains from step to step (Tieleman 2008, "Training Restricted Boltzmann Machines using
Approximations to the Likelihood Gradient"), `--chain cd` starts them at the data. The loss is the gap of mean energies
between data and chains: its gradient is that of (P)CD, so the trainer's Adam, weight decay, schedule and moving average
apply as for any family. Visible units are centred at the mean of the data and hidden units at the activity they start
with (Montavon & Mueller 2012): the same models, but Adam would move the weights of all hidden units together, and the
chains could not follow.

Visible units are Bernoulli for binary data and Gaussian, with a learned deviation each, in standardised units for rows
of a table and grey or coloured pictures (Cho et al. 2011). The latter have a density of their values in [0, 1] as they
are; grey values as Bernoulli means would have no likelihood.

log p(x) = -F(x) - log Z. With at most 20 hidden (or binary visible) units log Z is summed over all states, else it is
estimated by annealed importance sampling (AIS) from the base rates: Salakhutdinov & Murray 2008, "On the Quantitative
Analysis of Deep Belief Networks". The model file keeps it, for as long as the weights stay what they are.

Shapes: B batch, D visible and H hidden units, M chains.
"""

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from gencli.errors import UsageError
from gencli.kinds.image import ImageSpec
from gencli.layers.visible_units import BernoulliUnits, GaussianUnits, draw_bernoulli
from gencli.model import Batch, Diagnostic, FamilyConfig, Given, Loss, Model, Phase, Player, Spec
from gencli.rng import Rng, StepStream, generator
from gencli.view import Standardised, noise_of_pass, view_of

ENUMERABLE = 20  # units whose states are all visited for an exact log Z
ACTIVITY = 0.1  # of the hidden units at the start, and where they are centred: about that of a trained machine


class RBMConfig(FamilyConfig):
    hidden: int = Field(500, ge=1, description="Hidden units H.")
    chain: Literal["pcd", "cd"] = Field("pcd", description="Gibbs chains of the gradient: pcd: kept from step to step; "
                                                           "cd: started at the data.")
    chains: int = Field(512, ge=1, description="Persistent chains of pcd.")
    gibbs: int = Field(1, ge=1, description="Gibbs steps for each training step: the k of CD-k.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Decay of the running mean of the gradient.")


class LogPartition(BaseModel):
    """log Z in nats and how it was computed; of an estimate also the standard error, and that of the way back."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    error: float | None = None
    kind: Literal["exact", "estimate"] = "exact"
    reverse: float | None = None  # annealed from the model to the base rates
    reverse_error: float | None = None
    protocol: dict[str, Any] = {}


class RBM(Model):
    """E(v, h) = E(v) - bias . h - ((v - mean) / variance) W (h - ACTIVITY), h binary; the code: p(h = 1|v), (B, H)."""

    Config = RBMConfig
    kinds = frozenset({"image", "vector"})
    defaults = {"lr": 1e-3, "batch_size": 128, "schedule": "cosine", "ema": 0.999}
    config: RBMConfig
    _chains: Tensor

    def __init__(self, config: RBMConfig, spec: Spec):
        super().__init__(config, spec)
        picture = isinstance(spec, ImageSpec)
        self.view = None if isinstance(spec, ImageSpec) and spec.levels == 2 else view_of(spec)
        self.size = self.view.size if self.view else spec.size
        # A pixel that hardly varies has the unit of a grey level.
        self.visible = GaussianUnits(self.size, 1 / 255 if picture else 0.0) if self.view else BernoulliUnits(self.size)
        self.weight = nn.Parameter(torch.empty(self.size, config.hidden))
        nn.init.normal_(self.weight, std=0.01)
        self.bias = nn.Parameter(torch.full((config.hidden,), math.log(ACTIVITY / (1 - ACTIVITY))))
        chains = config.chains if config.chain == "pcd" else 0
        self.register_buffer("_chains", torch.rand(chains, config.hidden).round(), persistent=False)
        self._log_z: tuple[str, LogPartition] | None = None  # the last one, and a digest of its weights
        self.density = self.view is not None and self.view.density
        self._seen = 0  # examples of the pass that finds the base rates
        self.register_load_state_dict_pre_hook(_in_rows)
        self.likelihood = "exact" if self._enumerated is not None else "estimate"

    # --- the two conditional distributions and the marginal

    def _links(self) -> "_Links":
        weight = _rounded(self.weight)
        up = _rounded(self.visible.scale_weight(weight))
        # `mv` and not `@`, which autocast would round: this is added to every example alike.
        up_bias = self.bias - torch.mv(self.visible.scale_weight(self.weight).T, self.visible.mean)
        return _Links(up, up_bias, weight.T, -ACTIVITY * self.weight.sum(1))

    def hidden_logits(self, v: Tensor) -> Tensor:
        """v (B, D) -> logits of p(h|v), (B, H)."""
        return self._links().logits(v)

    def free_energy(self, v: Tensor) -> Tensor:
        """F(v) = -log sum_h exp(-E(v, h)) in nats, v (B, D) in the units of the visible layer -> (B,)."""
        return self._free_energy(v, self.hidden_logits(v))

    def _free_energy(self, v: Tensor, logits: Tensor) -> Tensor:
        return self.visible.energy(v) - (F.softplus(logits) - ACTIVITY * (logits - self.bias)).sum(1)

    @torch.no_grad()
    def gibbs(self, h: Tensor, steps: int, noise: Rng) -> Tensor:
        """Hidden states (M, H) after `steps` steps h -> v -> h."""
        return self._gibbs(h, steps, noise, self._links())

    def _gibbs(self, h: Tensor, steps: int, noise: Rng, links: "_Links") -> Tensor:
        for _ in range(steps):
            v = self.visible.draw(links.shift(h), noise)
            h = draw_bernoulli(torch.sigmoid(links.logits(v)), noise)
        return h

    # --- train

    def phases(self) -> list[Phase]:
        player = Player("model", list(self.parameters()), self.loss, betas=(self.config.momentum, 0.999))
        return [Phase("base rates", share=0, accumulate=self._accumulate, finish=self.visible.finish),
                Phase("train", [player])]

    def _accumulate(self, batch: Batch) -> None:
        noise = noise_of_pass(self._seen, len(batch), batch.x.device)
        self._seen += len(batch)
        self.visible.accumulate(self.view(batch, noise)[0] if self.view else batch.x.flatten(1))

    def _units(self, batch: Batch, rng: Rng | None) -> tuple[Tensor, Tensor | float]:
        """The visible units of examples (B, D), and what they add to log p(x); `rng` None: no noise."""
        if self.view is None:
            return batch.x.flatten(1), 0.0
        rows, weight = self.view(batch, rng)
        return self.visible.standardise(rows.float()), weight - self.visible.log_scale()

    def _examples(self, v: Tensor) -> Batch:
        """The inverse of `_units`."""
        x = self.visible.restore(v)
        return self.view.inverse(x) if self.view else Batch(x.unflatten(1, self.spec.shape))

    def training_state(self) -> dict[str, Tensor]:
        return {"chains": self._chains} if self.config.chain == "pcd" else {}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        self._chains = state.get("chains", self._chains)

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """The gap of mean energies between data and chains, in nats, at p(h|v) for h; moves persistent chains on.

        Where p(h|v) is held fixed, the gradient of the energy is that of the free energy.
        """
        data, _ = self._units(batch, rng)
        persistent = self.config.chain == "pcd"
        count = len(self._chains) if persistent else len(data)
        noise = _CoarseStream(count, torch.Generator(rng.device).manual_seed(int(rng.integers(2**31)[0])))
        with torch.no_grad():
            links = self._links()
            h = self._chains if persistent else draw_bernoulli(torch.sigmoid(links.logits(data)), noise)
            h = self._gibbs(h, self.config.gibbs - 1, noise, links)
            states = torch.cat([data, self.visible.draw(links.shift(h), noise)])
            p = torch.sigmoid(links.logits(states))
            if persistent:
                self._chains = draw_bernoulli(p[len(data) :], noise)
            # What each state counts: the mean over the data less the mean over the chains.
            share = torch.cat([data.new_full((len(data), 1), 1 / len(data)), data.new_full((count, 1), -1 / count)])
            centred = share * (p - ACTIVITY)
            statistic = (_rounded(states).T @ _rounded(centred)).float()
            statistic.addr_(self.visible.mean, centred.sum(0), alpha=-1)
        visible = torch.dot(self.visible.energy(states), share[:, 0])
        hidden = torch.dot(self.bias, (share * p).sum(0))
        linked = torch.dot(self.visible.scale_weight(self.weight).flatten(), statistic.flatten())
        return Loss(visible - hidden - linked)

    # --- sample, encode, decode

    def prior(self, rng: Rng) -> Tensor:
        """Hidden states of Gibbs chains of 1000 steps, started at coin flips, (B, H)."""
        return self._chain(_ChainStreams(rng), [1000])[-1]

    def _chain(self, noise: Rng, steps: list[int], code: Tensor | None = None) -> list[Tensor]:
        """The start of a Gibbs chain, drawn from `code` or by coin flips, and where it is after each so many steps."""
        states = [draw_bernoulli(torch.full((len(noise), self.config.hidden), 0.5, device=self.device)
                             if code is None else code, noise)]
        for count in steps:
            states.append(self.gibbs(states[-1], count, noise))
        return states

    def sample(self, rng: Rng, given: Given | None = None, *, steps: int = 1000, draw: bool | None = None) -> Batch:
        """The end of a Gibbs chain of `steps` steps, started at coin flips, for each example.

        `draw`: a draw from p(v|h), or its mean; by default the mean for pictures alone, as is the custom.

        Raises:
            UsageError: `steps` is negative.
        """
        return self.film(rng, 2, given, steps=steps, draw=draw)[-1]

    def film(self, rng: Rng, frames: int, given: Given | None = None, code: Tensor | None = None, *,
             steps: int = 1000, draw: bool | None = None) -> list[Batch]:
        """Gibbs chains at `frames` even times; from `code`, e.g. that of data, or from coin flips."""
        if steps < 0:
            raise UsageError(f"steps={steps}: a chain makes 0 steps or more")
        noise = _ChainStreams(rng)
        times = torch.linspace(0, steps, frames).round().long()
        states = self._chain(noise, times.diff().tolist(), code)
        draw = not isinstance(self.spec, ImageSpec) if draw is None else draw
        return [self.decode(h, noise, draw=draw) for h in states]

    def encode(self, batch: Batch, rng: Rng) -> Tensor:
        """p(h = 1 | v), (B, H) in [0, 1]."""
        return torch.sigmoid(self.hidden_logits(self._units(batch, None)[0]))

    def decode(self, code: Tensor, rng: Rng | None = None, *, steps: int = 0, draw: bool = False) -> Batch:
        """The mean of p(v|h) for hidden units (B, H), or with `draw` a draw from it.

        `steps`: Gibbs steps made before, from hidden units drawn with these probabilities.
        """
        if steps and rng is not None:
            return self.film(rng, 2, code=code, steps=steps, draw=draw)[-1]
        shift = self._links().shift(code)
        v = self.visible.draw(shift, rng) if draw and rng is not None else self.visible.expect(shift)
        return self._examples(v)

    def interpolate(self, a: Tensor, b: Tensor, frames: int) -> Tensor:
        """A straight line: every point of it is a vector of probabilities."""
        t = torch.linspace(0, 1, frames, dtype=a.dtype, device=a.device)[:, None]
        return (1 - t) * a + t * b

    def filters(self) -> dict[str, Tensor]:
        """The weights of each hidden unit, (H, *example), as it sees an example."""
        weights = self.visible.scale_weight(self.weight).T.unflatten(1, self.spec.shape)
        return {"hidden": weights}

    # --- score

    def log_prob(self, batch: Batch, rng: Rng, *, chains: int | None = None, temperatures: int | None = None,
                 ais_seed: int | None = None) -> Tensor:
        """-F(x) - log Z in nats, (B,) float64; `log_partition` says what the options are.

        The error of an estimated log Z is common to all examples; the protocol states it.
        """
        log_z = self.log_partition(chains, temperatures, ais_seed)
        v, weight = self._units(batch, rng)
        return -self.free_energy(v).double() - log_z.value + weight

    def score_protocol(self) -> dict[str, Any]:
        log_z = self.log_partition()  # that of the last log_prob
        return {"log_z": log_z.value, "log_z_error": log_z.error, **log_z.protocol,
                **(self.view.protocol() if self.view else {})}

    def diagnose(self, batches: Iterable[Batch]) -> list[Diagnostic]:
        """`log_z`; of an estimate also `log_z_reverse` and `log_z_from_data`, found by annealing the other way.

        With few temperatures AIS errs to a smaller log Z, which flatters the model, and its way back to a larger one:
        `log_z_reverse` starts where the forward runs ended, drawn by their weights (bidirectional Monte Carlo, Grosse
        et al. 2015, arXiv:1511.02543, with these for exact samples). If they agree the annealing is slow enough.

        Modes that no forward run found are in neither; `log_z_from_data`, which starts at data and 100 Gibbs steps, is
        then larger by far. It is larger by a little where the chains do not mix: data visits other modes more often.
        """
        log_z = self.log_partition()
        protocol = log_z.protocol
        diagnoses = [Diagnostic("log_z", log_z.value, "nats", log_z.kind, log_z.error, protocol)]
        if log_z.kind == "exact":
            return diagnoses
        assert log_z.reverse is not None  # an estimate has it
        diagnoses.append(Diagnostic("log_z_reverse", log_z.reverse, "nats", "estimate", log_z.reverse_error, protocol))
        chains, temperatures = protocol["chains"], max(1, protocol["temperatures"] // 10)
        some = (self._units(batch, None)[0] for batch in itertools.islice(batches, -(-chains // self.block)))
        x = torch.cat(list(some))[:chains]
        noise = StepStream(len(x), generator(protocol["ais_seed"], "from data", device=self.device))
        p = torch.sigmoid(self.hidden_logits(x))
        h = self.gibbs(draw_bernoulli(p, noise), 100, noise)
        value, error = self._reverse_ais(self.visible.draw(self._links().shift(h), noise), temperatures, noise)
        diagnoses.append(Diagnostic("log_z_from_data", value, "nats", "estimate", error,
                                    {**protocol, "chains": len(x), "temperatures": temperatures, "start": "data"}))
        return diagnoses

    # --- log Z

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
        log_z = (self.ais(**options) if self.likelihood == "estimate"
                 else LogPartition(value=self._sum_over_states()))
        self._log_z = weights, log_z
        return log_z

    @property
    def _enumerated(self) -> Literal["hidden", "visible"] | None:
        """The units over whose states Z is summed exactly; None if both have too many."""
        if self.config.hidden <= ENUMERABLE:
            return "hidden"
        return "visible" if self.size <= ENUMERABLE and isinstance(self.visible, BernoulliUnits) else None

    @torch.no_grad()
    def _sum_over_states(self) -> float:
        """log Z, summed in float64 over all states of the units that are `_enumerated`."""
        model = self.clone().double()
        if self._enumerated == "hidden":
            links = model._links()
            return _log_sum(h @ model.bias + model.visible.log_partition(links.shift(h))
                            for h in self._states(self.config.hidden))
        return _log_sum(-model.free_energy(v) for v in self._states(self.size))

    def _states(self, units: int) -> Iterator[Tensor]:
        """All states of binary units, (up to 4096, units) float64 at a time."""
        for part in torch.arange(2**units, device=self.device).split(4096):
            yield (part[:, None] >> torch.arange(units, device=self.device) & 1).double()

    def ais(self, chains: int, temperatures: int, ais_seed: int) -> LogPartition:
        """log Z by annealing M chains from the base rates to the model, and back from where they ended."""
        noise = StepStream(chains, generator(ais_seed, "ais", device=self.device))
        v = self.visible.draw(torch.zeros(chains, self.size, device=self.device), noise, 0.0)
        log_weight, v = self._anneal(v, _schedule(temperatures), noise)
        log_mean, error = _log_mean(log_weight)
        # Systematic resampling: as many copies of each end as its weight says, to within one.
        places = (torch.arange(chains, device=self.device) + noise.uniform()[0]) / chains
        ends = torch.searchsorted(torch.softmax(log_weight, 0).cumsum(0), places.double()).clamp(max=chains - 1)
        reverse, reverse_error = self._reverse_ais(v[ends], temperatures, noise)
        return LogPartition(value=self._base_log_partition() + log_mean, error=error, kind="estimate",
                            reverse=reverse, reverse_error=reverse_error,
                            protocol={"method": "AIS", "chains": chains, "temperatures": temperatures,
                                      "ais_seed": ais_seed})

    def _reverse_ais(self, v: Tensor, temperatures: int, noise: Rng) -> tuple[float, float]:
        """log Z and its standard error by annealing draws v (M, D) of the model to the base rates."""
        log_weight, _ = self._anneal(v, _schedule(temperatures)[::-1], noise)
        log_mean, error = _log_mean(log_weight)
        return self._base_log_partition() - log_mean, error

    def _base_log_partition(self) -> float:
        """log Z at temperature 0: the visible units at their base rates, every hidden unit either way."""
        return self.visible.base_log_partition() + self.config.hidden * math.log(2)

    @torch.no_grad()
    def _anneal(self, v: Tensor, betas: list[float], noise: Rng) -> tuple[Tensor, Tensor]:
        """Chains v (M, D) led through p*_beta: importance weights log p*_last / p*_first (M,) float64, and their ends.

        -log p*_beta(v) = (1 - beta) E_base(v) + beta (E(v) + E_centre(v)) - sum_j log(1 + exp(beta logit_j(v))), with
        E_centre(v) = ACTIVITY sum_j (logit_j(v) - bias_j)
        """
        links = self._links()
        log_weight = torch.zeros(len(v), dtype=torch.float64, device=v.device)
        for before, after in itertools.pairwise(betas):
            logits = links.logits(v)
            gain = (F.softplus(after * logits) - F.softplus(before * logits)).sum(1, dtype=torch.float64)
            centre = ACTIVITY * (logits - self.bias).sum(1)
            log_weight += gain + (after - before) * (self.visible.base_energy(v) - self.visible.energy(v) - centre)
            v = self.visible.draw(links.shift(draw_bernoulli(torch.sigmoid(after * logits), noise)), noise, after)
        return log_weight, v


def _in_rows(model: RBM, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Older model files hold the units of pixels and columns, not of rows of the view."""
    if (centre := state.pop(f"{prefix}visible.centre", None)) is not None:
        view, scale = model.view, state[f"{prefix}visible.scale"]
        assert isinstance(view, Standardised)  # nothing else was known then
        state[f"{prefix}visible.shift"] = ((centre - view.mean) / view.scale).float()
        state[f"{prefix}visible.scale"] = (scale / view.scale).float()


@dataclass
class _Links:
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


def _rounded(tensor: Tensor) -> Tensor:
    """As autocast gives it to a matrix product, for several of them; 0 and 1 stay what they are."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


def _schedule(temperatures: int) -> list[float]:
    """Inverse temperatures from 0 to 1, as dense as in Salakhutdinov & Murray 2008: 500 to 0.5, 4000 to 0.9, 10000."""
    knots = np.array([0, 500, 4500, 14500]) / 14500
    return np.interp(np.linspace(0, 1, temperatures + 1), knots, [0, 0.5, 0.9, 1]).tolist()


def _log_mean(log_weights: Tensor) -> tuple[float, float]:
    """log of the mean of M weights, and its standard error by the delta method."""
    highest = log_weights.max()
    weights = torch.exp(log_weights - highest)
    error = weights.std() / weights.mean() / math.sqrt(len(weights))
    return float(highest + weights.mean().log()), float(error)


def _log_sum(blocks: Iterator[Tensor]) -> float:
    return float(torch.logsumexp(torch.stack([torch.logsumexp(block, 0) for block in blocks]), 0))


class _CoarseStream(StepStream):
    """The noise of a training step with uniform numbers of 16 bits, which cost half as much as those of torch."""

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        count = len(self) * math.prod(shape)
        words = torch.empty(-(-count // 4), dtype=torch.int64, device=self.device)
        bits = words.random_(-(2**63), None, generator=self.generator).view(torch.int16)[:count]
        return bits.to(dtype).mul_(2**-16).add_(0.5 + 2**-17).view(len(self), *shape)


class _ChainStreams:
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
