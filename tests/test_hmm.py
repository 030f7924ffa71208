"""The hidden Markov model against enumeration of all paths, hmmlearn, and its own samples."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, multivariate_normal

from gencli import inference
from gencli.errors import DataError, UsageError
from gencli.families.hmm import HMM, HMMConfig, TextHMM
from gencli.kinds.series import SeriesSpec
from gencli.kinds.strokes import StrokesSpec
from gencli.kinds.text import TextSpec
from gencli.model import Batch, Model
from gencli.rng import ExampleStreams, generator

V, END = 5, TextSpec.END
TEXT = TextSpec(vocabulary=tuple(f"t{i}" for i in range(V)), length=12)
SERIES = SeriesSpec(columns=("a", "b"), length=5, mean=(1.0, -2.0), scale=(2.0, 0.5))
STROKES = StrokesSpec(length=6, scale=3.0)


def random_model(spec, states: int = 3, **options) -> HMM:
    """A model with parameters drawn at random."""
    torch.manual_seed(3)
    model = HMM(HMMConfig(states=states, **options), spec).eval()
    noise = {name: torch.rand(p.shape, generator=generator("hmm", name), dtype=torch.float64)
             for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(0.05 + 0.9 * noise[name] if "chances" in name else 0.1 + noise[name])
        model.start.div_(model.start.sum())
        total = model.transitions.sum(1) + (model.ends if model.ending else 0)
        model.transitions.div_(total[:, None])
        model.ends.div_(total) if model.ending else model.ends.zero_()
        if isinstance(model, TextHMM):
            chances = model.emission.chances
            chances.div_(chances.sum(1, keepdim=True))
        else:
            model.emission.means.copy_(3 * noise["emission.means"] - 1.5)
            if model.emission.full:
                model.emission.factor.copy_(torch.tril(model.emission.factor))
    return model


def streams(count: int, seed: int = 0) -> ExampleStreams:
    return ExampleStreams(seed, torch.arange(count))


def batch(spec, lengths=(5, 1, 3)) -> Batch:
    x = torch.rand(len(lengths), max(lengths), 3, generator=generator("x"))
    if isinstance(spec, TextSpec):
        x = (x[..., 0] * V).long()
    elif isinstance(spec, SeriesSpec):
        x = 4 * x[..., :2] - 2
    else:
        x[..., :2] = 9 * x[..., :2] - 4
        x[..., 2] = x[..., 2].round()
    for row, length in zip(x, lengths, strict=True):
        row[length:] = 0
    return Batch(x, lengths=torch.tensor(lengths))


def emission_of(model: HMM, state: int, step: torch.Tensor) -> float:
    """p(step | state), by scipy."""
    if isinstance(model, TextHMM):
        return float(model.emission.chances[state, step])
    factor, d = model.emission.factor[state], len(model.mean)
    factor = (factor if factor.dim() == 2 else factor.diag()).numpy()
    scale = np.diag(model.scale.numpy())
    mean = model.mean.numpy() + scale @ model.emission.means[state].numpy()
    covariance = scale @ factor @ factor.T @ scale
    known = ~step[:d].isnan().numpy()
    p = multivariate_normal(mean[known], covariance[np.ix_(known, known)]).pdf(step[:d][known].double()) \
        if known.any() else 1.0
    chances = model.emission.chances[state].tolist()
    return float(p) * math.prod(c if up else 1 - c for c, up in zip(chances, step[d:].tolist(), strict=True))


def enumerated(model: HMM, steps: torch.Tensor) -> dict[tuple[int, ...], float]:
    """p(steps, path) of every path."""
    paths = list(itertools.product(range(model.config.states), repeat=len(steps)))
    return dict(zip(paths, map(math.exp, log_joints(model, steps, paths)), strict=True))


def log_joints(model: HMM, steps: torch.Tensor, paths: Sequence[Sequence[int]]) -> list[float]:
    """log p(steps, path) of every path."""
    emission = [[math.log(emission_of(model, state, step)) for state in range(model.config.states)] for step in steps]
    start, moves, ends = (p.log().tolist() for p in (model.start, model.transitions, model.ends))
    return [start[path[0]] + sum(moves[a][b] for a, b in itertools.pairwise(path))
            + sum(row[state] for row, state in zip(emission, path, strict=True))
            + (ends[path[-1]] if model.ending else 0.0) for path in paths]


CASES = [(TEXT, {}), (SERIES, {"covariance": "full"}), (SERIES, {"covariance": "diagonal"}), (STROKES, {}),
         (SERIES.model_copy(update={"fixed": True}), {})]


@pytest.mark.parametrize(("spec", "options"), CASES)
def test_likelihood_and_path_are_those_of_all_paths(spec, options):
    model, data = random_model(spec, **options), batch(spec)
    ours = model.log_prob(data, streams(3))
    paths = model.encode(data, streams(3), code="path")
    for x, own, path in zip(data.pieces(), ours.tolist(), paths, strict=True):
        all_paths = enumerated(model, x)
        assert math.log(sum(all_paths.values())) == pytest.approx(own, abs=1e-10)
        assert tuple(path[: len(x)].int().tolist()) == max(all_paths, key=all_paths.get)
        assert path[len(x) :].isnan().all()


def test_missing_values_are_summed_out():
    model, data = random_model(SERIES, covariance="diagonal"), batch(SERIES)
    data.x[0, 1, 0] = data.x[0, 3] = torch.nan
    (own, *_) = model.log_prob(data, streams(3)).tolist()
    assert math.log(sum(enumerated(model, data.pieces()[0]).values())) == pytest.approx(own, abs=1e-10)
    decoded = model.decode(model.encode(data, streams(3)))
    known = ~data.x.isnan()
    assert torch.allclose(decoded.x[known], data.x[known], atol=1e-5) and decoded.x.isfinite().all()


@pytest.mark.parametrize(("spec", "options"), CASES)
def test_posteriors_are_those_of_all_paths(spec, options):
    model, data = random_model(spec, **options), batch(spec)
    there = torch.arange(5) < data.lengths[:, None]
    posterior, pairs, _ = model._smooth(model.emission.log_prob(model._rows(data, None)), there)
    expected, moves = torch.zeros_like(posterior), torch.zeros_like(pairs)
    for i, x in enumerate(data.pieces()):
        all_paths = enumerated(model, x)
        total = sum(all_paths.values())
        for path, p in all_paths.items():
            expected[i, torch.arange(len(x)), list(path)] += p / total
            for move in itertools.pairwise(path):
                moves[move] += p / total
    assert torch.allclose(posterior, expected, atol=1e-12) and torch.allclose(pairs, moves, atol=1e-12)


def test_no_outlier_is_impossible():
    model = random_model(SERIES, states=2, covariance="diagonal")
    with torch.no_grad():
        model.transitions.copy_(torch.eye(2) * (1 - model.ends)[:, None])
    data = batch(SERIES)
    data.x[0, 2] = 1e4
    assert model.log_prob(data, streams(3)).isfinite().all()


# --- hmmlearn


def theirs(model: HMM):
    """The same model in hmmlearn, in the units of the view."""
    hmm = pytest.importorskip("hmmlearn.hmm")
    k, options = model.config.states, {"init_params": "", "params": "stmc", "tol": 0, "implementation": "log"}
    if isinstance(model, TextHMM):
        other = hmm.CategoricalHMM(k, n_features=V, **(options | {"params": "ste"}))
        other.emissionprob_ = model.emission.chances.numpy().copy()
    else:
        name = "full" if model.emission.full else "diag"
        # No priors: by default hmmlearn has one on covariances.
        other = hmm.GaussianHMM(k, covariance_type=name, covars_prior=0, covars_weight=0, means_weight=0,
                                min_covar=0, **options)
        factor = model.emission.factor.clone()
        other.n_features = factor.shape[1]
        other.means_ = model.emission.means.numpy().copy()
        other.covars_ = (factor @ factor.mT if model.emission.full else factor.square()).numpy()
    other.startprob_, other.transmat_ = model.start.numpy().copy(), model.transitions.numpy().copy()
    return other


OF_HMMLEARN = [(TEXT, {}), (SERIES.model_copy(update={"fixed": True}), {"covariance": "full"}),
               (SERIES.model_copy(update={"fixed": True}), {"covariance": "diagonal"})]


@pytest.mark.parametrize(("spec", "options"), OF_HMMLEARN)
def test_likelihood_and_path_are_those_of_hmmlearn(spec, options):
    model, data = random_model(spec, 6, **options), batch(spec, (80, 120, 37))
    other = theirs(model)
    rows = model._rows(data, None)
    own, paths = model.log_prob(data, streams(3)), model.encode(data, streams(3), code="path")
    for i, steps in enumerate(data.pieces()):
        length = len(steps)
        x = rows[i, :length].reshape(length, -1).numpy()
        volume = 0.0 if isinstance(model, TextHMM) else length * float(model.scale.log().sum())
        assert float(own[i]) == pytest.approx(other.score(x) - volume, rel=1e-8)
        best, path = other.decode(x)  # of two paths that are as likely either may be found
        mine = paths[i, :length].int().tolist()
        assert log_joints(model, steps, [mine])[0] == pytest.approx(best - volume, rel=1e-8)
        assert mine == path.tolist() or isinstance(model, TextHMM)


@pytest.mark.parametrize(("spec", "options"), OF_HMMLEARN)
def test_em_steps_are_those_of_hmmlearn(spec, options):
    model, data = random_model(spec, 3, smoothing=0, floor=1e-9, **options), batch(spec, (80, 120, 37))
    other = theirs(model)
    other.n_iter = 3
    rows = model._rows(data, None)
    x = np.concatenate([row[:n].reshape(n, -1).numpy() for row, n in zip(rows, data.lengths.tolist(), strict=True)])
    other.fit(x, data.lengths.tolist())
    for _ in range(3):
        model.expect(data)
        model.maximise()
    assert np.allclose(model.start, other.startprob_, atol=1e-8)
    assert np.allclose(model.transitions, other.transmat_, atol=1e-8)
    if isinstance(model, TextHMM):
        assert np.allclose(model.emission.chances, other.emissionprob_, atol=1e-8)
    else:
        assert np.allclose(model.emission.means, other.means_, atol=1e-8)
        factor = model.emission.factor
        covariance = factor @ factor.mT if model.emission.full else torch.diag_embed(factor.square())
        assert np.allclose(covariance, other.covars_, atol=1e-8)


# --- EM


@pytest.mark.parametrize(("spec", "options"), CASES)
def test_the_penalised_likelihood_never_falls(spec, options):
    model = HMM(HMMConfig(states=3, smoothing=0.1, floor=0.2, tolerance=0, **options), spec)
    data, history = batch(spec, (5, 4, 3, 5, 2, 1, 5, 5)), []
    for phase in model.phases():
        for _ in range(30 if phase.name == "em" else 1):
            for part in torch.arange(8).split(3):
                phase.accumulate(data[part])
            phase.finish()
            if phase.report:
                history.append(phase.report())
    losses = [line["loss"] for line in history]
    assert len(losses) == 30 and all(b <= a + 1e-12 for a, b in itertools.pairwise(losses)) and losses[-1] < losses[0]
    assert model.alarm(history) is None
    assert "fell" in model.alarm([*history, {"loss": losses[-1] + 1e-3, "nll": 0.0}])
    total = model.transitions.sum(1) + model.ends
    assert torch.allclose(total, torch.ones_like(total)) and (model.ends > 0).all() == model.ending


def test_states_are_found_again():
    """Two states that stay for long, with means far apart."""
    truth = random_model(SERIES.model_copy(update={"fixed": True, "length": 50}), 2, covariance="full")
    with torch.no_grad():
        truth.transitions.copy_(torch.tensor([[0.9, 0.1], [0.2, 0.8]]))
        truth.emission.means.copy_(torch.tensor([[-3.0, 0.0], [3.0, 0.0]]))
    data = truth.sample(streams(200))
    model = HMM(HMMConfig(states=2), truth.spec)
    for phase in model.phases():
        for _ in range(10 if phase.name == "em" else 1):
            phase.accumulate(data)
            phase.finish()
    order = model.emission.means[:, 0].argsort()
    # Three standard errors of a share of some 3,000 transitions.
    assert torch.allclose(model.transitions[order][:, order], truth.transitions, atol=0.025)
    assert torch.allclose(model.emission.means[order], truth.emission.means, atol=0.1)


def test_few_passes_over_texts_beat_the_unigram():
    """Two kinds of tokens by turns, as vowels and consonants: from nearly equal states EM is slow to tell."""
    x = 2 + (torch.rand(40, 30, generator=generator("turns")) * 1.5).long() + torch.arange(30) % 2
    for seed in range(3):
        torch.manual_seed(seed)
        model = HMM(HMMConfig(states=4), TEXT)
        for _ in range(10):
            model.expect(Batch(x))
            model.maximise()
        assert model._nll < 0.75  # 0.64 with the turns known; 1.01 by the tokens' frequencies


def test_what_does_not_fit_is_refused():
    gaps = SERIES.model_copy(update={"missing": ("a",)})
    with pytest.raises(UsageError, match="--covariance diagonal"):
        HMM(HMMConfig(covariance="full"), gaps)
    assert not HMM(HMMConfig(), gaps).emission.full
    model = HMM(HMMConfig(states=20), SERIES)
    model._gather(batch(SERIES))
    with pytest.raises(DataError, match="only 9 different steps"):
        model._choose()


# --- codes and samples


@pytest.mark.parametrize(("spec", "options"), CASES)
def test_codes_give_the_examples_back(spec, options):
    model, data = random_model(spec, **options), batch(spec)
    decoded = model.decode(model.encode(data, streams(3)))
    assert torch.equal(decoded.lengths, data.lengths)
    if isinstance(model, TextHMM):
        assert torch.equal(decoded.x, data.x)
    else:
        assert torch.allclose(decoded.x, data.x, atol=1e-5)


def test_drawings_in_whole_numbers_come_back_exactly():
    spec = STROKES.model_copy(update={"integers": True})
    model, data = random_model(spec), batch(STROKES)
    data.x.round_()
    assert torch.equal(model.decode(model.encode(data, streams(3))).x, data.x)
    assert model.likelihood == "bound" and not model.density


def test_a_path_decodes_to_what_its_states_emit():
    for spec in (TEXT, SERIES, STROKES):
        model = random_model(spec)
        path = torch.tensor([[0.0, 2.0, 1.0], [2.0, math.nan, math.nan]])
        decoded = model.decode(path, path=True) if isinstance(model, TextHMM) else model.decode(path)
        assert decoded.lengths.tolist() == [3, 1]
        if isinstance(model, TextHMM):
            assert decoded.x[0].tolist() == model.emission.chances[[0, 2, 1]].argmax(1).tolist()
        else:
            d = len(model.mean)
            means = model.mean + model.scale * model.emission.means[[0, 2, 1]]
            assert torch.allclose(decoded.x[0, :, :d].double(), means, atol=1e-6)
            assert torch.equal(decoded.x[0, :, d:].bool(), model.emission.chances[[0, 2, 1]] > 0.5)
    with pytest.raises(DataError, match="states 0 to 2"):
        model.decode(torch.tensor([[0.0, 3.0]]))


def test_samples_have_the_distribution_of_the_model():
    """Texts of two tokens by their probabilities; lengths of drawings by the chain alone."""
    model = random_model(TEXT)
    x = torch.cat([b.x for b in inference.sample(model, range(6000), length=2)])
    pairs = torch.cartesian_prod(torch.arange(V), torch.arange(V))
    p = model.log_prob(Batch(pairs), streams(len(pairs))).exp()
    assert p.sum() == pytest.approx(1, abs=1e-12)
    seen = torch.bincount(x[:, 0] * V + x[:, 1], minlength=V * V)
    assert chisquare(seen, p * 6000).pvalue > 1e-3
    model = random_model(STROKES)
    lengths = torch.cat([b.lengths for b in inference.sample(model, range(6000))])
    state, expected = model.start, []
    for _ in range(STROKES.length - 1):
        expected.append(float(state @ model.ends))
        state = state @ model.transitions
    expected.append(float(state.sum()))
    seen = torch.bincount(lengths, minlength=STROKES.length + 1)[1:]
    assert chisquare(seen, 6000 * np.array(expected)).pvalue > 1e-3


def test_texts_can_be_read_step_by_step():
    """Logits of all positions at once, and token by token as texts are written."""
    model, data = random_model(TEXT), batch(TEXT)
    ((_, logits),) = model.next_logits(data.x)
    read, advance = model.reader()
    now, state = read(torch.tensor([[END]] * 3))
    for t in range(data.x.shape[1]):
        assert torch.allclose(logits[:, t], now, atol=1e-12)
        assert torch.allclose(now.exp().sum(1), torch.ones(3, dtype=torch.float64))
        now, state = advance(data.x[:, t], state)
    _, _, evidence = model._filter(model.emission.log_prob(data.x))
    assert torch.allclose(evidence, torch.log_softmax(logits, -1).gather(-1, data.x[..., None])[..., 0], atol=1e-12)


def test_through_the_command_line(gencli, tmp_path):
    rows = torch.sin(torch.arange(400) * 0.3)[:, None] + torch.tensor([0.0, 5.0])
    (tmp_path / "waves.csv").write_text("a,b\n" + "\n".join(f"{a:.4f},{b:.4f}" for a, b in rows.tolist()))
    gencli("train", "hmm", "waves.csv", "--kind", "series", "--window", "20", "--states", "4", "--steps", "8", "-o",
           "run", "-q")
    gencli("encode", "run", "waves.csv", "--set", "code=path", "-o", "paths.npz")
    gencli("sample", "run", "--latents", "paths.npz", "-o", "means.csv")
    assert len((tmp_path / "means.csv").read_text().splitlines()) > 20
    few = ["train", "hmm", "waves.csv", "--kind", "series", "--states", "5000", "-o", "no"]
    assert "the data has only" in gencli(*few, code=3).stderr


def test_text_keeps_the_default_path_of_noise():
    assert TextHMM.interpolate is Model.interpolate
