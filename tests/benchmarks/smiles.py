"""Faces moved along the direction of a smile: how often a classifier takes them for smiling, and what else changes.

    S=.../smiles  # 32 x 32, one channel, the split of gencli
    gencli train pca $S --kind image --channels 1 --size 32 --components 100 -o FACES
    gencli train classifier $S --kind image --channels 1 --size 32 -o CLASSIFIER
    python tests/benchmarks/smiles.py FACES CLASSIFIER $S

The direction is learned on nine tenths of the training split. Its AUC is that of all faces of the test split; those of
them without a smile are moved, and compared with what their codes decode to. PSNR is of the mean square difference of
all pixels but rows 18 to 29 and columns 6 to 25, the mouth.
"""

import math
import sys

import torch
from torch import Tensor

import gencli
from gencli import editing, inference, runs
from gencli.data import load
from gencli.model import Batch


@torch.no_grad()
def main(faces: str, judge: str, source: str) -> None:
    model, classifier = gencli.load(faces), gencli.load(judge)
    reading = runs.read_card(faces).reading
    train, test = (load(f"{source}:{split}", reading, like=model.spec) for split in ("train", "test"))
    smiling = test.labels == test.spec.classes.index("smile")
    elsewhere = torch.ones(32, 32, dtype=torch.bool)
    elsewhere[18:30, 6:26] = False
    codes = torch.cat([block for block, _, _ in inference.encode(model, test)])

    def decoded(codes: Tensor) -> Tensor:
        return torch.cat([batch.x for batch in inference.decode(model, [codes])])

    def rate(x: Tensor) -> float:
        chances = torch.cat([classifier.classify(Batch(part)) for part in x.split(256)])
        return float((chances.argmax(1) == classifier.spec.classes.index("smile")).double().mean())

    start = decoded(codes[~smiling])
    print(f"smiling: {rate(test.whole().x[~smiling]):.3f} of the {len(start)} photos, {rate(start):.3f} decoded")
    for way in ("mean", "discriminant"):
        one, = editing.directions(model, train, ["smile"], direction=way)
        scores = codes.flatten(1).double() @ one.step.flatten().double()
        print(f"{way}: AUC {editing.concordance(scores, smiling.double()):.3f}")
        for strength in range(1, 6):
            x = decoded(codes[~smiling] + strength * one.step)
            psnr = -10 * math.log10(float((x - start)[..., elsewhere].square().mean()))
            print(f"  {strength} deviations: smiling {rate(x):.3f}, PSNR outside the mouth {psnr:.2f} dB")


if __name__ == "__main__":
    main(*sys.argv[1:])
