"""Texts with classes: 10-fold accuracy of `classifier` on rt-polarity (Pang & Lee 2005), `sentiment/` of GENCLI_DATA.

    GENCLI_DATA=... python tests/benchmarks/sentiment.py --net softmax [--epochs 4] [--lr 4e-3] [--folds 3] [--set ...]

Words, as `--unit words` has them, with a vocabulary of the training folds alone. `--set name=value` sets an option of
the family. Beside it stands naive Bayes of scikit-learn on unigrams and bigrams, of the same folds.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.model_selection import StratifiedKFold
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline

from gencli.data import load
from gencli.families.classifier import Classifier
from gencli.runs import build
from gencli.settings import TrainSettings
from gencli.trainer import Trainer


def fold(texts: dict[str, np.ndarray], labels: dict[str, np.ndarray], config: dict, settings: dict) -> float:
    """The accuracy on `test` of a classifier trained on `train`."""
    with tempfile.TemporaryDirectory() as folder:
        for split, lines in texts.items():
            rows = [{"text": text, "class": ("neg", "pos")[label]}
                    for text, label in zip(lines, labels[split], strict=True)]
            (Path(folder) / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        train = load(f"{folder}/train.jsonl:all", {"unit": "words"})
        test = load(f"{folder}/test.jsonl:all", {}, like=train.spec)
    torch.manual_seed(0)
    model = build("classifier", config, train.spec)
    own = TrainSettings(**{**Classifier.defaults, "preview_every": 0, **settings})
    steps = int(own.epochs * len(train) // own.batch_size)
    model = Trainer(model, train, own.model_copy(update={"steps": steps})).run().model.eval()
    with torch.no_grad():
        return float((model.classify(test.batch(torch.arange(len(test)))).argmax(1) == test.labels).float().mean())


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--net", default="softmax")
    arguments.add_argument("--folds", type=int, default=10)
    arguments.add_argument("--epochs", type=float)
    arguments.add_argument("--lr", type=float)
    arguments.add_argument("--weight-decay", type=float)
    arguments.add_argument("--batch-size", type=int)
    arguments.add_argument("--set", nargs="*", default=[])
    given = arguments.parse_args()
    config = {"net": given.net} | {name: json.loads(value) for name, value in (pair.split("=") for pair in given.set)}
    settings = {name: value for name in ("epochs", "lr", "weight_decay", "batch_size")
                if (value := getattr(given, name)) is not None}
    source = Path(os.environ["GENCLI_DATA"]) / "sentiment"
    sides = [(source / f"rt-polarity.{side}").read_text().removesuffix("\n").split("\n") for side in ("neg", "pos")]
    texts, labels = np.array([*sides[0], *sides[1]]), np.repeat([0, 1], [len(side) for side in sides])
    found: dict[str, list[float]] = {given.net: [], "naive Bayes": []}
    for train, test in [*StratifiedKFold(10, shuffle=True, random_state=0).split(texts, labels)][: given.folds]:
        parts = {"train": train, "test": test}
        found[given.net].append(fold({name: texts[own] for name, own in parts.items()},
                                     {name: labels[own] for name, own in parts.items()}, config, settings))
        peer = make_pipeline(CountVectorizer(token_pattern=r"\w+|[^\w\s]", ngram_range=(1, 2)), MultinomialNB())
        found["naive Bayes"].append(peer.fit(texts[train], labels[train]).score(texts[test], labels[test]))
        print({name: round(values[-1], 4) for name, values in found.items()}, flush=True)
    for name, values in found.items():
        print(f"{name}: {100 * np.mean(values):.2f} +- {100 * np.std(values, ddof=1) / len(values) ** 0.5:.2f} %")


if __name__ == "__main__":
    main()
