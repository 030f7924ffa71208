"""Classes of examples: what lies beside a file says of them, and what happens to examples that have none."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gencli import registry
from gencli.errors import DataError, UsageError, did_you_mean
from gencli.examples import Examples, Request, Splits, shorten
from gencli.files import read_bytes
from gencli.streams import parse_record


def class_of(files: Mapping[str, Callable[[], bytes]], name: str, classes: Sequence[str] = ()) -> str:
    """The class that the files beside an example say, by their endings; "" if none does.

    A record (`json`) says it under `class`, by name, or under `label`, by name or by number; a `cls`, as WebDataset
    has it, is its name or number.

    Args:
        name: of the example, for messages.
        classes: those that numbers count.
    """
    record = parse_record(files["json"](), f"{name}.json") if "json" in files else {}
    label: Any = record.get("class", record.get("label"))
    if label is None and "cls" in files:
        try:
            label = files["cls"]().decode().strip()
        except UnicodeDecodeError as error:
            raise DataError(f"{name}.cls is not UTF-8 text; expected a class") from error
        if label in map(str, range(len(classes))) and label not in classes:
            label = int(label)
    if isinstance(label, int) and 0 <= label < len(classes):
        return classes[label]
    return str(label) if isinstance(label, str | int | float) else ""


def beside(files: Sequence[Path], stem: Callable[[Path], str]) -> list[str]:
    """The classes that `.json` and `.cls` files beside these say; "" where none does."""
    found = []
    for path in files:
        own = path.with_name(stem(path))
        others = {ending: own.with_name(f"{own.name}.{ending}") for ending in ("json", "cls")}
        there = {ending: partial(read_bytes, other) for ending, other in others.items() if other.is_file()}
        try:
            found.append(class_of(there, str(own)))
        except DataError:  # in a folder anything may lie beside an example
            found.append("")
    return found


def of_classes(chosen: Examples, train: Examples, labels: list[str] | None,
               request: Request) -> tuple[Examples, Examples, list[str] | None]:
    """What `--classes` and `--without` leave of the wanted examples, the training examples, and labels of the data.

    Raises:
        UsageError: both options; a class that the data does not have.
        DataError: examples without classes, or nothing is left.
    """
    general = request.general
    if general.classes is None and general.without is None:
        return chosen, train, labels
    if general.classes is not None and general.without is not None:
        raise UsageError("--classes and --without both say which classes are read; leave one out")
    option = f"--without {general.without}" if general.classes is None else f"--classes {general.classes}"
    if labels is None:
        raise DataError(f"{option}: the examples of {request.name} have no classes; give data with labels "
                        f"(a table: --label COLUMN)")
    there = set(labels) | set(chosen.labels or ())
    named = set((general.classes or general.without or "").split(","))
    for name in sorted(named - there):
        raise UsageError(f"{option}: {request.name} has no class {name!r}{did_you_mean(name, there)}")
    kept = named if general.without is None else there - named

    def part(examples: Examples) -> Examples:
        places = [i for i, label in enumerate(examples.labels or ()) if label in kept]
        if not places:
            raise DataError(f"{option}: none of the {len(examples)} examples is left; choose other classes")
        return examples.take(places)

    own = part(chosen)
    return own, own if train is chosen else part(train), [label for label in labels if label in kept]


def classified(splits: Splits, request: Request, needed: bool) -> Splits:
    """The splits, of whose examples either all have a class or none has.

    Args:
        needed: whether classes are of use; otherwise nothing is left out for the lack of one.

    Raises:
        DataError: a smaller part of the examples has none, and `request.skip_bad` is off.
    """
    return {name: _classified(read, request, needed) for name, read in splits.items()}


def _classified(read: Callable[[], Examples], request: Request, needed: bool) -> Callable[[], Examples]:
    def checked() -> Examples:
        examples = read()
        bare = [i for i, label in enumerate(examples.labels or ()) if not label]
        if not bare:
            return examples
        if not needed or len(bare) == len(examples):
            examples.labels = None
            return examples
        what = (f"{request.name}: {len(bare)} of {len(examples)} {registry.kind(examples.kind).plural} have no class "
                f"({shorten([examples.called(i) for i in bare], 3)})")
        if request.skip_bad:
            whole, lacking = examples, set(bare)
            examples = whole.take([i for i in range(len(whole)) if i not in lacking])
            examples.skipped += len(bare)
            request.notify(f"{what}; they are left out")
            for i in bare:
                request.left_out(f"{whole.called(i)} has no class")
        elif 2 * len(bare) > len(examples):
            examples.labels = None
            request.notify(f"{what}, so the others are read without theirs; --skip-bad leaves out those without")
        else:
            raise DataError(f"{what}; --skip-bad leaves them out")
        return examples

    return checked
