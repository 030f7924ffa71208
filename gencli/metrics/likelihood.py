"""Likelihoods and bounds of a model on data, in nats, and what follows from them: bits per dimension, perplexity."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gencli.data.dataset import Dataset
from gencli.data.text import detokenize
from gencli.kinds.audio import AudioSpec
from gencli.kinds.text import TextSpec
from gencli.metrics import Column, Found, Inputs, Metric, Progress, silent
from gencli.metrics.estimates import blocks, mean, protocol
from gencli.model import Model, Score
from gencli.rng import ExampleStreams


def likelihood(inputs: Inputs) -> Iterator[Found]:
    """All scores of the family, for each example and on average, what follows from them, and its diagnoses."""
    model, data = inputs.model, inputs.examples
    assert model is not None
    scores = collect(model, data, seed=inputs.seed, options=inputs.options, progress=inputs.progress)
    for name, score in scores.items():
        yield Column(name, score.values if score.weight is None else score.values / score.weight, score.unit)
    metrics = [_metric(name, score, data, inputs.seed) for name, score in scores.items()]
    yield from metrics
    yield from _bits(metrics, scores, data)
    yield from _diagnoses(model, data, inputs.seed)


def collect(model: Model, data: Dataset, *, seed: int = 0, options: Mapping[str, Any] | None = None,
            progress: Progress = silent) -> dict[str, Score]:
    """The family's scores of all N examples: values (N,) float64 on the CPU.

    Args:
        seed: of the noise that bounds and estimates draw; that of an example depends on (seed, its number) alone.
        options: keyword options of the family's `scores`.
        progress: called with the examples done and their number.
    """
    parts: dict[str, list[Score]] = {}
    done = 0
    with torch.no_grad():
        for indices, batch in blocks(model, data):
            rng = ExampleStreams(seed, indices, "evaluate", model.device)
            for name, score in model.scores(batch, rng, **(options or {})).items():
                weight = None if score.weight is None else score.weight.double().cpu()
                parts.setdefault(name, []).append(replace(score, values=score.values.double().cpu(), weight=weight))
            done += len(batch)
            progress(done, len(data))
    return {name: replace(scores[0], values=torch.cat([score.values for score in scores]),
                          weight=torch.cat(weights) if (weights := [s.weight for s in scores if s.weight is not None])
                          else None)
            for name, scores in parts.items()}


def _metric(name: str, score: Score, data: Dataset, seed: int) -> Metric:
    return mean(name, score.values, score.unit, score.kind, protocol(data, seed, **score.protocol), score.weight)


def _bits(metrics: list[Metric], scores: dict[str, Score], data: Dataset) -> list[Metric]:
    """Bits per dimension of discrete data; perplexity and bits per character of text."""
    if isinstance(data.spec, TextSpec):
        return [bits for metric in metrics if metric.name == "nll"
                for bits in _of_text(metric, scores["nll"], data, data.spec)]
    if isinstance(data.spec, AudioSpec):
        return [_scaled(metric, "bpd", 1 / math.log(2), "bits/sample") for metric in metrics if metric.name == "nll"]
    # A density has no bits: its nats hang on the unit of x.
    of_data = [m for m in metrics if m.unit == "nats" and not m.protocol.get("density")
               and (m.name == "nll" or m.kind == "bound")]
    if not data.spec.levels or not of_data:
        return []
    best = min(of_data, key=lambda metric: (metric.name != "nll", metric.value))
    return [_scaled(best, "bpd", 1 / (data.spec.size * math.log(2)), "bits/dimension")]


def _of_text(nll: Metric, score: Score, data: Dataset, spec: TextSpec) -> list[Metric]:
    perplexity = math.exp(min(nll.value, 700.0))  # what a float holds
    error = None if nll.error is None else perplexity * nll.error
    per_token = replace(nll, name="perplexity", value=perplexity, error=error, unit="per token",
                        protocol={**nll.protocol, "from": "nll"})
    if spec.unit == "characters":
        return [per_token, _scaled(nll, "bpc", 1 / math.log(2), "bits/character")]
    per_character = mean("bpc", score.values / math.log(2), "bits/character", nll.kind,
                         {**nll.protocol, "from": "nll"}, _characters(data, spec))
    return [per_token, per_character]


def _scaled(metric: Metric, name: str, factor: float, unit: str) -> Metric:
    error = None if metric.error is None else metric.error * factor
    return replace(metric, name=name, value=metric.value * factor, error=error, unit=unit,
                   protocol={**metric.protocol, "from": metric.name})


def _characters(data: Dataset, spec: TextSpec) -> Tensor:
    """(N,) characters of every text; the end of a line is one."""
    counts = []
    for i in range(0, len(data), 1024):
        batch = data.batch(torch.arange(i, min(i + 1024, len(data))))
        lengths = [batch.x.shape[1]] * len(batch) if batch.lengths is None else batch.lengths.tolist()
        counts += [len(detokenize(tokens[:length], spec)) + spec.lines
                   for tokens, length in zip(batch.x, lengths, strict=True)]
    return torch.tensor(counts)


def _diagnoses(model: Model, data: Dataset, seed: int) -> list[Metric]:
    with torch.no_grad():
        return [Metric(d.name, d.value, d.error, len(data), d.unit, d.kind, protocol(data, seed, **d.protocol))
                for d in model.diagnose(batch for _, batch in blocks(model, data))]
