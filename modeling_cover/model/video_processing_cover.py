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
"""Video processor of CoVeR: from videos and images, however they come, to `pixel_values` (B, T, 3, H, W).

An image is a clip of one frame and stays one; a video is sampled to `num_frames` frames spread over its whole length.

Axes: B clips, T frames, C channels, H height, W width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import BatchFeature, get_size_dict
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.utils import TensorType
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata, default_sample_indices_fn, make_batched_metadata

from .clip_views_cover import spatial_crops, temporal_views
from .file_access_cover import public_name
from .frame_sampling_cover import dense_frame_indices, spread_clip_starts, uniform_frame_indices
from .image_pixels_cover import image_kind
from .image_reading_cover import download, is_decoded, is_url, read_image_tensor, split_batch, whole_clip
from .normalisation_cover import normalisation_of
from .video_decoding_cover import VideoDecodingError, VideoSource, read_video
from .video_opening_cover import name_of
from .video_windows_cover import read_windows, windows_of_frames


# As floats, 8 frames of 224 x 224 of each take 150 MB.
_WINDOWS_AT_A_TIME = 32


class CoverVideoProcessorKwargs(VideosKwargs, total=False):
    """Options of a call, in place of the processor's own: see [`CoverVideoProcessor`]."""

    num_spatial_crops: int
    frame_sampling: str
    frame_stride: int
    num_clips: int


@dataclass(frozen=True)
class _File:
    """A video that is still to be decoded, and the size to decode it to: its own, or scaled to `short_side`."""

    source: VideoSource
    short_side: int | None


class CoverVideoProcessor(BaseVideoProcessor):
    r"""
    Makes videos and images ready for CoVeR: sampled, resized by their shorter side, cropped, rescaled and normalized.

    The options are those of [`BaseVideoProcessor`], and some more:

    Args:
        frame_sampling (`str`, *optional*, defaults to `"uniform"`):
            How a video becomes `num_frames` frames: "uniform" takes them from all over it, the centre of each of as
            many equal segments; "dense" takes them `frame_stride` apart, and repeats the last of a short video.
        frame_stride (`int`, *optional*, defaults to 1):
            From one frame of a dense clip to the next.
        num_clips (`int`, *optional*, defaults to 1):
            Temporal views of one video, each of them `num_frames` frames and an entry of its own in the batch. Dense
            clips are spread evenly over the video; a single one lies in its centre. Uniform clips interleave: together
            they are `num_clips * num_frames` uniform frames. An image has a single view.
        num_spatial_crops (`int`, *optional*, defaults to 1):
            1 for the centre crop, or 3 for the views of one clip that the paper averages in its evaluation (Zhang et
            al., 2021, section 4.1): crops at the start, the centre and the end of the longer side.
    """

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    size = {"shortest_edge": 224}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    do_convert_rgb = True
    do_sample_frames = True
    num_frames = 8
    frame_sampling = "uniform"
    frame_stride = 1
    num_clips = 1
    num_spatial_crops = 1
    valid_kwargs = CoverVideoProcessorKwargs
    model_input_names = ["pixel_values"]

    @classmethod
    def from_image_checkpoint(
        cls, path: str, num_frames: int = 8, image_size: int = 224, revision: str | None = None, **kwargs: Any
    ) -> "CoverVideoProcessor":
        """A processor of such clips for a model that starts from a checkpoint, with its mean and deviation, and a
        short side of 8/7 of `image_size`, as 256 is of 224, before the crop. `kwargs` come first."""
        sizes = {"shortest_edge": round(image_size * 8 / 7)}, {"height": image_size, "width": image_size}
        own = {"num_frames": num_frames, "size": sizes[0], "crop_size": sizes[1], **normalisation_of(path, revision)}
        return cls(**{**own, **kwargs})

    def preprocess(self, videos: Any, **kwargs: Unpack[CoverVideoProcessorKwargs]) -> BatchFeature:
        r"""
        Prepares one video or image, or a batch of them, for the model.

        Args:
            videos:
                A video: a path, an http(s) URL, bytes, a binary file object, an array or tensor (T, H, W, C) or
                (T, C, H, W), or a list of frames, that is of PIL images or of 3-D arrays. An image: a path, a URL,
                bytes or a file object whose content is one (grey of 16 bits is scaled by 257), a PIL image or a 3-D
                array. A batch: a list of any of these, each item taken by itself, or a 5-D array. Arrays hold values
                of 0 to 255, or floats of 0 to 1 if all floats of the call are, unless `do_rescale=False`; and 1
                (grey), 3 (RGB) or 4 (RGBA; without `do_rescale` of 0 to 255) channels.
            kwargs:
                Options for this call, in place of the processor's own. With `do_sample_frames` a video, decoded or
                not, becomes `num_frames` frames, repeated if it has fewer, or `fps` frames a second. An image always
                stays one frame.

        Returns:
            [`BatchFeature`] with `pixel_values`, float32 of shape (B, T, 3, H, W): one tensor, or without
            `return_tensors` a list of tensors. With several clips or spatial crops a video has as many entries,
            adjacent: the crops of its first clip, then those of the next. With `return_metadata`, also
            `video_metadata`, an entry for each video, with the frames of its first clip, then those of the next.
            A file's frames are scaled while they are decoded, so its pixels differ a little from those of an array
            of the same frames (docs/decoding.md).

        Raises:
            VideoDecodingError: a file cannot be read, or a URL not fetched.
            ValueError: an input is no video or image, options do not fit together, or clips that end with different
                shapes are asked for as one tensor.
        """
        if kwargs.get("fps") is not None:
            kwargs.setdefault("num_frames", None)  # not the processor's own
        num_clips, do_sample_frames = self._option(kwargs, "num_clips"), self._option(kwargs, "do_sample_frames")
        if num_clips != 1 and not do_sample_frames:
            raise ValueError(f"num_clips={num_clips} is of no effect with do_sample_frames=False")
        items = split_batch(videos, *self._array_options(kwargs))
        short_side = self._short_side(kwargs)
        items = [item if isinstance(item, torch.Tensor) else _File(item, short_side) for item in items]
        return super().preprocess(items, input_data_format=ChannelDimension.FIRST, **kwargs)

    def windows(
        self,
        video: VideoSource | Any,
        window: float,
        stride: float | None = None,
        fps: float | None = None,
        **kwargs: Unpack[CoverVideoProcessorKwargs],
    ) -> Iterator[BatchFeature]:
        r"""
        Prepares windows that slide over a long video, each as if it were a video of its own, some at a time.

        Args:
            video: a path, an http(s) URL, bytes or a binary file object; or the frames of one, as in `preprocess`.
            window: seconds that a window lasts.
            stride: seconds from the start of one window to that of the next; by default those of a window.
            fps: frames a second, of frames that are no file.
            kwargs: options as of `preprocess`.

        Yields:
            [`BatchFeature`] with `pixel_values` (B, T, 3, H, W) of adjacent windows, with several spatial crops those
            of the first window, then those of the next; `windows`, the start and end of each in seconds; and
            `num_windows` of the whole video.

        Raises:
            VideoDecodingError: the video cannot be read, or does not tell when its frames are displayed.
            ValueError: `window` or `stride` is not positive, or options do not fit together.
        """
        if self._option(kwargs, "num_clips") != 1:
            raise ValueError("num_clips: a window is one clip, choose a smaller stride instead")
        if is_decoded(video) != (fps is not None):
            frames = "window: frames that are no file do not tell when they are displayed, give fps= as well"
            raise ValueError(frames if fps is None else "fps: each window has num_frames frames, and a file its times")
        names = ("num_frames", "frame_sampling", "frame_stride")
        sampling = {name: kwargs[name] for name in names if name in kwargs}
        self.sample_frames(VideoMetadata(1), **sampling)  # of the options, before the file is opened
        sample, stride = (
            lambda metadata: self.sample_frames(metadata, **sampling),
            window if stride is None else stride,
        )
        with ExitStack() as stack:
            if is_decoded(video):
                groups = windows_of_frames(
                    whole_clip(video, *self._array_options(kwargs)), fps, window, stride, sample
                )
            else:
                source = stack.enter_context(download(video)) if is_url(video) else video
                options = (sample, self._short_side(kwargs), torch.get_num_threads())
                groups = read_windows(source, window, stride, *options)
            for times, frames, num_windows in groups:
                clips = [torch.from_numpy(clip).permute(0, 3, 1, 2) for clip in frames]
                for first in range(0, len(times), _WINDOWS_AT_A_TIME):
                    part = slice(first, first + _WINDOWS_AT_A_TIME)
                    sampled = {**kwargs, "do_sample_frames": False, "return_tensors": "pt"}
                    prepared = self.preprocess(clips[part], **sampled | {"input_data_format": ChannelDimension.FIRST})
                    yield BatchFeature({**prepared, "windows": times[part], "num_windows": num_windows})

    def _array_options(self, kwargs: dict[str, Any]) -> tuple[ChannelDimension | None, bool]:
        """Of arrays: the order of their axes, taken out of `kwargs`, and whether their values must be of 0 to 255."""
        data_format = kwargs.pop("input_data_format", None) or self.input_data_format
        is_to_255 = self._option(kwargs, "do_rescale") and self._option(kwargs, "rescale_factor") == 1 / 255
        return data_format and ChannelDimension(data_format), is_to_255

    def _option(self, kwargs: dict[str, Any], name: str) -> Any:
        return kwargs.get(name, getattr(self, name))

    def _short_side(self, kwargs: dict[str, Any]) -> int | None:
        """What a file's frames can be scaled to while they are decoded; None where that is not what is asked for."""
        if not self._option(kwargs, "do_resize") or self._option(kwargs, "resample") != PILImageResampling.BILINEAR:
            return None
        size = get_size_dict(self._option(kwargs, "size"), default_to_square=self.default_to_square)
        sides = {name: side for name, side in size.items() if side is not None}
        return sides["shortest_edge"] if set(sides) == {"shortest_edge"} else None

    def sample_frames(
        self,
        metadata: VideoMetadata,
        num_frames: int | None = None,
        fps: int | float | None = None,
        frame_sampling: str | None = None,
        frame_stride: int | None = None,
        num_clips: int | None = None,
        **kwargs,
    ) -> list[int]:
        """Indices of the frames of one clip of a video after the other, `num_clips * num_frames` in all.

        With `fps`, as many a second as that, however long the video is, as transformers' processors take them; else of
        the metadata only `total_num_frames` counts. Options that are None are the processor's own.

        Raises:
            ValueError: an option is not what it must be; or `fps` is given beside `num_frames` or `num_clips`, or for
                a video that does not say its own, or has fewer.
        """
        if fps is not None:
            if (num_frames, num_clips) not in ((None, None), (None, 1)):
                raise ValueError(f"fps: num_frames and num_clips say how many frames there are, too; got fps={fps}")
            return default_sample_indices_fn(metadata, fps=fps).tolist()
        num_frames = num_frames if num_frames is not None else self.num_frames
        frame_stride = frame_stride if frame_stride is not None else self.frame_stride
        num_clips = num_clips if num_clips is not None else self.num_clips
        frame_sampling = frame_sampling if frame_sampling is not None else self.frame_sampling
        if num_clips < 1:
            raise ValueError(f"num_clips must be positive, got {num_clips}")
        total = metadata.total_num_frames
        if frame_sampling == "uniform":
            indices = uniform_frame_indices(total, num_clips * num_frames)
            return [index for clip in range(num_clips) for index in indices[clip::num_clips]]
        if frame_sampling == "dense":
            starts = spread_clip_starts(total, num_frames, frame_stride, num_clips)
            return [index for start in starts for index in dense_frame_indices(total, num_frames, frame_stride, start)]
        raise ValueError(f'frame_sampling must be "uniform" or "dense", got {frame_sampling!r}')

    def fetch_videos(
        self,
        video_url_or_urls: VideoSource | list[VideoSource],
        sample_indices_fn: Callable | None = None,
        short_side: int | None = None,
    ) -> tuple[np.ndarray, VideoMetadata] | list:
        """Decodes a video into frames (T, H, W, 3), uint8, and its metadata; an image into its one frame. All frames
        without `sample_indices_fn`; as large as they are without `short_side`. A list of videos gives a list of frames
        and one of metadata.
        """
        if isinstance(video_url_or_urls, list):
            fetched = [self.fetch_videos(video, sample_indices_fn, short_side) for video in video_url_or_urls]
            return list(zip(*fetched, strict=True))
        read = self._read(video_url_or_urls, sample_indices_fn, short_side)
        if not isinstance(read, torch.Tensor):
            return read
        clip, metadata = _sample_tensor(read, None, None)
        return clip.permute(0, 2, 3, 1).numpy(), metadata

    def _read(
        self, source: VideoSource, sample_indices: Callable | None, short_side: int | None
    ) -> tuple[np.ndarray, VideoMetadata] | torch.Tensor:
        """A video's frames and metadata; or, where the content is an image whatever it is called, that (C, H, W)."""
        with ExitStack() as stack:
            file = stack.enter_context(download(source)) if is_url(source) else source
            try:
                return read_in_any_order(file, sample_indices or _every_frame, short_side)
            except VideoDecodingError as error:
                if image_kind(file) is not None:
                    return read_image_tensor(file)
                if not is_url(source):
                    raise
                raise VideoDecodingError(f"{public_name(source)}{str(error).removeprefix(name_of(file))}") from error

    def _decode_and_sample_videos(
        self,
        videos: list[torch.Tensor | _File],
        video_metadata: VideoMetadata | dict | list | None,
        do_sample_frames: bool | None = None,
        sample_indices_fn: Callable | None = None,
    ) -> tuple[list[torch.Tensor], list[VideoMetadata]]:
        """Clips (T, C, H, W) of what `split_batch` returned, and their metadata; of all frames without a function."""
        if video_metadata is None:
            given = [None] * len(videos)
        else:
            given = [VideoMetadata(**entry) for entry in make_batched_metadata(videos, video_metadata)]
        clips, batch_metadata = [], []
        for video, metadata in zip(videos, given, strict=True):
            if isinstance(video, _File):
                video = self._read(video.source, sample_indices_fn, video.short_side)
            if isinstance(video, torch.Tensor):
                clip, metadata = _sample_tensor(video, metadata, sample_indices_fn)
            else:
                frames, metadata = video
                clip = torch.from_numpy(frames).permute(0, 3, 1, 2)
            clips.append(clip)
            batch_metadata.append(metadata)
        return clips, batch_metadata

    def normalize_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """The last step of `preprocess` with its default options, on whatever device `pixels` are.

        From (..., 3, H, W) of 0 to 255, which stay as they are, to float32 of the same shape, rescaled and normalized.
        """
        options = (self.do_rescale, self.rescale_factor, self.do_normalize, self.image_mean, self.image_std)
        return self.rescale_and_normalize(pixels, *options).to(torch.float32)

    def _preprocess(
        self,
        videos: list[torch.Tensor],
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling | int | None,
        do_center_crop: bool,
        crop_size: SizeDict,
        num_spatial_crops: int,
        num_clips: int,
        return_tensors: str | TensorType | None = None,
        **kwargs,
    ) -> BatchFeature:
        """From clips (T, 3, H, W) of any size to the model's input. Rescaling and normalizing is left to the base."""
        if num_spatial_crops not in (1, 3):
            raise ValueError(f"num_spatial_crops must be 1 or 3, got {num_spatial_crops}")
        if num_spatial_crops == 3 and not do_center_crop:
            raise ValueError("num_spatial_crops=3 is of no effect with do_center_crop=False")
        videos = [clip for video in videos for clip in temporal_views(video, num_clips)]
        if do_resize:
            videos = [self.resize(video, size=size, resample=resample) for video in videos]
        if do_center_crop:
            videos = [crop for video in videos for crop in spatial_crops(video, crop_size, num_spatial_crops)]
        shapes = [tuple(video.shape) for video in videos]
        if return_tensors is not None and len(set(shapes)) > 1:
            raise ValueError(
                f"clips of different shapes (T, C, H, W) do not make one tensor: {shapes}; process them apart, such as "
                "images apart from videos"
            )
        done = {
            "do_resize": False,
            "size": size,
            "resample": resample,
            "do_center_crop": False,
            "crop_size": crop_size,
        }
        pixel_values = []
        for video in videos:
            # One at a time: the base stacks all of one shape, and fresh memory costs more than the arithmetic.
            (clip,) = super()._preprocess([video], **done, **kwargs)["pixel_values_videos"]
            pixel_values.append(clip.to(torch.float32))
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)


def _every_frame(metadata: VideoMetadata) -> range:
    return range(metadata.total_num_frames)


def read_in_any_order(
    source: VideoSource,
    sample_indices: Callable[[VideoMetadata], Sequence[int]],
    short_side: int | None,
    start: float | None = None,
    end: float | None = None,
) -> tuple[np.ndarray, VideoMetadata]:
    """[`read_video`] of indices that need not ascend, since clips of one video may overlap."""
    wanted = []

    def ascending_indices(metadata: VideoMetadata) -> list[int]:
        wanted[:] = sample_indices(metadata)
        return sorted(set(wanted))

    # As many threads as torch may use: one in a data loader's worker, whose siblings have the other cores.
    frames, metadata = read_video(source, ascending_indices, short_side, torch.get_num_threads(), start, end)
    if wanted != metadata.frames_indices:
        frames = frames[np.searchsorted(metadata.frames_indices, wanted)]
        metadata.frames_indices = wanted
    return frames, metadata


def _sample_tensor(
    video: torch.Tensor, metadata: VideoMetadata | None, sample_indices: Callable | None
) -> tuple[torch.Tensor, VideoMetadata]:
    """A clip of a video (T, C, H, W); or of an image (C, H, W), which is one frame and never sampled."""
    clip = video if video.ndim == 4 else video.unsqueeze(0)
    if metadata is None:
        metadata = VideoMetadata(len(clip), height=clip.shape[-2], width=clip.shape[-1])
    if video.ndim == 4 and sample_indices is not None:
        if metadata.total_num_frames != len(clip):
            raise ValueError(
                f"video_metadata tells of {metadata.total_num_frames} frames and the video has {len(clip)}; pass "
                "do_sample_frames=False for a video that is sampled already"
            )
        metadata.frames_indices = sample_indices(metadata=metadata)
        clip = clip[metadata.frames_indices]
    elif metadata.frames_indices is None:
        metadata.frames_indices = list(range(len(clip)))
    return clip, metadata


__all__ = ["CoverVideoProcessor", "read_in_any_order"]
