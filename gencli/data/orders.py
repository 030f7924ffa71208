"""The order in which training reads a data set: a function of (seed, step), so that a resume needs no state of it."""

import itertools

import torch

from gencli.data.ahead import Ahead
from gencli.dataset import Dataset
from gencli.errors import DataError
from gencli.rng import StepStream, derive_seed, generator
from gencli.spec import Batch, moved

_STRETCHES = 256  # of examples that lie together, in a buffer that is shuffled
_POOL = 50  # batches among which examples are put together by their lengths


class Shuffled:
    """Training order of examples: every epoch a permutation that is a function of (seed, epoch) alone.

    Of examples on a disk (`Stored`) those of a stretch, which lie together, stay near each other: the stretches are
    shuffled, and then all examples of every `_STRETCHES` of them. While one such buffer is used, the system reads the
    next.

    `alike`: of every `_POOL` batches each gets examples of alike lengths, their own and their sources' together, so
    that little of a batch is filled up; the batches of an epoch are in random order.
    `workers`: processes that read examples from a disk ahead of the steps. None: as many as the machine has room for.
    """

    def __init__(self, data: Dataset, batch_size: int, seed: int, device: torch.device, rank: int = 0, world: int = 1,
                 alike: bool = False, workers: int | None = 0):
        self.data, self.batch_size, self.seed, self.device = data, batch_size, seed, device
        self._workers = workers
        self._stretch = max(examples.stretch if examples is not None else 1 for examples in data.stored)
        self._ahead, self._ahead_of = Ahead(data, (), 0), -1  # what is read ahead, for steps from this one on
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
        if step != self._ahead_of:
            self.close()
            self._ahead = Ahead(self.data, map(self._indices, itertools.count(step)), self._workers)
        self._ahead_of = step + 1
        indices, fetched = next(self._ahead)
        rng = StepStream(len(indices), generator(self.seed, "step", step, self.rank, device=self.device))
        return self.data.batch(indices, self.device, rng, fetched), rng

    def close(self) -> None:
        """End the processes that read ahead; a later step starts others."""
        self._ahead.close()
        self._ahead_of = -1

    def _indices(self, step: int) -> torch.Tensor:
        """The numbers of the examples of a step, (B,)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            source = generator(self.seed, "order", epoch)
            self._order, self._epoch = self._shuffled(source), epoch
            if self._lengths is not None:
                self._order = self._by_length(self._order, self._lengths, source)
        start = position * self.batch_size
        if self._stretch > 1:
            self._expect(start)
        return self._order[start : start + self.batch_size][self.rank :: self.world]

    def _shuffled(self, source: torch.Generator) -> torch.Tensor:
        """A permutation of all examples (N,)."""
        if self._stretch == 1:
            return torch.randperm(len(self.data), generator=source)
        stretches = torch.arange(len(self.data)).split(self._stretch)
        order = torch.cat([stretches[i] for i in torch.randperm(len(stretches), generator=source)])
        return torch.cat([part[torch.randperm(len(part), generator=source)]
                          for part in order.split(_STRETCHES * self._stretch)])

    def _expect(self, start: int) -> None:
        """Announce the buffer after the one that a batch, which begins at `start`, is the first of."""
        size = _STRETCHES * self._stretch
        if start % size < self.batch_size:
            coming = self._order[start // size * size + (size if start else 0) :][: size if start else 2 * size]
            for examples in self.data.stored:
                if examples is not None:
                    examples.expect(coming)

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

    def close(self) -> None:
        """Nothing of a document is read ahead."""

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
