"""DRAW against the formulas of the paper, a plain loop, a vae, quadrature and finite differences."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Normal, kl_divergence

from gencli.families.draw import DRAW, DRAWConfig, _Attention
from gencli.families.vae import VAE, VAEConfig
from gencli.kinds.image import ImageSpec
from gencli.model import Batch
from gencli.rng import ExampleStreams, StepStream, generator

BINARY = ImageSpec(channels=1, height=5, width=4, levels=2)
COLOUR = ImageSpec(channels=3, height=4, width=7, levels=256)
REAL = ImageSpec(channels=1, height=3, width=3, levels=None)


def model(spec=BINARY, scale=2.0, **config) -> DRAW:
    torch.manual_seed(0)
    sizes = {"glimpses": 3, "latent": 2, "hidden": 8, "read_size": 2, "write_size": 3}
    made = DRAW(DRAWConfig(**{**sizes, **config}), spec).eval()
    with torch.no_grad():
        for p in made.parameters():  # a model with opinions, so that mistakes show
            p.copy_(scale * p + 0.1 * torch.randn(p.shape, generator=generator("opinions", *p.shape)))
    return made


def rng(count: int, purpose: str = "test") -> ExampleStreams:
    return ExampleStreams(0, torch.arange(count), purpose)


def examples(spec, count: int = 6) -> Batch:
    x = torch.rand(count, *spec.shape, generator=generator("examples"))
    return Batch(x if spec.levels is None else (x * spec.levels).floor() / (spec.levels - 1))


# --- attention


def paper_filters(controls: np.ndarray, count: int, side: int, longest: int, axis: int) -> np.ndarray:
    """Equations 19 to 26, filter by filter, pixel by pixel; the unit of the variance is ours."""
    stride = (longest - 1) / (count - 1)
    g, delta = (side + 1) / 2 * (controls[axis] + 1), stride * math.exp(controls[3])
    variance = (stride / 2) ** 2 * math.exp(controls[2])
    found = np.zeros((count, side))
    for i in range(1, count + 1):
        mean = g + (i - count / 2 - 0.5) * delta
        for a in range(1, side + 1):
            found[i - 1, a - 1] = math.exp(-((a - mean) ** 2) / (2 * variance))
    return found / found.sum(1, keepdims=True)


def test_filters_are_those_of_the_paper():
    window = _Attention(COLOUR, planes=6, read=2, write=5)
    controls = torch.randn(4, window.controls, generator=generator("controls")) / 2
    rows, columns, intensity, patch = window.aim(controls)
    for b in range(4):
        for which, count, own in ((0, 2, slice(0, 2)), (1, 5, slice(2, 7))):
            place = controls[b, :10].view(5, 2)[:, which].numpy()
            for axis, (bank, side) in enumerate(((rows, 4), (columns, 7))):
                assert np.allclose(bank[b, own], paper_filters(place, count, side, 7, axis), atol=1e-6)
    assert torch.allclose(intensity[:, 0], controls[:, 8].exp())
    unit = (6 / 4) ** -2  # of the intensity of writing
    assert torch.allclose(patch.flatten(1), controls[:, 10:] / (unit * controls[:, 9:10].exp()))


def test_a_patch_of_ones_writes_ones():
    """Where the controls are 0, but for the border, beyond which there is no filter."""
    window = _Attention(ImageSpec(channels=1, height=28, width=28), planes=1, read=4, write=10)
    controls = torch.ones(1, window.controls)
    controls[:, :10] = 0
    canvas = window.write(window.aim(controls))
    assert (canvas[..., 4:-4, 4:-4] - 1).abs().max() < 0.05


def test_a_fine_grid_of_all_pixels_is_the_identity():
    spec = ImageSpec(channels=1, height=28, width=28, levels=256)
    window = _Attention(spec, planes=2, read=28, write=28)
    patch = torch.randn(3, 2, 28, 28, generator=generator("patch"))
    place = torch.zeros(3, 5, 2)
    place[:, 2] = -9  # log-variance: the filters see a pixel each; the stride is 1
    aim = window.aim(torch.cat([place.flatten(1), patch.flatten(1)], dim=1))
    x = torch.rand(2, 3, 1, 28, 28, generator=generator("pictures"))
    assert torch.equal(window.read(aim, *x), torch.cat([*x], dim=1).flatten(1))
    assert torch.equal(window.write(aim), patch)


def test_a_grid_far_outside_is_finite():
    window = _Attention(BINARY, planes=1, read=2, write=1)
    controls = torch.full((1, window.controls), 1e4, requires_grad=True)
    aim = window.aim(controls)
    total = window.read(aim, *torch.rand(2, 1, *BINARY.shape)).sum() + window.write(aim).sum()
    total.backward()
    assert torch.isfinite(total) and torch.isfinite(controls.grad).all()


# --- the whole recurrence


class Plain(nn.Module):
    """The paper's loop, step by step, on torch's LSTM cells; binary grey pictures, the weights of a model."""

    def __init__(self, m: DRAW):
        super().__init__()
        self.m = m
        whole = () if m.config.attention else (m.window.picture.weight,)
        self.encoder, self.decoder = self.cell(m.encoder, *whole), self.cell(m.decoder)

    def cell(self, layer: nn.Linear, *more: torch.Tensor) -> nn.LSTMCell:
        """An LSTM cell of the weights of a layer, whose last inputs are its units, and of `more`, for other inputs."""
        units = self.m.config.hidden
        weight = torch.cat([*more, layer.weight], dim=1)
        made = nn.LSTMCell(weight.shape[1] - units, units)

        def ordered(gates: torch.Tensor) -> torch.Tensor:  # input, forget, candidate, output
            return gates.unflatten(0, (4, units))[[0, 1, 3, 2]].flatten(0, 1)

        with torch.no_grad():
            made.weight_ih.copy_(ordered(weight[:, :-units]))
            made.weight_hh.copy_(ordered(weight[:, -units:]))
            made.bias_ih.copy_(ordered(layer.bias))
            made.bias_hh.zero_()
        return made

    def filters(self, place: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        _, height, width = self.m.spec.shape
        stride = (max(height, width) - 1) / (count - 1)
        banks = []
        for axis, side in ((0, height), (1, width)):
            centre = (side + 1) / 2 * (place[:, axis : axis + 1] + 1)
            mean = centre + (torch.arange(1, count + 1) - count / 2 - 0.5) * stride * place[:, 3:4].exp()
            variance = ((stride / 2) ** 2 * place[:, 2:3].exp())[..., None]
            weight = torch.exp(-((torch.arange(1, side + 1) - mean[..., None]) ** 2) / (2 * variance))
            banks.append(weight / weight.sum(2, keepdim=True))
        return *banks, place[:, 4, None, None].exp()

    def read(self, x: torch.Tensor, error: torch.Tensor, h_dec: torch.Tensor) -> torch.Tensor:
        if self.m.config.attention:
            rows, columns, intensity = self.filters(self.m.hand(h_dec)[:, 0:10:2], self.m.config.read_size)
            x, error = (intensity * torch.bmm(torch.bmm(rows, picture), columns.mT) for picture in (x, error))
        else:
            intensity = 1
        # Ours are x and the mean of the canvas, from -1 to 1: linear in x and the error.
        return torch.cat([(2 * part - intensity).flatten(1) for part in (x, x - error)], dim=1)

    def write(self, h_dec: torch.Tensor) -> torch.Tensor:
        controls, size = self.m.hand(h_dec), self.m.config.write_size
        if not self.m.config.attention:
            return controls.unflatten(1, self.m.spec.shape[1:])
        rows, columns, intensity = self.filters(controls[:, 1:10:2], size)
        intensity = intensity * ((max(self.m.spec.shape[1:]) - 1) / (size - 1)) ** -2
        return torch.bmm(torch.bmm(rows.mT, controls[:, 10:].unflatten(1, (size, size))), columns) / intensity

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures (B, 1, H, W) -> log p(x|z) (B,) and the KL of each glimpse (B, T)."""
        m = self.m
        x, canvas = x[:, 0], m.canvas.expand(len(x), -1, -1, -1)[:, 0]
        h_enc, c_enc, h_dec, c_dec = (start.expand(len(x), -1) for start in m.start)
        kls = []
        for t in range(m.config.glimpses):
            read = self.read(x, x - torch.sigmoid(canvas), h_dec)
            h_enc, c_enc = self.encoder(torch.cat([read, h_dec], dim=1), (h_enc, c_enc))
            mean, log_variance = m.posterior(h_enc).chunk(2, dim=1)
            z = mean + torch.exp(0.5 * log_variance) * noise[:, t]
            kls.append(kl_divergence(Normal(mean, torch.exp(0.5 * log_variance)), Normal(0.0, 1.0)).sum(1))
            h_dec, c_dec = self.decoder(z, (h_dec, c_dec))
            canvas = canvas + self.write(h_dec)
        return -F.binary_cross_entropy_with_logits(canvas, x, reduction="none").sum((1, 2)), torch.stack(kls, dim=1)


@pytest.mark.parametrize("attention", [True, False])
def test_it_is_the_plain_loop_of_the_paper(attention):
    m, batch = model(attention=attention), examples(BINARY)
    with torch.no_grad():
        (ours,) = m.particles_of(batch, rng(6), 1)
        log_likelihood, kls = Plain(m)(batch.x, rng(6).normal(1, 3, 2)[:, 0])
    assert torch.allclose(ours.log_likelihood[:, 0], log_likelihood, atol=1e-4)
    assert torch.allclose(ours.kl[:, 0], kls, atol=1e-5) and kls.min() > 1e-3


def test_one_glimpse_without_attention_is_a_vae():
    """Of the same weights: the networks of a vae are what the encoder and decoder do in one glimpse."""
    m, batch = model(glimpses=1, attention=False), examples(BINARY)
    vae = VAE(VAEConfig(latent=2, net="mlp", width=4), BINARY).eval()

    class Encoder(nn.Module):
        def forward(self, x):
            x = x.flatten(1)
            zero = 2 * torch.sigmoid(m.canvas).flatten().expand(len(x), -1) - 1
            hidden, cell, other = (m.start[i].expand(len(x), -1) for i in (0, 1, 2))
            gates = m.encoder(torch.cat([zero, other, hidden], dim=1)) + x @ m.window.picture.weight.T
            i, f, o, g = gates.chunk(4, dim=1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            return m.posterior(torch.sigmoid(o) * torch.tanh(cell))

    class Decoder(nn.Module):
        def forward(self, z):
            hidden, cell = (m.start[i].expand(len(z), -1) for i in (2, 3))
            i, f, o, g = m.decoder(torch.cat([z, hidden], dim=1)).chunk(4, dim=1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            return (m.canvas.flatten() + m.hand(torch.sigmoid(o) * torch.tanh(cell)))[:, None]

    vae.encoder, vae.decoder = Encoder(), Decoder()
    with torch.no_grad():
        ours, theirs = (some.scores(batch, rng(6), particles=7) for some in (m, vae))
        noise = StepStream(6, generator("noise")), StepStream(6, generator("noise"))
        losses = [some.loss(batch, own).total for some, own in zip((m, vae), noise, strict=True)]
    assert ours.keys() == theirs.keys()
    for name, score in theirs.items():
        assert torch.allclose(ours[name].values, score.values, atol=1e-5), name
    assert torch.allclose(*losses)


@pytest.mark.parametrize("attention", [True, False])
def test_gradients_by_finite_differences(attention):
    m = model(attention=attention).double()
    x = examples(BINARY, 3).x.double()
    noise = torch.randn(3, 3, 2, generator=generator("noise"), dtype=torch.float64)

    def cost() -> torch.Tensor:
        canvas, reader = m.drawn_from(x, noise)
        mean, log_variance = reader.moments
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance)
        return kl.sum() - m.observation.log_prob(x.flatten(1), m.parameters_of(canvas)).sum()

    cost().backward()
    for name, parameter in m.named_parameters():
        way, step = torch.randn(parameter.shape, generator=generator(name), dtype=torch.float64), 1e-5
        with torch.no_grad():
            costs = []
            for sign in (1, -2):  # to one side, then to the other
                parameter += sign * step * way
                costs.append(cost())
            parameter += step * way
        slope = float(costs[0] - costs[1]) / (2 * step)
        # Differences of costs of about 50 are right to 1e-14 * 50 / 1e-5, and the third derivative adds step^2.
        assert float((parameter.grad * way).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-6), name
        assert slope != 0, name


# --- bounds


def test_bounds_against_quadrature():
    m, batch = model(glimpses=2, latent=1), examples(BINARY, 4)
    axis = torch.linspace(-6, 6, 81)
    grid = torch.cartesian_prod(axis, axis)  # z_1, z_2
    with torch.no_grad():
        *_, canvas = m.canvases(lambda t, *_: grid[:, t : t + 1], len(grid))
        (logits,) = m.parameters_of(canvas)
        joint = torch.stack([m.observation.log_prob(x.flatten(), (logits,)) for x in batch.x]).double()
        joint += Normal(0, 1).log_prob(grid).sum(1).double()
        exact = torch.logsumexp(joint, dim=1) + 2 * math.log(12 / 80)
        scores = m.scores(batch, rng(4), particles=4000)
        many = Batch(batch.x.repeat(50, 1, 1, 1))
        by_count = [float(m.log_prob(many, rng(200), particles=k).mean()) for k in (1, 5, 50)]
    bound, gap = -scores["iw_bound"].values, exact + scores["elbo"].values
    assert (bound - exact).abs().max() < 0.1
    assert gap.min() > -0.05 and gap.max() > 0.05  # exact - ELBO = KL(q(z|x) || p(z|x)), here not nothing
    assert sorted(by_count) == by_count and by_count[-1] < exact.mean() + 0.05
    kl = scores["kl"].values
    assert torch.allclose(kl, scores["kl_1"].values + scores["kl_2"].values) and scores["kl"].kind == "estimate"
    assert torch.allclose(scores["elbo"].values, scores["reconstruction"].values + kl)


def test_the_loss_is_the_elbo():
    m, batch = model(), examples(BINARY, 500)
    with torch.no_grad():
        loss = m.loss(batch, StepStream(500, generator("noise")))
        elbo = m.scores(batch, rng(500), particles=20)["elbo"].values.mean()
    assert float(loss.total) == pytest.approx(float(elbo), abs=0.3)
    steps = [loss.parts[f"kl_{t}"] for t in (1, 2, 3)]
    assert float(loss.parts["kl"]) == pytest.approx(float(sum(steps)), rel=1e-5)
    with torch.no_grad():
        warm = model(kl_warmup=10).loss(batch, StepStream(500, generator("noise")))
    assert float(warm.total) == pytest.approx(float(loss.total - 0.9 * loss.parts["kl"]), rel=1e-5)


# --- examples


@pytest.mark.parametrize("spec", [BINARY, COLOUR, REAL], ids=["binary", "colour", "real"])
@pytest.mark.parametrize("config", [{}, {"attention": False}, {"read_size": 1, "write_size": 12}],
                         ids=["attention", "whole", "sizes"])
def test_pictures_of_any_kind(spec, config):
    m, batch = model(spec, 1.0, **config), examples(spec)
    with torch.no_grad():
        loss = m.loss(batch, StepStream(6, generator("noise"))).total
        code = m.encode(batch, rng(6))
        drawn = m.decode(code, rng(6), draw=True).x
    assert torch.isfinite(loss) and code.shape == (6, 3, 2) and drawn.shape == batch.x.shape
    if spec.levels:
        assert torch.allclose(drawn * (spec.levels - 1), (drawn * (spec.levels - 1)).round(), atol=1e-3)
    assert m.density == (spec.levels is None)


def test_codes():
    m, batch = model(), examples(BINARY, 1)
    many = Batch(batch.x.expand(4000, -1, -1, -1))
    with torch.no_grad():
        mean, draws = m.encode(batch, rng(1)), m.encode(many, rng(4000), output="draw")
        first, log_variance = (part[0, 0] for part in m.drawn_from(batch.x, None)[1].moments)
    assert torch.equal(mean[0, 0], first)
    # The first glimpse's posterior depends on no draw: 4,000 draws have its moments to 5 errors of them.
    assert ((draws[:, 0].mean(0) - first).abs() < 5 * (0.5 * log_variance).exp() / 4000**0.5).all()
    assert torch.allclose(draws[:, 0].std(0), (0.5 * log_variance).exp(), rtol=5 / 8000**0.5)


def test_a_film_shows_the_canvas_glimpse_by_glimpse():
    m = model()
    with torch.no_grad():
        film = m.film(rng(2), 4)
        assert torch.equal(film[-1].x, m.sample(rng(2)).x)
        assert torch.allclose(film[0].x, torch.sigmoid(m.canvas).expand(2, -1, -1, -1))
        code = m.prior(rng(2))
        changed = code.clone()
        changed[:, 1] += 1  # of the second glimpse: the frames before it stay
        other = m.film(rng(2), 4, code=changed)
        assert [torch.equal(a.x, b.x) for a, b in zip(film, other, strict=True)] == [True, True, False, False]
        assert torch.equal(other[-1].x, m.decode(changed).x)
        assert [torch.equal(a.x, film[place].x) for a, place in zip(m.film(rng(2), 2), (0, 3), strict=True)]


def test_it_learns():
    """Two kinds of picture: the bound comes near the entropy, which is known."""
    torch.manual_seed(0)
    m = DRAW(DRAWConfig(glimpses=2, latent=2, hidden=16), BINARY)
    pictures = torch.zeros(2, *BINARY.shape)
    pictures[1, :, :, :2] = 1
    optimiser = torch.optim.Adam(m.parameters(), 2e-2)
    for step in range(120):
        batch = Batch(pictures[torch.randint(2, (16,), generator=generator("order", step))])
        optimiser.zero_grad()
        m.loss(batch, StepStream(16, generator("noise", step))).total.backward()
        optimiser.step()
    with torch.no_grad():
        bound = -m.log_prob(Batch(pictures), rng(2), particles=500).mean()
    assert math.log(2) - 0.01 < float(bound) < math.log(2) + 0.4
