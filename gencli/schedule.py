"""The plan of a training: its phases, its learning rates, which examples are read and in which order."""

import itertools
import math

import torch

from gencli.data.orders import Contiguous, Shuffled
from gencli.dataset import Dataset
from gencli.device import Processes
from gencli.errors import UsageError
from gencli.model import Model, Phase
from gencli.registry import family_of
from gencli.settings import TrainSettings


def phases_of(model: Model, total: int, started: bool = False) -> list[tuple[Phase, int]]:
    """The phases of a model with the step at which each ends, `total` for the last.

    Args:
        started: the model has the weights of another training, so that nothing has to find a start for them.

    Raises:
        ValueError: two phases share a name.
        UsageError: what is `started` would be lost in a phase that computes the weights anew.
    """
    phases = model.phases()
    if started:
        phases = list(itertools.dropwhile(lambda phase: not (phase.players or phase.share), phases))
        first = phases[0] if phases else None
        if first is None or not (first.players or first.passes is None) or any(phase.begin for phase in phases):
            raise UsageError(f"--init: family {family_of(model)} is computed from its data, whatever weights it "
                             f"has before; leave it out")
    names = [phase.name for phase in phases]
    if len(set(names)) < len(names):
        raise ValueError(f"{type(model).__name__}: phases need different names, and these are {names}")
    shares = [phase.share for phase in phases]
    return [(phase, round(total * sum(shares[: i + 1]) / sum(shares))) for i, phase in enumerate(phases)]


def learning_rate(settings: TrainSettings, phase: Phase, step: int, steps: int) -> float:
    """The learning rate of a step of a phase (from 0) that has `steps` of them."""
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    if (phase.schedule or settings.schedule) == "cosine":
        return settings.lr * warm * 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))
    return settings.lr * warm


def training_order(model: Model, data: Dataset, settings: TrainSettings, device: torch.device,
                   processes: Processes) -> Shuffled | Contiguous:
    """The examples of each step, as the model reads."""
    if model.reads == "stream" and data.document is not None:
        window: int = getattr(model.config, "window")  # noqa: B009 (a family that reads streams has this option)
        return Contiguous(data, settings.rows, window, settings.seed, device, processes.rank, processes.world)
    return Shuffled(data, settings.rows, settings.seed, device, processes.rank, processes.world, model.alike,
                    settings.workers)
