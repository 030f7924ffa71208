"""First weights."""

from typing import TypeVar

from torch import nn

L = TypeVar("L", bound=nn.Module)


def zeroed(layer: L) -> L:
    """The layer with an output of 0, so that what it is added to stands alone at first (Fixup, Zhang et al. 2019)."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def dcgan(module: nn.Module) -> None:
    """The first weights of Radford et al. 2015 (DCGAN), arXiv:1511.06434; for `nn.Module.apply`."""
    convolutions = nn.Conv2d | nn.ConvTranspose2d | nn.Conv3d | nn.ConvTranspose3d
    if isinstance(module, convolutions | nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d | nn.InstanceNorm2d) and module.weight is not None:
        nn.init.normal_(module.weight, 1.0, 0.02)
    if isinstance(module, convolutions | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
