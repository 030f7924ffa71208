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

import itertools
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from gencli.layers.boltzmann import BoltzmannModel, RestrictedMachine
from gencli.layers.visible_units import BernoulliUnits, GaussianUnits, draw_bernoulli
from gencli.model import Batch, Diagnostic, FamilyConfig, Loss, NetSize, Phase, Player, Sizes, Spec, net_size
from gencli.rng import Rng, StepStream, generator
from gencli.view import Standardised


class RBMConfig(FamilyConfig):
    sizes: ClassVar = Sizes(hidden=(500, 1000, 2000))
    net_size: NetSize = net_size(sizes)
    hidden: int = Field(500, ge=1, description="Hidden units H.")
    chain: Literal["pcd", "cd"] = Field("pcd", description="Gibbs chains of the gradient: pcd: kept from step to step; "
                                                           "cd: started at the data.")
    chains: int = Field(512, ge=1, description="Persistent chains of pcd.")
    gibbs: int = Field(1, ge=1, description="Gibbs steps for each training step: the k of CD-k.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Decay of the running mean of the gradient.")


class RBM(BoltzmannModel):
    """A `RestrictedMachine`; the code: p(h = 1|v), (B, H)."""

    Config = RBMConfig
    kinds = frozenset({"image", "vector"})
    defaults = {"lr": 1e-3, "batch_size": 128, "schedule": "cosine", "ema": 0.999}
    config: RBMConfig
    _chains: Tensor

    def __init__(self, config: RBMConfig, spec: Spec):
        super().__init__(config, spec)
        self.machine = RestrictedMachine(self.units_of(spec), config.hidden)
        chains = config.chains if config.chain == "pcd" else 0
        self.register_buffer("_chains", torch.rand(chains, config.hidden).round(), persistent=False)
        self.register_load_state_dict_pre_hook(_of_older_files)
        self.likelihood = "exact" if self.machine.enumerable else "estimate"

    @property
    def visible(self) -> BernoulliUnits | GaussianUnits:
        return self.machine.visible

    # --- train

    def phases(self) -> list[Phase]:
        player = Player("model", list(self.parameters()), self.loss, betas=(self.config.momentum, 0.999))
        return [Phase("base rates", share=0, accumulate=self.accumulate_visible, finish=self.visible.finish),
                Phase("train", [player])]

    def training_state(self) -> dict[str, Tensor]:
        return {"chains": self._chains} if self.config.chain == "pcd" else {}

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        self._chains = state.get("chains", self._chains)

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """The gap of mean energies between data and chains, in nats; moves persistent chains on."""
        data, _ = self.units(batch, rng)
        persistent = self.config.chain == "pcd"
        gap, chains = self.machine.contrast(data, self._chains if persistent else None, self.config.gibbs, rng)
        if persistent:
            self._chains = chains
        return Loss(gap)

    # --- sample, encode, decode

    def begin(self, noise: Rng) -> Tensor:
        """Coin flips."""
        return torch.full((len(noise), self.config.hidden), 0.5, device=self.device)

    def walk(self, h: Tensor, steps: int, noise: Rng) -> Tensor:
        return self.machine.gibbs(h, steps, noise)

    def generate(self, h: Tensor, noise: Rng | None) -> Batch:
        shift = self.machine.links().shift(h)
        return self.examples(self.visible.expect(shift) if noise is None else self.visible.draw(shift, noise))

    def encode(self, batch: Batch, rng: Rng) -> Tensor:
        """p(h = 1 | v), (B, H) in [0, 1]."""
        return torch.sigmoid(self.machine.hidden_logits(self.units(batch, None)[0]))

    def filters(self) -> dict[str, Tensor]:
        """The weights of each hidden unit, (H, *example), as it sees an example."""
        weights = self.machine.visible.scale_weight(self.machine.weight).T.unflatten(1, self.spec.shape)
        return {"hidden": weights}

    # --- score

    def log_prob(self, batch: Batch, rng: Rng, *, chains: int | None = None, temperatures: int | None = None,
                 ais_seed: int | None = None) -> Tensor:
        """-F(x) - log Z in nats, (B,) float64; `Machine.log_partition` says what the options are.

        The error of an estimated log Z is common to all examples; the protocol states it.
        """
        log_z = self.machine.log_partition(chains, temperatures, ais_seed)
        v, weight = self.units(batch, rng)
        return -self.machine.free_energy(v).double() - log_z.value + weight

    def score_protocol(self) -> dict[str, Any]:
        return {**self.machine.protocol(), **(self.view.protocol() if self.view else {})}

    def diagnose(self, batches: Iterable[Batch]) -> list[Diagnostic]:
        """`log_z`; of an estimate also `log_z_reverse` (see `Machine.diagnose`) and `log_z_from_data`.

        Modes that no forward run found are in neither of the first two; `log_z_from_data`, annealed the other way from
        data and 100 Gibbs steps, is then larger by far. It is larger by a little where the chains do not mix: data
        visits other modes more often.
        """
        machine, diagnoses = self.machine, self.machine.diagnose()
        protocol = machine.log_partition().protocol
        if machine.enumerable:
            return diagnoses
        chains, temperatures = protocol["chains"], max(1, protocol["temperatures"] // 10)
        some = (self.units(batch, None)[0] for batch in itertools.islice(batches, -(-chains // self.block)))
        x = torch.cat(list(some))[:chains]
        noise = StepStream(len(x), generator(protocol["ais_seed"], "from data", device=self.device))
        h = machine.gibbs(draw_bernoulli(torch.sigmoid(machine.hidden_logits(x)), noise), 100, noise)
        value, error = machine.reverse_ais(machine.visible.draw(machine.links().shift(h), noise), temperatures, noise)
        diagnoses.append(Diagnostic("log_z_from_data", value, "nats", "estimate", error,
                                    {**protocol, "chains": len(x), "temperatures": temperatures, "start": "data"}))
        return diagnoses

    def findings(self) -> dict[str, Any]:
        return self.machine.findings()

    def load_findings(self, found: dict[str, Any]) -> None:
        self.machine.load_findings(found)


def _of_older_files(model: RBM, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Older model files name the weights without the machine; still older ones hold the units of pixels and columns."""
    for name in [name for name in state if name.startswith(prefix)]:
        own = name.removeprefix(prefix)
        if own in ("weight", "bias") or own.startswith("visible."):
            state[f"{prefix}machine.{own}"] = state.pop(name)
    visible = f"{prefix}machine.visible."
    if (centre := state.pop(f"{visible}centre", None)) is not None:
        view, scale = model.view, state[f"{visible}scale"]
        assert isinstance(view, Standardised)  # nothing else was known then
        state[f"{visible}shift"] = ((centre - view.mean) / view.scale).float()
        state[f"{visible}scale"] = (scale / view.scale).float()
