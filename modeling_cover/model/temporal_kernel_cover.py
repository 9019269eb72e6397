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
"""Attention over time, and means over the frames of a clip, for clips of any lengths packed together: on a GPU one
Triton kernel each, forward and backward, and plain PyTorch elsewhere.

Temporal attention has many short sequences: one of T frames for each patch of each clip. Kernels that are made for
long sequences pad each to a tile of 64 or 128 rows. Here a tile has the sequences of 64 // T patches, or more.

Axes, in the shapes below:

    F frames of all clips   S tokens of a frame, a class token and its patches   H heads   d head size
    R clips   T frames of a clip   P tiles
"""

import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby

import torch
from torch import nn
from transformers.utils import logging


try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

logger = logging.get_logger(__name__)

# The most frames of a clip: all rows of a sequence are in one tile. In fp32 it is fewer, as a tile's products are not
# those of tensor cores, which are of 10 bits: larger ones take minutes to compile.
MAX_FRAMES, MAX_FRAMES_OF_FP32 = 128, 32
# Code that is loaded from a checkpoint's repository has operators of its own beside the package's.
_NAMESPACE = re.sub(r"\W", "_", __name__, flags=re.ASCII)


def has_kernel(device: torch.device) -> bool:
    """Whether the kernels run on a device: one of NVIDIA's with products of bf16. With TRITON_INTERPRET=1 they run on
    a CPU, slowly."""
    if triton is None:
        return False
    if device.type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1"
    return device.type == "cuda" and torch.version.cuda is not None and _has_run(device)


@lru_cache
def _has_run(device: torch.device) -> bool:
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    spans = torch.tensor([(0, 1)], dtype=torch.int32, device=device)
    try:
        _launch_mean(torch.ones(1, 1, device=device), spans)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        # Triton compiles what launches a kernel by a C compiler, which not every machine has.
        logger.warning(f"{device}: Triton does not work here, so the model is slower than it could be: {error}")
        return False
    return True


def tile_rows(num_frames: int, dtype: torch.dtype, head_dim: int, device: torch.device) -> int:
    """Rows of a tile for clips of at most `num_frames`; 0 where the kernel is not for them, or a tile does not fit
    into the device's shared memory. 64 rows keep enough loads in flight."""
    sizes = (16, MAX_FRAMES_OF_FP32) if dtype == torch.float32 else (64, MAX_FRAMES)
    rows = next((rows for rows in sizes if num_frames <= rows), 0)
    if device.type == "cuda" and has_kernel(device):
        # No less than the backward kernel took where it was built, for heads of up to 128.
        tiles = 7 if rows == MAX_FRAMES else 5
        needed = tiles * rows * _width(head_dim) * dtype.itemsize
        if needed > torch.cuda.get_device_properties(device).shared_memory_per_block_optin:
            return 0
    return rows


def _width(head_dim: int) -> int:
    """Columns of a tile: a product takes 16 and more, and powers of two."""
    return max(16, 1 << (head_dim - 1).bit_length())


def temporal_tiles(clips: Sequence[tuple[int, int]], num_patches: int, rows: int) -> torch.Tensor:
    """What each program of the kernel attends to, (P, 3): a clip's first frame, its frames, and its first patch.

    `clips` has the first frame and the number of frames of each, `rows` are those of a tile.
    """
    tiles = [(*clip, patch) for clip in clips if rows for patch in range(0, num_patches, rows // clip[1])]
    # Two at least, as a compiler makes a program of its own for a size of 1: these have no patches.
    tiles += [(0, 1, num_patches)] * (2 - len(tiles))
    return torch.tensor(tiles, dtype=torch.int32)


if triton is not None:

    @triton.jit
    def _tile(TILES, M: tl.constexpr, S, H):
        """The offset of each row's token in units of a head's vector, the number of its sequence, which rows there
        are, and what the class tokens' need."""
        at = TILES + 3 * tl.program_id(0)
        first, length, patch = tl.load(at), tl.load(at + 1), tl.load(at + 2)
        row = tl.arange(0, M)
        track = row // length
        inside = (track < M // length) & (patch + track < S - 1)
        frame = (first + row % length).to(tl.int64)
        token = (frame * S + 1 + patch + track) * H + tl.program_id(1)
        # The first tile of a clip sees to its class tokens, which do not take part.
        class_token = (first + row).to(tl.int64) * S * H + tl.program_id(1)
        return token, track, inside, class_token, (row < length) & (patch == 0)

    @triton.jit
    def _product(a, b, WIDE: tl.constexpr):
        """Triton's interpreter has no products of bf16, so they are of fp32 there."""
        if WIDE:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        return tl.dot(a, b, input_precision="ieee")

    @triton.jit
    def _weights(q, k, track, inside, scale, WIDE: tl.constexpr):
        """(M, M), zero between different sequences."""
        scores = _product(q, tl.trans(k), WIDE) * scale
        together = (track[:, None] == track[None, :]) & inside[:, None] & inside[None, :]
        scores = tl.where(together, scores, -1.0e30)
        weights = tl.where(together, tl.exp(scores - tl.max(scores, 1)[:, None]), 0.0)
        total = tl.sum(weights, 1)
        return weights / tl.where(total > 0, total, 1.0)[:, None]

    @triton.jit
    def temporal_attention_kernel(
        QKV, TILES, OUT, S, H, scale, M: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr
    ):
        token, track, inside, class_token, has_class_token = _tile(TILES, M, S, H)
        column = tl.arange(0, WIDTH)[None, :]
        mask = inside[:, None] & (column < D)
        at = QKV + (token * (3 * D))[:, None] + column
        q = tl.load(at, mask=mask, other=0.0)
        k = tl.load(at + D, mask=mask, other=0.0)
        v = tl.load(at + 2 * D, mask=mask, other=0.0)
        weights = _weights(q, k, track, inside, scale, WIDE)
        out = _product(weights.to(v.dtype), v, WIDE).to(OUT.dtype.element_ty)
        tl.store(OUT + (token * D)[:, None] + column, out, mask=mask)
        zero = tl.zeros([M, WIDTH], dtype=OUT.dtype.element_ty)
        tl.store(OUT + (class_token * D)[:, None] + column, zero, mask=has_class_token[:, None] & (column < D))

    @triton.jit
    def temporal_attention_backward_kernel(
        QKV, GRAD, TILES, OUT, S, H, scale, M: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr
    ):
        token, track, inside, class_token, has_class_token = _tile(TILES, M, S, H)
        column = tl.arange(0, WIDTH)[None, :]
        mask = inside[:, None] & (column < D)
        offsets = (token * (3 * D))[:, None] + column
        q = tl.load(QKV + offsets, mask=mask, other=0.0)
        k = tl.load(QKV + offsets + D, mask=mask, other=0.0)
        v = tl.load(QKV + offsets + 2 * D, mask=mask, other=0.0)
        grad = tl.load(GRAD + (token * D)[:, None] + column, mask=mask, other=0.0)
        weights = _weights(q, k, track, inside, scale, WIDE)
        of_weights = _product(grad, tl.trans(v), WIDE)
        of_scores = weights * (of_weights - tl.sum(weights * of_weights, 1)[:, None]) * scale
        of_scores = of_scores.to(q.dtype)
        weights = weights.to(q.dtype)
        kind = OUT.dtype.element_ty
        tl.store(OUT + offsets, _product(of_scores, k, WIDE).to(kind), mask=mask)
        tl.store(OUT + offsets + D, _product(tl.trans(of_scores), q, WIDE).to(kind), mask=mask)
        tl.store(OUT + offsets + 2 * D, _product(tl.trans(weights), grad, WIDE).to(kind), mask=mask)
        zero = tl.zeros([M, WIDTH], dtype=kind)
        at = OUT + (class_token * (3 * D))[:, None] + column
        mask = has_class_token[:, None] & (column < D)
        tl.store(at, zero, mask=mask)
        tl.store(at + D, zero, mask=mask)
        tl.store(at + 2 * D, zero, mask=mask)

    @triton.jit
    def mean_over_clips_kernel(X, SPANS, OUT, D, stride, BLOCK: tl.constexpr):
        frame = tl.program_id(0)
        first, length = tl.load(SPANS + 2 * frame), tl.load(SPANS + 2 * frame + 1)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        total = tl.zeros([BLOCK], dtype=tl.float32)
        for index in range(0, length):
            at = X + (first + index).to(tl.int64) * stride + column
            total += tl.load(at, mask=column < D, other=0.0).to(tl.float32)
        tl.store(OUT + frame.to(tl.int64) * D + column, (total / length).to(OUT.dtype.element_ty), mask=column < D)


def _launch(kernel: Callable, qkv: torch.Tensor, others: list[torch.Tensor], tiles: torch.Tensor, rows: int) -> None:
    _, tokens, heads, _, dim = qkv.shape
    sizes = {"M": rows, "D": dim, "WIDTH": _width(dim), "WIDE": qkv.device.type == "cpu"}
    *inputs, out = others
    arguments = qkv, *inputs, tiles, out, tokens, heads, dim**-0.5
    with torch.cuda.device_of(qkv):  # Triton launches on the current device
        kernel[(len(tiles), heads)](*arguments, **sizes, num_warps=8 if rows > 64 else 4)


def _launch_mean(features: torch.Tensor, spans: torch.Tensor) -> torch.Tensor:
    out, (num_frames, width) = features.new_empty(features.shape), features.shape
    features = features if features.stride(1) == 1 else features.contiguous()
    arguments = features, spans, out, width, features.stride(0)
    with torch.cuda.device_of(features):
        mean_over_clips_kernel[(num_frames, triton.cdiv(width, 256))](*arguments, BLOCK=256, num_warps=2)
    return out


def _parts(clips: torch.Tensor) -> Iterator[tuple[slice, tuple[int, int]]]:
    """The frames of clips of one length that lie one behind the other, with the number of clips and their length."""
    first = 0
    for length, members in groupby(length for _, length in clips.tolist() if length):
        count = len(list(members))
        yield slice(first, first + count * length), (count, length)
        first += count * length


def _sequences(qkv: torch.Tensor, shape: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """Query, key and value of clips of one length, (C, N, H, T, d) each."""
    return qkv[:, 1:].unflatten(0, shape).permute(4, 0, 2, 3, 1, 5).unbind()


# ---- Operators ----


@torch.library.custom_op(f"{_NAMESPACE}::temporal_attention", mutates_args=())
def temporal_attention(qkv: torch.Tensor, tiles: torch.Tensor, rows: int, clips: torch.Tensor) -> torch.Tensor:
    """Attention among the tokens of one patch position across the frames of each clip.

    Args:
        qkv: (F, S, H, 3, d), query, key and value of all tokens.
        tiles: (P, 3), see [`temporal_tiles`].
        rows: of a tile, see [`tile_rows`].
        clips: (R, 2), the first frame and the number of frames of each clip, on the CPU: for where there is no kernel.

    Returns:
        (F, S, H, d), zeros for class tokens.
    """
    out = qkv.new_empty(*qkv.shape[:3], qkv.shape[4])
    if rows and has_kernel(qkv.device):
        _launch(temporal_attention_kernel, qkv.contiguous(), [out], tiles, rows)
        return out
    out[:, 0] = 0
    for frames, shape in _parts(clips):
        attended = nn.functional.scaled_dot_product_attention(*_sequences(qkv[frames], shape))
        out[frames, 1:] = attended.permute(0, 3, 1, 2, 4).flatten(0, 1)
    return out


@temporal_attention.register_fake
def _(qkv: torch.Tensor, tiles: torch.Tensor, rows: int, clips: torch.Tensor) -> torch.Tensor:
    return qkv.new_empty(*qkv.shape[:3], qkv.shape[4])


@torch.library.custom_op(f"{_NAMESPACE}::temporal_attention_backward", mutates_args=())
def temporal_attention_backward(
    qkv: torch.Tensor, grad: torch.Tensor, tiles: torch.Tensor, rows: int, clips: torch.Tensor
) -> torch.Tensor:
    """The gradient of `qkv`, (F, S, H, 3, d), of that of the result, (F, S, H, d)."""
    out = qkv.new_empty(qkv.shape)
    if rows and has_kernel(qkv.device):
        _launch(temporal_attention_backward_kernel, qkv.contiguous(), [grad.contiguous(), out], tiles, rows)
        return out
    out[:, 0] = 0
    scale = qkv.shape[4] ** -0.5
    for frames, shape in _parts(clips):
        query, key, value = _sequences(qkv[frames], shape)
        upper = grad[frames, 1:].unflatten(0, shape).permute(0, 2, 3, 1, 4)
        weights = (query @ key.transpose(-1, -2) * scale).softmax(dim=-1)
        of_weights = upper @ value.transpose(-1, -2)
        of_scores = weights * (of_weights - (weights * of_weights).sum(dim=-1, keepdim=True)) * scale
        parts = of_scores @ key, of_scores.transpose(-1, -2) @ query, weights.transpose(-1, -2) @ upper
        out[frames, 1:] = torch.stack(parts).permute(1, 4, 2, 3, 0, 5).flatten(0, 1)
    return out


@temporal_attention_backward.register_fake
def _(qkv: torch.Tensor, grad: torch.Tensor, tiles: torch.Tensor, rows: int, clips: torch.Tensor) -> torch.Tensor:
    return qkv.new_empty(qkv.shape)


def _keep_for_backward(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: torch.Tensor) -> None:
    qkv, tiles, ctx.rows, clips = inputs
    ctx.save_for_backward(qkv, tiles, clips)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    qkv, tiles, clips = ctx.saved_tensors
    return temporal_attention_backward(qkv, grad, tiles, ctx.rows, clips), None, None, None


temporal_attention.register_autograd(_backward, setup_context=_keep_for_backward)


@torch.library.custom_op(f"{_NAMESPACE}::mean_over_clips", mutates_args=())
def mean_over_clips(features: torch.Tensor, spans: torch.Tensor) -> torch.Tensor:
    """The mean over its clip's frames, for each frame: (F, D) to the same.

    `spans`, (F, 2), has the first frame of each frame's clip, and its number of frames.
    """
    if has_kernel(features.device):
        return _launch_mean(features, spans)
    out = features.new_empty(features.shape)
    for first, length in dict.fromkeys(map(tuple, spans.tolist())):
        out[first : first + length] = features[first : first + length].mean(dim=0)
    return out


@mean_over_clips.register_fake
def _(features: torch.Tensor, spans: torch.Tensor) -> torch.Tensor:
    return features.new_empty(features.shape)


def _mean_backward(ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
    return mean_over_clips(grad, ctx.saved_tensors[0]), None  # its matrix is symmetric


mean_over_clips.register_autograd(
    _mean_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[1])
)
