"""Examples edited by their codes: painted on, moved along an attribute or an axis, added and subtracted.

Everything here is about what is `free` of a code; a class or component stays as it is.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gencli import registry
from gencli.dataset import Dataset
from gencli.errors import DataError, UsageError, did_you_mean
from gencli.inference import (
    code_of,
    code_shape,
    decode_batch,
    encode,
    own_options,
    project,
    require_gradient,
    require_vectors,
)
from gencli.kind import Partial
from gencli.layers.projection import Method, search
from gencli.model import Batch, Model
from gencli.rng import ExampleStreams, generator

_HELD_OUT = 0.1  # of the labelled examples: those that tell how well a direction tells the attribute


# ---------------------------------------------------------------------------------------------------------------------
# Painting


@dataclass(frozen=True)
class Edit:
    """An example that was painted on.

    Attributes:
        start, end: (*code), of the projection of the example and of the edit.
        before, after: root mean square differences of the painted values from these two.
        rest: that of the other values between the two.
    """

    start: Tensor
    end: Tensor
    before: float
    after: float
    rest: float


def edit(model: Model, batch: Batch, painted: Partial, seed: int = 0, options: dict[str, Any] | None = None, *,
         keep: float = 1.0, near: float = 0.01, steps: int = 400, by: Method = "lbfgs") -> Edit:
    """The example on the model's manifold that has the painted values, and is else as the projection of an example.

    Zhu et al. 2016, "Generative Visual Manipulation on the Natural Image Manifold", arXiv:1609.03552.

    Minimises the mean square error of the painted values, plus those that follow.

    Args:
        batch: whose first example is painted on.
        painted: values (*example) and where they are painted.
        options: of the family's `encode` and `decode`, and of `inference.project`.
        keep: weight of the mean square change of the other values.
        near: weight of the mean square change of the code.
        steps: evaluations of the gradient.
        by: how it is followed: `gencli.layers.projection`.

    Raises:
        UsageError: the decoder has no gradient, or there is no search.
    """
    if steps < 1 or keep < 0 or near < 0:
        raise UsageError(f"steps={steps}, keep={keep:g}, near={near:g}: an edit needs a step at least, and weights of "
                         f"0 or more")
    options = options or {}
    batch = batch[:1].to(model.device)
    rng = ExampleStreams(seed, torch.zeros(1, dtype=torch.int64), "encode", model.device)
    code = code_of(model, batch, seed, **own_options(model.encode, options)).to(model.device)[None]
    _require_decodable(model, code)
    start = project(model, batch, code, rng, options, **own_options(project, options))
    known, mask = painted.known.to(model.device).double(), painted.mask.to(model.device)

    def made(codes: Tensor) -> Tensor:
        return decode_batch(model, codes, None, batch.condition, options).x.double()

    require_gradient(model, batch, start, options)
    with torch.no_grad():
        first = made(start)

    def error(x: Tensor, aim: Tensor, where: Tensor) -> Tensor:
        return ((x - aim).square() * where).flatten(1).sum(1) / where.sum().clamp(min=1)

    def energy(codes: Tensor) -> Tensor:
        x, change = made(codes), (codes - start)[..., model.free]
        return (error(x, known, mask) + keep * error(x, first, ~mask)
                + near * change.square().flatten(1).mean(1).double())

    end = search(energy, start, steps, model.free, by)[0] if mask.any() else start
    with torch.no_grad():
        last = made(end)
    before, after, rest = (math.sqrt(float(error(*parts))) for parts in
                           ((first, known, mask), (last, known, mask), (last, first, ~mask)))
    return Edit(start[0].cpu(), end[0].cpu(), before, after, rest)


def _require_decodable(model: Model, codes: Tensor) -> None:
    if not registry.kind_of(model.spec).variable and codes.shape[1:] != code_shape(model):
        raise UsageError("with this option the output of the encoder is not a code that can be decoded; leave it out")


# ---------------------------------------------------------------------------------------------------------------------
# Attributes


@dataclass(frozen=True)
class Direction:
    """Where codes go as an attribute of their examples grows.

    Attributes:
        step: (*code), as long as the standard deviation of the codes along it.
        auc: how well the place along it tells the attribute of held-out examples: the share of pairs that it orders as
            the attribute does (of two classes the area under the ROC curve); NaN where none can be told.
        held_out: how many these are.
    """

    name: str
    step: Tensor
    auc: float
    held_out: int


def directions(model: Model, data: Dataset, names: Sequence[str], seed: int = 0,
               progress: Callable[[int, int], None] = lambda done, total: None,
               options: dict[str, Any] | None = None, *,
               direction: Literal["mean", "discriminant"] = "mean") -> list[Direction]:
    """The directions of attributes in the space of codes, from labelled examples.

    An attribute is a class, against the others; or a label of several, if it has two classes, or numbers for classes;
    or LABEL:CLASS. Other labels are held fixed: codes are regressed on all of them, every class of the attribute
    counting alike. Of one label with two classes that is the difference of the means.

    Args:
        direction: mean: where codes go as the attribute grows, all else alike. discriminant: what tells it best
            (Fisher 1936), the former divided by the covariance within classes, which is shrunk by the
            formula of Ledoit & Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices".
        options: of the family's `encode`.

    Raises:
        UsageError: no such attribute; codes are no points of one space.
        DataError: the data is not labelled, or all of it alike.
    """
    _require_space(model)
    require_vectors(model, data, options or {})
    columns = [_values(data, name) for name in names]
    held = torch.zeros(len(data), dtype=torch.bool)
    order = torch.randperm(len(data), generator=generator(seed, "attribute"))
    held[order[: round(_HELD_OUT * len(data))]] = True
    parts = []
    for codes, _, _ in encode(model, data, seed, **own_options(model.encode, options or {})):
        _require_decodable(model, codes)
        parts.append(codes)
        progress(sum(map(len, parts)), len(data))
    whole = torch.cat(parts)
    shape, codes = whole[:1, ..., model.free].shape, whole[..., model.free].flatten(1).double()
    found = []
    for name, (values, others) in zip(names, columns, strict=True):
        known = ~values.isnan()
        way = _direction(codes[known & ~held], values[known & ~held], others[known & ~held], direction, name)
        places = codes @ way
        step = torch.zeros(whole.shape[1:], dtype=torch.float64)
        step[..., model.free] = (way * places[known & ~held].std(correction=0)).view(shape[1:])
        apart = known & held
        found.append(Direction(name, step.to(whole.dtype), concordance(places[apart], values[apart]), int(apart.sum())))
    return found


def _require_space(model: Model) -> None:
    if model.code_spec is not None:
        raise UsageError("codes of this model are numbers that stand for something and cannot be added; it takes a "
                         "model whose codes are points of a space")


def _values(data: Dataset, name: str) -> tuple[Tensor, Tensor]:
    """An attribute of all examples (N,) float64, NaN where it is not known; the other labels, (N, M)."""
    labels = [*data.spec.tasks] or [("", data.spec.classes)]
    places = data.tasks if data.tasks is not None else data.labels[:, None] if data.labels is not None else None
    if places is None:
        raise DataError(f"{data.name} has no labels to learn attributes from; name labelled examples with --labelled, "
                        f"and where their labels are with --label or --labels")
    task, colon, own = name.rpartition(":")
    wanted = [(i, chosen) for i, (label, classes) in enumerate(labels) for chosen in classes
              if (own if colon else name) == chosen and (not colon or task == label)]
    whole = [i for i, (label, _) in enumerate(labels) if label and label == name]
    others = [_spread(places[:, i], classes) for i, (_, classes) in enumerate(labels)]
    if whole:
        i = whole[0]
        if len(others[i]) != 1:
            raise UsageError(f"--attribute {name}: it has {len(labels[i][1])} classes; say which, such as "
                             f"{name}:{labels[i][1][-1]}")
        values = others[i][0]
    elif len(wanted) == 1:
        i, chosen = wanted[0]
        values = (places[:, i] == labels[i][1].index(chosen)).double().masked_fill(places[:, i] < 0, math.nan)
    else:
        names = [name for label, classes in labels for name in (label, *classes)]
        problem = "several labels have such a class; say of which, as LABEL:CLASS" if wanted else \
            f"{data.name} has no such class or label{did_you_mean(name, names)}"
        raise UsageError(f"--attribute {name}: {problem}")
    rest = [column for j, columns in enumerate(others) if j != i for column in columns]
    if not rest:
        return values, values.new_zeros(len(values), 0)
    table = torch.stack(rest, dim=1)
    return values, torch.where(table.isnan(), table.nanmean(0), table)


def _spread(places: Tensor, classes: Sequence[str]) -> list[Tensor]:
    """A label as columns: its numbers, or of words whether it is each class but the first; NaN where not known."""
    unknown = places < 0
    try:
        numbers = torch.tensor([float(name) for name in classes], dtype=torch.float64)
        columns = [numbers[places.clamp(min=0)]]
    except ValueError:
        columns = [(places == k).double() for k in range(1, len(classes))]
    return [column.masked_fill(unknown, math.nan) for column in columns]


def _direction(codes: Tensor, values: Tensor, others: Tensor, by: str, name: str) -> Tensor:
    """The unit vector (D,) along which codes (N, D) go with values (N,), others (N, M) held fixed."""
    classes, own, counts = values.unique(return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise DataError(f"--attribute {name}: all examples are alike in it; it takes some with and some without")
    weight = (1 / counts.double())[own].sqrt()[:, None]
    design = torch.cat([torch.ones_like(weight), values[:, None], others], dim=1)
    slopes = torch.linalg.lstsq(weight * design, weight * codes, driver="gelsd").solution
    way = slopes[1]
    if by == "discriminant":
        way = torch.linalg.solve(shrunk(codes - design @ slopes), way)
    length = way.norm()
    if not 0 < float(length) < math.inf:
        raise DataError(f"--attribute {name}: codes are the same whatever it is")
    return way / length


def shrunk(x: Tensor) -> Tensor:
    """The covariance (D, D) of centred x (N, D), shrunk to a multiple of the identity as Ledoit & Wolf 2004 do it."""
    count, size = x.shape
    covariance = x.T @ x / count
    mean = covariance.trace() / size
    distance = (covariance - mean * torch.eye(size, dtype=x.dtype)).square().sum()
    spread = ((x.square().sum(1).square().sum() / count - covariance.square().sum()) / count).clamp(max=distance)
    share = spread / distance if distance > 0 else 1.0
    return (1 - share) * covariance + share * mean.clamp(min=1e-30) * torch.eye(size, dtype=x.dtype)


def concordance(scores: Tensor, values: Tensor) -> float:
    """The share of pairs of different values (N,) that scores (N,) order as these do, ties counting half; NaN: none."""
    right, pairs = 0.0, 0
    for score, value in zip(scores, values, strict=True):
        lower = values < value
        pairs += int(lower.sum())
        right += float(lower[scores < score].sum()) + 0.5 * float(lower[scores == score].sum())
    return right / pairs if pairs else math.nan


# ---------------------------------------------------------------------------------------------------------------------
# Paths


def along(code: Tensor, steps: Sequence[tuple[float, Tensor]], frames: int) -> Tensor:
    """A straight path (frames, *code) from a code to itself plus so many of each of these steps."""
    t = torch.linspace(0, 1, frames, dtype=torch.float64).view(-1, *[1] * code.dim())
    return (code + t * sum(strength * step for strength, step in steps)).to(code.dtype)


def traverse(model: Model, code: Tensor, axis: int, low: float, high: float, frames: int) -> Tensor:
    """A path (frames, *code) on which one number of a code, counted from 0, goes from low to high.

    Raises:
        UsageError: there is no such number.
    """
    _require_space(model)
    movable = torch.arange(code.numel()).view(code.shape)[..., model.free].flatten()
    if axis >= len(movable):
        raise UsageError(f"--traverse {axis}: a code of this model has {len(movable)} axes, numbered from 0")
    path = code.flatten().repeat(frames, 1)
    path[:, movable[axis]] = torch.linspace(low, high, frames).to(path.dtype)
    return path.view(frames, *code.shape)


def total(model: Model, factors: Sequence[float], codes: Sequence[Tensor]) -> Tensor:
    """The sum of codes (*code), each times its factor; what is not free of it is that of the first.

    Raises:
        UsageError: codes cannot be added.
    """
    _require_space(model)
    if len({code.shape for code in codes}) > 1:
        raise UsageError("codes of this model are as long as their examples, and those of different length cannot be "
                         "added")
    whole = codes[0].clone()
    parts = [factor * code[..., model.free].double() for factor, code in zip(factors, codes, strict=True)]
    whole[..., model.free] = torch.stack(parts).sum(0).to(whole.dtype)
    return whole
