"""Deep Boltzmann machine: Salakhutdinov & Hinton 2009, "Deep Boltzmann Machines".

Layers of hidden units, each tied to the ones above and below it alone. Given the odd layers those of even number, the
visible units among them, are independent, and the other way round: a Gibbs step draws the even layers, then the odd
ones. The gradient is the gap of mean energies between data, with the hidden units of each example inferred by mean
field to convergence, and persistent chains (PCD-k). Units are centred, visible ones at the mean of the data and hidden
ones at the activity they start with (Montavon & Mueller 2012), so that all layers can be trained together from the
start. `--pretrain` trains the layers below first, as the machine that they are without those above; before a layer is
added, the one below is centred anew, at its mean activity. As the weights of the new layer start near 0, it begins with
the likelihood of that machine, and goes on at a tenth of the learning rate, so that noise does not cost it. (No weight
has to be doubled for it, as in the stack of RBMs of 2009, trained apart.)

log p(v) >= E_q[-E(v, h)] + H(q) - log Z with the q of mean field. log Z is summed over the states of the odd layers
where they have at most 20 units, else estimated by annealed importance sampling (AIS) over the odd layers with the even
ones summed out, from both sides: `gencli.layers.boltzmann.Machine`.

Shapes: B batch, D visible units, H units of a hidden layer, M chains.
"""

import copy
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from gencli.layers.boltzmann import (
    ACTIVITY,
    ENUMERABLE,
    REFINING,
    BoltzmannModel,
    CoarseStream,
    LogPartition,
    Machine,
    binary_states,
    log_mean,
    log_sum,
    resampled,
    rounded,
    schedule,
)
from gencli.layers.filters import filters_by_layer
from gencli.layers.visible_units import BernoulliUnits, GaussianUnits, draw_bernoulli
from gencli.model import (
    Batch,
    Diagnostic,
    FamilyConfig,
    Loss,
    NetSize,
    Phase,
    Player,
    Sizes,
    Spec,
    net_size,
    parse_widths,
)
from gencli.rng import Rng, StepStream, generator

# Mean field ends for an example when no probability of it moves by more than this in a pass over all layers; earlier in
# training, for an error of q changes the bound by its square.
TOLERANCE, IN_TRAINING = 1e-5, 1e-2
PASSES, IN_GRAPH = 100, 10  # at most; in a graph, which cannot end early, all of them

States = list[Tensor]  # of the visible units (B, D) and of each hidden layer (B, H), 0 and 1 or probabilities


# ---------------------------------------------------------------------------------------------------------------------
# The machine


@dataclass
class DeepLinks:
    """What each layer tells its neighbours, with the weights made ready for many steps; by the number of the lower."""

    up: list[Tensor]  # (D or H below, H above)
    up_centre: list[Tensor]  # what the centre of the layer below would tell
    down: list[Tensor]  # (H above, D or H below)
    down_centre: list[Tensor]

    def field(self, layer: int, states: States, told: Mapping[int, Tensor] | None = None) -> Tensor:
        """What the neighbours of a layer, of those in `states`, add to the biases of its units, (B, D or H).

        `told`: what was already computed, by the number of the neighbour.
        """
        told = told or {}
        return sum((told[other] if other in told else self.tell(other, layer, states[other])
                    for other in (layer - 1, layer + 1) if 0 <= other < len(states)), torch.zeros(()))

    def tell(self, layer: int, neighbour: int, state: Tensor) -> Tensor:
        """What a layer adds to the biases of one beside it."""
        lower = min(layer, neighbour)
        if layer == lower:
            return (state @ self.up[lower]).to(state.dtype) - self.up_centre[lower]
        return (state @ self.down[lower]).to(state.dtype) - self.down_centre[lower]


class DeepMachine(Machine):
    """E(v, h) = E(v) - sum_l bias_l . h_l - sum_l (h_l-1 - c_l-1) W_l (h_l - c_l), h binary, with centres c.

    Of the lowest weights, h_0 - c_0 is (v - mean) / variance. `states` of fewer layers are those of the machine without
    the layers above.
    """

    def __init__(self, visible: BernoulliUnits | GaussianUnits, widths: list[int]):
        super().__init__()
        self.visible = visible
        self.widths = widths
        sizes = [len(visible.bias), *widths]
        self.weights = nn.ParameterList(0.01 * torch.randn(sizes) for sizes in itertools.pairwise(sizes))
        self.biases = nn.ParameterList(torch.full((size,), math.log(ACTIVITY / (1 - ACTIVITY))) for size in widths)
        for number, size in enumerate(widths, start=1):
            self.register_buffer(f"centre{number}", torch.full((size,), ACTIVITY))

    @property
    def centres(self) -> list[Tensor]:
        """Of the visible units and of each hidden layer."""
        return [self.visible.mean, *(self.get_buffer(f"centre{number}") for number in range(1, len(self.widths) + 1))]

    @torch.no_grad()
    def centre(self, layer: int, centre: Tensor) -> None:
        """Move the centre of a hidden layer (H,); the biases beside it make up for it, and p(v, h) stays the same."""
        move = centre - self.centres[layer]
        below = self.biases[layer - 2] if layer > 1 else self.visible.bias
        below += self.weights[layer - 1] @ move
        if layer < len(self.widths):
            self.biases[layer] += move @ self.weights[layer]
        self.get_buffer(f"centre{layer}").copy_(centre)

    # --- energy and the conditional distributions

    def links(self) -> DeepLinks:
        weights = [self.visible.scale_weight(self.weights[0]), *self.weights[1:]]
        centres = self.centres
        # `mv` and not `@`, which autocast would round: this is added to every example alike.
        return DeepLinks([rounded(weight) for weight in weights],
                         [torch.mv(weight.T, centre) for weight, centre in zip(weights, centres, strict=False)],
                         [rounded(weight).T for weight in self.weights],
                         [torch.mv(weight, centre) for weight, centre in zip(self.weights, centres[1:], strict=True)])

    def energy(self, states: States, links: DeepLinks | None = None) -> Tensor:
        """E in nats, (B,); of probabilities that are independent of each other its mean."""
        links = links or self.links()
        energy = self.visible.energy(states[0])
        for layer, (bias, state, centre) in enumerate(zip(self.biases, states[1:], self.centres[1:], strict=False), 1):
            field = links.tell(layer - 1, layer, states[layer - 1])  # each link counts once
            energy = energy - (bias * state + field * (state - centre)).sum(1)
        return energy

    def expect(self, layer: int, states: States, links: DeepLinks, told: Mapping[int, Tensor] | None = None) -> Tensor:
        """The mean of the units of a layer given its neighbours, (B, D or H); `told` as for `DeepLinks.field`."""
        field = links.field(layer, states, told)
        return torch.sigmoid(self.biases[layer - 1] + field) if layer else self.visible.expect(field)

    def draw(self, layer: int, states: States, noise: Rng, links: DeepLinks, beta: float = 1.0) -> Tensor:
        """The units of a layer drawn given its neighbours, at an inverse temperature, (B, D or H)."""
        field = links.field(layer, states)
        if layer == 0:
            return self.visible.draw(field, noise, beta)
        return draw_bernoulli(torch.sigmoid(self.biases[layer - 1] + beta * field), noise)

    def sweep(self, states: States, side: int, noise: Rng, links: DeepLinks, beta: float = 1.0) -> States:
        """`states` with the even (`side` 0) or odd (1) layers drawn anew; those that they had do not matter."""
        states = list(states)
        for layer in range(side, len(states), 2):
            states[layer] = self.draw(layer, states, noise, links, beta)
        return states

    @torch.no_grad()
    def gibbs(self, states: States, steps: int, noise: Rng, links: DeepLinks | None = None) -> States:
        """States after `steps` steps, each of which draws the even layers and then the odd ones."""
        links = links or self.links()
        for _ in range(steps):
            states = self.sweep(self.sweep(states, 0, noise, links), 1, noise, links)
        return states

    # --- mean field

    def start(self, count: int, layers: int | None = None) -> States:
        """The centres of all layers for B examples; of the lowest `layers` hidden ones."""
        return [centre.expand(count, -1) for centre in self.centres[: None if layers is None else layers + 1]]

    def infer(self, v: Tensor, layers: int | None = None, links: DeepLinks | None = None,
              tolerance: float = TOLERANCE) -> States:
        """Visible units (B, D) and the mean field of the hidden units above them.

        Coordinate ascent of E_q[-E] + H(q), which never falls: the odd layers, then the even ones. Each example ends by
        itself, so that it does not depend on the others.
        """
        links = links or self.links()
        states = [v, *self.start(v.shape[0], layers)[1:]]
        told = {0: links.tell(0, 1, v)}
        moving = torch.ones(v.shape[0], 1, dtype=torch.bool, device=v.device)
        exporting = torch.compiler.is_exporting()
        for _ in range(IN_GRAPH if exporting else PASSES):
            change = torch.zeros_like(moving, dtype=states[0].dtype)
            for layer in (*range(1, len(states), 2), *range(2, len(states), 2)):
                state = self.expect(layer, states, links, told)
                change = change.maximum((state - states[layer]).abs().amax(1, keepdim=True))
                states[layer] = torch.where(moving, state, states[layer])
            moving = moving & (change > tolerance)
            if not exporting and not moving.any():
                break
        return states

    def bound(self, v: Tensor) -> Tensor:
        """E_q[-E(v, h)] + H(q) <= log sum_h exp(-E(v, h)) in nats, for visible units (B, D) -> (B,)."""
        states = self.infer(v)
        entropy = sum((torch.special.entr(q) + torch.special.entr(1 - q)).sum(1) for q in states[1:])
        return entropy - self.energy(states)

    # --- train

    def contrast(self, data: Tensor, chains: list[Tensor], steps: int, layers: int,
                 rng: Rng) -> tuple[Tensor, list[Tensor]]:
        """The gap of mean energies between data and chains, in nats; and the chains, moved on.

        Where the mean field is held fixed, the gradient is that of the bound: it is at its maximum there.

        Args:
            data: visible units (B, D).
            chains: persistent states (M, H) of the odd layers.
            steps: Gibbs steps that the chains make.
            layers: of the machine; those above are not there yet.
        """
        count = len(chains[0])
        noise = CoarseStream(count, torch.Generator(rng.device).manual_seed(int(rng.integers(2**31)[0])))
        with torch.no_grad():
            links = self.links()
            inferred = self.infer(data, layers, links, IN_TRAINING)
            ends = self.gibbs(self._of_odd(chains, layers), steps - 1, noise, links)
            ends = self.sweep(ends, 0, noise, links)
            for layer in range(1, layers + 1, 2):  # their means tell more than draws of them
                ends[layer] = self.expect(layer, ends, links)
            chains = [draw_bernoulli(p, noise) for p in ends[1::2]] + chains[(layers + 1) // 2 :]
            states = [torch.cat(both) for both in zip(inferred, ends, strict=True)]
            # What each state counts: the mean over the data less the mean over the chains.
            share = torch.cat([data.new_full((len(data),), 1 / len(data)), data.new_full((count,), -1 / count)])
            centres = self.centres
            centred = [share[:, None] * (states[layer] - centres[layer]) for layer in range(1, layers + 1)]
            statistics = [(rounded(below).T @ rounded(above)).float().addr_(centre, above.sum(0), alpha=-1)
                          for below, above, centre in zip(states, centred, centres, strict=False)]
        weights = [self.visible.scale_weight(self.weights[0]), *self.weights[1:]]
        gap = torch.dot(self.visible.energy(states[0]), share)
        for bias, state, weight, statistic in zip(self.biases, states[1:], weights, statistics, strict=False):
            gap = gap - torch.dot(bias, torch.mv(state.T, share)) - torch.dot(weight.flatten(), statistic.flatten())
        return gap, chains

    def _of_odd(self, odd: Iterable[Tensor], layers: int | None = None) -> States:
        """States with these odd layers (B, H); the even ones are still to be drawn."""
        odd = list(odd)
        states = self.start(len(odd[0]), layers)
        for layer, state in zip(range(1, len(states), 2), odd, strict=False):
            states[layer] = state
        return states

    # --- log Z

    @property
    def enumerable(self) -> bool:
        return sum(self.widths[::2]) <= ENUMERABLE

    @torch.no_grad()
    def sum_over_states(self) -> float:
        machine = copy.deepcopy(self).double()
        links = machine.links()

        def log_joint(odd: Tensor) -> Tensor:
            states = machine._of_odd(odd.split(self.widths[::2], 1))
            biased = sum(state @ bias for state, bias in zip(states[1::2], machine.biases[::2], strict=True))
            return biased + machine._log_sum_even(machine._even_fields(states, links), 1.0)

        return log_sum(log_joint(odd) for odd in binary_states(sum(self.widths[::2]), self.weights[0].device))

    def _even_fields(self, states: States, links: DeepLinks) -> list[Tensor]:
        return [links.field(layer, states) for layer in range(0, len(states), 2)]

    def _log_sum_even(self, fields: list[Tensor], beta: float) -> Tensor:
        """log of the sum of exp(-E) over the even layers, less the biases of the odd ones, (B,) float64."""
        total = self.visible.log_partition(fields[0], beta)
        for field, bias, centre in zip(fields[1:], self.biases[1::2], self.centres[2::2], strict=True):
            total = total + (F.softplus(bias + beta * field) - beta * centre * field).sum(1, dtype=torch.float64)
        return total

    @torch.no_grad()
    def ais(self, chains: int, temperatures: int, ais_seed: int) -> LogPartition:
        noise = StepStream(chains, generator(ais_seed, "ais", device=self.weights[0].device))
        odd = [draw_bernoulli(torch.sigmoid(bias).expand(chains, -1), noise) for bias in self.biases[::2]]
        log_weight, states = self._anneal(self._of_odd(odd), schedule(temperatures), noise)
        value, error = log_mean(log_weight)
        chosen = resampled(log_weight, noise)
        reverse, reverse_error = self.reverse_ais([state[chosen] for state in states], temperatures, noise)
        return LogPartition(value=self._base_log_partition() + value, error=error, kind="estimate",
                            reverse=reverse, reverse_error=reverse_error,
                            protocol={"method": "AIS", "chains": chains, "temperatures": temperatures,
                                      "ais_seed": ais_seed})

    def reverse_ais(self, states: States, temperatures: int, noise: Rng) -> tuple[float, float]:
        """log Z and its standard error by annealing draws of the model to the base rates."""
        log_weight, _ = self._anneal(states, schedule(temperatures)[::-1], noise)
        value, error = log_mean(log_weight)
        return self._base_log_partition() - value, error

    def _base_log_partition(self) -> float:
        """log Z at temperature 0: the visible units at their base rates, the hidden ones at their biases."""
        return self.visible.base_log_partition() + sum(float(F.softplus(bias.double()).sum()) for bias in self.biases)

    @torch.no_grad()
    def _anneal(self, states: States, betas: list[float], noise: Rng) -> tuple[Tensor, States]:
        """Chains led through p*_beta of the odd layers: weights log p*_last / p*_first (M,) float64, and their ends.

        p*_beta sums exp(-E_beta) over the even layers; E_beta = (1 - beta) E_base(v) + beta E(v) - sum_l bias_l . h_l -
        beta (the links).
        """
        links = self.links()
        log_weight = torch.zeros(len(states[1]), dtype=torch.float64, device=states[1].device)
        for before, after in itertools.pairwise(betas):
            fields = self._even_fields(states, links)
            log_weight += self._log_sum_even(fields, after) - self._log_sum_even(fields, before)
            states = self.sweep(self.sweep(states, 0, noise, links, after), 1, noise, links, after)
        return log_weight, states


# ---------------------------------------------------------------------------------------------------------------------
# The family


class DBMConfig(FamilyConfig):
    sizes: ClassVar = Sizes(widths=("500,1000", "1000,1000", "2000,2000"))
    net_size: NetSize = net_size(sizes)
    widths: str = Field("500,1000", description="Hidden units of each layer, the lowest first.")
    pretrain: float = Field(0.4, ge=0, lt=1, description="Share of the steps in which the layers below the top are "
                                                         "trained first, one more at a time.")
    chains: int = Field(256, ge=1, description="Persistent chains.")
    gibbs: int = Field(5, ge=1, description="Gibbs steps for each training step: the k of PCD-k.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Decay of the running mean of the gradient.")

    @field_validator("widths")
    @classmethod
    def _several(cls, text: str) -> str:
        return ",".join(map(str, parse_widths(text, least=2)))

    @property
    def hidden(self) -> list[int]:
        """Units of each hidden layer, the lowest first."""
        return parse_widths(self.widths)


class DBM(BoltzmannModel):
    """A `DeepMachine`; the code: the mean field of all hidden layers, from the lowest up, (B, sum of H)."""

    Config = DBMConfig
    kinds = frozenset({"image", "vector"})
    defaults = {"lr": 1e-3, "batch_size": 128, "schedule": "cosine", "warmup": 200, "ema": 0.999}
    likelihood = "bound"
    config: DBMConfig

    def __init__(self, config: DBMConfig, spec: Spec):
        super().__init__(config, spec)
        self.machine = DeepMachine(self.units_of(spec), config.hidden)
        self._chains = [torch.rand(config.chains, width).round() for width in config.hidden[::2]]
        self._activity, self._active = torch.zeros((), dtype=torch.float64), 0  # sum, and examples, of a later pass

    @property
    def visible(self) -> BernoulliUnits | GaussianUnits:
        return self.machine.visible

    # --- train

    def phases(self) -> list[Phase]:
        """One for each number of layers, which starts where the one before ended; between them passes for centres."""
        depth = len(self.config.hidden)
        phases = [Phase("base rates", share=0, accumulate=self.accumulate_visible, finish=self.visible.finish)]
        for layers in range(1 if self.config.pretrain else depth, depth + 1):
            if self.config.pretrain and layers > 1:
                phases.append(Phase(f"activity of layer {layers - 1}", share=0,
                                    accumulate=partial(self._accumulate_activity, layers - 1),
                                    finish=partial(self._centre, layers - 1)))
            share = 1 - self.config.pretrain if layers == depth else self.config.pretrain / (depth - 1)
            parameters = [*self.machine.visible.parameters(), *self.machine.weights[:layers],
                          *self.machine.biases[:layers]]
            player = Player("model", parameters, partial(self._loss, layers), betas=(self.config.momentum, 0.999),
                            lr_scale=REFINING if self.config.pretrain and layers > 1 else 1.0)
            phases.append(Phase(f"{layers} layers" if layers > 1 else "1 layer", [player], share))
        return phases

    @torch.no_grad()
    def _accumulate_activity(self, layers: int, batch: Batch) -> None:
        activity = self.machine.infer(self.units(batch, None)[0], layers, tolerance=IN_TRAINING)[-1]
        self._activity = self._activity + activity.sum(0, dtype=torch.float64)
        self._active += len(batch)

    def _centre(self, layer: int) -> bool:
        self.machine.centre(layer, (self._activity / self._active).float())
        self._activity, self._active = torch.zeros((), dtype=torch.float64), 0
        return True

    def training_state(self) -> dict[str, Tensor]:
        return {f"chains {layer}": chains for layer, chains in enumerate(self._chains)}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        self._chains = [state.get(f"chains {layer}", chains) for layer, chains in enumerate(self._chains)]

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """The gap of mean energies between data and chains, in nats; moves the chains on."""
        return self._loss(len(self.config.hidden), batch, rng)

    def _loss(self, layers: int, batch: Batch, rng: Rng) -> Loss:
        data, _ = self.units(batch, rng)
        chains = [chains.to(data.device) for chains in self._chains]
        gap, self._chains = self.machine.contrast(data, chains, self.config.gibbs, layers, rng)
        return Loss(gap)

    # --- sample, encode, decode

    def begin(self, noise: Rng) -> Tensor:
        """Coin flips."""
        return torch.full((len(noise), sum(self.config.hidden)), 0.5, device=self.device)

    @torch.no_grad()
    def walk(self, h: Tensor, steps: int, noise: Rng) -> Tensor:
        return torch.cat(self.machine.gibbs(self._states(h), steps, noise)[1:], 1)

    def generate(self, h: Tensor, noise: Rng | None) -> Batch:
        states, links = self._states(h), self.machine.links()
        return self.examples(self.machine.expect(0, states, links) if noise is None
                              else self.machine.draw(0, states, noise, links))

    def _states(self, code: Tensor) -> States:
        """A code as layers; the visible units are still to be drawn."""
        return [*self.machine.start(code.shape[0], 0), *code.split(self.config.hidden, 1)]

    def encode(self, batch: Batch, rng: Rng) -> Tensor:
        """The mean field of all hidden layers, from the lowest up, (B, sum of H) in [0, 1]."""
        return torch.cat(self.machine.infer(self.units(batch, None)[0])[1:], 1)

    @torch.no_grad()
    def filters(self) -> dict[str, Tensor]:
        """The weights of the units of each layer, (H, *example); of a higher one their product with those below."""
        first, *higher = self.machine.weights
        weights = [self.machine.visible.scale_weight(first), *higher]
        return filters_by_layer([weight.T for weight in weights], self.spec.shape)

    # --- score

    def log_prob(self, batch: Batch, rng: Rng, *, chains: int | None = None, temperatures: int | None = None,
                 ais_seed: int | None = None) -> Tensor:
        """E_q[-E] + H(q) - log Z in nats, (B,) float64; `Machine.log_partition` says what the options are.

        The error of an estimated log Z is common to all examples; the protocol states it.
        """
        log_z = self.machine.log_partition(chains, temperatures, ais_seed)
        v, weight = self.units(batch, rng)
        return self.machine.bound(v).double() - log_z.value + weight

    def score_protocol(self) -> dict[str, Any]:
        return {**self.machine.protocol(), **(self.view.protocol() if self.view else {})}

    def diagnose(self, batches: Iterable[Batch]) -> list[Diagnostic]:
        """`log_z`, and of an estimate `log_z_reverse`: see `Machine.diagnose`."""
        return self.machine.diagnose()

    def findings(self) -> dict[str, Any]:
        return self.machine.findings()

    def load_findings(self, found: dict[str, Any]) -> None:
        self.machine.load_findings(found)
