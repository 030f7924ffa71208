"""A picture of which a part is given, for a model to complete."""

import torch
from torch import Tensor

from gencli.data import load
from gencli.errors import DataError, UsageError
from gencli.kinds.image import ImageSpec
from gencli.settings import DataSettings


def partial_picture(picture: str, spec: ImageSpec, keep_rows: int | None = None,
                    mask: str | None = None) -> tuple[Tensor, Tensor]:
    """A picture and which of it to keep, both (C, H, W): values in [0, 1], and bool.

    Args:
        picture: a picture file of the size and levels of `spec`; what lies outside the kept part does not matter.
        keep_rows: keep so many rows from the top; or
        mask: a picture file of the same size, white where the picture is kept and black where it is not.

    Raises:
        UsageError: not one of `keep_rows` and `mask`, or more rows than there are.
        DataError: a file that cannot be read, is no single picture, or is of the wrong size or levels.
    """
    if (keep_rows is None) == (mask is None):
        raise UsageError("to complete a picture say what of it is kept: --keep-rows N, or --mask FILE")
    if keep_rows is not None and not 0 <= keep_rows <= spec.height:
        raise UsageError(f"--keep-rows {keep_rows}: the model's pictures have {spec.height} rows")
    known = _read(picture, spec, spec.channels)
    if mask is None:
        keep = torch.zeros(spec.shape, dtype=torch.bool)
        keep[:, :keep_rows] = True
    else:
        keep = _black_or_white(_read(mask, spec, 1), mask, "a mask is").bool().expand(spec.shape)
    if spec.levels == 2:
        _black_or_white(known[keep], picture, "the model's pictures are")
    return known, keep


def _read(file: str, spec: ImageSpec, channels: int) -> Tensor:
    """The one picture in a file, (channels, H, W) in [0, 1], of the height and width of `spec`."""
    data = load(file, DataSettings(channels=channels), split="all")
    if len(data) != 1 or not isinstance(data.spec, ImageSpec):
        raise DataError(f"{file} is no single picture; give one picture file")
    if data.spec.shape[1:] != spec.shape[1:]:
        raise DataError(f"{file} has {data.spec.height}x{data.spec.width} pixels (height x width), and the model's "
                        f"pictures have {spec.height}x{spec.width}; give a picture of that size")
    return data.batch(torch.zeros(1, dtype=torch.int64)).x[0]


def _black_or_white(x: Tensor, file: str, what: str) -> Tensor:
    if ((x > 0) & (x < 1)).any():
        raise DataError(f"{file} has grey pixels, but {what} black and white; cut it at a threshold first")
    return x
