"""What the names of files and folders say: which are splits, which are parts of one set; and patterns of names."""

import fnmatch
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from gencli.errors import DataError
from gencli.examples import shorten

_WORDS = {"train": "train", "training": "train", "trainset": "train", "test": "test", "testing": "test",
          "testset": "test", "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid", "eval": "eval",
          "evaluation": "eval"}
_MOST = 100_000  # names that a pattern may stand for


def splits_among(names: Iterable[str], of: str, loose: bool = False) -> dict[str, list[str]]:
    """The names that are splits: "train" and at least one of "test" and "valid"; {} if there are none.

    They are alike but for the word and numbers: `ptb.train`, `ptb.valid`; `train2017`, `val2017`. A split that is not
    there may have a longer name: `train`, `val`, `test_2016_flickr`. Other names belong to none. What is called eval is
    the test split, or the validation split where there is a test split.

    Args:
        of: where the names are from, for messages.
        loose: take also names that are not alike: `train`, `test_stage1`.

    Raises:
        DataError: there are several such sets of names.
    """
    alike: dict[str, dict[str, list[str]]] = {}
    for name in sorted(names):
        words = re.findall("[a-z]+", name.lower())
        if len(found := [word for word in words if word in _WORDS]) == 1:
            template = " ".join("*" if word == found[0] else word for word in words)
            alike.setdefault(template, {}).setdefault(_WORDS[found[0]], []).append(name)
    sets = {template: own for template, own in alike.items() if "train" in own and len(own) > 1}
    if not sets and loose:
        together: dict[str, list[str]] = {}
        for own in alike.values():
            for split, members in own.items():
                together.setdefault(split, []).extend(members)
        sets = {"*": together} if "train" in together and len(together) > 1 else {}
    if not sets:
        return {}
    if len(sets) > 1 and "*" not in sets:
        first = [shorten(own["train"], 1) for own in sets.values()]
        raise DataError(f"{of} holds {first[0]} and {first[1]}, which could both be the training split; name one")
    splits = sets["*"] if "*" in sets else next(iter(sets.values()))
    for split in ("valid", "test", "eval"):  # train, val, test_2016: what no name of the set says, the only one says
        rest = [name for own in alike.values() for name in own.get(split, ())]
        if split not in splits and len(rest) == 1:
            splits[split] = rest
    if evaluation := splits.pop("eval", None):
        splits.setdefault("valid" if "test" in splits else "test", evaluation)
    return splits


@dataclass(frozen=True)
class Arrangement:
    """What the folders that files lie in say.

    Attributes:
        splits: the files of each split, by number; None where no folder says it.
        classes: of each file, the outermost folder, but for that of its split, that tells it from others; "" if it
            lies in none.
        others: folders beside those of the splits.
    """

    splits: dict[str, list[int]] | None
    classes: list[str]
    others: list[str]


def arranged(folders: Sequence[Sequence[str]], of: str) -> Arrangement:
    """What the folders say that each file lies in, given from the outermost on; `of`: where, for messages.

    Raises:
        DataError: two could be the same split.
    """
    for depth in range(max(map(len, folders), default=0)):
        names = [parts[depth] if depth < len(parts) else "" for parts in folders]
        if splits := splits_among({*names} - {""}, of):
            chosen = only(splits, of)
            others = sorted({*names} - {"", *chosen.values()})
            inside = [[*parts[:depth], *parts[depth + 1 :]] for parts in folders]
            return Arrangement({split: [i for i, name in enumerate(names) if name == own]
                                for split, own in chosen.items()}, _classes(inside), others)
    return Arrangement(None, _classes(folders), [])


def only(splits: Mapping[str, Sequence[str]], of: str) -> dict[str, str]:
    """The one name of each split; DataError if there are several."""
    for split, names in splits.items():
        if len(names) > 1:
            raise DataError(f"{of} holds {names[0]} and {names[1]}, which could both be the {split} split; name one")
    return {split: names[0] for split, names in splits.items()}


def _classes(folders: Sequence[Sequence[str]]) -> list[str]:
    """Folders that all files share say nothing, unless there is none below."""
    start = 0
    while all(len(parts) > start + 1 for parts in folders) and len({parts[start] for parts in folders}) == 1:
        start += 1
    return [parts[start] if len(parts) > start else "" for parts in folders]


def numbered_alike(paths: Sequence[Path]) -> bool:
    """Whether names differ in nothing but numbers, as those of parts do."""
    return len({re.sub(r"\d+", "#", path.name) for path in paths}) == 1


def is_pattern(name: str) -> bool:
    """Whether a name stands for several: `data-{000..099}.tar`, `{train,more}.tar`, `data-*.tar`."""
    return bool(re.search(r"\{[^{}]*(,|\.\.)[^{}]*\}", name)) or any(sign in os.path.basename(name) for sign in "*?[")


def expand(pattern: str) -> list[Path]:
    """The files that a pattern stands for: those of braces in their order, which need not be there, of `*` sorted.

    Raises:
        DataError: there are none, or more than 100,000.
    """
    files: list[Path] = []
    for name in _braces(pattern):
        path = Path(name)
        if not any(sign in path.name for sign in "*?["):
            files.append(path)
            continue
        try:
            files += [path.parent / own for own in sorted(os.listdir(path.parent))
                      if not own.startswith(".") and fnmatch.fnmatchcase(own, path.name)]
        except OSError as error:
            raise DataError(f"{path.parent} cannot be read: {error.strerror}") from error
    if not files or len(files) > _MOST:
        raise DataError(f"{pattern} stands for {f'more than {_MOST:,}' if files else 'no'} files")
    return files


def _braces(pattern: str) -> list[str]:
    """`a{1,2}` -> a1, a2; `a{08..10}` -> a08, a09, a10."""
    parts: list[list[str]] = []
    for i, piece in enumerate(re.split(r"\{([^{}]*)\}", pattern)):
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", piece) if i % 2 else None
        if numbers:
            first, last = map(int, numbers.groups())
            if not 0 <= last - first < _MOST:
                raise DataError(f"{pattern}: expected at most {_MOST:,} numbers in braces, the smaller one first")
            parts.append([f"{n:0{len(numbers[1])}d}" for n in range(first, last + 1)])
        elif i % 2:
            parts.append(piece.split(",") if "," in piece else [f"{{{piece}}}"])
        else:
            parts.append([piece])
    count = 1
    for part in parts:
        count *= len(part)
    if count > _MOST:
        raise DataError(f"{pattern} stands for more than {_MOST:,} files")
    return ["".join(chosen) for chosen in product(*parts)]
