# SPDX-License-Identifier: Apache-2.0
"""Pictures of where the model looks: frames with a heat map over them, side by side and moving.

Axes: T frames, H height, W width of a frame in pixels.
"""

import os
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw

from ..fonts import draw_text, find_fonts
from ..model.video_processing_cover import CoverVideoProcessor


SHORTEST_SHOWN = 224  # pixels; smaller frames are enlarged to be seen

# From dark to bright, and told apart by people who do not see all colours.
_COLOURS = matplotlib.colormaps["inferno"]
_STRENGTH = 0.75  # of the heat where it is greatest
_INK, _GREY, _PAPER = "#1a1a1a", "#6b6b6b", "#ffffff"
_MARGIN, _GAP, _LINE = 16, 6, 24
_COLUMNS = 8  # frames side by side, at most
_BAR_WIDTH = 160


def shown_frames(processor: CoverVideoProcessor, clip: torch.Tensor) -> np.ndarray:
    """The frames (T, H, W, 3), uint8, that a clip (T, 3, H, W) of the processor was made of: cropped, not normalized."""
    pixels = clip.float().cpu()
    if processor.do_normalize:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (processor.image_mean, processor.image_std))
        pixels = pixels * std + mean
    if processor.do_rescale:
        pixels = pixels / processor.rescale_factor
    return pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def overlay(frames: np.ndarray, relevance: torch.Tensor) -> np.ndarray:
    """Frames with a heat map over them, brightest where relevance is greatest in the whole clip.

    Args:
        frames: (T, H, W, 3), uint8.
        relevance: (T, rows, columns) of patches, not negative, see [`attention_rollout`].

    Returns:
        Frames as many and of the same proportions, uint8; the shorter side has at least 224 pixels.
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


def explanation_sheet(
    frames: np.ndarray, overlaid: np.ndarray, title: str, note: str, times: Sequence[float] | None = None
) -> Image.Image:
    """Each frame above the same frame with the heat map, in order of time.

    Args:
        frames: (T, H, W, 3), uint8.
        overlaid: of [`overlay`].
        title: what the model says, say.
        note: how to read the picture.
        times: of the frames, in seconds.
    """
    frames = enlarged(frames)
    height, width = frames.shape[1:3]
    columns = min(len(frames), _COLUMNS)
    lines = -(-len(frames) // columns)
    line_height = _LINE + 2 * height + 2 * _GAP + _MARGIN
    # A single image is narrower than what is written about it.
    sheet_width = max(2 * _MARGIN + columns * (width + _GAP) - _GAP, 720)
    sheet = Image.new("RGB", (sheet_width, 3 * _LINE + _MARGIN + lines * line_height + 2 * _LINE), _PAPER)
    draw = ImageDraw.Draw(sheet)
    find_fonts([title])
    draw_text(draw, (_MARGIN, _MARGIN), title, _INK, 20)
    draw_text(draw, (_MARGIN, _MARGIN + _LINE + 4), note, _GREY, 13)
    for index, (frame, heat) in enumerate(zip(frames, overlaid, strict=True)):
        left = _MARGIN + index % columns * (width + _GAP)
        top = 3 * _LINE + _MARGIN + index // columns * line_height
        if times is not None:
            draw_text(draw, (left, top), f"{times[index]:.2f} s", _GREY, 13)
        sheet.paste(Image.fromarray(frame), (left, top + _LINE))
        sheet.paste(Image.fromarray(heat), (left, top + _LINE + height + _GAP))
    _draw_scale(sheet, draw)
    return sheet


def _draw_scale(sheet: Image.Image, draw: ImageDraw.ImageDraw) -> None:
    """What the colours mean, at the lower edge."""
    top = sheet.height - _MARGIN - 14
    ramp = (255 * _COLOURS(np.linspace(0, 1, _BAR_WIDTH))[None, :, :3]).round().astype(np.uint8).repeat(12, axis=0)
    draw_text(draw, (_MARGIN, top), "less", _GREY, 12)
    left = _MARGIN + 36
    sheet.paste(Image.fromarray(ramp), (left, top + 2))
    text = "more of what the patch adds to the answer; one scale for all frames"
    draw_text(draw, (left + _BAR_WIDTH + 8, top), text, _GREY, 12)


def save_gif(frames: np.ndarray, path: str | os.PathLike, frames_per_second: float = 4.0) -> None:
    """Frames (T, H, W, 3) as a picture that moves, over and over."""
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=round(1000 / frames_per_second), loop=0)
