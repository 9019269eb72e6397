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
"""The views of one video whose scores are averaged: clips one after the other, and crops of each.

Axes: T frames, C channels, H height, W width.
"""

import torch
from transformers.image_utils import SizeDict


def temporal_views(video: torch.Tensor, num_clips: int) -> list[torch.Tensor]:
    """The clips (T, C, H, W) that lie one after the other in a video. A frame is an image, with a single view."""
    return list(video.chunk(num_clips)) if len(video) > 1 else [video]


def spatial_crops(clip: torch.Tensor, crop_size: SizeDict, num_crops: int = 1) -> list[torch.Tensor]:
    """The centre crop of a clip (T, C, H, W), or those at the start, centre and end of its longer side.

    Raises:
        ValueError: if the crop is larger than the frames.
    """
    spare_height, spare_width = clip.shape[-2] - crop_size.height, clip.shape[-1] - crop_size.width
    if spare_height < 0 or spare_width < 0:
        raise ValueError(
            f"a crop of {crop_size.height}x{crop_size.width} does not fit into frames of "
            f"{clip.shape[-2]}x{clip.shape[-1]} (height x width)"
        )
    top, left = spare_height // 2, spare_width // 2
    if num_crops == 1:
        corners = [(top, left)]
    elif clip.shape[-2] > clip.shape[-1]:
        corners = [(0, left), (top, left), (spare_height, left)]
    else:
        corners = [(top, 0), (top, left), (top, spare_width)]
    crops = [clip[..., y : y + crop_size.height, x : x + crop_size.width] for y, x in corners]
    return [crop.contiguous() for crop in crops]  # of bytes this is cheap, and what follows is twice as fast for it
