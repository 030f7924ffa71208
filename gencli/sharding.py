"""Models whose weights lie in parts on several processes: FSDP2 of torch (Rajbhandari et al. 2020, arXiv:1910.02054).

Each process holds its part of every weight, of its gradient, its moments and its average; all parts are put together
while anything computes with them. Not block by block: how often a block computes may depend on the examples, and then
processes would wait for each other for ever.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from gencli.model import Loss, Model
from gencli.parts import part, whole

T = TypeVar("T")


class Sharding:
    """How the weights of a model, and of copies of it, lie on the processes.

    Args:
        model: whose weights become parts.
        device: of this process.
        processes: how many there are.
    """

    def __init__(self, model: Model, device: torch.device, processes: int):
        self._mesh = init_device_mesh(device.type, (processes,))
        self._plain = _without_weights(model)
        self._roots: dict[Model, _Root] = {}
        self._divide(model)

    def clone(self, model: Model) -> Model:
        """A copy of a divided model, in the same parts and without gradients."""
        copy = self.whole(model)
        self._divide(copy)
        return copy

    def whole(self, model: Model) -> Model:
        """A copy of a divided model that is not, on the CPU. All processes have to ask for it."""
        copy = self._plain.clone()
        weights = {name: whole(tensor).to("cpu", copy=True) for name, tensor in model.state_dict().items()}
        copy.load_state_dict(weights, assign=True)
        return copy.requires_grad_(False)

    def compute(self, model: Model, function: Callable[..., T], *values: Any) -> T:
        """`function(*values)`, which may use all weights of a divided model as if they were whole."""
        result: T
        _, result = self._roots[model](function, *values)
        return result

    def rewrite(self, model: Model, function: Callable[[], T]) -> T:
        """As `compute`, of a function that writes to the weights in place, the same in every process."""
        def compute() -> tuple[T, list[Tensor]]:
            result = function()
            return result, [weight.clone() for weight in model.parameters()]

        with torch.no_grad():
            result, written = self.compute(model, compute)
            for weight, of_all in zip(model.parameters(), written, strict=True):
                weight.copy_(part(of_all, weight))
        return result

    def _divide(self, model: Model) -> None:
        model.to(memory_format=torch.contiguous_format)  # torch divides no others
        self._roots[model] = root = _Root(model)
        found = {weight for weight in model.parameters() if not (weight.ndim or weight.requires_grad)}
        fully_shard(root, mesh=self._mesh, reshard_after_forward=True, ignored_params=found)  # one number has no parts
        model.register_load_state_dict_pre_hook(_take_parts)


class _Root(nn.Module):
    """A model as a module that computes what it is asked to: torch puts weights together for `forward` alone."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *values: Any) -> tuple[Tensor | None, Any]:
        result = function(*values)
        # The tensor that gradients start from has to lie in a tuple, for torch to put the weights together once more.
        return (result.total if isinstance(result, Loss) else None), result


def _without_weights(model: Model) -> Model:
    """A copy whose weights have no memory; buffers that are not saved keep what they hold."""
    copy = model.clone()
    saved = {id(tensor) for tensor in copy.state_dict(keep_vars=True).values()}
    return copy._apply(lambda tensor: tensor.to("meta") if id(tensor) in saved else tensor)


def _take_parts(model: nn.Module, tensors: dict[str, Tensor], *_: Any) -> None:
    """Whole tensors can be loaded too."""
    own = model.state_dict()
    for name in tensors.keys() & own.keys():
        tensors[name] = part(tensors[name], own[name])
