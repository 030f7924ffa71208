"""Modules that are imported on first use, so that listing options does not wait for torch; and hollow ones.

    if TYPE_CHECKING:
        import torch
    else:
        torch = Lazy("torch")

A family cannot do so: it is a class derived from one of torch. But what its options are needs no torch, and in a block
`with hollow("torch"):` its module is imported with an empty shell in the place of torch, within a tenth of a second.
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any

# Packages that a declaration of options has no use for; torch is the one that takes long.
COMPUTING = ("torch", "torchaudio", "torchvision", "safetensors", "numpy", "PIL", "soundfile")


class Lazy:
    """Stands for a module; the first use of one of its names imports it."""

    def __init__(self, module: str):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        value = getattr(importlib.import_module(self._module), name)
        if not _is_hollow(value):
            setattr(self, name, value)
        return value


class _Shell(type):
    """Whatever is taken from a hollow module: a class that has all attributes, and can be called and derived from.

    A decorator leaves a function as it is; classes derived from it are as any other.
    """

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") or not _is_hollow(cls):
            raise AttributeError(name)
        return _shell(name)

    def __getitem__(cls, _: Any) -> Any:
        return cls

    def __call__(cls, *args: Any, **keywords: Any) -> Any:
        if not _is_hollow(cls):
            return super().__call__(*args, **keywords)
        return args[0] if len(args) == 1 and isinstance(args[0], FunctionType) else cls


def _shell(name: str) -> Any:
    return _Shell(name, (), {"_hollow": True})


def _is_hollow(value: Any) -> bool:
    return isinstance(value, _Hollow) or (isinstance(value, _Shell) and "_hollow" in vars(value))


class _Hollow(ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, _shell(name))
        return vars(self)[name]


class _Finder(MetaPathFinder, Loader):
    """Finds hollow modules of these packages."""

    def __init__(self, packages: Sequence[str]):
        self._packages = packages

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] in self._packages else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Hollow(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def hollow(*packages: str) -> Iterator[bool]:
    """Within the block these packages are empty shells, unless the first is imported already; whether they are.

    It is for what a module declares; nothing in it can compute. After the block, all modules that have seen a shell are
    forgotten, and so imported anew with what there really is; what was taken from them stays as it was.
    """
    if packages[0] in sys.modules:
        yield False
        return
    before, finder = dict(sys.modules), _Finder(packages)
    sys.meta_path.insert(0, finder)
    try:
        yield True
    finally:
        sys.meta_path.remove(finder)
        own = __name__.partition(".")[0]
        for name, module in list(sys.modules.items()):
            if name not in before and (name.partition(".")[0] in (own, *packages)
                                       or any(map(_is_hollow, list(getattr(module, "__dict__", {}).values())))):
                del sys.modules[name]
                parent, _, child = name.rpartition(".")
                if parent in before and vars(before[parent]).get(child) is module:
                    delattr(before[parent], child)
