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
"""Embeddings of VideoMAE and ViViT for clips of any number of frames, height and width.

transformers' take clips of one shape alone. A token's place is in a table of time, rows and columns, which is resized
between its points.
"""

import torch
from torch import nn
from transformers.models.videomae.modeling_videomae import VideoMAEEmbeddings, VideoMAEPatchEmbeddings
from transformers.models.vivit.modeling_vivit import VivitEmbeddings


class AnySizeVideoMAEPatches(VideoMAEPatchEmbeddings):
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.projection(pixel_values.transpose(1, 2)).flatten(2).transpose(1, 2)


class AnySizeVideoMAEEmbeddings(VideoMAEEmbeddings):
    def forward(self, pixel_values: torch.Tensor, bool_masked_pos: None = None) -> torch.Tensor:
        tokens, patches = self.patch_embeddings(pixel_values), self.patch_embeddings
        table = self.position_embeddings.to(device=tokens.device, dtype=tokens.dtype)
        return tokens + resized(table, pixel_values, patches.projection.kernel_size, patches.image_size)


class AnySizeVivitEmbeddings(VivitEmbeddings):
    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = True) -> torch.Tensor:
        tokens, patches = self.patch_embeddings(pixel_values), self.patch_embeddings
        of_class, table = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
        table = resized(table, pixel_values, patches.projection.kernel_size, patches.image_size)
        class_tokens = self.cls_token.expand(tokens.shape[0], -1, -1)
        return self.dropout(torch.cat([class_tokens, tokens], dim=1) + torch.cat([of_class, table], dim=1))


def resized(
    table: torch.Tensor, pixel_values: torch.Tensor, tubelet: tuple[int, ...], image_size: tuple[int, ...]
) -> torch.Tensor:
    """Positions (1, S, D) of the tokens of clips (B, T, C, H, W): linear in time, rows and columns between those of a
    table for frames of `image_size`. `tubelet` is frames, rows and columns of pixels of a token."""
    rows, columns = (size // side for size, side in zip(image_size, tubelet[1:], strict=True))
    grid = table.shape[1] // (rows * columns), rows, columns
    num_frames, _, height, width = pixel_values.shape[1:]
    wanted = tuple(size // side for size, side in zip((num_frames, height, width), tubelet, strict=True))
    # What is traced, for any size, resizes always, as in all of transformers.
    if not torch.jit.is_tracing() and grid == wanted:
        return table
    places = table.transpose(1, 2).unflatten(2, grid)
    places = nn.functional.interpolate(places.float(), size=wanted, mode="trilinear", align_corners=False)
    return places.flatten(2).transpose(1, 2).to(table.dtype)
