"""The family `gan`: shapes, losses against closed forms, players, projection, classes, alarm, and that it learns."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gencli.errors import UsageError
from gencli.families.gan import GAN, GANConfig
from gencli.kinds.image import ImageSpec
from gencli.kinds.vector import VectorSpec
from gencli.layers import dcgan
from gencli.model import Batch, Given
from gencli.rng import ExampleStreams, StepStream, generator

PLANE = VectorSpec(columns=("x", "y"), mean=(5.0, -1.0), scale=(2.0, 0.5))
PICTURE = ImageSpec(channels=1, height=8, width=8, classes=("a", "b", "c"))


def gan(spec, seed=0, **config):
    torch.manual_seed(seed)
    return GAN(GANConfig(**{"latent": 6, "width": 4, **config}), spec)


def streams(n, seed=0):
    return ExampleStreams(seed, torch.arange(n))


def noise(n, seed=0):
    return StepStream(n, generator(seed))


def train(model, x, steps, lr, batch_size=64, log_every=25):
    """The trainer's steps, bare; what it would have logged."""
    players = model.phases()[0].players
    optimisers = [torch.optim.Adam(player.parameters, lr, player.betas) for player in players]
    history = []
    for step in range(steps):
        rng = noise(batch_size, step)
        batch = Batch(x[rng.integers(len(x))])
        record = {}
        for player, optimiser in zip(players, optimisers, strict=True):
            if (step + 1) % player.every == 0:
                loss = player.loss(batch, rng)
                optimiser.zero_grad()
                loss.total.backward()
                optimiser.step()
                values = {"loss": loss.total, **loss.parts}
                record |= {f"{player.name}/{name}": value.item() for name, value in values.items()}
        if (step + 1) % log_every == 0:
            history.append(record)
    return history


def blobs(n):
    """Pictures (n, 1, 8, 8) of one round spot each."""
    centre = torch.rand(2, n, 1, 1, generator=generator(0, "blobs")) * 8
    y, x = torch.meshgrid(torch.arange(8) + 0.5, torch.arange(8) + 0.5, indexing="ij")
    return torch.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / 2)[:, None]


# ---------------------------------------------------------------------------------------------------------------------
# Shapes


@pytest.mark.parametrize("loss", ["non-saturating", "wgan-gp"])
@pytest.mark.parametrize(("channels", "height", "width"), [
    (1, 28, 28), (3, 32, 32), (1, 64, 64), (3, 8, 8), (1, 9, 13), (1, 15, 40), (3, 45, 30), (1, 7, 30), (3, 1, 1)])
def test_pictures_of_any_size(channels, height, width, loss):
    model = gan(ImageSpec(channels=channels, height=height, width=width), loss=loss)
    made = model.sample(noise(5)).x
    assert made.shape == (5, channels, height, width)
    assert 0 <= made.min() < made.max() <= 1
    for player in model.phases()[0].players:
        assert player.loss(Batch(made.detach()), noise(5)).total.isfinite()
    assert any(isinstance(m, nn.Conv2d) for m in model.modules()) == (min(height, width) >= 8)


def test_the_penalty_of_a_flat_critic_has_a_gradient():
    model = gan(PLANE, loss="wgan-gp").train()
    for parameter in model.critic.parameters():
        torch.nn.init.zeros_(parameter)
    model.critic_loss(Batch(torch.randn(4, 2)), StepStream(4, generator("flat"))).total.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.critic.parameters())


def test_critic_of_wgan_gp_scores_each_example_by_itself():
    for loss, alone in (("wgan-gp", True), ("hinge", False)):
        model = gan(ImageSpec(channels=1, height=16, width=16), loss=loss)
        x = torch.rand(4, 1, 16, 16, generator=generator(0))
        assert torch.allclose(model.critic(x)[:2], model.critic(x[:2]), atol=1e-6) == alone


def test_every_pixel_of_an_odd_picture_is_made_and_seen():
    model = gan(ImageSpec(channels=1, height=11, width=14)).eval()
    made = model.sample(streams(16)).x
    assert (made.std(0) > 0).all()
    x = made.detach().requires_grad_()
    model.critic(x).sum().backward()
    assert (x.grad != 0).flatten(2).any(0).all()


def test_vectors_come_in_the_units_of_the_data():
    model = gan(PLANE).eval()
    code = model.prior(streams(4))
    expected = model.generator(code).detach().numpy() * [2.0, 0.5] + [5.0, -1.0]
    np.testing.assert_allclose(model.decode(code).x.detach(), expected, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused_in_one_line():
    with pytest.raises(UsageError, match=r"a single class; leave --conditional out"):
        gan(PLANE, conditional=True)
    with pytest.raises(UsageError, match=r"at least 8x8.*use net 'mlp'"):
        gan(ImageSpec(channels=1, height=7, width=30), net="dcgan")
    for option in ("augment", "mirror"):
        with pytest.raises(UsageError, match=f"--{option} is for pictures"):
            gan(PLANE, **{option: 1})
    with pytest.raises(UsageError, match=r"vector of shape \(2,\)"):
        gan(PLANE, net="dcgan")


# ---------------------------------------------------------------------------------------------------------------------
# Losses and players


class Sum(nn.Module):
    """A critic whose score is w . x, so that everything about it is known."""

    def __init__(self, *w):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))

    def forward(self, x, labels=None):
        return x @ self.w


CLOSED_FORMS = {  # written with log, sigmoid and where, as the papers have them
    "minimax": (lambda r, f: -np.log(1 / (1 + np.exp(-r))) - np.log(1 - 1 / (1 + np.exp(-f))),
                lambda f: np.log(1 - 1 / (1 + np.exp(-f)))),
    "non-saturating": (lambda r, f: -np.log(1 / (1 + np.exp(-r))) - np.log(1 - 1 / (1 + np.exp(-f))),
                       lambda f: -np.log(1 / (1 + np.exp(-f)))),
    "least-squares": (lambda r, f: 0.5 * (r - 1) ** 2 + 0.5 * f**2, lambda f: 0.5 * (f - 1) ** 2),
    "hinge": (lambda r, f: np.where(r < 1, 1 - r, 0) + np.where(f > -1, 1 + f, 0), lambda f: -f),
    "wgan-gp": (lambda r, f: f - r + 7.0 * (5.0 - 1) ** 2, lambda f: -f),  # |(3, 4)| = 5
}


@pytest.mark.parametrize("loss", CLOSED_FORMS)
def test_losses_against_closed_forms(loss):
    model = gan(PLANE, latent=2, loss=loss, gradient_penalty=7.0)
    model.generator, model.critic = nn.Identity(), Sum(3.0, 4.0)
    x = torch.tensor([[5.5, -0.5], [4.0, -2.0], [6.0, -1.0]])
    real = (x.numpy() - [5.0, -1.0]) / [2.0, 0.5] @ [3.0, 4.0]
    fake = noise(3, seed=1).normal(2).numpy() @ [3.0, 4.0]
    critic, maker = CLOSED_FORMS[loss]
    result = model.critic_loss(Batch(x), noise(3, seed=1))
    assert result.total.item() == pytest.approx(critic(real, fake).mean(), rel=1e-5)
    assert result.parts["real"].item() == pytest.approx(real.mean(), rel=1e-5)
    assert result.parts["fake"].item() == pytest.approx(fake.mean(), rel=1e-5)
    assert model.generator_loss(Batch(x), noise(3, seed=1)).total.item() == pytest.approx(maker(fake).mean(), rel=1e-5)


def test_gradient_penalty_reaches_the_critic():
    """d/dw of (|w| - 1)^2 is 2 (|w| - 1) w / |w|."""
    model = gan(PLANE, latent=2, loss="wgan-gp", gradient_penalty=1.0)
    model.generator, model.critic = nn.Identity(), Sum(3.0, 4.0)
    x = model.view.inverse(noise(3, seed=1).normal(2)).x  # real and fake agree: only the penalty is left
    model.critic_loss(Batch(x), noise(3, seed=1)).total.backward()
    np.testing.assert_allclose(model.critic.w.grad, np.array([3.0, 4.0]) * 2 * 4 / 5, rtol=1e-4)


def test_r1_is_of_real_examples_and_reaches_the_critic():
    """w/2 |v|^2 for a score v . x; where real and fake agree, and the rest of the loss is linear, only it is left."""
    model = gan(PLANE, latent=2, r1=3.0)
    model.generator, model.critic = nn.Identity(), Sum(3.0, 4.0)
    x = model.view.inverse(noise(3, seed=1).normal(2)).x
    plain = gan(PLANE, latent=2)
    plain.generator, plain.critic = model.generator, Sum(3.0, 4.0)
    with_it, without = (m.critic_loss(Batch(x), noise(3, seed=1)) for m in (model, plain))
    assert (with_it.total - without.total).item() == pytest.approx(3 / 2 * 25, rel=1e-5)
    assert with_it.parts["slope"].item() == pytest.approx(5)
    with_it.total.backward(), without.total.backward()
    np.testing.assert_allclose(model.critic.w.grad - plain.critic.w.grad, [9.0, 12.0], rtol=1e-5)


def test_all_that_the_critic_sees_is_augmented_alike(monkeypatch):
    seen = []
    monkeypatch.setattr("gencli.families.gan.augmented", lambda x, p, rng: seen.append((x, p)) or x + 7)
    model = gan(PICTURE, augment=0.3)
    model.critic.register_forward_pre_hook(lambda critic, given: seen.append(given[0]))
    model.critic_loss(Batch(blobs(5)), noise(5))
    model.generator_loss(Batch(blobs(5)), noise(5))
    (real, p), (made, q), first, second, (again, r), third = seen
    assert p == q == r == 0.3
    assert all(torch.equal(before + 7, after) for before, after in ((real, first), (made, second), (again, third)))
    assert torch.equal(real, 2 * blobs(5) - 1) and again.requires_grad
    seen.clear()
    gan(PICTURE).critic_loss(Batch(blobs(5)), noise(5))
    assert not seen


def test_real_pictures_are_mirrored_by_chance():
    seen = []
    model = gan(PICTURE, mirror=True)
    model.critic.register_forward_pre_hook(lambda critic, given: seen.append(given[0]))
    batch = blobs(40)
    model.critic_loss(Batch(batch), noise(40))
    own = 2 * batch - 1
    same, turned = ((seen[0] == x).flatten(1).all(1) for x in (own, own.flip(3)))
    assert (same | turned).all() and 8 < turned.sum() < 32  # four deviations


def test_a_gentle_critic_is_as_steep_as_spectral_norms_allow():
    """Each layer is at most as steep as 1, a kernel of 4x4 with stride 2, whose patches overlap, as 4 / 2 = 2."""
    model = gan(ImageSpec(channels=1, height=16, width=16), spectral_norm=True, critic_scale=9)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.critic.modules())
    x = torch.randn(4, 1, 16, 16, generator=generator(0))
    for _ in range(30):
        score = model.critic(x)
    for layer in model.critic.modules():
        if hasattr(layer, "parametrizations"):
            assert torch.linalg.svdvals(layer.weight.flatten(1))[0].item() == pytest.approx(1, abs=0.05)
    model.eval()
    assert torch.equal(model.critic(x), 9 * model.critic.score(model.critic.features(x)).squeeze(1))
    slope = torch.autograd.grad(model.critic(x.requires_grad_()).sum(), x)[0].flatten(1).norm(dim=1)
    assert score.isfinite().all() and 0 < slope.max() < 1.1 * 2**2 * 9


def test_diversity_is_the_ratio_of_pairwise_distances():
    model = gan(PLANE, latent=2)
    model.generator = nn.Identity()
    x = 5 + noise(40, seed=2).normal(2)
    real = (x.numpy() - [5, -1]) / [2, 0.5]
    fake = noise(40, seed=1).normal(2).numpy()

    def distance(points):  # root mean square over all pairs
        pairs = [((a - b) ** 2).sum() for i, a in enumerate(points) for b in points[:i]]
        return math.sqrt(np.mean(pairs))

    parts = model.critic_loss(Batch(x), noise(40, seed=1)).parts
    assert parts["diversity"].item() == pytest.approx(distance(fake) / distance(real), rel=1e-4)


@pytest.mark.parametrize("loss", CLOSED_FORMS)
@pytest.mark.parametrize("config", [{"conditional": True}, {"net": "mlp"}])
def test_each_player_moves_all_of_its_own_parameters_and_no_other(loss, config):
    model = gan(PICTURE, loss=loss, **config)
    batch = Batch(blobs(6), torch.tensor([0, 1, 2, 0, 1, 2]))
    players = model.phases()[0].players
    assert {id(p) for player in players for p in player.parameters} == {id(p) for p in model.parameters()}
    for player, other in zip(players, reversed(players), strict=True):
        model.zero_grad()
        for parameter in other.parameters:  # as the trainer does
            parameter.requires_grad_(False)
        player.loss(batch, noise(6)).total.backward()
        for parameter in other.parameters:
            assert parameter.grad is None
            parameter.requires_grad_(True)
        # Where the critic's loss is linear, a bias that shifts real and fake scores alike cancels out.
        flat = {id(model.critic.score.bias)} if loss in ("hinge", "wgan-gp") else set()
        assert all(p.grad is not None and (p.grad.abs().sum() > 0 or id(p) in flat) for p in player.parameters)


def test_who_moves_how_often():
    critic, maker = gan(PLANE).phases()[0].players
    assert (critic.name, critic.every, maker.name, maker.every) == ("critic", 1, "generator", 1)
    assert critic.betas == maker.betas == (0.5, 0.999)
    critic, maker = gan(PLANE, loss="wgan-gp").phases()[0].players
    assert (critic.every, maker.every, critic.betas, maker.betas) == (1, 5, (0.0, 0.9), (0.0, 0.9))
    critic, maker = gan(PLANE, spectral_norm=True).phases()[0].players
    assert critic.betas == maker.betas == (0.0, 0.99)
    assert gan(PLANE, critic_steps=2).phases()[0].players[1].every == 2


# ---------------------------------------------------------------------------------------------------------------------
# Codes


def settled(model):
    """The model with batch normalisation that has seen its own activations, in eval mode."""
    for seed in range(50):
        model.sample(noise(32, seed))
    return model.eval()


@pytest.mark.parametrize("spec", [PICTURE, PLANE])
def test_projection_finds_what_the_generator_made(spec):
    model = settled(gan(spec, width=8))
    with torch.no_grad():
        made = model.sample(streams(8, seed=3)).x
        again = model.decode(model.encode(Batch(made), streams(8, seed=4))).x
    assert (again - made).square().mean() < 1e-4 * made.var(0).mean()


def test_projection_is_of_each_example_by_itself_and_leaves_the_model_as_it_was():
    model = settled(gan(PICTURE))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = blobs(6)
    with torch.no_grad():
        codes = model.encode(Batch(x), streams(6), steps=20)
        beside_others = model.encode(Batch(torch.cat([x[:2], 1 - x[2:]])), streams(6), steps=20)
    torch.testing.assert_close(codes[:2], beside_others[:2], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(codes[2:], beside_others[2:], atol=1e-2)
    assert not codes.requires_grad and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_more_starts_are_never_worse():
    model = settled(gan(PICTURE))
    x = blobs(8)

    def error(starts):
        with torch.no_grad():
            code = model.encode(Batch(x), streams(8), steps=50, starts=starts)
            return (model.decode(code).x - x).square().flatten(1).mean(1)

    # z of the first start is drawn first, so it is among those of four, and is left only for one that did better after
    # a quarter of the steps. Its own path is the same up to what Adam makes of rounding.
    one, four = error(1), error(4)
    assert (four <= one + 1e-3).all() and four.mean() < one.mean() - 1e-3


def test_class_is_part_of_the_code():
    model = settled(gan(PICTURE, conditional=True))
    labels = torch.tensor([0, 1, 2, 2])
    made = model.sample(streams(4), Given(labels=labels))
    assert torch.equal(made.labels, labels)
    others = model.sample(streams(4), Given(labels=(labels + 1) % 3)).x
    assert ((others - made.x).abs().flatten(1).max(1).values > 1e-3).all()

    code = model.prior(streams(300))
    drawn = model.decode(code).labels
    assert torch.equal(nn.functional.one_hot(drawn, 3), code[:, 6:].long())
    assert (torch.bincount(drawn, minlength=3) > 70).all()
    assert code[:, :6].mean().abs() < 0.1 and abs(code[:, :6].std() - 1) < 0.1
    torch.testing.assert_close(model.sample(streams(300)).x, model.decode(code).x)

    with torch.no_grad():
        assert torch.equal(model.decode(model.encode(Batch(made.x, labels), streams(4), steps=2)).labels, labels)


def test_a_label_does_not_change_the_noise():
    model = gan(PICTURE, conditional=True)
    assert torch.equal(model.prior(streams(4))[:, :6], model._code(streams(4), torch.tensor([0, 1, 2, 0]))[:, :6])


# ---------------------------------------------------------------------------------------------------------------------
# Training


def test_learns_all_modes_of_a_ring():
    """Eight normal distributions on a circle, the usual test for dropped modes (Metz et al. 2016, arXiv:1611.02163)."""
    g = generator(0, "ring")
    angle = torch.randint(8, (10_000,), generator=g) * (math.pi / 4)
    x = 5 + 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(10_000, 2, generator=g)
    spec = VectorSpec(columns=("x", "y"), mean=tuple(x.mean(0).tolist()), scale=tuple(x.std(0).tolist()))
    model = gan(spec, latent=8, width=32)
    history = train(model, x, steps=800, lr=1e-3, batch_size=256)
    assert model.alarm(history) is None
    with torch.no_grad():
        made = model.eval().sample(streams(1000)).x - 5
    nearest = (torch.atan2(made[:, 1], made[:, 0]) / (math.pi / 4)).round().long() % 8
    centres = 2 * torch.stack([(nearest * math.pi / 4).cos(), (nearest * math.pi / 4).sin()], 1)
    close = (made - centres).norm(dim=1) < 0.4  # the modes are 1.5 apart
    assert close.float().mean() > 0.6
    assert (torch.bincount(nearest[close], minlength=8) > 20).sum() >= 7


def test_alarm_on_a_training_that_collapses():
    model = gan(PICTURE, net="mlp", width=32, loss="minimax")
    history = train(model, blobs(2000), steps=100, lr=0.1)
    assert "has collapsed" in model.alarm(history)
    assert model.alarm(history[:2]) is None  # two records are not enough to say so


def records(n, **values):
    return [{name.replace("_", "/"): value for name, value in values.items()} for _ in range(n)]


@pytest.mark.parametrize(("loss", "history", "sentence"), [
    ("hinge", records(20, critic_loss=1.0, critic_diversity=0.9), None),
    ("hinge", records(20, critic_loss=1.0, critic_diversity=0.05), "has collapsed"),
    ("hinge", records(19, critic_loss=1.0, critic_diversity=0.05) + records(1, critic_diversity=0.5), None),
    ("non-saturating", records(20, critic_loss=1e-4, critic_diversity=0.9), "critic wins"),
    ("non-saturating", records(9, critic_loss=1e-4, critic_diversity=0.9), None),
    ("wgan-gp", records(20, critic_loss=-1e-4, critic_diversity=0.9), None),
    ("wgan-gp", records(20, critic_loss=-1e-4, critic_coverage=0.2), "modes are dropped"),
    ("wgan-gp", records(20, critic_loss=-1e5, critic_diversity=0.9), "has diverged"),
    ("wgan-gp", [], None),
])
def test_alarm_on_made_histories(loss, history, sentence):
    alarm = gan(PICTURE, loss=loss).alarm(history)
    assert (alarm is None) if sentence is None else (sentence in alarm and "\n" not in alarm)


def test_a_forced_collapse_is_found_and_ends_the_training(gencli, tmp_path, monkeypatch):
    def constant(code, shape, units, bounded):
        return nn.Sequential(nn.Linear(code, math.prod(shape)), nn.Threshold(math.inf, 0.0), nn.Unflatten(1, shape))

    monkeypatch.setattr("gencli.families.gan._mlp_generator", constant)
    np.save(tmp_path / "points.npy", noise(64).normal(2).numpy())
    options = ["points.npy", "--steps", "4", "--log-every", "1", "--batch-size", "8", "--width", "4"]
    told = gencli("train", "gan", *options, "-o", "ended", "--fail-on-collapse", code=6).stderr
    assert "step 3: the generator has collapsed: its examples differ by 0.0%" in told
    told = gencli("train", "gan", *options, "-o", "warned").stderr
    assert "warning: step 3: the generator has collapsed" in told and "warned: 4 steps" in told


def test_decoder_exports_with_any_batch_size():
    model = settled(gan(ImageSpec(channels=3, height=9, width=13)))
    graph = model.graph()
    exported = torch.export.export(graph.module, (graph.inputs["code"],), dynamic_shapes=({0: torch.export.Dim("B")},))
    code = model.prior(streams(5))
    torch.testing.assert_close(exported.module()(code), model.decode(code).x)


def test_what_a_pooling_critic_sees_counts_wherever_it_is():
    features, size = dcgan.features((1, 32, 32), 4, "none", fine=2, pooled=True)
    for layer in features:
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.zeros_(layer.bias)  # beyond its sides a picture then goes on
    thing = torch.randn(5, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    places = [F.pad(thing, (x, 29 - x, y, 29 - y)) for x, y in ((10, 10), (10, 18), (18, 10))]  # steps of 2^3 pixels
    seen = [features(picture) for picture in places]
    assert seen[0].shape == (5, size) and size == dcgan.maps(4, 3)
    assert not torch.allclose(seen[0], features(torch.zeros_like(places[0])))
    for other in seen[1:]:
        torch.testing.assert_close(other, seen[0])
