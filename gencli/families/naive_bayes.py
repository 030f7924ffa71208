"""Naive Bayes: p(x, y) = p(y) prod_i p(x_i | y), the generative classifier, fitted in one pass by counting.

Given the class y the elements of an example are independent. So class, likelihood, samples and whatever is missing are
exact: p(y | x) is Bayes' rule, p(x) = sum_y p(x, y), and what is not known is left out. Without labels there is one
class, and what is left is the model of independent elements that every other has to beat.

What p(x_i | y) is follows from the data:

- categories, binary and 8-bit pixels: the chance of each level, (count + alpha) / (all counts + alpha levels); of two
  levels this is the Bernoulli model (McCallum & Nigam 1998, "A comparison of event models for naive Bayes text
  classification");
- numbers: Gaussian; of integers and dates the mass that it has in the cell of each, of real numbers its density;
- words of a text: multinomial (`OfTexts`).

Smoothing is that of scikit-learn's MultinomialNB, BernoulliNB and CategoricalNB, whose probabilities these are.

Shapes: B batch, K classes (1 without labels), E elements, L levels at most.
"""

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import wraps
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gencli.errors import DataError, UsageError
from gencli.kinds.image import ImageSpec
from gencli.kinds.text import TextSpec
from gencli.kinds.vector import VectorSpec
from gencli.layers.autoregressive import Advance, AutoregressiveText, OneStep, Read, after_end, inside
from gencli.layers.distributions import FLOOR, MARGIN, log_normal, log_normal_bin, normal_within
from gencli.layers.mixtures import visit_mixture
from gencli.layers.ngram_counts import NGrams, Sparse
from gencli.layers.skeleton import Skeleton
from gencli.model import Batch, FamilyConfig, Given, Graph, Model, Phase, Score, Spec, Visit
from gencli.rng import Rng

_PIECE = 2**22  # chances of a next token that are in memory at once
_LEVELS = 2**16  # of an element at most that are coded as symbols
_TOLD = 20  # words that are told of a class
_OUTPUT = Literal["noise", "probabilities", "log_probabilities"]


class NaiveBayesConfig(FamilyConfig):
    alpha: float = Field(1.0, gt=0, description="Added to every count of a level or word (Laplace smoothing).")
    pixels: Literal["auto", "levels", "gaussian"] = Field(
        "auto", description="Of pictures: a chance for each level, or a Gaussian of grey values; auto: levels, where "
                            "there are any.")
    floor: float = Field(1e-3, ge=0, description="Variance added to every number of a Gaussian, as a share of its "
                                                 "variance in all data (tables) or of the range of grey values squared "
                                                 "(pictures).")
    ngrams: int | None = Field(None, ge=1, description="Of texts: tokens of the longest n-grams by which they are "
                                                       "classified; default: 2 of words and subwords, 4 of characters "
                                                       "and bytes.")


class NaiveBayes(Model):
    """Counts of classes (K,), and of each class the distribution of every element.

    A code is the class, one-hot, where there are classes, and for each element the noise z that it is made of:
    Phi(z) is its place in the distribution of its class, as in `gencli.layers.distributions`.
    """

    Config = NaiveBayesConfig
    kinds = frozenset({"image", "vector", "text"})
    labelled = True
    defaults = {"epochs": 1, "batch_size": 1024}
    likelihood = "exact"
    block = 250
    config: NaiveBayesConfig
    parts: nn.ModuleList

    def __new__(cls, config: NaiveBayesConfig | None = None, spec: Spec | None = None) -> "NaiveBayes":
        """The model of texts is one of its own. (A copy is made without a Spec.)"""
        return super().__new__(OfTexts if isinstance(spec, TextSpec) else cls)

    def __init__(self, config: NaiveBayesConfig, spec: Spec):
        super().__init__(config, spec)
        self._start(spec)
        if isinstance(spec, ImageSpec):
            if config.pixels == "levels" and spec.levels is None:
                raise UsageError("--pixels levels is for pictures of discrete levels, and these are real-valued; use "
                                 "--pixels gaussian")
            levels = None if config.pixels == "gaussian" else spec.levels
            names = tuple(f"pixel {i + 1}" for i in range(spec.size))
            part = _Gaussians.of_pixels(self.classes, names) if levels is None else _Levels(
                self.classes, torch.full((spec.size,), levels), levels - 1, config.alpha)
            parts, places = [part], [list(range(spec.size))]
        else:
            assert isinstance(spec, VectorSpec)  # `kinds` has no other
            words = [i for i, column in enumerate(spec.columns) if column.coded]
            numbers = [i for i in range(spec.size) if i not in words]
            sizes = torch.tensor([len(spec.columns[i].values) for i in words])
            both = [(words, _Levels(self.classes, sizes, 1, config.alpha) if words else None),
                    (numbers, _Gaussians.of_columns(self.classes, [spec.columns[i] for i in numbers])
                     if numbers else None)]
            parts, places = [part for _, part in both if part], [own for own, part in both if part]
        self.parts, self.places = nn.ModuleList(parts), places
        self.density = any(part.density for part in parts)
        self.lossless = not self.density  # of real numbers up to rounding
        few = all(part.levels is not None for part, _ in self._parts())
        self.lacks = frozenset() if few else frozenset({"compress"})

    def _start(self, spec: Spec) -> None:
        """What models of all kinds have: the examples of each class."""
        self.classes = max(1, len(spec.classes))
        self.counts = _fitted(torch.zeros(self.classes))
        self._joint_nll = math.nan

    # --- train

    def phases(self) -> list[Phase]:
        return [Phase("count", accumulate=self.accumulate, finish=self.finish, report=self.report)]

    def accumulate(self, batch: Batch) -> None:
        """Add B examples to the counts and moments of their classes.

        Raises:
            DataError: the data has classes, and these examples have none.
        """
        labels = self._labels(batch)
        x = batch.x.flatten(1).double()
        for part, own in self._parts():
            part.add(x[:, own], labels)

    def finish(self) -> bool:
        """Distributions of maximum likelihood, smoothed.

        Raises:
            DataError: a number is the same in every example.
        """
        parts = [part.fit(self.config.floor) for part, _ in self._parts()]
        self._joint_nll = self._class_nll() + sum(parts) / float(self.counts.sum())
        return True

    def report(self) -> dict[str, float]:
        """The mean -log p(x, y) of the training data in nats; integers and dates count by their density."""
        return {"joint_nll": self._joint_nll}

    def _labels(self, batch: Batch) -> Tensor:
        """The class of each example (B,), which is counted."""
        if batch.labels is None and self.spec.classes:
            raise DataError("the data has classes, but these examples have no labels to learn from")
        labels = torch.zeros(len(batch), dtype=torch.int64, device=batch.x.device) if batch.labels is None \
            else batch.labels
        self.counts.add_(torch.bincount(labels, minlength=self.classes))
        return labels

    def _class_nll(self) -> float:
        """The mean -log p(y) of the examples that were counted."""
        return -float((self.counts * self.log_prior()).sum() / self.counts.sum())

    # --- probabilities

    def _parts(self) -> "list[tuple[_Levels | _Gaussians, list[int]]]":
        """Distributions of elements, and the places of these."""
        return list(zip(self.parts, self.places, strict=True))  # type: ignore[arg-type]

    def log_prior(self) -> Tensor:
        """log p(y), (K,) float64; finite, but practically nothing of a class without examples."""
        return self.counts.clamp(min=1e-300).log() - self.counts.sum().clamp(min=1e-300).log()

    def log_joint(self, batch: Batch) -> Tensor:
        """log p(x, y) of every class, (B, K) float64, in nats; elements that are missing (NaN) are left out."""
        x = batch.x.flatten(1).double()
        return self.log_prior() + sum(part.log_prob(x[:, own]) for part, own in self._parts())

    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        """Exact log p(x) in nats, whatever the class, (B,) float64; of an example with gaps that of the others."""
        return self.log_joint(batch).logsumexp(1)

    def classify(self, batch: Batch) -> Tensor:
        return self.log_joint(batch).log_softmax(1)

    def scores(self, batch: Batch, rng: Rng) -> dict[str, Score]:
        """`nll`, of labelled examples also `class_nll`: -log p(y|x) in nats."""
        found = super().scores(batch, rng)
        if batch.labels is not None and self.spec.classes:
            found["class_nll"] = Score(F.nll_loss(self.classify(batch), batch.labels, reduction="none"))
        return found

    # --- sample, encode, decode

    def prior(self, rng: Rng) -> Tensor:
        """A class drawn by its share, one-hot, and standard normal noise: (B, K + E) float64, or (B, E) of no classes.
        """
        return self._code(self.log_prior().expand(len(rng), -1), rng)

    def _code(self, log_chances: Tensor, rng: Rng) -> Tensor:
        """A class drawn by its log-chances (B, K), and noise."""
        own, z = _drawn(log_chances, rng), rng.normal(self.spec.size, dtype=torch.float64)
        return torch.cat([self._one_hot(own), z], dim=1)

    def _one_hot(self, labels: Tensor) -> Tensor:
        """Classes (B,) as the beginning of a code, (B, K); (B, 0) without classes."""
        return F.one_hot(labels, self.classes).double()[:, : len(self.spec.classes)]

    def sample(self, rng: Rng, given: Given | None = None) -> Batch:
        """Draws of the class `given.labels`, or of classes by their shares, with the class of each.

        What is known of an example is kept, and the rest drawn from its distribution given that: exactly.
        """
        given = given or Given()
        log_chances, known = self.log_prior().expand(len(rng), -1), None
        if given.known is not None and given.mask is not None:
            known = given.known.double().where(given.mask, torch.nan).expand(len(rng), *self.spec.shape)
            log_chances = self.log_joint(Batch(known))
        if given.labels is not None:
            log_chances = _of_class(given.labels, self.classes)
        drawn = self.decode(self._code(log_chances, rng))
        if known is not None:
            drawn.x = torch.where(known.isnan(), drawn.x, known.to(drawn.x.dtype))
        return drawn

    def encode(self, batch: Batch, rng: Rng, *, code: _OUTPUT = "noise") -> Tensor:
        """The class, one-hot, and the noise of each element in it, (B, K + E); or p(y|x), log p(y|x) (B, K).

        Where labels are lacking it is the likeliest class. `rng` draws the place of a level in its interval, and what
        is missing.
        """
        if code != "noise":
            return _posterior(self.classify(batch), code)
        labels = self.log_joint(batch).argmax(1) if batch.labels is None or not self.spec.classes else batch.labels
        x, z = batch.x.flatten(1).double(), rng.normal(self.spec.size, dtype=torch.float64)
        places = rng.uniform(self.spec.size, dtype=torch.float64) * (1 - 2 * MARGIN) + MARGIN
        for part, own in self._parts():
            noise = part.to_noise(x[:, own], labels, places[:, own])
            z[:, own] = z[:, own].where(x[:, own].isnan(), noise)
        return torch.cat([self._one_hot(labels), z], dim=1)

    def decode(self, code: Tensor, rng: Rng | None = None) -> Batch:
        """The inverse of `encode`; between classes, from their mixture by the weights in the code."""
        classes = len(self.spec.classes)
        share, z = code.double()[:, :classes], code.double()[:, classes:]
        weights = share if classes else z.new_ones(len(z), 1)
        x = torch.empty_like(z)
        for part, own in self._parts():
            x[:, own] = part.from_noise(weights, z[:, own])
        x = x.unflatten(1, self.spec.shape)
        return Batch(x.float() if isinstance(self.spec, ImageSpec) else x, share.argmax(1) if classes else None)

    def interpolate(self, a: Tensor, b: Tensor, frames: int) -> Tensor:
        """Straight from class to class, spherical in the noise."""
        k = len(self.spec.classes)
        t = torch.linspace(0, 1, frames, dtype=a.dtype, device=a.device)[:, None]
        return torch.cat([(1 - t) * a[:k] + t * b[:k], super().interpolate(a[k:], b[k:], frames)], dim=1)

    # --- compress

    def outline(self, batch: Batch) -> Batch:
        """With flags of the missing elements, where there are such."""
        missing = any(column.missing for column in getattr(self.spec, "columns", ()))
        return replace(super().outline(batch), x=batch.x.flatten(1).isnan()[:, : self.spec.size * missing])

    def symbols(self, batch: Batch) -> Tensor:
        x = batch.x.flatten(1).double().nan_to_num()
        return torch.cat([part.to_levels(x[:, own]) for part, own in self._parts()], dim=1)

    @torch.no_grad()
    def ancestral(self, outline: Batch, visit: Visit) -> Batch:
        """Whatever the class, as `log_prob`."""
        log_chances = self.log_prior().expand(len(outline), -1)
        tables = itertools.chain.from_iterable(part.tables() for part, _ in self._parts())
        places = [place for own in self.places for place in own]
        there = ~outline.x[:, places] if outline.x.shape[1] else outline.x.new_ones(len(outline), len(places)).bool()
        levels = visit_mixture(log_chances, tables, there, visit)
        parts = zip(levels.split([len(own) for own in self.places], dim=1), self._parts(), strict=True)
        x = torch.full(levels.shape, torch.nan, dtype=torch.float64, device=levels.device)
        x[:, places] = torch.cat([part.from_levels(own) for own, (part, _) in parts], dim=1).where(there, torch.nan)
        x = x.unflatten(1, self.spec.shape)
        return Batch(x.float() if isinstance(self.spec, ImageSpec) else x)

    # --- export

    def graph(self) -> Graph:
        """Examples x (B, *example) -> log p(x, y) of every class (B, K), in nats."""
        x = torch.zeros(2, *self.spec.shape, device=self.device)
        return Graph(_Joint(self), {"x": x if isinstance(self.spec, ImageSpec) else x.double()}, ["log_joint"])


def _fitted(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.double(), requires_grad=False)


def _of_class(labels: Tensor, classes: int) -> Tensor:
    """Log-chances (B, K) by which a class is the one of `labels` (B,)."""
    return torch.where(F.one_hot(labels, classes) > 0, 0.0, -math.inf).double()


def _drawn(log_chances: Tensor, rng: Rng) -> Tensor:
    """Classes (B,) by their log-chances (B, K)."""
    bounds = log_chances.softmax(1).cumsum(1)
    drawn = torch.searchsorted(bounds, rng.uniform(1, dtype=torch.float64) * bounds[:, -1:], right=True)
    return drawn[:, 0].clamp(max=bounds.shape[1] - 1)


def _posterior(log_chances: Tensor, code: _OUTPUT) -> Tensor:
    return log_chances.exp() if code == "probabilities" else log_chances


class _Joint(nn.Module):
    def __init__(self, model: NaiveBayes):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.log_joint(Batch(x))


# ---------------------------------------------------------------------------------------------------------------------
# Distributions of elements, E of them here, given the class


class _Levels(nn.Module):
    """A chance for each level 0..size-1 of an element, which is the level divided by `highest`.

    Parameters:
        counts: (K, E, L) how often each level occurred; 0 beyond those that an element has.
    """

    density = False
    sizes: Tensor
    levels: int | None  # at most, of an element

    def __init__(self, classes: int, sizes: Tensor, highest: int, alpha: float):
        super().__init__()
        self.highest, self.alpha, self.levels = highest, alpha, int(sizes.max())
        self.register_buffer("sizes", sizes, persistent=False)
        self.counts = _fitted(torch.zeros(classes, len(sizes), int(sizes.max())))

    def add(self, x: Tensor, labels: Tensor) -> None:
        level, (k, e, length) = self._level(x), self.counts.shape
        place = (labels[:, None] * e + torch.arange(e, device=x.device)) * length + level
        self.counts.add_(torch.bincount(place[~x.isnan()], minlength=self.counts.numel()).view(k, e, length))

    def fit(self, floor: float) -> float:
        """The sum of -log p(x_i | y) over all that was counted."""
        return -float((self.counts * self._log_chances().masked_fill(self._unused(), 0.0)).sum())

    def log_prob(self, x: Tensor) -> Tensor:
        """(B, E) -> (B, K)."""
        table = F.pad(self._log_chances().flatten(1), (0, 1)).T.contiguous()  # (E L + 1, K), the last row for a gap
        place = torch.arange(x.shape[1], device=x.device) * self.counts.shape[2] + self._level(x)
        return F.embedding(place.where(~x.isnan(), len(table) - 1), table).sum(1)

    def to_noise(self, x: Tensor, labels: Tensor, place: Tensor) -> Tensor:
        """The noise of elements (B, E) of classes (B,); `place` (B, E) is where in the interval of a level it lies."""
        chances, level = self._chances(), self._level(x)
        where = (labels[:, None], torch.arange(x.shape[1], device=x.device), level)
        return torch.special.ndtri(chances.cumsum(2)[where] - chances[where] * (1 - place))

    def from_noise(self, share: Tensor, z: Tensor) -> Tensor:
        """Elements (B, E) of mixtures of the classes by `share` (B, K)."""
        upper, level = self._chances().cumsum(2), torch.empty_like(z, dtype=torch.int64)
        different, own = share.unique(dim=0, return_inverse=True)
        u = torch.special.ndtr(z).clamp(max=1 - 1e-15)
        for i, weights in enumerate(different):
            bounds = torch.einsum("k,kel->el", weights / weights.sum(), upper)
            level[own == i] = torch.searchsorted(bounds, u[own == i].T.contiguous(), right=True).T
        return torch.minimum(level, self.sizes - 1).double() / self.highest

    def tables(self) -> Iterator[Tensor]:
        """Of each element the log-chances of its levels, (K, L)."""
        yield from self._log_chances().unbind(1)

    def to_levels(self, x: Tensor) -> Tensor:
        return self._level(x)

    def from_levels(self, level: Tensor) -> Tensor:
        return level.double() / self.highest

    def _level(self, x: Tensor) -> Tensor:
        return (x.nan_to_num() * self.highest).round().long()

    def _unused(self) -> Tensor:
        """(E, L) bool: the levels that an element does not have."""
        return torch.arange(self.counts.shape[2], device=self.sizes.device) >= self.sizes[:, None]

    def _log_chances(self) -> Tensor:
        """(K, E, L); -inf of levels that there are not."""
        total = self.counts.sum(2, keepdim=True) + self.alpha * self.sizes[:, None].double()
        return ((self.counts + self.alpha).log() - total.log()).masked_fill(self._unused(), -math.inf)

    def _chances(self) -> Tensor:
        """(K, E, L), none below the floor, so that each has an interval in which its noise lies."""
        floored = self._log_chances().exp() * (1 - self.sizes[:, None].double() * FLOOR) + FLOOR
        return floored.masked_fill(self._unused(), 0.0)


class _Gaussians(nn.Module):
    """A Gaussian for each element; of one with a step, the multiples of it, the mass within half a step of each.

    The first and the last multiple in the range reach to infinity, and values beyond the range count as the nearest.

    Parameters:
        means, variances: (K, E), in the units of the data.
    """

    def __init__(self, classes: int, names: tuple[str, ...], low: Tensor, high: Tensor, step: Tensor,
                 grey: bool = False):
        super().__init__()
        self.names, self.grey = names, grey
        self.density, self.stepped = bool((step == 0).any()), bool((step > 0).any())
        for name, value in (("low", low), ("high", high), ("step", step)):
            self.register_buffer(name, value.double(), persistent=False)
        most = int(((high - low) / step).max().nan_to_num(math.inf).clamp(max=_LEVELS)) + 1
        self.levels = most if not self.density and most <= _LEVELS else None
        self.means = _fitted(torch.zeros(classes, len(names)))
        self.variances = _fitted(torch.ones(classes, len(names)))
        self._moments = torch.zeros(3, classes, len(names), dtype=torch.float64)  # number, mean, sum of squares

    low: Tensor
    high: Tensor
    step: Tensor
    levels: int | None  # at most, of an element; None: they are real, or too many

    @classmethod
    def of_pixels(cls, classes: int, names: tuple[str, ...]) -> "_Gaussians":
        low = torch.zeros(len(names))
        return cls(classes, names, low, low + 1, low, grey=True)

    @classmethod
    def of_columns(cls, classes: int, columns: list[Any]) -> "_Gaussians":
        low, high = torch.tensor([column.range for column in columns], dtype=torch.float64).T
        return cls(classes, tuple(f"column {column.name!r}" for column in columns), low, high,
                   torch.tensor([column.step for column in columns]))

    def add(self, x: Tensor, labels: Tensor) -> None:
        """By the update of Chan, Golub & LeVeque 1979, which never subtracts large numbers from each other."""
        self._moments = self._moments.to(x.device)
        own = F.one_hot(labels, len(self.means)).double()
        there, values = (~x.isnan()).double(), x.nan_to_num()
        count = own.T @ there
        mean = own.T @ values / count.clamp(min=1)
        squares = own.T @ ((values - own @ mean).square() * there)
        self._moments = _merged(self._moments, torch.stack([count, mean, squares]))

    def fit(self, floor: float) -> float:
        """Mean and variance of each class; the sum of -log p(x_i | y) over all that was added.

        A number that a class never had is distributed as in all data.

        Raises:
            DataError: a number is the same in every example, or in a class.
        """
        total = self._moments[:, 0]
        for one in self._moments.unbind(1)[1:]:
            total = _merged(total, one)
        everything = total[2] / total[0].clamp(min=1)
        constant = (everything <= 1e-24 * total[1].square()) & (self.step == 0) & (not self.grey)
        if constant.any():
            raise DataError(f"{self.names[int(constant.int().argmax())]} is the same in every example, so its density "
                            f"is infinite; take it out")
        count, mean, squares = self._moments
        seen = count > 0
        unit = torch.ones_like(everything) if self.grey else everything + self.step.square() / 12
        variance = torch.where(seen, squares / count.clamp(min=1), everything) + floor * unit
        if (flat := variance <= 0).any():
            k, e = divmod(int(flat.flatten().int().argmax()), len(self.names))
            raise DataError(f"{self.names[e]} is the same in every example of class number {k}; give a --floor above "
                            f"{floor:g}")
        self.means.copy_(torch.where(seen, mean, total[1]))
        self.variances.copy_(variance)
        self._moments = torch.zeros_like(self._moments)
        stepped = count * torch.where(self.step > 0, self.step, 1.0).log()
        return 0.5 * float((count * (2 * math.pi * variance).log() + squares / variance).sum()) - float(stepped.sum())

    def log_prob(self, x: Tensor) -> Tensor:
        """(B, E) -> (B, K)."""
        values, deviations = x.nan_to_num()[:, None], self.variances.sqrt()
        found = log_normal((values - self.means) / deviations) - deviations.log()  # (B, K, E)
        if self.stepped:
            a, b = self._cell(values, self.means, deviations)
            found = torch.where(self.step > 0, log_normal_bin(a, b), found)
        return found.masked_fill(x.isnan()[:, None], 0.0).sum(2)

    def to_noise(self, x: Tensor, labels: Tensor, place: Tensor) -> Tensor:
        """The noise of elements (B, E) of classes (B,); `place` (B, E) is where in the cell of a multiple it lies."""
        means, deviations = self.means[labels], self.variances[labels].sqrt()
        z = (x - means) / deviations
        if self.stepped:
            a, b = self._cell(x.nan_to_num(), means, deviations)
            z = torch.where(self.step > 0, normal_within(a, b, place), z)
        return z

    def from_noise(self, share: Tensor, z: Tensor) -> Tensor:
        """Elements (B, E) of Gaussians between those of the classes, by `share` (B, K)."""
        x = share @ self.means + share @ self.variances.sqrt() * z
        step = self.step.where(self.step > 0, 1.0)
        start = self.low.where(self.low.isfinite(), 0.0)
        x = torch.where(self.step > 0, start + step * ((x - start) / step).round(), x)
        return torch.minimum(torch.maximum(x, self.low), self.high)

    def tables(self) -> Iterator[Tensor]:
        """Of each element the log-chances of its levels, (K, L): the multiples in its range."""
        deviations = self.variances.sqrt()
        for e, count in enumerate((((self.high - self.low) / self.step).round().long() + 1).tolist()):
            x = self.low[e] + self.step[e] * torch.arange(count, device=self.low.device)
            one = slice(e, e + 1)
            low, high, step = (part[e] for part in (self.low, self.high, self.step))
            yield log_normal_bin(*_cell(x, self.means[:, one], deviations[:, one], low, high, step))

    def to_levels(self, x: Tensor) -> Tensor:
        return ((x - self.low) / self.step).round().long()

    def from_levels(self, level: Tensor) -> Tensor:
        return self.low + self.step * level

    def _cell(self, x: Tensor, means: Tensor, deviations: Tensor) -> tuple[Tensor, Tensor]:
        return _cell(x, means, deviations, self.low, self.high, self.step)


def _cell(x: Tensor, means: Tensor, deviations: Tensor, low: Tensor, high: Tensor, step: Tensor
          ) -> tuple[Tensor, Tensor]:
    """Where the cell of a value begins and ends, in deviations from the mean."""
    x = torch.minimum(torch.maximum(x, low), high)
    a = torch.where(x <= low, -math.inf, (x - step / 2 - means) / deviations)
    b = torch.where(x >= high, math.inf, (x + step / 2 - means) / deviations)
    return a, b


def _merged(a: Tensor, b: Tensor) -> Tensor:
    """Number, mean and sum of squares about it, (3, ...), of two sets together."""
    count = a[0] + b[0]
    shift, share = b[1] - a[1], b[0] / count.clamp(min=1)
    return torch.stack([count, a[1] + shift * share, a[2] + b[2] + shift.square() * a[0] * share])


# ---------------------------------------------------------------------------------------------------------------------
# Texts


class OfTexts(AutoregressiveText, NaiveBayes):  # type: ignore[misc]
    """Given the class the words of a text are independent draws: p(text) = p(skeleton) sum_y p(y) prod_t p(w_t | y).

    Words are all tokens but white space between words, `<unk>` and `<end>`, which are alike in all classes
    (`gencli.layers.skeleton`). So texts of every length have an exact probability, which sums to one, and the classes
    are those of the multinomial model of words. As p(w_t | words before it) is a mixture of the classes by what these
    words say of them, the model also reads and writes token by token: codes are noise that gives the text back exactly.

    With `ngrams` above 1, `classify` is the multinomial model of the bag of all n-grams of up to so many words, which
    tells classes better. No text is drawn from such a bag, for its n-grams overlap: it has no part in the likelihood
    and in samples. n-grams that training has not met count for nothing.

    Shapes: T tokens of a text, V in the vocabulary, W of them words, N n-grams.
    """

    def __init__(self, config: NaiveBayesConfig, spec: TextSpec):
        Model.__init__(self, config, spec)
        self._start(spec)
        self.skeleton = Skeleton(spec)
        self.words = _fitted(torch.zeros(self.classes, len(self.skeleton.words)))
        longest = config.ngrams or (2 if spec.unit in ("words", "subword") else 4)
        self.counter = NGrams(spec, longest) if longest > 1 and spec.classes else None
        self.bag = _fitted(torch.zeros(self.classes, 0))
        self._texts: list[tuple[Tensor, Tensor, Tensor]] = []  # tokens, the text and the class of each
        self._known = 0  # texts that were counted
        self._class: Tensor | None = None
        self.register_load_state_dict_pre_hook(_make_room)

    # --- train

    def accumulate(self, batch: Batch) -> None:
        labels = self._labels(batch)
        self.skeleton.count(batch)
        words = self.skeleton.words_of(batch)
        k, w = self.words.shape
        places = (labels[:, None] * w + words)[words < w]
        self.words.add_(torch.bincount(places, minlength=k * w).view(k, w))
        if self.counter is not None:
            tokens, texts = self.counter.tokens(batch)
            self._texts.append((tokens.int(), texts + self._known, labels[texts]))
        self._known += len(batch)

    def finish(self) -> bool:
        """Count the n-grams.

        Raises:
            DataError: the texts have no words.
        """
        if not self.words.sum() > 0:
            raise DataError("the texts have no words; give some that have")
        if self.counter is not None:
            tokens, texts, labels = (torch.cat(parts) for parts in zip(*self._texts, strict=True))
            pairs, often = self.counter.learn(tokens.long(), texts, 1)
            size = len(self.counter.keys)
            of_text = labels.new_zeros(self._known).index_copy_(0, texts, labels)
            bag = torch.bincount(of_text[pairs // size] * size + pairs % size, often.double(), self.classes * size)
            self.bag = _fitted(bag.view(self.classes, size))
        self._texts, self._known = [], 0
        skeleton = float((self.skeleton.counts * self.skeleton.log_chances()).sum())
        words = float((self.words * self._log_words()).sum())
        self._joint_nll = self._class_nll() - (skeleton + words) / float(self.counts.sum())
        return True

    # --- probabilities

    def _log_words(self) -> Tensor:
        """log p(w | y), (K, W)."""
        return _smoothed(self.words, self.config.alpha)

    def log_joint(self, batch: Batch) -> Tensor:
        """log p(words, y | how many words) of every class, (B, K) float64, in nats."""
        table = F.pad(self._log_words(), (0, 1)).T.contiguous()  # the last row for what is no word
        return self.log_prior() + F.embedding_bag(self.skeleton.words_of(batch), table, mode="sum")

    def log_prob(self, batch: Batch, rng: Rng) -> Tensor:
        """Exact log p(text) in nats, whatever the class, (B,) float64."""
        return self.log_joint(batch).logsumexp(1) + self.skeleton.log_prob(batch)

    def classify(self, batch: Batch) -> Tensor:
        if self.counter is None:
            return self.log_joint(batch).log_softmax(1)
        pairs, often = self.counter.pairs(*self.counter.tokens(batch))
        counts = Sparse.of(pairs, often, len(batch), self.bag.shape[1], torch.float64)
        return (self.log_prior() + counts @ _smoothed(self.bag, self.config.alpha).T.contiguous()).log_softmax(1)

    def scores(self, batch: Batch, rng: Rng) -> dict[str, Score]:
        """As of all models of the family, `nll` in nats per token."""
        return {**NaiveBayes.scores(self, batch, rng), **AutoregressiveText.scores(self, batch, rng)}

    # --- token by token; the state is the words' log p(w_1 .. w_t | y) of every class and the skeleton's state, (K + 1)

    def reader(self) -> tuple[Read, Advance]:
        def read(tokens: Tensor) -> tuple[Tensor, Tensor]:
            state = self._states(tokens)[:, -1]
            if self._class is not None:
                state = torch.cat([state[:, :-1] + self._class, state[:, -1:].expand(len(self._class), -1)], dim=1)
            return self.log_probs(state), state

        return read, self.advance

    def _states(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) -> the state after each, (B, T, K + 1)."""
        table = F.pad(self._log_words(), (0, 1)).T  # (W + 1, K)
        words = table[self.skeleton.places[tokens]].cumsum(1)
        return torch.cat([words, self.skeleton.states(tokens)[..., None].double()], dim=-1)

    def log_probs(self, state: Tensor) -> Tensor:
        """States (..., K + 1) -> log p of every token that may follow (..., V), float64, in nats."""
        chances = (self.log_prior() + state[..., :-1]).softmax(-1)
        return self.skeleton.log_tokens(state[..., -1].long(), (chances @ self._log_words().exp()).log())

    def advance(self, token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """A token (B,) and the state before it -> log p of every next token (B, V), state after it."""
        after = self._states(token[:, None])[:, 0]
        state = torch.cat([state[:, :-1] + after[:, :-1], after[:, -1:]], dim=1)
        return self.log_probs(state), state

    # --- sample, encode

    @wraps(AutoregressiveText.sample)
    def sample(self, rng: Rng, given: Given | None = None, **options: Any) -> Batch:  # type: ignore[override]
        if given is not None and given.known is not None:
            raise UsageError("--complete: naive Bayes fills no gaps of texts; give the beginning of one with --prompt")
        labels = None if given is None else given.labels
        model = copy.copy(self)  # shallow: the same parameters
        model._class = None if labels is None else _of_class(labels, self.classes)
        drawn = AutoregressiveText.sample(model, rng, given, **options)
        if self.spec.classes:
            drawn.labels = _drawn(self.log_joint(drawn), rng) if labels is None else labels
        return drawn

    @torch.no_grad()
    def encode(self, batch: Batch, rng: Rng, *, code: _OUTPUT = "noise") -> Tensor:
        """Noise codes (B, T), float64, NaN past the end of a text; or p(y|x), log p(y|x) (B, K).

        `rng` draws the place in each interval.
        """
        if code != "noise":
            return _posterior(self.classify(batch), code)
        z = rng.uniform(batch.x.shape[1], dtype=torch.float64)  # the position in the interval, then the noise
        states = self._states(after_end(batch.x, self.spec.END))
        length = max(1, _PIECE // (len(z) * len(self.spec.vocabulary)))
        for start in range(0, batch.x.shape[1], length):
            piece = slice(start, start + length)
            z[:, piece] = self.distribution.to_noise(self.log_probs(states[:, piece]), batch.x[:, piece], z[:, piece])
        return z.where(inside(batch.x, batch.lengths), math.nan)

    @torch.no_grad()
    def subjects(self) -> dict[str, str]:
        """The words that tell a class most from all texts: the largest terms of the divergence between their words."""
        if not self.spec.classes:
            return {}
        own, overall = self._log_words(), _smoothed(self.words.sum(0, keepdim=True), self.config.alpha)
        best = (own.exp() * (own - overall)).topk(min(_TOLD, own.shape[1])).indices
        told = self.skeleton.listed(self.skeleton.words[best], self.spec.lines).pieces()
        return {name: self.spec.tokenizer.decode(words.tolist())
                for name, words in zip(self.spec.classes, told, strict=True)}

    # --- export

    def graph(self) -> Graph:
        """One step: token (B, 1), state (B, K + 1) -> log p of the next token (B, V), next state.

        A text starts with `<end>` and a state of zeros. The first K numbers of a state are log p(words so far | class).
        """
        state = torch.zeros(2, self.classes + 1, dtype=torch.float64, device=self.device)
        return Graph(OneStep(self), {"token": torch.full((2, 1), self.spec.END, device=self.device), "state": state},
                     ["log_probs", "next_state"])


def _smoothed(counts: Tensor, alpha: float) -> Tensor:
    """Counts (K, N) -> log of the smoothed shares."""
    added = counts + alpha
    return added.log() - added.sum(1, keepdim=True).log()


def _make_room(model: OfTexts, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Before loading: give the model the stored number of n-grams, if the stored ones are sorted and consistent."""
    keys = state.get(f"{prefix}counter.keys")
    if keys is not None and model.counter is not None and model.counter.consistent(keys):
        device = model.device
        model.counter.keys = keys.new_empty(keys.shape)
        model.bag = _fitted(torch.zeros(model.classes, len(keys)))
        model.to(device)
