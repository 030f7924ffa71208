"""Torch that is not there: while help is printed, what families import from it is stood in for.

The options of a family are in the file of its network, and torch takes two seconds to import, which whoever asks for
help would wait for. So the file is read with modules in the place of torch's that have every name and do nothing, as
Sphinx does it (`autodoc_mock_imports`). Nothing is computed with them; a test compares the help with that of the real
one, for every family.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any

_PACKAGES = ("torch", "torchvision", "torchaudio", "safetensors")


class _Name:
    """Any name of an absent package: a base of classes, a decorator, a type in an annotation, a constant."""

    def __getattr__(self, name: str) -> "_Name":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *arguments: Any, **_: Any) -> Any:
        decorated = len(arguments) == 1 and isinstance(arguments[0], FunctionType | type)
        return arguments[0] if decorated else self

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return ()

    def __getitem__(self, _: Any) -> "_Name":
        return self

    def __or__(self, _: Any) -> Any:
        return Any

    __ror__ = __or__


class _Module(ModuleType):
    def __getattr__(self, name: str) -> _Name:
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)
        return _Name()


class _Finder:
    """Finds the absent packages, whether they are installed or not."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] not in _PACKAGES:
            return None
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def absent() -> Iterator[None]:
    """Within the block torch is not there, unless it is imported already; afterwards nothing is left of it."""
    if "torch" in sys.modules:
        yield
        return
    before, finder = set(sys.modules), _Finder()
    sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
    try:
        yield
    finally:
        sys.meta_path.remove(finder)  # type: ignore[arg-type]
        for name in sys.modules.keys() - before:
            if name.partition(".")[0] in ("gencli", *_PACKAGES):
                del sys.modules[name]
