"""PixelCNN against enumeration, autograd, and full forward passes for every pixel."""

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image

from gencli import inference, runs
from gencli.errors import UsageError
from gencli.families.pixelcnn import PixelCNN, PixelCNNConfig
from gencli.kinds.image import ImageSpec
from gencli.layers.gate import gate
from gencli.model import Batch, Given
from gencli.rng import ExampleStreams

NETS = ["gated", "plain"]
# name -> options
KINDS_OF_NET = {"gated": {}, "plain": {}, "attention": {"net": "gated", "attention": 2}}
# name -> (channels, height, width, levels, likelihood, classes): each with few enough pictures to try them all
SMALL = {
    "bernoulli": (1, 3, 3, 2, "auto", 0),
    "bernoulli, channels": (3, 1, 3, 2, "bernoulli", 0),
    "categorical": (2, 2, 1, 5, "auto", 2),
    "mixture": (1, 2, 2, 7, "mixture", 0),
    "mixture, channels": (3, 1, 2, 4, "mixture", 2),
}
# The same outputs on pictures wide and high enough for the filters.
LARGER = {
    "bernoulli": (1, 9, 8, 2, "auto", 0),
    "categorical": (2, 9, 8, 5, "auto", 2),
    "8-bit categorical": (3, 5, 6, 256, "categorical", 0),
    "8-bit mixture": (3, 5, 6, 256, "auto", 2),
}


def make(net, channels, height, width, levels, likelihood, classes, scale=2.0, **config) -> PixelCNN:
    """A network of random weights, large enough that pixels matter to each other."""
    torch.manual_seed(0)
    spec = ImageSpec(channels=channels, height=height, width=width, levels=levels, classes=tuple("abc"[:classes]))
    settings = {"width": 8, "layers": 2, "kernel": 3, "components": 3, "conditional": classes > 0, **KINDS_OF_NET[net],
                **config}
    model = PixelCNN(PixelCNNConfig(**{"net": net, "likelihood": likelihood, **settings}), spec)
    for parameter in model.parameters():
        parameter.data.mul_(scale)
    return model.eval().requires_grad_(False)


def pictures(model, count) -> Batch:
    generator = torch.Generator().manual_seed(1)
    levels = model.spec.levels
    x = torch.randint(levels, (count, *model.spec.shape), generator=generator).float() / (levels - 1)
    return Batch(x, torch.arange(count) % model.classes if model.classes else None)


@pytest.mark.parametrize("net", KINDS_OF_NET)
def test_muon_trains_the_weights_of_the_layers(net):
    """All of them, and nothing else: no bias, no embedding, and neither the first filters nor the outputs."""
    model = make(net, *LARGER["categorical"])
    [player] = model.phases()[0].players
    matrices = player.optimiser(player.parameters, 1e-3, 0.0).param_groups[0]["params"]
    names = {name for name, weight in model.named_parameters() if any(weight is matrix for matrix in matrices)}
    wanted = {name for name, weight in model.named_parameters()
              if weight.ndim > 1 and name.startswith(("net.layers", "net.attention")) and ".classes." not in name}
    assert names == wanted and len(matrices) == len(wanted)



def logits_of(model, batch) -> torch.Tensor:
    """All logits by one full pass, (B, D, L), in reading order."""
    levels = (batch.x * (model.levels - 1)).round()
    features, x = model(levels.to(next(model.parameters()).dtype) / (model.levels - 1), batch.labels)
    return torch.stack([model.output.logits(features, x, c) for c in range(model.spec.channels)], 3).flatten(1, 3)


def streams(count) -> ExampleStreams:
    return ExampleStreams(3, torch.arange(count), "test")


cases = pytest.mark.parametrize("case", LARGER)
nets = pytest.mark.parametrize("net", KINDS_OF_NET)


# --- likelihood


@nets
@pytest.mark.parametrize("case", SMALL)
def test_the_probabilities_of_all_pictures_add_up_to_one(net, case):
    model = make(net, *SMALL[case]).double()
    levels, size = model.spec.levels, model.spec.size
    every = torch.tensor(list(itertools.product(range(levels), repeat=size)), dtype=torch.float64) / (levels - 1)
    labels = torch.ones(len(every), dtype=torch.int64) if model.classes else None
    log_prob = model.log_prob(Batch(every.view(-1, *model.spec.shape), labels), streams(len(every)))
    assert torch.logsumexp(log_prob, 0).abs() < 1e-9
    assert log_prob.max() - log_prob.min() > 1  # and they are not all alike


def test_without_labels_every_class_is_as_likely():
    model = make("gated", *SMALL["categorical"])
    x = pictures(model, 4).x
    each = torch.stack([model.log_prob(Batch(x, torch.full((4,), c)), streams(4)) for c in range(2)])
    assert torch.allclose(model.log_prob(Batch(x), streams(4)), each.exp().mean(0).log(), atol=1e-5)
    assert (each[0] - each[1]).abs().min() > 1e-3


def test_a_mixture_of_one_is_a_logistic_cut_into_bins():
    model = make("gated", 1, 3, 3, 256, "mixture", 0, components=1).double()
    batch = pictures(model, 5)
    features, x = model(batch.x.double())
    _, mean, log_scale, _ = model.output._split(features)
    mean, scale = mean[..., 0, :], log_scale[..., 0, :].exp()
    edges = torch.linspace(-1, 1, 256, dtype=torch.float64)[:-1] + 1 / 255
    cdf = torch.nn.functional.pad(torch.sigmoid((edges - mean) / scale), (1, 0))
    expected = torch.cat([cdf, torch.ones_like(cdf[..., :1])], -1).diff(dim=-1)
    assert torch.allclose(model.output.logits(features, x, 0).exp(), expected, atol=1e-12)


# --- what a pixel sees


def seen(model, row, column) -> torch.Tensor:
    """(C, H, W) bool: what the features of a pixel depend on, by autograd."""
    x = pictures(model, 3).x.double().requires_grad_()
    model(x, None)[0][:, row, column].abs().sum().backward()
    return (x.grad != 0).any(0)


def before(spec, row, column) -> torch.Tensor:
    """(C, H, W) bool: the pixels before this one in reading order."""
    order = torch.arange(spec.height * spec.width).view(1, spec.height, spec.width)
    return (order < row * spec.width + column).expand(spec.shape)


@nets
@pytest.mark.parametrize("kernel", [3, 5, 9])
def test_no_pixel_sees_itself_or_later_ones(net, kernel):
    model = make(net, 2, 6, 7, 4, "auto", 0, kernel=kernel).double()
    for row, column in itertools.product(range(6), range(7)):
        view = seen(model, row, column)
        assert not (view & ~before(model.spec, row, column)).any()
        assert view.any() or (row, column) == (0, 0)


@cases
def test_a_channel_sees_the_channels_before_it_alone(case):
    model = make("gated", *LARGER[case]).double()
    batch = pictures(model, 20)
    features, x = model(batch.x.double(), batch.labels)
    pixel = x[:, 1, 1].clone().requires_grad_()
    for channel in range(model.spec.channels):
        logits = torch.log_softmax(model.output.logits(features[:, 1, 1], pixel, channel), -1)
        (gradient,) = torch.autograd.grad(logits[:, 0].sum() + 0 * pixel.sum(), pixel)
        assert (gradient[:, :channel] != 0).any(0).all() and (gradient[:, channel:] == 0).all()


def test_the_plain_net_has_a_blind_spot_and_the_gated_net_has_none():
    views = {}
    for net in NETS:
        model = make(net, 1, 9, 9, 2, "auto", 0, layers=6).double()
        views[net] = seen(model, 8, 4)[0]
        missed = before(model.spec, 8, 4)[0] & ~views[net]
        assert bool(missed.any()) == (net == "plain")
    assert not views["plain"][7, 8] and views["gated"][7, 8]  # close by, above to the right


def test_a_block_of_attention_sees_every_pixel_before():
    model = make("attention", 2, 9, 12, 2, "auto", 0, kernel=3, layers=1, attention=1).double()
    for row, column in ((8, 4), (1, 0), (4, 11)):
        assert torch.equal(seen(model, row, column), before(model.spec, row, column))


def test_the_gate_has_the_right_gradient():
    y = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    a, b = y.chunk(2, 1)
    expected, made, weight = torch.sigmoid(b) * torch.tanh(-a / 2), gate(y + 0, 1), torch.arange(18).view(2, 3, 3)
    assert torch.allclose(made, expected) and torch.allclose(gate(y.detach().clone(), 1), expected)
    gradients = [torch.autograd.grad((weight * out).sum(), y)[0] for out in (made, expected)]
    assert torch.allclose(*gradients)


# --- in several orders

# What sorts the pixels of a picture, (row, column), into each order
ORDERS = [lambda r, c: (r, c), lambda r, c: (-r, -c), lambda r, c: (r, -c), lambda r, c: (-r, c),
          lambda r, c: (c, r), lambda r, c: (-c, -r), lambda r, c: (-c, r), lambda r, c: (c, -r)]


def every_binary(height, width) -> torch.Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=height * width))).view(-1, 1, height, width)


def assert_drawn(made, every, log_prob) -> None:
    """The pictures made are among all of these as often as their probabilities say."""
    p, n = log_prob.exp(), len(made)
    share = (made[:, None] == every).flatten(2).all(-1).double().mean(0)
    assert share.sum() == pytest.approx(1) and ((share - p).abs() < 5 * (p * (1 - p) / n).sqrt() + 1 / n).all()


@nets
@pytest.mark.parametrize(("size", "orders", "classes"), [((2, 3), 4, 2), ((2, 2), 8, 0)])
def test_the_mean_over_the_orders_is_a_distribution(net, size, orders, classes):
    model = make(net, 1, *size, 2, "auto", classes, orders=orders).double()
    x = every_binary(*size).double()
    labels = torch.ones(len(x), dtype=torch.int64) if classes else None
    each, mean = model._of_orders(x, labels), model.log_prob(Batch(x, labels), streams(len(x)))
    assert each.shape == (len(x), orders) and torch.allclose(each.exp().sum(0), torch.ones(orders).double())
    assert torch.allclose(mean.exp(), each.exp().mean(1)) and torch.logsumexp(mean, 0).abs() < 1e-9
    gain = mean - each.mean(1)
    assert (gain >= 0).all() and gain.max() > 0.1  # Jensen
    assert all((a - b).abs().max() > 1e-3 for a, b in itertools.combinations(each.unbind(1), 2))


@nets
def test_in_each_order_a_pixel_sees_the_pixels_before_it_alone(net):
    model = make(net, 1, 4, 4, 2, "auto", 0, orders=8).double()
    for number, key in enumerate(ORDERS):
        pixels = sorted(itertools.product(range(4), range(4)), key=lambda pixel, key=key: key(*pixel))
        order = torch.full((3,), number)
        for place in range(16):
            x = pictures(model, 3).x.double().requires_grad_()
            model(model._turn(x, order), model._tell(None, order))[0].flatten(1, 2)[:, place].abs().sum().backward()
            seen = {tuple(pixel) for pixel in (x.grad != 0).any(0)[0].nonzero().tolist()}
            assert seen <= set(pixels[:place]) and (place % 4 == 0 or pixels[place - 1] in seen)


def test_samples_are_those_of_the_mean_over_the_orders():
    model, every = make("gated", 1, 2, 2, 2, "auto", 0, scale=4.0, orders=8), every_binary(2, 2)
    assert_drawn(model.sample(streams(4000)).x, every, model.log_prob(Batch(every), streams(16)).double())


@pytest.mark.parametrize(("known", "order"), [("top", 0), ("bottom", 1), ("left", 4), ("right", 5)])
def test_what_is_known_comes_first(known, order):
    """Each half of a picture is completed by the conditional distribution of an order that begins with it."""
    model, every = make("gated", 1, 2, 2, 2, "auto", 0, scale=4.0, orders=8), every_binary(2, 2)
    mask, kept = torch.zeros(1, 2, 2, dtype=torch.bool), torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    mask[{"top": (0, 0), "bottom": (0, 1), "left": (0, slice(None), 0), "right": (0, slice(None), 1)}[known]] = True
    fits = every[(every == kept)[:, mask].all(1)]
    each = torch.log_softmax(model._of_orders(fits, None).double(), 0)
    assert (each - each[:, order, None]).abs().max() > 0.1  # another order would be noticed
    assert_drawn(model.sample(streams(4000), Given(known=kept, mask=mask)).x, fits, each[:, order])


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(("size", "orders"), [((5, 4), 4), ((4, 4), 8)])
def test_codes_hold_class_and_order(size, orders, labelled):
    model = make("gated", 2, *size, 5, "auto", 2, orders=orders)
    batch = pictures(model, 20)
    codes = model.encode(batch if labelled else Batch(batch.x), streams(20))
    _, classes, order = codes.split([model.spec.size, 2, orders], dim=1)
    assert torch.equal(model.decode(codes).x, batch.x) and len(order.argmax(1).unique()) > 1
    of_classes = model._of_classes(batch.x)
    assert (of_classes[:, 0] - of_classes[:, 1]).abs().min() > 1e-3
    expected = batch.labels if labelled else of_classes.argmax(1)
    assert torch.equal(classes, torch.nn.functional.one_hot(expected, 2).double())
    assert torch.equal(order.argmax(1), model._of_orders(batch.x, expected).argmax(1))
    drawn = model.prior(streams(200))
    assert drawn.shape[1] == codes.shape[1] and (drawn[:, -orders:].sum(0) > 0).all()


def test_orders_by_columns_need_square_pictures():
    with pytest.raises(UsageError, match="--orders 8"):
        make("gated", 1, 3, 2, 2, "auto", 0, orders=8)


# --- pixel by pixel


@nets
@cases
def test_the_walk_gives_the_logits_of_the_full_pass(net, case):
    model = make(net, *LARGER[case], kernel=5, scale=1.0)
    batch = pictures(model, 4)
    levels, found = model._in_order(batch.x), []

    def visit(number, logits):
        found.append(logits)
        return levels[:, number]

    again = model._walk(4, batch.labels, visit, torch.float64)
    assert torch.equal(again, batch.x)
    assert torch.allclose(torch.stack(found, 1), logits_of(model.double(), batch), rtol=1e-9, atol=1e-9)


@nets
@cases
def test_samples_are_those_of_full_passes(net, case):
    """Every level is the one in whose interval the noise lies, given the levels before it, by a pass in float64.

    A sample is computed in float32, so that the noise may be outside by as much as rounding moves the distribution.
    """
    model = make(net, *LARGER[case])
    batch = Batch(model.sample(streams(3), Given(torch.arange(3) % 2 if model.classes else None)).x,
                  torch.arange(3) % 2 if model.classes else None)
    u = torch.special.ndtr(model.prior(streams(3))[:, : model.spec.size])
    levels, single = model._in_order(batch.x), torch.softmax(logits_of(model, batch).double(), -1).cumsum(-1)
    p = torch.softmax(logits_of(model.double(), batch), -1)
    rounding = (single - p.cumsum(-1)).abs().max()
    assert rounding < 1e-5
    off = 4 * rounding + 1e-6  # the floors of 256 levels are less than 1e-6
    lowest, highest = ((p.cumsum(-1) < bound[..., None]).sum(-1) for bound in (u - off, u + off))
    assert ((lowest <= levels) & (levels <= highest)).all()
    assert (lowest == highest).float().mean() > 0.98, "rounding leaves no choice, all but seldom"
    assert len(batch.x.unique()) > 1


@nets
@cases
def test_a_code_gives_the_picture_back_bit_for_bit(net, case):
    model = make(net, *LARGER[case])
    batch = pictures(model, 6)
    codes = model.encode(batch, streams(6))
    assert codes.dtype == torch.float64 and torch.equal(model.decode(codes).x, batch.x)
    elsewhere = torch.cat([codes[3:], codes[:3], codes[4:]])  # other places of a larger batch round differently
    assert torch.equal(model.decode(elsewhere).x, torch.cat([batch.x[3:], batch.x[:3], batch.x[4:]]))


def test_codes_of_samples_are_standard_normal():
    model = make("gated", 1, 12, 12, 16, "auto", 0)
    codes = torch.cat([model.encode(model.decode(model.prior(rng)), rng) for rng in [streams(16)]])
    assert abs(codes.mean()) < 0.06 and abs(codes.std() - 1) < 0.06  # 2,304 numbers: three standard errors


def test_unlabelled_pictures_are_encoded_under_the_likeliest_class():
    model = make("gated", *LARGER["categorical"])
    x = pictures(model, 4).x
    codes = model.encode(Batch(x), streams(4))
    assert torch.equal(model.decode(codes).x, x)
    assert torch.equal(codes[:, model.spec.size :].argmax(1), model._of_classes(x).argmax(1))


def test_temperature():
    model = make("gated", *LARGER["bernoulli"])
    cold = model.sample(streams(3), temperature=0).x
    assert (cold == cold[0]).all()  # the likeliest picture, whatever the noise
    assert torch.equal(model.sample(streams(3), temperature=1e-6).x, cold)


def test_known_pixels_stay_and_are_taken_into_account():
    model = make("gated", *LARGER["bernoulli"])
    spec, mask = model.spec, torch.zeros(1, 9, 8, dtype=torch.bool)
    mask[:, :4], mask[:, 6, 3:] = True, True
    free = model.sample(streams(8)).x
    known = 1 - free[0]
    made = model.sample(streams(8), Given(known=known, mask=mask)).x
    assert (made == known)[:, mask].all()
    assert not torch.equal(made[:, ~mask.expand(spec.shape)], free[:, ~mask.expand(spec.shape)])
    # Given the first rows of a sample, its own noise makes the rest of it.
    mask[:, 4:] = False
    assert torch.equal(model.sample(streams(8), Given(known=free[2], mask=mask)).x[2], free[2])


# --- training and the command line


def test_it_learns_that_rows_have_one_colour(tmp_path, gencli):
    random = np.random.default_rng(0)
    rows = np.repeat(random.integers(0, 2, (400, 6, 1)), 6, 2).astype(np.uint8) * 255
    np.savez(tmp_path / "rows.npz", x=rows)
    gencli("train", "pixelcnn", "rows.npz", "-o", "run", "--width", "8", "--layers", "1", "--steps", "200",
           "--warmup", "10", "--lr", "1e-2", "-q")
    report = gencli("evaluate", "run", "rows.npz", "--draw", "0", "--json").json()
    nll = next(m["value"] for m in report["metrics"] if m["name"] == "nll")
    assert 6 * math.log(2) - 0.1 < nll < 6 * math.log(2) + 0.5  # six fair coins
    made = torch.cat([batch.x for batch in inference.sample(runs.load_model("run")[0], range(32))])
    assert (made == made[..., :1]).all(-1).float().mean() > 0.9


@pytest.mark.parametrize(("option", "value", "code", "message"), [
    ("--likelihood", "bernoulli", 2, "256 levels"),
    ("--kernel", "4", 2, "odd"),
    ("--attention", "7", 2, "--attention 7 in 6 layers"),
    ("--conditional", None, 2, "a single class"),
])
def test_settings_that_do_not_fit(option, value, code, message, tmp_path, gencli):
    np.savez(tmp_path / "grey.npz", x=np.random.default_rng(0).integers(0, 256, (20, 6, 6)).astype(np.uint8))
    done = gencli("train", "pixelcnn", "grey.npz", "-o", "run", option, *([value] if value else []), code=code)
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_real_valued_pictures_are_refused(tmp_path, gencli):
    np.savez(tmp_path / "real.npz", x=np.random.default_rng(0).random((20, 6, 6), np.float32))
    assert "real-valued" in gencli("train", "pixelcnn", "real.npz", "-o", "run", code=2).stderr


def test_classes(small_data, tmp_path, gencli):
    data = str(small_data["image"])
    gencli("train", "pixelcnn", data, "-o", "run", "--conditional", "--width", "8", "--layers", "1", "--steps", "300",
           "--orders", "2", "--warmup", "10", "--lr", "1e-2", "--binarize", "threshold", "-q")
    for label in ("0", "1"):
        gencli("sample", "run", "--label", label, "-n", "8", "-o", f"{label}.npz")
    dark, bright = (np.load(tmp_path / f"{label}.npz")["images"].reshape(8, 9, 7)[:, 2:6, 2:5].mean() / 255
                    for label in "01")
    assert dark < 0.1 < 0.9 < bright
    gencli("interpolate", "run", f"{data}#0", f"{data}#1", "-o", "path.png", "--frames", "3")
    gencli("export", "run", "-o", "m.pt2")


def save(path, pixels) -> None:
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def test_completion(small_run, tmp_path, gencli):
    run = str(small_run("pixelcnn", "image"))
    picture = np.random.default_rng(0).integers(0, 256, (9, 7))
    save(tmp_path / "half.png", picture)
    gencli("sample", run, "--complete", "half.png", "--keep-rows", "4", "-n", "3", "-o", "rows.npz")
    made = np.load(tmp_path / "rows.npz")["images"].reshape(3, 9, 7)
    assert (made[:, :4] == picture[:4]).all() and (made[:, 4:] != picture[4:]).mean() > 0.9
    keep = np.zeros((9, 7))
    keep[2:5, 3:6] = 255
    save(tmp_path / "mask.png", keep)
    gencli("sample", run, "--complete", "half.png", "--mask", "mask.png", "-n", "3", "-o", "mask.npz")
    made = np.load(tmp_path / "mask.npz")["images"].reshape(3, 9, 7)
    assert (made == picture)[:, keep > 0].all() and (made != picture)[:, keep == 0].mean() > 0.9


@pytest.mark.parametrize(("args", "code", "message"), [
    (["--complete", "wide.png", "--keep-rows", "2"], 3, "9x8"),
    (["--complete", "half.png", "--mask", "wide.png"], 3, "9x8"),
    (["--complete", "half.png", "--mask", "half.png"], 3, "grey"),
    (["--complete", "none.png", "--keep-rows", "2"], 3, "none.png"),
    (["--complete", "half.png"], 2, "--keep-rows"),
    (["--complete", "half.png", "--keep-rows", "10"], 2, "9 rows"),
    (["--keep-rows", "3"], 2, "--complete"),
    (["--complete", "half.png", "--latents", "codes.npz"], 2, "--latents"),
    (["--set", "temperature=-1"], 2, "temperature"),
])
def test_what_cannot_be_completed(args, code, message, small_run, tmp_path, gencli):
    save(tmp_path / "half.png", np.arange(63).reshape(9, 7))
    save(tmp_path / "wide.png", np.zeros((9, 8)))
    done = gencli("sample", str(small_run("pixelcnn", "image")), "-o", "out.png", *args, code=code)
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_families_that_complete_nothing_say_so(small_run, tmp_path, gencli):
    save(tmp_path / "half.png", np.zeros((9, 7)))
    done = gencli("sample", str(small_run("vae", "image")), "--complete", "half.png", "--keep-rows", "2", "-o", "x.png",
                  code=2)
    assert "pixelcnn" in done.stderr
