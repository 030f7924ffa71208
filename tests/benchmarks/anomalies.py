"""Anomaly detection through the command line, beside scikit-learn's isolation forest and its PCA.

    GENCLI_DATA=... python tests/benchmarks/anomalies.py [mammography] [0 1 ... 9]

`mammography`: half of the rows without the microcalcifications, the class '1', are learnt; the other half is judged,
with those. A digit: MNIST without it is learnt, and the test set judged, with it. Prints the area under the ROC curve
of each score of each family. The baselines see the same examples: the forest has its defaults and 256 trees, PCA as
many components as explain 90% of the variance, and its score is the squared error of what these leave.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score

from gencli.data import load

TABLE = {"gaussian": [], "gmm": ["--components", "20"], "flow": ["--epochs", "30"], "rbm": ["--epochs", "60"],
         "vae": ["--epochs", "60", "--latent", "3"]}
DIGITS = {"gaussian": [], "rbm": ["--binarize", "dynamic", "--hidden", "200", "--steps", "1500"],
          "vae": ["--binarize", "dynamic", "--net", "mlp", "--steps", "1500"]}


def gencli(*args: str | Path) -> bytes:
    return subprocess.run([sys.executable, "-m", "gencli", *map(str, args)], check=True, stdout=subprocess.PIPE).stdout


def measure(data: str, anomaly: str, reading: dict[str, str], families: dict[str, list[str]]) -> None:
    """A line of numbers for each family, and one for each baseline."""
    options = [part for name, value in reading.items() for part in (f"--{name}", value)]
    for family, own in families.items():
        with tempfile.TemporaryDirectory() as folder:
            gencli("train", family, data, "-o", f"{folder}/run", "-q", *options, "--without", anomaly, *own)
            found = gencli("evaluate", f"{folder}/run", f"{data}:test", "--anomalies", anomaly, "--json", "-q",
                           "--metrics", "likelihood,reconstruction", *(["--set", "particles=20"] * (family == "vae")))
        numbers = {m["name"]: m for m in json.loads(found)["metrics"] if m["name"].startswith("auroc_")}
        print(f"{Path(data).stem} {anomaly} {family}:", ", ".join(
            f"{name.removeprefix('auroc_')} {m['value']:.4f} ± {m['error']:.4f}" for name, m in numbers.items()),
            flush=True)
    normal = load(data, {**reading, "without": anomaly}, split="train")
    judged = load(data, reading, split="test", like=normal.spec, other_classes=True)
    assert judged.labels is not None
    anomalous = judged.labels.numpy() == judged.spec.classes.index(anomaly)
    train, test = (side.batch(torch.arange(len(side))).x.flatten(1).double().numpy() for side in (normal, judged))
    scale = train.std(0) if "label" in reading else 1.0
    train, test = (train - train.mean(0)) / scale, (test - train.mean(0)) / scale
    forest = IsolationForest(n_estimators=256, random_state=0).fit(train)
    pca = PCA(0.9, svd_solver="full").fit(train)
    residual = ((pca.inverse_transform(pca.transform(test)) - test) ** 2).sum(1)
    print(f"{Path(data).stem} {anomaly} IsolationForest {roc_auc_score(anomalous, -forest.score_samples(test)):.4f}, "
          f"PCA of {pca.n_components_} {roc_auc_score(anomalous, residual):.4f}", flush=True)


def main() -> None:
    for name in sys.argv[1:] or ["mammography", *map(str, range(10))]:
        if name == "mammography":
            table = Path(os.environ["GENCLI_DATA"]) / "tabular" / "mammography.csv"
            measure(str(table), "'1'", {"label": "7", "holdout": "0.5"}, TABLE)
        else:
            measure("mnist", name, {}, DIGITS)


if __name__ == "__main__":
    main()
