"""Whether a model memorises: samples against their nearest training examples."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from gencli import registry
from gencli.metrics import Figure, Found, Inputs, Neighbours
from gencli.metrics.distribution import comparable
from gencli.metrics.estimates import protocol
from gencli.metrics.features import Space, batches, feature_space, features, spaces
from gencli.metrics.neighbours import nearest, ratio
from gencli.pictures import grid
from gencli.rng import generator

_SHOWN, _BESIDE = 16, 5  # samples that are shown, and how many training examples with each
_GREY = 127 / 255  # between them


def memorisation(inputs: Inputs) -> Iterator[Found]:
    """Distance of samples, and of as many held-out examples, to the nearest training example (`metrics.neighbours`).

    `nearest_training_distance` and `nearest_training_ratio`, of pixels, standardised columns or log-mel bands; of
    pictures the figure `nearest`: the samples that lie nearest, above the training examples nearest to each.
    """
    samples, reference = comparable(inputs)
    training = inputs.training
    assert training is not None
    space = plain_space(inputs)
    numbers = torch.randperm(len(reference), generator=generator(inputs.seed, "held_out"))[: len(samples)]
    held_out = [space.describe(reference.batch(part))[0] for part in numbers.sort().values.split(space.block)]
    both = torch.cat([features(space, samples)[0], *held_out])
    found, numbers = nearest(both, (space.describe(batch)[0] for batch in batches(training)), _BESIDE)
    distances = found[:, 0]
    record = protocol(training, inputs.seed, training=len(training), **space.protocol)
    yield from ratio(distances[: len(samples)], distances[len(samples) :], record)
    shown = distances[: len(samples)].argsort(stable=True)[:_SHOWN]
    yield Neighbours(shown, numbers[shown], found[shown])
    rows = [(samples, shown), *((training, places) for places in numbers[shown].T)]
    pictures = [picture for data, places in rows
                for tile in registry.kind_of(data.spec).tiles(data.spec, data.batch(places)) for picture in tile.stills]
    if pictures:
        sheet = torch.from_numpy(grid(torch.stack(pictures).numpy(), len(pictures) // len(rows), fill=_GREY))
        yield Figure("nearest", sheet.expand(max(3, len(sheet)), -1, -1),
                     "The samples nearest to the training data, and below each the training examples it is nearest to, "
                     "the nearest first.")


def plain_space(inputs: Inputs) -> Space:
    """The space of the examples' own numbers: pixels, standardised columns, log-mel bands."""
    return feature_space(replace(inputs, features=spaces(inputs.examples.spec.kind)[0]))
