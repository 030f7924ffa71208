"""What flows through pipes and files: examples and codes, in the format that the ending of a file asks for.

On a pipe they travel as a tar (`gencli.streams.tar`). A tar and a folder hold examples of every kind; which other
formats fit, each kind says (`Kind.formats`, `Kind.own_formats`).

| format | holds                                  | all in memory at once       |
|--------|----------------------------------------|-----------------------------|
| tar    | any examples, codes                    | no                          |
| folder | any examples                           | no                          |
| npz    | examples of one shape, codes           | yes                         |
| npy    | the same                               | yes                         |
| jsonl  | rows of tables, texts, codes           | no                          |
| gcz    | compressed examples (gencli.codec)     | yes                         |
| csv    | codes (rows of tables: gencli.kinds)   | yes, as their lengths differ|
"""

from gencli.streams.codes import Codes, read_codes
from gencli.streams.shards import Shards
from gencli.streams.tar import TarReader, parse_record, read_tar
from gencli.streams.writers import (
    CodeWriter,
    Writer,
    as_text,
    compresses,
    open_code_writer,
    open_compressed_writer,
    open_neighbour_writer,
    open_writer,
)

__all__ = ["CodeWriter", "Codes", "Shards", "TarReader", "Writer", "as_text", "compresses", "open_code_writer",
           "open_compressed_writer", "open_neighbour_writer", "open_writer", "parse_record", "read_codes", "read_tar"]
