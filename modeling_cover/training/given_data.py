# SPDX-License-Identifier: Apache-2.0
"""From datasets that are given to a `CoverTrainer` as objects to what it trains and evaluates on."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import datasets
from accelerate import PartialState

from ..data.mixture import MixtureSchedule
from ..data.samples import EvaluationDataset
from ..data.sources import SplitOfDataset, to_source
from ..data.sources.given import SHUFFLE_BUFFER, first_row_of
from ..data.sources.spelling import normal_name
from ..model.configuration_cover import CoverConfig, as_pair
from ..model.video_processing_cover import CoverVideoProcessor
from ..recipe.augmentation_recipe import Augmentation
from ..recipe.checks import check_choice, check_known, check_positive, check_whole_number
from ..recipe.mixture_recipe import SAMPLINGS, MixtureRecipe, Rule, shares_by
from ..recipe.recipe import CLIP_SAMPLINGS, BadFilesRecipe
from .arguments import CoverTrainingArguments
from .run_data import DataMaker, build_schedule, quarantine_of


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How datasets that are given as objects are mixed and sampled; each default is a recipe's.

    Attributes:
        mixture: "proportional" to their sizes, as the paper does, "equal", "temperature" or a registered rule, see
            [`MixtureRecipe`]; or the share of each dataset, relative to their sum, or a function of their rows, by
            name, that returns that.
        temperature, when_exhausted: see [`MixtureRecipe`].
        sizes: rows of the streams that are trained on and do not know them.
        eval_sizes: of those that are evaluated.
        shuffle_buffer: rows of the blocks in which streams are shuffled.
        clip_sampling: "uniform", "dense" or "segments", see [`ClipRecipe`].
        augmentations: by dataset, see [`Augmentation`].
        max_bad_share: of a dataset: with more files that cannot be decoded, training stops.

    Raises:
        ValueError: names the option and what it takes.
    """

    mixture: str | Mapping[str, float] | Rule = "proportional"
    temperature: float = 1.0
    when_exhausted: str = "repeat"
    sizes: Mapping[str, int] | None = None
    eval_sizes: Mapping[str, int] | None = None
    shuffle_buffer: int = SHUFFLE_BUFFER
    clip_sampling: str = "uniform"
    augmentations: Mapping[str, Augmentation] | None = None
    max_bad_share: float = BadFilesRecipe.max_share

    def __post_init__(self):
        if not isinstance(self.mixture, Mapping) and not callable(self.mixture):
            rules = {name: rule for name, rule in SAMPLINGS.items() if name != "shares"}
            check_known("mixture", self.mixture, rules, "register_sampling")
        check_whole_number("shuffle_buffer", self.shuffle_buffer)
        check_choice("clip_sampling", self.clip_sampling, CLIP_SAMPLINGS)
        for option in ("sizes", "eval_sizes"):
            for name, size in (getattr(self, option) or {}).items():
                check_whole_number(f"{option}: {name}", size)
        for name, share in self.shares.items():
            check_positive(f"mixture: {name}", share)

    @classmethod
    def taken_from(cls, kwargs: Mapping[str, Any]) -> tuple["DataOptions", dict[str, Any]]:
        """The options among keyword arguments, and the others."""
        own = {field.name for field in fields(cls)}
        options = cls(**{name: value for name, value in kwargs.items() if name in own})
        return options, {name: value for name, value in kwargs.items() if name not in own}

    @property
    def of_training(self) -> list[str]:
        """The options that are given, but for those of evaluations."""
        given = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        return [name for name in given if name != "eval_sizes"]

    @property
    def shares(self) -> Mapping[str, float]:
        return self.mixture if isinstance(self.mixture, Mapping) else {}

    @property
    def mixture_recipe(self) -> MixtureRecipe:
        sampling = self.mixture if isinstance(self.mixture, str) else "shares"
        return MixtureRecipe(sampling=sampling, temperature=self.temperature, when_exhausted=self.when_exhausted)


class GivenData:
    """Makes what is trained and evaluated on out of datasets that are given as objects.

    Args:
        config: the model's, with a head for each dataset.
        args: the run's.
        processor: that samples are made with.
        options: see [`DataOptions`].
    """

    def __init__(self, config: CoverConfig, args: CoverTrainingArguments, processor: object, options: DataOptions):
        self._config = config
        self._args = args
        self._processor = processor
        self._options = options
        self._bad_files = BadFilesRecipe(max_share=options.max_bad_share)
        self.has_begun = False  # the trainer is made
        for name in options.eval_sizes or {}:
            self._check_head(name, "eval_sizes")

    def training(self, given: Any, schedule: MixtureSchedule | None) -> tuple[Any, MixtureSchedule | None]:
        """The training samples, and what is drawn when; what is no mapping of datasets stays as it is.

        Raises:
            ValueError: names the dataset and what to call, see [`to_source`]; or a dataset and the head that it does
                not go with; or the option that is for a dataset that is not there.
        """
        options = self._options
        if not isinstance(given, Mapping):
            if given is not None and options.of_training:
                raise ValueError(f"{options.of_training[0]}: of use where train_dataset is {{name: dataset}}")
            return given, schedule
        if schedule is not None:
            raise ValueError("schedule: of use with a CoTrainingDataset; give mixture where there are datasets")
        for option in ("sizes", "shares", "augmentations"):
            if unknown := sorted(set(getattr(options, option) or {}) - set(given)):
                name = "mixture" if option == "shares" else option
                raise ValueError(f"{name}: unknown datasets {unknown}: train_dataset has {sorted(given)}")
        sources = {
            name: self._source(name, data, "train_dataset", size=(options.sizes or {}).get(name))
            for name, data in given.items()
        }
        maker = self._maker()
        shares = options.shares
        if callable(options.mixture):
            shares = shares_by("mixture", options.mixture, {name: len(source) for name, source in sources.items()})
        schedule = build_schedule(sources, maker.seed, options.mixture_recipe, shares)
        return maker.training(sources), schedule

    def evaluation(self, given: Any) -> Any:
        """The samples of an evaluation, of each dataset or of one alone, which is the default head's. What are samples
        of an evaluation already stay as they are.

        Raises:
            ValueError: as above.
        """
        if isinstance(given, Mapping) and not isinstance(given, datasets.DatasetDict):
            return {name: self._evaluated(name, data) for name, data in given.items()}
        return self._evaluated(self._config.default_head, given)

    def prediction(self, given: Any) -> Any:
        """The samples of one dataset, which is the default head's, or another's as {name: dataset}.

        Raises:
            ValueError: as above; or if there are several.
        """
        if isinstance(given, Mapping) and len(given) != 1:
            raise ValueError(f"test_dataset: predictions are of one dataset, got {sorted(given)}")
        samples = self.evaluation(given)
        return next(iter(samples.values())) if isinstance(samples, dict) else samples

    def _evaluated(self, name: str, data: Any) -> Any:
        if data is None or isinstance(data, str) or _is_of_evaluation(data):
            return data
        is_stream = isinstance(data, datasets.IterableDataset)
        size = (self._options.eval_sizes or {}).get(name) if is_stream else None
        maker, source = self._maker(), self._source(name, data, "eval_dataset", size)
        # What is evaluated later may be other rows under the names of these.
        split = "given later" if self.has_begun else "validation"
        if self.has_begun:
            if self._args.should_save:
                maker.quarantine.clear(split)
            PartialState().wait_for_everyone()
        return maker.evaluation({name: source}, split)[name]

    def _source(self, name: str, data: Any, argument: str, size: int | None = None) -> SplitOfDataset:
        self._check_head(name, argument)
        split = "train" if argument == "train_dataset" else "validation"
        head = self._config.heads[name]
        source = to_source(name, data, split, head["labels"], size, self._options.shuffle_buffer)
        check_goes_with(source, head)
        return source

    def _check_head(self, name: str, argument: str) -> None:
        if name not in self._config.heads:
            raise ValueError(
                f"{argument}: no head '{name}': the model's heads are {self._config.head_names}; heads_of(datasets) "
                "describes those that it needs"
            )

    def _maker(self) -> DataMaker:
        config, processor = self._config, self._processor
        if not isinstance(processor, CoverVideoProcessor):
            raise ValueError(
                "processing_class: expected the CoverVideoProcessor that samples are made with, got "
                f"{type(processor).__name__}"
            )
        crop = processor.crop_size["height"], processor.crop_size["width"]
        size = as_pair(config.image_size)
        if (processor.num_frames, *crop) != (config.num_frames, *size):
            raise ValueError(
                f"processing_class makes clips of {processor.num_frames} frames of {crop[0]}x{crop[1]} (`num_frames`, "
                f"`crop_size`), and the model takes {config.num_frames} of {size[0]}x{size[1]}"
            )
        return DataMaker(
            head_names=config.head_names,
            processor=processor,
            seed=self._args.seed if self._args.data_seed is None else self._args.data_seed,
            clip_sampling=self._options.clip_sampling,
            augmentations=self._options.augmentations,
            quarantine=quarantine_of(self._args.output_dir, self._bad_files),
        )


def _is_of_evaluation(data: Any) -> bool:
    """Whether these are samples as an evaluation takes them: `EvaluationDataset`, say, or a part of one."""
    if isinstance(data, EvaluationDataset):
        return True
    is_given = isinstance(data, SplitOfDataset | datasets.Dataset | datasets.IterableDataset | datasets.DatasetDict)
    if is_given or not hasattr(data, "__getitem__") or not hasattr(data, "__len__") or len(data) == 0:
        return False
    row = first_row_of(data)
    return isinstance(row, Mapping) and "head" in row


def check_goes_with(source: SplitOfDataset, head: Mapping[str, Any]) -> None:
    """Raise a `ValueError` that names the dataset, and what it and its head have, if they are not made for one
    another."""
    name, labels = source.name, [normal_name(label) for label in head["labels"]]
    if source.problem_type != head["problem_type"]:
        raise ValueError(f"dataset '{name}' is for {source.problem_type}, its head for {head['problem_type']}")
    if len(source.labels) != len(labels):
        raise ValueError(f"dataset '{name}' has {len(source.labels)} classes, its head {len(labels)}")
    pairs = enumerate(zip(map(normal_name, source.labels), labels, strict=True))
    different = next(((index, own, its) for index, (own, its) in pairs if own != its), None)
    if different is not None:
        index, own, its = different
        same = " The classes are the same in another order:" if sorted(source.labels) == sorted(labels) else ""
        raise ValueError(
            f"dataset '{name}': class {index} is {own!r}, and {its!r} in its head.{same} "
            ".align_labels_with_mapping({label: index}, COLUMN) puts them into the head's"
        )
