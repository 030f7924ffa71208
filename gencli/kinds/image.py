"""Pictures."""

from typing import Literal

from pydantic import Field

from gencli.kind import Spec


class ImageSpec(Spec):
    """A picture: (C, H, W) in [0, 1]. `levels`: 2 binary, 256 8-bit, None real-valued."""

    kind: Literal["image"] = "image"
    channels: int = Field(ge=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    levels: int | None = Field(256, ge=2)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width
