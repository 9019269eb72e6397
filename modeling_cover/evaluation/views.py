# SPDX-License-Identifier: Apache-2.0
"""Several views of each row of a dataset, as the paper evaluates (section 4.1), and frames in another order (Table 2).

Axes: V views of a row, the crops of its first clip, then those of the next   T frames   H, W height and width.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from transformers.video_utils import VideoMetadata

from ..data.quarantine import Quarantine
from ..data.samples import EvaluationDataset, load_frames
from ..data.sources import Source
from ..data.sources.media import Media
from ..model.clip_views_cover import spatial_crops
from ..model.video_processing_cover import CoverVideoProcessor
from ..recipe.checks import check_choice


FRAME_ORDERS = ("forward", "reversed", "shuffled")


@dataclass(frozen=True)
class Views:
    """How many views of a video are averaged: temporal clips times spatial crops. The paper's are 1x3.

    Raises:
        ValueError: if there are none, or other crops than 1 or 3.
    """

    temporal: int = 1
    spatial: int = 1

    def __post_init__(self):
        if self.temporal < 1:
            raise ValueError(f"views: expected at least one temporal clip, got {self.temporal}")
        if self.spatial not in (1, 3):
            raise ValueError(f"views: expected 1 or 3 spatial crops, got {self.spatial}")

    def __str__(self) -> str:
        return f"{self.temporal}x{self.spatial}"

    @classmethod
    def parse(cls, text: str) -> "Views":
        """Of text such as 1x3, temporal clips first."""
        match = re.fullmatch(r"(\d+)\s*x\s*(\d+)", text.strip())
        if match is None:
            raise ValueError(f"views: expected temporal x spatial, such as 1x3, got {text!r}")
        return cls(int(match[1]), int(match[2]))


def resized_processor(
    processor: CoverVideoProcessor, num_frames: int | None = None, image_size: int | None = None
) -> CoverVideoProcessor:
    """A processor that differs in the frames of a clip, or in the side of the crop, in pixels; the short side before
    cropping grows with it.

    Raises:
        ValueError: if a number is not positive.
    """
    for name, value in (("num_frames", num_frames), ("image_size", image_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    options = processor.to_dict()
    if num_frames is not None:
        options["num_frames"] = num_frames
    if image_size is not None:
        factor = image_size / min(processor.crop_size["height"], processor.crop_size["width"])
        options["crop_size"] = {"height": image_size, "width": image_size}
        options["size"] = {"shortest_edge": max(image_size, round(processor.size["shortest_edge"] * factor))}
    return CoverVideoProcessor.from_dict(options)


class ViewsDataset(EvaluationDataset):
    """The views (V, T, 3, H, W) of each row, uint8, and its target; see [`EvaluationDataset`].

    An image has the spatial views alone, and its one frame is in order whatever the order.

    `frame_order`, of the frames of each clip, is "forward", "reversed", or "shuffled", by (seed, row).
    """

    def __init__(
        self,
        source: Source,
        processor: CoverVideoProcessor,
        quarantine: Quarantine | None = None,
        views: Views = Views(),
        frame_order: str = "forward",
        seed: int = 0,
        split: str = "validation",
    ):
        super().__init__(source, processor, quarantine, split)
        check_choice("frame_order", frame_order, FRAME_ORDERS)
        self.views = Views(1, views.spatial) if source.modality == "image" else views
        self.frame_order = frame_order
        self.seed = seed

    def _decoded(self, row: int, media: Media) -> torch.Tensor:
        short_side = self.processor.size["shortest_edge"]
        sample_indices = partial(self._sample_indices, media.key)
        frames = load_frames(media, self.source.modality, self.processor, sample_indices, short_side)
        clips = [self._in_order(clip, row) for clip in frames.chunk(self.views.temporal)]
        crop_size, num_crops = self.processor.crop_size, self.views.spatial
        return torch.stack([view for clip in clips for view in spatial_crops(clip, crop_size, num_crops)])

    def _sample_indices(self, name: str, metadata: VideoMetadata) -> Sequence[int]:
        indices = self.processor.sample_frames(metadata, num_clips=self.views.temporal)
        length = self.processor.num_frames
        clips = {tuple(indices[start : start + length]) for start in range(0, len(indices), length)}
        if len(clips) < self.views.temporal:
            raise ValueError(
                f"dataset '{self.source.name}': {name} has {metadata.total_num_frames} frames, too few for "
                f"{self.views.temporal} temporal views that differ: ask for fewer"
            )
        return indices

    def _in_order(self, clip: torch.Tensor, row: int) -> torch.Tensor:
        if self.frame_order == "reversed":
            return clip.flip(0)
        if self.frame_order == "shuffled":
            return clip[np.random.default_rng([self.seed, row]).permutation(len(clip))]
        return clip

    @property
    def _clip_shape(self) -> tuple[int, ...]:
        return self.views.temporal * self.views.spatial, *super()._clip_shape
