"""Rows of a table."""

from typing import Literal

from pydantic import Field

from gencli.kind import Spec


class VectorSpec(Spec):
    """A row of D numbers. `mean` and `scale` (D,) are the training split's, for families that standardise."""

    kind: Literal["vector"] = "vector"
    columns: tuple[str, ...] = Field(min_length=1)
    levels: int | None = Field(None, ge=2)
    mean: tuple[float, ...]
    scale: tuple[float, ...]

    @property
    def shape(self) -> tuple[int]:
        return (len(self.columns),)
