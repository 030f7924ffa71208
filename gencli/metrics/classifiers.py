"""Classifiers trained to judge samples: whether they differ from data, and whether one can learn from them."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gencli.dataset import Dataset
from gencli.errors import DataError, UsageError
from gencli.inference import collect
from gencli.metrics import Found, Inputs, Metric
from gencli.metrics.distribution import comparable, draw
from gencli.metrics.estimates import mean, protocol
from gencli.metrics.features import batches, classifying, new_model, trained, trained_settings
from gencli.model import Batch, Model
from gencli.rng import derive_seed, generator


def two_sample(inputs: Inputs) -> Iterator[Found]:
    """`two_sample_accuracy`: how often a classifier tells samples from held-out examples (arXiv:1610.06545).

    It learns from one half of each, equally many, and is tested on the other: 0.5 is chance, 1 means that every
    sample is recognised (Lopez-Paz & Oquab 2017).
    """
    samples, reference = comparable(inputs)
    count = min(len(samples), len(reference)) // 2 * 2
    if count < 4:
        raise DataError(f"samples: {len(samples)}, held-out examples: {len(reference)}; at least 4 of each are needed "
                        f"to train a classifier on one half and test it on the other")
    sides = [_prepared(data.take(_order(len(data), inputs.seed, name)[:count]))
             for name, data in (("data", reference), ("samples", samples))]
    spec = reference.spec.model_copy(update={"classes": ("data", "samples")})
    labels = torch.arange(2).repeat_interleave(count // 2)
    halves = [collect([side[half] for side in sides], spec, "two samples", labels)
              for half in (slice(0, count // 2), slice(count // 2, count))]
    right = _accuracy(halves[0], halves[1], inputs)
    record = protocol(reference, inputs.seed, examples=count, classifier=classifying(spec.kind)[0])
    yield mean("two_sample_accuracy", right, "", "estimate", record)


def usefulness(inputs: Inputs) -> Iterator[Found]:
    """Accuracy on held-out examples of a classifier trained on samples with classes, and of one trained on real ones.

    `synthetic_accuracy`, `real_accuracy` from equally many training examples, and their quotient `usefulness` (train on
    synthetic, test on real: Esteban et al. 2017, arXiv:1706.02633; Ravuri & Vinyals 2019, arXiv:1905.10887).

    Raises:
        UsageError: no samples with classes, and the model draws none.
        DataError: examples or training data without labels.
    """
    reference, training = inputs.examples, inputs.training
    assert training is not None
    for data in (reference, training):
        if data.labels is None:
            raise DataError(f"{data.name} has no labels; usefulness is how well classes are learnt from samples")
    samples = inputs.samples
    if samples is None or samples.labels is None:
        samples = _by_class(inputs)
    count = min(len(samples), len(training))
    real = training.take(_order(len(training), inputs.seed, "real")[:count])
    record = protocol(reference, inputs.seed, examples=count, classifier=classifying(reference.spec.kind)[0])
    accuracies = {}
    for name, data in (("synthetic_accuracy", samples), ("real_accuracy", real)):
        right = _accuracy(replace(data, spec=training.spec), reference, inputs)
        accuracies[name] = mean(name, right, "", "estimate", record)
        yield accuracies[name]
    synthetic, best = accuracies["synthetic_accuracy"], accuracies["real_accuracy"]
    if best.value:
        quotient = synthetic.value / best.value
        error = None
        if synthetic.error is not None and best.error is not None and synthetic.value:
            error = quotient * ((synthetic.error / synthetic.value) ** 2 + (best.error / best.value) ** 2) ** 0.5
        yield Metric("usefulness", quotient, error, synthetic.n, "", "estimate", record)


def _by_class(inputs: Inputs) -> Dataset:
    """Samples of the model, as many of each class."""
    model, classes = inputs.model, inputs.examples.spec.classes
    if model is None or not getattr(model.config, "conditional", False):
        raise UsageError("usefulness needs samples with classes: give some with --samples, or a model that was trained "
                         "with --conditional")
    each = max(1, inputs.draw // len(classes))
    parts = [_prepared(draw(model, each, inputs.examples, derive_seed(inputs.seed, name), label, **inputs.options))
             for label, name in enumerate(classes)]
    return collect(parts, model.spec, "samples", torch.arange(len(classes)).repeat_interleave(each))


def _accuracy(data: Dataset, test: Dataset, inputs: Inputs) -> Tensor:
    """(N,) bool: which examples of `test` a classifier trained on `data` gets right."""
    data, test = data.unconditional(), test.unconditional()
    assert test.labels is not None
    name = classifying(data.spec.kind)[0]
    device = torch.device("cpu") if inputs.model is None else inputs.model.device
    model: Model = new_model(name, data.spec, inputs.seed)
    settings = trained_settings(name, len(data)).model_copy(update={"seed": inputs.seed})
    model = trained(model, data, settings, inputs, device).to(device)
    with torch.no_grad():
        guesses = torch.cat([model.classify(batch).argmax(1).cpu() for batch in batches(test, device=device)])
    return guesses == test.labels


def _prepared(data: Dataset) -> Batch:
    """The examples as a model sees them, binarised ones drawn, without classes."""
    return replace(data.batch(torch.arange(len(data))), labels=None, condition=None)


def _order(count: int, *names: Any) -> Tensor:
    return torch.randperm(count, generator=generator(*names))
