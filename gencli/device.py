"""Devices, precision, memory and processes: what the machine has and how much of it is used."""

import contextlib
import itertools
import logging
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules import module as registration

from gencli.errors import ResourceError, UsageError
from gencli.limits import physical_memory, process_count
from gencli.settings import Precision

Function = TypeVar("Function", bound=Callable[..., object])
M = TypeVar("M", bound=torch.nn.Module)
T = TypeVar("T")
R = TypeVar("R")


def pick(name: str = "auto") -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps` -> a device that the machine has.

    Raises:
        UsageError: no such name. ResourceError: the machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        index = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", "0")) % max(1, count)
        if index >= count:
            raise ResourceError(f"--device {name}: this machine has {count} CUDA devices; use --device auto or cpu")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ResourceError("--device mps: this machine has none; use --device auto or cpu")
    if device.type not in ("cpu", "mps"):
        raise UsageError(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps")
    return device


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """`auto` is bf16 on hardware that supports it, else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        # Kernels that are held to those of an older processor (ATEN_CPU_CAPABILITY) have no bf16, or emulate it.
        older = torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
        features = torch.cpu.get_capabilities()
        return "bf16" if not older and (features.get("amx_bf16") or features.get("avx512_bf16")) else "fp32"
    return "fp32"


def processor(device: torch.device) -> str:
    """What computes on a device, as far as it decides how sums are rounded."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.backends.cpu.get_cpu_capability()})" if device.type == "cpu" else device.type


@contextlib.contextmanager
def autocast(precision: str, device: torch.device) -> Iterator[None]:
    """bf16 autocast if `precision` is bf16, else nothing.

    Raises:
        UsageError: bf16 on a processor that has no such kernel and for which none is emulated, as of an LSTM.
    """
    if precision != "bf16":
        yield
        return
    try:
        # One region must not span several steps: its cache of cast weights would outlive an optimiser step.
        with torch.autocast(device.type, torch.bfloat16):
            yield
    except RuntimeError as error:
        if "could not create a primitive descriptor" in str(error):
            raise UsageError("--precision bf16: the processor does not have it for a layer of this model; leave it "
                             "out") from error
        raise


def channels_last(model: M) -> M:
    """The model itself, its weights laid out as convolutions of pictures and films are fastest: channels last."""
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() in layouts:
            tensor.data = tensor.data.contiguous(memory_format=layouts[tensor.dim()])
    return model


def compiled(function: Function, attempt: Callable[[Function], object], warn: Callable[[str], None]) -> Function:
    """`function` by torch.compile if `attempt` succeeds with it (only a call shows that), else unchanged."""
    if "TORCH_LOGS" not in os.environ:  # what the compiler notes is for those who write models
        torch._logging.set_logs(all=logging.ERROR)
    try:
        fast: Any = torch.compile(function)
        attempt(fast)
        return fast
    except Exception as error:  # no C++ compiler, or a function that cannot be traced
        warn(f"--compile does not work here ({type(error).__name__}); training continues without it")
        return function


class Processes:
    """The processes of one command: alone, or started by torchrun (gloo on CPU, nccl on GPU)."""

    def __init__(self, device: torch.device, alone: bool = False):
        """`alone`: what each does by itself, as the others do."""
        self.rank = 0 if alone else int(os.environ.get("RANK", "0"))
        self.world = 1 if alone else process_count()
        self.device = device
        if self.world > 1 and not dist.is_initialized():
            if device.type == "cuda":
                torch.cuda.set_device(device)  # what is no tensor travels through the current one
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

    @property
    def first(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def average(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in one call."""
        if self.world == 1:
            return
        flat = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(flat)
        flat /= self.world
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def mean(self, value: float) -> float:
        """The mean of the processes' values."""
        tensor = torch.tensor([value], device=self.device)
        self.average([tensor])
        return float(tensor)

    def agree(self, value: int) -> int:
        """The largest of the processes' values: if one is asked to stop, all stop at the same step."""
        if self.world == 1:
            return value
        tensor = torch.tensor([value], device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def told(self, value: T) -> T:
        """What the first process has to say of it."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def gather(self, state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Every process's state, by rank; complete only in process 0."""
        if self.world == 1:
            return [state]
        states: list[dict[str, Tensor]] | None = [{}] * self.world if self.first else None
        dist.gather_object({k: v.cpu() for k, v in state.items()}, states)
        return states or []

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the group."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def shared(items: Iterable[T], compute: Callable[[T], R]) -> Iterator[R]:
    """What `compute` makes of each item, in order. Processes that work together do it in turns, and get it all.

    Every process has to ask for the same, and for as much of it.
    """
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world == 1:
        yield from map(compute, items)
        return
    rank, items = dist.get_rank(), iter(items)
    while turn := [*itertools.islice(items, world)]:
        made: list[Any] = [None] * world
        dist.all_gather_object(made, compute(turn[rank]) if rank < len(turn) else None)
        yield from made[: len(turn)]


def in_threads(compute: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """What `compute` makes of each item, in order, of as many items at a time as there are threads."""
    if threads == 1:
        yield from map(compute, items)
        return
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            waiting.append(pool.submit(compute, item))
            if len(waiting) == threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def room_for(copies: int) -> Iterator[None]:
    """Within the block no model may be built that needs more memory than the machine has, with `copies` of each weight.

    Raises:
        ResourceError: as soon as the weights registered so far are too many, even if none has been written to: Linux
            overcommits memory and kills the process that uses it.
    """
    memory = physical_memory()
    needed = 0

    def count(module: Any, name: str, parameter: Tensor | None) -> None:
        nonlocal needed
        needed += 0 if parameter is None else copies * parameter.nbytes
        if needed > memory:
            raise ResourceError(f"a model of this size needs more than {needed / 2**30:.0f} GiB, and the machine has "
                                f"{memory / 2**30:.0f}; choose a smaller one")

    hook = registration.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def memory_explained(advice: str) -> Iterator[None]:
    """Turn torch's out-of-memory errors into one sentence with advice."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ResourceError(f"the device is out of memory; {advice}") from error
    except MemoryError as error:
        raise ResourceError(f"the machine is out of memory; {advice}") from error
    except RuntimeError as error:
        # oneDNN says no more than the last of these where it gets no memory for code that it makes.
        if re.search("can't allocate memory|not enough memory|could not create a primitive$", str(error)):
            raise ResourceError(f"the machine is out of memory; {advice}") from error
        raise
