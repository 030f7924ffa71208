"""The encoder of a model as a function of its own, for other programs and for other models to start from."""

import torch

from gencli.errors import UsageError
from gencli.model import Graph, Model, anything
from gencli.registry import family_of
from gencli.rng import DrawsNoise, ExampleStreams


def encoder(model: Model) -> Graph:
    """The encoder of a model as a graph of its own, from examples `x` (B, *example) to their `code` (B, *code).

    Raises:
        UsageError: codes are no function of the example alone.
    """
    if model.spec.condition is not None:
        raise UsageError("the codes of this model depend on what an example is made from too, so that it has no "
                         "encoder of examples alone")
    x = anything(model.spec, ExampleStreams(0, torch.arange(2), device=model.device))
    module = model.features()
    try:
        with torch.no_grad():
            module(x)
    except DrawsNoise as error:
        raise UsageError(f"family {family_of(model)} finds codes with noise or by a search, so that it has no encoder, "
                         f"a function of the example alone; take a model that has one") from error
    return Graph(module, {"x": x}, ["code"])
