# SPDX-License-Identifier: Apache-2.0
"""Pictures of where the model looks: frames with a heat map over them, side by side and moving.

Axes: T frames, H height, W width of a frame in pixels.
"""

import os
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from PIL import Image

from ..fonts import plain_text
from ..model.video_processing_cover import CoverVideoProcessor


SHORTEST_SHOWN = 224  # pixels; smaller frames are enlarged to be seen

# From dark to bright, and told apart by people who do not see all colours.
_COLOURS = matplotlib.colormaps["inferno"]
_STRENGTH = 0.75  # of the heat where it is greatest
_GREY = "#6b6b6b"
_COLUMNS = 8  # frames side by side, at most
_DPI = 100


def shown_frames(processor: CoverVideoProcessor, clip: torch.Tensor) -> np.ndarray:
    """The frames (T, H, W, 3), uint8, that a clip (T, 3, H, W) of the processor was made of: cropped, not
    normalized."""
    pixels = clip.float().cpu()
    if processor.do_normalize:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (processor.image_mean, processor.image_std))
        pixels = pixels * std + mean
    if processor.do_rescale:
        pixels = pixels / processor.rescale_factor
    return pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def overlay(frames: np.ndarray, relevance: torch.Tensor) -> np.ndarray:
    """Frames (T, H, W, 3), uint8, with a heat map over them, brightest where relevance is greatest in the whole clip.

    `relevance` is (T, rows, columns) of patches, not negative, see [`attention_rollout`]. The shorter side of what is
    returned has at least 224 pixels.
    """
    frames = enlarged(frames)
    heat = relevance.detach().float().cpu()[:, None]
    heat = torch.nn.functional.interpolate(heat, frames.shape[1:3], mode="bilinear")[:, 0].numpy()
    heat = heat / max(heat.max(), np.finfo(np.float32).tiny)
    strength = _STRENGTH * heat[..., None]
    coloured = 255 * _COLOURS(heat)[..., :3]
    return ((1 - strength) * frames + strength * coloured).round().astype(np.uint8)


def enlarged(frames: np.ndarray) -> np.ndarray:
    """Frames (T, H, W, 3) whose shorter side has at least 224 pixels."""
    factor = -(-SHORTEST_SHOWN // min(frames.shape[1:3]))
    if factor == 1:
        return frames
    size = (frames.shape[2] * factor, frames.shape[1] * factor)
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in frames])


def draw_explanation(
    frames: np.ndarray,
    overlaid: np.ndarray,
    title: str,
    note: str,
    path: str | os.PathLike,
    times: Sequence[float] | None = None,
) -> None:
    """Each of the frames (T, H, W, 3), uint8, above the same as [`overlay`] returns it, in order of time, as a PNG;
    `times` in seconds."""
    frames = enlarged(frames)
    columns = min(len(frames), _COLUMNS)
    lines = -(-len(frames) // columns)
    height, width = (side / _DPI for side in frames.shape[1:3])
    with plain_text([title, note]):
        # A single image is narrower than what is written about it.
        size = (max(columns * (width + 0.1), 8.5), lines * (2 * height + 0.4) + 1.2)
        figure = Figure(figsize=size, dpi=_DPI, layout="compressed")
        figure.suptitle(f"{title}\n", ha="left", x=0.01, fontsize="x-large")
        figure.text(0.01, 1 - 0.45 / size[1], note, color=_GREY, fontsize="small")
        axes = figure.subplots(2 * lines, columns, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for index, (frame, heat) in enumerate(zip(frames, overlaid, strict=True)):
            line, column = divmod(index, columns)
            axes[2 * line, column].imshow(frame)
            axes[2 * line + 1, column].imshow(heat)
            if times is not None:
                axes[2 * line, column].set_title(f"{times[index]:.2f} s", color=_GREY, fontsize="medium")
        scale = figure.colorbar(
            ScalarMappable(cmap=_COLOURS), ax=axes, orientation="horizontal", shrink=0.3, aspect=30, anchor=(0, 0)
        )
        scale.set_ticks([0, 1], labels=["less", "more"])
        # From the left: it is longer than the scale under few frames.
        scale.set_label("of what the patch adds to the answer; one scale for all frames", color=_GREY, loc="left")
        figure.savefig(path)


def save_gif(frames: np.ndarray, path: str | os.PathLike, frames_per_second: float = 4.0) -> None:
    """Frames (T, H, W, 3) as a picture that moves, over and over."""
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=round(1000 / frames_per_second), loop=0)
