"""What feature spaces make of pictures that are real, blurred, noisy or collapsed: the table in RESULTS.md.

    GENCLI_DATA=DATA python tests/benchmarks/features.py --count 1000 mnist:test DATA/cifar10/png/:all DATA/smiles:all

Of each data set `count` pictures are the reference and `count` others are what is compared with it: as they are,
spoilt, or fewer than they seem. A space is of use where each of these is further than real pictures are, and further
the more it is spoilt. A row: the Fréchet distance, and in brackets how many times that of real pictures it is.
"""

import argparse
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from gencli.data import load
from gencli.dataset import Dataset
from gencli.metrics import Inputs
from gencli.metrics.distances import frechet_distance
from gencli.metrics.features import feature_space, features
from gencli.metrics.requirements import shown

NOISE, BLUR, FEW = (5, 25), (0.5, 1.0), (500, 100)  # grey levels, pixels, pictures


def blurred(x: Tensor, width: float) -> Tensor:
    """Pictures (N, C, H, W) under a Gaussian of that standard deviation in pixels; edges are continued."""
    reach = int(3 * width + 1)
    kernel = torch.exp(-torch.arange(-reach, reach + 1).double().square() / (2 * width**2))
    kernel, channels = kernel / kernel.sum(), x.shape[1]
    across, down = (kernel.view(1, 1, *shape).repeat(channels, 1, 1, 1) for shape in ((1, -1), (-1, 1)))
    x = F.conv2d(F.pad(x, [reach, reach, 0, 0], mode="replicate"), across, groups=channels)
    return F.conv2d(F.pad(x, [0, 0, reach, reach], mode="replicate"), down, groups=channels)


def sets(data: Dataset, count: int) -> dict[str, Dataset]:
    """The reference, and by name what is compared with it."""
    source = torch.Generator().manual_seed(0)
    order = torch.randperm(len(data), generator=source)
    reference, rest = order[:count], order[count:]
    real = data.examples[rest[:count]].double()
    noise = torch.randn(real.shape, generator=source, dtype=torch.float64)

    def made(x: Tensor) -> Dataset:
        return replace(data, examples=x.round().clamp(0, 255).byte(), labels=None, fingerprint="", groups=None)

    found = {"reference": made(data.examples[reference].double()), "real": made(real)}
    found |= {f"blurred, {width} pixels": made(blurred(real, width)) for width in BLUR}
    found |= {f"noisy, {levels} of 255": made(real + levels * noise) for levels in NOISE}
    assert data.labels is not None
    without = rest[data.labels[rest] != 0][:count]
    found[f"without class {data.spec.classes[0]}"] = made(data.examples[without].double())
    found |= {f"{few} repeated": made(real[torch.arange(count) % few]) for few in FEW}
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--spaces", default="digits,scattering")
    parser.add_argument("data", nargs="+", help="known names or paths; labelled pictures")
    arguments = parser.parse_args()
    for name in arguments.data:
        data = load(name)
        compared = sets(data, arguments.count)
        reference = compared.pop("reference")
        print(f"\n| {name}, {arguments.count} against {arguments.count} | {' | '.join(compared)} |")
        print("|---|" + "---|" * len(compared))
        for choice in arguments.spaces.split(","):
            space = feature_space(Inputs(reference, features=choice))
            expected = features(space, reference)[0]
            cells, least = [], None
            for one in compared.values():
                value, error = frechet_distance(expected, features(space, one)[0])
                least = least or value
                cells.append(f"{shown(value, error)} ({value / least:.3g})")
            print(f"| `{choice}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
