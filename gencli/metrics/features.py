"""Feature spaces, in which samples are compared with data: a batch of B examples -> features (B, D).

- `pixels`: the numbers of a picture.
- `columns`: the columns of a table, standardised by the training data.
- `log-mel`: how loud a recording is in each band, part by part.
- `inception`: the pool layer of InceptionV3, for numbers that others published.
- the name of a family that classifies: the last hidden layer of its network, trained with its defaults on the labelled
  training data, once; `NAME:RUN` is that of a run.

A third party adds a space with an entry point in the group `gencli.features`: a function of `Inputs` that returns a
`Space`. Spaces are imported when they are used. What takes long is kept in the cache folder: trained networks, and the
features of data sets.
"""

import importlib
import os
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import Tensor

from gencli import __version__, registry, runs
from gencli.cache import cached
from gencli.data.dataset import Dataset
from gencli.errors import DataError, ModelError, StoppedError, UsageError, did_you_mean
from gencli.kinds import alike, describe
from gencli.kinds.image import ImageSpec
from gencli.kinds.vector import VectorSpec
from gencli.metrics import Inputs
from gencli.model import Batch, Model, Spec
from gencli.rng import ExampleStreams, derive_seed
from gencli.settings import TrainSettings
from gencli.tensors import sha256

_LEAST_STEPS = 500  # that a network is trained for, however little data there is


class Space:
    """What examples are compared in.

    Attributes:
        name: as it stands in the protocol of metrics.
        identity: everything the features hang on but the examples, so that they can be kept; None: not worth keeping.
        block: examples whose features are computed at once.
        classes: names of what `describe` gives the log-probabilities of.
    """

    name: str
    identity: Any = None
    block: int = 500
    classes: tuple[str, ...] = ()
    device: torch.device = torch.device("cpu")

    def describe(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Features (B, D), and where the space has classes their log-probabilities (B, K) in nats."""
        raise NotImplementedError


class Pixels(Space):
    """(B, C, H, W) -> (B, C H W) in [0, 1]."""

    name = "pixels"

    def describe(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return batch.x.flatten(1), None


class Columns(Space):
    """(B, D) in the units of the data -> (B, D) with mean 0 and deviation 1 in the training data."""

    name = "columns"

    def __init__(self, spec: VectorSpec):
        self.mean, self.scale = torch.tensor(spec.mean), torch.tensor(spec.scale)

    def describe(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return (batch.x - self.mean) / self.scale, None


class Learned(Space):
    """What a model that classifies encodes examples as, and its classes."""

    def __init__(self, model: Model, name: str, identity: Any):
        self.model, self.name, self.identity = model.eval(), name, identity
        self.classes, self.device = model.spec.classes, model.device

    def describe(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        rng = ExampleStreams(0, torch.arange(len(batch)), "features", self.device)
        return self.model.encode(batch, rng), self.model.classify(batch)


# ---------------------------------------------------------------------------------------------------------------------
# Spaces by name

_BUILT_IN = {  # name -> (function of Inputs, kinds of examples)
    "pixels": ("gencli.metrics.features:pixels", ("image",)),
    "columns": ("gencli.metrics.features:columns", ("vector",)),
    "log-mel": ("gencli.metrics.audio:log_mel", ("audio",)),
    "inception": ("gencli.metrics.inception:inception", ("image",)),
}


def pixels(inputs: Inputs) -> Space:
    """The space `pixels`."""
    return Pixels()


def columns(inputs: Inputs) -> Space:
    """The space `columns`."""
    assert isinstance(inputs.examples.spec, VectorSpec)
    return Columns(inputs.examples.spec)


@cache
def _plugins() -> dict[str, str]:
    if os.environ.get("GENCLI_PLUGINS", "1") == "0":
        return {}
    return {entry.name: entry.value for entry in sorted(entry_points(group="gencli.features"))}


def classifying(kind: str) -> list[str]:
    """Names of the families that classify examples of this kind."""
    return [family.name for family in registry.families().values() if "classify" in family.can and kind in family.kinds]


def spaces(kind: str) -> list[str]:
    """The names of the feature spaces for examples of this kind."""
    own = [name for name, (_, kinds) in _BUILT_IN.items() if kind in kinds]
    return [*own, *classifying(kind), *(name for name in _plugins() if name not in _BUILT_IN)]


def default_space(inputs: Inputs) -> str:
    """The space to compare in where the user names none: for pictures a classifier if there are labels to train it."""
    spec, training = inputs.examples.spec, inputs.training
    if isinstance(spec, ImageSpec) and training is not None and training.labels is not None:
        return classifying(spec.kind)[0]
    return spaces(spec.kind)[0]


def feature_space(inputs: Inputs) -> Space:
    """The feature space that `inputs.features` names, or the default.

    Raises:
        UsageError: no such space, or it does not fit the examples.
        DataError: a network is to be trained, and the training data is not here or has no labels.
        ModelError: a run, an extra or weights that are needed are not here or damaged.
    """
    wanted, spec = inputs.features or default_space(inputs), inputs.examples.spec
    name, colon, argument = wanted.partition(":")
    known = spaces(spec.kind)
    if name not in known or (colon and name not in classifying(spec.kind)):
        raise UsageError(f"{spec.kind}s have no features called {wanted!r}{did_you_mean(name, known)}")
    if name in classifying(spec.kind):
        return _of_run(name, argument, spec) if colon else _trained(name, inputs)
    module, _, attribute = (_BUILT_IN[name][0] if name in _BUILT_IN else _plugins()[name]).partition(":")
    try:
        make: Callable[[Inputs], Space] = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise ModelError(f"features {name!r} ({module}:{attribute}) cannot be loaded: {type(error).__name__}: {error}; "
                         f"repair or uninstall it") from error
    return make(inputs)


def _of_run(name: str, run: str, spec: Spec) -> Space:
    """The network of a run of a family that classifies."""
    card = runs.read_card(run)
    if card.family != name:
        raise UsageError(f"features {name}:{run}: {run} is of family {card.family!r}; give a run of family {name!r}")
    if not alike(card.spec, spec):
        raise UsageError(f"features {name}:{run}: it takes {describe(card.spec)}; the data has {describe(spec)}")
    model, _ = runs.load_model(run)
    return Learned(model, name, {"model": sha256(runs.model_path(run))})


def _trained(name: str, inputs: Inputs) -> Space:
    """A network of that family, trained with its defaults on the labelled training data, from the cache or now."""
    training = inputs.training
    if training is None or training.labels is None:
        raise DataError(f"{training.name if training else 'the model'}: no labelled training data to train a {name} "
                        f"on; choose --features {spaces(inputs.examples.spec.kind)[0]} or {name}:RUN")
    settings, model = trained_settings(name, len(training)), new_model(name, training.spec)
    device = torch.device("cpu") if inputs.model is None else inputs.model.device
    identity = {"gencli": __version__, "family": name, "config": model.config.model_dump(),
                "settings": settings.model_dump(), "device": device.type, **_identity(training)}
    model.load_state_dict(cached(name, identity, lambda: trained(new_model(name, training.spec), training, settings,
                                                                 inputs, device).state_dict()))
    return Learned(model.to(device).requires_grad_(False), name, identity)


def trained_settings(name: str, examples: int) -> TrainSettings:
    """How a network of a family that classifies is trained on so many examples: the family's defaults."""
    defaults = registry.family(name).load().defaults
    settings = TrainSettings(**{**defaults, "preview_every": 0, "log_every": 10})
    steps = int(settings.epochs * examples // settings.batch_size)
    return settings.model_copy(update={"steps": max(_LEAST_STEPS, steps),
                                       "batch_size": min(settings.batch_size, examples)})


def new_model(name: str, spec: Spec, seed: int = 0) -> Model:
    """A model of a family with its defaults and fresh weights, a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        return runs.build(name, {}, spec)


def trained(model: Model, data: Dataset, settings: TrainSettings, inputs: Inputs, device: torch.device) -> Model:
    """The model trained on the data, in evaluation mode on the CPU."""
    from gencli.trainer import Hooks, Trainer  # measures losses with metrics itself

    hooks = Hooks(lambda step, total, values: inputs.progress(step, total), inputs.notify)
    try:
        with torch.enable_grad():
            outcome = Trainer(model, data, settings, device=device, hooks=hooks).run()
    except StoppedError as stop:
        raise StoppedError("stopped while a network to measure with was trained; it is not kept",
                           stop.exit_code) from None
    return outcome.model.cpu()


# ---------------------------------------------------------------------------------------------------------------------
# Features of data sets


def batches(data: Dataset, block: int = 500, device: torch.device | str = "cpu") -> Iterator[Batch]:
    """All examples in order, in blocks of a fixed size: no feature hangs on how many were asked for."""
    return (data.batch(indices, device) for indices in torch.arange(len(data)).split(block))


def features(space: Space, data: Dataset, keep: bool = False) -> tuple[Tensor, Tensor | None]:
    """Features (N, D) float32 of all examples, and log-probabilities (N, K) or None; on the CPU.

    `keep` puts them into the cache folder, or takes them from there, where they are worth it.
    """

    @torch.no_grad()
    def compute() -> dict[str, Tensor]:
        found = [space.describe(batch) for batch in batches(data, space.block, space.device)]
        kept = {"features": torch.cat([x.float().cpu() for x, _ in found])}
        if classes := [p.float().cpu() for _, p in found if p is not None]:
            kept["log_probabilities"] = torch.cat(classes)
        return kept

    if keep and space.identity is not None and data.fingerprint:
        tensors = cached("features", {"space": space.identity, **_identity(data)}, compute)
    else:
        tensors = compute()
    return tensors["features"], tensors.get("log_probabilities")


def _identity(data: Dataset) -> dict[str, Any]:
    """What tells these examples from all others."""
    return {"spec": data.spec.model_dump(mode="json"), "fingerprint": data.fingerprint, "split": data.split,
            "examples": len(data), "offset": data.offset, "drawn": data.drawn, "protocol": data.protocol}
