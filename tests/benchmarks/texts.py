"""Classes of texts, 10-fold accuracy: `naive-bayes`, and logistic regression on codes of `pca` (semantic indexing).

    GENCLI_DATA=... python tests/benchmarks/texts.py [--components 300] [--folds 10]

The data is rt-polarity (Pang & Lee 2005), `sentiment/` of GENCLI_DATA. Each fold's model has seen the texts of the
other folds alone. Beside them stands scikit-learn's naive Bayes on unigrams and bigrams.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline

from gencli.data import load
from gencli.dataset import Dataset
from gencli.families.naive_bayes import NaiveBayes, NaiveBayesConfig
from gencli.families.pca import PCA, PCAConfig
from gencli.model import Batch
from gencli.rng import ExampleStreams


def scores(data: Dataset, train: np.ndarray, components: int) -> np.ndarray:
    """Plain scores of all texts, by a model of some of them."""
    torch.manual_seed(0)
    model = PCA(PCAConfig(components=components, whiten=False), data.spec)
    for part in torch.from_numpy(train).split(1024):
        model.accumulate(data.batch(part))
    model.finish()
    everything = torch.arange(len(data))
    return model.encode(data.batch(everything), ExampleStreams(0, everything)).numpy()


def classified(data: Dataset, labels: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Classes of the texts `test` by naive Bayes of `train`."""
    model = NaiveBayes(NaiveBayesConfig(), data.spec.model_copy(update={"classes": ("neg", "pos")}))
    for part in torch.from_numpy(train).split(1024):
        batch = data.batch(part)
        model.accumulate(Batch(batch.x, torch.from_numpy(labels)[part], batch.lengths))
    model.finish()
    return model.classify(data.batch(torch.from_numpy(test))).argmax(1).numpy()


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--components", type=int, default=300, help="0: naive Bayes alone")
    arguments.add_argument("--folds", type=int, default=10)
    given = arguments.parse_args()
    source = Path(os.environ["GENCLI_DATA"]) / "sentiment"
    sides = [(source / f"rt-polarity.{side}").read_text().removesuffix("\n").split("\n") for side in ("neg", "pos")]
    texts, labels = np.array([*sides[0], *sides[1]]), np.repeat([0, 1], [len(side) for side in sides])
    with tempfile.TemporaryDirectory() as folder:
        for name, lines in (("train", texts), ("test", texts[:1])):
            (Path(folder) / f"{name}.txt").write_text("\n".join(lines) + "\n")
        data = load(folder, dict(lines=True, unit="words"))
    found: dict[str, list[float]] = {"pca": [], "naive-bayes": [], "scikit-learn's": []}
    folds = StratifiedKFold(given.folds, shuffle=True, random_state=0)
    for train, test in folds.split(texts, labels):
        if given.components:
            codes = scores(data, train, given.components)
            regression = LogisticRegression(max_iter=1000).fit(codes[train], labels[train])
            found["pca"].append(regression.score(codes[test], labels[test]))
        peer = make_pipeline(CountVectorizer(token_pattern=r"\w+|[^\w\s]", ngram_range=(1, 2)), MultinomialNB())
        found["naive-bayes"].append((classified(data, labels, train, test) == labels[test]).mean())
        found["scikit-learn's"].append(peer.fit(texts[train], labels[train]).score(texts[test], labels[test]))
        print({name: round(values[-1], 4) for name, values in found.items() if values}, flush=True)
    for name, values in found.items():
        if not values:
            continue
        print(f"{name}: {100 * np.mean(values):.2f} +- {100 * np.std(values, ddof=1) / len(values) ** 0.5:.2f} %")


if __name__ == "__main__":
    main()
