"""Likelihood, reconstruction: against closed forms and a model whose numbers are known."""

import math

import pytest
import torch

from gencli import registry
from gencli.dataset import Dataset
from gencli.errors import ModelError, UsageError
from gencli.kinds.image import ImageSpec
from gencli.kinds.text import TextSpec
from gencli.kinds.vector import VectorSpec
from gencli.metrics import Column, Figure, Inputs, Metric, measure, needed
from gencli.metrics.estimates import mean
from gencli.metrics.likelihood import likelihood
from gencli.metrics.reconstruction import reconstruction
from gencli.model import Batch, Diagnostic, FamilyConfig, Model, Score

IMAGE = ImageSpec(channels=1, height=2, width=2, levels=2)


class Known(Model):
    """Scores that follow from the examples, and noise that follows from (seed, number)."""

    block = 4

    def __init__(self, spec, kind="bound"):
        super().__init__(FamilyConfig(), spec)
        self.unused = torch.nn.Parameter(torch.zeros(()))
        self.score_kind = kind

    def scores(self, batch, rng, *, particles=1):
        assert len(batch) == len(rng) <= self.block
        total = batch.x.flatten(1).double().sum(1)
        if isinstance(self.spec, TextSpec):
            return {"nll": Score(total, "nats/token", "exact", weight=batch.lengths)}
        return {"elbo": Score(total + 2, "nats", self.score_kind),
                "iw_bound": Score(total + 1, "nats", self.score_kind, protocol={"particles": particles}),
                "noisy": Score(rng.normal(1)[:, 0], "nats", "estimate")}

    def diagnose(self, batches):
        return [Diagnostic("examples", sum(len(batch) for batch in batches), "")]

    def encode(self, batch, rng):
        return batch.x + 0.1

    def decode(self, code, rng=None):
        return Batch(code)


def images(count, spec=IMAGE):
    examples = torch.randint(2, (count, *spec.shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return Dataset("toy", "test", spec, examples, fingerprint="abc", protocol={"binarize": "fixed"})


def given(model, data, **more):
    return Inputs(data, model, **more)


def by_name(found):
    return {metric.name: metric for metric in found if isinstance(metric, Metric)}


def test_mean_and_error_of_each_score():
    data = images(10)
    metrics = by_name(likelihood(given(Known(IMAGE), data, seed=3, options={"particles": 7})))
    totals = data.examples.double().flatten(1).sum(1)
    elbo = metrics["elbo"]
    assert elbo.value == pytest.approx(float(totals.mean()) + 2)
    assert elbo.error == pytest.approx(float(totals.std()) / math.sqrt(10))
    assert metrics["iw_bound"].record() == {
        "name": "iw_bound", "value": metrics["iw_bound"].value, "error": metrics["iw_bound"].error, "n": 10,
        "unit": "nats", "kind": "bound",
        "protocol": {"data": "toy", "split": "test", "fingerprint": "abc", "binarize": "fixed", "seed": 3,
                     "particles": 7},
        "interval": list(metrics["iw_bound"].ends)}
    assert next(iter(metrics)) == "elbo"


def test_noise_belongs_to_the_example_and_not_to_its_block():
    values = []
    for block in (3, 4, 10):
        model = Known(IMAGE)
        model.block = block
        metrics = by_name(likelihood(given(model, images(10), seed=1)))
        values.append(metrics["noisy"].value)
        assert metrics["examples"].value == 10
    assert values == pytest.approx([values[0]] * 3)
    assert values[0] != by_name(likelihood(given(Known(IMAGE), images(10), seed=2)))["noisy"].value


def test_bits_per_dimension_come_from_the_tightest_bound_of_discrete_data():
    metrics = by_name(likelihood(given(Known(IMAGE), images(6))))
    assert metrics["bpd"].value == pytest.approx(metrics["iw_bound"].value / (4 * math.log(2)))
    assert metrics["bpd"].error == pytest.approx(metrics["iw_bound"].error / (4 * math.log(2)))
    assert metrics["bpd"].protocol["from"] == "iw_bound" and metrics["bpd"].kind == "bound"
    assert "bpd" not in by_name(likelihood(given(Known(IMAGE, kind="estimate"), images(6))))  # no bound, no likelihood
    real = VectorSpec(columns=("a", "b"), mean=(0, 0), scale=(1, 1))
    assert "bpd" not in by_name(likelihood(given(Known(real), Dataset("toy", "test", real, torch.rand(6, 2)))))


def texts(unit, lines=False):
    vocabulary = {"characters": ("<unk>", "<end>", "a", "b"), "words": ("<unk>", "<end>", "abc", " de")}[unit]
    spec = TextSpec(vocabulary=vocabulary, unit=unit, length=4, lines=lines)
    examples = torch.tensor([[2, 3, 1, 0], [3, 2, 2, 1], [2, 1, 0, 0]] if lines else
                            [[2, 3, 2, 0], [3, 2, 2, 3], [2, 2, 0, 0]], dtype=torch.int32)
    return Dataset("toy", "test", spec, examples, lengths=(examples > 0).sum(1))


def test_text_is_weighted_by_its_tokens():
    data = texts("characters")
    totals, lengths = data.examples.double().sum(1), data.lengths.double()
    metrics = by_name(likelihood(given(Known(data.spec), data)))
    ratio = float(totals.sum() / lengths.sum())
    # The delta method by the textbook: var(R) = (s_y^2 + R^2 s_x^2 - 2 R s_xy) / (n mean(x)^2).
    cov = torch.cov(torch.stack([totals, lengths]))
    variance = (cov[0, 0] + ratio**2 * cov[1, 1] - 2 * ratio * cov[0, 1]) / (3 * lengths.mean() ** 2)
    assert metrics["nll"].value == pytest.approx(ratio)
    assert metrics["nll"].error == pytest.approx(math.sqrt(variance))
    assert metrics["perplexity"].value == pytest.approx(math.exp(ratio))
    assert metrics["perplexity"].error == pytest.approx(math.exp(ratio) * math.sqrt(variance))
    assert metrics["bpc"].value == pytest.approx(ratio / math.log(2))
    (column,) = measure(["likelihood"], given(Known(data.spec), data)).columns
    assert torch.equal(column.values, totals / lengths) and column.unit == "nats/token"


@pytest.mark.parametrize(("lines", "characters"), [(False, 3 + 2 + 3 + 2 + 3 + 3 + 2 + 3 + 3), (True, 6 + 9 + 4)])
def test_bits_per_character_of_words_count_the_characters(lines, characters):
    data = texts("words", lines)
    metrics = by_name(likelihood(given(Known(data.spec), data)))
    # "abc" has three, " de" three; the end of a line is one.
    counted = {False: [9, 12, 6], True: [7, 10, 4]}[lines]
    assert metrics["bpc"].value == pytest.approx(float(data.examples.sum()) / math.log(2) / sum(counted))
    assert metrics["bpc"].n == 3


def test_a_single_example_has_no_error():
    metrics = by_name(likelihood(given(Known(IMAGE), images(1))))
    assert metrics["elbo"].error is None and metrics["bpd"].error is None


def test_error_bars_cover():
    """In about 95 of 100 repetitions the truth lies within 1.96 standard errors."""
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(400):
        weight = torch.randint(1, 20, (60,), generator=generator).double()
        values = 2 * weight + torch.randn(60, generator=generator) * weight.sqrt()
        metric = mean("x", values, "", "exact", {}, weight)
        inside += abs(metric.value - 2) < 1.96 * metric.error
    assert 365 <= inside <= 393


def test_progress_counts_examples():
    calls = []
    list(likelihood(given(Known(IMAGE), images(10), progress=lambda done, total: calls.append((done, total)))))
    assert calls == [(4, 10), (8, 10), (10, 10)]


def test_reconstruction():
    metrics = by_name(reconstruction(given(Known(IMAGE), images(10))))
    assert metrics["reconstruction_mse"].value == pytest.approx(0.01, rel=1e-5)
    assert metrics["psnr"].value == pytest.approx(20, rel=1e-5) and metrics["psnr"].unit == "dB"
    assert metrics["psnr"].n == 10
    perfect = Known(IMAGE)
    perfect.encode = lambda batch, rng: batch.x
    assert by_name(reconstruction(given(perfect, images(5))))["psnr"].value == pytest.approx(100)


def test_records_are_json_even_of_what_was_not_measured():
    assert Metric("a", math.nan, math.inf, 3, "nats").record() == {
        "name": "a", "value": None, "error": None, "n": 3, "unit": "nats", "kind": "estimate", "protocol": {},
        "interval": None}


# --- the registry


def test_every_group_of_metrics_loads():
    for group in registry.metrics.values():
        assert callable(group.load()) and group.summary
        assert set(group.needs) <= {"model", "samples", "training"}
    with pytest.raises(UsageError, match="did you mean 'likelihood'"):
        registry.metrics.named("likelyhood")


def test_a_broken_plugin_is_named():
    with pytest.raises(ModelError, match=r"no\.such\.module:f"):
        registry.MetricGroup("broken", "no.such.module:f").load()


def test_what_is_needed_and_what_is_measured():
    model, data = Known(IMAGE), images(10)
    assert needed(["likelihood"], IMAGE, model) == {"model"}
    assert needed(["memorisation"], IMAGE) == {"samples", "training"}
    assert needed(None, IMAGE, model) >= {"model", "samples"}
    results = measure(None, given(model, data))  # no samples: what needs them is left out
    assert results.metrics[0].name == "elbo" and "psnr" in by_name(results.metrics)
    assert {column.name for column in results.columns} == {"elbo", "iw_bound", "noisy", "reconstruction_mse"}
    assert all(len(column.values) == 10 for column in results.columns)
    assert set(by_name(measure(["reconstruction"], given(model, data)).metrics)) == {"reconstruction_mse", "psnr"}
    assert not {c.name for c in measure(["reconstruction"], given(model, data, reconstruct=4)).columns}


@pytest.mark.parametrize(("names", "kind", "sentence"), [
    (["distribution"], "image", "'distribution' needs samples, which were not given"),
    (["reconstruction"], "text", "'reconstruction' compares values by their difference, which means nothing for texts"),
    (["nothing"], "image", "no metric is called 'nothing'")])
def test_what_cannot_be_measured(names, kind, sentence):
    data = images(10) if kind == "image" else texts("characters")
    with pytest.raises(UsageError, match=sentence):
        measure(names, given(Known(data.spec), data))


def test_a_model_that_cannot_decode_has_no_reconstruction():
    class Blind(Known):
        decode = Model.decode

    assert "psnr" not in by_name(measure(None, given(Blind(IMAGE), images(10))).metrics)
    with pytest.raises(UsageError, match="needs a model that can decode"):
        measure(["reconstruction"], given(Blind(IMAGE), images(10)))


def test_results_keep_numbers_columns_and_figures_apart():
    def found(inputs):
        yield Metric("a", 1, None, 3, "")
        yield Column("b", torch.zeros(3))
        yield Figure("c", torch.zeros(1, 2, 2), "Nothing.")

    from gencli.metrics import Results

    results = Results()
    results.add(found(None))
    assert [x[0].name for x in (results.metrics, results.columns, results.figures)] == ["a", "b", "c"]
