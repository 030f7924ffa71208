"""Kinds of example, a file each; `gencli.kind` is their contract."""

from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from gencli.kinds.audio import AudioSpec
from gencli.kinds.image import ImageSpec
from gencli.kinds.text import TextSpec
from gencli.kinds.vector import VectorSpec

AnySpec = Annotated[ImageSpec | VectorSpec | TextSpec | AudioSpec, Field(discriminator="kind")]
_SPEC_ADAPTER: TypeAdapter[AnySpec] = TypeAdapter(AnySpec)


def alike(a: AnySpec, b: AnySpec) -> bool:
    """Whether examples of both can be compared: they have one kind and one shape, or for sound one rate."""
    if isinstance(a, AudioSpec) and isinstance(b, AudioSpec):
        return a.rate == b.rate
    return (a.kind, a.shape) == (b.kind, b.shape)


def describe(spec: AnySpec) -> str:
    """What `alike` compares, in words."""
    return f"recordings at {spec.rate} Hz" if isinstance(spec, AudioSpec) else f"{spec.kind}s of shape {spec.shape}"


def parse_spec(data: dict[str, Any]) -> AnySpec:
    """The Spec that `spec.model_dump()` gave; pydantic's ValidationError if it is none."""
    return _SPEC_ADAPTER.validate_python(data)


