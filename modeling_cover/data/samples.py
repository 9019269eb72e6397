# SPDX-License-Identifier: Apache-2.0
"""Samples: from references to clips.

Up to the training device, pixels are bytes: as floats they would fill four times as much of the shared memory between
the workers and the training process. `CoverVideoProcessor.normalize_pixels` is the step that is left.

Axes: T frames of a clip   C, H, W channels, height and width of a frame.
"""

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from transformers.image_utils import SizeDict
from transformers.video_utils import VideoMetadata

from ..model.clip_views_cover import spatial_crops
from ..model.file_access_cover import is_address
from ..model.frame_sampling_cover import dense_frame_indices, random_clip_start, segment_frame_indices
from ..model.head_losses_cover import IGNORED
from ..model.image_reading_cover import read_image_tensor
from ..model.video_decoding_cover import VideoDecodingError
from ..model.video_opening_cover import MACHINE_ERRORS, work_limit
from ..model.video_processing_cover import CoverVideoProcessor, read_in_any_order
from ..recipe.augmentation_recipe import Augmentation
from .augmentation import augment_frames, draw_short_side, erase
from .mixing import draw_mix, soft_targets
from .mixture import MixtureSampler, MixtureSchedule, SampleReference
from .quarantine import BadFile, Quarantine, TooManyBadFilesError
from .randomness import REPLACEMENT_STREAM, Purpose, SampleRandomness
from .sources import SplitOfDataset, StreamedSource
from .sources.decoded import read_decoded
from .sources.media import PIXEL_VALUES, Media
from .sources.streams import Example, StoredRow, Stream


Sample = dict[str, Any]
# What to call a row whose file cannot even be found in its shard, and what reads its file and its target.
Candidate = tuple[str, Callable[[], Example]]
SampleIndices = Callable[[VideoMetadata], Sequence[int]]

UNREADABLE = IGNORED  # the label of an evaluation's row whose file cannot be decoded

# Decoded of a sample: 9 minutes of 1920 x 1080 at 30 frames a second, if none of them can be passed over. Counted and
# not timed, so that the same rows are bad on every machine and in every run.
_MAX_SAMPLE_PIXELS = 2**35

# Rows that are tried in place of one that cannot be decoded.
_MOST_REPLACEMENTS = 100


def load_frames(
    media: Media,
    modality: str,
    processor: CoverVideoProcessor,
    sample_indices: SampleIndices,
    short_side: int | None = None,
) -> torch.Tensor:
    """Decode one row: uint8 (T, 3, H, W), T = 1 for an image; float32 where a row has what the model takes.

    Args:
        sample_indices: which frames of a video, see [`read_video`], in any order.
        short_side: of the frames, in pixels; as they are stored if None.

    Raises:
        VideoDecodingError: if the file cannot be decoded, or not without more work than a sample may take, or is
            remote and cannot be fetched.
    """
    if media.is_decoded:
        if isinstance(media.content, torch.Tensor) and media.content.is_floating_point():
            return media.content
        frames = processor.convert_to_rgb(read_decoded(media.content, modality, media.name, sample_indices))
        return _resized(frames.to(torch.uint8), processor, short_side)
    with media.on_disk() as media:
        if modality == "image":
            return _resized(read_image_tensor(media.content).unsqueeze(0), processor, short_side)
        with work_limit(_MAX_SAMPLE_PIXELS):
            frames, _ = read_in_any_order(media.content, sample_indices, short_side, media.start, media.end)
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def _resized(frames: torch.Tensor, processor: CoverVideoProcessor, short_side: int | None) -> torch.Tensor:
    size = SizeDict(shortest_edge=short_side)
    return frames if short_side is None else processor.resize(frames, size=size, resample=processor.resample)


class CoTrainingDataset(torch.utils.data.Dataset):
    """Training samples of all datasets, indexed by [`SampleReference`]: clips (T, 3, H, W) of uint8, and their
    targets.

    By default a clip is resized to the processor's short side, cropped at a random place, the same in each of its
    frames, and mirrored with probability 1/2 where the dataset allows it (section 4.1 of the paper). What is random
    depends on (seed, position of the sample) alone, not on the worker or the process that decodes it.

    With a quarantine, a file that cannot be decoded is written down there, and another row of the same dataset, as
    much a function of (seed, position), stands in for it. Without, it is an error.

    Args:
        sources: the train split of each dataset.
        head_names: `config.head_names`; a sample's head id is the index of its dataset's name.
        processor: its `crop_size` is the size of the crop.
        seed: the run's.
        clip_sampling: "uniform", "dense" (with the processor's `frame_stride`) or "segments": see [`ClipRecipe`].
        augmentations: by dataset; the default is the paper's.
        quarantine: of files that cannot be decoded.
    """

    def __init__(
        self,
        sources: Sequence[SplitOfDataset],
        head_names: Sequence[str],
        processor: CoverVideoProcessor,
        seed: int,
        clip_sampling: str = "uniform",
        augmentations: Mapping[str, Augmentation] | None = None,
        quarantine: Quarantine | None = None,
    ):
        self.sources = {source.name: source for source in sources}
        if missing := sorted(set(self.sources) - set(head_names)):
            raise ValueError(f"no head for the datasets {missing}: the heads are {list(head_names)}")
        self.head_ids = {name: index for index, name in enumerate(head_names)}
        self.processor = processor
        self.seed = seed
        self.clip_sampling = clip_sampling
        self.augmentations = {name: (augmentations or {}).get(name, Augmentation()) for name in self.sources}
        self.quarantine = quarantine
        self._mean_color = _mean_color(processor)
        self._pools: dict[str, list] = {}

    @property
    def mixed(self) -> list[str]:
        """The datasets whose samples are mixed with a partner."""
        return [name for name, augmentation in self.augmentations.items() if augmentation.mixes]

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each dataset."""
        return {name: len(source) for name, source in self.sources.items()}

    @property
    def bad_files(self) -> dict[str, int]:
        """How many files of each dataset could not be decoded so far; empty without a quarantine."""
        return {} if self.quarantine is None else self.quarantine.counts()

    @cached_property
    def row_hashes(self) -> dict[str, dict[str, str]]:
        """What the rows of each dataset are, in short, see [`Source.row_hashes`]."""
        return {name: source.row_hashes() for name, source in self.sources.items()}

    @property
    def costs(self) -> dict[str, int]:
        """Of training on a sample of each dataset: its frames."""
        return {
            name: 1 if source.modality == "image" else self.processor.num_frames
            for name, source in self.sources.items()
        }

    def sampler(self, schedule: MixtureSchedule, step_size: int, batch_size: int) -> MixtureSampler:
        """What draws the samples of a run with this schedule, in steps of so many rows of all processes."""
        return MixtureSampler(schedule, step_size, self.open_streams(), self.mixed, batch_size, self.costs)

    def open_streams(self) -> dict[str, Stream]:
        """The datasets that are read in order, by name."""
        return {
            name: source.open(self.seed) for name, source in self.sources.items() if isinstance(source, StreamedSource)
        }

    def __len__(self) -> int:
        return sum(self.sizes.values())

    def __getitem__(self, reference: SampleReference) -> Sample:
        source, augmentation = self.sources[reference.dataset], self.augmentations[reference.dataset]
        randomness = SampleRandomness(self.seed, reference.position)
        clip, target = self._load(reference, self._candidates(source, reference), randomness)
        if augmentation.mixes or source.is_multi_label:
            # Also where this sample is not mixed: the targets of one head make one tensor.
            target = soft_targets(target, target, 1.0, len(source.labels))
        if (mix := draw_mix(augmentation, randomness)) is not None:
            partner, partner_target = self._load(reference, self._partners(source, reference), randomness.of_partner())
            clip, share = mix.apply(clip, partner)
            target = soft_targets(target, partner_target, share, len(source.labels))
        return {
            "pixel_values": clip,
            "labels": target,
            "head_ids": self.head_ids[source.name],
            "dataset": source.name,
        }

    def sample_name(self, reference: SampleReference) -> str:
        """What to call the file that a reference stands for: the first that is not in quarantine."""
        source = self.sources[reference.dataset]
        for name, read in self._candidates(source, reference):
            if not _is_bad(self.quarantine, source, name) and not _is_bad(
                self.quarantine, source, key := read().media.key
            ):
                return key
        return f"one of {_MOST_REPLACEMENTS} rows that are all in quarantine"

    def _candidates(self, source: SplitOfDataset, reference: SampleReference) -> Iterator[Candidate]:
        """The row that is referred to, and then those that may stand in for it."""
        yield _candidate(source, reference.stored or reference.row)
        rng = np.random.default_rng([REPLACEMENT_STREAM, self.seed, reference.position])
        yield from self._replacements(source, rng)

    def _partners(self, source: SplitOfDataset, reference: SampleReference) -> Iterator[Candidate]:
        """The rows that a sample may be mixed with: a stream sends one along, of others any will do."""
        if reference.partner:
            yield _candidate(source, reference.partner)
        rng = SampleRandomness(self.seed, reference.position).of(Purpose.PARTNER)
        yield from self._replacements(source, rng)

    def _replacements(self, source: SplitOfDataset, rng: np.random.Generator) -> Iterator[Candidate]:
        for _ in range(_MOST_REPLACEMENTS):
            if not isinstance(source, StreamedSource):
                yield _candidate(source, int(rng.integers(len(source))))
            else:
                # It has no rows to choose from, but for those that it begins with.
                if source.name not in self._pools:
                    self._pools[source.name] = source.open(self.seed).sample_pool()
                pool = self._pools[source.name]
                yield _candidate(source, pool[int(rng.integers(len(pool)))])

    def _load(
        self, reference: SampleReference, candidates: Iterator[Candidate], randomness: SampleRandomness
    ) -> tuple[torch.Tensor, int | np.ndarray]:
        """The first of the candidates that can be decoded: (T, 3, H, W), uint8, and its target."""
        source = self.sources[reference.dataset]
        tried = (reference.draw + 1) * (2 if self.augmentations[source.name].mixes else 1)  # each with its partner
        decode = partial(self._augmented, source, randomness=randomness)
        found = _first_readable(source, candidates, decode, self.quarantine, "train", tried)
        if found is None:
            raise TooManyBadFilesError(
                f"dataset '{source.name}': {_MOST_REPLACEMENTS} rows drawn to stand in for position {reference.position} "
                f"are all in {self.quarantine.path}"
            )
        return found

    def _augmented(self, source: SplitOfDataset, media: Media, randomness: SampleRandomness) -> torch.Tensor:
        augmentation, crop = self.augmentations[source.name], self.processor.crop_size
        short_side = draw_short_side(augmentation, self.processor.size["shortest_edge"], randomness)
        sample_indices = partial(self._sample_indices, randomness=randomness)
        frames = load_frames(media, source.modality, self.processor, sample_indices, short_side)
        if frames.is_floating_point():
            if augmentation.mixes or augmentation.transform is not None:
                what = "mixed" if augmentation.mixes else "transformed"
                raise ValueError(f"dataset '{source.name}': its {PIXEL_VALUES} are floats, which are not {what}")
            return _checked_ready(frames, source, self.processor)
        frames = augment_frames(frames, augmentation, crop["height"], crop["width"], randomness)
        return erase(frames, augmentation, self._mean_color, randomness)

    def _sample_indices(self, metadata: VideoMetadata, randomness: SampleRandomness) -> Sequence[int]:
        total, num_frames = metadata.total_num_frames, self.processor.num_frames
        if self.clip_sampling == "uniform":
            return self.processor.sample_frames(metadata, num_clips=1)
        rng = randomness.of(Purpose.FRAMES)
        if self.clip_sampling == "segments":
            return segment_frame_indices(total, num_frames, rng)
        stride = self.processor.frame_stride
        return dense_frame_indices(total, num_frames, stride, random_clip_start(total, num_frames, stride, rng))


def _mean_color(processor: CoverVideoProcessor) -> torch.Tensor:
    """(3, 1, 1), uint8: the pixel that becomes zero."""
    if not processor.do_normalize:
        return torch.zeros(3, 1, 1, dtype=torch.uint8)
    scale = processor.rescale_factor if processor.do_rescale else 1
    mean = torch.tensor(processor.image_mean) / scale
    return mean.round().clamp(0, 255).to(torch.uint8)[:, None, None]


def clip_shape(source: SplitOfDataset, processor: CoverVideoProcessor) -> tuple[int, ...]:
    num_frames = 1 if source.modality == "image" else processor.num_frames
    return num_frames, 3, processor.crop_size["height"], processor.crop_size["width"]


def _checked_ready(clip: torch.Tensor, source: SplitOfDataset, processor: CoverVideoProcessor) -> torch.Tensor:
    """A clip that the model takes as it is; a `ValueError` unless it is as large as those that are made here."""
    expected = clip_shape(source, processor)
    if clip.shape != expected:
        raise ValueError(f"dataset '{source.name}': {PIXEL_VALUES} of {tuple(clip.shape)}, expected {expected}")
    return clip


def _candidate(source: SplitOfDataset, row: int | StoredRow) -> Candidate:
    return source.place(row), lambda: source.example(row)


def _first_readable(
    source: SplitOfDataset,
    candidates: Iterable[Candidate],
    decode: Callable[[Media], torch.Tensor],
    quarantine: Quarantine | None,
    split: str,
    tried: int,
) -> tuple[torch.Tensor, int | np.ndarray] | None:
    """The clip and the target of the first row that can be decoded; None if they are all in quarantine. Without one, a
    file that cannot be decoded is an error."""
    for name, read in candidates:
        if _is_bad(quarantine, source, name, split):
            continue
        try:
            # Out of a shard or a table, which may be what is damaged.
            media, target = read()
            name = media.key
            if not _is_bad(quarantine, source, name, split):
                return decode(media), target
        except (VideoDecodingError, OSError) as error:
            check_is_of_file(error, source)
            if quarantine is None and isinstance(error, VideoDecodingError) and name not in str(error):
                raise VideoDecodingError(f"dataset '{source.name}', {name}: {error}") from error
            if quarantine is None:
                raise
            bad_file = BadFile(source.name, name, str(error), split, tried)
            quarantine.add(bad_file)
            quarantine.check(bad_file, len(source))
    return None


def _is_bad(quarantine: Quarantine | None, source: SplitOfDataset, name: str, split: str = "train") -> bool:
    return quarantine is not None and quarantine.reason(source.name, name, split) is not None


class EvaluationDataset(torch.utils.data.Dataset):
    """One split of one dataset, in order: clips (T, 3, H, W) of uint8, the centre crop of each, and their targets.

    It is indexed by row; where the split is a stream, by what a [`RowSampler`] yields.

    A file that cannot be decoded is an error; or, with a quarantine, written down there: its row has labels of
    `UNREADABLE`, which count neither for nor against the model, and the evaluation tells how many they were. There,
    and in messages, it is of `split`.
    """

    def __init__(
        self,
        source: SplitOfDataset,
        processor: CoverVideoProcessor,
        quarantine: Quarantine | None = None,
        split: str = "validation",
    ):
        self.source = source
        self.processor = processor
        self.quarantine = quarantine
        self.split = split

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, reference: int | SampleReference) -> Sample:
        is_of_stream = isinstance(reference, SampleReference)
        if isinstance(self.source, StreamedSource) and not is_of_stream:
            raise ValueError(f"dataset '{self.source.name}' is a stream: its rows come by RowSampler, not by index")
        row, stored = (reference.row, reference.stored) if is_of_stream else (reference, reference)
        candidates = [_candidate(self.source, stored)]
        decode = partial(self._decoded, row)
        found = _first_readable(self.source, candidates, decode, self.quarantine, self.split, row + 1)
        if found is None:
            classes = len(self.source.labels)
            target = np.full(classes, UNREADABLE, np.float32) if self.source.is_multi_label else UNREADABLE
            found = torch.zeros(self._clip_shape, dtype=torch.uint8), target
        clip, target = found
        return {"pixel_values": clip, "labels": target, "head": self.source.name}

    def _decoded(self, row: int, media: Media) -> torch.Tensor:
        short_side = self.processor.size["shortest_edge"]
        sample_indices = partial(self.processor.sample_frames, num_clips=1)
        frames = load_frames(media, self.source.modality, self.processor, sample_indices, short_side)
        if frames.is_floating_point():
            return _checked_ready(frames, self.source, self.processor)
        (crop,) = spatial_crops(frames, self.processor.crop_size)
        return crop

    @property
    def _clip_shape(self) -> tuple[int, ...]:
        return clip_shape(self.source, self.processor)


class RowSampler(torch.utils.data.Sampler[int | SampleReference]):
    """The rows of a split in order. Those of a stream are read here, once, and sent along undecoded.

    Raises:
        ValueError: as it is iterated, if a stream has not as many rows as is said of it.
    """

    def __init__(self, source: SplitOfDataset):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[int | SampleReference]:
        source = self.source
        if not isinstance(source, StreamedSource):
            yield from source.rows()
            return
        rows, count = source.rows(), 0
        for stored in islice(rows, source.size):
            yield SampleReference(source.name, row=count, position=count, draw=count, stored=stored)
            count += 1
        if count < source.size or next(rows, None) is not None:
            found = f"{count} rows, not" if count < source.size else "more rows than"
            raise ValueError(
                f"dataset '{source.name}': a pass over {source.stream.place} finds {found} the {source.size} that it is "
                f'said to have: give eval_sizes={{"{source.name}": ...}}'
            )


def row_sampler(dataset: object) -> RowSampler | None:
    """That of an [`EvaluationDataset`]."""
    return RowSampler(dataset.source) if isinstance(dataset, EvaluationDataset) else None


def check_is_of_file(error: Exception, source: SplitOfDataset) -> None:
    """Raise an `OSError` if no file is to blame for what went wrong with one: the dataset as a whole is gone, or this
    machine may open no more files, or its disk is full."""
    check_still_there(source)
    if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
        hint = ": raise the limit (`ulimit -n`), or use fewer workers" if error.errno == errno.EMFILE else ""
        raise OSError(error.errno, f"{error.strerror}{hint}", error.filename) from error


def check_still_there(source: SplitOfDataset) -> None:
    """Raise a `FileNotFoundError` if the dataset as a whole is gone: a drive that is no longer there, say.

    Of a remote one it is the number of files that cannot be fetched which tells, see [`Quarantine.check`].
    """
    for root in source.roots:
        if not is_address(root) and not os.path.exists(root):
            raise FileNotFoundError(f"dataset '{source.name}': {root} was there at the start and is not any more")
