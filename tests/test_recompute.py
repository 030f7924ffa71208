"""`--recompute`: the bits of a training that keeps everything, in less memory."""

import pytest
import torch
from conftest import SMALL
from torch import nn

from gencli.layers.recompute import blocks_of, recompute


class Doubling(nn.Module):
    def __init__(self, *parts: nn.Module):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x):
        for part in self.parts:
            x = 2 * part(x)
        return x


def test_blocks_are_the_members_of_lists():
    inner, outer = Doubling(nn.Linear(2, 2)), nn.ModuleList([nn.ModuleList([nn.Linear(2, 2)]), nn.BatchNorm1d(2)])
    model = Doubling(inner, outer[0])
    assert [*blocks_of(model)] == [inner, outer[0][0]] and [*blocks_of(outer)] == [outer[0][0]]
    assert not [*blocks_of(nn.Sequential(nn.Linear(2, 2)))] and not recompute(nn.Linear(2, 2))


def test_what_blocks_compute_is_not_kept():
    model = Doubling(*(nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 16))
                       for _ in range(8)))
    x, found = torch.randn(5, 16), []
    for again in (False, True):
        assert not again or recompute(model) == 8
        kept = []
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            y = model(x)
        size = sum(kept)
        y.square().sum().backward()
        found.append((y, [p.grad.clone() for p in model.parameters()], size))
        model.zero_grad()
    (y, gradients, all_of_it), (same, again, less) = found
    assert torch.equal(y, same) and all(map(torch.equal, gradients, again))
    assert less < all_of_it / 10


@pytest.mark.parametrize(("family", "kind", "more"), [
    ("ardm", "vector", ["--dropout", "0.5", "--depth", "2", "--ema", "0.9"]), ("pixelcnn", "image", []),
    ("unet", "image", ["--dropout", "0.5"])])
def test_the_bits_are_the_same(family, kind, more, small_data, gencli, tmp_path):
    words = ["train", family, str(small_data[kind]), "-o", "run", "--steps", "4", "--batch-size", "4", "-q",
             "--overwrite", "--preview-every", "4", *SMALL[family, kind], *more]
    bits = [gencli(*words, *again) and (tmp_path / "run/model.safetensors").read_bytes()
            for again in ([], ["--recompute"])]
    assert bits[0] == bits[1]


def test_a_model_without_blocks_says_so(small_data, gencli):
    words = ["train", "vae", str(small_data["vector"]), "-o", "run", "--recompute", *SMALL["vae", "vector"]]
    assert "--recompute: family vae has no repeated blocks" in gencli(*words, code=2).stderr
