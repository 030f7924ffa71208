"""Tensors of which each process holds a part: DTensors of torch, whose module takes long to import, known by their
methods."""

from typing import Any, cast

from torch import Tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its parts. All processes have to ask for it."""
    return cast(Tensor, tensor.full_tensor()) if hasattr(tensor, "full_tensor") else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, in the same memory; all of it if it is whole."""
    return cast(Tensor, tensor.to_local()) if hasattr(tensor, "to_local") else tensor


def part(tensor: Tensor, like: Any) -> Tensor:
    """A whole tensor, which each process knows, in the parts of another one; itself if that is whole."""
    if not hasattr(like, "device_mesh") or hasattr(tensor, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
