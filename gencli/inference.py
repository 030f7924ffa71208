"""What the verbs do with a trained model, as plain functions that know no terminal.

Examples are computed in aligned blocks of `model.block`: example i is always number i % block of block i // block,
whichever others are wanted. So a seed gives the same bits however many are asked for, and in however many shards.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gencli.data.dataset import Dataset
from gencli.errors import DataError, UsageError
from gencli.kinds.audio import AudioSpec
from gencli.kinds.text import TextSpec
from gencli.model import Batch, Given, Model, join
from gencli.rng import ExampleStreams


def shard(n: int, part: int, parts: int) -> range:
    """The numbers of part `part` (1..parts) of `n` examples; the parts together are the whole, in order."""
    return range(n * (part - 1) // parts, n * part // parts)


def sample(model: Model, numbers: range, seed: int = 0, label: int | None = None, given: Given | None = None,
           frames: int = 0, watch: Callable[[Batch], None] = lambda piece: None, **options: Any) -> Iterator[Batch]:
    """Examples of these numbers from the endless sequence that (model, seed, label, given, options) stands for.

    Args:
        label: class number that a conditional model is given.
        given: what else the examples are conditioned on; of `source` example i has number i, from the start again
            after the last.
        frames: instead of each example so many states of its making, the last being the example.
        watch: sees every piece as it is made, where examples are made in pieces (`Model.stream`).
        options: keyword-only options of the family's `sample`, or `film`.
    """
    for pieces in _generated(model, numbers, seed, label, given, frames, options):
        parts = []
        for part in pieces:
            watch(part)
            parts.append(part)
        yield parts[0] if len(parts) == 1 else join(parts)


def made_from(model: Model, data: Dataset, count: int) -> Given:
    """What `count` samples are conditioned on where nobody says: the first examples, if the model needs any."""
    return Given(source=data.batch(torch.arange(min(count, len(data))))) if model.needs_source else Given()


def stream(model: Model, numbers: range, seed: int = 0, label: int | None = None, given: Given | None = None,
           **options: Any) -> Iterator[Batch]:
    """The examples of `sample`, one after the other, in pieces (1, ...) as they are made."""
    for pieces in _generated(model, numbers, seed, label, given, 0, options):
        others = []
        for part in pieces:
            yield part[:1]
            others.append(part[1:])
        if len(others[0]):
            rest = others[0] if len(others) == 1 else join(others)
            yield from (rest[i : i + 1] for i in range(len(rest)))


@torch.no_grad()
def _generated(model: Model, numbers: range, seed: int, label: int | None, given: Given | None, frames: int,
               options: dict[str, Any]) -> Iterator[Iterator[Batch]]:
    """Block by block the wanted examples, in pieces."""
    given = given or Given()
    for block, positions in _blocks(numbers, model.at_once(**options)):
        rng = ExampleStreams(seed, block, "sample", model.device)
        own = replace(given, **{name: value.to(model.device) for name in ("prompt", "known", "mask")
                                if (value := getattr(given, name)) is not None},
                      labels=None if label is None else torch.full((len(block),), label, device=model.device),
                      source=None if given.source is None else given.source[block % len(given.source)].to(model.device))
        if frames:
            yield iter([_in_turn(model.film(rng, frames, own, **options), positions)])
        else:
            yield (part[positions.to(model.device)].to("cpu") for part in model.stream(rng, own, **options))


@torch.no_grad()
def encode(model: Model, data: Dataset, seed: int = 0, **options: Any) -> Iterator[tuple[Tensor, Batch, Tensor | None]]:
    """Blocks of (codes (B, ...), examples, reconstruction error (B,) or None), on the CPU.

    The reconstruction error is the mean squared error of decoding the code again; None where the example always comes
    back, for a model that does not decode, and where the option asks for something that is no code.
    """
    decodes = "decode" in model.abilities() and not model.lossless and not options
    for block, positions in _blocks(range(len(data)), model.block):
        inside = block.clamp(max=len(data) - 1)  # the last block is filled up with its last example
        rng = ExampleStreams(seed, inside, "encode", model.device)
        batch = data.batch(inside, model.device)
        codes = model.encode(batch, rng, **options)
        error = None
        if decodes:
            error = (model.decode(codes).x - batch.x).square().flatten(1).mean(1)[positions].cpu()
        yield codes[positions].cpu(), batch[positions].to("cpu"), error


@torch.no_grad()
def decode(model: Model, blocks: Iterable[Tensor], seed: int = 0, frames: int = 0, **options: Any) -> Iterator[Batch]:
    """Codes (B, ...) in blocks of any size -> examples, or of each so many `frames` of its making."""
    expected = () if isinstance(model.spec, TextSpec | AudioSpec) else tuple(code_shape(model))
    size, start = model.at_once(**options), 0
    for codes in blocks:
        # What is of variable length has codes of variable length, at which the model itself looks.
        if expected and tuple(codes.shape[1:]) != expected:
            raise DataError(f"a code has shape {tuple(codes.shape[1:])}, but the model's have {expected}; "
                            f"make codes with 'gencli encode' and the same model")
        # Filled up to the full block, so that an example does not depend on how many come with it.
        missing = -len(codes) % size
        filled = torch.cat([codes, codes[-1:].expand(missing, *codes.shape[1:])]).to(model.device)
        for i in range(0, len(filled), size):
            part = filled[i : i + size]
            rng = ExampleStreams(seed, torch.arange(start + i, start + i + len(part)), "decode", model.device)
            count = min(len(part), max(0, len(codes) - i))
            if frames:
                yield _in_turn(model.film(rng, frames, code=part, **options), torch.arange(count))
            else:
                yield model.decode(part, rng, **options)[:count].to("cpu")
        start += len(codes)


@torch.no_grad()
def code_of_seed(model: Model, seed: int) -> Tensor:
    """The code of the first example that `sample` gives for `seed`, (*code)."""
    return model.prior(ExampleStreams(seed, torch.arange(model.block), "sample", model.device))[0].cpu()


@torch.no_grad()
def code_shape(model: Model) -> torch.Size:
    """The shape of one code."""
    return model.prior(ExampleStreams(0, torch.arange(1), "shape", model.device)).shape[1:]


@torch.no_grad()
def interpolate(model: Model, corners: list[Tensor], frames: int, seed: int = 0, **options: Any) -> Iterator[Batch]:
    """Examples along a path through codes (*code), `frames` from each to the next, the corners included once."""
    paths = [model.interpolate(a.to(model.device), b.to(model.device), frames)[(i > 0):]
             for i, (a, b) in enumerate(itertools.pairwise(corners))]
    if not paths:
        raise UsageError("a path needs at least two ends; give two examples, two --seeds or --latents with two codes")
    for path in paths:
        yield from decode(model, [path.cpu()], seed, **options)


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
