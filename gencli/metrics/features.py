"""Feature spaces, in which samples are compared with data: a batch of B examples -> features (B, D).

- those of the kind of the examples (`Kind.spaces`), such as `pixels`, the numbers of a picture, or `inception`, the
  pool layer of InceptionV3, for Fréchet distances that compare with published FIDs.
- the name of a family that classifies: the last hidden layer of its network, trained with its defaults on the labelled
  training data, once; `NAME:RUN` is that of a run.

Those of a fixed network, such as `digits` and `scattering`, are the same on every machine. What another machine trained
is another network: its digest is in the protocol, so that numbers of different networks are not compared.

A third party adds a space with an entry point in the group `gencli.features`: a function of `Inputs` that returns a
`Space`. Spaces are imported when they are used. What is expensive is cached: trained networks, and the features of data
sets.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from gencli import __version__, registry, runs
from gencli.cache import cached
from gencli.dataset import Dataset
from gencli.errors import DataError, StoppedError, UsageError, did_you_mean
from gencli.kind import alike, describe
from gencli.metrics import Inputs, family_classifies
from gencli.model import Batch, Model, Spec
from gencli.rng import ExampleStreams, derive_seed
from gencli.settings import TrainSettings
from gencli.tensors import digest, is_finite, sha256


class Space:
    """A space that examples are compared in.

    Attributes:
        name: as in the protocol of metrics.
        identity: everything the features depend on except the examples, the key of the cache; None: not worth caching.
        digest: SHA-256, in hex, of the weights of the network that computes them; "" if none does.
        block: examples whose features are computed at once.
        dtype: of the features; float64 where numbers have to repeat to the printed digits on every machine.
        classes: names of the classes whose log-probabilities `describe` gives.
    """

    name: str
    identity: Any = None
    digest: str = ""
    block: int = 500
    dtype: torch.dtype = torch.float32
    classes: tuple[str, ...] = ()
    device: torch.device = torch.device("cpu")

    def describe(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Features (B, D), and where the space has classes their log-probabilities (B, K) in nats."""
        raise NotImplementedError

    @property
    def protocol(self) -> dict[str, str]:
        """What has to be said of the space for two numbers to be comparable."""
        return {"features": self.name, **({"network": self.digest[:16]} if self.digest else {})}


class Pixels(Space):
    """(B, C, H, W) -> (B, C H W) in [0, 1]."""

    name = "pixels"

    def describe(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return batch.x.flatten(1), None


class Learned(Space):
    """What a model that classifies encodes examples as, and its classes."""

    def __init__(self, model: Model, name: str, identity: Any):
        self.model, self.name, self.identity = model.eval(), name, identity
        self.classes, self.device, self.digest = model.spec.classes, model.device, digest(model.state_dict())

    def describe(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        rng = ExampleStreams(0, torch.arange(len(batch)), "features", self.device)
        return self.model.encode(batch, rng), self.model.classify(batch)


# ---------------------------------------------------------------------------------------------------------------------
# Spaces by name

def pixels(inputs: Inputs) -> Space:
    """The space `pixels`."""
    return Pixels()


def classifying(kind: str) -> list[str]:
    """Names of the families that classify examples of this kind."""
    return [family.name for family in registry.families.values() if family_classifies(family, kind)]


def spaces(kind: str) -> list[str]:
    """The names of the feature spaces for examples of this kind: its own, classifiers, those of plugins."""
    of_kinds = {space for other in registry.kinds for space in registry.kind(other).spaces}
    plugins = [name for name, space in registry.features.items() if space.source != "gencli" and name not in of_kinds]
    return [*registry.kind(kind).spaces, *classifying(kind), *plugins]


def default_space(inputs: Inputs) -> str:
    """The default space: a classifier if that is better for the kind and the training data has labels."""
    spec, training = inputs.examples.spec, inputs.training
    networks = classifying(spec.kind)
    if registry.kind_of(spec).learned and networks and training is not None and training.labels is not None:
        return networks[0]
    return spaces(spec.kind)[0]


def feature_space(inputs: Inputs) -> Space:
    """The feature space that `inputs.features` names, or the default.

    Raises:
        UsageError: no such space, or it does not fit the examples.
        DataError: a network has to be trained, and the training data is missing or has no labels.
        ModelError: a run, an extra or weights that are needed are missing or damaged.
    """
    wanted, spec = inputs.features or default_space(inputs), inputs.examples.spec
    name, colon, argument = wanted.partition(":")
    names = spaces(spec.kind)
    if name not in names or (colon and name not in classifying(spec.kind)):
        raise UsageError(f"{registry.kind(spec.kind).plural} have no features called {wanted!r}"
                         f"{did_you_mean(name, names)}")
    if name in classifying(spec.kind):
        return _of_run(name, argument, spec) if colon else _trained(name, inputs)
    return registry.features[name].load()(inputs)


def _of_run(name: str, run: str, spec: Spec) -> Space:
    """The network of a run; its family classifies."""
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
    training = training.unconditional()
    settings, model = trained_settings(name, len(training)), new_model(name, training.spec)
    device = torch.device("cpu") if inputs.model is None else inputs.model.device
    identity = {"gencli": __version__, "family": name, "config": model.config.model_dump(),
                "settings": settings.model_dump(), "device": device.type, **_identity(training)}

    def make() -> dict[str, Tensor]:
        return trained(new_model(name, training.spec), training, settings, inputs, device).state_dict()

    model.load_state_dict(cached(name, identity, make, lambda weights: _are_weights(weights, model), inputs.note))
    return Learned(model.to(device).requires_grad_(False), name, identity)


def _are_weights(tensors: dict[str, Tensor], model: Model) -> bool:
    """Whether tensors are weights of a model, which then has them."""
    try:
        model.load_state_dict(tensors)  # a model whose sizes depend on training makes room in a load hook
    except (RuntimeError, LookupError, ValueError, TypeError):
        return False
    own = model.state_dict()
    return all(tensor.dtype == own[name].dtype and is_finite(tensor) for name, tensor in tensors.items())


def trained_settings(name: str, examples: int) -> TrainSettings:
    """How a network of a family that classifies is trained on this many examples: the family's defaults."""
    family = registry.families.named(name).load()
    settings = TrainSettings(**{**family.defaults, "preview_every": 0, "log_every": 10})
    steps = int(settings.epochs * examples // settings.batch_size)
    return settings.model_copy(update={"steps": max(family.least_steps, steps),
                                       "batch_size": min(settings.batch_size, examples)})


def new_model(name: str, spec: Spec, seed: int = 0) -> Model:
    """A model of a family with its defaults and fresh weights, a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        return runs.build(name, {}, spec)


def trained(model: Model, data: Dataset, settings: TrainSettings, inputs: Inputs, device: torch.device) -> Model:
    """The model trained on the data, in evaluation mode on the CPU.

    Raises:
        UsageError: `inputs.train` is None.
    """
    if inputs.train is None:
        raise UsageError("this metric has to train a network: use 'gencli evaluate', or set Inputs.train")
    try:
        with torch.enable_grad():
            return inputs.train(model, data, settings, device, inputs).cpu()
    except StoppedError as stop:
        raise StoppedError("stopped while a metric trained its network, which is lost",
                           stop.exit_code) from None


# ---------------------------------------------------------------------------------------------------------------------
# Features of data sets


def batches(data: Dataset, block: int = 500, device: torch.device | str = "cpu") -> Iterator[Batch]:
    """All examples in order, in blocks of a fixed size, so that no feature depends on how many were asked for."""
    return (data.batch(indices, device) for indices in torch.arange(len(data)).split(block))


def features(space: Space, data: Dataset, cache: bool = False,
             note: Callable[[str], None] = lambda sentence: None) -> tuple[Tensor, Tensor | None]:
    """Features (N, D) of all examples, and log-probabilities (N, K) or None, of the space's type; on the CPU.

    `cache`: take them from the cache folder or put them there, if the space is worth it; `note` takes a sentence where
    another process has to be waited for.
    """

    @torch.no_grad()
    def compute() -> dict[str, Tensor]:
        described = [space.describe(batch) for batch in batches(data, space.block, space.device)]
        tensors = {"features": torch.cat([x.to("cpu", space.dtype) for x, _ in described])}
        if classes := [p.to("cpu", space.dtype) for _, p in described if p is not None]:
            tensors["log_probabilities"] = torch.cat(classes)
        return tensors

    @torch.no_grad()
    def valid(tensors: dict[str, Tensor]) -> bool:
        x, p = space.describe(data.batch(torch.arange(1), space.device))
        expected = {"features": x} | ({} if p is None else {"log_probabilities": p})
        return {name: (len(data), *one.shape[1:], space.dtype) for name, one in expected.items()} \
            == {name: (*tensor.shape, tensor.dtype) for name, tensor in tensors.items()}

    if cache and space.identity is not None and data.fingerprint:
        tensors = cached("features", {"space": space.identity, **_identity(data)}, compute, valid, note)
    else:
        tensors = compute()
    return tensors["features"], tensors.get("log_probabilities")


def _identity(data: Dataset) -> dict[str, Any]:
    """What identifies these examples."""
    return {"spec": data.spec.model_dump(mode="json"), "fingerprint": data.fingerprint, "split": data.split,
            "examples": len(data), "offset": data.offset, "drawn": data.drawn, "protocol": data.protocol}
