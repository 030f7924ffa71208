"""Examples that are made from others: how pairs are told, and how both sides are made to fit.

Pairs come as

- a folder with `source/` and `target/`, whose files have the same names (`gencli.data.folders`);
- two aligned text files, `source.txt` and `target.txt`, line by line (the same);
- a tar with `000000.source.png` beside `000000.png` (`gencli.data.tars`);
- pictures that show both sides: `--pair left` or `right`;
- columns of a table: `--source COLUMN --target COLUMN`; files that differ in their endings: `--source de --target en`;
- examples from which a part is taken: `--condition downscale=2` (`Kind.conditions`);
- examples that come with what they may be made from: `--condition text` (`Examples.offers`).
"""

from collections.abc import Callable
from dataclasses import replace

from gencli import registry
from gencli.dataset import Dataset
from gencli.errors import DataError, UsageError, did_you_mean
from gencli.examples import Examples, Request, Splits, keyed, with_condition
from gencli.kind import Kind, alike, describe
from gencli.spec import Spec


def paired(splits: Splits, request: Request) -> Splits:
    """The splits, with `--pair` carried out and what does not fit together refused or left out."""
    return {name: _checked(read, request) for name, read in splits.items()}


def _checked(read: Callable[[], Examples], request: Request) -> Callable[[], Examples]:
    def checked() -> Examples:
        examples, general = read(), request.general
        kind = registry.kind(examples.kind)
        if examples.condition is None and (offer := _offer(examples, request)):
            if request.sources:
                return offer
            examples.condition = offer
            return examples
        if general.pair and examples.condition is None:
            examples = kind.halves(examples, general.pair)
            if request.sources:
                assert examples.condition is not None
                return examples.condition
        elif general.pair and not request.trained:
            raise UsageError(f"--pair {general.pair}: {request.name} has pairs already; leave it out")
        if examples.condition is None:
            if (general.source or general.target) and not request.trained and not request.sources:
                raise UsageError(f"--source and --target name columns of a table; {request.name} is not one")
            return examples
        if general.condition and request.trained:
            request.notify(f"{request.name}: its own pairs are used, not --condition {general.condition} of training")
        elif general.condition:
            raise UsageError(f"--condition {general.condition}: the examples of {request.name} are made from something "
                             f"already; leave it out")
        bad = kind.match(examples, examples.condition, request)
        if not bad:
            return examples
        if not request.skip_bad:
            raise DataError(f"{request.name}: example {bad[0][0]}: {bad[0][1]}; --skip-bad leaves such pairs out")
        numbers = {number for number, _ in bad}
        fitting = examples.take([i for i in range(len(examples)) if i not in numbers])
        fitting.skipped += len(bad)
        return fitting

    return checked


def _offer(examples: Examples, request: Request) -> Examples | None:
    """What came with the examples and they are to be made from; None if nothing did."""
    if request.sources and not request.general.condition:  # that is the one of the kind that is wanted
        return next((offer for offer in examples.offers.values() if offer.kind == request.general.kind), None)
    return examples.offers.get(request.general.condition or "")


def fit(examples: Examples, spec: Spec, request: Request, limit: int | None) -> Dataset:
    """The first `limit` examples as a data set of `spec`, with what they are made from.

    Raises:
        DataError: they do not fit, or the model takes a condition and they have none.
    """
    kind = registry.kind(examples.kind)
    if spec.condition is None:
        if examples.condition is not None:
            request.notify(f"{request.name}: what the examples are made from is left out: the model takes nothing")
        return keyed(examples.fit(spec, request, limit), examples)
    if examples.condition is None:
        if not request.general.condition:
            raise DataError(f"the examples of {request.name} are made from nothing; expected pairs, each made from "
                            f"one of {registry.kind_of(spec.condition).plural}{_ways(kind)}")
        own, divide = derived(kind, kind.undivided(spec), request)
        assert own.condition is not None
        if not alike(own.condition, spec.condition):
            raise DataError(f"--condition {request.general.condition} makes {describe(own.condition)} of the examples "
                            f"of {request.name}; expected {describe(spec.condition)}")
        data = divide(keyed(examples.fit(kind.undivided(spec), request, limit), examples))
        return replace(data, spec=spec, protocol={**data.protocol, "condition": request.general.condition})
    if spec.condition.kind != examples.condition.kind:
        raise DataError(f"the examples of {request.name} are made from {examples.condition.describe()}; expected "
                        f"{registry.kind_of(spec.condition).describe(spec.condition)}")
    examples = examples.head(limit)
    assert examples.condition is not None
    data = keyed(examples.fit(spec, request, None), examples)
    condition = examples.condition.fit(spec.condition, condition_request(request, examples), None)
    return with_condition(data, condition, examples.groups(), request.skip_bad).subset(limit)


def condition_request(request: Request, examples: Examples) -> Request:
    """How what the examples are made from is to be read."""
    assert examples.condition is not None
    options = request.options
    if examples.condition.kind == examples.kind:
        options = registry.kind(examples.kind).for_condition(options)
    return replace(request, options=options)


def derived(kind: Kind, spec: Spec, request: Request) -> tuple[Spec, Callable[[Dataset], Dataset]]:
    """The Spec of examples with the condition that `--condition NAME=ARGUMENT` derives from whole ones, and how."""
    name, _, argument = (request.general.condition or "").partition("=")
    if name in kind.offered:
        raise DataError(f"--condition {name}: the {kind.plural} of {request.name} come without a {name}")
    if name not in kind.conditions:
        raise UsageError(f"--condition {name}: {kind.plural} have no such condition"
                         f"{did_you_mean(name, kind.conditions)}")
    return kind.conditions[name](spec, argument)


def _ways(kind: Kind) -> str:
    """How examples that come alone may be made from something."""
    names = [*kind.conditions, *kind.offered]
    return f", or --condition {' or '.join(names)}" if names else ""
