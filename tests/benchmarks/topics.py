"""Topics of held-out texts: perplexity of a word by `lda` beside scikit-learn's LatentDirichletAllocation.

    GENCLI_DATA=... python tests/benchmarks/topics.py [--topics 20] [--epochs 5] [--data rt-polarity,shakespeare]

The data is rt-polarity (`sentiment/` of GENCLI_DATA) and the lines of tiny Shakespeare, every tenth text held out. Both
see the same counts, batches of 128 and the same alpha, eta, offset and decay, and both are judged twice: by
scikit-learn's `perplexity`, which is given the topics of either, and by the bound that gencli reports. Beside them
stands `lda` as it is by default, with an alpha that is learnt.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.decomposition import LatentDirichletAllocation
from sklearn.decomposition._online_lda_fast import _dirichlet_expectation_2d

import gencli
from gencli.data import load
from gencli.dataset import Dataset
from gencli.families.lda import LDA


def texts(name: str) -> list[str]:
    """The texts of a data set."""
    if name == "shakespeare":
        data = load("shakespeare:all", dict(lines=True))
        return [data.spec.tokenizer.decode(piece.tolist()) for piece in data.batch(torch.arange(len(data))).pieces()]
    folder = Path(os.environ["GENCLI_DATA"]) / "sentiment"
    both = "".join((folder / f"rt-polarity.{side}").read_text() for side in ("neg", "pos"))
    return [line for line in both.split("\n") if line]


def counts(model: LDA, data: Dataset) -> csr_matrix:
    """How often each word is in each text."""
    words = model._words(data.batch(torch.arange(len(data))))
    return csr_matrix((words.values.numpy(), words.columns.numpy(), words.starts.numpy()), (len(words), words.width))


def bound(model: LDA, data: Dataset, topics: np.ndarray) -> float:
    """Perplexity of a word by the bound of gencli, with these topics."""
    model.topics.data = torch.from_numpy(topics)
    with torch.no_grad():
        nats, words = zip(*(model._bound(data.batch(part)) for part in torch.arange(len(data)).split(256)), strict=True)
    return float((-torch.cat(nats).sum() / torch.cat(words).sum()).exp())


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--topics", type=int, default=20)
    arguments.add_argument("--epochs", type=int, default=5)
    arguments.add_argument("--data", default="rt-polarity,shakespeare")
    given = arguments.parse_args()
    for name in given.data.split(","):
        lines = texts(name)
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as run:
            for split, own in (("test", lines[::10]), ("train", [line for i, line in enumerate(lines) if i % 10])):
                (Path(folder) / f"{split}.txt").write_text("\n".join(own) + "\n")
            fitted, seconds = {}, {}
            for alpha in (1 / given.topics, None):
                start = time.process_time()
                gencli.train("lda", folder, f"{run}/{alpha}", lines=True, unit="words", topics=given.topics,
                             epochs=given.epochs, preview_every=0, **({"alpha": alpha} if alpha else {}))
                fitted[alpha], seconds[alpha] = gencli.load(f"{run}/{alpha}"), time.process_time() - start
            model, learnt = fitted[1 / given.topics], fitted[None]
            train, test = (load(f"{folder}:{split}", like=model.spec) for split in ("train", "test"))
        assert isinstance(model, LDA) and isinstance(learnt, LDA)
        x, held_out = counts(model, train), counts(model, test)
        start = time.process_time()
        peer = LatentDirichletAllocation(given.topics, learning_method="online", batch_size=128, max_iter=given.epochs,
                                         random_state=0)
        order = np.random.default_rng(0).permutation(x.shape[0])
        peer.fit(x[order])
        theirs, peer_seconds = peer.components_, time.process_time() - start
        print(f"{name}: {x.shape[0]} texts of {x.sum() / x.shape[0]:.1f} words, {x.shape[1]} different; "
              f"{held_out.shape[0]} held out")
        for who, topics, took in (("lda", model.topics.detach().numpy().copy(), seconds[1 / given.topics]),
                                  ("scikit-learn's", theirs, peer_seconds)):
            peer.components_, peer.exp_dirichlet_component_ = topics, np.exp(_dirichlet_expectation_2d(topics))
            print(f"  {who}: {peer.perplexity(held_out):.1f} by scikit-learn, {bound(model, test, topics):.1f} by "
                  f"gencli; {took:.0f} s", flush=True)
        print(f"  lda, alpha learnt: {bound(learnt, test, learnt.topics.detach().numpy()):.1f} by gencli; "
              f"{seconds[None]:.0f} s")
        overall = np.asarray(x.sum(0))[0] + 1
        words = held_out @ np.log(overall / overall.sum())
        print(f"  one topic, words as often as in training (one added): {np.exp(-words.sum() / held_out.sum()):.1f}")


if __name__ == "__main__":
    main()
