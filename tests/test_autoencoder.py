"""The autoencoder against principal components, known denoisers, autograd's Jacobian and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from sklearn.mixture import GaussianMixture
from torch.distributions import Bernoulli, Categorical, MixtureSameFamily, Normal, kl_divergence

from gencli.errors import DataError, UsageError
from gencli.families.autoencoder import Autoencoder, AutoencoderConfig, _divergence, _Mixture
from gencli.kinds.image import ImageSpec
from gencli.kinds.strokes import StrokesSpec
from gencli.kinds.text import TextSpec
from gencli.kinds.vector import VectorSpec
from gencli.model import Batch
from gencli.rng import ExampleStreams, StepStream, generator
from gencli.runs import build
from gencli.trainer import Trainer

PICTURE = ImageSpec(channels=1, height=4, width=3)
TEXT = TextSpec(vocabulary=("<unk>", "<end>", "a", "b", "c"), length=6, lines=True)


def rows_spec(count: int) -> VectorSpec:
    return VectorSpec(columns=tuple("abcdefgh"[:count]), mean=(0.0,) * count, scale=(1.0,) * count)


def model(spec, **config) -> Autoencoder:
    torch.manual_seed(0)
    return build("autoencoder", {"latent": 2, "widths": "none", "components": 0, **config}, spec)


def rng(count: int) -> ExampleStreams:
    return ExampleStreams(0, torch.arange(count), "test")


def pictures(count: int = 5) -> Batch:
    return Batch(torch.rand(count, *PICTURE.shape, generator=generator("pictures")))


def minimise(m: Autoencoder, batch: Batch, iterations: int = 300) -> Autoencoder:
    """By L-BFGS, with the same noise in every iteration."""
    optimiser = torch.optim.LBFGS(m.parameters(), max_iter=iterations, history_size=50, tolerance_change=1e-12,
                                  tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = m.loss(batch, StepStream(len(batch), generator("noise"))).total
        loss.backward()
        return loss

    optimiser.step(closure)
    return m


# --- what it learns, where that is known


@pytest.mark.parametrize("tied", [False, True])
def test_linear_units_span_the_principal_components(tied):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(200, 5)) * [3, 2, 0.5, 0.3, 0.1] @ np.linalg.qr(draw.normal(size=(5, 5)))[0] + 1
    m = minimise(model(rows_spec(5), units="linear", widths="4", tied=tied), Batch(torch.from_numpy(x)), 120)
    corners = torch.tensor([[0.0, 0], [1, 0], [0, 1]])
    origin, *ends = m.decode(corners).x.detach().numpy()
    principal = np.linalg.svd(x - x.mean(0))[2][:2]
    assert subspace_angles(np.stack(ends).T - origin[:, None], principal.T).max() < 1e-3
    error = ((m.decode(m.encode(Batch(torch.from_numpy(x)), rng(200))).x.detach().numpy() - x) ** 2).sum()
    assert error == pytest.approx((np.linalg.svd(x - x.mean(0))[1][2:] ** 2).sum(), rel=1e-4)


def test_the_denoiser_of_a_gaussian_is_the_known_linear_map():
    """E[x | x + noise] = mean + s^2 / (s^2 + sigma^2) (x + noise - mean)."""
    s, sigma, mean, count = 0.8, 0.6, 0.3, 40_000
    x = mean + s * torch.randn(count, 1, generator=generator("x"), dtype=torch.float64)
    m = minimise(model(rows_spec(1), latent=1, units="linear", noise="gaussian", noise_level=sigma), Batch(x))
    with torch.no_grad():
        low, high = m.decode(m.encode(Batch(torch.tensor([[-1.0], [1.0]]).double()), rng(2))).x[:, 0].tolist()
    slope = s**2 / (s**2 + sigma**2)
    # A regression's slope has the error sqrt(residual / (count variance)); the residual here is slope sigma^2.
    error = math.sqrt(slope * sigma**2 / (count * (s**2 + sigma**2)))
    assert (high - low) / 2 == pytest.approx(slope, abs=4 * error)
    assert (high + low) / 2 == pytest.approx((1 - slope) * mean, abs=4 * sigma * math.sqrt(slope / count))


def test_the_denoiser_of_a_mixture_gives_its_score():
    """(r(x) - x) / sigma^2 is the derivative of the log-density of the noisy examples (Tweedie; Miyasawa 1961)."""
    sigma, count = 0.5, 8_000
    kinds, noise = torch.rand(count, 1, generator=generator("k")), torch.randn(count, 1, generator=generator("x"))
    x = torch.where(kinds < 0.4, -1.0, 1.2) + torch.where(kinds < 0.4, 0.3, 0.5) * noise
    m = minimise(model(rows_spec(1), latent=1, units="tanh", widths="12", noise="gaussian", noise_level=sigma),
                 Batch(x.double()), 80)
    at = torch.linspace(-1.8, 2.2, 41).requires_grad_()
    noisy = MixtureSameFamily(Categorical(torch.tensor([0.4, 0.6])),
                              Normal(torch.tensor([-1.0, 1.2]), torch.tensor([0.3, 0.5]).square().add(sigma**2).sqrt()))
    (score,) = torch.autograd.grad(noisy.log_prob(at).sum(), at)
    with torch.no_grad():
        x = at.detach()[:, None]
        ours = ((m.decode(m.encode(Batch(x.double()), rng(41))).x - x) / sigma**2)[:, 0]
    assert (ours - score).abs().max() < 0.25 and (ours - score).abs().mean() < 0.08  # scores reach from -3 to 3
    assert score.max() - score.min() > 4


# --- penalties


@pytest.mark.parametrize("config", [dict(widths="7,5"), dict(net="conv", widths="2"), dict(sparsity="kl", latent=4)])
def test_the_contractive_term_is_autograds_jacobian(config):
    m, x = model(PICTURE, contraction=0.3, **config), pictures().x
    jacobians = torch.stack([torch.autograd.functional.jacobian(lambda one: m.code(one[None])[0], one) for one in x])
    assert torch.allclose(m.jacobian_norm(x), jacobians.square().flatten(1).sum(1), rtol=1e-4)
    loss = m.loss(Batch(x), rng(5))
    assert float(loss.parts["contraction"]) == pytest.approx(0.3 * float(jacobians.square().sum()) / 5, rel=1e-4)
    assert float(loss.total.detach()) == pytest.approx(sum(map(float, loss.parts.values())), rel=1e-6)


def test_the_contractive_term_of_a_layer_of_sigmoids_is_that_of_rifai():
    m, x = model(PICTURE, sparsity="kl", latent=4), pictures().x
    code, weight = m.code(x), m.encoder[1].weight
    closed = ((code * (1 - code)).square() * (2 * weight).square().sum(1)).sum(1)  # pixels are seen from -1 to 1
    assert torch.allclose(m.jacobian_norm(x), closed, rtol=1e-4)


def test_a_contractive_model_learns():
    m, batch = model(PICTURE, widths="6", contraction=0.1), pictures()
    before = m.jacobian_norm(batch.x).mean()
    assert minimise(m, batch, 20).jacobian_norm(batch.x).mean() < before


def test_the_sparsity_is_torchs_divergence():
    means = torch.tensor([0.01, 0.2, 0.9])
    assert torch.allclose(_divergence(0.05, means), kl_divergence(Bernoulli(0.05), Bernoulli(means)), rtol=1e-4)


@pytest.mark.parametrize(("config", "low", "high"), [
    (dict(sparsity="kl", activity=0.01), 0.0, 0.04), (dict(sparsity="kl", activity=0.5), 0.3, 0.7),
    (dict(sparsity="l1", sparsity_weight=0.3), 0.0, 0.15), (dict(sparsity="l1", sparsity_weight=1e-3), 0.2, 0.9)])
def test_the_share_of_active_units_is_steered_and_told(config, low, high):
    m, batch = model(PICTURE, latent=20, **config), pictures(60)
    optimiser = torch.optim.Adam(m.parameters(), 0.04)
    for _ in range(80):
        optimiser.zero_grad()
        m.loss(batch, rng(60)).total.backward()
        optimiser.step()
    with torch.no_grad():
        units, share = m.diagnose([batch])
    assert units.name == "active_units" and share.name == "active_share"
    assert low <= share.value <= high


# --- noise


def test_noise_is_what_it_is_called():
    x = Batch(torch.full((2000, *PICTURE.shape), 0.5))
    masked, salted, noisy = (model(PICTURE, noise=noise, noise_level=0.3).seen.corrupt(x.x, rng(2000))
                             for noise in ("masking", "salt", "gaussian"))
    count = x.x.numel()
    assert float((masked == 0).float().mean()) == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / count))
    assert float((salted == 0).float().mean()) == pytest.approx(0.15, abs=4 * math.sqrt(0.13 / count))
    assert float((salted == 1).float().mean()) == pytest.approx(0.15, abs=4 * math.sqrt(0.13 / count))
    assert set(masked.unique().tolist()) == {0, 0.5} and set(salted.unique().tolist()) == {0, 0.5, 1}
    assert float((noisy - 0.5).std()) == pytest.approx(0.3, rel=4 / math.sqrt(2 * count))
    text = model(TEXT, noise="masking", noise_level=0.5, widths="4").seen.corrupt(torch.full((2000, 6), 3), rng(2000))
    assert float((text == 0).float().mean()) == pytest.approx(0.5, abs=0.02)


def test_the_chain_ends_where_its_film_does():
    m = model(PICTURE, noise="salt", walkback=3, likelihood="bernoulli")
    film = m.film(rng(4), 3, steps=4)
    assert len(film) == 3 and torch.equal(film[-1].x, m.sample(rng(4), steps=4).x)
    assert torch.equal(film[0].x, m.sample(rng(4)).x) and not torch.equal(film[0].x, film[1].x)
    assert m.loss(pictures(), rng(5)).total.isfinite()


def test_noise_that_is_removed_is_told():
    m = model(PICTURE, noise="gaussian", noise_level=0.5)
    with torch.no_grad():
        for layer in (m.decoder[0], m.encoder[1]):
            layer.weight.zero_(), layer.bias.zero_()
        found = m.scores(Batch(torch.full((4000, *PICTURE.shape), 0.5)), rng(4000))
    # The model says 1/2, which is right: all noise is gone, but for the floor of 1e-12.
    assert float(found["squared_error"].values.max()) < 1e-12
    expected = 10 * math.log10(0.25 * 12 / 1e-12)
    assert float(found["noise_removed"].values.mean()) == pytest.approx(expected, abs=1)


# --- codes


def test_the_density_of_codes_is_scikit_learns():
    draw = np.random.default_rng(1)
    codes = np.concatenate([draw.normal(size=(400, 3)) @ np.diag([1, 0.3, 2]) + [4, 0, 0],
                            draw.normal(size=(600, 3)) @ np.linalg.qr(draw.normal(size=(3, 3)))[0] * [0.2, 1, 1]])
    mixture = _Mixture(2, 3)
    mixture.fit(torch.from_numpy(codes).float())
    peer = GaussianMixture(2, random_state=0).fit(codes)
    order = mixture.weights.argsort().numpy(), peer.weights_.argsort()
    covariances = (mixture.factors @ mixture.factors.mT).numpy()[order[0]]
    assert np.allclose(mixture.weights.numpy()[order[0]], peer.weights_[order[1]], atol=0.01)
    assert np.allclose(mixture.means.numpy()[order[0]], peer.means_[order[1]], atol=0.03)
    assert np.allclose(covariances, peer.covariances_[order[1]], atol=0.08)  # ours has a floor, and one code more
    drawn = mixture.draw(rng(20_000)).double().numpy()
    assert np.allclose(drawn.mean(0), codes.mean(0), atol=0.05)
    assert np.allclose(np.cov(drawn.T), np.cov(codes.T), atol=0.15)


def test_a_density_of_codes_that_are_all_the_same():
    mixture = _Mixture(3, 2)
    mixture.fit(torch.ones(10, 2))
    assert torch.allclose(mixture.draw(rng(5)), torch.ones(5, 2), atol=0.01)


def test_texts_come_back():
    """Six texts, four numbers: the code holds which it is."""
    m = model(TEXT, latent=4, widths="24")
    texts = torch.tensor([[2, 3, 1, 0, 0, 0], [3, 3, 3, 3, 1, 0], [4, 1, 0, 0, 0, 0], [2, 2, 2, 2, 2, 1],
                          [4, 3, 2, 1, 0, 0], [1, 0, 0, 0, 0, 0]])
    batch = Batch(texts, lengths=torch.tensor([3, 5, 2, 6, 4, 1]))
    optimiser = torch.optim.Adam(m.parameters(), 0.02)
    for _ in range(120):
        optimiser.zero_grad()
        m.loss(batch, rng(6)).total.backward()
        optimiser.step()
    with torch.no_grad():
        back, found = m.decode(m.encode(batch, rng(6))), m.scores(batch, rng(6))
        padded = Batch(texts[:, :5][[0]], lengths=batch.lengths[[0]])
        assert torch.allclose(m.encode(padded, rng(1)), m.encode(batch, rng(6))[:1], atol=1e-6)
    assert torch.equal(back.x, texts) and torch.equal(back.lengths, batch.lengths)
    assert float(found["wrong_tokens"].values.sum()) == 0 and torch.equal(found["reconstruction"].weight.long(),
                                                                           batch.lengths)


def test_drawings_keep_their_lengths():
    m = model(StrokesSpec(length=7, scale=2.0), widths="5")
    rows = torch.randn(4, m.seen.size)
    steps = m.encoder[0](rows)
    assert steps.shape == (4, 7, 4) and torch.equal(m.decoder[1](steps)[:, 0], rows)
    assert torch.equal(steps[:, 2, :3], rows[:, 6:9]) and torch.equal(steps[:, 2, 3], rows[:, 23])


# --- layers


def test_tied_weights_are_one():
    m = model(PICTURE, widths="6,5", tied=True)
    copied = m.clone()
    with torch.no_grad():
        copied.encoder[1].weight.zero_()
        assert not (copied.decoder[4](torch.rand(2, 6)) - copied.decoder[4].bias).any(), "the copy's weight is its own"
        assert m.decoder[4](torch.rand(2, 6)).abs().sum() > 0
    assert sum(p.numel() for p in m.parameters()) == 12 * 6 + 6 * 5 + 5 * 2 + (6 + 5 + 2) + (5 + 6 + 12)


def test_layers_are_trained_one_after_the_other():
    m = model(PICTURE, widths="6,5", pretrain=True, components=2, noise="masking")
    phases = m.phases()
    assert [phase.name for phase in phases] == ["layer 1", "layer 2", "layer 3", "train", "density"]
    assert [phase.share for phase in phases] == [1, 1, 1, 3, 0]
    shapes = [[tuple(p.shape) for p in phase.players[0].parameters] for phase in phases[:3]]
    assert shapes == [[(6, 12), (6,), (12, 6), (12,)], [(5, 6), (5,), (6, 5), (6,)], [(2, 5), (2,), (5, 2), (5,)]]


@pytest.mark.parametrize("step", [2, 5, 9, 12])
def test_resume_is_exact_in_every_phase(step, small_data, gencli, tmp_path, monkeypatch):
    words = ["train", "autoencoder", str(small_data["image"]), "--latent", "2", "--widths", "6", "--pretrain",
             "--noise", "gaussian", "--components", "2", "--steps", "12", "--batch-size", "8", "--preview-every", "0",
             "--ema", "0.5", "--log-every", "2", "-q"]
    if not (tmp_path.parent / "whole").exists():
        gencli(*words, "-o", str(tmp_path.parent / "whole"))
    after = Trainer._after_step

    def interrupt(self, *values):
        after(self, *values)
        if self.state.step == step:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_after_step", interrupt)
        gencli(*words, "-o", "run", "--checkpoint-every", "1", code=1)
    gencli(*words, "-o", "run", "--resume")
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path.parent / "whole" / name).read_bytes()


# --- what is refused


@pytest.mark.parametrize(("spec", "config", "message"), [
    (PICTURE, dict(widths="10,x"), "1000,500,250"), (PICTURE, dict(widths="0"), "1000,500,250"),
    (PICTURE, dict(net="conv", widths="3,4"), "one number"), (PICTURE, dict(net="recurrent"), "--net mlp"),
    (rows_spec(2), dict(net="conv", widths="4"), "--net mlp"), (TEXT, dict(net="mlp"), "--net recurrent"),
    (TEXT, dict(noise="gaussian"), "masking or salt"), (TEXT, dict(contraction=1.0, widths="4"), "--contraction"),
    (PICTURE, dict(net="conv", widths="4", tied=True), "--tied"), (PICTURE, dict(walkback=2), "--noise"),
    (PICTURE, dict(noise="masking", noise_level=1.5), "at most 1"),
    (rows_spec(2), dict(likelihood="bernoulli"), "table"),
    (PICTURE, dict(tied=True, likelihood="logistic"), "needs two")])
def test_settings_that_do_not_fit(spec, config, message):
    with pytest.raises(UsageError, match=message):
        model(spec, **config)


def test_the_density_has_no_more_components_than_examples():
    complete = Autoencoder.complete_config
    assert complete(AutoencoderConfig(), PICTURE, 4).components == 4
    assert complete(AutoencoderConfig(), PICTURE, 4000).components == 10
    assert complete(AutoencoderConfig(components=0), PICTURE, 4000).components == 0
    with pytest.raises(UsageError, match="--components 5"):
        complete(AutoencoderConfig(components=5), PICTURE, 4)


def test_chains_need_noise_and_steps():
    m = model(PICTURE)
    with pytest.raises(UsageError, match="--noise"):
        m.sample(rng(2), steps=3)
    with pytest.raises(UsageError, match="steps=50"):
        m.film(rng(2), 2)


def test_longer_texts_are_refused():
    with pytest.raises(DataError, match="room for 6"):
        model(TEXT, widths="4").encode(Batch(torch.full((1, 7), 2), lengths=torch.tensor([7])), rng(1))


def test_options_are_strings_of_numbers():
    assert AutoencoderConfig(widths=500).widths == "500" and AutoencoderConfig(widths=" 4, 3 ").widths == "4,3"
