"""Films of a moving digit against the law by which the real ones are made, which no model was told.

    python tests/benchmarks/films.py RUN... [--count 500] [--judge FOLDER]

A line for real films of the test split, for the same with their frames shuffled, and for those of each model. One that
goes on from frames gets those of the test split, and is measured with them.

- agree: the share of frames of the class that most frames of their film have, by a `classifier` that is trained once,
  in FOLDER, on two frames of each film of the training split. Films whose frames all agree; classes that are drawn;
  of a model of classes, `asked`: films of the class that was asked for.
- off: the centre of mass runs along each axis there and back between walls 18 pixels apart. Of all such paths the one
  nearest to each film is sought, on a grid of starts and speeds; where the walls are is free, since the mass of a digit
  is not in its middle. The root mean square distance from it in pixels, of the median film and of the worst tenth.
- speed: of these paths in pixels a frame, mean and deviation over the films; the law is 1.8 in any direction.
- turns: how many walls these paths meet in a film, on average.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import gencli
from gencli.data import load
from gencli.inference import conditions_of, sample
from gencli.model import Batch, Model

WAY = 18.0  # pixels from wall to wall


def judged(folder: Path) -> Model:
    """The classifier of frames."""
    data = load("moving-digit", {})
    with tempfile.TemporaryDirectory() as temporary:
        frames = f"{temporary}/frames.npz"
        np.savez(frames, x=data.examples[:, [3, 11], 0].flatten(0, 1).numpy(),
                 y=data.labels.repeat_interleave(2).numpy())
        gencli.train("classifier", f"{frames}:all", folder, resume=True, epochs=6)
    return gencli.load(str(folder))


@torch.no_grad()
def agreement(films: Tensor, judge: Model) -> tuple[float, float, Tensor]:
    """Of films (N, T, 1, H, W): the share of frames of the class of most, of films of one class; the class of each."""
    classes = torch.stack([judge.classify(Batch(film)).argmax(1) for film in films])
    most = classes.mode(1).values
    same = classes == most[:, None]
    return same.double().mean().item(), same.all(1).double().mean().item(), most


def paths(films: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest path of each film: its distance in pixels, its speed in pixels a frame, how often it turns; (N,)."""
    x = films[:, :, 0].double()
    mass = x.sum((2, 3)).clamp(min=1e-9)
    places = torch.stack([(x.sum(3 - axis) * torch.arange(x.shape[3 - axis])).sum(2) / mass for axis in (0, 1)], 1)
    start, speed = torch.cartesian_prod(torch.arange(0, 2, 0.01), torch.arange(0, 0.2, 0.001)).double().T
    way = start[:, None] + speed[:, None] * torch.arange(x.shape[1])
    path = WAY * (1 - (way % 2 - 1).abs())
    turns = way[:, -1].floor() - way[:, 0].floor()
    seen, path = places - places.mean(2, keepdim=True), path - path.mean(1, keepdim=True)
    errors = path.square().sum(1) - 2 * seen @ path.T  # (N, 2, grid), but for the square of what is seen
    least, best = errors.min(2)
    distance = (least + seen.square().sum(2)).clamp(min=0).sum(1).div(x.shape[1]).sqrt()
    return distance, WAY * speed[best].square().sum(1).sqrt(), turns[best].sum(1)


def line(name: str, films: Tensor, judge: Model, labels: Tensor | None = None) -> None:
    share, whole, most = agreement(films, judge)
    asked = "" if labels is None else f", asked {(most == labels).double().mean():.3f}"
    classes = torch.bincount(most, minlength=10).tolist()
    distance, speed, turns = paths(films)
    print(f"{name}: agree {share:.4f}, films {whole:.3f}{asked}, classes {classes}; off {distance.median():.2f} and "
          f"{distance.quantile(0.9):.2f} px; speed {speed.mean():.2f} ± {speed.std():.2f}; turns {turns.mean():.2f}",
          flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--judge", type=Path, default=Path("runs/frames"))
    arguments = parser.parse_args()
    judge = judged(arguments.judge)
    test = load("moving-digit:test")
    real = test.examples[: arguments.count].float() / 255
    noise = torch.Generator().manual_seed(0)
    line("real", real, judge)
    line("shuffled", torch.stack([film[torch.randperm(len(film), generator=noise)] for film in real]), judge)
    for run in arguments.runs:
        model = gencli.load(run)
        spec = model.spec.condition
        given = conditions_of(model, load("moving-digit:test", {"condition": f"past={spec.frames}"}),
                              arguments.count) if spec else None
        made = list(sample(model, range(arguments.count), seed=0, given=given))
        films = torch.cat([batch.x for batch in made])
        labels = torch.cat([batch.labels for batch in made]) if spec is None and made[0].labels is not None else None
        line(run, films if given is None else torch.cat([given.condition.x, films], 1), judge, labels)


if __name__ == "__main__":
    main()
