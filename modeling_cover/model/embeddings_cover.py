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
"""From pixels to tokens: patch, position and time embeddings and the class token.

Axes: B clips   T frames of a clip   N patches of a frame   D hidden_size   C, H, W channels, height and width.
"""

from collections.abc import Sequence

import torch
from torch import nn

from .configuration_cover import CoverConfig, as_pair, patch_grid


def resize_position_embeddings(
    embeddings: torch.Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> torch.Tensor:
    """Resize position embeddings bicubically, in fp32, keeping the class token's apart.

    `embeddings` is (1, 1 + rows * columns of the old grid, D), the result (1, 1 + rows * columns of the new grid, D).
    """
    # torch.export would make one program for this size and one for all others.
    if not torch.compiler.is_exporting() and old_grid == new_grid:
        return _in_the_graph(embeddings)
    grid = embeddings[:, 1:].float().unflatten(1, old_grid).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=new_grid, mode="bicubic", align_corners=False)
    return torch.cat([embeddings[:, :1], grid.flatten(2).transpose(1, 2).to(embeddings.dtype)], dim=1)


def _in_the_graph(embeddings: torch.Tensor) -> torch.Tensor:
    """The same, as the result of an operation: gradients then come in one order whether or not there was a
    resizing."""
    return embeddings.view_as(embeddings)


def resize_time_embeddings(embeddings: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Resize time embeddings (1, frames, D) linearly, in fp32, to (1, `num_frames`, D)."""
    if not torch.compiler.is_exporting() and embeddings.shape[1] == num_frames:
        return _in_the_graph(embeddings)
    resized = nn.functional.interpolate(embeddings.float().transpose(1, 2), size=num_frames, mode="linear")
    return resized.transpose(1, 2).to(embeddings.dtype)


class CoverPatchEmbeddings(nn.Module):
    """Cuts frames into patches and projects each: (frames, C, H, W) to (frames, N, D)."""

    def __init__(self, config: CoverConfig):
        super().__init__()
        self.num_channels = config.num_channels
        self.patch_size = as_pair(config.patch_size)
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=self.patch_size, stride=self.patch_size
        )

    def check(self, pixel_values: torch.Tensor) -> None:
        """Raise a `ValueError` unless `pixel_values` is (B, T, C, H, W), with T > 0 and whole patches."""
        if not isinstance(pixel_values, torch.Tensor):
            raise ValueError(f"pixel_values: expected one tensor of clips, got {type(pixel_values).__name__}")
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values: expected normalised floats, as of CoverVideoProcessor, got {pixel_values.dtype}"
            )
        shape = tuple(pixel_values.shape)
        if len(shape) != 5:
            raise ValueError(
                "pixel_values: expected shape (batch_size, num_frames, num_channels, height, width), got "
                f"{shape}. An image is a clip of one frame."
            )
        _, num_frames, num_channels, height, width = shape
        if num_frames == 0:
            raise ValueError(f"pixel_values: a clip without frames, shape {shape}")
        if num_channels != self.num_channels:
            raise ValueError(f"pixel_values: expected {self.num_channels} channels, got {num_channels}, shape {shape}")
        rows, columns = self.patch_size
        if height == 0 or width == 0 or height % rows or width % columns:
            raise ValueError(f"pixel_values: frames of {height}x{width} are not whole patches of {rows}x{columns}")

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.projection(frames).flatten(2).transpose(1, 2)


class CoverEmbeddings(nn.Module):
    """Patch, position and time embeddings and the class token: (B, T, C, H, W) to (B, 1 + T * N, D)."""

    def __init__(self, config: CoverConfig):
        super().__init__()
        self.patch_embeddings = CoverPatchEmbeddings(config)
        self.patch_size = as_pair(config.patch_size)
        self.grid = patch_grid(config.image_size, self.patch_size)
        num_patches = self.grid[0] * self.grid[1]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + num_patches, config.hidden_size))
        self.time_embeddings = nn.Parameter(torch.zeros(1, config.num_frames, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def resize(self, num_frames: int, image_size: int | tuple[int, int]) -> None:
        """Replace the stored embeddings by resized ones, for `num_frames` and `image_size` (height and width,
        pixels)."""
        if num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames}")
        height, width = as_pair(image_size)
        if height % self.patch_size[0] or width % self.patch_size[1]:
            raise ValueError(f"image_size ({image_size}) is not a multiple of patch_size ({self.patch_size})")
        grid = patch_grid(image_size, self.patch_size)
        positions = resize_position_embeddings(self.position_embeddings.detach(), self.grid, grid)
        times = resize_time_embeddings(self.time_embeddings.detach(), num_frames)
        self.position_embeddings = nn.Parameter(positions, requires_grad=self.position_embeddings.requires_grad)
        self.time_embeddings = nn.Parameter(times, requires_grad=self.time_embeddings.requires_grad)
        self.grid = grid

    def forward(self, pixel_values: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
        """Of a list of groups of clips of one height and width, packed frames: (F, 1 + N, D), see [`PackedFrames`]."""
        if not isinstance(pixel_values, torch.Tensor):
            return self.forward_packed(pixel_values)
        batch_size, num_frames, _, height, width = pixel_values.shape
        grid = patch_grid((height, width), self.patch_size)
        positions = resize_position_embeddings(self.position_embeddings, self.grid, grid)
        times = resize_time_embeddings(self.time_embeddings, num_frames)
        patches = self.patch_embeddings(pixel_values.flatten(0, 1)).unflatten(0, (batch_size, num_frames))
        patches = patches + positions[:, None, 1:] + times[:, :, None]
        class_token = (self.cls_token + positions[:, :1]).expand(batch_size, -1, -1)
        return self.dropout(torch.cat([class_token, patches.flatten(1, 2)], dim=1))

    def forward_packed(self, groups: Sequence[torch.Tensor]) -> torch.Tensor:
        grid = patch_grid(groups[0].shape[-2:], self.patch_size)
        positions = resize_position_embeddings(self.position_embeddings, self.grid, grid)
        times = [resize_time_embeddings(self.time_embeddings, clips.shape[1]) for clips in groups]
        times = torch.cat([t.expand(len(c), -1, -1).flatten(0, 1) for t, c in zip(times, groups, strict=True)])
        patches = self.patch_embeddings(torch.cat([clips.flatten(0, 1) for clips in groups]))
        patches = patches + positions[:, 1:] + times[:, None]
        class_token = (self.cls_token + positions[:, :1]).expand(len(patches), -1, -1)
        return self.dropout(torch.cat([class_token, patches], dim=1))
