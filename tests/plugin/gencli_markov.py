"""A first-order Markov chain of notes: how often each note follows each other, counted in one pass over the data."""

import math

import torch
import torch.nn.functional as F
from gencli_melody import MelodySpec
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import UsageError
from gencli.layers.distributions import Categorical
from gencli.model import Batch, FamilyConfig, Given, Graph, Model, Phase
from gencli.rng import Rng

END = 128  # the state before the first note of a melody and after the last


class Config(FamilyConfig):
    smoothing: float = Field(0.1, gt=0, description="Count that every pair of notes begins with.")


class Markov(Model):
    """Markov chain of notes (Markov 1913): p(x) = prod p(x_t | x_(t-1)), the end included. Exact likelihood.

    A code is the noise of each note and of the end, NaN past it.
    """

    Config = Config
    kinds = frozenset({"melody"})
    defaults = {"epochs": 1}
    likelihood = "exact"
    lossless = True
    distribution = Categorical(END + 1)

    def __init__(self, config: Config, spec: MelodySpec):
        super().__init__(config, spec)
        counts = torch.full((END + 1, END + 1), config.smoothing, dtype=torch.float64)
        counts[END, END] = 0  # no melody is empty
        self.register_buffer("counts", counts)

    def phases(self) -> list[Phase]:
        return [Phase("count", accumulate=self.count, finish=lambda: True)]

    def count(self, batch: Batch) -> None:
        before, after, inside = self.steps(batch)
        self.counts.index_put_((before[inside], after[inside]), self.counts.new_ones(()), accumulate=True)

    def steps(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The notes before and after each step, and which steps there are: (B, T + 1) each."""
        time = torch.arange(batch.x.shape[1] + 1, device=batch.x.device)
        after = F.pad(batch.x, (0, 1)).where(time < batch.lengths[:, None], END)
        return F.pad(after[:, :-1], (1, 0), value=END), after, time <= batch.lengths[:, None]

    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        before, after, inside = self.steps(batch)
        return (self.counts / self.counts.sum(1, keepdim=True)).log()[before, after].where(inside, 0.0).sum(1)

    def prior(self, rng: Rng, *, length: int | None = None) -> Tensor:
        return rng.normal(length or self.spec.length + 1, dtype=torch.float64)

    def encode(self, batch: Batch, rng: Rng) -> Tensor:
        before, after, inside = self.steps(batch)
        place = rng.uniform(after.shape[1], dtype=torch.float64)
        return self.distribution.to_noise(self.counts.log()[before], after, place).where(inside, math.nan)

    def decode(self, code: Tensor, rng: Rng | None = None) -> Batch:
        return self.continued(code, torch.empty(0, dtype=torch.int64))

    def sample(self, rng: Rng, given: Given | None = None, *, length: int | None = None) -> Batch:
        prompt = given.prompt if given and given.prompt is not None else torch.empty(0, dtype=torch.int64)
        if length is not None and length < 1:
            raise UsageError(f"length is {length}; expected 1 or more notes")
        return self.continued(self.prior(rng, length=length), prompt)

    def continued(self, code: Tensor, prompt: Tensor) -> Batch:
        """The prompt (P,), then a note for each number of the codes (B, T) until the end or NaN."""
        notes = [prompt.to(code.device).expand(len(code), -1)]
        note = torch.full_like(code[:, 0], int(prompt[-1]) if len(prompt) else END, dtype=torch.int64)
        going, lengths = torch.ones_like(note, dtype=torch.bool), torch.full_like(note, len(prompt))
        for z in code.unbind(1):
            note = self.distribution.from_uniform(self.counts.log()[note], torch.special.ndtr(z.nan_to_num()))
            going = going & ~z.isnan() & (note != END)
            notes.append(note.where(going, 0)[:, None])
            lengths = lengths + going
        return Batch(torch.cat(notes, dim=1), lengths=lengths)

    def graph(self) -> Graph:
        return Graph(_Step(self.counts), {"note": torch.full((2,), END)}, ["probabilities"])


class _Step(nn.Module):
    """A note (B,) -> the probabilities of the next one (B, 129)."""

    def __init__(self, counts: Tensor):
        super().__init__()
        self.register_buffer("probabilities", counts / counts.sum(1, keepdim=True))

    def forward(self, note: Tensor) -> Tensor:
        return self.probabilities[note]
