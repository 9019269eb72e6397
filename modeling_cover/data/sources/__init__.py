# SPDX-License-Identifier: Apache-2.0
"""The rows of a dataset: their files and their labels, read from the layouts that datasets come in.

`read_sources` takes an entry of a recipe to its splits. A module for each kind of layout reads it: `manifests`
(folders of files, and lists of them), `published_layouts` (Kinetics, Something-Something, Moments in Time),
`imagenet`, `tar_shards` (WebDataset), `tables` (Parquet, and what the `datasets` library reads), `streams` (those that
are read in order). `LAYOUTS` names them, and those that users register, whose rows `file_rows` makes. `to_source`
takes a dataset that is given as an object there, see `given`.

What is wrong with a dataset as it is found (a missing path, a damaged list, a label of no class) is a `ValueError` of
all of them, whose message names the culprit and what was expected. What is wrong with the file of a row shows when it
is read, and is a `VideoDecodingError`.
"""

from .given import heads_of, heads_of_sources, to_source
from .manifests import file_rows
from .source import Source, read_sources
from .streams import Example, SplitOfDataset, StoredRow, Stream, StreamedSource


__all__ = [
    "Example",
    "Source",
    "SplitOfDataset",
    "StoredRow",
    "Stream",
    "StreamedSource",
    "file_rows",
    "heads_of",
    "heads_of_sources",
    "read_sources",
    "to_source",
]
