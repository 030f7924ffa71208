"""The feature spaces that are the same everywhere: `digits` and `scattering`."""

import json
from importlib import resources

import numpy as np
import pytest
import torch
from PIL import Image
from test_commands import one_line
from test_metrics_samples import stripes

from gencli.data import load
from gencli.errors import ModelError
from gencli.metrics import Inputs
from gencli.metrics import digits as network
from gencli.metrics.distances import frechet_distance, kernel_distance
from gencli.metrics.features import feature_space, features
from gencli.metrics.scattering import coefficients, wavelets
from gencli.model import Batch

COUNT = 300
GOLDEN = {  # (Fréchet distance, kernel distance) of 300 embedded training digits to 300 test digits, and blurred ones
    "digits": [4.756379066694237, 0.31514298363529747, 34.15238963678124, 6.088640040805245],
    "scattering": [6.828420388090194, 6583.366063568275, 48.914249831040536, 23624.495594300446],
}


def handwritten(split):
    data = load("digits", split=split)
    return data.subset(COUNT)


def compared(space, samples, reference):
    found = [features(space, data)[0] for data in (reference, samples)]
    return frechet_distance(*found)[0], kernel_distance(*found)[0]


def altered(data, x):
    data = handwritten("test") if data is None else data
    return type(data)(**{**data.__dict__, "examples": x.round().clamp(0, 255).byte(), "fingerprint": ""})


def blurred(x, times):
    for _ in range(times):
        wide = torch.nn.functional.pad(x.double(), [1] * 4, mode="replicate")
        x = torch.nn.functional.avg_pool2d(wide, 3, 1)
    return x


@pytest.mark.parametrize("name", GOLDEN)
def test_distances_are_those_of_every_machine(name):
    """Computed in float64, so that vector instructions and threads change nothing that is printed."""
    reference, samples = handwritten("test"), handwritten("train")
    space = feature_space(Inputs(reference, features=name))
    assert features(space, reference)[0].dtype == torch.float64
    real, blur = compared(space, samples, reference), \
        compared(space, altered(samples, blurred(samples.examples, 1)), reference)
    assert [*real, *blur] == pytest.approx(GOLDEN[name], rel=1e-7)


@pytest.mark.parametrize("name", GOLDEN)
def test_what_is_worse_is_further(name):
    reference, samples = handwritten("test"), handwritten("train")
    space, x = feature_space(Inputs(reference, features=name)), samples.examples.double()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for worse in ([x, blurred(x, 1), blurred(x, 3)], [x, x + 20 * noise, x + 60 * noise],
                  [x, x[torch.arange(COUNT) % 40], x[torch.arange(COUNT) % 8]]):
        distances = [compared(space, altered(samples, one), reference)[0] for one in worse]
        assert distances == sorted(distances) and distances[2] > 2 * distances[0]


# --- digits


def test_the_network_tells_digits_apart_and_is_small():
    content = (resources.files("gencli.metrics") / "weights" / "digits.safetensors").read_bytes()
    assert len(content) < 1_000_000
    data = handwritten("test")
    space = feature_space(Inputs(data, features="digits"))
    found, classes = features(space, data)
    assert found.shape == (COUNT, 64) and (found >= 0).all()
    assert torch.allclose(classes.exp().sum(1), torch.ones(COUNT, dtype=torch.float64))
    assert (classes.argmax(1) == data.labels).double().mean() > 0.97


def test_weights_that_are_not_the_published_ones(monkeypatch, tmp_path):
    (tmp_path / "weights").mkdir()
    monkeypatch.setattr(network.resources, "files", lambda package: tmp_path)
    with pytest.raises(ModelError, match=r"^features digits: .*install gencli again"):
        network.digits(None)
    (tmp_path / "weights" / "digits.safetensors").write_bytes(b"other")
    with pytest.raises(ModelError, match=r"^features digits: the weights have the SHA-256 .*install gencli again$"):
        network.digits(None)


def test_pictures_of_other_sizes_and_colours_are_brought_into_form():
    x = handwritten("test").examples[:4].double() / 255
    assert torch.equal(network.seen(x), x * 2 - 1)
    assert torch.equal(network.seen(x.expand(-1, 3, -1, -1)), network.seen(x)), "grey as colour"
    large = np.random.default_rng(0).integers(0, 256, (40, 70)).astype(np.uint8)
    seen = network.seen(torch.from_numpy(large)[None, None].double() / 255)
    theirs = Image.fromarray(large.astype(np.float32), "F").resize((28, 28), Image.Resampling.BILINEAR)
    assert torch.allclose((seen[0, 0] + 1) * 127.5, torch.from_numpy(np.array(theirs)).double(), atol=1e-3)


# --- scattering


def wave(angle, frequency, size=32):
    """A plane wave with a whole number of periods along both sides, (1, 1, size, size)."""
    y, x = torch.meshgrid(torch.arange(size).double(), torch.arange(size).double(), indexing="ij")
    step = 2 * np.pi / size
    across, down = (round(frequency * part / step) * step for part in (np.cos(angle), np.sin(angle)))
    return torch.cos(across * x + down * y)[None, None]


def test_a_wave_is_found_by_the_wavelet_of_its_frequency_and_direction():
    filters = wavelets(32, 32)
    assert len(filters) == 2 and filters[0].shape == (4, 32, 32)
    for scale, direction in ((0, 0), (0, 1), (1, 2), (1, 3)):
        spectrum = torch.fft.fft2(wave(np.pi * direction / 4, 3 * np.pi / 4 / 2**scale))
        answers = torch.stack([torch.fft.ifft2(spectrum * one).abs().mean() for part in filters for one in part])
        assert answers.argmax() == 4 * scale + direction
    flat = torch.full((1, 3, 9, 7), 80.0, dtype=torch.float64)
    assert coefficients(flat)[0] == pytest.approx([80.0] * 3 + [0.0] * 72, abs=1e-9), "a constant has its mean alone"


def test_a_quarter_turn_exchanges_the_directions():
    """By the definition, whatever the picture; what has no direction stays."""
    x = torch.rand(3, 1, 20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 255
    first, turned = coefficients(x), coefficients(x.rot90(1, (2, 3)))
    assert torch.allclose(turned[:, 0], first[:, 0])
    # Order: the mean; then for each wavelet of the fine scale its modulus and those of the coarse one; then the coarse.
    other = [2, 3, 0, 1]
    fine, coarse = first[:, 1:21].view(3, 4, 5), first[:, 21:]
    moved = torch.cat([fine[:, other][:, :, [0, *(1 + i for i in other)]].flatten(1), coarse[:, other]], 1)
    assert torch.allclose(turned[:, 1:], moved, rtol=1e-9)


def test_any_pictures_have_coefficients_whatever_stands_beside_them():
    space = feature_space(Inputs(stripes(9, seed=1), features="scattering"))
    for shape in ((5, 1, 1, 1), (5, 3, 2, 17), (5, 4, 30, 30)):
        x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        found = space.describe(Batch(x))[0]
        assert found.shape == (5, 25 * shape[1]) and found.isfinite().all()
        assert torch.allclose(found[3:4], space.describe(Batch(x[3:4]))[0], rtol=1e-12)


# --- the protocol


@pytest.mark.parametrize("name", GOLDEN)
def test_numbers_of_different_networks_are_not_compared(name, gencli, tmp_path, small_data):
    data = str(small_data["image"])
    command = ["evaluate", "--samples", data, data, "--features", name, "--json"]
    result = gencli(*command).json()
    protocols = [metric["protocol"] for metric in result["metrics"] if metric["name"].endswith("_distance")]
    assert all(record["features"] == name and len(record["network"]) == 16 for record in protocols if
               "features" in record)
    (tmp_path / "base.json").write_text(json.dumps(result))
    gencli(*command, "--baseline", "base.json")
    (tmp_path / "other.json").write_text(json.dumps(result).replace(protocols[0]["network"], "0" * 16))
    failed = gencli(*command, "--baseline", "other.json", code=5)
    assert "cannot be compared: network is" in one_line(failed.stderr)


def test_the_network_of_a_classifier_is_in_the_protocol(small_run, small_data):
    """Two machines train two networks; what one measured is no number of the other's."""
    data = load(str(small_data["image"]), split="test")
    spaces = [feature_space(Inputs(data, features=f"classifier:{small_run('classifier', 'image')}")) for _ in range(2)]
    assert spaces[0].protocol == spaces[1].protocol and len(spaces[0].protocol["network"]) == 16
    with torch.no_grad():
        next(spaces[0].model.parameters()).add_(1e-3)
    other = type(spaces[0])(spaces[0].model, spaces[0].name, None)
    assert other.protocol["network"] != spaces[1].protocol["network"]
    assert "network" not in feature_space(Inputs(data, features="pixels")).protocol
