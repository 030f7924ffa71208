"""What the verbs do with a trained model, as plain functions without a terminal.

Examples are computed in aligned blocks of `model.block`: example i is always number i % block of block i // block,
whichever others are computed. So a seed gives the same bits for any number of examples or shards.

`options` are keyword-only options of the family's methods. Each method that a function calls gets those it has;
`{"decode.steps": 10}` is for one method alone.
"""

import inspect
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, get_args, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor

from gencli import registry
from gencli.dataset import Dataset, stack_padded
from gencli.device import in_threads, shared
from gencli.errors import DataError, UsageError
from gencli.layers.projection import Method
from gencli.layers.projection import project as nearest_codes
from gencli.model import Batch, Given, Model, Patch, assemble, join
from gencli.rng import ExampleStreams, Rng
from gencli.view import view_of

_ROWS = 4096  # examples whose neighbours are looked for at once


def own_options(method: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """The options that a method has, of those given."""
    own = {}
    for name, parameter in inspect.signature(method).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            for key in (name, f"{method.__name__}.{name}"):
                if key in options:
                    own[name] = options[key]
    return own


def _check(options: dict[str, Any], *methods: Callable[..., Any]) -> None:
    """TypeError if there are options that no method has."""
    names = {key for method in methods for name in inspect.signature(method).parameters
             for key in (name, f"{method.__name__}.{name}")}
    for name in options:
        if name not in names:
            raise TypeError(f"{' and '.join(method.__name__ for method in methods)} of this model have no option "
                            f"{name!r}")


def shard(n: int, part: int, parts: int) -> range:
    """The numbers of part `part` (1..parts) of `n` examples; the parts together are the whole, in order."""
    return range(n * (part - 1) // parts, n * part // parts)


def sample(model: Model, numbers: range, seed: int = 0, label: int | None = None, given: Given | None = None,
           frames: int = 0, watch: Callable[[Batch], None] = lambda piece: None, each: int = 1,
           keep: Callable[[Batch], Batch] = lambda piece: piece, **options: Any) -> Iterator[Batch]:
    """Examples of these numbers from the endless sequence that (model, seed, label, given, options) determines.

    Args:
        label: class number that a conditional model is given.
        given: what else the examples are conditioned on; example i is made from number i // each of `condition`, from
            the start again after the last.
        frames: return this many states of the making of each example, the last being the example itself; 0: examples.
        watch: called with every piece as it is made, if examples are made in pieces (`Model.stream`).
        each: examples made from one and the same condition.
        keep: what is kept of a piece, at once.
        options: of the family's `sample`, or `film`.
    """
    turn, over = threading.Lock(), threading.Event()

    def heard(pieces: Iterator[Batch]) -> Iterator[Batch]:
        for part in pieces:
            with turn:
                watch(part)
            yield part
            if over.is_set():  # nobody waits for it any longer
                break

    def whole(pieces: Iterator[Batch]) -> Batch:
        return _whole(heard(pieces))

    method = model.film if frames else model.sample
    threads = torch.get_num_threads() if model.side_by_side(**own_options(method, options)) else 1
    try:
        yield from in_threads(whole, _generated(model, numbers, seed, label, given, frames, each, options, keep),
                              threads)
    finally:
        over.set()


def sample_together(model: Model, parts: Iterable[range], seed: int = 0, label: int | None = None,
                    given: Given | None = None, frames: int = 0, watch: Callable[[Batch], None] = lambda piece: None,
                    each: int = 1, keep: Callable[[Batch], Batch] = lambda piece: piece,
                    **options: Any) -> Iterator[Batch]:
    """The examples of `sample` of these ranges of numbers, one after the other; processes that work together share it.

    Every one of them asks for the same.
    """
    size = _at_once(model, given, own_options(model.film if frames else model.sample, options))
    blocks = (range(int(block[wanted[0]]), int(block[wanted[-1]]) + 1)
              for part in parts for block, wanted in _blocks(part, size))

    def make(numbers: range) -> Batch:
        (batch,) = sample(model, numbers, seed, label, given, frames, watch, each, keep, **options)
        return batch

    return shared(blocks, make)


def stream(model: Model, numbers: range, seed: int = 0, label: int | None = None, given: Given | None = None,
           each: int = 1, **options: Any) -> Iterator[Batch]:
    """The examples of `sample`, one after the other, in pieces (1, ...) as they are made."""
    for pieces in _generated(model, numbers, seed, label, given, 0, each, options):
        others = []
        for part in pieces:
            yield part[:1]
            others.append(part[1:])
        if len(others[0]):
            rest = _whole(others)
            yield from (rest[i : i + 1] for i in range(len(rest)))


def answer(model: Model, conditions: Iterable[Batch], seed: int = 0, label: int | None = None,
           given: Given | None = None, each: int = 1, keep: Callable[[Batch], Batch] = lambda piece: piece,
           **options: Any) -> Iterator[Batch]:
    """The examples of `sample` for conditions that come little by little, `each` for every one of a piece."""
    start = 0  # conditions that have been answered
    for condition in conditions:
        count = len(condition)
        own = _around(condition, torch.arange(count) - start)  # number i is made from i // each, counted around
        yield from sample(model, range(each * start, each * (start + count)), seed, label,
                          replace(given or Given(), condition=own), each=each, keep=keep, **options)
        start += count


def _at_once(model: Model, given: Given | None, options: dict[str, Any]) -> int:
    """How many examples are computed at once: one by one where they are made from what has a size of its own."""
    like, source = model.spec.condition, given and given.condition
    if like and source and not registry.kind_of(like).variable and source.x.shape[1:] != like.shape:
        return 1
    return model.at_once(**options)


@torch.no_grad()
def _generated(model: Model, numbers: range, seed: int, label: int | None, given: Given | None, frames: int, each: int,
               options: dict[str, Any],
               keep: Callable[[Batch], Batch] = lambda piece: piece) -> Iterator[Iterator[Batch]]:
    """Block by block the wanted examples, in pieces."""
    given = given or Given()
    if model.spec.condition is not None and given.condition is None:
        raise UsageError(f"this model makes examples from {registry.kind_of(model.spec.condition).plural}; name some "
                         f"with --given")
    method = model.film if frames else model.sample
    _check(options, method)
    keywords = own_options(method, options)
    for block, positions in _blocks(numbers, _at_once(model, given, keywords)):
        rng = ExampleStreams(seed, block, "sample", model.device)
        own = replace(given, **{name: _each(value, name, model, block // each) for name in ("prompt", "known", "mask")
                                if (value := getattr(given, name)) is not None},
                      labels=_labels(model, label, given.labels, block // each),
                      condition=_condition(model, given.condition, block // each))
        if frames:
            yield iter([_in_turn(model.film(rng, frames, own, **keywords), positions)])
        else:
            # What is completed keeps its class, whatever the model knows of classes.
            parts: Iterable[Batch] = map(keep, model.stream(rng, own, **keywords))
            if given.labels is not None:
                parts = (replace(part, labels=own.labels) for part in parts)
            yield _chosen(parts, positions)


@torch.no_grad()  # of its own: it runs when whoever asks for the pieces does
def _chosen(parts: Iterable[Batch], positions: Tensor) -> Iterator[Batch]:
    """The examples at these positions, in rising order, on the CPU, piece by piece."""
    for part in parts:  # a block that is wanted as a whole is not copied: it may be one large picture
        yield (part if len(positions) == len(part) else part[positions.to(part.x.device)]).to("cpu")


def _whole(pieces: Iterable[Batch]) -> Batch:
    """The examples that come in these pieces."""
    pieces = iter(pieces)
    first = next(pieces)
    if isinstance(first, Patch):
        return assemble(itertools.chain([first], pieces))  # type: ignore[arg-type]
    others = [*pieces]
    return join([first, *others]) if others else first


def _labels(model: Model, label: int | None, labels: Tensor | None, numbers: Tensor) -> Tensor | None:
    """The class of all examples, or of N partial examples those of these numbers."""
    if labels is not None:
        return labels[numbers % len(labels)].to(model.device)
    return None if label is None else torch.full((len(numbers),), label, device=model.device)


def _each(value: Tensor, name: str, model: Model, numbers: Tensor) -> Tensor:
    """What all examples share, or of N partial examples those of these numbers, from the start again after the last."""
    several = name != "prompt" and value.dim() > len(model.spec.shape)
    return (value[numbers % len(value)] if several else value).to(model.device)


def _condition(model: Model, condition: Batch | None, numbers: Tensor) -> Batch | None:
    """What examples of these numbers are made from, on the device; from the start again after the last."""
    return None if condition is None else _around(condition, numbers).to(model.device)


def _around(batch: Batch, numbers: Tensor) -> Batch:
    """The examples of these numbers, from the start again after the last; no copy where they follow each other."""
    places = numbers % len(batch)
    start = int(places[0])
    follow = torch.equal(places, start + torch.arange(len(places)))
    return batch[start : start + len(places)] if follow else batch[places]


def conditions_of(model: Model, data: Dataset, count: int) -> Given:
    """The default conditions of `count` samples: those of the first examples of the data."""
    if model.spec.condition is None:
        return Given()
    batch = data.batch(torch.arange(min(count, len(data))))
    # A vocoder trained on recordings alone is conditioned on the recordings themselves.
    return Given(condition=batch.condition or batch)


@torch.no_grad()
def squared_error(examples: Batch, others: Batch, gaps: bool = False) -> Tensor:
    """The mean squared difference of two examples, (B,) float64; where one is longer, the other counts as 0.

    With `gaps` what is missing (NaN) in either does not count.
    """
    x, y = examples.x.double(), others.x.double()
    if examples.lengths is None or others.lengths is None:
        elements = torch.full((len(x),), math.prod(x.shape[1:]), device=x.device)
    else:
        steps = max(x.shape[1], y.shape[1])
        x, y = (torch.nn.functional.pad(side, (0, 0) * (side.dim() - 2) + (0, steps - side.shape[1]))
                for side in (x, y))
        elements = torch.maximum(examples.lengths, others.lengths) * math.prod(x.shape[2:])
    errors = (x - y).square().flatten(1)
    if gaps:
        missing = errors.isnan()
        errors, elements = errors.masked_fill(missing, 0), (elements - missing.sum(1)).clamp(min=1)
    return errors.sum(1) / elements


def encode(model: Model, data: Dataset, seed: int = 0, errors: bool = False, projected: bool = False,
           **options: Any) -> Iterator[tuple[Tensor, Batch, Tensor | None]]:
    """Blocks of (codes (B, ...), examples, reconstruction error (B,) or None), on the CPU.

    The reconstruction error, with `errors`, is the mean squared error of decoding the code again; None for a model
    that does not decode.

    Args:
        projected: search for the codes whose examples are nearest (`project`).
        options: of the family's `encode` and `decode`, and of `project`.
    """
    _check(options, model.encode, model.decode, *([project] if projected else []))
    decodes = errors and "decode" in model.abilities()
    for block, positions in _blocks(range(len(data)), model.block):
        inside = block.clamp(max=len(data) - 1)  # the last block is filled up with its last example
        rng = ExampleStreams(seed, inside, "encode", model.device)
        batch = data.batch(inside, model.device)
        codes = model.encode(batch, rng, **own_options(model.encode, options))
        if (decodes or projected) and not registry.kind_of(model.spec).variable and \
                codes.shape[1:] != code_shape(model):
            raise UsageError("with this option the output is not a code that can be decoded; leave it out, or do not "
                             "ask for the reconstruction error or the projection")
        if projected:
            codes = project(model, batch, codes, rng, options, **own_options(project, options))
        error = None
        if decodes:
            decoded = decode_batch(model, codes, None, batch.condition, options)
            error = squared_error(decoded, batch, registry.kind_of(model.spec).missing)[positions].float().cpu()
        yield codes[positions].cpu(), batch[positions].to("cpu"), error


def project(model: Model, batch: Batch, codes: Tensor, rng: Rng, options: dict[str, Any] | None = None, *,
            steps: int = 200, starts: int | None = None, by: Method = "lbfgs") -> Tensor:
    """The codes (B, *code) whose examples are nearest to those of a batch in mean square, of `starts` searches each.

    One starts from `codes`, those of the encoder, the others from the prior; what is not `free` of a code stays. So no
    example is farther than that of its encoder's code. Distances are those of the kind's real view.

    Args:
        options: of the family's `decode`.
        steps: evaluations of the gradient.
        starts: by default 4, and 1 where the encoder inverts the decoder.
        by: how it is followed: `gencli.layers.projection`.

    Raises:
        UsageError: the decoder has no gradient, or there is no search.
    """
    starts = (1 if model.inverts else 4) if starts is None else starts
    if steps < 1 or starts < 1:
        raise UsageError(f"steps={steps}, starts={starts}: a projection needs one of each at least")
    require_gradient(model, batch, codes, options or {})
    view = view_of(model.spec).to(model.device)
    begin = torch.stack([codes, *(codes.clone() for _ in range(starts - 1))], dim=1)
    for i in range(1, starts):
        begin[:, i][..., model.free] = model.prior(rng).to(codes)[..., model.free]

    def generate(codes: Tensor) -> Tensor:
        condition = batch.condition and batch.condition[torch.arange(len(batch)).repeat_interleave(codes.shape[1])]
        made = decode_batch(model, codes.flatten(0, 1), None, condition, options or {})
        return view(made, None)[0].unflatten(0, codes.shape[:2])

    return nearest_codes(generate, begin, view(batch, None)[0], steps, model.free, by)[0]


def require_gradient(model: Model, batch: Batch, codes: Tensor, options: dict[str, Any]) -> None:
    """UsageError unless what a code decodes to follows it smoothly."""
    if "decode" in model.abilities() and codes.is_floating_point():
        with torch.enable_grad():
            x = decode_batch(model, codes.detach().clone().requires_grad_(), None, batch.condition, options).x
        if x.requires_grad:
            return
    raise UsageError(f"a search of codes follows the gradient of the decoder, and this model, which makes its "
                     f"{registry.kind_of(model.spec).plural} otherwise, has none; use the code of 'gencli encode'")


def nearest(model: Model, examples: Dataset, collection: Dataset, count: int, seed: int = 0,
            progress: Callable[[int, int], None] = lambda done, total: None, **options: Any) -> tuple[Tensor, Tensor]:
    """Of each of `examples` the `count` of `collection` whose codes have the largest cosine with its own.

    (N, count) float64 cosines, the largest first, and (N, count) int64 numbers, the smaller first of equal ones. The
    codes of `examples` are in memory, those of `collection` some at a time.

    Raises:
        UsageError: a code is as long as its example, and so no point of one space.
    """
    for data in (examples, collection):
        require_vectors(model, data, options)

    def directions(data: Dataset) -> Iterator[Tensor]:
        for codes, _, _ in encode(model, data, seed, **options):
            yield F.normalize(codes.flatten(1).double(), dim=1)

    own = torch.cat([*directions(examples)])
    best = own.new_full((len(own), count), -math.inf)
    numbers, done = torch.zeros(len(own), count, dtype=torch.int64), 0
    for others in directions(collection):
        places = torch.arange(done, done + len(others))
        for rows in torch.arange(len(own)).split(_ROWS):
            cosines = torch.cat([best[rows], own[rows] @ others.T], 1)
            of = torch.cat([numbers[rows], places.expand(len(rows), -1)], 1)
            best[rows], order = (part[:, :count] for part in cosines.sort(dim=1, descending=True, stable=True))
            numbers[rows] = of.gather(1, order)
        done += len(others)
        progress(done, len(collection))
    return best[:, :done], numbers[:, :done]


@torch.no_grad()
def require_vectors(model: Model, data: Dataset, options: dict[str, Any]) -> None:
    """UsageError if the code of an example that is cut short is another shape than that of the whole."""
    if not registry.kind_of(model.spec).variable or getattr(model.spec, "fixed", False):  # all are of one length
        return
    assert data.lengths is not None
    method, whole = model.encode, data.batch(data.lengths.argmax()[None], model.device)
    short = replace(whole, x=whole.x[:, :1], lengths=torch.ones(1, dtype=torch.int64, device=model.device))

    def differs(**options: Any) -> bool:
        rng, own = ExampleStreams(0, torch.arange(1), "encode", model.device), own_options(method, options)
        return method(whole, rng, **own).shape != method(short, rng, **own).shape

    if differs(**options):
        others = [value for value in get_args(get_type_hints(method).get("code"))
                  if not differs(**{**options, "code": value})]
        ways = f"; --set code={others[0]} gives vectors" if others else ", and this model has no others"
        raise UsageError(f"codes of this model are as long as their examples, so that none is near another{ways}")


@torch.no_grad()
def decode(model: Model, blocks: Iterable[Tensor], seed: int = 0, frames: int = 0, given: Given | None = None,
           each: int = 1, **options: Any) -> Iterator[Batch]:
    """Codes (B, ...) in blocks of any size -> examples, or of each so many `frames` of its making.

    Args:
        given: of a model of examples that are made from others, what these codes are to be made from: example i from
            number i // each of `condition`.
        options: of the family's `decode`, or `film`.
    """
    method = model.film if frames else model.decode
    _check(options, method)
    own = own_options(method, options)
    condition = given.condition if given else None
    # Examples of variable length have such codes too, which the model itself checks.
    expected = () if registry.kind_of(model.spec).variable else tuple(code_shape(model))
    size, start = model.at_once(**own), 0
    for codes in blocks:
        if expected and tuple(codes.shape[1:]) != expected:
            raise DataError(f"a code has shape {tuple(codes.shape[1:])}, but the model's have {expected}; "
                            f"make codes with 'gencli encode' and the same model")
        # Filled up to the full block, so that an example does not depend on how many come with it.
        missing = -len(codes) % size
        filled = torch.cat([codes, codes[-1:].expand(missing, *codes.shape[1:])]).to(model.device)
        for i in range(0, len(filled), size):
            part = filled[i : i + size]
            numbers = torch.arange(start + i, start + i + len(part))
            rng = ExampleStreams(seed, numbers, "decode", model.device)
            count = min(len(part), max(0, len(codes) - i))
            if frames:
                yield _in_turn(model.film(rng, frames, code=part, **own), torch.arange(count))
            else:
                own_condition = _condition(model, condition, numbers // each)
                yield decode_batch(model, part, rng, own_condition, options)[:count].to("cpu")
        start += len(codes)


def decode_batch(model: Model, codes: Tensor, rng: ExampleStreams | None, condition: Batch | None,
                 options: dict[str, Any]) -> Batch:
    """Codes of one block -> examples, made from `condition` in a model that makes them from something."""
    own = own_options(model.decode, options)
    if "given" not in inspect.signature(model.decode).parameters:  # made from nothing, or determined by codes
        return model.decode(codes, rng, **own)
    if condition is None and model.spec.condition is not None:
        plural = registry.kind_of(model.spec.condition).plural
        raise UsageError(f"this model makes examples from {plural} and codes; name some with --given")
    return model.decode(codes, rng, Given(condition=condition), **own)  # type: ignore[call-arg]


@torch.no_grad()
def code_of_seed(model: Model, seed: int, **options: Any) -> Tensor:
    """The code of the first example that `sample` gives for `seed`, (*code)."""
    own = own_options(model.prior, options)
    return model.prior(ExampleStreams(seed, torch.arange(model.block), "sample", model.device), **own)[0].cpu()


@torch.no_grad()
def code_shape(model: Model) -> torch.Size:
    """The shape of one code."""
    return model.prior(ExampleStreams(0, torch.arange(1), "shape", model.device)).shape[1:]


@torch.no_grad()
def code_of(model: Model, batch: Batch, seed: int = 0, **options: Any) -> Tensor:
    """The code of the first example of a batch, (*code)."""
    rng = ExampleStreams(seed, torch.zeros(1, dtype=torch.int64), "encode", model.device)
    return model.encode(batch[:1].to(model.device), rng, **own_options(model.encode, options))[0].cpu()


@torch.no_grad()
def interpolate(model: Model, corners: Sequence[Tensor], frames: int, seed: int = 0, given: Given | None = None,
                **options: Any) -> Iterator[Batch]:
    """Examples along a path through codes (*code), `frames` from each to the next, the corners included once.

    What they are made from is the same along the whole path: the first of `given.condition`.
    """
    if len(corners) < 2:
        raise UsageError("a path needs at least two ends; give two examples, two --seeds or --latents with two codes")
    fixed = Given(condition=given.condition[:1]) if given and given.condition is not None else None
    for i, (a, b) in enumerate(itertools.pairwise(corners)):
        path = model.interpolate(a.to(model.device), b.to(model.device), frames)[(i > 0):]
        yield from decode(model, [path.cpu()], seed, given=fixed, **own_options(model.decode, options))


def collect(batches: Sequence[Batch], spec: Any, name: str, labels: Tensor | None = None) -> Dataset:
    """Examples of a model as a data set, as if they had come out of a pipe and been read again."""
    kind = registry.kind_of(spec)
    lengths = None
    if kind.variable:
        x, lengths = stack_padded([piece for batch in batches for piece in batch.pieces()])
    else:
        x = torch.cat([batch.x for batch in batches])
    own = [batch.labels for batch in batches if batch.labels is not None]
    return Dataset(name, "all", spec, labels=torch.cat(own) if own else labels,
                   **kind.store(Batch(x, lengths=lengths), spec))


def _in_turn(states: list[Batch], positions: Tensor) -> Batch:
    """The states of each of these examples, one example after the other."""
    return Batch(torch.stack([state.x.cpu()[positions] for state in states], dim=1).flatten(0, 1))


def _blocks(numbers: range, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The aligned blocks that cover `numbers`: (all numbers of the block (size,), positions of the wanted ones)."""
    if not len(numbers):
        return
    for block in range(numbers.start // size, (numbers.stop - 1) // size + 1):
        first, last = max(numbers.start, block * size), min(numbers.stop, (block + 1) * size)
        yield torch.arange(block * size, (block + 1) * size), torch.arange(first - block * size, last - block * size)
