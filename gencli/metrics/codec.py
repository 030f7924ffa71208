"""What examples really take when a model compresses them, beside what its likelihood says: the proof of the number."""

import math
import time
from collections.abc import Iterator

from gencli import codec as coding
from gencli.errors import ModelError
from gencli.metrics import Found, Inputs, Metric
from gencli.metrics.estimates import protocol
from gencli.metrics.likelihood import collect

_EXAMPLES = 64  # of the first, a batch of the codec: coding goes through a model symbol by symbol
_EXAMPLES_BITS_BACK = 512  # of a model with a latent code, which codes an example as a whole


def codec(inputs: Inputs) -> Iterator[Found]:
    """`codec_bits`, bits of the blocks of a compressed file for each symbol; `codec_excess` over `nll`, in percent;
    `codec_speed`, symbols a second, the mean of coding and decoding. Of a model with a latent code the excess is that
    over `elbo`, without the start of the block, which is `codec_start`.

    Raises:
        ModelError: what was decoded is not what was coded.
    """
    model = inputs.model
    assert model is not None
    data = inputs.examples.subset(_EXAMPLES_BITS_BACK if model.infers else _EXAMPLES)
    begin = time.monotonic()
    made = coding.compress(model, data, "0" * 32, progress=inputs.progress)
    batches = coding.Archive(made.file, data.name).decode(model, range(len(data)), data.whole().condition)
    pieces = [piece for batch in batches for piece in batch.pieces()]
    seconds = max(time.monotonic() - begin, 1e-6)
    if not all(map(coding.same, pieces, data.whole().to("cpu").pieces())):
        raise ModelError("examples came back from the codec as others; this is a bug of the family")
    record = protocol(data, inputs.seed, bytes=len(made.file), symbols=made.symbols)
    size = 8 * made.payload
    yield Metric("codec_bits", size / made.symbols, None, len(data), "bits/symbol", "exact", record)
    nats = float(collect(model, data, seed=inputs.seed)["elbo" if model.infers else "nll"].values.sum())
    said = nats / math.log(2) + made.side + 8 * made.start
    yield Metric("codec_excess", 100 * (size / said - 1), None, len(data), "%", "exact", record)
    if model.infers:
        yield Metric("codec_start", made.start, None, len(data), "bytes", "exact", record)
    yield Metric("codec_speed", 2 * made.symbols / seconds, None, len(data), "symbols/s", "estimate", record)
