"""Whether a model memorises: samples against their nearest training examples."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from gencli import registry
from gencli.metrics import Figure, Found, Inputs
from gencli.metrics.distribution import comparable
from gencli.metrics.estimates import protocol
from gencli.metrics.features import Space, batches, feature_space, features, spaces
from gencli.metrics.neighbours import nearest, ratio
from gencli.pictures import grid
from gencli.rng import generator

_PAIRS = 16  # shown in the figure
_GREY = 127 / 255  # between them


def memorisation(inputs: Inputs) -> Iterator[Found]:
    """Distance of samples, and of as many held-out examples, to the nearest training example (`metrics.neighbours`).

    `nearest_training_distance` and `nearest_training_ratio`, of pixels, standardised columns or log-mel bands; of
    pictures the figure `nearest`: the samples that lie nearest, above their training examples.
    """
    samples, reference = comparable(inputs)
    training = inputs.training
    assert training is not None
    space = plain_space(inputs)
    numbers = torch.randperm(len(reference), generator=generator(inputs.seed, "held_out"))[: len(samples)]
    held_out = [space.describe(reference.batch(part))[0] for part in numbers.sort().values.split(space.block)]
    both = torch.cat([features(space, samples)[0], *held_out])
    distances, neighbours = nearest(both, (space.describe(batch)[0] for batch in batches(training)))
    record = protocol(training, inputs.seed, training=len(training), **space.protocol)
    yield from ratio(distances[: len(samples)], distances[len(samples) :], record)
    shown = distances[: len(samples)].argsort(stable=True)[:_PAIRS]
    pairs = [picture for data, numbers in ((samples, shown), (training, neighbours[shown]))
             for tile in registry.kind_of(data.spec).tiles(data.spec, data.batch(numbers)) for picture in tile.stills]
    if pairs:
        sheet = torch.from_numpy(grid(torch.stack(pairs).numpy(), len(shown), fill=_GREY))
        yield Figure("nearest", sheet.expand(max(3, len(sheet)), -1, -1),
                     "The samples nearest to the training data, and below each the training example it is nearest to.")


def plain_space(inputs: Inputs) -> Space:
    """The space of the examples' own numbers: pixels, standardised columns, log-mel bands."""
    return feature_space(replace(inputs, features=spaces(inputs.examples.spec.kind)[0]))
