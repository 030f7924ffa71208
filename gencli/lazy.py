"""Modules that are imported on first use, so that listing options does not wait for torch.

    if TYPE_CHECKING:
        import torch
    else:
        torch = Lazy("torch")
"""

import importlib
from typing import Any


class Lazy:
    """Stands for a module; the first use of one of its names imports it."""

    def __init__(self, module: str):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        value = getattr(importlib.import_module(self._module), name)
        setattr(self, name, value)
        return value
