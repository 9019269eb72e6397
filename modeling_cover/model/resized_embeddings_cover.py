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
from transformers.models.videomae.modeling_videomae import VideoMAEEmbeddings
from transformers.models.vivit.modeling_vivit import VivitEmbeddings


class AnySizeVideoMAEEmbeddings(VideoMAEEmbeddings):
    def forward(self, pixel_values: torch.Tensor, bool_masked_pos: None = None) -> torch.Tensor:
        patches = self.patch_embeddings
        tokens = patches.projection(pixel_values.transpose(1, 2))  # (B, D, T, rows, columns)
        (height, width), (rows, columns) = patches.image_size, patches.patch_size
        table = self.position_embeddings.to(device=tokens.device, dtype=tokens.dtype)
        shape = table.shape[1] * rows * columns // (height * width), height // rows, width // columns
        return tokens.flatten(2).transpose(1, 2) + resized(table, shape, tokens.shape[2:])


class AnySizeVivitEmbeddings(VivitEmbeddings):
    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = True) -> torch.Tensor:
        tokens = self.patch_embeddings.projection(pixel_values.transpose(1, 2))  # (B, D, T, rows, columns)
        (height, width), (rows, columns) = self.image_size, self.patch_size
        of_class, table = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
        shape = table.shape[1] * rows * columns // (height * width), height // rows, width // columns
        places = torch.cat([of_class, resized(table, shape, tokens.shape[2:])], dim=1)
        class_tokens = self.cls_token.expand(tokens.shape[0], -1, -1)
        return self.dropout(torch.cat([class_tokens, tokens.flatten(2).transpose(1, 2)], dim=1) + places)


def resized(table: torch.Tensor, shape: tuple[int, ...], wanted: tuple[int, ...]) -> torch.Tensor:
    """Positions (1, S, D) of a grid of time, rows and columns, for another grid: linear in each of them."""
    if tuple(shape) == tuple(wanted):
        return table
    grid = table.transpose(1, 2).unflatten(2, shape)
    grid = nn.functional.interpolate(grid.float(), size=tuple(wanted), mode="trilinear", align_corners=False)
    return grid.flatten(2).transpose(1, 2).to(table.dtype)
