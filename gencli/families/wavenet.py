"""WaveNet: sound sample by sample, from a network of dilated causal convolutions.

van den Oord et al. 2016, arXiv:1609.03499: stacks of convolutions of width 2 whose dilation doubles from layer to
layer, gated units tanh * sigmoid, residual and skip connections; p(x) = prod p(x_t | x_1 .. x_(t-1), condition).

- 256 mu-law levels have a softmax; 65536 levels a mixture of discretised logistics (Parallel WaveNet, van den Oord et
  al. 2017, arXiv:1711.10433).
- Conditions: a class for the whole recording (`--conditional`), and the log-mel spectrogram of another recording, frame
  by frame. A model that is conditioned on the spectrogram of the recording itself (`--mels`) is a vocoder, and its
  likelihood that of a recording given its spectrogram.
- A context (van den Oord et al. 2016, section 2.6): the convolutions see a fraction of a second, so that their samples
  forget who speaks, how loud, and whether the word was said. A recurrent network hears the log-mel spectrogram of all
  that came before, at a low rate, and tells each layer of the convolutions.
- Sampling caches what each layer has computed in ring buffers (Le Paine et al. 2016, arXiv:1611.09482), so that the
  cost of a sample is linear in the depth and the same for every sample.

- Lengths: without them a network that hears noise cannot know whether the word is to come or has been said. So it is
  told how far the beginning and the end are, and samples first draw a length, from those of training, of their class.
  The likelihood is that of the samples of a recording given how many there are, as it is without.
- Loudness: speakers differ by 20 dB, of which the beginning of a recording tells little. Samples that are not told
  begin as loud as recordings, and then do not rise as these do. So how loud the whole recording is, in steps of 3 dB,
  comes first, before the samples: p(l | class) p(x | l, class). Since a recording has one loudness l(x) this is a lower
  bound of the likelihood of x, of which l costs a few bits.
- A budget: samples that are told a loudness fall behind it, by 5 dB on spoken digits: a voice that did not rise in time
  leaves a past of which the network has seen no example, and it never rises. So in each frame the network is told how
  loud the rest has to be for the whole to be as loud as was said, which follows from the length, the loudness and the
  samples before, and is no choice of its own. Samples that still are not as loud are made again, as p(x | l) is of
  recordings with l(x) = l.

Departures: without lengths, a recording is followed by `tail` samples of silence in training, so that the samples of a
model trained on whole recordings end as they do. The first layer reads one sample, not two. Frames are
repeated, not interpolated.
"""

import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import DataError, ModelError, UsageError, install
from gencli.kinds.audio import AudioSpec
from gencli.layers.autoregressive import inside
from gencli.layers.classes import class_count
from gencli.layers.distributions import Categorical, Discrete, DiscretisedLogisticMixture
from gencli.layers.gate import gate
from gencli.model import (
    Batch,
    FamilyConfig,
    Given,
    Graph,
    Loss,
    Model,
    NetSize,
    Phase,
    Player,
    Score,
    Sizes,
    Spec,
    Visit,
    fill,
    join,
    net_size,
)
from gencli.muon import Muon
from gencli.rng import Rng
from gencli.spectrogram import LogMel

_SAMPLES_IN_MEMORY = 2**15  # read in one go while recordings are scored or encoded
_LENGTH_MULTIPLE = 1024  # of lengths in training, for few different shapes: libraries cache memory for each
_TORCH_BLOCK = 64  # recordings that plain torch generates together: an operation costs as much for one
_MELS = 40  # default bands of the spectrogram; those that a context hears
_NEAR = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # seconds over which what the network is told of a distance fades
_STEP, _STEPS = 3.0, 20  # dB, and how many there are: the quietest is anything below -57 dB, the loudest ends at 0
_LOUDNESS = Categorical(_STEPS)
_PIECES = 10  # a second: pieces in which a recording is generated
_TRIES = 8  # for a recording that is as loud as was drawn

Engine = Literal["auto", "torch", "compiled"]


class WaveNetConfig(FamilyConfig):
    layers: int = Field(10, ge=1, description="Layers of a stack; their dilations are 1, 2, 4, ...")
    sizes: ClassVar = Sizes(stacks=(2, 3, 3), residual=(64, 96, 128), skip=(128, 256, 512))
    net_size: NetSize = net_size(sizes)
    stacks: int = Field(2, ge=1, description="Stacks of layers, one after the other.")
    residual: int = Field(64, ge=1, description="Channels of the residual connections and gates.")
    skip: int = Field(128, ge=1, description="Channels of the skip connections and of the last two layers.")
    components: int = Field(10, ge=1, description="Logistic distributions of the mixture, where levels are 65536.")
    conditional: bool = Field(False, description="Learn the recordings of each class; the data must be labelled.")
    mels: int = Field(0, ge=0, description="Bands of the log-mel spectrogram that the samples are conditioned on: of "
                                           "what the data is made from, else of the recording itself; 0: none, or 40 "
                                           "for data that is made from something.")
    hop: int = Field(64, ge=1, description="Samples from one frame of the spectrogram to the next.")
    context: int = Field(0, ge=0, description="Units, such as 64, of a recurrent network that hears the spectrogram of "
                                              "all that came before a frame, for the convolutions; 0: none.")
    lengths: bool | None = Field(None, description="Tell the network how far the beginning and the end are, and draw "
                                                   "the lengths of samples from those of training. Default yes; a "
                                                   "vocoder has that of its source.")
    loudness: bool | None = Field(None, description="Draw how loud a recording is before its samples, by what those of "
                                                    "training are, and tell the network. Default yes; a vocoder has "
                                                    "that of its source.")
    budget: bool | None = Field(None, description="Tell the network how loud the rest of a recording has to be for the "
                                                  "whole to be as loud as was drawn. Default yes, with lengths and "
                                                  "loudness, which it needs.")
    tail: int = Field(400, ge=0, description="Without lengths: samples of silence that end a recording in training; "
                                             "sampling stops after as many.")


class WaveNet(Model):
    """WaveNet (van den Oord et al. 2016): p(x) = prod p(x_t | x_1 .. x_(t-1), condition). Exact likelihood, or the
    bound of a model that draws a loudness first.
    """

    lengths: Tensor  # (classes or 1, frames), float64: how many recordings of training end in a frame
    loudness_counts: Tensor  # (classes or 1, steps), float64: how many recordings of training are as loud

    Config = WaveNetConfig
    kinds = frozenset({"audio"})
    conditions = frozenset({"audio"})
    likelihood: Literal["exact", "bound", "estimate"] | None = "exact"
    lossless = True
    block = 4  # recordings are long; torch generates `_TORCH_BLOCK` of them
    defaults = {"lr": 1e-2, "batch_size": 8, "grad_clip": 1.0, "schedule": "cosine", "warmup": 200, "ema": 0.999}

    config: WaveNetConfig
    spec: AudioSpec

    def __init__(self, config: WaveNetConfig, spec: AudioSpec):
        super().__init__(config, spec)
        self.classes = class_count(config.conditional, spec, "wavenet")
        self.mels = (config.mels or _MELS) if self.spec.condition else 0
        self.dilations = [2**i for _ in range(config.stacks) for i in range(config.layers)]
        self.distribution: Discrete = (Categorical(256) if spec.levels == 256
                                       else DiscretisedLogisticMixture(spec.levels, config.components))
        width, depth = config.residual, len(self.dilations)
        self.input = nn.Embedding(256, width) if spec.levels == 256 else nn.Linear(1, width)
        self.gates = _Linears(nn.Linear(2 * width, 2 * width) for _ in self.dilations)  # of [x_(t-d), x_t]
        self.residuals = _Linears(nn.Linear(width, width) for _ in self.dilations[1:])  # the last one would not be used
        self.skip = nn.Linear(depth * width, config.skip)  # of all layers side by side, which is the sum over layers
        self.head = nn.Linear(config.skip, config.skip)
        self.output = nn.Linear(config.skip, self.distribution.parameters)
        if config.lengths and self.mels:
            raise UsageError("a vocoder speaks as long as its source does; leave --lengths out")
        if config.loudness and self.mels:
            raise UsageError("a vocoder speaks as loud as its source does; leave --loudness out")
        if config.budget and not (config.lengths and config.loudness):
            raise UsageError("a budget is what is left of a loudness in a length; add --lengths --loudness, or leave "
                             "--budget out")
        units = config.context
        self.loudnesses = _STEPS if config.loudness else 0
        self.whole = self.classes + self.loudnesses  # numbers of a frame that are the same in all
        self.ahead = self.classes + bool(self.loudnesses)  # those of a code that come before what changes with time
        self.places = 2 * len(_NEAR) if config.lengths else 0  # None in files of models from before there were any
        self.budget = bool(config.budget)
        self.told = self.whole + self.mels + self.places + 2 * self.budget  # numbers in a frame of the condition
        self.framed = self.told + units > self.whole  # whether it changes from frame to frame
        self.watches = bool(self.budget or units)  # whether a frame depends on the samples before it
        if self.places:
            bins = -(-spec.length // config.hop)
            self.register_buffer("lengths", torch.zeros(max(1, self.classes), bins, dtype=torch.float64))
        if self.loudnesses:
            self.likelihood = "bound"
            self.register_buffer("loudness_counts", torch.zeros(max(1, self.classes), _STEPS, dtype=torch.float64))
        heard = self.told + self.budget * 2 * (_STEPS - 1)  # of the condition, once a budget is a loudness
        if units:
            self.context = _Context(spec.rate, config.hop, heard, units)
        if heard + units:
            self.condition = nn.Linear(heard + units, depth * 2 * width, bias=False)
            # The convolutions learn without places, a budget and a context first.
            self.condition.weight.data[:, self.whole + self.mels :] = 0
        if self.mels:
            self.spectrogram = LogMel(spec.rate, config.hop, self.mels)

    @classmethod
    def complete_config(cls, config: FamilyConfig, spec: Spec, examples: int) -> FamilyConfig:
        assert isinstance(config, WaveNetConfig)
        usual = not config.mels and spec.condition is None
        missing = {name: usual for name in ("lengths", "loudness") if getattr(config, name) is None}
        config = config.model_copy(update=missing)
        if config.budget is None:
            config = config.model_copy(update={"budget": bool(config.lengths and config.loudness)})
        return config

    @classmethod
    def complete_spec(cls, config: FamilyConfig, spec: Spec) -> Spec:
        """A vocoder is conditioned on the recording itself, unless the data says otherwise."""
        assert isinstance(config, WaveNetConfig) and isinstance(spec, AudioSpec)
        if spec.condition is None and config.mels:
            return spec.model_copy(update={"condition": spec.model_copy(update={"classes": ()})})
        if isinstance(spec.condition, AudioSpec) and spec.condition.rate != spec.rate:
            raise UsageError(f"wavenet reads a recording and its source side by side, so both need the same rate; they "
                             f"have {spec.condition.rate} and {spec.rate} Hz: add --rate {spec.rate}")
        return spec

    # --- the network over whole recordings

    def _read(self, levels: Tensor, condition: Tensor | None) -> Tensor:
        """Levels (B, T) and frames (B, frames, D) -> the sum of the skip connections at each position, (B, T, skip).

        Position t depends on the levels before t: the input is shifted by one, and zero before the beginning.
        """
        if self.budget and condition is not None:
            spent = F.pad(self._energy(levels).cumsum(1)[:, :-1], (1, 0))
            condition = self._afford(condition[:, : spent.shape[1]], spent)
        if self.config.context:
            condition = self.context(self._sound(levels), condition)
        x = F.pad(self._embed(levels[:, :-1]), (0, 0, 1, 0))  # (B, T, residual)
        if torch.is_autocast_enabled(x.device.type):  # or every layer would cast it again
            x = x.to(torch.get_autocast_dtype(x.device.type))
        # tanh(a) * sigmoid(b) from `gate`, which has another scale and sign of a.
        scale = torch.tensor([-2.0, 1.0], dtype=x.dtype, device=x.device).repeat_interleave(self.config.residual)
        biases = self._biases(condition, levels.shape[1], scale)
        outputs = []
        for i, (dilation, gates, bias) in enumerate(zip(self.dilations, self.gates, biases, strict=True)):
            past = F.pad(x[:, :-dilation], (0, 0, min(dilation, x.shape[1]), 0))
            h = F.linear(torch.cat([past, x], dim=-1), gates.weight * scale[:, None], gates.bias * scale)
            if bias is not None:
                h = h + bias
            outputs.append(gate(h, dim=-1))
            if i < len(self.residuals):
                x = x + self.residuals[i](outputs[-1])
        return self.skip(torch.cat(outputs, dim=-1))

    def _embed(self, levels: Tensor) -> Tensor:
        """Levels (...,) -> (..., residual)."""
        if self.spec.levels == 256:
            return self.input(levels)
        return self.input(self._sound(levels)[..., None])

    def _sound(self, levels: Tensor) -> Tensor:
        """Levels -> samples in [-1, 1] of the type of the weights."""
        return self.spec.from_levels(levels).to(self.output.weight.dtype)

    def _biases(self, condition: Tensor | None, length: int, scale: Tensor) -> Iterator[Tensor | None]:
        """What the condition (B, frames, D) adds to the gates of each layer, (B, length or 1, 2 residual), scaled."""
        if condition is None:
            yield from repeat(None, len(self.dilations))
            return
        frames = self.condition(condition) * scale.repeat(len(self.dilations))
        for bias in frames.split(2 * self.config.residual, dim=-1):
            yield bias.repeat_interleave(self.config.hop, dim=1)[:, :length] if self.framed else bias

    def _out(self, skip: Tensor) -> Tensor:
        """(..., skip) -> parameters of the distribution over levels (..., P)."""
        return self.output(F.relu(self.head(F.relu(skip))))

    def forward(self, levels: Tensor, condition: Tensor | None = None) -> Tensor:
        """Levels (B, T) and frames of the condition (B, frames, D) -> parameters of p(x_t | x_1 .. x_(t-1)), (B, T, P).

        There is one frame where the condition is a class alone, else one for each `hop` samples.
        """
        return self._out(self._read(levels, condition))

    def _condition(self, whole: Tensor | None, spectrogram: Tensor | None, lengths: Tensor, total: int,
                   ) -> Tensor | None:
        """One-hot class and loudness (B, W), spectrogram (B, frames, mels), lengths (B,) of recordings (B, total) ->
        (B, frames, D), D = W + mels + places, and 2 of a budget.
        """
        parts = [] if whole is None else [whole[:, None]]
        parts += [] if spectrogram is None else [spectrogram]
        parts += [self._places(lengths, total)] if self.places else []
        parts += [self._budget(whole, lengths, total)] if self.budget and whole is not None else []
        frames = max((part.shape[1] for part in parts), default=0)
        return torch.cat([part.expand(-1, frames, -1) for part in parts], dim=-1) if parts else None

    def _places(self, lengths: Tensor, total: int) -> Tensor:
        """How near the beginning and the end are, (B, frames, places), from 0."""
        start = torch.arange(0, total, self.config.hop, device=lengths.device).double()  # of the frames, in samples
        seconds = torch.stack(torch.broadcast_tensors(start, lengths[:, None] - start), dim=-1) / self.spec.rate
        near = torch.exp(-seconds.clamp(min=0)[..., None] / seconds.new_tensor(_NEAR))  # (B, frames, 2, times)
        return near.flatten(2).to(self.output.weight.dtype) / self.places**0.5  # small, as all may learn alike

    def _budget(self, whole: Tensor, lengths: Tensor, total: int) -> Tensor:
        """The energy that recordings have at most, by their loudness, and how many samples are left, (B, frames, 2).

        Energy is the sum of the squares of samples.
        """
        loudest = _STEP * (whole[:, self.classes :].argmax(1) + 1 - _STEPS).double()  # dB
        left = lengths[:, None] - torch.arange(0, total, self.config.hop, device=lengths.device)
        energy = (10 ** (loudest / 10) * lengths)[:, None].expand_as(left)
        return torch.stack([energy, left.double()], dim=-1).to(self.output.weight.dtype)

    def _energy(self, levels: Tensor) -> Tensor:
        """Levels (B, T) -> the energy of each frame, (B, frames)."""
        squares = self._sound(levels).square()
        return F.pad(squares, (0, -squares.shape[1] % self.config.hop)).unflatten(1, (-1, self.config.hop)).sum(2)

    def _afford(self, condition: Tensor, spent: Tensor) -> Tensor:
        """The condition (..., D) of frames and the energy before them (...,) -> how loud the rest has to be, at most
        and at least, in place of the budget: (..., D + 2 steps - 2).

        A loudness is one-hot, and between the middles of two steps a mixture of these.
        """
        told, budget = condition.split([self.told - 2, 2], dim=-1)
        energy, left = budget[..., :1], budget[..., 1:].clamp(min=1)
        ends = energy * energy.new_tensor([1, 10 ** (-_STEP / 10)])  # of the step of loudness
        decibels = 10 * torch.log10(((ends - spent[..., None]) / left).clamp(min=1e-9))
        step = (decibels / _STEP + _STEPS).clamp(0.5, _STEPS - 0.5)[..., None]
        middles = torch.arange(_STEPS, device=step.device) + 0.5
        return torch.cat([told, (1 - (step - middles).abs()).clamp(min=0).flatten(-2)], dim=-1)

    def _whole_and_spectrogram(self, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """One-hot class and loudness, and the spectrogram of the conditions; of the recordings themselves if they have
        none.
        """
        whole = self._one_hot(batch.labels, self._loudness(batch))
        if not self.mels:
            return whole, None
        x = (batch.condition or batch).x
        return whole, self.spectrogram(F.pad(x, (0, batch.x.shape[1] - x.shape[1])))  # cut if it is longer

    def _loudness(self, batch: Batch) -> Tensor | None:
        """The step of loudness of each recording, (B,): its root mean square."""
        if not self.loudnesses:
            return None
        there = inside(batch.x, batch.lengths)
        x = self.spec.from_levels(self.spec.to_levels(batch.x)).double().where(there, 0.0)
        decibels = 10 * torch.log10(x.square().sum(1) / there.sum(1).clamp(min=1) + 1e-30)
        return (decibels / _STEP + _STEPS).floor().long().clamp(0, _STEPS - 1)

    def _loudness_logits(self, labels: Tensor | None, count: int) -> Tensor:
        """The logits of the loudness of `count` recordings, by class, (B, steps): as often as in training, and half a
        recording more of each.
        """
        logits = torch.log(self.loudness_counts + 0.5)
        return logits[labels] if self.classes and labels is not None else logits.expand(count, -1)

    def _told(self, batch: Batch) -> Tensor | None:
        """The condition of recordings that are there, (B, frames, D)."""
        return self._condition(*self._whole_and_spectrogram(batch), inside(batch.x, batch.lengths).sum(1),
                               batch.x.shape[1])

    def _one_hot(self, labels: Tensor | None, loudness: Tensor | None = None) -> Tensor | None:
        """Class and loudness as one-hot, (B, W)."""
        if self.classes and labels is None:
            raise DataError("this model is conditioned on classes, and these recordings have none; give labelled data")
        parts = [F.one_hot(value, size) for value, size in ((labels, self.classes), (loudness, self.loudnesses))
                 if value is not None and size]
        return torch.cat(parts, dim=1).to(self.output.weight.dtype) if parts else None

    # --- train, score

    def phases(self) -> list[Phase]:
        """Lengths and loudness, where they count; then one player: Muon for the layers, AdamW for the ends."""
        layers = [*self.gates, *self.residuals, self.skip, self.head]
        muon = partial(Muon, matrices=[layer.weight for layer in layers])
        train = Phase("train", [Player("model", list(self.parameters()), self.loss, optimiser=muon)])
        if not self.places and not self.loudnesses:
            return [train]
        return [Phase("lengths", share=0, accumulate=self._count, finish=lambda: True), train]

    def _count(self, batch: Batch) -> None:
        """The lengths of B recordings, in frames, and how loud they are."""
        frames = -(-inside(batch.x, batch.lengths).sum(1) // self.config.hop) - 1
        labels = batch.labels if self.classes and batch.labels is not None else torch.zeros_like(frames)
        one = torch.ones_like(frames, dtype=torch.float64)
        if self.places:
            self.lengths.index_put_((labels, frames.clamp(0, self.lengths.shape[1] - 1)), one, accumulate=True)
        loudness = self._loudness(batch)
        if loudness is not None:
            self.loudness_counts.index_put_((labels, loudness), one, accumulate=True)

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """Mean negative log likelihood in nats per sample; without lengths that of the silence at the end included.

        Nothing of it is that of a loudness, which the counts determine.
        """
        tail = 0 if self.places else self.config.tail
        ends = None if batch.lengths is None else batch.lengths + tail
        longest = batch.x.shape[1] + tail if ends is None else int(ends.max())
        # Little more is computed than is scored.
        length = min(-(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE, self.spec.length)
        lengths = inside(batch.x, batch.lengths).sum(1)
        batch = replace(batch, x=F.pad(batch.x, (0, length - batch.x.shape[1])), lengths=lengths)
        levels, scored = self.spec.to_levels(batch.x), inside(batch.x, lengths + tail)
        skip = self._read(levels, self._told(batch))
        positions = scored.flatten().nonzero()[:, 0]
        filled = F.pad(positions, (0, -len(positions) % _LENGTH_MULTIPLE))
        nats = -self.distribution.log_prob(self._out(skip.flatten(0, 1)[filled]), levels.flatten()[filled])
        return Loss(nats[: len(positions)].mean(), of=len(positions))

    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        """Exact log p(x | condition) of every recording, (B,), in nats; with a loudness, log p(l(x), x | condition)."""
        parts = []
        for part in self._parts(batch):
            levels = self.spec.to_levels(part.x)
            nats = self.distribution.log_prob(self(levels, self._told(part)), levels)
            nats = nats.double().where(inside(part.x, part.lengths), 0.0).sum(1)
            loudness = self._loudness(part)
            if loudness is not None:
                nats = nats + _LOUDNESS.log_prob(self._loudness_logits(part.labels, len(part)), loudness)
            parts.append(nats)
        return torch.cat(parts)

    def scores(self, batch: Batch, rng: Rng) -> dict[str, Score]:
        """`nll`: nats of every recording, weighted by its samples, so that the mean is in nats per sample."""
        samples = inside(batch.x, batch.lengths).sum(1)
        nats = -self.log_prob(batch, rng)
        return {"nll": Score(nats, "nats/sample", self.likelihood or "exact", samples, self.score_protocol())}

    def score_protocol(self) -> dict[str, Any]:
        conditions = {"class": self.classes > 0, "spectrogram": self.mels > 0, "length": self.places > 0}
        given = {name: True for name, used in conditions.items() if used}
        return {"given": given} if given else {}

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        """The batch in parts that fit into memory."""
        size = max(1, _SAMPLES_IN_MEMORY // max(1, batch.x.shape[1]))
        return (batch[i : i + size] for i in range(0, len(batch), size))

    # --- codes

    def prior(self, rng: Rng, *, length: int | None = None) -> Tensor:
        """Codes (B, K + length), float64: a class, drawn uniformly, as one-hot, if conditional; the noise of the
        loudness, if there is one; then that of the samples, of which `sample` makes recordings.
        """
        if self.mels:
            raise UsageError("this model is a vocoder and needs a spectrogram; give it recordings with --given")
        first = [rng.normal(1, dtype=torch.float64)] if self.loudnesses else []
        noise = rng.normal(self._length(length), dtype=torch.float64)
        labels = rng.integers(self.classes) if self.classes else None
        if self.places and length is None:
            noise = self._ending(noise, labels, rng)
            if first:
                noise, _ = self._as_loud(rng, noise, labels, self._drawn(labels, *first))
        classes = [] if labels is None else [F.one_hot(labels, self.classes).double()]
        return torch.cat([*classes, *first, noise], dim=1)

    def _ending(self, noise: Tensor, labels: Tensor | None, rng: Rng, known: int = 0) -> Tensor:
        """Noise (B, T), NaN from where recordings end that begin with `known` samples, by a length that is drawn."""
        counts = self.lengths.expand(len(noise), -1) if labels is None else self.lengths[labels]
        ends = self.config.hop * torch.arange(1, counts.shape[1] + 1, device=counts.device)
        counts = counts.where(ends > known, 0.0)
        counts = counts.where(counts.any(1, keepdim=True), (ends == ends[-1]).double())  # no such: the longest
        shares = counts.cumsum(1) / counts.sum(1, keepdim=True)
        frame = (shares <= rng.uniform(1, dtype=torch.float64)).sum(1).clamp(max=len(ends) - 1)
        return noise.where(inside(noise, ends[frame] - known), math.nan)

    def _length(self, length: int | None) -> int:
        if length is not None and length < 1:
            raise UsageError(f"length is {length}; expected 1 or more samples")
        return length or self.spec.length

    @torch.no_grad()
    def encode(self, batch: Batch, rng: Rng, *, code: Literal["noise", "features"] = "noise") -> Tensor:
        """Recordings -> codes.

        `noise`: (B, K + T) float64, NaN past the end of a recording: one-hot class if conditional, then the noise that
        loudness, if there is one, and each sample are made of (gencli.layers.distributions); that of a vocoder has
        `mels` log-mel bands before the noise of each frame. `rng` draws the position inside each level's interval.
        `features`: (B, skip), the mean over the recording of the sum of the skip connections.
        """
        if code == "features":
            return torch.cat([self._features(part) for part in self._parts(batch)])
        precise = self.clone().double().eval()
        place = rng.uniform(1, dtype=torch.float64) if self.loudnesses else None
        z = rng.uniform(batch.x.shape[1], dtype=torch.float64)  # the position in the interval, then the noise
        frames, ahead = [], []
        rows = max(1, _SAMPLES_IN_MEMORY // max(1, z.shape[1]))
        for part, own in zip(self._parts(batch), z.split(rows), strict=True):
            levels = self.spec.to_levels(part.x)
            whole, spectrogram = self._whole_and_spectrogram(part)
            lengths = inside(part.x, part.lengths).sum(1)
            condition = precise._condition(whole, spectrogram, lengths, part.x.shape[1])
            parameters = precise(levels, None if condition is None else condition.double())
            noise = self.distribution.to_noise(parameters, levels, own)
            own.copy_(noise.where(inside(part.x, part.lengths), math.nan))
            frames += [] if spectrogram is None else [spectrogram.double()]
            ahead += [] if whole is None else [whole[:, : self.classes].double()]
        if frames:
            hop = self.config.hop
            noise = F.pad(z, (0, -z.shape[1] % hop), value=math.nan).unflatten(1, (-1, hop))  # (B, frames, hop)
            z = torch.cat([torch.cat(frames).where(~noise[..., :1].isnan(), math.nan), noise], dim=2).flatten(1)
        loudness = self._loudness(batch)
        if loudness is not None and place is not None:
            logits = self._loudness_logits(batch.labels, len(batch))[:, None]
            z = torch.cat([_LOUDNESS.to_noise(logits, loudness[:, None], place), z], dim=1)
        return torch.cat([torch.cat(ahead), z], dim=1) if ahead else z

    def _features(self, part: Batch) -> Tensor:
        skip = self._read(self.spec.to_levels(part.x), self._told(part))
        mask = inside(part.x, part.lengths)[..., None]
        return skip.where(mask, 0.0).sum(1) / mask.sum(1)

    def _decoded(self, code: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """A code -> its noise (B, T), one-hot class and loudness, spectrogram."""
        if code.ndim != 2 or code.shape[1] <= self.ahead + self.mels:
            raise DataError(f"a code of shape {tuple(code.shape)}; expected (recordings, numbers), as encode gives it")
        ahead, noise = code.split([self.ahead, code.shape[1] - self.ahead], dim=1)
        labels = ahead[:, : self.classes].argmax(1) if self.classes else None
        loudness = self._drawn(labels, ahead[:, self.classes :])
        spectrogram = None
        if self.mels:
            frame = self.mels + self.config.hop
            frames = F.pad(noise, (0, -noise.shape[1] % frame), value=math.nan).unflatten(1, (-1, frame))
            spectrogram, noise = frames.split([self.mels, self.config.hop], dim=2)
            spectrogram, noise = spectrogram.nan_to_num(), noise.flatten(1)
        return noise, self._one_hot(labels, loudness), spectrogram

    def _drawn(self, labels: Tensor | None, noise: Tensor) -> Tensor | None:
        """The loudness of the noise (B, 1), a step of it each, (B,)."""
        if not self.loudnesses:
            return None
        u = torch.special.ndtr(noise[:, 0].double())
        return _LOUDNESS.from_uniform(self._loudness_logits(labels, len(noise)), u)

    def interpolate(self, a: Tensor, b: Tensor, frames: int) -> Tensor:
        """The noise of the samples along an arc, as in every code with a normal prior; all else along a line."""
        path = super().interpolate(a, b, frames)
        t = torch.linspace(0, 1, frames, dtype=a.dtype, device=a.device)[:, None]
        ends = [(~code.isnan()).sum() for code in (a, b)]
        a, b = fill(a, b), fill(b, a)
        position = torch.arange(len(a), device=a.device) - self.ahead
        straight = (position < 0) | (position % (self.mels + self.config.hop) < self.mels)
        path = ((1 - t) * a + t * b).where(straight, path)
        return path.where(position + self.ahead < ((1 - t) * ends[0] + t * ends[1]).round(), math.nan)

    # --- generate

    def at_once(self, *, engine: str = "auto", **options: object) -> int:
        return 1 if self._compiled(engine) else _TORCH_BLOCK

    def side_by_side(self, *, engine: str = "auto", **options: object) -> bool:
        return self._compiled(engine)

    def _compiled(self, engine: str) -> bool:
        """Whether to use the compiled engine. Raises if it cannot run."""
        installed = importlib.util.find_spec("numba") is not None
        if engine == "compiled" and self.device.type != "cpu":
            raise UsageError("engine=compiled runs on the CPU; add --device cpu, or use engine=torch")
        if engine == "compiled" and not installed:
            raise ModelError(f"engine=compiled needs the package numba: {install('fast')}")
        return engine == "compiled" or (engine == "auto" and installed and self.device.type == "cpu")

    def decode(self, code: Tensor, rng: Rng | None = None, *, temperature: float = 1.0,
               engine: Engine = "auto") -> Batch:
        """Codes -> recordings, computed in float64: a code that `encode` gave becomes the same recording.

        Args:
            temperature: below 1 prefers likelier levels.
            engine: torch computes all recordings together, compiled (numba) one on each core in native code; auto is
                compiled on a CPU if numba is installed.
        """
        precise = self.clone().double()
        noise, whole, spectrogram = precise._decoded(code.to(self.device).double())
        condition = precise._condition(whole, spectrogram, (~noise.isnan()).sum(1), noise.shape[1])
        pieces = list(precise._write(noise, condition, None, temperature, engine, ends=False))
        labels = whole[:, : self.classes].argmax(1) if self.classes and whole is not None else None
        return replace(join(pieces), labels=labels)

    def sample(self, rng: Rng, given: Given | None = None, *, length: int | None = None, temperature: float = 1.0,
               tries: int = _TRIES, engine: Engine = "auto") -> Batch:
        """Recordings that begin with the prompt, if one is given, and go on for `length` samples or until their end.

        Where the model knows lengths, that is drawn before; so is the loudness, which goes on as the prompt has it.
        The class is given or drawn, the spectrogram that of the condition. The other options are those of `decode`.

        Args:
            tries: a recording whose length and loudness were drawn is made again if it is not as loud as that, until so
                many are made, of which the nearest is taken.
        """
        return join(list(self._stream(rng, given or Given(), length, temperature, tries, engine)))

    def stream(self, rng: Rng, given: Given | None = None, **options: Any) -> Iterator[Batch]:
        return self._stream(rng, given or Given(), **options)

    def _stream(self, rng: Rng, given: Given, length: int | None = None, temperature: float = 1.0, tries: int = _TRIES,
                engine: Engine = "auto") -> Iterator[Batch]:
        if tries < 1:
            raise UsageError(f"tries={tries}; expected 1 or more")
        spectrogram = None
        if self.mels:
            if given.condition is None:
                raise UsageError("this model is a vocoder and needs a spectrogram; give it recordings with --given")
            spectrogram = self.spectrogram(given.condition.x)
        first = rng.normal(1, dtype=torch.float64) if self.loudnesses else None
        if spectrogram is None or given.condition is None or length is not None:
            noise = rng.normal(self._length(length), dtype=torch.float64)
        else:  # as long as the condition
            noise = rng.normal(given.condition.x.shape[1], dtype=torch.float64)
            noise = noise.where(inside(noise, given.condition.lengths), math.nan)
        labels = None
        if self.classes:
            labels = rng.integers(self.classes) if given.labels is None else given.labels
        known = 0 if given.prompt is None else len(given.prompt)
        if self.places and length is None and given.condition is None:
            noise = self._ending(noise, labels, rng, known)
        loudness = None if first is None else self._drawn(labels, first)
        if loudness is not None and given.prompt is not None:
            heard = self._loudness(Batch(given.prompt[None].to(self.device)))
            loudness = None if heard is None else heard.expand(len(loudness))
        elif self.places and loudness is not None and length is None:
            yield self._as_loud(rng, noise, labels, loudness, tries, temperature, engine)[1]
            return
        condition = self._condition(self._one_hot(labels, loudness), spectrogram, known + (~noise.isnan()).sum(1),
                                    known + noise.shape[1])
        ends = not self.mels and not self.places
        for piece in self._write(noise, condition, given.prompt, temperature, engine, ends):
            yield replace(piece, labels=labels)

    def _as_loud(self, rng: Rng, noise: Tensor, labels: Tensor | None, loudness: Tensor | None, tries: int = _TRIES,
                 temperature: float = 1.0, engine: Engine = "auto") -> tuple[Tensor, Batch]:
        """Recordings of the noise (B, T), or of other noise, at most `tries` each, until they have their loudness (B,);
        with the noise that made them.

        Without an end to that they would be those of p(x | l): of other recordings this is 0.
        """
        there, new = ~noise.isnan(), noise
        lengths = there.sum(1)
        condition = self._condition(self._one_hot(labels, loudness), None, lengths, noise.shape[1])
        assert condition is not None and loudness is not None
        x = torch.zeros_like(noise, dtype=self.output.weight.dtype)
        off = torch.full_like(loudness, _STEPS)  # how far the nearest so far is from it
        for _ in range(tries):
            rows = off.nonzero()[:, 0]
            if not len(rows):
                break
            made = join(list(self._write(new[rows], condition[rows], None, temperature, engine, ends=False)))
            heard = self._loudness(made)
            assert heard is not None
            now = (heard - loudness[rows]).abs()
            nearer, better = now < off[rows], rows[now < off[rows]]
            x[better, : made.x.shape[1]] = made.x[nearer].to(x.dtype)
            noise = noise.index_copy(0, better, new[better])
            off[rows] = off[rows].minimum(now)
            new = rng.normal(noise.shape[1], dtype=torch.float64).where(there, math.nan)
        return noise, Batch(x[:, : int(lengths.max())], labels, lengths)

    # --- compress

    def outline(self, batch: Batch) -> Batch:
        """A vocoder's recordings are made from their condition, a conditional model's have classes."""
        labels, lengths = batch.labels if self.classes else None, inside(batch.x, batch.lengths).sum(1)
        condition = batch.condition or (batch if self.mels else None)
        return replace(super().outline(batch), labels=labels, lengths=lengths, condition=condition)

    def symbols(self, batch: Batch) -> Tensor:
        digits = self.distribution.digits(self.spec.to_levels(batch.x)).flatten(1)
        loudness = self._loudness(batch)
        return digits if loudness is None else torch.cat([loudness[:, None], digits], dim=1)

    @torch.no_grad()
    def ancestral(self, outline: Batch, visit: Visit) -> Batch:
        """By plain torch: the compiled engine draws in native code."""
        assert outline.lengths is not None
        levels = torch.zeros(len(outline), int(outline.lengths.max()), dtype=torch.int64, device=self.device)
        there = inside(levels, outline.lengths)
        spectrogram = None
        if self.mels:
            if outline.condition is None:
                raise UsageError("this model is a vocoder and needs a spectrogram; give it recordings with --given")
            x = outline.condition.x
            spectrogram = self.spectrogram(F.pad(x, (0, levels.shape[1] - x.shape[1])))

        def choose(t: int, parameters: Tensor) -> Tensor:
            return self.distribution.visited(parameters, lambda chances: visit(chances, there[:, t]))

        loudness = None
        if self.loudnesses:
            logits = self._loudness_logits(outline.labels, len(outline))
            loudness = _LOUDNESS.visited(logits, lambda chances: visit(chances, None))
        whole = self._one_hot(outline.labels, loudness)
        condition = self._condition(whole, spectrogram, outline.lengths, levels.shape[1])
        _TorchEngine(self, levels, choose, condition, 0)(0, levels.shape[1])
        return Batch(self.spec.from_levels(levels).where(there, 0.0), outline.labels, outline.lengths)

    @torch.no_grad()
    def _write(self, noise: Tensor, condition: Tensor | None, prompt: Tensor | None, temperature: float, engine: Engine,
               ends: bool) -> Iterator[Batch]:
        """The prompt (P,), then the recordings of the noise (B, T), piece by piece.

        A recording is over where its noise is NaN and, with `ends`, after `tail` samples of silence.
        """
        if not temperature > 0:
            raise UsageError(f"temperature={temperature}; expected a number above 0")
        start = 0 if prompt is None else len(prompt)
        u = F.pad(torch.special.ndtr(noise).clamp(max=1 - 1e-15), (start, 0), value=0.5)  # (B, P + T)
        over = u.isnan()
        levels = torch.zeros_like(u, dtype=torch.int64)
        if prompt is not None:
            levels[:, :start] = self.spec.to_levels(prompt.to(self.device))
        make_engine = _compiled_engine if self._compiled(engine) else _torch_engine
        run = make_engine(self, levels, u.nan_to_num(0.5), condition, start, temperature)
        piece = max(1, self.spec.rate // _PIECES)
        for begin in range(0, u.shape[1], piece):
            end = min(begin + piece, u.shape[1])
            run(begin, end)
            if ends and self.config.tail:
                over[:, start:end] |= self._ended(levels[:, start:end])
            active = ~over[:, begin:end]
            x = self.spec.from_levels(levels[:, begin:end]).where(active, 0.0)
            yield Batch(x, lengths=active.sum(1))
            if over[:, end - 1].all():
                break

    def _ended(self, levels: Tensor) -> Tensor:
        """(B, T) -> bool: positions after the first `tail` samples of silence that follow any sound."""
        silence = levels == self.spec.to_levels(torch.zeros(1, device=levels.device))
        count, tail = silence.cumsum(1), self.config.tail
        long = (count - F.pad(count, (tail, 0))[:, : count.shape[1]] == tail) & (~silence).cumsum(1).bool()
        return F.pad(long, (1, 0))[:, :-1].cummax(1).values

    # --- export

    def graph(self) -> Graph:
        """One sample: level (B, 1), state (B, slots, residual) and, if there is one, condition (B, D) -> parameters
        (B, P), next state.

        A context adds to the state its `memory` (B, units) and the `past` that it hears (B, size), in [-1, 1]; a budget
        the energy (B, 2) of all samples before this one and of those before its frame; both the `position` of the
        sample (B, 1). A recording starts with a state of zeros and the level -1, which stands for the time before the
        beginning.
        """
        zeros = partial(torch.zeros, 2, device=self.device)
        inputs = {"level": torch.full((2, 1), -1, device=self.device),
                  "state": zeros(sum(self.dilations), self.config.residual)}
        state: dict[str, Tensor] = {}
        if self.config.context:
            state |= {"memory": zeros(self.config.context), "past": zeros(self.context.size)}
        if self.budget:
            state["energy"] = zeros(2)
        if self.watches:
            state["position"] = zeros(1, dtype=torch.int64)
        if self.told:
            inputs["condition"] = zeros(self.told)
        outputs = ["parameters", "next_state", *(f"next_{name}" for name in state)]
        return Graph(_Step(self), inputs | state, outputs)


class _Context(nn.Module):
    """A recurrent network (GRU) over frames of `hop` samples: in each it hears the `size` samples before the frame.

    Args:
        rate: samples a second.
        conditions: D, numbers in a frame of the condition.
    """

    def __init__(self, rate: int, hop: int, conditions: int, units: int):
        super().__init__()
        self.spectrogram = LogMel(rate, hop, _MELS)
        self.hop, self.size = hop, self.spectrogram.size
        self.gru = nn.GRU(_MELS + conditions, units, batch_first=True)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Samples (B, T), the condition (B, 1 or frames, D) -> the condition and what was heard before each frame,
        (B, frames, D + units)."""
        with torch.autocast(x.device.type, enabled=False):
            frames = -(-x.shape[1] // self.hop)
            windows = F.pad(x, (self.size, 0)).unfold(1, self.size, self.hop)[:, :frames]
            if condition is not None:
                condition = condition.expand(-1, frames, -1) if condition.shape[1] == 1 else condition[:, :frames]
            return self.told(condition, self.gru(self._heard(windows, condition))[0])

    def next(self, window: Tensor, condition: Tensor | None, memory: Tensor) -> Tensor:
        """The samples (B, size) before a frame, its condition (B, D), the memory (B, units) -> the next memory."""
        return self.gru(self._heard(window, condition)[:, None], memory[None])[1][0]

    def told(self, condition: Tensor | None, memory: Tensor) -> Tensor:
        """What the convolutions are told (..., D + units). Small, as all units of the memory may learn alike."""
        return _beside(condition, memory / self.gru.hidden_size**0.5)

    def _heard(self, windows: Tensor, condition: Tensor | None) -> Tensor:
        return _beside(condition, self.spectrogram.bands(windows))


def _beside(a: Tensor | None, b: Tensor) -> Tensor:
    """(..., D) and (..., E) -> (..., D + E)."""
    return b if a is None else torch.cat([a, b], dim=-1)


class _Linears(nn.ModuleList):
    """A list of linear layers."""

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[nn.Linear]: ...

        def __getitem__(self, index: int) -> nn.Linear: ...  # type: ignore[override]


# ---------------------------------------------------------------------------------------------------------------------
# Engines: engine(model, levels (B, T), u (B, T), condition, known, temperature) gives run(begin, end), which fills in
# the levels of these positions, in order, except the first `known`, which are given. u in (0, 1) is the noise.


def _torch_engine(model: WaveNet, levels: Tensor, u: Tensor, condition: Tensor | None, known: int,
                  temperature: float) -> "_TorchEngine":
    """All recordings together."""
    return _TorchEngine(model, levels, lambda t, parameters: model.distribution.from_uniform(parameters, u[:, t],
                                                                                             temperature),
                        condition, known)


class _Frames:
    """What the condition adds to the gates of all layers, frame by frame, while the levels (B, T) are filled in."""

    def __init__(self, model: WaveNet, levels: Tensor, condition: Tensor | None):
        self.model, self.levels, self.condition = model, levels, condition
        self.memory = model.output.weight.new_zeros(len(levels), model.config.context)
        self.spent = model.output.weight.new_zeros(len(levels))

    def __call__(self, frame: int) -> Tensor | None:
        """Those of the next frame, (B, depth, 2 residual); None if there is no condition."""
        model, condition = self.model, self.condition
        if condition is not None:
            condition = condition[:, min(frame, condition.shape[1] - 1)]  # (B, D)
        end = frame * model.config.hop
        if model.budget and condition is not None:
            if frame:
                self.spent += model._energy(self.levels[:, end - model.config.hop : end])[:, 0]
            condition = model._afford(condition, self.spent)
        if model.config.context:
            x = model._sound(self.levels[:, max(0, end - model.context.size) : end])
            self.memory = model.context.next(F.pad(x, (model.context.size - x.shape[1], 0)), condition, self.memory)
            condition = model.context.told(condition, self.memory)
        return None if condition is None else model.condition(condition).unflatten(1, (-1, 2 * model.config.residual))


class _TorchEngine:
    """All recordings together, in plain torch, on any device: `choose(t, parameters)` says their levels t (B,)."""

    def __init__(self, model: WaveNet, levels: Tensor, choose: Callable[[int, Tensor], Tensor],
                 condition: Tensor | None, known: int):
        self.model, self.levels, self.choose, self.known = model, levels, choose, known
        width = model.config.residual
        self.rings = [model.output.weight.new_zeros(len(levels), dilation, width) for dilation in model.dilations]
        self.frames = _Frames(model, levels, condition)
        self.weights = [(gates.weight.T.contiguous(), gates.bias) for gates in model.gates]

    def __call__(self, begin: int, end: int) -> None:
        for t in range(begin, end):
            x = self.model._embed(self.levels[:, t - 1]) if t else torch.zeros_like(self.rings[0][:, 0])
            skip = self._advance(x, t)
            if t >= self.known:
                parameters = self.model._out(skip).double()
                self.levels[:, t] = self.choose(t, parameters)

    def _advance(self, x: Tensor, t: int) -> Tensor:
        """(B, residual) -> (B, skip); the rings hold what each layer read, for as long as its dilation."""
        model, outputs = self.model, []
        if t % model.config.hop == 0:
            self.bias = self.frames(t // model.config.hop)  # (B, depth, 2 residual)
        for i, (ring, (weight, own)) in enumerate(zip(self.rings, self.weights, strict=True)):
            slot = ring[:, t % ring.shape[1]]
            h = torch.addmm(own, torch.cat([slot, x], dim=1), weight)
            slot.copy_(x)
            if self.bias is not None:
                h = h + self.bias[:, i]
            a, b = h.chunk(2, dim=-1)
            outputs.append(torch.tanh(a) * torch.sigmoid(b))
            if i < len(model.residuals):
                x = x + model.residuals[i](outputs[-1])
        return model.skip(torch.cat(outputs, dim=-1))


def _compiled_engine(model: WaveNet, levels: Tensor, u: Tensor, condition: Tensor | None, known: int,
                     temperature: float) -> Callable[[int, int], None]:
    """One recording after the other, in native code."""
    from gencli.layers.causal_kernel import Kernel  # numba takes a second to import

    width = model.config.residual
    depth = len(model.dilations)
    own = torch.stack([gates.bias for gates in model.gates])  # (depth, 2 residual)
    moving = _Frames(model, levels, condition) if model.watches else None  # frames that depend on the levels
    if moving:
        frames = own.repeat(len(levels), 1, 1, 1)  # of the present frame
    elif condition is None:
        frames = own[None, None]
    else:
        frames = own + model.condition(condition).unflatten(2, (depth, 2 * width))
    read = model.input
    table = torch.stack([read.weight[:, 0], read.bias]) if isinstance(read, nn.Linear) else read.weight
    last = own.new_zeros(1, width, width)  # the last layer has no residual connection
    kernel = Kernel(
        table=table, dilations=model.dilations, hop=model.config.hop, levels=model.spec.levels,
        gates=torch.stack([gates.weight.T for gates in model.gates]),
        skips=model.skip.weight.T.unflatten(0, (depth, width)), skip_bias=model.skip.bias,
        residuals=torch.cat([*(layer.weight.T[None] for layer in model.residuals), last]),
        residual_biases=torch.cat([*(layer.bias[None] for layer in model.residuals), last[:, 0]]),
        head=model.head.weight.T, head_bias=model.head.bias,
        output=model.output.weight.T, output_bias=model.output.bias)
    runs = [kernel.recording(levels[b], u[b], frames[min(b, len(frames) - 1)], known, temperature)
            for b in range(len(u))]

    def run(begin: int, end: int) -> None:
        hop = model.config.hop
        while begin < end:
            stop = min(end, begin - begin % hop + hop) if moving else end
            if moving and begin % hop == 0:
                told = moving(begin // hop)
                assert told is not None
                frames[:, 0] = own + told
            for one in runs:
                one(begin, stop)
            begin = stop

    return run


class _Step(nn.Module):
    """One sample of the network as a module of its own, for export; the state is a line of what each layer read, and
    what the context remembers."""

    def __init__(self, model: WaveNet):
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, level: Tensor, state: Tensor, condition: Tensor | None = None, memory: Tensor | None = None,
                past: Tensor | None = None, energy: Tensor | None = None, position: Tensor | None = None,
                ) -> tuple[Tensor, ...]:
        model = self.model
        width, kept = model.config.residual, []
        sound = model._sound(level.clamp(min=0)).where(level >= 0, 0.0)
        starts = None if position is None else position % model.config.hop == 0
        if energy is not None and starts is not None and condition is not None:
            spent = energy[:, :1] + sound.square()
            energy = torch.cat([spent, spent.where(starts, energy[:, 1:])], dim=1)
            condition = model._afford(condition, energy[:, 1])
        if memory is not None and past is not None and starts is not None:
            past = torch.cat([past[:, 1:], sound], dim=1)
            memory = model.context.next(past, condition, memory).where(starts, memory)
            condition = model.context.told(condition, memory)
            kept += [memory, past]
        kept += [] if energy is None else [energy]
        kept += [] if position is None else [position + 1]
        x = model._embed(level[:, 0].clamp(min=0)) * (level >= 0).to(state.dtype)
        bias = None if condition is None else model.condition(condition)
        outputs, after = [], []
        for i, (line, gates) in enumerate(zip(state.split(model.dilations, dim=1), model.gates, strict=True)):
            h = gates(torch.cat([line[:, 0], x], dim=1))
            after.append(torch.cat([line[:, 1:], x[:, None]], dim=1))
            if bias is not None:
                h = h + bias[:, 2 * width * i : 2 * width * (i + 1)]
            a, b = h.chunk(2, dim=-1)
            outputs.append(torch.tanh(a) * torch.sigmoid(b))
            if i < len(model.residuals):
                x = x + model.residuals[i](outputs[-1])
        return model._out(model.skip(torch.cat(outputs, dim=-1))), torch.cat(after, dim=1), *kept
