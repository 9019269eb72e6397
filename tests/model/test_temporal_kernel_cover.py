# SPDX-License-Identifier: Apache-2.0
"""Attention over time of packed frames: Triton's kernels, interpreted on a CPU and built for GPUs, and plain
PyTorch."""

import importlib.util
import itertools
import os
import subprocess
import sys

import pytest
import torch
from modeling_cover.model import temporal_kernel_cover
from torch.nn import functional as F


triton = pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Frames of each clip of a batch, and the head size; 33 frames and more, in fp32, are for plain PyTorch.
QUICK = [((3, 16, 1, 5), 80), ((64, 7), 32)]
REST = [((1,), 32), ((2, 1, 1), 64), ((8, 8), 64), ((31, 32), 80), ((16, 2), 32), ((64, 33), 80), ((128, 1, 100), 64)]
CASES = [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in REST)]


@pytest.fixture(scope="session")
def interpreted():
    """A copy of the module whose kernels are interpreted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        spec = importlib.util.spec_from_file_location("interpreted_kernel", temporal_kernel_cover.__file__)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def tables(module, lengths, num_patches, dtype):
    ends = list(itertools.accumulate(lengths))
    clips = [(end - length, length) for end, length in zip(ends, lengths, strict=True)]
    rows = module.tile_rows(max(lengths), dtype, 64, torch.device(DEVICE))
    tiles = module.temporal_tiles(clips, num_patches, rows).to(DEVICE)
    return tiles, rows, torch.tensor(clips)


def attended(qkv, lengths):
    """Eager attention, in fp64, of each clip apart: (F, S, H, d)."""
    parts = []
    for clip in qkv.double().split(lengths):
        query, key, value = clip[:, 1:].permute(3, 1, 2, 0, 4)  # (N, H, T, d) each
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        parts.append((weights @ value).permute(2, 0, 1, 3))
    return F.pad(torch.cat(parts), (0, 0, 0, 0, 1, 0))


def assert_close(found, expected):
    """Each value to 1e-5 in fp32; in bf16, whose values have 3 digits, all together to 1e-2."""
    if found.dtype == torch.float32:
        torch.testing.assert_close(found.double(), expected.double(), atol=1e-5, rtol=1e-5)
    else:
        assert (found - expected).norm() <= 1e-2 * expected.norm()


@pytest.fixture(params=["kernel", "plain"])
def module(request, monkeypatch):
    """Without a GPU the package's own has no kernel: what it does instead is tried as well."""
    if request.param == "plain":
        if DEVICE == "cuda":
            pytest.skip("the kernel is there")
        return temporal_kernel_cover
    if DEVICE == "cuda":
        return temporal_kernel_cover
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return request.getfixturevalue("interpreted")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("lengths", "dim"), CASES)
class TestTemporalAttention:
    def test_it_is_eager_attention_of_each_clip_and_its_gradient(self, module, lengths, dim, dtype):
        torch.manual_seed(0)
        qkv = torch.randn(sum(lengths), 1 + 6, 2, 3, dim, device=DEVICE, dtype=dtype, requires_grad=True)
        arguments = tables(module, lengths, 6, dtype)
        found = module.temporal_attention(qkv, *arguments)
        upper = torch.randn(found.shape, device=DEVICE, dtype=dtype)
        expected = attended(qkv, lengths)
        assert_close(found, expected)
        (grad,) = torch.autograd.grad(found, qkv, upper)
        (expected,) = torch.autograd.grad(expected, qkv, upper.double())
        assert_close(grad, expected)


class TestInputs:
    def test_that_lie_otherwise_in_memory_give_the_same(self, module):
        torch.manual_seed(0)
        qkv = torch.randn(1 + 6, 5, 2, 3, 32, device=DEVICE).transpose(0, 1)  # (F, S, H, 3, d)
        arguments = tables(module, (4, 1), 6, qkv.dtype)
        assert not qkv.is_contiguous()
        torch.testing.assert_close(
            module.temporal_attention(qkv, *arguments), module.temporal_attention(qkv.contiguous(), *arguments)
        )
        upper = torch.randn(1 + 6, 5, 2, 32, device=DEVICE).transpose(0, 1)
        torch.testing.assert_close(
            module.temporal_attention_backward(qkv, upper, *arguments),
            module.temporal_attention_backward(qkv.contiguous(), upper.contiguous(), *arguments),
        )

    def test_the_same_twice_is_the_same_to_the_bit(self, module):
        qkv = torch.randn(9, 7, 2, 3, 32, device=DEVICE)
        arguments = tables(module, (8, 1), 6, qkv.dtype)
        upper = torch.randn(9, 7, 2, 32, device=DEVICE)
        first, second = (module.temporal_attention_backward(qkv, upper, *arguments) for _ in range(2))
        assert torch.equal(first, second)

    @pytest.mark.slow
    def test_operators_are_described_as_they_are(self, module):
        qkv = torch.randn(9, 7, 2, 3, 32, device=DEVICE, requires_grad=True)
        arguments = tables(module, (8, 1), 6, qkv.dtype)
        torch.library.opcheck(module.temporal_attention, (qkv, *arguments))
        features, spans = torch.randn(9, 32, device=DEVICE), torch.tensor([(0, 8)] * 8 + [(8, 1)]).int().to(DEVICE)
        torch.library.opcheck(module.mean_over_clips, (features.requires_grad_(), spans))


class TestMeanOverClips:
    @pytest.mark.parametrize("width", [32, 300])
    def test_it_is_the_mean_of_each_clip_and_its_gradient(self, module, width):
        torch.manual_seed(0)
        features = torch.randn(9, 3, width, device=DEVICE, requires_grad=True)
        spans = torch.tensor([(0, 5)] * 5 + [(5, 1)] + [(6, 3)] * 3).int().to(DEVICE)
        found = module.mean_over_clips(features[:, 1], spans)
        parts = [clip.mean(0).expand(len(clip), -1) for clip in features[:, 1].split([5, 1, 3])]
        torch.testing.assert_close(found, torch.cat(parts), atol=1e-6, rtol=1e-6)
        upper = torch.randn(9, width, device=DEVICE)
        grads = [torch.autograd.grad(out, features, upper)[0] for out in (found, torch.cat(parts))]
        torch.testing.assert_close(*grads, atol=1e-6, rtol=1e-6)


# Builds each kernel for a GPU, by its name, the type of its tensors and its sizes: what an interpreter takes, a
# compiler may refuse. It needs no GPU.
BUILD = """
import modeling_cover
import triton
from modeling_cover.model import temporal_kernel_cover as kernels
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

def build(name, dtype, **sizes):
    kernel, types = getattr(kernels, name), {"TILES": "*i32", "SPANS": "*i32", "scale": "fp32"}
    types |= {tensor: f"*{dtype}" for tensor in ("QKV", "GRAD", "OUT", "X")} | dict.fromkeys(sizes, "constexpr")
    signature = {argument: types.get(argument, "i32") for argument in kernel.arg_names}
    target, options = GPUTarget("cuda", capability, 32), {"num_warps": 4}
    built = triton.compile(ASTSource(fn=kernel, signature=signature, constexprs=sizes), target=target, options=options)
    assert built.asm["cubin"]
    print(name, built.metadata.shared)

for capability in (80, 90):
    build("mean_over_clips_kernel", "bf16", BLOCK=256)
    build("temporal_attention_kernel", "bf16", M=64, D=64, WIDTH=64, WIDE=False)
    build("temporal_attention_backward_kernel", "bf16", M=64, D=64, WIDTH=64, WIDE=False)
build("temporal_attention_backward_kernel", "fp16", M=128, D=64, WIDTH=64, WIDE=False)
build("temporal_attention_backward_kernel", "fp32", M=16, D=64, WIDTH=64, WIDE=False)
"""


@pytest.mark.slow
def test_the_kernels_can_be_built_for_gpus(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    built = subprocess.run([sys.executable, "-c", BUILD], env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    sizes = [int(line.split()[-1]) for line in built.stdout.splitlines()]
    *usual, longest, fp32 = sizes
    assert len(usual) == 6
    assert max(*usual, fp32) <= 96 * 1024  # the shared memory of the smallest GPU that is meant
    assert longest <= 160 * 1024  # that of an A100's: others take plain PyTorch for more than 64 frames
