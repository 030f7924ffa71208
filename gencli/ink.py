"""Drawings as pictures, for networks and metrics."""

import torch
from torch import Tensor, nn

_PIECES = 8192  # of all segments of a drawing together, about
_MARGIN = 2  # pixels around a drawing
_DOT = 1.5  # ink of a stroke of a single point, in pixels of line


class InkPicture(nn.Module):
    """Drawings (B, T, 3) of any length -> pictures (B, 1, S, S) in [0, 1], where ink is 1.

    Offsets dx, dy with y down, and the pen lifted after a point: 1. What follows the last 1 is no part of the drawing.
    Each is moved and scaled to fill the picture, without changing its proportions. A line is a pixel wide: a pixel of
    its length is shared by the four pixels that it lies between, by distance.
    """

    def __init__(self, side: int):
        super().__init__()
        self.shape = 1, side, side

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self._draw(x.float()).to(x.dtype)

    def _draw(self, x: Tensor) -> Tensor:
        side = self.shape[-1]
        lifted = x[..., 2] > 0.5
        inside = lifted.flip(1).cumsum(1).flip(1) > 0
        begins = torch.cat([torch.ones_like(lifted[:, :1]), lifted[:, :-1]], 1)
        place = self._fitted(x[..., :2].cumsum(1), inside)
        before = torch.where(begins[..., None], place, torch.cat([place[:, :1], place[:, :-1]], 1))
        step = place - before
        length = step.square().sum(-1).sqrt()
        ink = torch.where(begins & lifted, _DOT, length) * inside
        pieces = min(max(_PIECES // x.shape[1], 4), 32)
        along = (torch.arange(pieces, device=x.device) + 0.5) / pieces
        points = before[:, :, None] + along[:, None] * step[:, :, None]  # (B, T, K, 2)
        corner = points.floor().clamp(0, side - 2)
        right, down = (points - corner).clamp(0, 1).unbind(-1)
        number = (corner[..., 1] * side + corner[..., 0]).long()
        ink = (ink / pieces)[..., None]
        picture = x.new_zeros(x.shape[0], side * side)
        for to, share in ((0, (1 - right) * (1 - down)), (1, right * (1 - down)), (side, (1 - right) * down),
                          (side + 1, right * down)):
            picture = picture.scatter_add(1, (number + to).flatten(1), (share * ink).flatten(1))
        return picture.clamp(max=1).view(-1, 1, side, side)

    def _fitted(self, place: Tensor, inside: Tensor) -> Tensor:
        """Places (B, T, 2) in pixels."""
        low = place.masked_fill(~inside[..., None], torch.inf).amin(1, keepdim=True)
        high = place.masked_fill(~inside[..., None], -torch.inf).amax(1, keepdim=True)
        extent = (high - low).amax(2, keepdim=True)
        room = self.shape[-1] - 1 - 2 * _MARGIN
        scale = room / torch.where(extent > 0, extent, 1)
        fitted = (place - (low + high) / 2) * scale + (self.shape[-1] - 1) / 2
        return fitted.nan_to_num(0, 0, 0)  # of a drawing without a point
