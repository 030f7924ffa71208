"""PixelCNN: a picture read pixel by pixel; the distribution of each is a convolutional network of those before it.

- plain: masked filters, residual blocks. Van den Oord et al. 2016a, "Pixel Recurrent Neural Networks",
  arXiv:1601.06759. Filters with a corner cut out leave a blind spot: pixels above to the right that no depth reaches.
- gated: a vertical stack that sees all rows above, and a horizontal one that sees the row and the vertical stack; no
  blind spot. Van den Oord et al. 2016b, "Conditional Image Generation with PixelCNN Decoders", arXiv:1606.05328.
- attention: blocks between the layers, in which a pixel attends to all before it. Chen et al. 2018, "PixelSNAIL: An
  Improved Autoregressive Generative Model", arXiv:1712.09763.
- orders: a picture read from several corners, by rows or by columns, by one network, and the mean over these orders.
  Jain, Abbeel & Pathak 2020, "Locally Masked Convolution for Autoregressive Models", arXiv:2006.12486.
- optimiser: Muon for the weights of the layers, AdamW for the rest, which is ahead early on (`gencli.muon`).
- mixture: each channel is a mixture of discretised logistics whose means are linear in the channels before it.
  Salimans et al. 2017, "PixelCNN++", arXiv:1701.05517.

Departures: the channels of a pixel follow one another in the output alone, not in every layer, so that the filters run
once for a pixel; and those of `gencli.layers.masked_convolutions`, whose walk makes a picture at the cost of one pass
through the network.

Shapes: B batch, C channels, H x W pixels, L levels, P numbers that describe the distribution of a pixel, K components.
"""

from functools import partial
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from gencli.layers.masked_convolutions import GatedStacks, PlainStack
from gencli.layers.pixels import AutoregressivePixels, PixelsConfig
from gencli.model import NetSize, Phase, Player, Sizes, Spec, net_size
from gencli.muon import Muon


class PixelCNNConfig(PixelsConfig):
    net: Literal["gated", "plain"] = Field("gated", description="gated: two stacks, no blind spot (van den Oord "
                                                                "2016b); plain: one masked stack (2016a).")
    sizes: ClassVar = Sizes(width=(32, 64, 96), layers=(6, 8, 12))
    net_size: NetSize = net_size(sizes)
    width: int = Field(32, ge=2, description="Feature maps of a stack.")
    layers: int = Field(6, ge=1, description="Layers after the first.")
    kernel: int = Field(5, ge=3, description="Size of the masked filters, an odd number; at least 7 in the first "
                                             "layer.")
    attention: int = Field(0, ge=0, description="Blocks of attention to all pixels before, between the layers of the "
                                                "gated net.")
    orders: Literal[1, 2, 4, 8] = Field(1, description="Orders in which the network learns to read pictures, and over "
                                                       "which the likelihood is averaged; 8 for square ones alone.")

    @field_validator("kernel")
    @classmethod
    def _odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError("expected an odd number")
        return kernel

    @model_validator(mode="after")
    def _attention_between_layers(self) -> "PixelCNNConfig":
        if self.attention and self.net != "gated":
            raise ValueError(f"--attention is for the gated net, and this is --net {self.net}")
        if self.attention > self.layers:
            raise ValueError(f"--attention {self.attention} in {self.layers} layers; expected as many at most")
        return self


class PixelCNN(AutoregressivePixels):
    """p(x) = mean over the orders of prod p(x_i | pixels before it), channels in sequence. Exact likelihood.

    Codes are those of `AutoregressivePixels`. One order is that of reading: pixels above, and left in the same row,
    come before.
    """

    Config = PixelCNNConfig
    defaults = {"lr": 5e-3, "batch_size": 16, "warmup": 200, "schedule": "cosine", "ema": 0.999}
    config: PixelCNNConfig

    def __init__(self, config: PixelCNNConfig, spec: Spec):
        super().__init__(config, spec, "pixelcnn", config.orders)
        size = self.spec.channels, config.width, config.layers, config.kernel, self.told
        self.net = GatedStacks(*size, config.attention) if config.net == "gated" else PlainStack(*size)
        self.output = self._head(config.width)

    def phases(self) -> list[Phase]:
        muon = partial(Muon, matrices=self.net.matrices)
        return [Phase("train", [Player("model", list(self.parameters()), self.loss, optimiser=muon)])]
