"""Handwriting: the splits that its numbers are of, and a recogniser that says how well what is written can be read.

    python tests/benchmarks/handwriting.py split cursive.json.zip app_lines.npz -o splits/
    python tests/benchmarks/handwriting.py read train.ndjson test.ndjson --decimate 4 --written page.ndjson words.txt

`split` writes words and lines, train and test: a random tenth of the words and of the lines is held out, and the lines
once more with all those of some writers. Both are also put together in common units, so that a mean step is 1
(`both-train.ndjson`).

`read` trains a recogniser on real writing, a bidirectional GRU under connectionist temporal classification (Graves et
al. 2006), and tells the character error (edit distance over length) on real held-out writing, and on what was written
from the words of a file. Real writing is thinned as the writer's was. Nothing of gencli is used but its files.
"""

import argparse
import json
import zipfile
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.functional import edit_distance

Writing = tuple[np.ndarray, str]  # (n, 3) offsets and pen-up, and its text
HELD_OUT = ("DeanBlackketter", "GregThomas")  # writers of the lines


# --- splits


def words_of(path: str) -> list[Writing]:
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if not name.startswith("__MACOSX"))
        records = json.loads(archive.read(name))
    found = []
    for record in records:
        points, about = np.array(record["points"]), record["metadata"]
        places = points[:, :2] * [about["aspectRatio"], 1]
        found.append((np.column_stack([np.diff(places, axis=0, prepend=places[:1]), 1 - points[:, 2]]),
                      about["asciiSequence"]))
    return found


def lines_of(path: str) -> tuple[list[Writing], np.ndarray]:
    file = np.load(path)
    rows = np.split(file["stroke3"].astype(float), file["offsets"][1:-1])
    return list(zip(rows, file["text"].tolist(), strict=True)), file["writer"]


def write(path: Path, writings: list[Writing], common: bool = False) -> None:
    with open(path, "w") as out:
        for rows, text in writings:
            places = rows[:, :2].cumsum(0)
            if common:
                places = (places / np.hypot(*rows[1:, :2].T).mean()).round(3)
            strokes = np.split(places, np.flatnonzero(rows[:-1, 2]) + 1)
            places_of = [stroke.T.tolist() for stroke in strokes]
            out.write(json.dumps({"text": text, "origin": [0, 0], "drawing": places_of}) + "\n")


def split(words: str, lines: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    of_words, (of_lines, writers) = words_of(words), lines_of(lines)
    held = {}
    for name, writings in (("words", of_words), ("lines", of_lines)):
        order = np.random.default_rng(0).permutation(len(writings))
        tenth = round(len(writings) / 10)
        for part, places in (("test", order[:tenth]), ("train", order[tenth:])):
            held[name, part] = [writings[i] for i in places]
            write(folder / f"{name}-{part}.ndjson", held[name, part])
    for part in ("train", "test"):
        others = [item for item, own in zip(of_lines, np.isin(writers, HELD_OUT), strict=True)
                  if own == (part == "test")]
        write(folder / f"writers-{part}.ndjson", others)
        write(folder / f"both-{part}.ndjson", held["words", part] + held["lines", part], common=True)


# --- the recogniser


class Recogniser(nn.Module):
    """Points (B, T, 3) -> log-probabilities of the characters, and of none, at every second point, (B, T', V + 1)."""

    def __init__(self, characters: int, width: int):
        super().__init__()
        self.points = nn.Conv1d(3, width, 5, stride=2, padding=2)
        self.recurrent = nn.GRU(width, width, 2, batch_first=True, bidirectional=True, dropout=0.2)
        self.head = nn.Linear(2 * width, characters + 1)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.recurrent(F.relu(self.points(x.mT)).mT)
        return self.head(h).log_softmax(-1)


def read(path: str, decimate: int = 1) -> list[tuple[Tensor, str]]:
    """The writings of an .ndjson, as every so many-th point of a stroke and its last, in units of their mean step."""
    found = []
    for line in Path(path).read_text().splitlines():
        record = json.loads(line)
        strokes = [np.array(stroke, float).T for stroke in record["drawing"]]
        strokes = [stroke[sorted({*range(0, len(stroke), decimate), len(stroke) - 1})] for stroke in strokes]
        places = np.concatenate(strokes)
        lifted = np.zeros(len(places))
        lifted[np.cumsum([len(stroke) for stroke in strokes]) - 1] = 1
        steps = np.diff(places, axis=0, prepend=places[:1])
        steps /= np.hypot(*steps.T).mean() or 1
        found.append((torch.tensor(np.column_stack([steps, lifted]), dtype=torch.float32), record.get("text", "")))
    return found


def batches(writings: list[tuple[Tensor, str]], size: int) -> list[tuple[Tensor, list[str]]]:
    writings = sorted(writings, key=lambda item: len(item[0]))
    parts = [writings[i : i + size] for i in range(0, len(writings), size)]
    return [(nn.utils.rnn.pad_sequence([x for x, _ in part], batch_first=True), [text for _, text in part])
            for part in parts]


def train(writings: list[tuple[Tensor, str]], alphabet: str, epochs: int, width: int) -> Recogniser:
    torch.manual_seed(0)
    net = Recogniser(len(alphabet), width)
    number = {character: i for i, character in enumerate(alphabet, 1)}
    ready = batches(writings, 32)
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, epochs * len(ready))
    for epoch in range(epochs):
        total = 0.0
        for i in torch.randperm(len(ready)).tolist():
            x, texts = ready[i]
            log_p = net(x)
            targets = [torch.tensor([number[character] for character in text]) for text in texts]
            loss = F.ctc_loss(log_p.transpose(0, 1), torch.cat(targets), torch.full((len(x),), log_p.shape[1]),
                              torch.tensor([len(target) for target in targets]), zero_infinity=True)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        print(f"epoch {epoch + 1}: loss {total / len(ready):.3f}", flush=True)
    return net.eval()


@torch.no_grad()
def character_error(net: Recogniser, writings: list[tuple[Tensor, str]], alphabet: str) -> float:
    """Edit distance of the likeliest path, in which repetitions are one, over the characters that there are."""
    wrong = 0
    for x, text in writings:
        path = [key for key, _ in groupby(net(x[None])[0].argmax(-1).tolist()) if key]
        wrong += edit_distance("".join(alphabet[i - 1] for i in path), text)
    return wrong / sum(len(text) for _, text in writings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    splitting = verbs.add_parser("split")
    splitting.add_argument("words")
    splitting.add_argument("lines")
    splitting.add_argument("-o", dest="folder", type=Path, required=True)
    reading = verbs.add_parser("read")
    reading.add_argument("train")
    reading.add_argument("test")
    reading.add_argument("--written", nargs=2, metavar=("PAGE.ndjson", "WORDS.txt"))
    reading.add_argument("--decimate", type=int, default=1)
    reading.add_argument("--epochs", type=int, default=20)
    reading.add_argument("--width", type=int, default=96)
    arguments = parser.parse_args()
    if arguments.verb == "split":
        split(arguments.words, arguments.lines, arguments.folder)
        return
    real, held_out = (read(path, arguments.decimate) for path in (arguments.train, arguments.test))
    alphabet = "".join(sorted({character for _, text in real + held_out for character in text}))
    net = train(real, alphabet, arguments.epochs, arguments.width)
    print(f"character error on {len(held_out)} real: {character_error(net, held_out, alphabet):.3f}")
    if arguments.written:
        page, words = arguments.written
        texts = Path(words).read_text().splitlines()
        written = [(x, texts[i % len(texts)]) for i, (x, _) in enumerate(read(page))]
        print(f"character error on {len(written)} written: {character_error(net, written, alphabet):.3f}")


if __name__ == "__main__":
    main()
