"""Examples that lie on a disk, read and decoded by other processes while the batch before them is computed with."""

import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Items

from gencli.dataset import Dataset, Fetched, Stored, fetch
from gencli.errors import DataError, ResourceError
from gencli.spec import Batch

_MOST = 8  # processes, unless more are asked for


def _room() -> int:
    """A process for each processor that this one may use, but for one; processes of one training share them."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST, count // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


class Ahead(Iterator[tuple[Tensor, Fetched | None]]):
    """Numbers of examples, batch by batch, each with what is read from a disk for it (`fetch`).

    Args:
        parts: the numbers (B,) of each batch. They are taken from it some batches ahead.
        workers: processes that read; 0: none, and nothing is read ahead; None: as many as there are processors for.

    Raises (from `next`):
        DataError: an example cannot be read. ResourceError: a process was killed, or there is no memory to share.
    """

    def __init__(self, data: Dataset, parts: Iterable[Tensor], workers: int | None):
        self._waiting: deque[Tensor] = deque()
        self._parts = iter(parts)
        self._loaded: Any = None
        workers = _room() if workers is None else workers
        if workers and any(examples is not None for examples in data.stored):
            # Forked processes share what the data holds, and start at once; they never touch a device.
            with _explained(), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # more processes than processors: as was asked for
                loader = DataLoader(_Fetching(data.stored), batch_size=None, sampler=self._numbers(),
                                    num_workers=workers, worker_init_fn=_begin,
                                    multiprocessing_context="fork" if sys.platform == "linux" else None)
                self._loaded = iter(loader)

    def __next__(self) -> tuple[Tensor, Fetched | None]:
        if self._loaded is None:
            return next(self._parts), None
        with _explained():
            fetched = next(self._loaded)
        numbers = self._waiting.popleft()
        if isinstance(fetched, DataError):
            raise fetched
        return numbers, fetched

    def close(self) -> None:
        """End the processes."""
        self._loaded = None  # the last reference

    def _numbers(self) -> Iterator[list[int]]:
        for part in self._parts:
            self._waiting.append(part)
            yield part.tolist()


@contextmanager
def _explained() -> Iterator[None]:
    """What goes wrong with processes, in a sentence."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        raise ResourceError(f"a process that reads data ahead has failed ({' '.join(str(error).split())}); try fewer "
                            f"--workers, or --workers 0") from error


class _Fetching(Items[Any]):
    """What processes do: numbers -> what is read, or the error, which must arrive as it is."""

    def __init__(self, stored: Sequence[Stored | None]):
        self.stored = stored

    def __getitem__(self, numbers: list[int]) -> Fetched | DataError:
        try:
            return fetch(self.stored, torch.tensor(numbers))
        except DataError as error:
            return error


def _begin(worker: int) -> None:
    """A process is ended by the one that started it, which a signal from the keyboard reaches as well.

    What libraries print about damaged files would come between other messages.
    """
    for number in (signal.SIGINT, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def in_turn(data: Dataset, size: int, device: torch.device, workers: int | None) -> Iterator[Batch]:
    """All examples in their order, as batches of `size`."""
    ahead = Ahead(data, torch.arange(len(data)).split(size), workers)
    try:
        for part, fetched in ahead:
            yield data.batch(part, device, fetched=fetched)
    finally:
        ahead.close()
