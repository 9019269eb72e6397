# SPDX-License-Identifier: Apache-2.0
"""The data of a run, made of its sources: where a recipe and datasets that are given as objects meet."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..data.mixture import MixtureSchedule
from ..data.quarantine import Quarantine
from ..data.samples import CoTrainingDataset, EvaluationDataset
from ..data.sources import SplitOfDataset
from ..hub.checkpoint_files import QUARANTINE_NAME
from ..model.video_processing_cover import CoverVideoProcessor
from ..recipe.augmentation_recipe import Augmentation
from ..recipe.mixture_recipe import MixtureRecipe
from ..recipe.recipe import BadFilesRecipe


@dataclass(frozen=True, kw_only=True)
class DataMaker:
    """How samples are made of sources.

    Attributes:
        head_names: `config.head_names` of the model.
        processor, clip_sampling, augmentations: see [`CoTrainingDataset`].
        seed: of all that is random about the data.
        quarantine: of files that cannot be decoded; without one they are errors.
    """

    head_names: tuple[str, ...]
    processor: CoverVideoProcessor
    seed: int
    clip_sampling: str = "uniform"
    augmentations: Mapping[str, Augmentation] | None = None
    quarantine: Quarantine | None = None

    def training(self, sources: Mapping[str, SplitOfDataset]) -> CoTrainingDataset:
        return CoTrainingDataset(
            list(sources.values()),
            self.head_names,
            self.processor,
            self.seed,
            clip_sampling=self.clip_sampling,
            augmentations=self.augmentations,
            quarantine=self.quarantine,
        )

    def evaluation(
        self, sources: Mapping[str, SplitOfDataset], split: str = "validation"
    ) -> dict[str, EvaluationDataset]:
        made = self.processor, self.quarantine, split
        return {name: EvaluationDataset(source, *made) for name, source in sources.items()}


def quarantine_of(output_dir: str | os.PathLike, bad_files: BadFilesRecipe) -> Quarantine:
    """Where a run writes down the files that cannot be decoded."""
    return Quarantine(Path(output_dir) / QUARANTINE_NAME, bad_files.max_share)


def build_schedule(
    sources: Mapping[str, SplitOfDataset], seed: int, mixture: MixtureRecipe, listed: Mapping[str, float | None]
) -> MixtureSchedule:
    """What is drawn when; `listed` are the shares that are given.

    Raises:
        ValueError: see [`MixtureRecipe.shares`] and [`MixtureSchedule`].
    """
    sizes = {name: len(source) for name, source in sources.items()}
    shares = mixture.shares(sizes, listed)
    # Proportional shares are exactly the sizes: a division would leave an epoch without some row.
    proportional = mixture.sampling == "proportional"
    return MixtureSchedule(sizes, seed, None if proportional else shares, mixture.when_exhausted)
