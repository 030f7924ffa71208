"""How samples of a model compare with data: distances, precision and recall, memorisation, classes."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gencli import inference
from gencli.data.dataset import Dataset
from gencli.errors import DataError
from gencli.metrics import Found, Inputs, Metric
from gencli.metrics.distances import distances
from gencli.metrics.estimates import mean, protocol
from gencli.metrics.features import Classifier, Columns, Pixels, compute, default_space, feature_space
from gencli.metrics.neighbours import nearest, ratio
from gencli.model import Batch, ImageSpec, Model, VectorSpec
from gencli.rng import generator
from gencli.streams import quantize

_BLOCK = 500  # examples whose features are computed at once
_FOUND = 0.2  # a class counts as covered from this part of its share in the reference


def draw(model: Model, count: int, seed: int = 0) -> Dataset:
    """Samples of a model as they come out of a pipe: pictures in 8 bits, those of binary pictures drawn to 0 and 1."""
    x = torch.cat([batch.x for batch in inference.sample(model, range(count), seed)])
    if isinstance(model.spec, ImageSpec) and model.spec.levels in (2, 256):
        return Dataset("samples", "all", model.spec, quantize(x), drawn="fixed" if model.spec.levels == 2 else None)
    return Dataset("samples", "all", model.spec, x)


def distribution(inputs: Inputs) -> Iterator[Found]:
    """Samples against the held-out examples, in a feature space.

    `frechet_distance`, `kernel_distance`, `precision`, `recall`, `density`, `coverage` (gencli.metrics.distances);
    with a classifier also `class_coverage` and `smallest_class_share`.

    Raises:
        DataError: too few samples, samples of another kind or shape, numbers that are not finite.
        UsageError: a feature space that does not fit.
    """
    samples, reference = _comparable(inputs)
    spec = reference.spec
    space = feature_space(inputs.features or default_space(spec, inputs.training), spec, inputs.training,
                          inputs.progress)
    about = protocol(reference, inputs.seed, features=space.name)
    of_samples, of_reference = compute(space, _batches(samples)), compute(space, _batches(reference))
    yield from distances(of_reference, of_samples, about, inputs.seed)
    if isinstance(space, Classifier) and reference.labels is not None:
        yield from _classes(space, of_samples, of_reference, reference.labels, spec.classes, about)


def memorisation(inputs: Inputs) -> Iterator[Found]:
    """Samples and as many held-out examples, each to the nearest training example (gencli.metrics.neighbours).

    `nearest_training_distance` and `nearest_training_ratio`, of pixels or standardised columns.
    """
    samples, reference = _comparable(inputs)
    training = inputs.training
    assert training is not None
    space = Columns(reference.spec) if isinstance(reference.spec, VectorSpec) else Pixels()
    chosen = torch.randperm(len(reference), generator=generator(inputs.seed, "held_out"))[: len(samples)]
    held_out = compute(space, [reference.batch(chosen.sort().values)])
    both = torch.cat([compute(space, _batches(samples)), held_out])
    found = nearest(both, (space.features(batch.x) for batch in _batches(training)))
    about = protocol(training, inputs.seed, features=space.name, training=len(training))
    yield from ratio(found[: len(samples)], found[len(samples) :], about)


def _comparable(inputs: Inputs) -> tuple[Dataset, Dataset]:
    """Samples and held-out examples, if they are of the same kind and shape."""
    samples, reference = inputs.samples, inputs.examples
    assert samples is not None
    if (samples.spec.kind, samples.spec.shape) != (reference.spec.kind, reference.spec.shape):
        raise DataError(f"samples are {samples.spec.kind}s of shape {samples.spec.shape}; {reference.name} has "
                        f"{reference.spec.kind}s of shape {reference.spec.shape}")
    return samples, reference


def _batches(data: Dataset) -> Iterator[Batch]:
    return (data.batch(indices) for indices in torch.arange(len(data)).split(_BLOCK))


def _classes(space: Classifier, of_samples: Tensor, of_reference: Tensor, labels: Tensor, classes: tuple[str, ...],
             about: dict[str, Any]) -> list[Metric]:
    """Which classes the samples show, as the classifier sees them."""
    with torch.no_grad():
        seen, known = space.head(of_samples).argmax(1), space.head(of_reference).argmax(1)
    shares = torch.bincount(seen, minlength=len(classes)) / len(seen)
    expected = torch.bincount(labels, minlength=len(classes)) / len(labels)
    present = expected > 0
    covered = (shares >= _FOUND * expected)[present]
    smallest = int(torch.where(present, shares, 2.0).argmin())
    accuracy = float((known == labels).double().mean())
    about = {**about, "classifier_accuracy": accuracy,
             "shares": dict(zip(classes, shares.tolist(), strict=True))}
    coverage = Metric("class_coverage", float(covered.double().mean()), None, len(seen), "of classes", "estimate",
                      {**about, "covered_from": _FOUND})
    share = mean("smallest_class_share", seen == smallest, "of samples", "estimate",
                 {**about, "class": classes[smallest]})
    return [coverage, share]
