"""The optimisers of players, made, saved and restored; the moving average of the weights."""

import torch
from torch import Tensor
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList

from gencli.adamw import AdamW
from gencli.errors import ModelError
from gencli.model import Model, Player
from gencli.parts import local, part
from gencli.settings import TrainSettings


def make_optimiser(player: Player, settings: TrainSettings) -> torch.optim.Optimizer:
    """A player's own optimiser, or AdamW. `lr_scale` in its groups is their learning rate relative to `settings.lr`."""
    lr = settings.lr * player.lr_scale
    if player.optimiser:
        optimiser = player.optimiser(player.parameters, lr, settings.weight_decay)
    else:
        fused = all(parameter.device.type != "mps" for parameter in player.parameters)
        optimiser = AdamW(player.parameters, lr=lr, betas=player.betas, weight_decay=settings.weight_decay, fused=fused)
    for group in optimiser.param_groups:
        group["lr_scale"] = group["lr"] / lr * player.lr_scale
    return optimiser


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimiser, as tensors named `number of the parameter/name`."""
    return {f"{index}/{name}": torch.as_tensor(value)
            for index, state in optimiser.state_dict()["state"].items()
            for name, value in state.items() if value is not None}


def load_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore what `optimiser_tensors` gave.

    Raises:
        ModelError: they are of another optimiser.
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split("/", 1)
        like = parameters[int(number)]
        if tensor.shape == like.shape:
            # Fused optimisers read memory in the order it lies in: moments need the layout of their weights.
            tensor = torch.empty_like(like, dtype=tensor.dtype, requires_grad=False).copy_(part(tensor, like))
        elif tensor.ndim:
            raise ModelError("the checkpoint is of an older version, which trained with another optimiser, and cannot "
                             "be continued; start from its weights with --init RUN -o ANOTHER, or anew with "
                             "--overwrite")
        state.setdefault(int(number), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


class MovingAverage:
    """An exponential moving average of a model's weights and buffers (Polyak & Juditsky 1992).

    Each spectral normalisation in it takes a step of power iteration, as that of the model in a forward pass: a mean of
    singular vectors is shorter than 1, and weights divided by what it finds are too large.

    torch's AveragedModel does the same, but looks all names up again at every step, which costs more than the average.
    """

    def __init__(self, average: Model, decay: float, model: Model, state: dict[str, Tensor] | None = None):
        """Average the weights of `model` in those of `average`, a copy of it; `state`: to go on from."""
        self.model = average
        self.decay = decay
        if state is not None:
            self.model.load_state_dict(state)
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        self._averages = [local(average) for average, tensor in pairs if tensor.is_floating_point()]
        self._tensors = [local(tensor) for _, tensor in pairs if tensor.is_floating_point()]
        self._normalised = [(layer[0], layer.original) for layer in self.model.modules()
                            if isinstance(layer, ParametrizationList) and isinstance(layer[0], _SpectralNorm)]
        self._copied = [(average, tensor) for average, tensor in pairs if not tensor.is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Include the weights after step `step` of the phase (from 0)."""
        # Early averages would remember the start: the window grows with the steps taken; the first is a copy.
        decay = min(self.decay, (step + 1) / (step + 10)) if step else 0.0
        torch._foreach_lerp_(self._averages, self._tensors, 1 - decay)
        for average, tensor in self._copied:
            average.copy_(tensor)
        for norm, weight in self._normalised:
            norm._power_method(norm._reshape_weight_to_matrix(weight), 1)
