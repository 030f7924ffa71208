"""How close a sample comes to the target of its source: numbers for models of pairs of pictures."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gencli import inference, registry
from gencli.metrics import Column, Found, Inputs
from gencli.metrics.estimates import mean, protocol
from gencli.model import Given

_WINDOW = 11  # pixels
_PROTOCOL: dict[str, dict[str, Any]] = {
    "l1": {},
    "psnr": {"range": 1, "average": "of pictures"},
    "ssim": {"range": 1, "window": "Gaussian 11x11, sigma 1.5", "channels": "mean"},
}


def pairs(inputs: Inputs) -> Iterator[Found]:
    """`pair_l1`, `pair_psnr` in dB and `pair_ssim` of one sample for each source against its target; means over pairs.

    PSNR is -10 log10(MSE / peak^2) of a picture, 100 dB if it is the target itself, so that its mean is not that of the
    mean MSE; of kinds that have a peak. Only pictures of at least 11x11 pixels have an SSIM, films the mean of their
    frames'. The targets of one source count apart.
    """
    model, data = inputs.model, inputs.examples
    assert model is not None
    if not len(data):
        return
    peak = registry.kind_of(data.spec).peak
    examples = data.batch(torch.arange(len(data)))
    parts: dict[str, list[Tensor]] = {"l1": [], "psnr": [], "ssim": []}
    done = 0
    for made in inference.sample(model, range(len(data)), inputs.seed, given=Given(condition=examples.condition),
                                 **inference.own_options(model.sample, dict(inputs.options))):
        x, target = made.x, examples.x[done : done + len(made)]
        mse = (x - target).double().square().flatten(1).mean(1)
        parts["l1"].append((x - target).double().abs().flatten(1).mean(1))
        if peak:
            parts["psnr"].append(-10 * torch.log10((mse / peak**2).clamp(min=1e-10)))
        if x.ndim >= 4 and min(x.shape[-2:]) >= _WINDOW:
            parts["ssim"].append(ssim(x, target))
        done += len(made)
        inputs.progress(done, len(data))
    for name, unit in (("l1", "absolute"), ("psnr", "dB"), ("ssim", "SSIM")):
        if parts[name]:
            values = torch.cat(parts[name])
            yield Column(f"pair_{name}", values, unit, cost=name == "l1")
            yield mean(f"pair_{name}", values, unit, "estimate", protocol(data, inputs.seed, **_PROTOCOL[name]),
                       blocks=data.blocks)


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """The structural similarity of pictures in [0, 1]: (B, C, H, W) twice -> (B,) float64; H and W at least 11.

    Of films (B, T, C, H, W) the mean over their frames.

    Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity": a Gaussian window of
    11x11 pixels and deviation 1.5, K1 = 0.01, K2 = 0.03; the mean over all whole windows and over the channels.
    """
    x, y = x.double(), y.double()
    offset = torch.arange(_WINDOW, dtype=x.dtype, device=x.device) - _WINDOW // 2
    window = torch.softmax(-offset.square() / (2 * 1.5**2), dim=0)

    def local(picture: Tensor) -> Tensor:  # the mean in every window
        flat = picture.flatten(0, -3)[:, None]
        return F.conv2d(F.conv2d(flat, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1)).unflatten(0, x.shape[:-2])

    mean_x, mean_y = local(x), local(y)
    variances = local(x * x) - mean_x**2 + local(y * y) - mean_y**2
    covariance = local(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * (2 * covariance + c2) / (variances + c2)).flatten(1).mean(1)
