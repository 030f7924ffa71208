"""Gradient-boosted trees as judges of tables: whether they tell samples from rows, and whether they learn from samples.

The trees are those of scikit-learn (`HistGradientBoostingClassifier`, with its defaults), which take words as words and
missing cells as they are.
"""

import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gencli.dataset import Dataset
from gencli.errors import DataError, ModelError, UsageError, install
from gencli.kinds.vector import VectorSpec
from gencli.metrics import Found, Inputs, Metric
from gencli.metrics.distribution import comparable
from gencli.metrics.estimates import protocol
from gencli.rng import derive_seed, generator

_FOLDS = 3
_ROUNDS = 20  # of the bootstrap
_MOST_WORDS = 255  # that the trees take as words
_LEAST = 20  # rows of each side


def c2st(inputs: Inputs) -> Iterator[Found]:
    """Classifier two-sample test: `c2st`, 2 (1 - max(AUC, 1/2)), of samples against held-out rows.

    1: trees tell the two apart as little as chance, 0: always. AUC is the area under the ROC curve on the third of the
    rows that the trees have not seen, the mean over three folds, stratified; equally many of each side, as many as
    there are. (The detection score of SDMetrics, as in Zhang et al. 2024, arXiv:2310.09656, with boosted trees in place
    of its logistic regression.) More rows are a harder test: numbers compare only for equally many. Against training
    rows, of which there are more, and which published numbers are of, it is `c2st_training`.

    Raises:
        DataError: fewer than 20 rows on a side.
        ModelError: scikit-learn is not installed.
    """
    samples, reference = comparable(inputs)
    sides = [("c2st", reference)] + ([("c2st_training", inputs.training)] if inputs.training is not None else [])
    for i, (name, data) in enumerate(sides):
        count = min(len(samples), len(data))
        if count < _LEAST:
            raise DataError(f"samples: {len(samples)}, rows of {data.name}: {len(data)}; at least {_LEAST} of each are "
                            f"needed to test whether they differ")
        parts = [_some(side, count, inputs.seed, name) for side in (samples, data)]
        x, y = torch.cat(parts), torch.arange(2).repeat_interleave(count)
        folds = _scikit("model_selection").StratifiedKFold(_FOLDS, shuffle=True, random_state=_seed(inputs.seed))
        scores = []
        for train, test in folds.split(x, y):
            trees = _trees(reference.spec, x[train], y[train], inputs.seed)
            area = _area(y[test], torch.from_numpy(trees.predict_proba(x[test].numpy())))
            scores.append(2 * (1 - max(0.5, area)))
            inputs.progress(i * _FOLDS + len(scores), _FOLDS * len(sides))
        found = torch.tensor(scores, dtype=torch.float64)
        record = protocol(data, inputs.seed, rows=count, folds=_FOLDS, classifier="HistGradientBoostingClassifier")
        yield Metric(name, float(found.mean()), float(found.std()) / _FOLDS**0.5, count, "", "estimate", record)


def tstr(inputs: Inputs) -> Iterator[Found]:
    """Train on synthetic, test on real: `synthetic_auc` of the class of held-out rows, beside `real_auc`.

    Trees learn the class from samples, and from equally many training rows (Esteban et al. 2017, arXiv:1706.02633). Of
    several classes the areas under the curves of each against the others are averaged. The class is that of `--label`,
    or the last column of words. Error bars are from the bootstrap over the held-out rows.

    Raises:
        UsageError: no column of words, or samples without the class.
        DataError: a class that is lacking on one side.
        ModelError: scikit-learn is not installed.
    """
    samples, reference = comparable(inputs)
    training = inputs.training
    assert training is not None
    target, place = _target(reference)
    count = min(len(samples), len(training))
    test_x, test_y = _divided(reference, place, len(reference), inputs.seed)
    record = protocol(reference, inputs.seed, rows=count, column=target, classifier="HistGradientBoostingClassifier")
    for done, (name, data) in enumerate((("synthetic_auc", samples), ("real_auc", training)), 1):
        x, y = _divided(data, place, count, inputs.seed)
        if absent := sorted(set(test_y.tolist()) - set(y.tolist())):
            raise DataError(f"{data.name}: no row has class {_words(reference, place)[absent[0]]!r} of {target!r}; "
                            f"held-out rows have it: draw more with --draw")
        trees = _trees(reference.spec, x, y, inputs.seed, place)
        seen = torch.isin(y.unique(), test_y.unique())
        chances = torch.from_numpy(trees.predict_proba(test_x.numpy()))[:, seen]
        source = generator(inputs.seed, "tstr")
        drawn = [torch.randint(len(test_y), (len(test_y),), generator=source) for _ in range(_ROUNDS)]
        areas = [_area(test_y[rows], chances[rows]) for rows in drawn
                 if len(test_y[rows].unique()) == chances.shape[1]]
        error = float(torch.tensor(areas).std()) if len(areas) > 1 else None
        inputs.progress(done, 2)
        yield Metric(name, _area(test_y, chances), error, len(test_y), "", "estimate", record)


def _area(y: Tensor, chances: Tensor) -> float:
    """Area under the ROC curve, of several classes the mean of each against the others."""
    if chances.shape[1] < 2:
        raise DataError("held-out rows have one class alone; nothing is to be told apart")
    chances = chances / chances.sum(1, keepdim=True)
    return float(_scikit("metrics").roc_auc_score(y, chances[:, 1] if chances.shape[1] == 2 else chances,
                                                  multi_class="ovr"))


def _target(data: Dataset) -> tuple[str, int | None]:
    """Name of the class, and its column; None: it is apart from the columns."""
    spec = data.spec
    assert isinstance(spec, VectorSpec)
    if data.labels is not None:
        return (spec.label[0] if spec.label else "class"), None
    words = [i for i, column in enumerate(spec.columns) if column.coded]
    if not words:
        raise UsageError("metric 'tstr' learns a class, and no column holds words; name one with --label")
    return spec.names[words[-1]], words[-1]


def _words(data: Dataset, place: int | None) -> tuple[str, ...]:
    return data.spec.classes if place is None else data.spec.columns[place].values  # type: ignore[attr-defined]


def _divided(data: Dataset, place: int | None, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Some rows without the class, and the class (N,) int64; rows where it is missing are left out."""
    chosen = _order(data, count, seed, "tstr")
    x = data.batch(chosen).x.double()
    if place is None:
        if data.labels is None:
            raise UsageError(f"metric 'tstr' needs the class, and {data.name} comes without; train the model without "
                             f"--label, and it is a column of the samples")
        return x, data.labels[chosen]
    y = x[:, place]
    others = torch.cat([x[:, :place], x[:, place + 1 :]], dim=1)
    return others[~y.isnan()], y[~y.isnan()].long()


def _some(data: Dataset, count: int, seed: int, name: str) -> Tensor:
    return data.batch(_order(data, count, seed, name)).x.double()


def _order(data: Dataset, count: int, seed: int, name: str) -> Tensor:
    return torch.randperm(len(data), generator=generator(seed, name, "rows"))[:count]


def _trees(spec: Any, x: Tensor, y: Tensor, seed: int, without: int | None = None) -> Any:
    """Boosted trees that tell the classes y (N,) of rows x (N, D) apart; column `without` of the spec is not there."""
    words = [column.coded and len(column.values) <= _MOST_WORDS
             for i, column in enumerate(spec.columns) if i != without]
    trees = _scikit("ensemble").HistGradientBoostingClassifier(categorical_features=words, random_state=_seed(seed))
    return trees.fit(x.numpy(), y.numpy())


def _scikit(name: str) -> Any:
    try:
        return importlib.import_module(f"sklearn.{name}")
    except ImportError as error:
        raise ModelError(f"boosted trees need the package scikit-learn: {install('metrics')}") from error


def _seed(seed: int) -> int:
    """A seed of 32 bits."""
    return derive_seed(seed, "trees") % 2**32
