"""Texts as vectors: 10-fold accuracy of logistic regression on codes of `pca` (latent semantic indexing).

    GENCLI_DATA=... python tests/benchmarks/texts.py [--components 300] [--folds 10]

The data is rt-polarity (Pang & Lee 2005), `sentiment/` of GENCLI_DATA. Each fold's model is trained on the texts of the
other folds alone, through the command line. Beside it stands naive Bayes on unigrams and bigrams.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline


def codes_of(folder: Path, parts: dict[str, list[str]], components: int) -> dict[str, np.ndarray]:
    """Plain scores of the texts of each part, by a model of those of `train`."""
    folder.mkdir()
    for name, texts in parts.items():
        (folder / f"{name}.txt").write_text("\n".join(texts) + "\n")
    gencli("train", "pca", f"{folder}", "-o", f"{folder}-run", "--lines", "--unit", "words", "--components",
           str(components), "--no-whiten")
    for name in parts:
        gencli("encode", f"{folder}-run", f"{folder}:{name}", "-o", f"{folder}-run/{name}.npz")
    return {name: np.load(f"{folder}-run/{name}.npz")["codes"] for name in parts}


def gencli(*args: str) -> None:
    subprocess.run([sys.executable, "-m", "gencli", *args, "-q"], check=True)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--components", type=int, default=300)
    arguments.add_argument("--folds", type=int, default=10)
    given = arguments.parse_args()
    source = Path(os.environ["GENCLI_DATA"]) / "sentiment"
    sides = [(source / f"rt-polarity.{side}").read_text().splitlines() for side in ("neg", "pos")]
    texts, labels = np.array([*sides[0], *sides[1]]), np.repeat([0, 1], [len(side) for side in sides])
    found: dict[str, list[float]] = {"pca": [], "naive Bayes": []}
    folds = StratifiedKFold(given.folds, shuffle=True, random_state=0)
    for train, test in folds.split(texts, labels):
        with tempfile.TemporaryDirectory() as folder:
            parts = {"train": list(texts[train]), "test": list(texts[test])}
            codes = codes_of(Path(folder) / "texts", parts, given.components)
        regression = LogisticRegression(max_iter=1000).fit(codes["train"], labels[train])
        found["pca"].append(regression.score(codes["test"], labels[test]))
        peer = make_pipeline(CountVectorizer(token_pattern=r"\w+|[^\w\s]", ngram_range=(1, 2)), MultinomialNB())
        found["naive Bayes"].append(peer.fit(texts[train], labels[train]).score(texts[test], labels[test]))
        print({name: round(values[-1], 4) for name, values in found.items()}, flush=True)
    for name, values in found.items():
        print(f"{name}: {100 * np.mean(values):.2f} +- {100 * np.std(values, ddof=1) / len(values) ** 0.5:.2f} %")


if __name__ == "__main__":
    main()
