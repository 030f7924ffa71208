"""What flows through pipes and files: examples and codes, in the format that the ending of a file asks for.

On a pipe examples travel as a tar in the WebDataset convention (github.com/webdataset): `000000.png` + `000000.json`
are one example. A first record, `__gencli__/spec.json`, says what the examples are and a last one,
`__gencli__/end.json`, how many there were, so that a cut stream is noticed; other readers skip names in `__`. The
bytes depend on the examples alone: no times, no owners, and nothing of the batches in which they were computed.

| format | image | vector | text | audio | code | holds all examples in memory |
|--------|-------|--------|------|-------|------|------------------------------|
| tar    | .png  | .npy   | .txt | .wav  | .npy | no                           |
| folder | .png  | .npy   | .txt | .wav  |      | no                           |
| png    | sheet |        |      |       |      | yes, 8-bit                   |
| gif    | frames|        |      |       |      | yes, 8-bit                   |
| npz    | yes   | yes    |      |       | yes  | yes                          |
| npy    | yes   | yes    |      |       | yes  | yes                          |
| csv    |       | yes    |      |       | yes  | codes, as lengths differ     |
| jsonl  |       | yes    | yes  |       | yes  | no                           |
| txt    |       |        | yes  |       |      | no                           |
| wav    |       |        |      | yes   |      | no, 16-bit                   |
| raw    |       |        |      | yes   |      | no, 16-bit little-endian     |
"""

from gencli.streams.codes import Codes, read_codes
from gencli.streams.formats import quantize
from gencli.streams.shards import Shards
from gencli.streams.tar import TarReader, parse_record, read_tar
from gencli.streams.writers import CodeWriter, Writer, open_code_writer, open_writer

__all__ = ["CodeWriter", "Codes", "Shards", "TarReader", "Writer", "open_code_writer", "open_writer", "parse_record",
           "quantize", "read_codes", "read_tar"]
