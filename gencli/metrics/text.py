"""Samples of text: how varied they are, how much of them is copied from the training data, how surprising they are.

An n-gram is a run of n words or punctuation marks, whatever a token of the model is.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from gencli.dataset import Dataset
from gencli.errors import DataError
from gencli.kinds.text import TextSpec
from gencli.metrics import CONFIDENCE, Found, Inputs, Metric
from gencli.metrics.estimates import mean, protocol
from gencli.metrics.likelihood import collect

Ngram = tuple[str, ...]

_READ, _STRETCHES = 2**27, 64  # tokens of a text too large for memory that are searched, and in how many stretches
_WORD = re.compile(r"\w+|[^\w\s]")
_ORDERS = (1, 2, 3, 4, 8)
_GROUPS = 20  # that the jackknife leaves out in turn
_SCORED = 64  # samples, and held-out texts, whose surprise is measured
_FAR = 0.1  # by which share samples are worse than held-out text where that is worth a warning


def text(inputs: Inputs) -> Iterator[Found]:
    """`distinct_1` ... `distinct_8`, and with training data `copied_1` ... `copied_8`; orders for
    which no sample is long enough are left out.

    distinct_n: different n-grams over all n-grams of the samples (Li et al. 2016, arXiv:1510.03055); it falls with the
    number of samples. copied_n: share of the n-grams that occur in the training data; that of held-out text, `held_out`
    in the protocol, is what new text has in common with it anyway.
    """
    assert inputs.samples is not None
    samples, reference = [*_words(inputs.samples)], [*_words(_part(inputs.examples))]
    training, occurring, searched = inputs.training, {}, {}
    if training is not None:
        part = _part(training)
        if len(part) < len(training):
            inputs.note(f"what samples have copied is looked for in {len(part):,} of {len(training):,} passages of "
                        f"the training data, in stretches that are spread over all of it")
            searched = {"training_passages": len(part)}
        occurring = _occurring(part, {n: {ngram for words in (*samples, *reference) for ngram in _ngrams(words, n)}
                                      for n in _ORDERS})
    for n in _ORDERS:
        drawn = [_ngrams(words, n) for words in samples]
        if not any(drawn):
            continue
        record = protocol(inputs.examples, inputs.seed, samples=len(samples), ngrams=sum(map(len, drawn)))
        yield _distinct(n, drawn, record)
        if training is not None:
            trained = occurring[n]
            new = [ngram for words in reference for ngram in _ngrams(words, n)]
            held_out = sum(ngram in trained for ngram in new) / len(new) if new else None
            copied = torch.tensor([sum(ngram in trained for ngram in ngrams) for ngrams in drawn])
            yield mean(f"copied_{n}", copied, "", "exact", {**record, "held_out": held_out, **searched},
                       torch.tensor([len(ngrams) for ngrams in drawn]))


def entropy(inputs: Inputs) -> Iterator[Found]:
    """`entropy_rate`: nats a token of the samples under the model that wrote them, estimated on the first of them; that
    of held-out text, `held_out` in the protocol, is measured on as many.

    A model that is right about its data has the same of both (Braverman et al. 2020, arXiv:1906.05664). Where its own
    samples are far worse, it does not know what to do with what it has written, and writes ever stranger things.
    """
    assert inputs.model is not None and inputs.samples is not None
    if inputs.examples.spec.condition is not None:
        return  # samples do not say what they are made from
    samples, examples = inputs.samples.subset(_SCORED), inputs.examples.subset(_SCORED)
    rates = []
    for data in (samples, examples):
        name, score = next(iter(collect(inputs.model, data, seed=inputs.seed).items()))
        record = protocol(inputs.examples, inputs.seed, samples=len(samples), score=name)
        rates.append(mean("entropy_rate", score.values, score.unit, "estimate", record, score.weight, data.blocks))
    own, held_out = rates
    error = math.hypot(own.error or 0, held_out.error or 0)
    if own.value - held_out.value > max(_FAR * abs(held_out.value), CONFIDENCE * error):
        inputs.notify(f"the samples are far worse than held-out text under the model itself: {own.value:.3g} "
                      f"{own.unit} against {held_out.value:.3g}; it goes astray in what it writes: train it for "
                      f"longer, or draw with --set temperature=0.8 or --set top_p=0.95")
    yield replace(own, protocol={**own.protocol, "held_out": held_out.value})


def _part(data: Dataset) -> Dataset:
    """All of data that is in memory; of a larger text some stretches, evenly spread, which are read in a minute."""
    if not data.mapped or data.examples.numel() <= _READ:
        return data
    size = -(-_READ // (_STRETCHES * data.examples.shape[1]))  # passages of one
    starts = torch.arange(_STRETCHES) * (len(data) - size) // (_STRETCHES - 1)
    return data.take((starts[:, None] + torch.arange(size)).unique())


def _occurring(data: Dataset, wanted: dict[int, set[Ngram]]) -> dict[int, set[Ngram]]:
    """By n, the wanted n-grams that occur in the data."""
    found: dict[int, set[Ngram]] = {n: set() for n in wanted}
    for words in _words(data):
        for n, ngrams in wanted.items():
            found[n] |= ngrams.intersection(_ngrams(words, n))
    return found


def _words(data: Dataset) -> Iterator[list[str]]:
    """The words and punctuation marks of every text."""
    spec = data.spec
    assert isinstance(spec, TextSpec)
    if not len(data):
        raise DataError(f"{data.name} contains no text to measure; at least one is needed")
    decode = spec.tokenizer.decode
    for part in torch.arange(len(data)).split(1024):
        yield from (_WORD.findall(decode(tokens.tolist())) for tokens in data.batch(part).pieces())


def _ngrams(words: list[str], n: int) -> list[Ngram]:
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def _distinct(n: int, texts: list[list[Ngram]], protocol: dict) -> Metric:
    """Different n-grams over all, with the error of a jackknife that leaves out groups of texts."""
    counts = Counter(ngram for ngrams in texts for ngram in ngrams)
    total = counts.total()
    without = []
    groups = min(_GROUPS, len(texts))
    for group in range(groups if groups > 1 else 0):
        left_out = Counter(ngram for ngrams in texts[group::groups] for ngram in ngrams)
        gone = sum(counts[ngram] == count for ngram, count in left_out.items())
        if total > left_out.total():
            without.append((len(counts) - gone) / (total - left_out.total()))
    return Metric(f"distinct_{n}", len(counts) / total, _jackknife(without), len(texts), "", "exact", protocol)


def _jackknife(estimates: Iterable[float]) -> float | None:
    values = list(estimates)
    centre = sum(values) / max(1, len(values))
    if len(values) < 2:
        return None
    return math.sqrt((len(values) - 1) / len(values) * sum((value - centre) ** 2 for value in values))
