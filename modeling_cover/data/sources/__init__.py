# Copyright 2026 The CoVeR for Transformers authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The rows of a dataset: their files and their labels, read from the layouts that datasets come in.

`read_sources` takes an entry of a recipe to its splits. A module for each kind of layout reads it: `manifests` (folders of
files, and lists of them), `published_layouts` (Kinetics, Something-Something, Moments in Time), `tar_shards` (WebDataset),
`tables` (Parquet, and what the `datasets` library reads), `streams` (those that are read in order).
"""

from .source import Source, check_same_classes, read_sources
from .streams import Example, StoredRow, Stream, StreamedSource


__all__ = [
    "Example",
    "Source",
    "StoredRow",
    "Stream",
    "StreamedSource",
    "check_same_classes",
    "read_sources",
]
