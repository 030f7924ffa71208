"""The order in which training reads a data set: a function of (seed, step), so that a resume needs no state of it."""

import torch

from gencli.dataset import Dataset
from gencli.errors import DataError
from gencli.rng import StepStream, derive_seed, generator
from gencli.spec import Batch, moved

_POOL = 50  # batches among which examples are put together by their lengths


class Shuffled:
    """Training order of examples: every epoch a permutation that is a function of (seed, epoch) alone.

    `alike`: of every `_POOL` batches each gets examples of alike lengths, their own and their sources' together, so
    that little of a batch is filled up; the batches of an epoch are in random order.
    """

    def __init__(self, data: Dataset, batch_size: int, seed: int, device: torch.device, rank: int = 0, world: int = 1,
                 alike: bool = False):
        self.data, self.batch_size, self.seed, self.device = data, batch_size, seed, device
        self.rank, self.world = rank, world
        lengths = [side.lengths for side in (data, data.condition) if side is not None and side.lengths is not None]
        self._lengths = torch.stack(lengths).sum(0) if alike and lengths else None
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    @property
    def rows(self) -> int:
        """Examples in a step, over all processes."""
        return min(self.batch_size, len(self.data))

    @property
    def steps_per_epoch(self) -> int:
        return max(1, len(self.data) // self.batch_size)

    def __getitem__(self, step: int) -> tuple[Batch, StepStream]:
        """The batch of a step (this process's share of it) and the noise that goes with it."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            source = generator(self.seed, "order", epoch)
            self._order, self._epoch = torch.randperm(len(self.data), generator=source), epoch
            if self._lengths is not None:
                self._order = self._by_length(self._order, self._lengths, source)
        indices = self._order[position * self.batch_size : (position + 1) * self.batch_size][self.rank :: self.world]
        rng = StepStream(len(indices), generator(self.seed, "step", step, self.rank, device=self.device))
        return self.data.batch(indices, self.device, rng), rng

    def _by_length(self, order: torch.Tensor, lengths: torch.Tensor, source: torch.Generator) -> torch.Tensor:
        """The examples of whole batches in this order (N,) -> the same with alike ones in a batch."""
        pools = order[: self.steps_per_epoch * self.rows].split(_POOL * self.rows)
        order = torch.cat([pool[lengths[pool].argsort(stable=True)] for pool in pools])
        return order.view(-1, self.rows)[torch.randperm(self.steps_per_epoch, generator=source)].flatten()


class Contiguous:
    """Training order of a document: `rows` places read on in parallel, `window` tokens a step (truncated BPTT).

    A batch holds window + 1 tokens: all but the last are input, all but the first are targets; the next batch starts
    with the token this one ended with. Every epoch the document is cut at other places.

    Raises:
        DataError: the document has no token to predict from another.
    """

    def __init__(self, data: Dataset, batch_size: int, window: int, seed: int, device: torch.device,
                 rank: int = 0, world: int = 1):
        assert data.document is not None
        if len(data.document) < 2:
            raise DataError(f"{data.name}: the text to train on has {len(data.document)} tokens; at least 2 are needed")
        self.document = data.document
        self.seed, self.device, self.rank, self.world = seed, device, rank, world
        # A short document is read by fewer readers, in shorter windows, rather than not at all.
        self.rows = max(1, min(batch_size, (len(self.document) - 1) // (window + 1)))
        self.asked, self.window = window, min(window, len(self.document) - 1)
        self.steps_per_epoch = max(1, (len(self.document) // self.rows - 1) // self.window)

    def __getitem__(self, step: int) -> tuple[Batch, StepStream]:
        epoch, position = divmod(step, self.steps_per_epoch)
        stride = len(self.document) // self.rows
        offset = derive_seed(self.seed, "order", epoch) % len(self.document)
        held = self.document.device  # that of the model, unless it is too large for it
        starts = offset + torch.arange(self.rows, device=held) * stride + position * self.window
        starts = starts[self.rank :: self.world]
        places = starts[:, None] + torch.arange(self.window + 1, device=held)  # (B, window + 1)
        x = moved(self.document[places % len(self.document)], self.device).long()
        rng = StepStream(len(x), generator(self.seed, "step", step, self.rank, device=self.device))
        lengths = torch.full((len(x),), x.shape[1], device=self.device)
        return Batch(x, lengths=lengths, fresh=position == 0), rng
