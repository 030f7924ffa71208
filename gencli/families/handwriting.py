"""Handwriting and drawing as a pen makes them: point by point, from nothing, of a class, or the text it is told.

Graves 2013, "Generating Sequences With Recurrent Neural Networks", arXiv:1308.0850, sections 4 and 5: LSTM layers, each
of which reads the point before and what the layer below knows, and all of which say together where the pen goes: a
mixture of bivariate Gaussians. Of a text the layers see a soft window that slides over its characters (section 5.1).

- `--set bias=` writes more neatly (section 5.4), `--prompt` goes on in somebody's hand (section 5.5).
- Departures: whether the pen is lifted after a point, and whether it is for good, is one symbol of three, so that the
  model knows where drawings end. The Gaussians are parametrised by their Cholesky factors, whose diagonals have a
  floor: data on a grid, or lines that are exactly straight, have no infinite density. At first they lie where the
  offsets of the data do. The window slides from the start at the pace of the data, so many characters a point. The
  first layer sees the window that its own state led to at the point before, the layers above that of their own point,
  as in the paper.

Densities are those of the offsets in the units of the data: the network sees them over their scale s, and every point
loses 2 log s. Offsets in whole numbers have probabilities: those of the cells around them, which are 1 wide, under
Gaussians of dx, and of dy given the dx that was rounded (as the channels of PixelCNN++, Salimans et al. 2017,
arXiv:1701.05517). After uniform noise the mean logarithm of a density would be no more than a bound of theirs.

Shapes: B batch, T points, L layers, H units, K Gaussians, W Gaussians of the window, U characters, V those there are.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import DataError, UsageError
from gencli.kinds.strokes import StrokesSpec
from gencli.kinds.text import TextSpec
from gencli.layers.autoregressive import inside, variational_dropout
from gencli.layers.classes import class_count
from gencli.layers.distributions import (
    Categorical,
    log_normal,
    log_normal_bin,
    normal_within,
    off_the_ends,
    precise,
)
from gencli.layers.kmeans import lloyd, plus_plus
from gencli.layers.subsample import Subsample
from gencli.model import Batch, FamilyConfig, Given, Graph, Loss, Model, NetSize, Phase, Sizes, net_size
from gencli.rng import Rng

_DOWN, _LIFTED, _OVER = range(3)  # what the pen does after a point: it stays, is lifted, is lifted for good
_PEN = Categorical(3)
_CODE = 4  # numbers of a point's code
_POINTS_IN_MEMORY = 2**16  # read in one go while drawings are scored or encoded
_SUBSAMPLE = 20_000  # points that say how the head begins

Drop = Callable[[Tensor], Tensor]
Ending = Literal["text", "learned", "window"]


class HandwritingConfig(FamilyConfig):
    sizes: ClassVar = Sizes(width=(256, 400, 512), layers=(2, 3, 3))
    net_size: NetSize = net_size(sizes)
    width: int = Field(256, ge=1, description="Units of each LSTM layer.")
    layers: int = Field(2, ge=1, description="LSTM layers.")
    components: int = Field(20, ge=1, description="Bivariate Gaussians of the mixture.")
    gaussians: int = Field(10, ge=1, description="Gaussians of the window over the characters of a text.")
    floor: float = Field(0.01, gt=0, description="Least deviation of a Gaussian in any direction, as a share of the "
                                                 "scale of the data.")
    conditional: bool = Field(False, description="Learn the drawings of each class; the data must be labelled.")
    crop: int = Field(0, ge=0, description="Points of a drawing that a training step reads, somewhere in it; 0: all. "
                                           "Not of drawings that are made from a text.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of layer outputs dropped in training.")


# ---------------------------------------------------------------------------------------------------------------------
# The mixture


class Mixture:
    """K bivariate Gaussians; parameters (..., 6 K): log-weights, two means, two log-deviations and a slope of each.

    x = m_x + a e_1,  y = m_y + c (e_2 + slope e_1),  e ~ N(0, I),  a and c: floor + exp(log-deviation). So the
    correlation is slope / sqrt(1 + slope^2), and no density exceeds 1 / (2 pi floor^2).

    With a `cell` x and y are rounded to its multiples, x first: the e_1 that y depends on is that of the rounded x.

    `bias` b: weights are raised to the power 1 + b, and log-deviations b lower (Graves 2013, section 5.4).
    """

    def __init__(self, components: int, floor: float, cell: float = 0.0):
        self.floor, self.cell, self.parameters = floor, cell, 6 * components
        self._weights = Categorical(components)

    def log_prob(self, parameters: Tensor, xy: Tensor) -> Tensor:
        """The log-density of xy (..., 2), or log-probability of its cell -> (...,)."""
        # In float64 both ends of a cell differ wherever it lies.
        parameters = parameters.double() if self.cell else precise(parameters)
        return self._joint(parameters, xy)[0].logsumexp(-1).to(xy.dtype)

    def to_noise(self, parameters: Tensor, xy: Tensor, u: Tensor) -> Tensor:
        """The noise of xy, (..., 3): of the Gaussian, and e. u (..., 4) in (0, 1) draws which Gaussian given xy, a
        place in its share, and one in the cell along each axis."""
        joint, *ends = self._joint(parameters, xy)
        k = self._weights.from_uniform(joint, u[..., 0])
        noise = [self._weights.to_noise(parameters.chunk(6, -1)[0], k, u[..., 1])]
        for axis, (low, high) in enumerate(ends):
            low, high = (end.gather(-1, k[..., None])[..., 0] for end in (low, high))
            noise.append(normal_within(low, high, off_the_ends(u[..., 2 + axis])) if self.cell else low)
        return torch.stack(noise, -1)

    def from_noise(self, parameters: Tensor, z: Tensor, bias: float = 0.0) -> Tensor:
        """The inverse of `to_noise`: (..., 3) -> xy (..., 2)."""
        weights, *others = parameters.chunk(6, -1)
        k = self._weights.from_uniform(weights * (1 + bias), torch.special.ndtr(z[..., 0]).clamp(max=1 - 1e-15))
        m_x, m_y, s_x, s_y, slope = (part.gather(-1, k[..., None])[..., 0] for part in others)
        _, e_1, e_2 = z.unbind(-1)
        a, c = self.floor + (s_x - bias).exp(), self.floor + (s_y - bias).exp()
        x = self._rounded(m_x + a * e_1)
        return torch.stack([x, self._rounded(m_y + c * (e_2 + slope * (x - m_x) / a))], -1)

    def _rounded(self, x: Tensor) -> Tensor:
        return (x / self.cell).round() * self.cell if self.cell else x

    def _joint(self, parameters: Tensor, xy: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """log p(xy, k), and between which e_1 and e_2 xy lies by each Gaussian, (..., K)."""
        weights, m_x, m_y, s_x, s_y, slope = parameters.chunk(6, -1)
        x, y = xy.split(1, -1)
        a, c = self.floor + s_x.exp(), self.floor + s_y.exp()
        e_1 = (x - m_x) / a
        e_2 = (y - m_y) / c - slope * e_1
        half_1, half_2 = self.cell / 2 / a, self.cell / 2 / c
        ends = (e_1 - half_1, e_1 + half_1), (e_2 - half_2, e_2 + half_2)
        of_xy = log_normal_bin(*ends[0]) + log_normal_bin(*ends[1]) if self.cell else \
            log_normal(e_1) + log_normal(e_2) - (a * c).log()
        return weights.log_softmax(-1) + of_xy, *ends


# ---------------------------------------------------------------------------------------------------------------------
# The network


class State(NamedTuple):
    """What is known after a point: h and c of the layers (B, L, H), the places of the Gaussians of the window (B, W),
    and what it shows (B, V). Before the first point all are 0."""

    h: Tensor
    c: Tensor
    place: Tensor
    window: Tensor


class Handwriting(Model):
    """Recurrent network with a mixture of Gaussians (Graves 2013): p(x) = prod p(x_t | x_1 .. x_(t-1), class or text).

    The likelihood is exact: a density, of offsets in whole numbers a probability.

    Noise codes (B, T, 4) are normal under the model: three numbers of the offsets (`Mixture.to_noise`) and one of the
    pen. A model of classes has a row before the points, whose first number is the noise of the class.

    Raises:
        UsageError: texts of more than one line.
    """

    Config = HandwritingConfig
    kinds = frozenset({"strokes"})
    conditions = frozenset({"text"})
    likelihood = "exact"
    lossless = True
    alike = True
    block = 16
    defaults = {"lr": 3e-3, "batch_size": 32, "grad_clip": 1.0, "schedule": "cosine", "warmup": 100, "ema": 0.0}
    config: HandwritingConfig
    spec: StrokesSpec

    def __init__(self, config: HandwritingConfig, spec: StrokesSpec):
        super().__init__(config, spec)
        text = spec.condition
        if text is not None and not (isinstance(text, TextSpec) and text.lines):
            raise UsageError("handwriting is made from lines of text; leave --no-lines out")
        if text is not None and config.crop:
            raise UsageError(f"--crop {config.crop}: drawings that are made from a text are read from its beginning; "
                             f"leave it out")
        self.classes = class_count(config.conditional, spec, "handwriting")
        self.characters = len(text.vocabulary) if isinstance(text, TextSpec) else 0
        self.density = not spec.integers
        self.mixture = Mixture(config.components, config.floor, 1 / spec.scale if spec.integers else 0.0)
        self._points = Subsample(_SUBSAMPLE)
        self._drawn = self._limited = 0  # drawings, and those among them that the limit of points ended
        told, width = self.classes + self.characters, config.width
        self.recurrent = nn.ModuleList(nn.LSTM(3 + told + (width if layer else 0), width, batch_first=True)
                                       for layer in range(config.layers))
        self.head = nn.Linear(config.layers * width, self.mixture.parameters + _PEN.parameters)
        for layer in self.recurrent:  # gates in the order of torch: input, forget, cell, output
            nn.init.ones_(layer.get_parameter("bias_ih_l0").data[width : 2 * width])
        if isinstance(text, TextSpec):
            self.slide = nn.Linear(width, 3 * config.gaussians)
            nn.init.zeros_(self.slide.bias)
            nn.init.constant_(self.slide.bias.data[2 * config.gaussians :], math.log(text.length / spec.length))

    # --- the network

    def _beginning(self, count: int) -> State:
        def zeros(*shape: int) -> Tensor:
            return self.head.weight.new_zeros(count, *shape)

        layers = (self.config.layers, self.config.width)
        return State(zeros(*layers), zeros(*layers), zeros(self.config.gaussians), zeros(self.characters))

    def _told(self, labels: Tensor | None, text: Batch | None) -> Tensor | None:
        """What B drawings are told: their class, one-hot (B, classes), or their characters (B, U, V), 0 past the end.

        Raises:
            DataError: they have no class, and the model is of classes.
        """
        if self.characters:
            assert text is not None
            one_hot = F.one_hot(text.x, self.characters) * inside(text.x, text.lengths)[..., None]
            return one_hot.to(self.head.weight.dtype)
        if not self.classes:
            return None
        if labels is None:
            raise DataError("this model is conditioned on classes, and these drawings have none; give labelled data")
        return F.one_hot(labels, self.classes).to(self.head.weight.dtype)

    def _inputs(self, x: Tensor) -> Tensor:
        """Points (..., 3) as the network sees them."""
        x = x.to(self.head.weight.dtype)
        return torch.cat([x[..., :2] / self.spec.scale, x[..., 2:]], -1)

    def _read(self, inputs: Tensor, told: Tensor | None, state: State, drop: Drop = lambda x: x
              ) -> tuple[Tensor, State]:
        """Inputs (B, T, 3) and the state before them -> outputs of all layers side by side (B, T, L H), state after."""
        place, window = state.place, state.window
        outputs: list[Tensor] = []
        h, c, below = [], [], inputs
        for i, layer in enumerate(self.recurrent):
            before = (state.h[:, i], state.c[:, i])
            if i == 0 and self.characters:
                assert told is not None
                x, now, place, windows = self._slide(inputs, told, before, place, window)
                below, window = torch.cat([inputs, windows], -1), windows[:, -1]
            else:
                if i == 0 and told is not None:
                    below = torch.cat([inputs, told[:, None].expand(-1, inputs.shape[1], -1)], -1)
                own = torch.cat([below, outputs[-1]], -1) if i else below
                x, now = layer(own, tuple(part[None].contiguous() for part in before))
            outputs.append(drop(x))
            h.append(now[0].flatten(0, -2))
            c.append(now[1].flatten(0, -2))
        return torch.cat(outputs, -1), State(torch.stack(h, 1), torch.stack(c, 1), place, window)

    def _slide(self, inputs: Tensor, characters: Tensor, before: tuple[Tensor, Tensor], place: Tensor, window: Tensor
               ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor, Tensor]:
        """The first layer under a window over the characters, which its state slides, point by point.

        -> its outputs (B, T, H), its state, the places of the window after the last point (B, W), and what it shows at
        each (B, T, V).
        """
        weights, recurrent, *biases = (self.recurrent[0].get_parameter(f"{name}_l0")
                                       for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        both = torch.cat([weights[:, 3:], recurrent], 1).T  # of the window before and h
        gates_of_inputs = F.linear(inputs, weights[:, :3], biases[0] + biases[1])
        h, c = before
        outputs, windows = [], []
        for of_input in gates_of_inputs.unbind(1):
            i, f, g, o = torch.addmm(of_input, torch.cat([window, h], 1), both).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            weight, place = self._weigh(h, place, characters.shape[1])
            window = torch.bmm(weight[:, None], characters)[:, 0]
            outputs.append(h)
            windows.append(window)
        return torch.stack(outputs, 1), (h, c), place, torch.stack(windows, 1)

    def _weigh(self, h: Tensor, place: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """h of the first layer (B, H) and places of the window before (B, W) -> the weights of the characters (B, U),
        and the places that the window has slid to (eq. 46 to 51)."""
        height, narrowness, step = self.slide(h).exp().chunk(3, 1)
        place = place + step
        distance = place[..., None] - torch.arange(length, dtype=h.dtype, device=h.device)
        return (height[..., None] * (-narrowness[..., None] * distance.square()).exp()).sum(1), place

    def advance(self, point: Tensor, told: Tensor | None, state: State) -> tuple[Tensor, State]:
        """`_read` for one point (B, 3) in the units of the data, in operations that every exporter knows ->
        parameters (B, 6 K + 3)."""
        inputs, place, window = self._inputs(point), state.place, state.window
        extra = [window] if self.characters else [] if told is None else [told]
        outputs: list[Tensor] = []
        cells = []
        for i, layer in enumerate(self.recurrent):
            weights = [layer.get_parameter(f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            h, c = torch.lstm_cell(torch.cat([inputs, *extra, *outputs[-1:]], 1), [state.h[:, i], state.c[:, i]],
                                   *weights)
            if i == 0 and self.characters:
                assert told is not None
                weight, place = self._weigh(h, place, told.shape[1])
                window = torch.bmm(weight[:, None], told)[:, 0]
                extra = [window]
            outputs.append(h)
            cells.append(c)
        return self.head(torch.cat(outputs, 1)), State(torch.stack(outputs, 1), torch.stack(cells, 1), place, window)

    # --- train, score

    def phases(self) -> list[Phase]:
        return [Phase("start", share=0, accumulate=self._gather, finish=self._spread), *super().phases()]

    def _gather(self, batch: Batch) -> None:
        points = torch.cat([batch.x[..., :2] / self.spec.scale, self._pen(batch)[..., None]], -1)
        self._points.add(points[inside(batch.x[..., 0], batch.lengths)].cpu())

    @torch.no_grad()
    def _spread(self) -> bool:
        """The Gaussians start where offsets are, by k-means of their asinh, as most are short and some very long, and
        the pen is lifted as often as it is in the data."""
        offsets, pen = self._points.examples.split([2, 1], 1)
        usual = offsets.norm(dim=1).median().clamp(min=self.config.floor)
        bent = (offsets / usual).asinh()
        centres = plus_plus(bent, self.config.components, torch.Generator().manual_seed(0))
        nearest = torch.cdist(bent, lloyd(bent, centres)).argmin(1)
        of_offsets, of_pen = self.head.bias.split([self.mixture.parameters, _PEN.parameters])
        weights, m_x, m_y, s_x, s_y, _ = of_offsets.chunk(6)
        weights.fill_(-math.log(len(offsets)))
        for k in nearest.unique().tolist():
            own = offsets[nearest == k]
            weights[k] += math.log(len(own))
            m_x[k], m_y[k] = own.mean(0)
            s_x[k], s_y[k] = (own.std(0, correction=0) + 0.1 * usual).log()
        of_pen.copy_((pen.long().flatten().bincount(minlength=3) + 1).log())
        self._points = Subsample(_SUBSAMPLE)
        return True

    def _log_prob(self, parameters: Tensor, offsets: Tensor, pen: Tensor) -> Tensor:
        """log p of points: offsets (..., 2) in the units of the data, and what the pen does after them (...)."""
        of_offsets, of_pen = parameters.split([self.mixture.parameters, _PEN.parameters], -1)
        offsets = offsets.to(torch.promote_types(of_offsets.dtype, torch.float32)) / self.spec.scale
        volume = 2 * math.log(self.spec.scale) if self.density else 0.0
        return self.mixture.log_prob(of_offsets, offsets) - volume + _PEN.log_prob(of_pen, pen)

    def _pen(self, batch: Batch) -> Tensor:
        """What the pen does after each point, (B, T)."""
        assert batch.lengths is not None
        places = torch.arange(batch.x.shape[1], device=batch.x.device)
        return (batch.x[..., 2] > 0.5).long().masked_fill(places == batch.lengths[:, None] - 1, _OVER)

    def loss(self, batch: Batch, rng: Rng) -> Loss:
        """Mean negative log likelihood in nats per point; `pen` is the pen's part."""
        assert batch.lengths is not None
        offsets, pen = batch.x[..., :2], self._pen(batch)
        inputs, there = _before(self._inputs(batch.x)), inside(pen, batch.lengths)
        if 0 < self.config.crop < inputs.shape[1]:
            first = (rng.uniform() * (batch.lengths - self.config.crop + 1).clamp(min=1)).long()
            places = first[:, None] + torch.arange(self.config.crop, device=first.device)
            rows = torch.arange(len(first), device=first.device)[:, None]
            inputs, offsets, pen, there = (part[rows, places] for part in (inputs, offsets, pen, there))
        outputs, _ = self._read(inputs, self._told(batch.labels, batch.condition), self._beginning(len(batch)),
                                lambda x: variational_dropout(x, rng, self.config.dropout if self.training else 0.0))
        parameters = self.head(outputs[there])
        nats = -self._log_prob(parameters, offsets[there], pen[there])
        with torch.no_grad():
            of_pen = -_PEN.log_prob(parameters[:, self.mixture.parameters :], pen[there])
        return Loss(nats.mean(), of=len(nats), pen=of_pen.mean())

    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        """log p(x | class or text) in nats, (B,): a density in the units of the data, of whole numbers a probability.
        That the drawing ends where it does is part of it."""
        offsets, pen = batch.x[..., :2], self._pen(batch)
        parts = [self._log_prob(parameters, offsets[rows], pen[rows]).double()
                 for rows, parameters in self._parts(batch)]
        return torch.cat(parts).where(inside(pen, batch.lengths), 0.0).sum(1)

    def _parts(self, batch: Batch) -> Iterator[tuple[slice, Tensor]]:
        """Parameters of the points given those before, (b, T, 6 K + 3), of some rows at a time."""
        size = max(1, _POINTS_IN_MEMORY // batch.x.shape[1])
        for start in range(0, len(batch), size):
            rows = slice(start, start + size)
            part = batch[rows]
            outputs, _ = self._read(_before(self._inputs(part.x)), self._told(part.labels, part.condition),
                                    self._beginning(len(part)))
            yield rows, self.head(outputs)

    def score_protocol(self) -> dict[str, Any]:
        given = {"given": {"class": True}} if self.classes else {}
        return given | ({"density": True} if self.density else {})

    # --- codes

    def prior(self, rng: Rng, *, length: int | None = None) -> Tensor:
        """Codes (B, T, 4), float64; of a model of classes with a row more."""
        z = rng.normal(self._length(length), _CODE, dtype=torch.float64)
        if not self.classes:
            return z
        return torch.cat([_row(rng.normal(dtype=torch.float64)), z], 1)

    def _length(self, length: int | None) -> int:
        if length is not None and length < 1:
            raise UsageError(f"length is {length}; expected 1 or more points")
        return length or self.spec.length

    @torch.no_grad()
    def encode(self, batch: Batch, rng: Rng) -> Tensor:
        """Drawings -> noise codes (B, T, 4), float64, NaN past the end; of a model of classes with a row more.

        `rng` draws the Gaussian that a point came from, and places inside the intervals of Gaussian, cell and pen.
        """
        model = self.clone().double().eval()
        offsets, pen = batch.x[..., :2].double(), self._pen(batch)
        u = rng.uniform(batch.x.shape[1], 5, dtype=torch.float64)
        parts = []
        for rows, parameters in model._parts(batch):
            of_offsets, of_pen = parameters.split([self.mixture.parameters, _PEN.parameters], -1)
            xyz = self.mixture.to_noise(of_offsets, offsets[rows] / self.spec.scale, u[rows, :, :4])
            parts.append(torch.cat([xyz, _PEN.to_noise(of_pen, pen[rows], u[rows, :, 4])[..., None]], -1))
        z = torch.cat(parts).where(inside(pen, batch.lengths)[..., None], math.nan)
        if not self.classes:
            return z
        assert batch.labels is not None  # or `_told` had refused it
        classes = Categorical(self.classes)
        place = rng.uniform(dtype=torch.float64)
        return torch.cat([_row(classes.to_noise(z.new_zeros(len(z), self.classes), batch.labels, place)), z], 1)

    def decode(self, code: Tensor, rng: Rng | None = None, given: Given | None = None, *,  # type: ignore[override]
               bias: float = 0.0) -> Batch:
        """Noise codes -> drawings, computed in float64: a code that `encode` gave becomes the same drawing.

        Args:
            bias: 0: as the model has it; more is neater and less varied (section 5.4), 1 is much.

        Raises:
            UsageError: a bias below 0. DataError: the code is not one of this model.
        """
        if code.dim() != 3 or code.shape[2] != _CODE or code.shape[1] <= (self.classes > 0):
            raise DataError(f"a code of shape {tuple(code.shape)}; expected (drawings, points, {_CODE}), as encode "
                            f"gives it")
        labels, z = self._class_and_noise(code.to(self.device).double())
        return self._write(z, labels, None if given is None else given.condition, None, bias)

    def _class_and_noise(self, code: Tensor) -> tuple[Tensor | None, Tensor]:
        """A code -> the class (B,), of a model of classes, and the noise of the points (B, T, 4)."""
        if not self.classes:
            return None, code
        u = torch.special.ndtr(code[:, 0, 0]).clamp(max=1 - 1e-15)
        return Categorical(self.classes).from_uniform(code.new_zeros(len(code), self.classes), u), code[:, 1:]

    # --- sample

    def sample(self, rng: Rng, given: Given | None = None, *, length: int | None = None, bias: float = 0.0,
               prompt_text: str = "", ending: Ending = "text") -> Batch:
        """Drawings that begin with the prompt, if one is given, and go on for `length` points or until their end.

        The class is given or drawn. A text is written in the hand of the prompt, whose own text is `prompt_text`.

        Args:
            length: points at most, after the prompt. Default: of the longest drawing of training.
            bias: as in `decode`.
            prompt_text: what the prompt says, which the model has to know to go on from there; a space follows, if it
                knows one.
            ending: of a writing. learned: where the model lifts the pen for good; text: there, but not before the
                window has come to the last character; window: as soon as the window has left it (section 5.1), with
                which strokes that come late may be missing.

        Raises:
            UsageError: an option is out of its range, or is missing.
            DataError: there is nothing to write, or a character that the model never saw.
        """
        given = given or Given()
        labels, z = self._class_and_noise(self.prior(rng, length=length))
        if self.classes and given.labels is not None:
            labels = given.labels
        if (prompt_text or ending != "text") and not self.characters:
            raise UsageError(f"prompt_text and ending={ending} are for models of texts, and this one writes none")
        if self.characters and (given.prompt is None) != (not prompt_text):
            raise UsageError("to write a text in the hand of a prompt, give both --prompt DRAWING and what it says, "
                             "--set prompt_text=...")
        text = self._text(given.condition, prompt_text) if self.characters else None
        return self._write(z, labels, text, given.prompt, bias, ending)

    def _text(self, text: Batch | None, before: str) -> Batch:
        """The texts to write, after what the prompt says."""
        spec = self.spec.condition
        assert isinstance(spec, TextSpec)
        if text is None:
            raise UsageError("this model writes texts; name them with --given")
        between = " " if before and " " in spec.vocabulary else ""
        first = torch.tensor(spec.tokenizer.encode(before + between), dtype=torch.int64)
        if any(len(piece) < 2 for piece in text.pieces()):
            raise DataError("a text is empty; there is nothing to write: leave empty lines out")
        pieces = [torch.cat([first.to(piece), piece]) for piece in text.pieces()]
        for piece in pieces:
            if TextSpec.UNKNOWN in piece:
                words, known = spec.tokenizer.decode(piece[:-1].tolist()), "".join(sorted(spec.vocabulary[2:]))
                raise DataError(f"the text {words!r} has a character that the writer never saw; it knows {known!r}")
        lengths = torch.tensor([len(piece) for piece in pieces], device=text.x.device)
        x = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)
        return Batch(x, lengths=lengths)

    @torch.no_grad()
    def _write(self, z: Tensor, labels: Tensor | None, text: Batch | None, prompt: Tensor | None, bias: float,
               ending: Ending = "learned") -> Batch:
        """The prompt (P, 3), then the drawings of the noise (B, T, 4), of which each ends at NaN -> (B, P + T, 3)."""
        if not bias >= 0:
            raise UsageError(f"bias={bias}; expected a number of 0 or more")
        model = self.clone().double().eval()
        told, state, count = model._told(labels, text), model._beginning(len(z)), len(z)
        points = []
        start = z.new_zeros(1, 1, 3) if prompt is None else F.pad(prompt.to(z), (0, 0, 1, 0))[None]
        start = start.expand(count, -1, -1)
        if told is not None and len(told) < count:
            told = told.expand(count, *told.shape[1:])
        outputs, state = model._read(model._inputs(start), told, state)
        parameters = model.head(outputs[:, -1])
        active = torch.ones(count, dtype=torch.bool, device=z.device)
        lengths = torch.zeros(count, dtype=torch.int64, device=z.device)
        shown, last = torch.zeros_like(lengths), None  # the character that the window shows, and the place of <end>
        if ending != "learned" and text is not None and text.lengths is not None:
            last = text.lengths - 1
        for noise in z.unbind(1):
            active = active & ~noise[:, 0].isnan()
            if not active.any():
                break
            noise = noise.nan_to_num()
            of_offsets, of_pen = parameters.split([self.mixture.parameters, _PEN.parameters], -1)
            offsets = self.mixture.from_noise(of_offsets, noise[:, :3], bias) * self.spec.scale
            # What is written is what the next point is given.
            offsets = offsets.round() if self.spec.integers else offsets.float().double()
            u = torch.special.ndtr(noise[:, 3]).clamp(max=1 - 1e-15)
            pen = _PEN.from_uniform(of_pen, u)
            if last is not None and ending == "text":
                pen = torch.where((pen == _OVER) & (shown < last - 1), _LIFTED, pen)
            point = torch.cat([offsets, (pen != _DOWN).double()[:, None]], 1)
            points.append(point.where(active[:, None], 0.0))
            lengths += active
            active = active & (pen != _OVER)
            before = state.place
            parameters, state = model.advance(point, told, state)
            if last is not None and told is not None:
                shown = model._weigh(state.h[:, 0], before, told.shape[1])[0].argmax(1)
                active = active & ((shown < last) | (ending == "text"))
        self._drawn += count
        self._limited += int((active & (lengths == z.shape[1])).sum())
        x = torch.stack(points, 1).float()
        x = F.pad(x, (0, 0, 0, z.shape[1] - x.shape[1]))  # as wide as others from codes of this length
        if prompt is not None:
            x, lengths = torch.cat([start[:, 1:].float(), x], 1), lengths + len(prompt)
        ends = torch.arange(x.shape[1], device=x.device) == lengths[:, None] - 1
        x = torch.cat([x[..., :2], x[..., 2:].masked_fill(ends[..., None], 1)], -1)
        return Batch(x, labels, lengths)

    def remarks(self) -> list[str]:
        if not self._limited:
            return []
        return [f"{self._limited / self._drawn:.0%} of the drawings reached the limit of points before their end, and "
                f"were cut there; --set length= gives them more"]

    # --- export

    def graph(self) -> Graph:
        """One point: point (B, 3) in the units of the data, the state after those before it and, if there is one, what
        is told, a class, one-hot (B, classes), or the characters of a text, one-hot (B, U, V) -> parameters
        (B, 6 K + 3), next state.

        The offsets of the parameters are in scales of the data. All is 0 before the first point.
        """
        h, c, place, window = self._beginning(2)
        inputs = {"point": h.new_zeros(2, 3), "h": h, "c": c}
        if self.classes:
            inputs["told"] = h.new_zeros(2, self.classes)
        if self.characters:
            assert self.spec.condition is not None
            inputs |= {"told": h.new_zeros(2, *self.spec.condition.shape, self.characters), "place": place,
                       "window": window}
        states = [name for name in inputs if name not in ("point", "told")]
        return Graph(_Step(self), inputs, ["parameters", *(f"next_{name}" for name in states)])


class _Step(nn.Module):
    """`Handwriting.advance` as a module of its own, for export."""

    def __init__(self, model: Handwriting):
        super().__init__()
        self.model = model

    def forward(self, point: Tensor, h: Tensor, c: Tensor, told: Tensor | None = None, place: Tensor | None = None,
                window: Tensor | None = None) -> tuple[Tensor, ...]:
        if place is None or window is None:
            empty = h[:, 0, :0]
            parameters, state = self.model.advance(point, told, State(h, c, empty, empty))
            return parameters, state.h, state.c
        parameters, state = self.model.advance(point, told, State(h, c, place, window))
        return parameters, *state


def _before(inputs: Tensor) -> Tensor:
    """Of each point (B, T, 3) the one before it, and 0 before the first."""
    return F.pad(inputs[:, :-1], (0, 0, 1, 0))


def _row(noise: Tensor) -> Tensor:
    """Numbers (B,) as the first of a row of a code, (B, 1, 4)."""
    return F.pad(noise[:, None, None], (0, _CODE - 1))
