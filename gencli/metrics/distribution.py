"""How samples compare with data in a feature space: distances, precision and recall, classes."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from gencli import inference
from gencli.dataset import Dataset
from gencli.errors import DataError
from gencli.kind import alike, describe
from gencli.layers.kmeans import lloyd, plus_plus
from gencli.metrics import Found, Inputs, Metric, Progress, silent
from gencli.metrics.distances import distances
from gencli.metrics.estimates import mean, protocol
from gencli.metrics.features import feature_space, features
from gencli.metrics.neighbours import squared_distances
from gencli.model import Batch, Model
from gencli.rng import generator

_COVERED = 0.2  # a class or cluster counts as covered from this fraction of its share in the reference
_CLUSTERS = 20
_ROUNDS = 100  # of the bootstrap


def draw(model: Model, count: int, examples: Dataset, seed: int = 0, label: int | None = None,
         progress: Progress = silent, enough: Callable[[int], bool] = lambda done: False, **options: Any) -> Dataset:
    """Samples of a model as they come out of a pipe: pictures in 8 bits, those of binary pictures drawn to 0 and 1.

    A model that makes examples from others is given what the held-out `examples` are made from.

    Args:
        progress: called with the samples drawn and their number.
        enough: asked after each block, with the number drawn, whether that is to be the last.
    """
    given = inference.conditions_of(model, examples, count)
    batches: list[Batch] = []
    done = 0
    for batch in inference.sample_together(model, [range(count)], seed, label, given,
                                           **inference.own_options(model.sample, options)):
        batches.append(batch)
        done += len(batch)
        progress(done, count)
        if enough(done):
            break
    return inference.collect(batches, model.spec, "samples",
                             None if label is None else torch.full((done,), label))


class Pace:
    """How many samples are drawn where nobody says how many: all that are usual, unless that takes too long.

    After the first block decides the time that it took; then 1,000 are cut to 256, 64 or 16, in few sizes, for numbers
    of other samples cannot be compared.
    """

    USUAL, FEWER = 1000, (256, 64, 16)
    SECONDS = 30.0  # that drawing may take

    def __init__(self, note: Callable[[str], None], seconds: float = SECONDS):
        self._note, self._seconds, self._begin = note, seconds, time.monotonic()
        self._count = 0

    def enough(self, done: int) -> bool:
        """Whether `done` samples are as many as there should be."""
        if not self._count:
            each = (time.monotonic() - self._begin) / done
            fitting = (n for n in (self.USUAL, *self.FEWER) if n * each <= self._seconds)
            self._count = next(fitting, self.FEWER[-1])
            if self._count < self.USUAL:
                self._note(f"drawing {max(done, self._count)} of {self.USUAL:,} samples, as one takes {each:.2g} s; "
                           f"--draw {self.USUAL} draws all")
        return done >= self._count


def comparable(inputs: Inputs) -> tuple[Dataset, Dataset]:
    """Samples and held-out examples; DataError if they are not of the same kind and shape."""
    samples, reference = inputs.samples, inputs.examples
    assert samples is not None
    if not alike(samples.spec, reference.spec):
        raise DataError(f"samples are {describe(samples.spec)}; {reference.name} has {describe(reference.spec)}")
    return samples, reference


def distribution(inputs: Inputs) -> Iterator[Found]:
    """Samples against the held-out examples, in a feature space.

    `frechet_distance`, `kernel_distance`, `precision`, `recall`, `density`, `coverage` (gencli.metrics.distances). In
    a space with classes also `inception_score`, and where those are the classes of the data `class_coverage`,
    `smallest_class_share` and, for samples with labels, `class_agreement`; elsewhere `cluster_coverage`.

    Raises:
        DataError: too few samples, samples of another kind or shape, numbers that are not finite.
        UsageError, ModelError: a feature space that does not fit or is not available.
    """
    samples, reference = comparable(inputs)
    space = feature_space(inputs)
    record = protocol(reference, inputs.seed, **space.protocol)
    sample_features, sample_classes = features(space, samples)
    real_features, real_classes = features(space, reference, cache=True, note=inputs.note)
    yield from distances(real_features, sample_features, record, inputs.seed)
    fewest, dimensions = min(len(real_features), len(sample_features)), real_features.shape[1]
    if fewest <= dimensions:
        inputs.note(f"frechet_distance: {fewest} examples cannot show how {dimensions} features vary together; it "
                    f"comes out too large, by more than its error bar says: give more examples, or see "
                    f"kernel_distance, which has no bias")
    if sample_classes is not None:
        yield inception_score(sample_classes, record)
    if sample_classes is not None and real_classes is not None and reference.labels is not None \
            and space.classes == reference.spec.classes:
        yield from _classes(sample_classes, real_classes, reference.labels, space.classes, record)
        if samples.labels is not None and samples.spec.classes == space.classes:
            yield mean("class_agreement", sample_classes.argmax(1) == samples.labels, "of samples", "estimate", record)
    else:
        yield _clusters(sample_features, real_features, record, inputs.seed)


def inception_score(log_probabilities: Tensor, protocol: dict[str, Any]) -> Metric:
    """exp E KL(p(y|x) || p(y)) of log p(y|x) (N, K) (Salimans et al. 2016, arXiv:1606.03498), over all samples at once.

    1 where all samples look alike, K where each is clearly of one class and all classes are as frequent. The error is
    that of the mean divergence by the delta method; a small change of p(y) changes the score in second order only.
    """
    log_p = log_probabilities.double()
    log_q = log_p.logsumexp(0) - math.log(len(log_p))
    divergence = (log_p.exp() * (log_p - log_q)).sum(1)
    log_score = mean("inception_score", divergence, "of classes", "estimate", {**protocol, "classes": log_p.shape[1]})
    score = math.exp(log_score.value)
    return log_score.following(score, score)


def _classes(of_samples: Tensor, of_reference: Tensor, labels: Tensor, classes: tuple[str, ...],
             protocol: dict[str, Any]) -> Iterator[Metric]:
    """Which classes the samples show, from log-probabilities of samples (M, K) and reference (N, K)."""
    seen = of_samples.argmax(1)
    coverage, error, shares, smallest = _coverage(seen, labels, len(classes), protocol["seed"])
    record = {**protocol, "classifier_accuracy": float((of_reference.argmax(1) == labels).double().mean()),
              "shares": dict(zip(classes, shares, strict=True))}
    yield Metric("class_coverage", coverage, error, len(seen), "of classes", "estimate",
                 {**record, "covered_from": _COVERED})
    yield mean("smallest_class_share", seen == smallest, "of samples", "estimate",
               {**record, "class": classes[smallest]})


def _clusters(samples: Tensor, reference: Tensor, protocol: dict[str, Any], seed: int) -> Metric:
    """Which clusters of the reference (N, D) samples (M, D) lie in: those of k-means on at most 2,000 examples."""
    subset = reference[torch.randperm(len(reference), generator=generator(seed, "clusters"))[:2000]]
    centres = lloyd(subset, plus_plus(subset, max(2, min(_CLUSTERS, len(subset) // 10)), generator(seed, "centres")))
    of_samples, of_reference = (torch.cat([distances.argmin(1) for _, distances in squared_distances(x, centres)])
                                for x in (samples, reference))
    coverage, error, shares, _ = _coverage(of_samples, of_reference, len(centres), seed)
    return Metric("cluster_coverage", coverage, error, len(of_samples), "of clusters", "estimate",
                  {**protocol, "clusters": len(centres), "shares": shares, "covered_from": _COVERED})


def _coverage(seen: Tensor, reference: Tensor, count: int, seed: int) -> tuple[float, float, list[float], int]:
    """Share of the classes of `reference` (N,) that have their part of `seen` (M,), its bootstrap error, the shares of
    all classes, and the number of the smallest."""
    shares, expected = (torch.bincount(x, minlength=count) / len(x) for x in (seen, reference))
    present = expected > 0

    def coverage(shares: Tensor) -> Tensor:
        return (shares >= _COVERED * expected)[..., present].double().mean(-1)

    drawn = torch.multinomial(shares, _ROUNDS * len(seen), True, generator=generator(seed, "coverage"))
    rounds = drawn.view(_ROUNDS, -1) + count * torch.arange(_ROUNDS)[:, None]
    resampled = torch.bincount(rounds.flatten(), minlength=_ROUNDS * count).view(_ROUNDS, count) / len(seen)
    return (float(coverage(shares)), float(coverage(resampled).std()), shares.tolist(),
            int(torch.where(present, shares, 2.0).argmin()))
