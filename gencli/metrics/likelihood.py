"""Likelihoods and bounds of a model on data, in nats, and what follows from them: bits per dimension, perplexity."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gencli import registry
from gencli.dataset import Dataset
from gencli.device import shared
from gencli.inference import own_options
from gencli.metrics import Column, Found, Inputs, Metric, Progress, silent
from gencli.metrics.estimates import blocks, mean, protocol
from gencli.model import Model, Score
from gencli.rng import ExampleStreams


def likelihood(inputs: Inputs) -> Iterator[Found]:
    """All scores of the family, for each example and on average, what follows from them, and its diagnostics."""
    model, data = inputs.model, inputs.examples
    assert model is not None
    scored = model.log_prob if type(model).scores is Model.scores else model.scores  # the default passes its options on
    scores = collect(model, data, seed=inputs.seed, options=own_options(scored, dict(inputs.options)),
                     progress=inputs.progress, time_is_up=inputs.time_is_up)
    data = data.subset(min((len(score.values) for score in scores.values()), default=None))
    for name, score in scores.items():
        yield Column(name, score.values if score.weight is None else score.values / score.weight, score.unit)
    metrics = [_metric(name, score, data, inputs.seed) for name, score in scores.items()]
    yield from metrics
    yield from _rates(metrics, scores, data)
    if not inputs.time_is_up():
        yield from _diagnostics(model, data, inputs.seed)


def collect(model: Model, data: Dataset, *, seed: int = 0, options: Mapping[str, Any] | None = None,
            progress: Progress = silent, time_is_up: Callable[[], bool] = lambda: False) -> dict[str, Score]:
    """The family's scores of all N examples, or of the first blocks: values (N,) float64 on the CPU.

    Processes that work together share the blocks.

    Args:
        seed: of the noise that bounds and estimates draw; that of an example depends on (seed, its number) alone.
        options: keyword options of the family's `scores`.
        progress: called with the examples done and their number.
        time_is_up: asked after each block whether that is to be the last.
    """
    parts: dict[str, list[Score]] = {}
    done = 0

    def scored(indices: Tensor) -> dict[str, Score]:
        rng = ExampleStreams(seed, indices, "evaluate", model.device)
        found = model.scores(data.batch(indices, model.device), rng, **(options or {}))
        return {name: replace(score, values=score.values.double().cpu(),
                              weight=None if score.weight is None else score.weight.double().cpu())
                for name, score in found.items()}

    with torch.no_grad():
        for scores in shared(torch.arange(len(data)).split(model.block), scored):
            for name, score in scores.items():
                parts.setdefault(name, []).append(score)
            done = min(done + model.block, len(data))
            progress(done, len(data))
            if time_is_up():
                break
    return {name: replace(scores[0], values=torch.cat([score.values for score in scores]),
                          weight=torch.cat(weights) if (weights := [s.weight for s in scores if s.weight is not None])
                          else None)
            for name, scores in parts.items()}


def _metric(name: str, score: Score, data: Dataset, seed: int) -> Metric:
    metric = mean(name, score.values, score.unit, score.kind, protocol(data, seed, **score.protocol), score.weight,
                  data.blocks)
    return replace(metric, common=score.protocol.get("log_z_error") or 0.0)


def _rates(metrics: list[Metric], scores: dict[str, Score], data: Dataset) -> Iterator[Metric]:
    """The best likelihood or bound in the other units of the kind of the examples."""
    of_data = [m for m in metrics if m.unit.startswith("nats") and (m.name == "nll" or m.kind == "bound")]
    if not of_data:
        return
    best = min(of_data, key=lambda metric: (metric.name != "nll", metric.value))
    record = {**best.protocol, "from": best.name}
    for rate in registry.kind_of(data.spec).rates(data.spec, data):
        if best.protocol.get("density") and not rate.density:
            continue  # a density has no bits: its nats depend on the unit of x
        if rate.exponential:
            value = math.exp(min(best.value, 700.0))  # what a float holds
            yield best.following(value, value, name=rate.name, unit=rate.unit, protocol=record)
        elif rate.per is not None:
            yield mean(rate.name, scores[best.name].values * rate.factor, rate.unit, best.kind, record, rate.per,
                       data.blocks)
        else:
            yield best.following(best.value * rate.factor, rate.factor, name=rate.name, unit=rate.unit,
                                 protocol=record)


def _diagnostics(model: Model, data: Dataset, seed: int) -> list[Metric]:
    with torch.no_grad():
        return [Metric(d.name, d.value, d.error, len(data), d.unit, d.kind, protocol(data, seed, **d.protocol))
                for d in model.diagnose(batch for _, batch in blocks(model, data))]
