"""How close a text that is made from a source comes to the target of that source: for models of translations, captions.

BLEU (Papineni et al. 2002) and chrF (Popović 2015) are those of sacrebleu (Post 2018, arXiv:1804.08771), whose
signature stands in the protocol of each number. Every pair has one reference, its own target.
"""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gencli import inference
from gencli.errors import install
from gencli.kinds.text import TextSpec
from gencli.metrics import CONFIDENCE, Column, Found, Inputs, Metric
from gencli.metrics.estimates import mean, protocol
from gencli.model import Batch, Given

_ROUNDS = 300  # of the bootstrap
_UNKNOWN = "\N{DOUBLE QUESTION MARK}"  # in a sample: what it could not say is no match for what was not read
_HAN = re.compile(r"[\u3400-\u9fff]")


def translation(inputs: Inputs) -> Iterator[Found]:
    """`bleu` and `chrf` in percent, `exact_match` and `length_ratio` of one sample for each source, by its target.

    Without the package sacrebleu a warning takes the place of the first two. `length_ratio`: characters of all samples
    over those of all targets. Errors are of the bootstrap over pairs (Koehn 2004), which sacrebleu seeds itself.
    """
    model, data = inputs.model, inputs.examples
    assert model is not None and isinstance(data.spec, TextSpec)
    if not len(data):
        return
    options = inference.own_options(model.sample, dict(inputs.options))
    samples: list[str] = []
    targets: list[str] = []
    given = Given(condition=data.batch(torch.arange(len(data))).condition)
    for made in inference.sample(model, range(len(data)), inputs.seed, given=given, **options):
        examples = data.batch(torch.arange(len(samples), len(samples) + len(made)))
        targets += _texts(examples, data.spec)
        samples += [text.replace("\N{REPLACEMENT CHARACTER}", _UNKNOWN) for text in _texts(made, data.spec)]
        inputs.progress(len(samples), len(data))
        if inputs.time_is_up():
            break
    record = protocol(data, inputs.seed, **options)
    yield from _sacrebleu(inputs, samples, targets, record)
    blocks = None if data.blocks is None else data.blocks[: len(samples)]
    same = torch.tensor([sample == target for sample, target in zip(samples, targets, strict=True)])
    yield mean("exact_match", same, "", "estimate", record, blocks=blocks)
    if any(targets):
        yield mean("length_ratio", _lengths(samples), "", "estimate", record, _lengths(targets), blocks)


def _sacrebleu(inputs: Inputs, samples: list[str], targets: list[str], record: dict[str, Any]) -> Iterator[Found]:
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError:
        inputs.notify(f"BLEU and chrF are left out: they need the package sacrebleu: {install('text')}")
        return
    letters = "".join(targets)
    chinese = 2 * len(_HAN.findall(letters)) > len(letters)
    # References in which most characters are Chinese have no words between spaces.
    measures = {"bleu": BLEU(tokenize="zh" if chinese else "13a"), "chrf": CHRF()}
    for name, measure in measures.items():
        score = measure.corpus_score(samples, [targets], n_bootstrap=_ROUNDS if len(samples) > 1 else 1)
        error = float(score._ci) / CONFIDENCE if len(samples) > 1 else None  # half of the interval of 95%
        signed = {**record, "signature": str(measure.get_signature())}
        yield Metric(name, float(score.score), error, len(samples), "%", "estimate", signed)
    each = [measures["chrf"].sentence_score(*pair).score
            for pair in zip(samples, ([target] for target in targets), strict=True)]
    yield Column("chrf", torch.tensor(each, dtype=torch.float64), "%", cost=False)


def _texts(batch: Batch, spec: TextSpec) -> list[str]:
    return [spec.tokenizer.decode(tokens.tolist()) for tokens in batch.pieces()]


def _lengths(texts: list[str]) -> Tensor:
    return torch.tensor([len(text) for text in texts])
