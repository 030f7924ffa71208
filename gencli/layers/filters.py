"""What units look for, as weights of an example."""

from collections.abc import Iterable

from torch import Tensor


def filters_by_layer(weights: Iterable[Tensor], shape: tuple[int, ...]) -> dict[str, Tensor]:
    """The filters of fully connected layers, `layer1` the lowest, (units, *example) each.

    Those of a higher layer are the product of its weights with the ones below, as if the units between were linear
    (Lee, Ekanadham & Ng 2008).

    Args:
        weights: of each layer, the lowest first, (units, units of the layer below).
        shape: of an example.
    """
    found: dict[str, Tensor] = {}
    combined: Tensor | None = None
    for number, weight in enumerate(weights, start=1):
        combined = weight if combined is None else weight @ combined
        found[f"layer{number}"] = combined.unflatten(1, shape)
    return found
