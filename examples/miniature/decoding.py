# SPDX-License-Identifier: Apache-2.0
"""Rows that are decoded once in a process: the runs of a seed go through the same few small files many times."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from modeling_cover import CoverVideoProcessor
from modeling_cover.data.samples import load_frames
from modeling_cover.data.sources.media import Media


# The frames of the files of one folder of data, by file, frames of a clip and short side.
_decoded: dict[tuple[str, int, int], torch.Tensor] = {}
_of_folder: list[Path] = []


class DecodedOnce(Sequence):
    """The media of a source, with the frames that a clip has of each file, at the short side, in place of its path.

    What is made of them is the same: of as many frames as a clip has, each is sampled, and none is resized again. This
    is so with `sampling: uniform`, without random sizes, and with one temporal view.
    """

    def __init__(self, media: Sequence[Media], modality: str, processor: CoverVideoProcessor):
        self._media = media
        self._modality = modality
        self._processor = processor
        self._rows: dict[int, Media] = {}

    def __len__(self) -> int:
        return len(self._media)

    def __getitem__(self, row: int) -> Media:
        if row not in self._rows:
            media = self._media[row]
            self._rows[row] = media._replace(content=self._frames(media))
        return self._rows[row]

    def _frames(self, media: Media) -> torch.Tensor:
        processor = self._processor
        short_side = processor.size["shortest_edge"]
        key = (media.content, processor.num_frames, short_side)
        if key not in _decoded:
            _keep_one_folder(Path(media.content))
            sample_indices = partial(processor.sample_frames, num_clips=1)
            frames = load_frames(media, self._modality, processor, sample_indices, short_side)
            _decoded[key] = frames if self._modality == "video" else frames[0]
        return _decoded[key]

    def identity(self) -> Any:
        """What tells the rows from others, see `Source.row_hashes`."""
        return self._media.identity()


def _keep_one_folder(path: Path) -> None:
    """Forgets what was decoded from the data of another seed: split, class and file are below the dataset's folder."""
    folder = path.parents[3]
    if _of_folder != [folder]:
        _decoded.clear()
        _of_folder[:] = [folder]
