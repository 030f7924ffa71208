"""Models that make pictures from pictures, by the published protocols, beside what they have to beat.

    GENCLI_DATA=... python tests/benchmarks/pictures.py set5 RUN
    GENCLI_DATA=... python tests/benchmarks/pictures.py facades RUN

set5: a model that enlarges n times makes the five pictures img_00K_SRF_n_HR.png from their LR files. Both are RGB of
8 bits; PSNR and SSIM are of the luma Y (BT.601, 16 to 235) as a real number out of 255, without n pixels at each edge;
means over the pictures. Published at x2, 3, 4: SRCNN 36.66, 32.75, 30.49 dB (Dong et al. 2016, arXiv:1501.00092).

facades: a model of photographs (the left half of a file) of label maps (the right half) makes those of the 50 test
pairs. Halves are made as small as the model's pictures by Pillow (bicubic). Numbers are of RGB in [0, 1], means over
the pairs, of the target at the size of the model and, enlarged by Pillow, at that of the files.

Only the model is gencli's: SSIM is that of scikit-image, with the settings of Wang et al. 2004.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage.metrics import structural_similarity

import gencli
from gencli.model import Batch, Given
from gencli.rng import ExampleStreams

Picture = np.ndarray  # (H, W, 3) uint8
Make = Callable[[Picture], Picture]

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


def _luma_numbers(x: Picture, y: Picture, border: int) -> tuple[float, float]:
    a, b = (luma(picture)[border:-border, border:-border] for picture in (x, y))
    return 10 * np.log10(255**2 / ((a - b) ** 2).mean()), _ssim(a, b, data_range=255)


def luma(picture: Picture) -> np.ndarray:
    """(H, W) float64, 16 to 235."""
    return 16 + picture / 255.0 @ [65.481, 128.553, 24.966]


# ---------------------------------------------------------------------------------------------------------------------


def facades(model: gencli.model.Model, data: Path) -> None:
    """L1, PSNR and SSIM of the model and of two simple rules."""
    size = model.spec.height
    training, test = (_halves(data / "facades" / split) for split in ("train", "test"))
    small = [(resized(label, size, size), resized(photo, size, size)) for label, photo in training]
    mean_photo = np.mean([photo for _, photo in small], axis=0).round().astype(np.uint8)
    palette, colours = _colours(small)
    makers: dict[str, Make] = {
        "mean photo": lambda label: mean_photo,
        "colour of each label": lambda label: colours[_labels(label, palette)],
        "model": lambda label: _sampled(model, label),
    }
    for at, height in (("size of the model", size), ("size of the files", test[0][1].shape[0])):
        print(f"facades, {len(test)} test pairs, {at}, {height} pixels: L1, PSNR in dB, SSIM")
        for name, make in makers.items():
            made = [resized(make(resized(label, size, size)), height, height) for label, _ in test]
            numbers = np.mean([_numbers(x, resized(photo, height, height))
                               for x, (_, photo) in zip(made, test, strict=True)], axis=0)
            print(f"{name:20} {numbers[0]:.4f}  {numbers[1]:.2f}  {numbers[2]:.4f}")


def _sampled(model: gencli.model.Model, source: Picture) -> Picture:
    """What the model draws first for a source, with the seed 0."""
    with torch.no_grad():
        given = Given(condition=Batch(to_tensor(source)))
        return to_picture(model.sample(ExampleStreams(0, torch.arange(1), "sample"), given).x)


def _halves(folder: Path) -> list[tuple[Picture, Picture]]:
    """(label map, photograph) of each file."""
    pictures = [read(path) for path in sorted(folder.glob("*.jpg"))]
    return [(picture[:, picture.shape[1] // 2 :], picture[:, : picture.shape[1] // 2]) for picture in pictures]


def _numbers(x: Picture, y: Picture) -> tuple[float, float, float]:
    a, b = x / 255, y / 255
    return (np.abs(a - b).mean(), -10 * np.log10(((a - b) ** 2).mean()), _ssim(a, b, data_range=1, channel_axis=2))


def _colours(pairs: list[tuple[Picture, Picture]]) -> tuple[np.ndarray, np.ndarray]:
    """The 12 colours that label maps are drawn in, and the mean colour of the photographs there, (12, 3) uint8."""
    coarse, counts = np.unique(np.concatenate([label.reshape(-1, 3) // 32 for label, _ in pairs]), axis=0,
                               return_counts=True)
    palette = 32 * coarse[np.argsort(-counts)[:12]] + 16
    labels = np.concatenate([_labels(label, palette).ravel() for label, _ in pairs])
    photos = np.concatenate([photo.reshape(-1, 3) for _, photo in pairs])
    colours = [photos[labels == k].mean(0) for k in range(len(palette))]
    return palette, np.array(colours).round().astype(np.uint8)


def _labels(label: Picture, palette: np.ndarray) -> np.ndarray:
    """The nearest colour of the palette for each pixel, (H, W)."""
    return ((label[:, :, None].astype(int) - palette) ** 2).sum(-1).argmin(-1)


# ---------------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["set5", "facades"])
    parser.add_argument("run")
    given = parser.parse_args()
    measure = {"set5": set5, "facades": facades}[given.what]
    with torch.no_grad():
        measure(gencli.load(given.run), Path(os.environ["GENCLI_DATA"]))


if __name__ == "__main__":
    main()
