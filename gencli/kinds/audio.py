"""Sound."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from gencli.kind import Spec


class AudioSpec(Spec):
    """A recording of one channel: (T,) in [-1, 1], T samples at `rate` Hz.

    `levels`: 256 mu-law levels (ITU-T G.711), k = 0..255, or 65536 linear ones, 16 bits: (k - 32768) / 32768.
    """

    kind: Literal["audio"] = "audio"
    rate: int = Field(ge=1, description="Samples a second.")
    length: int = Field(ge=1, description="Samples of the longest example.")
    levels: Literal[256, 65536] = 256

    @property
    def shape(self) -> tuple[int]:
        return (self.length,)

    def to_levels(self, x: Tensor) -> Tensor:
        """Samples in [-1, 1] -> int64 levels k of the same shape."""
        if self.levels == 256:
            from torchaudio.functional import mu_law_encoding  # takes a second to import

            return mu_law_encoding(x, 256)
        return (x * 32768).round().long().clamp(-32768, 32767) + 32768

    def from_levels(self, k: Tensor) -> Tensor:
        """Levels -> float32 samples; `to_levels` gives the same levels back."""
        if self.levels == 256:
            from torchaudio.functional import mu_law_decoding

            return mu_law_decoding(k, 256).float()
        return (k - 32768).float() / 32768
