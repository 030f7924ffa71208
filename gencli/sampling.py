"""A request for samples, and the batches that answer it: what `gencli sample` does, without a terminal."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from gencli import inference, registry
from gencli.errors import UsageError
from gencli.model import Batch, Given, Model


@dataclass(frozen=True)
class SampleRequest:
    """Which samples a model should make.

    Attributes:
        number: examples in all, of which a shard is a part.
        seed: of the samples.
        label: the class of all of them, by number.
        given: what else they are conditioned on.
        each: examples made from one and the same condition.
        frames: states of the making of each example instead of the example alone; 0: the example alone.
        options: of the family's `sample`, `film` or `decode`.
    """

    number: int = 16
    seed: int = 0
    label: int | None = None
    given: Given = field(default_factory=Given)
    each: int = 1
    frames: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def method(self, model: Model, codes: bool) -> Callable[..., Any]:
        """The method of the model that makes the examples, drawn or from `codes`."""
        return model.film if self.frames else model.decode if codes else model.sample

    def _keep(self, model: Model) -> Callable[[Batch], Batch]:
        """What is written of an example; a large picture is made in bands, each of which is rounded at once."""
        return lambda piece: registry.kind_of(model.spec).rounded(piece, model.spec)

    def drawn(self, model: Model, parts: Iterable[range], watch: Callable[[Batch], None]) -> Iterator[Batch]:
        """The examples of these numbers; `watch` sees every piece of one as it is made in this process."""
        return inference.sample_together(model, parts, self.seed, self.label, self.given, self.frames, watch, self.each,
                                         self._keep(model), **self.options)

    def streamed(self, model: Model, part: range) -> Iterator[Batch]:
        """The same, one after the other, in pieces as they are made."""
        return inference.stream(model, part, self.seed, self.label, self.given, self.each, **self.options)

    def answered(self, model: Model, conditions: Iterable[Batch]) -> Iterator[Batch]:
        """Examples made from conditions that come little by little."""
        return inference.answer(model, conditions, self.seed, self.label, self.given, self.each, self._keep(model),
                                **self.options)

    def decoded(self, model: Model, codes: Iterable[Tensor]) -> Iterator[Batch]:
        """What blocks of codes decode to."""
        return inference.decode(model, codes, self.seed, self.frames, self.given, self.each, **self.options)


def shard(text: str | None, number: int, unit: int) -> range:
    """The numbers of a part I/N of `number` examples, in whole units; all of them if None.

    Raises:
        UsageError: not such a part.
    """
    if text is None:
        return range(number)
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise UsageError(f"--shard {text}: expected I/N with 1 <= I <= N, such as 2/8")
    units = inference.shard(-(-number // unit), int(part), int(parts))
    return range(units.start * unit, min(units.stop * unit, number))
