"""What the verbs do with a trained model, as plain functions that know no terminal.

Examples are computed in aligned blocks of `model.block`: example i is always number i % block of block i // block,
whichever others are wanted. So a seed gives the same bits however many are asked for, and in however many shards.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from gencli.data.dataset import Dataset
from gencli.errors import DataError, UsageError
from gencli.model import Batch, Given, Model, TextSpec
from gencli.rng import ExampleStreams


def shard(n: int, part: int, parts: int) -> range:
    """The numbers of part `part` (1..parts) of `n` examples; the parts together are the whole, in order."""
    return range(n * (part - 1) // parts, n * part // parts)


@torch.no_grad()
def sample(model: Model, numbers: range, seed: int = 0, label: int | None = None, prompt: Tensor | None = None,
           known: Tensor | None = None, mask: Tensor | None = None, frames: int = 0,
           **options: Any) -> Iterator[Batch]:
    """Examples of these numbers from the endless sequence that (model, seed, what is given, options) stands for.

    Args:
        label: class number that a conditional model is given.
        prompt: (P,) int64 tokens that a text begins with.
        known: (*example), an example of which a part is kept; `mask`, (*example) bool, is true there.
        frames: instead of each example so many states of its making, the last being the example.
        options: keyword-only options of the family's `sample`, or `film`.
    """
    for block, positions in _blocks(numbers, model.block):
        rng = ExampleStreams(seed, block, "sample", model.device)
        labels = None if label is None else torch.full((len(rng),), label, device=model.device)
        given = Given(labels, *(None if t is None else t.to(model.device) for t in (prompt, known, mask)))
        if frames:
            yield _in_turn(model.film(rng, frames, given, **options), positions)
        else:
            yield model.sample(rng, given, **options)[positions.to(model.device)].to("cpu")


@torch.no_grad()
def encode(model: Model, data: Dataset, seed: int = 0, **options: Any) -> Iterator[tuple[Tensor, Batch, Tensor | None]]:
    """Blocks of (codes (B, ...), examples, reconstruction error (B,) or None), on the CPU.

    The reconstruction error is the mean squared error of decoding the code again; None for text, for a model that does
    not decode, and where the option asks for something that is no code.
    """
    decodes = "decode" in model.abilities() and not isinstance(model.spec, TextSpec) and not options
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
    expected = tuple(code_shape(model))
    start = 0
    for codes in blocks:
        fits = codes.dim() == len(expected) + 1 and (
            isinstance(model.spec, TextSpec) or tuple(codes.shape[1:]) == expected)
        if not fits:
            raise DataError(f"a code has shape {tuple(codes.shape[1:])}, but the model's have {expected}; "
                            f"make codes with 'gencli encode' and the same model")
        # Filled up to the full block, so that an example does not depend on how many come with it.
        missing = -len(codes) % model.block
        filled = torch.cat([codes, codes[-1:].expand(missing, *codes.shape[1:])]).to(model.device)
        for i in range(0, len(filled), model.block):
            part = filled[i : i + model.block]
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
