"""What is made from a source against its target: SSIM against scikit-image, the rest against numpy."""

import math

import numpy as np
import pytest
import torch

from gencli.kinds.image import ImageSpec
from gencli.metrics import Column, Inputs, Metric
from gencli.metrics.glossary import GLOSSARY
from gencli.metrics.pairs import pairs, ssim
from gencli.model import Batch, FamilyConfig, Model


def pictures(count, *shape, seed=0):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 11, 11), (3, 24, 31), (3, 64, 64)])
@pytest.mark.parametrize("noise", [0.0, 0.05, 1.0])
def test_ssim_is_that_of_scikit_image(shape, noise):
    reference = pytest.importorskip("skimage.metrics").structural_similarity
    x = pictures(4, *shape)
    x[:, :, : shape[1] // 2] = 0.5 * x[:, :, : shape[1] // 2].round()  # flat and textured parts
    y = ((1 - noise) * x + noise * pictures(4, *shape, seed=1)).clamp(0, 1)
    truth = [reference(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1,
                       channel_axis=0) for a, b in zip(x.double().numpy(), y.double().numpy(), strict=True)]
    assert np.abs(ssim(x, y).numpy() - truth).max() < 1e-9


def test_ssim_of_a_picture_with_itself_is_one():
    x = pictures(2, 3, 16, 16)
    assert torch.equal(ssim(x, x), torch.ones(2, dtype=torch.float64))
    assert (ssim(x, 1 - x) < 0).all()


class Darker(Model):
    """Makes of each source the same picture at half the brightness."""

    block = 4

    def __init__(self, spec):
        super().__init__(FamilyConfig(), spec)
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def sample(self, rng, given=None):
        return Batch(given.condition.x / 2)


class Pairs:
    """A data set of pairs, of which a metric sees no more than this."""

    name, split, fingerprint, protocol, blocks = "toy", "test", "abc", {"pair": "left"}, None

    def __init__(self, target, source):
        self.target, self.source = target, source
        self.spec = ImageSpec(channels=target.shape[1], height=target.shape[2], width=target.shape[3],
                              condition=ImageSpec(channels=source.shape[1], height=source.shape[2],
                                                  width=source.shape[3]))

    def __len__(self):
        return len(self.target)

    def batch(self, indices, device="cpu", rng=None):
        return Batch(self.target[indices], condition=Batch(self.source[indices]))


def measured(side, same=False):
    source = pictures(10, 3, side, side, seed=2)
    target = source / 2 if same else pictures(10, 3, side, side)
    data = Pairs(target, source)
    found = list(pairs(Inputs(data, Darker(data.spec), seed=3)))
    return (source.double().numpy() / 2, target.double().numpy(),
            {item.name: item for item in found if isinstance(item, Metric)},
            {item.name: item for item in found if isinstance(item, Column)})


def test_means_over_pairs_with_their_errors():
    x, y, metrics, columns = measured(16)
    truth = {"pair_l1": np.abs(x - y).mean((1, 2, 3)),
             "pair_psnr": -10 * np.log10(((x - y) ** 2).mean((1, 2, 3))),
             "pair_ssim": ssim(torch.from_numpy(x), torch.from_numpy(y)).numpy()}
    assert set(metrics) == set(columns) == set(truth)
    for name, values in truth.items():
        metric = metrics[name]
        assert metric.value == pytest.approx(values.mean(), rel=1e-6)
        assert metric.error == pytest.approx(values.std(ddof=1) / math.sqrt(10), rel=1e-5)
        assert metric.n == 10 and metric.kind == "estimate"
        assert metric.protocol["fingerprint"] == "abc" and metric.protocol["pair"] == "left"
        assert metric.protocol["seed"] == 3
        assert np.allclose(columns[name].values.numpy(), values, rtol=1e-5)
        assert columns[name].cost == (GLOSSARY[name].better == "less")


def test_the_target_itself():
    *_, metrics, _ = measured(16, same=True)
    assert metrics["pair_l1"].value == 0 and metrics["pair_psnr"].value == 100
    assert metrics["pair_ssim"].value == pytest.approx(1)


def test_pictures_smaller_than_the_window_have_no_ssim():
    *_, metrics, columns = measured(10)
    assert set(metrics) == set(columns) == {"pair_l1", "pair_psnr"}
