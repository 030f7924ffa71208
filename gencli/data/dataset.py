"""A data set in memory: examples as tensors, ready to be batched on a device, and the order training reads them in."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from gencli.kinds.audio import AudioSpec
from gencli.kinds.image import ImageSpec
from gencli.model import Batch, Spec
from gencli.rng import ExampleStreams, Rng, StepStream, derive_seed, generator


@dataclass
class Dataset:
    """N examples of one split.

    Attributes:
        name: what the user called the data, e.g. "digits" or a path.
        split: "train", "test" or "all".
        spec: what one example is.
        examples: N examples before binarisation. Images (N, C, H, W) uint8, or float32 in [0, 1] where levels is None;
            vectors (N, D) float32; text (N, T) int32 or less, padded with 0; audio (N, T) levels, uint8 or int32.
            A Tensor, or anything with `len` that gives such a tensor for an index tensor (pictures too many to hold
            in memory).
        labels: (N,) int64 or None.
        lengths: (N,) int64, text and audio only.
        document: (T,) all tokens of a document in order, where the text is one; else None.
        fingerprint: hex digest of what was read, the same wherever the data lies.
        skipped: unreadable examples left out on request.
        drawn: how a grey picture becomes binary: None (it does not, or already is), "fixed" or "dynamic".
        protocol: what was done to the data (split, size, channels, binarisation...), for the records of `evaluate`.
        offset: the number of the first example in the split this is a part of; a fixed draw belongs to that number.
        notes: sentences for the user about what had to be done to the data.
    """

    name: str
    split: str
    spec: Spec
    examples: Tensor
    labels: Tensor | None = None
    lengths: Tensor | None = None
    document: Tensor | None = None
    fingerprint: str = ""
    skipped: int = 0
    drawn: Literal["fixed", "dynamic"] | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    offset: int = 0
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, indices: Tensor, device: torch.device | str = "cpu", rng: Rng | None = None) -> Batch:
        """The examples of these numbers, (B,) int64, as a model wants them.

        `rng` draws dynamic binarisation; without it the draw belongs to the example and is the same every time, as
        with fixed binarisation.
        """
        if isinstance(self.examples, Tensor):  # several times faster than indexing by a tensor
            x = self.examples.index_select(0, indices.to(self.examples.device)).to(device, non_blocking=True)
        else:
            x = self.examples[indices].to(device, non_blocking=True)
        labels = None if self.labels is None else self.labels[indices].to(device, non_blocking=True)
        if isinstance(self.spec, ImageSpec):
            return Batch(self._pixels(x, self.spec.levels, indices, rng), labels)
        if self.lengths is None:
            return Batch(x, labels)
        lengths = self.lengths[indices]
        longest = int(lengths.max()) if len(lengths) else 0
        x, lengths = x[:, :longest].long(), lengths.to(device, non_blocking=True)
        if isinstance(self.spec, AudioSpec):
            x = self.spec.from_levels(x).where(torch.arange(longest, device=x.device) < lengths[:, None], 0.0)
        return Batch(x, labels, lengths)

    def _pixels(self, x: Tensor, levels: int | None, indices: Tensor, rng: Rng | None) -> Tensor:
        """(B, C, H, W) raw -> float in [0, 1], channels_last, drawn to 0 and 1 if the data is to be binarised."""
        if self.drawn:
            if rng is None or self.drawn == "fixed":
                rng = ExampleStreams(0, indices + self.offset, "binarize", x.device)
            # A byte is 1 with probability grey/255: the draw from 0..254 lies below it.
            return (x > rng.integers(255, *x.shape[1:])).float().contiguous(memory_format=torch.channels_last)
        if x.dtype == torch.uint8:
            x = x.float().div_((levels or 256) - 1)
        return x.contiguous(memory_format=torch.channels_last)

    def on(self, device: torch.device) -> "Dataset":
        """The same data with its examples held on `device`, if they are in memory and fill at most half of the rest."""
        if device.type != "cuda" or not isinstance(self.examples, Tensor):
            return self
        free, _ = torch.cuda.mem_get_info(device)
        return replace(self, examples=self.examples.to(device)) if 2 * self.examples.nbytes <= free else self

    def span(self, start: int, end: int) -> "Dataset":
        """Examples `start` to `end`, and of a document the same passages."""
        document = None
        if self.document is not None and self.lengths is not None:
            places = torch.cat([torch.zeros(1, dtype=torch.int64), self.lengths.cumsum(0)])
            document = self.document[places[start] : places[end]]
        return replace(self, examples=self.examples[start:end], document=document, offset=self.offset + start,
                       labels=None if self.labels is None else self.labels[start:end],
                       lengths=None if self.lengths is None else self.lengths[start:end],
                       protocol={**self.protocol, "examples": [start, end]})

    def subset(self, limit: int | None) -> "Dataset":
        """The first `limit` examples; all if None."""
        return self if limit is None or limit >= len(self) else self.span(0, limit)


class Shuffled:
    """Training order of examples: every epoch a permutation that is a function of (seed, epoch) alone."""

    def __init__(self, data: Dataset, batch_size: int, seed: int, device: torch.device, rank: int = 0, world: int = 1):
        self.data, self.batch_size, self.seed, self.device = data, batch_size, seed, device
        self.rank, self.world = rank, world
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    @property
    def steps_per_epoch(self) -> int:
        return max(1, len(self.data) // self.batch_size)

    def __getitem__(self, step: int) -> tuple[Batch, StepStream]:
        """The batch of a step (this process's share of it) and the noise that goes with it."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._order = torch.randperm(len(self.data), generator=generator(self.seed, "order", epoch))
            self._epoch = epoch
        indices = self._order[position * self.batch_size : (position + 1) * self.batch_size][self.rank :: self.world]
        rng = StepStream(len(indices), generator(self.seed, "step", step, self.rank, device=self.device))
        return self.data.batch(indices, self.device, rng), rng


class Contiguous:
    """Training order of a document: `batch_size` places read on in parallel, `window` tokens a step (truncated BPTT).

    A batch holds window + 1 tokens: all but the last are input, all but the first are targets; the next batch starts
    with the token this one ended with. Every epoch the document is cut at other places.
    """

    def __init__(self, data: Dataset, batch_size: int, window: int, seed: int, device: torch.device,
                 rank: int = 0, world: int = 1):
        assert data.document is not None
        self.document = data.document.to(device)
        self.seed, self.device, self.rank, self.world = seed, device, rank, world
        # A short document is read by fewer readers, in shorter windows, rather than not at all.
        self.batch_size = max(1, min(batch_size, (len(self.document) - 1) // (window + 1)))
        self.window = min(window, len(self.document) - 1)
        self.steps_per_epoch = max(1, (len(self.document) // self.batch_size - 1) // self.window)

    def __getitem__(self, step: int) -> tuple[Batch, StepStream]:
        epoch, position = divmod(step, self.steps_per_epoch)
        stride = len(self.document) // self.batch_size
        offset = derive_seed(self.seed, "order", epoch) % len(self.document)
        starts = offset + torch.arange(self.batch_size, device=self.device) * stride + position * self.window
        starts = starts[self.rank :: self.world]
        places = starts[:, None] + torch.arange(self.window + 1, device=self.device)  # (B, window + 1)
        x = self.document[places % len(self.document)].long()
        rng = StepStream(len(x), generator(self.seed, "step", step, self.rank, device=self.device))
        lengths = torch.full((len(x),), x.shape[1], device=self.device)
        return Batch(x, lengths=lengths, fresh=position == 0), rng
