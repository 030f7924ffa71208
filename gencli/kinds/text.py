"""Text."""

from typing import ClassVar, Literal

from pydantic import Field

from gencli.kind import Spec


class TextSpec(Spec):
    """A text as tokens 0..V-1. Token 0 is `<unk>`; token 1 is `<end>`: it ends a line and starts every text.

    `lines`: an example is one line, complete with its `<end>`. Otherwise an example is a passage of `length` tokens of
    a document, without an end.
    """

    kind: Literal["text"] = "text"
    vocabulary: tuple[str, ...] = Field(min_length=3)
    unit: Literal["characters", "bytes", "words"] = "characters"
    length: int = Field(ge=1, description="Tokens of the longest example, `<end>` included.")
    lines: bool = False

    UNKNOWN: ClassVar[int] = 0
    END: ClassVar[int] = 1

    @property
    def shape(self) -> tuple[int]:
        return (self.length,)
