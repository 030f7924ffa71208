"""How samples of a model compare with data: distances, precision and recall, memorisation, classes."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gencli.data.dataset import Dataset
from gencli.errors import DataError
from gencli.metrics import Metric, Progress, silent
from gencli.metrics.distribution import distribution
from gencli.metrics.estimates import mean, protocol
from gencli.metrics.features import Classifier, Columns, Pixels, compute, default_space, feature_space
from gencli.metrics.neighbours import memorisation, nearest
from gencli.model import Batch, TextSpec, VectorSpec
from gencli.rng import generator

_BLOCK = 500  # examples whose features are computed at once
_FOUND = 0.2  # a class counts as covered from this part of its share in the reference


def sample_metrics(samples: Dataset, reference: Dataset, training: Dataset | None = None, *,
                   features: str | None = None, seed: int = 0, progress: Progress = silent) -> list[Metric]:
    """Samples against the held-out examples `reference`, in a feature space.

    `frechet_distance`, `kernel_distance`, `precision`, `recall`, `density`, `coverage` (gencli.metrics.distribution);
    with training data `nearest_training_distance` and `nearest_training_ratio` (gencli.metrics.neighbours), of pixels
    or standardised columns; with the classifier `class_coverage` and `smallest_class_share`.

    Args:
        samples: of the same kind and shape as the reference.
        reference: held-out examples, prepared as the training data was.
        training: what the model was trained on.
        features: `pixels`, `classifier` or `columns`; by default the classifier where the training
            data has labels.
        seed: of the choice of examples where not all are used.
        progress: of the training of a classifier: called with the steps done and their number.

    Raises:
        DataError: too few samples, samples of another kind or shape, numbers that are not finite.
        UsageError: a feature space that does not fit.
    """
    spec = reference.spec
    if isinstance(spec, TextSpec):
        raise DataError("samples of text have no feature space to compare them in; evaluate text by its likelihood")
    if (samples.spec.kind, samples.spec.shape) != (spec.kind, spec.shape):
        raise DataError(f"samples are {samples.spec.kind}s of shape {samples.spec.shape}; {reference.name} has "
                        f"{spec.kind}s of shape {spec.shape}")
    space = feature_space(features or default_space(spec, training), spec, training, progress)
    plain = Columns(spec) if isinstance(spec, VectorSpec) else Pixels()
    about = protocol(reference, seed, features=space.name)
    of_samples, of_reference = compute(space, _batches(samples)), compute(space, _batches(reference))
    metrics = distribution(of_reference, of_samples, about, seed)
    if training is not None:
        metrics += _memorisation(compute(plain, _batches(samples)), reference, training, plain, seed)
    if isinstance(space, Classifier) and reference.labels is not None:
        metrics += _classes(space, of_samples, of_reference, reference.labels, spec.classes, about)
    return metrics


def _batches(data: Dataset) -> Iterator[Batch]:
    return (data.batch(indices) for indices in torch.arange(len(data)).split(_BLOCK))


def _memorisation(samples: Tensor, reference: Dataset, training: Dataset, space: Pixels | Columns,
                  seed: int) -> list[Metric]:
    """Samples and as many held-out examples, each to the nearest training example."""
    chosen = torch.randperm(len(reference), generator=generator(seed, "held_out"))[: len(samples)]
    held_out = compute(space, [reference.batch(chosen.sort().values)])
    both = torch.cat([samples, held_out])
    distances = nearest(both, (space.features(batch.x) for batch in _batches(training)))
    about = protocol(training, seed, features=space.name, training=len(training))
    return memorisation(distances[: len(samples)], distances[len(samples) :], about)


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
