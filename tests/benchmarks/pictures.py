"""Models that make pictures from pictures, by the published protocols, beside what they have to beat.

    GENCLI_DATA=... python tests/benchmarks/pictures.py set5 RUN
    GENCLI_DATA=... python tests/benchmarks/pictures.py facades RUN
    GENCLI_DATA=... python tests/benchmarks/pictures.py labels RUN [--segmenter segmenter.safetensors]

set5: a model that enlarges n times makes the five pictures img_00K_SRF_n_HR.png from their LR files. Both are RGB of
8 bits; PSNR and SSIM are of the luma Y (BT.601, 16 to 235) as a real number out of 255, without n pixels at each edge;
means over the pictures. Published at x2, 3, 4: SRCNN 36.66, 32.75, 30.49 dB (Dong et al. 2016, arXiv:1501.00092).
How sharp the pictures are: the Fréchet distance of their squares of 32 pixels, without those edges, to the real ones in
the features `scattering`.

facades: a model of photographs (the left half of a file) of label maps (the right half) makes those of the 50 test
pairs. Halves are made as small as the model's pictures by Pillow (bicubic). Numbers are of RGB in [0, 1], means over
the pairs, of the target at the size of the model and, enlarged by Pillow, at that of the files. Squares are those of
the small pictures. A grid of a period of 2, 4, 8 or 16 pixels is a peak of the power spectrum (of the grey pictures,
Hann window, mean over the pictures): how many times the power of the frequencies nearby it has, geometric mean and
largest of the peaks of the period.

labels: the label maps that a segmenter (below; trained once, on the real pairs of training and validation, and kept in
the file) reads from the 50 real test photographs and from those that RUN makes. Share of the pixels whose label is that
of the real map.

Only the model is gencli's: SSIM is that of scikit-image, with the settings of Wang et al. 2004.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage.metrics import structural_similarity
from torch import nn

import gencli
from gencli.metrics.distances import frechet_distance
from gencli.metrics.scattering import coefficients
from gencli.model import Batch, Given
from gencli.rng import ExampleStreams

Picture = np.ndarray  # (H, W, 3) uint8
Make = Callable[[Picture], Picture]

_SQUARE = 32  # pixels
_PERIODS = (2, 4, 8, 16)  # pixels
_PALETTE = np.array([  # in which the label maps of facades are drawn, from background and facade to pillar and shop
    (0, 0, 170), (0, 0, 255), (0, 85, 255), (0, 170, 255), (0, 255, 255), (85, 255, 170), (170, 255, 85), (255, 255, 0),
    (255, 170, 0), (255, 85, 0), (255, 0, 0), (170, 0, 0)])
_ssim = partial(structural_similarity, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)


def read(path: Path) -> Picture:
    return np.asarray(Image.open(path).convert("RGB"))


def resized(picture: Picture, height: int, width: int) -> Picture:
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def to_tensor(picture: Picture) -> torch.Tensor:
    """(1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255


def to_picture(x: torch.Tensor) -> Picture:
    return (255 * x[0]).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


# ---------------------------------------------------------------------------------------------------------------------


def set5(model: gencli.model.Model, data: Path) -> None:
    """PSNR and SSIM of the luma for each picture and on average."""
    scale = model.spec.height // model.spec.condition.height
    paths = sorted((data / "superres/Set5").glob(f"*_SRF_{scale}_HR.png"))
    pairs = [(read(path.with_name(path.name.replace("HR", "LR"))), read(path)) for path in paths]
    makers: dict[str, Make] = {
        "bicubic (Pillow)": lambda low: resized(low, scale * low.shape[0], scale * low.shape[1]),
        "model": lambda low: _sampled(model, low),
    }
    print(f"Set5 x{scale}, Y, without {scale} pixels at each edge: PSNR in dB of each picture, mean PSNR, mean SSIM")
    for name, make in makers.items():
        numbers = np.array([_luma_numbers(make(low), high, scale) for low, high in pairs])
        psnr, ssim = numbers.mean(0)
        print(f"{name:20}", *(f"{value:.2f}" for value in numbers[:, 0]), f"  {psnr:.3f}  {ssim:.4f}")
    real = _squares([_within(high, scale) for _, high in pairs])
    for name, make in makers.items():
        distance, error = frechet_distance(real, _squares([_within(make(low), scale) for low, _ in pairs]))
        print(f"{name:20} {len(real)} squares of {_SQUARE} pixels: Frechet distance {distance:.1f} +- {error:.1f}")


def _luma_numbers(x: Picture, y: Picture, border: int) -> tuple[float, float]:
    a, b = (luma(_within(picture, border)) for picture in (x, y))
    return 10 * np.log10(255**2 / ((a - b) ** 2).mean()), _ssim(a, b, data_range=255)


def _within(picture: Picture, border: int) -> Picture:
    return picture[border:-border, border:-border]


def _squares(pictures: Sequence[Picture]) -> torch.Tensor:
    """The features of the squares that fit side by side, (N, D)."""
    squares = [to_tensor(picture)[0].unfold(1, _SQUARE, _SQUARE).unfold(2, _SQUARE, _SQUARE).flatten(1, 2)
               for picture in pictures]
    return coefficients((255 * torch.cat(squares, 1).transpose(0, 1).double()).round())


def luma(picture: Picture) -> np.ndarray:
    """(H, W) float64, 16 to 235."""
    return 16 + picture / 255.0 @ [65.481, 128.553, 24.966]


# ---------------------------------------------------------------------------------------------------------------------


def facades(model: gencli.model.Model, data: Path) -> None:
    """L1, PSNR and SSIM of the model and of two simple rules."""
    size = model.spec.height
    training, test = (_halves(data / "facades" / split) for split in ("train", "test"))
    small = _at(training, size)
    mean_photo = np.mean([photo for _, photo in small], axis=0).round().astype(np.uint8)
    colours = _colours(small)
    makers: dict[str, Make] = {
        "mean photo": lambda label: mean_photo,
        "colour of each label": lambda label: colours[_labels(label)],
        "model": lambda label: _sampled(model, label),
    }
    for at, height in (("size of the model", size), ("size of the files", test[0][1].shape[0])):
        print(f"facades, {len(test)} test pairs, {at}, {height} pixels: L1, PSNR in dB, SSIM")
        for name, make in makers.items():
            made = [resized(make(resized(label, size, size)), height, height) for label, _ in test]
            numbers = np.mean([_numbers(x, resized(photo, height, height))
                               for x, (_, photo) in zip(made, test, strict=True)], axis=0)
            print(f"{name:20} {numbers[0]:.4f}  {numbers[1]:.2f}  {numbers[2]:.4f}")
    labels, photos = zip(*_at(test, size), strict=True)
    made = [_sampled(model, label) for label in labels]
    real = _squares(photos)
    for name, pictures in (("photographs of training", [photo for _, photo in small[:50]]), ("model", made)):
        distance, error = frechet_distance(real, _squares(pictures))
        print(f"{name:24} {len(real)} squares of {_SQUARE} pixels: Frechet distance {distance:.1f} +- {error:.1f}")
    print("grid: period in pixels, mean and largest peak")
    for name, pictures in (("photographs", photos), ("model", made)):
        print(f"{name:20}", *(f"{period}: {mean:.2f} {largest:.2f}" for period, mean, largest in grid(pictures)))


def grid(pictures: Sequence[Picture]) -> list[tuple[int, float, float]]:
    """Period in pixels, geometric mean and maximum of the peaks of power there, of square pictures of one size."""
    x = np.stack([picture.mean(2) / 255 for picture in pictures])
    side = x.shape[1]
    window = np.hanning(side + 1)[:-1]
    x = (x - x.mean((1, 2), keepdims=True)) * window[:, None] * window
    power = (np.abs(np.fft.fft2(x)) ** 2).mean(0)
    near = np.array([-5, -4, -3, 3, 4, 5])  # the window spreads a peak over its neighbours
    found = []
    for period in _PERIODS:
        peaks = []
        for a, b in np.ndindex(period, period):
            if a % 2 == 0 and b % 2 == 0:
                continue  # of a shorter period, or none
            u, v = a * side // period, b * side // period
            # On an axis, where straight edges lie, a peak is compared along it, else in both directions.
            along = [power[(u + near) % side, v]] if a or not b else []
            across = [power[u, (v + near) % side]] if b or not a else []
            peaks.append(power[u, v] / np.median(np.concatenate(along + across)))
        found.append((period, float(np.exp(np.mean(np.log(peaks)))), float(max(peaks))))
    return found


def labels(model: gencli.model.Model, data: Path, segmenter: Path) -> None:
    """How much of the label maps can be read back from photographs, real ones and the model's."""
    size = model.spec.height
    test = _at(_halves(data / "facades/test"), size)
    reader = _Segmenter()
    if segmenter.exists():
        reader.load_state_dict(load_file(segmenter))
    else:
        _taught(reader, [*_at(_halves(data / "facades/train"), size), *_at(_halves(data / "facades/val"), size)])
        save_file(reader.state_dict(), segmenter)
    reader.eval()
    true = np.stack([_labels(label) for label, _ in test])
    print(f"facades, {len(test)} test pairs, {size} pixels: share of the pixels whose label is read rightly")
    print(f"the commonest label  {(true == np.bincount(true.ravel()).argmax()).mean():.4f}")
    made = [_sampled(model, label) for label, _ in test]
    real, own = (np.stack([reader(to_tensor(photo))[0].argmax(0).numpy() for photo in photos]) == true
                 for photos in ([photo for _, photo in test], made))
    for name, right in (("photographs", real), ("model", own)):
        shares = right.mean((1, 2))
        print(f"{name:20} {shares.mean():.4f} +- {shares.std(ddof=1) / len(shares) ** 0.5:.4f}")
    print(f"model: photographs   {own.mean() / real.mean():.3f}")


class _Segmenter(nn.Module):
    """A small U-Net (Ronneberger et al. 2015, arXiv:1505.04597): (B, 3, H, W) in [0, 1] -> logits (B, 12, H, W)."""

    def __init__(self, width: int = 24, levels: int = 4):
        super().__init__()

        def block(maps_in: int, maps_out: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(maps_in, maps_out, 3, stride, 1, bias=False), nn.BatchNorm2d(maps_out), nn.ReLU(),
                nn.Conv2d(maps_out, maps_out, 3, 1, 1, bias=False), nn.BatchNorm2d(maps_out), nn.ReLU())

        maps = [width * 2**level for level in range(levels)]
        self.down = nn.ModuleList(block(maps_in, maps_out, 2) for maps_in, maps_out in pairwise([3, *maps]))
        self.up = nn.ModuleList(block(maps[level] + maps[level - 1], maps[level - 1])
                                for level in range(levels - 1, 0, -1))
        self.head = nn.Conv2d(width, 4 * len(_PALETTE), 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = []
        for block in self.down:
            x = block(x)
            kept.append(x)
        kept.pop()
        for block in self.up:
            x = block(torch.cat([F.interpolate(x, scale_factor=2), kept.pop()], 1))
        return F.pixel_shuffle(self.head(x), 2)


@torch.enable_grad()
def _taught(segmenter: _Segmenter, pairs: list[tuple[Picture, Picture]], steps: int = 2400, batch: int = 8) -> None:
    """Adam on the cross-entropy of pairs that are mirrored and moved by 0 to 12 pixels, in other light."""
    photos = torch.cat([to_tensor(photo) for _, photo in pairs])
    size = photos.shape[2]
    true = torch.from_numpy(np.stack([_labels(label) for label, _ in pairs]))
    noise = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(segmenter.parameters(), weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(photos), (batch,), generator=noise)
        left, top = torch.randint(13, (2,), generator=noise).tolist()
        gain, shift = 0.3 * (torch.rand(2, batch, 3, 1, 1, generator=noise) - 0.5)
        x, y = photos[chosen] * (1 + gain) + shift, true[chosen]
        if torch.rand((), generator=noise) < 0.5:
            x, y = x.flip(3), y.flip(2)
        x, y = (F.pad(side, (6, 6, 6, 6), mode="replicate")[..., top : top + size, left : left + size]
                for side in (x, y[:, None].float()))
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = segmenter(x.contiguous(memory_format=torch.channels_last))
        F.cross_entropy(logits.float(), y[:, 0].long()).backward()
        optimizer.step()
        rate.step()


def _sampled(model: gencli.model.Model, source: Picture) -> Picture:
    """What the model draws first for a source, with the seed 0."""
    with torch.no_grad():
        given = Given(condition=Batch(to_tensor(source)))
        return to_picture(model.sample(ExampleStreams(0, torch.arange(1), "sample"), given).x)


def _halves(folder: Path) -> list[tuple[Picture, Picture]]:
    """(label map, photograph) of each file."""
    pictures = [read(path) for path in sorted(folder.glob("*.jpg"))]
    return [(picture[:, picture.shape[1] // 2 :], picture[:, : picture.shape[1] // 2]) for picture in pictures]


def _at(pairs: list[tuple[Picture, Picture]], size: int) -> list[tuple[Picture, Picture]]:
    return [(resized(label, size, size), resized(photo, size, size)) for label, photo in pairs]


def _numbers(x: Picture, y: Picture) -> tuple[float, float, float]:
    a, b = x / 255, y / 255
    return (np.abs(a - b).mean(), -10 * np.log10(((a - b) ** 2).mean()), _ssim(a, b, data_range=1, channel_axis=2))


def _colours(pairs: list[tuple[Picture, Picture]]) -> np.ndarray:
    """The mean colour of the photographs at each label, (12, 3) uint8."""
    labels = np.concatenate([_labels(label).ravel() for label, _ in pairs])
    photos = np.concatenate([photo.reshape(-1, 3) for _, photo in pairs])
    return np.array([photos[labels == k].mean(0) for k in range(len(_PALETTE))]).round().astype(np.uint8)


def _labels(label: Picture) -> np.ndarray:
    """The nearest colour of the palette for each pixel, (H, W)."""
    return ((label[:, :, None].astype(int) - _PALETTE) ** 2).sum(-1).argmin(-1)


# ---------------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["set5", "facades", "labels"])
    parser.add_argument("run")
    parser.add_argument("--segmenter", type=Path, default=Path("segmenter.safetensors"))
    arguments = parser.parse_args()
    model, data = gencli.load(arguments.run), Path(os.environ["GENCLI_DATA"])
    with torch.no_grad():
        if arguments.what == "labels":
            labels(model, data, arguments.segmenter)
        else:
            {"set5": set5, "facades": facades}[arguments.what](model, data)


if __name__ == "__main__":
    main()
