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

import io
import os
from collections.abc import Callable
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from huggingface_hub.utils import httpx
from transformers.image_processing_utils import BatchFeature
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
from transformers.video_utils import VideoMetadata, make_batched_metadata

from .video_decoding_cover import VideoDecodingError, VideoSource, read_video, uniform_frame_indices


_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
# PIL goes by content. Among what else it opens are formats read by other programs (EPS, by Ghostscript).
_IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
_URL_TIMEOUT = 60.0  # seconds, to connect and between two pieces of the content

_EXPECTED = (
    "expected a video (a path, a URL, bytes, a binary file object, a 4-D array or tensor, a list of frames), an image "
    "(a path, a PIL image, a 3-D array or tensor), or a list of these"
)


class CoverVideoProcessorKwargs(VideosKwargs, total=False):
    r"""
    num_spatial_crops (`int`, *optional*, defaults to `self.num_spatial_crops`):
        1 for the centre crop; 3 for crops at the start, the centre and the end of the longer side, each of them an
        entry of its own in the batch.
    """

    num_spatial_crops: int


class CoverVideoProcessor(BaseVideoProcessor):
    r"""
    Makes videos and images ready for CoVeR: sampled, resized by their shorter side, cropped, rescaled and normalized.

    The options are those of [`BaseVideoProcessor`], and one more:

    Args:
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
    num_spatial_crops = 1
    valid_kwargs = CoverVideoProcessorKwargs
    model_input_names = ["pixel_values"]

    def __init__(self, **kwargs: Unpack[CoverVideoProcessorKwargs]):
        super().__init__(**kwargs)

    def preprocess(self, videos: Any, **kwargs: Unpack[CoverVideoProcessorKwargs]) -> BatchFeature:
        r"""
        Prepares one video or image, or a batch of them, for the model.

        Args:
            videos:
                A video: a path, an http(s) URL, bytes, a binary file object, an array or tensor (T, H, W, C) or
                (T, C, H, W), or a list of frames, that is of PIL images or of 3-D arrays. An image: a path or URL
                that ends as images do, a PIL image or a 3-D array. A batch: a list of any of these, each item taken
                by itself, or a 5-D array. Arrays hold values of 0 to 255, unless `do_rescale=False`; they have 1
                (grey), 3 (RGB) or 4 (RGBA, always of 0 to 255) channels.
            kwargs:
                Options for this call, in place of the processor's own. With `do_sample_frames` a video, decoded or
                not, becomes `num_frames` frames, repeated if it has fewer; an image always stays one frame.

        Returns:
            [`BatchFeature`] with `pixel_values`, float32 of shape (B, T, 3, H, W): one tensor, or without
            `return_tensors` a list of tensors. With three spatial crops it has 3B entries, those of one video
            adjacent. With `return_metadata`, also `video_metadata`, an entry for each video.

        Raises:
            VideoDecodingError: a file cannot be read, or a URL not fetched.
            ValueError: an input is no video or image, options do not fit together, or clips that end with different
                shapes are asked for as one tensor.
        """
        data_format = kwargs.pop("input_data_format", None) or self.input_data_format
        clips = _split_batch(videos, None if data_format is None else ChannelDimension(data_format))
        return super().preprocess(clips, input_data_format=ChannelDimension.FIRST, **kwargs)

    def sample_frames(
        self,
        metadata: VideoMetadata,
        num_frames: int | None = None,
        fps: int | float | None = None,
        **kwargs,
    ) -> list[int]:
        r"""
        Indices of `num_frames` frames spread over a whole video, from the centre of each of as many equal segments.

        Args:
            metadata (`VideoMetadata`):
                Of the video; only `total_num_frames` counts.
            num_frames (`int`, *optional*):
                Defaults to `self.num_frames`.
            fps (`int` or `float`, *optional*):
                Not supported, since the model sees a fixed number of frames however long the video is.
        """
        if fps is not None:
            raise ValueError(f"CoVeR samples by `num_frames` only, over the whole video; got fps={fps}")
        num_frames = num_frames if num_frames is not None else self.num_frames
        return uniform_frame_indices(metadata.total_num_frames, num_frames)

    def fetch_videos(
        self, video_url_or_urls: VideoSource | list[VideoSource], sample_indices_fn: Callable | None = None
    ) -> tuple[np.ndarray, VideoMetadata] | list:
        r"""
        Decodes a video into frames (T, H, W, 3), uint8, and its metadata. All frames without `sample_indices_fn`. From
        a list of videos, a list of all frames and one of all metadata.
        """
        if isinstance(video_url_or_urls, list):
            return list(
                zip(*[self.fetch_videos(video, sample_indices_fn) for video in video_url_or_urls], strict=True)
            )
        source = video_url_or_urls
        sample_indices = sample_indices_fn or _every_frame
        # As many threads as torch may use: one in a data loader's worker, whose siblings have the other cores.
        num_threads = torch.get_num_threads()
        if not _is_url(source):
            return read_video(source, sample_indices, num_threads=num_threads)
        content = _download(source)
        try:
            return read_video(content, sample_indices, num_threads=num_threads)
        except VideoDecodingError as error:
            raise VideoDecodingError(f"{source}: {error}") from error

    def _decode_and_sample_videos(
        self,
        videos: list[torch.Tensor | VideoSource],
        video_metadata: VideoMetadata | dict | list | None,
        do_sample_frames: bool | None = None,
        sample_indices_fn: Callable | None = None,
    ) -> tuple[list[torch.Tensor], list[VideoMetadata]]:
        """Clips (T, C, H, W) of what `_split_batch` returned, and their metadata; of all frames without a function."""
        if video_metadata is None:
            given = [None] * len(videos)
        else:
            given = [VideoMetadata(**entry) for entry in make_batched_metadata(videos, video_metadata)]
        clips, batch_metadata = [], []
        for video, metadata in zip(videos, given, strict=True):
            if isinstance(video, torch.Tensor):
                clip, metadata = _sample_tensor(video, metadata, sample_indices_fn)
            else:
                frames, metadata = self.fetch_videos(video, sample_indices_fn)
                clip = torch.from_numpy(frames).permute(0, 3, 1, 2)
            clips.append(clip)
            batch_metadata.append(metadata)
        return clips, batch_metadata

    def _preprocess(
        self,
        videos: list[torch.Tensor],
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling | int | None,
        do_center_crop: bool,
        crop_size: SizeDict,
        num_spatial_crops: int,
        return_tensors: str | TensorType | None = None,
        **kwargs,
    ) -> BatchFeature:
        """From clips (T, 3, H, W) of any size to the model's input. Rescaling and normalizing is left to the base."""
        if num_spatial_crops not in (1, 3):
            raise ValueError(f"num_spatial_crops must be 1 or 3, got {num_spatial_crops}")
        if num_spatial_crops == 3 and not do_center_crop:
            raise ValueError("num_spatial_crops=3 is of no effect with do_center_crop=False")
        if do_resize:
            videos = [self.resize(video, size=size, resample=resample) for video in videos]
        if do_center_crop:
            videos = [crop for video in videos for crop in _spatial_crops(video, crop_size, num_spatial_crops)]
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
        videos = super()._preprocess(videos, **done, **kwargs)["pixel_values_videos"]
        pixel_values = [video.to(torch.float32) for video in videos]
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)


def _split_batch(videos: Any, data_format: ChannelDimension | None) -> list[torch.Tensor | VideoSource]:
    """The items of a batch: a clip (T, C, H, W), an image (C, H, W), or what is still to be decoded."""
    if isinstance(videos, np.ndarray | torch.Tensor) and videos.ndim == 5:
        videos = list(videos)
    if not isinstance(videos, list | tuple) or _is_frame_list(videos):
        return [_to_item(videos, "videos", data_format)]
    if not videos:
        raise ValueError(f"videos is empty: {_EXPECTED}")
    return [_to_item(video, f"videos[{index}]", data_format) for index, video in enumerate(videos)]


def _is_frame(item: Any) -> bool:
    return isinstance(item, PIL.Image.Image) or (isinstance(item, np.ndarray | torch.Tensor) and item.ndim == 3)


def _is_frame_list(items: list | tuple) -> bool:
    return len(items) > 0 and all(_is_frame(item) for item in items)


def _to_item(item: Any, name: str, data_format: ChannelDimension | None) -> torch.Tensor | VideoSource:
    if isinstance(item, list | tuple) and _is_frame_list(item):
        frames = [_to_item(frame, f"{name}[{index}]", data_format) for index, frame in enumerate(item)]
        shapes = {tuple(frame.shape) for frame in frames}
        if len(shapes) > 1:
            raise ValueError(f"the frames of {name} must have one shape (C, H, W), got {sorted(shapes)}")
        return torch.stack(frames)
    if isinstance(item, PIL.Image.Image):
        return _image_to_tensor(item)
    if isinstance(item, np.ndarray | torch.Tensor) and item.ndim in (3, 4):
        return _array_to_tensor(item, name, data_format)
    if isinstance(item, str | os.PathLike):
        return _image_to_tensor(read_image(item)) if _has_image_suffix(item) else item
    if isinstance(item, bytes) or hasattr(item, "read"):
        return item
    kind = (
        f"an array of shape {tuple(item.shape)}" if isinstance(item, np.ndarray | torch.Tensor) else repr(type(item))
    )
    raise ValueError(f"{name} is {kind}: {_EXPECTED}")


def _array_to_tensor(
    array: np.ndarray | torch.Tensor, name: str, data_format: ChannelDimension | None
) -> torch.Tensor:
    """Channels first, whatever they were: (..., C, H, W). The order is told by the sizes unless it is given."""
    if 0 in array.shape:
        raise ValueError(f"{name} has no frames: its shape is {tuple(array.shape)}")
    if isinstance(array, np.ndarray):
        # torch takes neither negative strides nor, in silence, a read-only array.
        array = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    before, after = array.shape[-3], array.shape[-1]
    if data_format is None:
        # Three channels are likelier than one or four; if that does not decide, first, as all over transformers.
        channels_last = after in _CHANNELS and (before not in _CHANNELS or (after == 3 and before != 3))
        data_format = ChannelDimension.LAST if channels_last else ChannelDimension.FIRST
    if (before if data_format == ChannelDimension.FIRST else after) not in _CHANNELS:
        raise ValueError(
            f"{name} must have 1, 3 or 4 channels, before or after height and width (`input_data_format` settles which),"
            f" got shape {tuple(array.shape)}"
        )
    return array if data_format == ChannelDimension.FIRST else array.movedim(-1, -3)


def _image_to_tensor(image: PIL.Image.Image) -> torch.Tensor:
    """(3, H, W), uint8. Transparent parts become white, as those of arrays with four channels do."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _has_image_suffix(path: str | os.PathLike) -> bool:
    path = urlsplit(path).path if _is_url(path) else os.fsdecode(path)
    return PurePath(path).suffix.lower() in _IMAGE_SUFFIXES


def read_image(path: str | os.PathLike) -> PIL.Image.Image:
    """The image at a path or a URL, turned upright by its EXIF data."""
    source = io.BytesIO(_download(path)) if _is_url(path) else path
    try:
        with PIL.Image.open(source, formats=_IMAGE_FORMATS) as image:
            image.load()
            return PIL.ImageOps.exif_transpose(image)
    # PIL has no error of its own for a broken file; these are what its readers raise.
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise VideoDecodingError(f"{os.fsdecode(path)} cannot be read as an image: {error}") from error


def _is_url(source: Any) -> bool:
    return isinstance(source, str) and source.startswith(("http://", "https://"))


def _download(url: str) -> bytes:
    try:
        response = httpx.get(url, follow_redirects=True, timeout=_URL_TIMEOUT)
        response.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise VideoDecodingError(f"{url} cannot be fetched: {error}") from error
    return response.content


def _every_frame(metadata: VideoMetadata) -> range:
    return range(metadata.total_num_frames)


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


def _spatial_crops(clip: torch.Tensor, crop_size: SizeDict, num_crops: int) -> list[torch.Tensor]:
    """The centre crop of a clip (T, C, H, W), or those at the start, centre and end of its longer side."""
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
    return [clip[..., y : y + crop_size.height, x : x + crop_size.width] for y, x in corners]


__all__ = ["CoverVideoProcessor"]
