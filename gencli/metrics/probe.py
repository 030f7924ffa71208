"""Linear probe: how well a linear classifier tells the classes of examples from their codes, with few labels.

Alain & Bengio 2017, "Understanding intermediate layers using linear classifier probes", arXiv:1610.01644; few labels a
class, several draws of them. The classifier is scikit-learn's logistic regression, on features centred and divided by
one number for all, so that the mean of their squared norm is 1.
"""

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from gencli import inference, registry
from gencli.dataset import Dataset
from gencli.errors import DataError, ModelError, install
from gencli.metrics import Found, Inputs, Metric
from gencli.metrics.estimates import protocol
from gencli.metrics.features import features
from gencli.rng import derive_seed, generator

_LABELS = (10, 100)  # a class
_DRAWS = 5
_STRENGTHS = [1.0, 10.0, 100.0, 1000.0]  # of the fit to the labels, against the norm of the weights: C
_FOLDS = 3
_MOST = 10_000  # training examples, without their labels, that PCA is fitted to

Array = np.ndarray[Any, np.dtype[np.float64]]


def probe(inputs: Inputs) -> Iterator[Found]:
    """Accuracy on held-out examples of a linear classifier: `probe_10` on codes with 10 labels a class, `probe_100`.

    Beside it stand the same of the plain features of the kind, e.g. pixels (`probe_10_plain`), and of as many
    principal components of these as a code has numbers (`probe_10_pca`), where these are fewer. Means over 5 draws of
    the labelled examples, the same for all; the error is that of the draws. How much the weights are held back is
    chosen on the first draw, by cross-validation.

    Raises:
        DataError: data without classes; a class with less than 10 training examples.
        ModelError: scikit-learn is not installed.
    """
    model, training, held_out = inputs.model, inputs.training, inputs.examples
    assert model is not None and training is not None
    for data in (training, held_out):
        if data.labels is None or not data.spec.classes:
            raise DataError(f"{data.name} has no classes, which metric 'probe' tells apart; train and evaluate with "
                            f"labels (a table: --label COLUMN)")
    assert training.labels is not None and held_out.labels is not None
    members = {name: (training.labels == k).nonzero()[:, 0] for k, name in enumerate(training.spec.classes)
               if (held_out.labels == k).any()}
    rarest = min(members, key=lambda name: len(members[name]))
    counts = [count for count in _LABELS if count <= len(members[rarest])]
    if len(counts) < len(_LABELS):
        told = f"{training.name}: class {rarest!r} has {len(members[rarest])} training examples"
        if not counts:
            raise DataError(f"{told}; metric 'probe' needs {_LABELS[0]} of each class")
        inputs.note(f"{told}, so that a probe with {_LABELS[-1]} labels a class is left out")
    draws = {count: [_draw(members, count, inputs.seed, i) for i in range(_DRAWS)] for count in counts}
    used = torch.cat([places for several in draws.values() for places in several]).unique()
    labelled = training.take(used)
    assert labelled.labels is not None
    y, truth = labelled.labels.numpy(), held_out.labels.numpy()
    done, total = 0, 3 * len(counts) * _DRAWS
    for suffix, (train, test) in _spaces(inputs, labelled):
        train, test = _scaled(train, test)
        for count, several in draws.items():
            if inputs.time_is_up():
                return
            rows = [torch.searchsorted(used, places).numpy() for places in several]
            strength = _strength(train[rows[0]], y[rows[0]], inputs.seed)
            accuracies = []
            for row in rows:
                accuracies.append(float((_regression(strength).fit(train[row], y[row]).predict(test) == truth).mean()))
                done += 1
                inputs.progress(done, total)
            found = torch.tensor(accuracies, dtype=torch.float64)
            record = protocol(held_out, inputs.seed, labels=count, draws=_DRAWS, dimensions=train.shape[1], C=strength,
                              classifier="LogisticRegression")
            yield Metric(f"probe_{count}{suffix}", float(found.mean()), float(found.std()) / _DRAWS**0.5, len(held_out),
                         "", "estimate", record)


def _draw(members: dict[str, torch.Tensor], count: int, seed: int, number: int) -> torch.Tensor:
    """The places of `count` training examples of each class."""
    source = generator(seed, "probe", count, number)
    return torch.cat([own[torch.randperm(len(own), generator=source)[:count]] for own in members.values()])


def _spaces(inputs: Inputs, labelled: Dataset) -> Iterator[tuple[str, tuple[Array, Array]]]:
    """By the end of their name: features of the labelled and of the held-out examples, (N, D) each."""
    assert inputs.training is not None
    codes = _codes(inputs, labelled, inputs.examples)
    yield "", codes
    names = registry.kind_of(inputs.examples.spec).spaces
    if not names:
        return
    space, size = registry.features[names[0]].load()(inputs), codes[0].shape[1]
    train, test = (features(space, data)[0].double().numpy() for data in (labelled, inputs.examples))
    yield "_plain", (train, test)
    every = features(space, inputs.training.subset(_MOST))[0].double().numpy()
    if size < min(every.shape):
        pca = _scikit("decomposition").PCA(size, random_state=_seed(inputs.seed)).fit(every)
        yield "_pca", (pca.transform(train), pca.transform(test))


def _codes(inputs: Inputs, *sides: Dataset) -> tuple[Array, Array]:
    """Codes as rows, filled up with 0 where examples have lengths of their own."""
    assert inputs.model is not None
    options = inference.own_options(inputs.model.encode, dict(inputs.options))
    parts = [[codes.flatten(1).double().nan_to_num() for codes, _, _ in
              inference.encode(inputs.model, side, inputs.seed, **options)] for side in sides]
    width = max(codes.shape[1] for blocks in parts for codes in blocks)
    train, test = (torch.cat([torch.nn.functional.pad(codes, (0, width - codes.shape[1])) for codes in blocks]).numpy()
                   for blocks in parts)
    return train, test


def _scaled(train: Array, test: Array) -> tuple[Array, Array]:
    centre = train.mean(0)
    scale = np.sqrt(np.square(train - centre).sum(1).mean()) or 1.0
    return (train - centre) / scale, (test - centre) / scale


def _strength(x: Array, y: Array, seed: int) -> float:
    """The C that serves the classes of examples best which were not fitted."""
    selection = _scikit("model_selection")
    folds = selection.StratifiedKFold(_FOLDS, shuffle=True, random_state=_seed(seed))
    search = selection.GridSearchCV(_regression(1.0), {"C": _STRENGTHS}, cv=folds, refit=False).fit(x, y)
    return float(search.best_params_["C"])


def _regression(strength: float) -> Any:
    return _scikit("linear_model").LogisticRegression(C=strength, max_iter=1000, tol=1e-3)


def _scikit(name: str) -> Any:
    try:
        return importlib.import_module(f"sklearn.{name}")
    except ImportError as error:
        raise ModelError(f"linear probes need the package scikit-learn: {install('metrics')}") from error


def _seed(seed: int) -> int:
    """A seed of 32 bits."""
    return derive_seed(seed, "probe") % 2**32
