"""Deep belief network: Hinton, Osindero & Teh 2006, "A Fast Learning Algorithm for Deep Belief Nets".

p(x, h_1, ..., h_L) = p(x|h_1) p(h_1|h_2) ... p(h_(L-1), h_L): directed layers below a restricted Boltzmann machine. It
is trained greedily, a phase for each layer: a machine learns the data, the next one what hidden units the first infers
from the data, and so on; then the weights of a lower machine become p(h_(l-1)|h_l), and its p(h_l|h_(l-1)) the
recognition q.

A layer starts as the machine below turned over, with its visible units as the uppermost ones: then the deeper network
has the likelihood of the one that it grew from, and what the layer learns from there raises the bound; it learns at a
tenth of the learning rate, for the noise of larger steps would cost more than that. This needs as many units as there
are two layers below, and binary ones. Units beyond those start with weights near 0, which change next to nothing. A
layer of fewer, or above real numbers, starts at the base rates of its input, all weights near 0: it has to learn first
what the one below knew.

`--fine-tuning` adds the up-down algorithm of the same paper, contrastive wake-sleep: recognition gets weights of its
own, and all layers move at once.

log p(x) >= E_q[log p(x, h_1, ..., h_(L-1)) - log q(h_1, ..., h_(L-1)|x)] is a bound, whose log Z, of the machine at the
top, is found as in `rbm`: Salakhutdinov & Murray 2008, "On the Quantitative Analysis of Deep Belief Networks".
`--set sweeps=30` also gives the estimator of Murray & Salakhutdinov 2009, "Evaluating Probabilities under
High-Dimensional Latent Variable Models", whose p(x) has no bias, by a Markov chain through the posterior.

Shapes: B batch, D visible units, H_l hidden units of layer l, M chains.
"""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from gencli.errors import UsageError
from gencli.layers.boltzmann import ACTIVITY, REFINING, BoltzmannModel, CoarseStream, Links, RestrictedMachine
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
    Score,
    Sizes,
    Spec,
    net_size,
    parse_widths,
)
from gencli.rng import Rng


class DBNConfig(FamilyConfig):
    sizes: ClassVar = Sizes(widths=("500,2000", "1000,3000", "2000,4000"))
    net_size: NetSize = net_size(sizes)
    widths: str = Field("500,2000", description="Hidden units of each layer, the lowest first.")
    chain: Literal["pcd", "cd"] = Field("pcd", description="Gibbs chains of the gradient: pcd: kept from step to step; "
                                                           "cd: started at the data.")
    chains: int = Field(512, ge=1, description="Persistent chains of pcd.")
    gibbs: int = Field(1, ge=1, description="Gibbs steps for each training step: the k of CD-k.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Decay of the running mean of the gradient.")
    fine_tuning: float = Field(0.0, ge=0, description="Steps of up-down fine-tuning, relative to those of a layer.")

    @field_validator("widths")
    @classmethod
    def _several(cls, text: str) -> str:
        return ",".join(map(str, parse_widths(text, least=2)))

    @property
    def hidden(self) -> list[int]:
        """Units of each hidden layer, the lowest first."""
        return parse_widths(self.widths)


class DBN(BoltzmannModel):
    """A `RestrictedMachine` for each layer; the code: q(h_L = 1|x), (B, H_L).

    A training that was stopped in a lower layer leaves a network of the layers that it has.
    """

    Config = DBNConfig
    kinds = frozenset({"image", "vector"})
    defaults = {"lr": 1e-3, "batch_size": 128, "schedule": "cosine", "ema": 0.999}
    likelihood = "bound"
    config: DBNConfig
    stage: Tensor

    def __init__(self, config: DBNConfig, spec: Spec):
        super().__init__(config, spec)
        self.machines, visible = nn.ModuleList(), self.units_of(spec)
        for layer, hidden in enumerate(config.hidden):
            self.machines.append(RestrictedMachine(visible, hidden))
            chains = config.chains if config.chain == "pcd" else 0
            self.register_buffer(f"_chains_{layer}", torch.rand(chains, hidden).round(), persistent=False)
            visible = BernoulliUnits(hidden)
        lower = self._lower() if config.fine_tuning else []
        self.recognition = nn.ModuleList(nn.Linear(machine.size, machine.hidden) for machine in lower)
        self.register_buffer("stage", torch.tensor(1))
        self._take_stage(1)
        self.register_load_state_dict_post_hook(_of_file)

    def _lower(self) -> list[RestrictedMachine]:
        """The machines below the uppermost one, that is, the directed layers of the whole network."""
        return [self._machine(layer) for layer in range(len(self.config.hidden) - 1)]

    def _machine(self, layer: int) -> RestrictedMachine:
        machine = self.machines[layer]
        assert isinstance(machine, RestrictedMachine)
        return machine

    def _take_stage(self, stage: int) -> None:
        """Layers that have begun, and one more once recognition has weights of its own; model files hold it."""
        self.stage.fill_(stage)
        self.depth, self._own = min(stage, len(self.machines)), stage > len(self.machines)

    @property
    def visible(self) -> BernoulliUnits | GaussianUnits:
        return self._machine(0).visible

    @property
    def top(self) -> RestrictedMachine:
        return self._machine(self.depth - 1)

    # --- train

    def phases(self) -> list[Phase]:
        phases = []
        for layer, machine in enumerate(map(self._machine, range(len(self.machines)))):
            phases.append(Phase(f"base rates {layer + 1}", share=0, accumulate=partial(self._accumulate, layer),
                                finish=machine.visible.finish))
            player = self._player(list(machine.parameters()), self._loss_of(layer))
            player.lr_scale = REFINING if self._turned(layer) else 1.0
            phases.append(Phase(f"layer {layer + 1}", [player], begin=partial(self._begin, layer)))
        if self.config.fine_tuning:
            idle = {id(machine.bias) for machine in self._lower()}  # recognition has taken them over
            moving = [parameter for parameter in self.parameters() if id(parameter) not in idle]
            phases.append(Phase("up-down", [self._player(moving, self._loss_up_down)], share=self.config.fine_tuning,
                                begin=self._untie))
        return phases

    def _player(self, parameters: list[nn.Parameter], loss: Any) -> Player:
        return Player("model", parameters, loss, betas=(self.config.momentum, 0.999))

    def _accumulate(self, layer: int, batch: Batch) -> None:
        if layer:
            self._machine(layer).visible.accumulate(self._up(self.units(batch, None)[0], layer))
        else:
            self.accumulate_visible(batch)

    def _begin(self, layer: int) -> None:
        """Start a layer as the one below turned over, if it can be, and its chains at those of the one below."""
        self._take_stage(layer + 1)
        if not layer:
            return
        machine = self._machine(layer)
        if self._turned(layer):
            turn_over(self._machine(layer - 1), machine)
        chains = self._chains(layer - 1)
        self._keep(layer, torch.bernoulli(torch.sigmoid(machine.hidden_logits(chains))))

    def _turned(self, layer: int) -> bool:
        """Whether a layer (from 0) starts as the one below turned over."""
        below = self._machine(layer - 1) if layer else None
        return (below is not None and isinstance(below.visible, BernoulliUnits)
                and self._machine(layer).hidden >= below.size)

    def _chains(self, layer: int) -> Tensor:
        chains = getattr(self, f"_chains_{layer}")
        assert isinstance(chains, Tensor)
        return chains

    def _keep(self, layer: int, chains: Tensor) -> None:
        setattr(self, f"_chains_{layer}", chains)

    def training_state(self) -> dict[str, Tensor]:
        if self.config.chain == "cd":
            return {}
        return {f"chains {layer + 1}": self._chains(layer) for layer in range(len(self.machines))}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        for layer in range(len(self.machines)):
            self._keep(layer, state.get(f"chains {layer + 1}", self._chains(layer)))

    def _loss_of(self, layer: int) -> Any:
        def loss(batch: Batch, rng: Rng) -> Loss:
            with torch.no_grad():
                states = self._wake(batch, rng, layer)
            return Loss(self._contrast(layer, states[-1], rng)[0])

        return loss

    def _wake(self, batch: Batch, rng: Rng, layers: int) -> list[Tensor]:
        """The visible units of examples and a draw of each of so many layers above them."""
        states = [self.units(batch, rng)[0]]
        for layer in range(layers):
            states.append(draw_bernoulli(torch.sigmoid(self._recognise(layer, states[-1])), rng))
        return states

    def _contrast(self, layer: int, data: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """The gap of mean energies between data and chains in nats, and the chains, which move on."""
        persistent = self.config.chain == "pcd"
        chains = self._chains(layer) if persistent else None
        gap, ends = self._machine(layer).contrast(data, chains, self.config.gibbs, rng)
        if persistent:
            self._keep(layer, ends)
        return gap, ends

    def _untie(self) -> None:
        """Recognition gets the weights of the machines, which are those of the generative pass alone from now on."""
        self._take_stage(len(self.machines) + 1)
        for linear, machine in zip(self.recognition, self._lower(), strict=True):
            links = machine.links()
            linear.get_parameter("weight").copy_(links.up.T)
            linear.get_parameter("bias").copy_(links.up_bias)

    def _loss_up_down(self, batch: Batch, rng: Rng) -> Loss:
        """Of draws of recognition: how the generative pass explains them, and their gap of energies at the top (wake).

        Of draws of the network itself, from the chains at its top: how recognition explains them (sleep).
        """
        lower = self._lower()
        with torch.no_grad():
            awake = self._wake(batch, rng, len(lower))
        wake = torch.stack([-machine.visible.log_prob(below, machine.links().shift(above)).mean()
                            for machine, below, above in zip(lower, awake, awake[1:], strict=False)]).sum()
        gap, chains = self._contrast(len(lower), awake[-1], rng)
        with torch.no_grad():
            noise = CoarseStream.of_step(len(chains), rng)
            dreamt = self._down(chains, noise, len(lower))
        sleep = torch.stack([-bernoulli(above, linear(below)).mean()
                             for linear, below, above in zip(self.recognition, dreamt, dreamt[1:], strict=False)]).sum()
        return Loss(wake + gap + sleep, wake=wake, gap=gap, sleep=sleep)

    # --- up and down

    def _recognise(self, layer: int, below: Tensor) -> Tensor:
        """Logits of q(h|what is below), (B, H) of the layer."""
        own = self._own and layer < len(self.recognition)
        logits = self.recognition[layer](below) if own else self._machine(layer).hidden_logits(below)
        assert isinstance(logits, Tensor)
        return logits

    def _up(self, v: Tensor, layers: int) -> Tensor:
        """Probabilities of so many layers, each from those of the one below, the uppermost (B, H)."""
        for layer in range(layers):
            v = torch.sigmoid(self._recognise(layer, v))
        return v

    def _down(self, h: Tensor, noise: Rng | None, layers: int) -> list[Tensor]:
        """The visible units and so many layers above them, from the hidden units of the one above these.

        A draw of each; `noise` None: the mean of each, from that of the one above.
        """
        states: list[Tensor] = []
        for layer in reversed(range(layers + 1)):
            machine = self._machine(layer)
            shift = machine.links().shift(states[0] if states else h)
            states.insert(0, machine.visible.expect(shift) if noise is None else machine.visible.draw(shift, noise))
        return states

    # --- sample, encode, decode

    def begin(self, noise: Rng) -> Tensor:
        """The base rates: coin flips, half of the units at the top, would be far from all that training has seen."""
        v = self.top.visible.draw(torch.zeros(len(noise), self.top.size, device=self.device), noise, 0.0)
        return torch.sigmoid(self.top.hidden_logits(v))

    def walk(self, h: Tensor, steps: int, noise: Rng) -> Tensor:
        return self.top.gibbs(h, steps, noise)

    def generate(self, h: Tensor, noise: Rng | None) -> Batch:
        """The generative pass: a draw of every layer, or the mean of each from that of the one above."""
        return self.examples(self._down(h, noise, self.depth - 1)[0])

    def encode(self, batch: Batch, rng: Rng) -> Tensor:
        """q(h_L = 1|x), each layer from the probabilities of the one below, (B, H_L) in [0, 1]."""
        return self._up(self.units(batch, None)[0], self.depth)

    def filters(self) -> dict[str, Tensor]:
        """The weights of each hidden unit, (H_l, *example); of a higher layer, those of the ones below combined."""
        machines = map(self._machine, range(self.depth))
        weights = [machine.visible.scale_weight(machine.weight).T for machine in machines]
        return filters_by_layer(weights, self.spec.shape)

    # --- score

    def log_prob(self, batch: Batch, rng: Rng, *, draws: int = 10, chains: int | None = None,
                 temperatures: int | None = None, ais_seed: int | None = None) -> Tensor:
        """A bound on log p(x) in nats, (B,) float64, by so many `draws` of recognition.

        `RestrictedMachine.log_partition` says what the others are: the bound has the error of log Z, which is common to
        all examples; the protocol states it.

        Raises:
            UsageError: no draws.
        """
        if draws < 1:
            raise UsageError(f"draws={draws}: the bound needs 1 or more")
        log_z = self.top.log_partition(chains, temperatures, ais_seed)
        total = torch.zeros(len(batch), dtype=torch.float64, device=self.device)
        for _ in range(draws):
            h, weight = self.units(batch, rng)
            total += weight
            for layer in range(self.depth - 1):
                logits = self._recognise(layer, h)
                above = draw_bernoulli(torch.sigmoid(logits), rng)
                machine = self._machine(layer)
                total += machine.visible.log_prob(h, machine.links().shift(above))
                total -= bernoulli(above, logits)  # of the draw: where q is the posterior, there is no noise
                h = above
            total -= self.top.free_energy(h)
        return total / draws - log_z.value

    def scores(self, batch: Batch, rng: Rng, *_: Any, draws: int = 10, sweeps: int = 0, chains: int | None = None,
               temperatures: int | None = None, ais_seed: int | None = None) -> dict[str, Score]:
        """`nll`, the bound; with so many `sweeps` also `nll_estimate` and the `bound_gap` between the two.

        `RestrictedMachine.log_partition` says what the other options are.
        """
        bound = -self.log_prob(batch, rng, draws=draws, chains=chains, temperatures=temperatures, ais_seed=ais_seed)
        protocol = {**self.score_protocol(), "draws": draws}
        scores = {"nll": Score(bound, "nats", "bound", protocol=protocol)}
        if sweeps:
            estimate = -self.estimate(batch, rng, sweeps)
            own = {**self.score_protocol(), "method": "Murray & Salakhutdinov 2009", "sweeps": sweeps}
            scores |= {"nll_estimate": Score(estimate, "nats", "estimate", protocol=own),
                       "bound_gap": Score(bound - estimate, "nats", "estimate", protocol=own)}
        return scores

    def estimate(self, batch: Batch, rng: Rng, sweeps: int) -> Tensor:
        """log of an estimate of p(x) that is right on average but for the error of log Z, in nats, (B,) float64.

        For any state h* of the layers between, p(x) = p(x, h*) / p(h*|x), and p(h*|x) is the mean of T(h* <- h) over
        the posterior, T one sweep of Gibbs sampling through all units. Here the mean is over a chain of `sweeps` states
        which goes both ways from a place of it, drawn with equal chances, whose state follows h* by T reversed (Murray
        & Salakhutdinov 2009, section 4). h* is a draw of recognition after as many sweeps, and two more in which each
        unit takes its likelier value.

        Raises:
            UsageError: no sweeps.
        """
        if sweeps < 1:
            raise UsageError(f"sweeps={sweeps}: the estimator needs 1 or more")
        if self.depth == 1:  # nothing is between: the bound is exact
            return self.log_prob(batch, rng, draws=1)
        v, weight = self.units(batch, rng)
        states = [v]
        for layer in range(self.depth - 1):
            states.append(draw_bernoulli(torch.sigmoid(self._recognise(layer, states[-1])), rng))
        posterior = Posterior([self._machine(layer) for layer in range(self.depth)], v)
        star = torch.cat(states[1:], dim=1)
        units = star.shape[1]
        for _ in range(sweeps):
            star, _ = posterior.sweep(star, rng.uniform(units))
        for _ in range(2):
            star, _ = posterior.sweep(star, torch.full_like(star, 0.5))
        middle, _ = posterior.sweep(star, rng.uniform(units), reverse=True)
        to_come = rng.integers(sweeps)  # of the states, after the one in the middle
        chain, returns = middle, []
        for step in range(1, sweeps + 1):
            returns.append(posterior.sweep(chain, FORCED * (0.5 - star))[1])
            if step == sweeps:
                break
            ahead = to_come >= step
            chain, noise = torch.where((to_come == step - 1)[:, None], middle, chain), rng.uniform(units)
            moved = torch.empty_like(chain)
            for rows, reverse in ((ahead, False), (~ahead, True)):
                moved[rows], _ = posterior.sweep(chain[rows], noise[rows], rows, reverse)
            chain = moved
        posterior_of_star = torch.logsumexp(torch.stack(returns), 0) - math.log(sweeps)
        return posterior.log_joint(star) - self.top.log_partition().value - posterior_of_star + weight

    def score_protocol(self) -> dict[str, Any]:
        return {**self.top.protocol(), **(self.view.protocol() if self.view else {})}

    def diagnose(self, batches: Iterable[Batch]) -> list[Diagnostic]:
        """`log_z` of the machine at the top; of an estimate also `log_z_reverse` (see `RestrictedMachine.diagnose`)."""
        return self.top.diagnose()

    def findings(self) -> dict[str, Any]:
        return self.top.findings()

    def load_findings(self, found: dict[str, Any]) -> None:
        self.top.load_findings(found)


def _of_file(model: DBN, _: object) -> None:
    model._take_stage(int(model.stage))


# ---------------------------------------------------------------------------------------------------------------------
# The posterior, and what else is about the layers alone

FORCED = 4.0  # times -1/2 or 1/2 it decides a unit whatever its probability


class Posterior:
    """p(h_1, ..., h_(L-1)|x) for rows of examples; states of all layers side by side, (R, H_1 + ... + H_(L-1))."""

    def __init__(self, machines: list[RestrictedMachine], v: Tensor):
        """`machines`: of all layers, the uppermost last; `v` (R, D): visible units of the examples."""
        *self.lower, self.top = machines
        self.v = v
        self.links = [machine.links() for machine in machines]
        self.widths = [machine.hidden for machine in self.lower]

    def log_joint(self, h: Tensor) -> Tensor:
        """log p(x, h) + log Z in nats, (R,) float64."""
        states = [self.v, *h.split(self.widths, dim=1)]
        total = -self.top.free_energy(states[-1]).double()
        for machine, links, below, above in zip(self.lower, self.links, states, states[1:], strict=False):
            total += machine.visible.log_prob(below, links.shift(above))
        return total

    def sweep(self, h: Tensor, uniform: Tensor, rows: Tensor | slice = slice(None),
              reverse: bool = False) -> tuple[Tensor, Tensor]:
        """Gibbs sampling of each unit in turn given x and all others: the new states, and log of their probability.

        The hidden units at the top are summed out. A unit is 1 where its number of `uniform` (R, H) is below its
        probability. `rows`: which of the examples the states belong to. `reverse`: last unit first, which is the
        reverse of the Markov chain.
        """
        states = [self.v[rows], *(part.clone() for part in h.split(self.widths, dim=1))]
        numbers = uniform.split(self.widths, dim=1)
        log_prob = torch.zeros(len(h), dtype=torch.float64, device=h.device)
        for layer in reversed(range(len(self.lower))) if reverse else range(len(self.lower)):
            visible, below, own = self.lower[layer].visible, states[layer], states[layer + 1]
            down = self.links[layer].down
            shift = self.links[layer].shift(own)
            explained = visible.log_prob(below, shift)
            prior = (Directed(self.lower[layer + 1].visible.bias + self.links[layer + 1].shift(states[layer + 2]))
                     if layer + 1 < len(self.lower) else Undirected(self.top, self.links[-1], own))
            for unit in reversed(range(own.shape[1])) if reverse else range(own.shape[1]):
                change = 1 - 2 * own[:, unit]
                other = torch.addcmul(shift, change[:, None], down[unit])
                explained_then = visible.log_prob(below, other)
                logit = change * (explained_then - explained + prior.gain(unit, change))
                on = numbers[layer][:, unit] < torch.sigmoid(logit)
                log_prob += F.logsigmoid(torch.where(on, logit, -logit))
                flip = on.float() != own[:, unit]
                own[:, unit] = on.float()
                shift = torch.where(flip[:, None], other, shift)
                explained = torch.where(flip, explained_then, explained)
                prior.take(flip)
        return torch.cat(states[1:], dim=1), log_prob


class Directed:
    """log p(h|the layer above) of one layer of a sweep; `logits` (R, H)."""

    def __init__(self, logits: Tensor):
        self.logits = logits

    def gain(self, unit: int, change: Tensor) -> Tensor:
        """By how much it grows where `unit` changes by 1 or -1, (R,)."""
        return change * self.logits[:, unit]

    def take(self, flip: Tensor) -> None:
        """The change is made in these rows."""


class Undirected:
    """The same of the visible units of the machine at the top, whose hidden units are summed out; h (R, H)."""

    def __init__(self, machine: RestrictedMachine, links: Links, h: Tensor):
        self.links = links
        self.logits = links.logits(h)
        self.value = F.softplus(self.logits).sum(1)
        self.alone = machine.visible.bias - ACTIVITY * links.up.sum(1)

    def gain(self, unit: int, change: Tensor) -> Tensor:
        self.other = torch.addcmul(self.logits, change[:, None], self.links.up[unit])
        self.then = F.softplus(self.other).sum(1)
        return self.then - self.value + change * self.alone[unit]

    def take(self, flip: Tensor) -> None:
        self.logits = torch.where(flip[:, None], self.other, self.logits)
        self.value = torch.where(flip, self.then, self.value)


@torch.no_grad()
def turn_over(below: RestrictedMachine, machine: RestrictedMachine) -> None:
    """Make `machine` that of the hidden units of `below` with its visible units, binary ones, as the hidden ones.

    Hidden units beyond those stay as they are. The states of all others have the energy that they have in `below`, but
    for a constant.
    """
    size, mean = below.size, machine.visible.mean
    machine.weight[:, :size] = below.weight.T
    machine.bias[:size] = below.visible.bias + below.weight @ (mean - ACTIVITY)
    machine.visible.bias.copy_(below.bias + (ACTIVITY - below.visible.mean) @ below.weight)


def bernoulli(h: Tensor, logits: Tensor) -> Tensor:
    """log p(h) of binary h (B, H) in nats, (B,)."""
    return (h * logits - F.softplus(logits)).sum(1)
