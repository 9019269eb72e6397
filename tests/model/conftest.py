# SPDX-License-Identifier: Apache-2.0
"""A model, a processor, and a clip of noise."""

import numpy as np
import PIL.Image
import pytest
from clips import write_clip
from modeling_cover import CoverConfig, CoverForVideoClassification, CoverVideoProcessor, read_video
from tiny import tiny_config
from two_layers import HEADS, SIZES, randomise


@pytest.fixture
def config() -> CoverConfig:
    return tiny_config(HEADS, **SIZES, default_head="k400")


@pytest.fixture
def model(config) -> CoverForVideoClassification:
    return randomise(CoverForVideoClassification(config)).eval()


@pytest.fixture
def processor() -> CoverVideoProcessor:
    return CoverVideoProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, num_frames=4)


@pytest.fixture
def bare_processor(processor) -> CoverVideoProcessor:
    """Leaves the values of its input as they are, to be looked at."""
    return CoverVideoProcessor(
        do_resize=False, do_center_crop=False, do_rescale=False, do_normalize=False, num_frames=4
    )


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (10, 48, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def clip(noise, tmp_path_factory) -> str:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", noise)


@pytest.fixture(scope="module")
def frames(clip) -> np.ndarray:
    """The ten frames (T, H, W, C) of `clip`, as they are after decoding."""
    return read_video(clip, lambda metadata: range(metadata.total_num_frames))[0]


@pytest.fixture
def image(noise, tmp_path) -> str:
    path = tmp_path / "image.png"
    PIL.Image.fromarray(noise[0]).save(path)
    return str(path)
