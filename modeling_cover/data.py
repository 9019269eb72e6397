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
"""Samples and batches: from references to clips, and from clips to groups of one shape.

Axes: B clips   T frames of a clip   C, H, W channels, height and width of a frame.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .mixture import SAMPLE_STREAM, SampleReference
from .sources import Source
from .video_processing_cover import CoverVideoProcessor, read_image


Sample = dict[str, Any]


def load_clip(source: Source, row: int, processor: CoverVideoProcessor, **kwargs: Any) -> torch.Tensor:
    """Decode and process one row: (T, C, H, W), T = 1 for an image.

    Raises:
        VideoDecodingError: if the file cannot be decoded.
    """
    path = source.paths[row]
    clip = read_image(path) if source.modality == "image" else path
    return processor(clip, return_tensors="pt", **kwargs)["pixel_values"][0]


class CoTrainingDataset(torch.utils.data.Dataset):
    """Training samples of all data sets, indexed by [`SampleReference`].

    A clip is resized to the processor's short side, cropped at a random place, the same in each of its frames, and
    mirrored with probability 1/2 where the data set allows it (section 4.1 of the paper). What is random depends on
    (seed, position of the sample) alone, not on the worker or the process that decodes it.

    Args:
        sources: the train split of each data set.
        head_names: `config.head_names`; a sample's head id is the index of its data set's name.
        processor: its `crop_size` is the size of the crop.
        seed: the run's.
    """

    def __init__(
        self, sources: Sequence[Source], head_names: Sequence[str], processor: CoverVideoProcessor, seed: int
    ):
        self.sources = {source.name: source for source in sources}
        if missing := sorted(set(self.sources) - set(head_names)):
            raise ValueError(f"no head for the data sets {missing}: the heads are {list(head_names)}")
        self.head_ids = {name: index for index, name in enumerate(head_names)}
        self.processor = processor
        self.seed = seed

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each data set."""
        return {name: len(source) for name, source in self.sources.items()}

    def __len__(self) -> int:
        return sum(self.sizes.values())

    def __getitem__(self, reference: SampleReference) -> Sample:
        source = self.sources[reference.dataset]
        rng = np.random.default_rng([SAMPLE_STREAM, self.seed, reference.position])
        clip = load_clip(source, reference.row, self.processor, do_center_crop=False)
        clip = random_crop(clip, self.processor.crop_size["height"], self.processor.crop_size["width"], rng)
        if source.horizontal_flip and rng.random() < 0.5:
            clip = clip.flip(-1)
        return {
            "pixel_values": clip,
            "labels": int(source.targets[reference.row]),
            "head_ids": self.head_ids[source.name],
        }


class EvaluationDataset(torch.utils.data.Dataset):
    """One split of one data set, in order, each clip with a centre crop."""

    def __init__(self, source: Source, processor: CoverVideoProcessor):
        self.source = source
        self.processor = processor

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> Sample:
        clip = load_clip(self.source, row, self.processor)
        return {"pixel_values": clip, "labels": int(self.source.targets[row]), "head": self.source.name}


def random_crop(clip: torch.Tensor, height: int, width: int, rng: np.random.Generator) -> torch.Tensor:
    """Cut (T, C, `height`, `width`) out of (T, C, H, W) at a place drawn uniformly."""
    if clip.shape[-2] < height or clip.shape[-1] < width:
        raise ValueError(f"a crop of {height}x{width} does not fit into frames of {tuple(clip.shape[-2:])}")
    top = int(rng.integers(clip.shape[-2] - height + 1))
    left = int(rng.integers(clip.shape[-1] - width + 1))
    return clip[..., top : top + height, left : left + width]


def collate_clips(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make a batch that `CoverForVideoClassification` takes.

    Training samples become groups of clips of one shape, in order of first appearance, with the `labels` and
    `head_ids` of all rows in the order of the groups. Samples of an evaluation, all of one head, become one tensor.

    Raises:
        ValueError: if samples of an evaluation are of several heads.
    """
    if "head" in samples[0]:
        heads = {sample["head"] for sample in samples}
        if len(heads) > 1:
            raise ValueError(f"a batch for evaluation is of one head, got {sorted(heads)}")
        return {
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
            "labels": torch.tensor([sample["labels"] for sample in samples]),
            "head": samples[0]["head"],
        }
    groups = defaultdict(list)
    for sample in samples:
        groups[sample["pixel_values"].shape].append(sample)
    rows = [sample for group in groups.values() for sample in group]
    return {
        "pixel_values": [torch.stack([sample["pixel_values"] for sample in group]) for group in groups.values()],
        "labels": torch.tensor([sample["labels"] for sample in rows]),
        "head_ids": torch.tensor([sample["head_ids"] for sample in rows]),
    }
