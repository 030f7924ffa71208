"""Discrete codes: gradients by hand, codes as a bijection, the prior by enumeration, and codes as examples."""

import itertools
import math

import numpy as np
import pytest
import torch

from gencli import runs, streams
from gencli.data import load
from gencli.errors import DataError
from gencli.families.vqvae import FSQ, VQ, VQVAE, VQVAEConfig, _Prior
from gencli.kinds.image import ImageSpec
from gencli.model import Batch
from gencli.rng import ExampleStreams, StepStream, generator

SPEC = ImageSpec(channels=1, height=6, width=7, levels=2)


def noise(count: int, seed: int = 0) -> ExampleStreams:
    return ExampleStreams(seed, torch.arange(count))


# --- quantisers


@pytest.mark.parametrize("levels", [[8, 6, 5], [2, 3], [4], [2, 2, 2, 2]])
def test_numbers_of_codes_are_a_bijection(levels):
    quantiser = FSQ(levels)
    index = torch.arange(math.prod(levels)).view(1, 1, -1)
    vectors = quantiser.vectors_of(index)
    assert torch.equal(quantiser.nearest(vectors), index)
    assert len(vectors[0, :, 0].T.unique(dim=0)) == quantiser.codes == math.prod(levels)
    assert vectors.min() == -1 and vectors.max() <= 1
    expected = [[(digit - n // 2) / (n // 2) for digit, n in zip(digits[::-1], levels, strict=True)]
                for digits in itertools.product(*map(range, levels[::-1]))]  # the first dimension runs fastest
    assert torch.allclose(vectors[0, :, 0].T, torch.tensor(expected))


@pytest.mark.parametrize("levels", [[8, 6, 5], [2, 3]])
def test_every_level_is_reached_and_none_beyond(levels):
    quantiser = FSQ(levels)
    z = torch.linspace(-9, 9, 2001).expand(1, len(levels), 1, -1)
    index = quantiser.index(z)
    for d, n in enumerate(levels):
        digits = (index // math.prod(levels[:d])) % n
        assert digits.diff().min() >= 0 and digits.unique().tolist() == list(range(n))


def test_the_gradient_passes_scalar_quantisation_as_that_of_its_squashing():
    quantiser = FSQ([5, 4]).double()
    z = torch.tensor([[0.3, 0.7, -1.4, 0.2], [-1.1, 0.4, 2.0, 0.5]], dtype=torch.float64)
    weight = torch.tensor([[2.0, -3.0, 0.5, 1.0], [1.5, 1.0, -2.0, 0.7]], dtype=torch.float64)

    def given(rows: torch.Tensor, squashed_alone: bool) -> torch.Tensor:
        if not squashed_alone:
            vectors, _ = quantiser(rows.T.view(4, 2, 1, 1))
            return (vectors.view(4, 2).T * weight).sum()
        # By hand: x = tanh(z + shift) (L - 1) 0.999 / 2 - offset over L // 2, z of mean 0 and variance 1; an even
        # number of levels has offset 1/2.
        centred = rows - rows.mean(1, keepdim=True)
        rows = centred / centred.square().mean(1, keepdim=True).sqrt()
        terms = []
        for d, (n, offset) in enumerate(((5, 0.0), (4, 0.5))):
            span = (n - 1) * 0.999 / 2
            terms.append((torch.tanh(rows[d] + math.tan(offset / span)) * span - offset) / (n // 2) * weight[d])
        return torch.stack(terms).sum()

    gradients = [torch.autograd.functional.jacobian(lambda rows, alone=alone: given(rows, alone), z)
                 for alone in (False, True)]
    assert torch.allclose(*gradients, rtol=1e-5) and gradients[0].abs().max() > 0.1


def test_codes_do_not_depend_on_the_mean_and_the_spread_of_what_is_quantised():
    z = torch.randn(50, 2, 2, 2, generator=generator("z"))
    quantisers = FSQ([5, 4]), FSQ([5, 4])
    _, index = quantisers[0](z)
    scale, shift = torch.tensor([30.0, 0.02]).view(2, 1, 1), torch.tensor([-200.0, 3.0]).view(2, 1, 1)
    for _ in range(150):
        _, moved = quantisers[1](scale * z + shift)
    later = quantisers[1].index(scale * z + shift)
    close = (moved != index).float().mean(), (later != index).float().mean()  # one may lie on an edge
    assert max(close) <= 0.01, "later averages over batches stand in for the batch"
    assert len(index.unique()) == 20
    alone = torch.cat([quantisers[1].index(scale * one + shift) for one in z.split(1)])
    assert torch.equal(alone, later), "a code does not depend on its batch"


@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_codes_do_not_collapse_while_the_decoder_learns_the_mean_picture(net):
    """White pictures with a black square somewhere: the mean is far from what a network starts with."""
    torch.manual_seed(0)
    spec = ImageSpec(channels=1, height=16, width=16, levels=2)
    model = VQVAE(VQVAEConfig(net=net, halvings=3, prior_width=4, prior_layers=1), spec)
    [player] = model.phases()[0].players
    optimiser = torch.optim.AdamW(player.parameters, lr=2e-3)
    for step in range(80):
        rng = StepStream(64, generator(str(step)))
        x = torch.ones(64, 1, 16, 16)
        for one, (i, j) in zip(x, (12 * rng.uniform(2)).long().tolist(), strict=True):
            one[0, i : i + 4, j : j + 4] = 0
        loss = model.loss(Batch(x), rng)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    assert loss.parts["perplexity"] > 10


def test_the_gradient_passes_a_codebook_straight_through():
    torch.manual_seed(0)
    quantiser = VQ(7, 3, 0.9)
    z = torch.randn(2, 3, 2, 2, requires_grad=True)
    vectors, index = quantiser(z)
    rows = z.detach().movedim(1, -1).reshape(-1, 3)
    nearest = ((rows[:, None] - quantiser.vectors) ** 2).sum(2).argmin(1)
    assert torch.equal(index.flatten(), nearest)
    assert torch.allclose(vectors.movedim(1, -1).reshape(-1, 3), quantiser.vectors[nearest], atol=1e-6)
    weight = torch.randn_like(z)
    (vectors * weight).sum().backward()
    assert torch.equal(z.grad, weight), "as if nothing had been quantised"


def test_vectors_are_moving_averages_of_what_they_are_nearest_to():
    quantiser = VQ(3, 1, 0.75)
    quantiser.vectors.copy_(torch.tensor([[0.0], [10.0], [20.0]]))
    quantiser.counts.fill_(2)
    quantiser.sums.copy_(2 * quantiser.vectors)
    z = torch.tensor([1.0, 3.0, 9.0, -1.0]).view(1, 1, 1, 4)
    quantiser.follow(z, quantiser.index(z))
    counts = [0.75 * 2 + 0.25 * 3, 0.75 * 2 + 0.25, 1.5]
    sums = [0.75 * 0 + 0.25 * 3, 0.75 * 20 + 0.25 * 9, 30.0]
    assert quantiser.vectors.flatten().tolist() == pytest.approx([s / n for s, n in zip(sums, counts, strict=True)])


def test_a_vector_that_nothing_is_near_to_starts_anew_at_an_output_and_others_stay():
    quantiser = VQ(4, 2, 0.9)
    quantiser.counts.copy_(torch.tensor([5.0, 0.0, 4.0, 0.001]))
    before, z = quantiser.vectors.clone(), 100 + torch.randn(2, 2, 1, 3)
    quantiser.start_dead_anew(z, StepStream(2, generator("a")))
    outputs = {tuple(row) for row in z.movedim(1, -1).reshape(-1, 2).tolist()}
    assert torch.equal(quantiser.vectors[[0, 2]], before[[0, 2]])
    assert {tuple(row) for row in quantiser.vectors[[1, 3]].tolist()} <= outputs
    assert quantiser.counts[[1, 3]].tolist() == [6 / 4] * 2
    first = VQ(5, 2, 0.9)  # at the start all are dead
    first.start_dead_anew(z, StepStream(2, generator("a")))
    assert {tuple(row) for row in first.vectors.tolist()} <= outputs and len(first.vectors.unique(dim=0)) == 5


# --- the prior


def tiny_prior(classes: int = 0) -> _Prior:
    torch.manual_seed(0)
    prior = _Prior(codes=3, width=4, layers=1, classes=classes).double()
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return prior


@torch.no_grad()
def test_the_prior_sums_to_one():
    index = torch.tensor([*itertools.product(range(3), repeat=6)]).view(-1, 2, 3)
    for classes, labels in ((0, None), (2, torch.ones(len(index), dtype=torch.int64))):
        log_prob = tiny_prior(classes).log_prob(index, labels)
        assert float(log_prob.exp().sum()) == pytest.approx(1, abs=1e-12)
        assert log_prob.std() > 0.1


@torch.no_grad()
def test_draws_of_the_prior_have_its_distribution():
    """Of a walk place by place against the whole network: each code is where its noise lies in the cumulative sum."""
    prior, u = tiny_prior(2), noise(40).uniform(2, 3, dtype=torch.float64)
    labels = torch.arange(40) % 2
    index = prior.draw(u, labels)
    features = prior.stacks(prior.embedding(index).permute(0, 3, 1, 2), labels).permute(0, 2, 3, 1)
    upper = torch.softmax(prior.head(features), dim=-1).cumsum(-1)
    assert torch.equal((upper <= u[..., None]).sum(-1), index) and len(index.unique()) == 3


# --- the model


@torch.no_grad()
def test_the_bound_is_one():
    """Over all codes of a model with a 1 x 2 grid, the sum of p(z) p(x|z) is at least what the encoder's code says."""
    torch.manual_seed(0)
    spec = ImageSpec(channels=1, height=2, width=4, levels=2)
    model = VQVAE(VQVAEConfig(grades="3", halvings=1, width=4, prior_width=4, prior_layers=1), spec).eval()
    x = torch.tensor([*itertools.product((0.0, 1.0), repeat=8)]).view(-1, 1, 2, 4)
    bound = model.log_prob(Batch(x), noise(len(x)))
    index = torch.tensor([*itertools.product(range(3), repeat=2)]).view(-1, 1, 2)
    parameters = model._outputs(model.quantiser.vectors_of(index))
    joint = torch.stack([model.prior_net.log_prob(index, None) + model.observation.log_prob(
        one.flatten()[None], parameters) for one in x])
    exact = joint.double().logsumexp(1)
    assert float(exact.exp().sum()) == pytest.approx(1, abs=1e-5), "it is a distribution over all pictures"
    assert (bound <= exact + 1e-5).all() and (bound < exact - 0.1).any()
    own = model._index_of(Batch(x))
    chosen = (own[:, 0, 0] * 3 + own[:, 0, 1])[:, None]
    assert torch.allclose(joint.gather(1, chosen)[:, 0].double(), bound, atol=1e-5)
    scores = model.scores(Batch(x), noise(len(x)))
    assert torch.allclose(scores["elbo"].values, -bound)
    assert torch.allclose(scores["reconstruction"].values + scores["kl"].values, -bound)


def test_a_path_has_the_nearest_codes_of_a_straight_line():
    for options in ({"grades": "5,3"}, {"quantiser": "vq", "codes": 6, "dimensions": 2}):
        torch.manual_seed(0)
        model = VQVAE(VQVAEConfig(width=4, prior_width=4, prior_layers=1, **options), SPEC)
        a, b = (model.prior(noise(1, seed))[0] for seed in (1, 2))
        path = model.interpolate(a, b, 5)
        assert torch.equal(path[0], a) and torch.equal(path[-1], b) and path.shape == (5, 1, 2, 2)
        vectors = model.quantiser.vectors_of(torch.arange(model.quantiser.codes).view(1, 1, -1))[0, :, 0].T
        ends = vectors[a.long().flatten()], vectors[b.long().flatten()]
        for t, code in zip(torch.linspace(0, 1, 5)[1:-1], path[1:-1], strict=True):
            distance = torch.cdist(torch.lerp(*ends, t), vectors)
            chosen = distance.gather(1, code.long().view(-1, 1))[:, 0]
            assert torch.allclose(chosen, distance.min(1).values, atol=1e-6)


def test_the_prior_learns_codes_that_stay_as_they_are():
    torch.manual_seed(0)
    model = VQVAE(VQVAEConfig(grades="3,2", width=4, prior_width=4, prior_layers=1), SPEC)
    batch, rng = Batch(torch.rand(4, 1, 6, 7).round()), StepStream(4, generator("prior"))
    _, prior = model.phases()
    prior.players[0].loss(batch, rng).total.backward()
    moved = {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert moved == {"prior_net"}


def test_a_collapse_is_told_once_an_encoder_has_had_its_time():
    model = VQVAE(VQVAEConfig(width=4, prior_width=4, prior_layers=1), SPEC)
    few, many = [[{"codes_used": used}] * 3 for used in (0.05, 0.5)]
    model.step = 299
    assert model.alarm(few) is None
    model.step = 300
    assert "5.0% of the 240" in model.alarm(few)
    assert model.alarm(many) is None and model.alarm(few[:2]) is None and model.alarm([{"loss": 1.0}] * 3) is None


def test_a_model_that_did_not_normalise_is_read_as_it_was():
    model = VQVAE(VQVAEConfig(grades="3,2", width=4, prior_width=4, prior_layers=1), SPEC)
    state = model.state_dict()
    del state["quantiser.mean"], state["quantiser.variance"]
    model.load_state_dict(state)
    z = 0.8 * torch.randn(9, 2, 2, 2)
    expected = model.quantiser._number(model.quantiser.squash(z).round())
    assert torch.equal(model.quantiser.index(z), expected)
    assert torch.equal(model.quantiser._normalised(z, model.quantiser.mean, model.quantiser.variance), z), "to the bit"


def test_two_processes_normalise_by_the_batch_of_both(small_data, torchrun, gencli, tmp_path):
    words = ["train", "vqvae", str(small_data["image"]), "--grades", "5,4", "--width", "4", "--prior-width", "4",
             "--prior-layers", "1", "--batch-size", "8", "--steps", "6", "--ema", "0", "--precision", "fp32"]
    done = torchrun(2, *words, "-o", "two")
    assert done.returncode == 0, done.stderr
    gencli(*words, "-o", "one")
    two, one = (runs.load_model(tmp_path / name)[0].state_dict() for name in ("two", "one"))
    assert torch.allclose(two["encoder.1.weight"], one["encoder.1.weight"], rtol=0, atol=5e-6)
    assert torch.allclose(two["quantiser.mean"], one["quantiser.mean"], rtol=0, atol=1e-3)


def test_codes_in_use_are_counted():
    model = VQVAE(VQVAEConfig(grades="2,2", width=4, prior_width=4, prior_layers=1), SPEC)
    model._index_of = lambda batch: batch.x.long()
    used, perplexity = model.diagnose([Batch(torch.tensor([[[0, 0]]])), Batch(torch.tensor([[[2, 2]]]))])
    assert (used.name, used.value, used.unit) == ("codes_in_use", 2, "of 4")
    assert perplexity.value == pytest.approx(2)


# --- codes as examples


def test_other_families_learn_codes_and_their_samples_are_codes(small_run, small_data, tmp_path, gencli):
    run = str(small_run("vqvae", "image"))
    gencli("encode", run, str(small_data["image"]), "-o", "codes.npz")
    with np.load(tmp_path / "codes.npz", allow_pickle=False) as file:
        codes = file["codes"]
    assert codes.dtype == np.int32 and codes.shape[1:] == (1, 3, 2) and 0 <= codes.min() <= codes.max() < 6
    data = load(str(tmp_path / "codes.npz"), split="all")
    assert data.spec == runs.load_model(run)[0].code_spec and data.spec.classes == ("0", "1")
    assert np.array_equal((data.whole().x * 5).round().numpy(), codes)
    gencli("train", "pixelcnn", "codes.npz", "--likelihood", "categorical", "--conditional", "--width", "4", "--layers",
           "1", "--steps", "4", "-o", "prior")
    gencli("sample", "prior", "-n", "5", "--label", "1", "-o", "drawn.npz")
    with np.load(tmp_path / "drawn.npz", allow_pickle=False) as file:
        assert file["images"].dtype == np.int32 and file["images"].max() < 6
        drawn = file["images"]
    gencli("sample", run, "--latents", "drawn.npz", "-o", "pictures.npz")
    np.savez(tmp_path / "plain.npz", codes=drawn)
    gencli("sample", run, "--latents", "plain.npz", "-o", "same.npz")
    with np.load(tmp_path / "pictures.npz") as file, np.load(tmp_path / "same.npz") as same:
        assert file["images"].shape == (5, 1, 9, 7) and np.array_equal(file["images"], same["images"])
    for words, message in ((["--size", "2"], "leave --size"), (["--channels", "3"], "leave --size")):
        assert message in gencli("train", "pixelcnn", "codes.npz", *words, "-o", "no", code=2).stderr


def test_codes_of_other_families_are_rows(small_run, small_data, tmp_path, gencli):
    gencli("encode", str(small_run("vae", "image")), str(small_data["image"]), "-o", "codes.npz")
    gencli("train", "gmm", "codes.npz", "--components", "2", "-o", "density")
    data = load(str(tmp_path / "codes.npz"), split="all")
    assert data.spec.kind == "vector" and data.spec.classes == ("0", "1") and len(data) == 96


@pytest.mark.parametrize("levels", [3, 240, 1000, 40_000])
def test_any_number_of_levels_goes_through_a_file(levels, tmp_path):
    spec = ImageSpec(channels=1, height=2, width=3, levels=levels)
    numbers = torch.randint(levels, (50, 1, 2, 3), generator=generator("levels"))
    numbers[0] = levels - 1
    with streams.open_writer(str(tmp_path / "a.npz"), spec) as writer:
        writer.write(Batch(numbers / (levels - 1)))
    data = load(str(tmp_path / "a.npz"), split="all")
    assert data.spec == spec and torch.equal((data.whole().x * (levels - 1)).round().long(), numbers)
    np.savez(tmp_path / "b.npz", images=numbers.numpy() + 1, spec=np.array(spec.model_dump_json()))
    with pytest.raises(DataError, match=f"levels 0 to {levels - 1}"):
        load(str(tmp_path / "b.npz"), split="all")


@pytest.mark.parametrize("wrong", [-1.0, 6.0, 0.5, math.nan])
def test_codes_that_the_model_lacks_are_refused(wrong, small_run, tmp_path, gencli):
    codes = np.zeros((3, 1, 3, 2))
    codes[1, 0, 2, 1] = wrong
    np.savez(tmp_path / "c.npz", codes=codes)
    said = gencli("sample", str(small_run("vqvae", "image")), "--latents", "c.npz", "-o", "s.png", code=3).stderr
    assert "whole numbers from 0 to 5" in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(("words", "message"), [
    (["--grades", "8,1"], "2 or more"), (["--grades", "eight"], "2 or more"),
    (["--grades", "300,300"], "at most 65,536"), (["--quantiser", "vq", "--codes", "1"], "--codes 1")])
def test_options_that_make_no_codes(words, message, gencli):
    assert message in gencli("train", "vqvae", "digits", *words, "-o", "x", code=2).stderr
