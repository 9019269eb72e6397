# SPDX-License-Identifier: Apache-2.0
"""`CoverVideoProcessor` makes the same pixels of the same frames: which frames it takes, their size, their crops."""

import numpy as np
import PIL.Image
import pytest
import torch
from clips import frame_numbers, indexed_frames, write_clip
from modeling_cover.model.video_processing_cover import CoverVideoProcessor
from tiny import pixels
from torchvision.transforms.v2 import functional as tvF
from transformers import TimesformerVideoProcessor
from transformers.video_utils import VideoMetadata


class TestSampling:
    def test_frames_are_spread_over_the_whole_video(self, bare_processor, tmp_path):
        numbered = indexed_frames(24)
        path = write_clip(tmp_path / "clip.mp4", numbered)
        for video in (path, numbered, list(numbered)):
            result = pixels(bare_processor, video)[0].permute(0, 2, 3, 1).numpy()
            assert frame_numbers(result) == [3, 9, 15, 21]
            result = pixels(bare_processor, video, num_frames=8)[0].permute(0, 2, 3, 1).numpy()
            assert frame_numbers(result) == [1, 4, 7, 10, 13, 16, 19, 22]

    @pytest.mark.parametrize(("num_frames", "numbers"), [(1, [0, 0, 0, 0]), (2, [0, 0, 1, 1]), (4, [0, 1, 2, 3])])
    def test_a_short_video_repeats_its_frames(self, num_frames, numbers, bare_processor, tmp_path):
        numbered = indexed_frames(num_frames)
        path = write_clip(tmp_path / "clip.mp4", numbered)
        for video in (path, numbered, list(numbered) if num_frames > 1 else [list(numbered)]):
            result = pixels(bare_processor, video)[0].permute(0, 2, 3, 1).numpy()
            assert frame_numbers(result) == numbers

    def test_an_image_stays_one_frame(self, processor, image, noise):
        for video in (image, noise[0], PIL.Image.fromarray(noise[0]), [image]):
            assert pixels(processor, video, num_frames=8).shape == (1, 1, 3, 32, 32)

    def test_all_frames_stay_without_sampling(self, processor, clip, frames):
        for video in (clip, frames, list(frames)):
            assert pixels(processor, video, do_sample_frames=False).shape == (1, 10, 3, 32, 32)

    def test_a_dense_clip_lies_in_the_centre(self, bare_processor, tmp_path):
        numbered = indexed_frames(24)
        path = write_clip(tmp_path / "clip.mp4", numbered)
        for video in (path, numbered):
            result = pixels(bare_processor, video, frame_sampling="dense", frame_stride=3)[0].permute(0, 2, 3, 1)
            assert frame_numbers(result.numpy()) == [7, 10, 13, 16]

    @pytest.mark.parametrize(
        ("total", "options", "clips"),
        [
            (24, {"num_clips": 2}, [[1, 7, 13, 19], [4, 10, 16, 22]]),
            (24, {"num_clips": 3, "frame_sampling": "dense"}, [[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]]),
            (6, {"num_clips": 2, "frame_sampling": "dense"}, [[0, 1, 2, 3], [2, 3, 4, 5]]),
            (3, {"num_clips": 2, "frame_sampling": "dense"}, [[0, 1, 2, 2], [0, 1, 2, 2]]),
            (1, {"num_clips": 2}, [[0, 0, 0, 0], [0, 0, 0, 0]]),
        ],
    )
    def test_each_of_several_clips_is_an_entry_of_its_own(self, total, options, clips, bare_processor, tmp_path):
        numbered = indexed_frames(total)
        path = write_clip(tmp_path / "clip.mp4", numbered)
        for video in (path, numbered):
            batch = bare_processor(video, return_tensors="pt", return_metadata=True, **options)
            result = batch["pixel_values"].permute(0, 1, 3, 4, 2).numpy()
            assert [frame_numbers(clip) for clip in result] == clips
            (metadata,) = batch["video_metadata"]
            assert metadata.frames_indices == [index for clip in clips for index in clip]

    def test_crops_of_a_clip_come_before_the_next_clip(self, processor, noise):
        views = pixels(processor, [noise, noise[::-1]], num_clips=2, num_spatial_crops=3)
        assert views.shape == (12, 4, 3, 32, 32)
        for video, first in ((noise, 0), (noise[::-1], 6)):
            clips = pixels(processor, video, num_clips=2)
            torch.testing.assert_close(views[first + 1 : first + 6 : 3], clips, rtol=0, atol=0)

    def test_an_image_has_one_view_however_many_clips(self, processor, image, noise):
        assert pixels(processor, image, num_clips=4).shape == (1, 1, 3, 32, 32)
        clips = processor([image, noise], num_clips=2)["pixel_values"]
        assert [tuple(clip.shape) for clip in clips] == [(1, 3, 32, 32), (4, 3, 32, 32), (4, 3, 32, 32)]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_clips": 0}, "num_clips must be positive, got 0"),
            ({"num_clips": 2, "do_sample_frames": False}, "num_clips=2 .*do_sample_frames=False"),
            ({"frame_sampling": "dense", "frame_stride": 0}, "stride must be positive, got 0"),
            ({"frame_sampling": "sparse"}, 'must be "uniform" or "dense", got \'sparse\''),
        ],
    )
    def test_options_must_make_sense(self, options, message, processor, clip, noise):
        for video in (clip, noise):
            with pytest.raises(ValueError, match=message):
                processor(video, **options)

    def test_it_is_called_by_the_stock_pipeline(self, processor, clip):
        inputs = processor(clip, num_frames=6, do_sample_frames=True, return_tensors="pt").to(torch.float16)
        assert list(inputs) == processor.model_input_names == ["pixel_values"]
        assert inputs["pixel_values"].shape == (1, 6, 3, 32, 32)
        assert inputs["pixel_values"].dtype == torch.float16


class TestMetadata:
    def test_that_of_a_file_is_what_decoding_told(self, processor, clip):
        (metadata,) = processor(clip, return_metadata=True)["video_metadata"]
        assert metadata.frames_indices == [1, 3, 6, 8]
        assert (metadata.total_num_frames, metadata.fps, metadata.height, metadata.width) == (10, 24.0, 48, 64)

    def test_that_of_arrays_is_what_their_shape_tells(self, processor, noise):
        batch = processor([noise, noise[:2], noise[0]], return_metadata=True)
        assert [metadata.frames_indices for metadata in batch["video_metadata"]] == [[1, 3, 6, 8], [0, 0, 1, 1], [0]]
        assert {(metadata.height, metadata.width) for metadata in batch["video_metadata"]} == {(48, 64)}

    def test_that_of_arrays_can_be_given_and_is_not_changed(self, processor, noise):
        given = VideoMetadata(total_num_frames=10, fps=5.0)
        for video_metadata in (given, dict(given), [given]):
            (metadata,) = processor(noise, video_metadata=video_metadata, return_metadata=True)["video_metadata"]
            assert metadata.fps == 5.0
            assert metadata.frames_indices == [1, 3, 6, 8]
        assert given.frames_indices is None

    def test_a_video_sampled_before_keeps_its_own(self, processor, noise):
        given = VideoMetadata(total_num_frames=100, fps=5.0, frames_indices=list(range(0, 100, 10)))
        with pytest.raises(ValueError, match="100 frames and the video has 10"):
            processor(noise, video_metadata=given)
        (metadata,) = processor(noise, video_metadata=given, do_sample_frames=False, return_metadata=True)[
            "video_metadata"
        ]
        assert metadata == given

    def test_there_is_one_for_each_video_however_many_crops(self, processor, noise):
        batch = processor([noise, noise], num_spatial_crops=3, return_metadata=True)
        assert len(batch["video_metadata"]) == 2
        assert len(batch["pixel_values"]) == 6


class TestPixels:
    def test_they_are_those_of_the_steps_done_one_by_one(self, processor, noise):
        video = torch.from_numpy(noise[[1, 3, 6, 8]]).permute(0, 3, 1, 2)
        video = tvF.resize(video, [32], interpolation=tvF.InterpolationMode.BILINEAR, antialias=True)
        video = tvF.center_crop(video, [32, 32])
        expected = (video.float() / 255 - 0.5) / 0.5
        torch.testing.assert_close(pixels(processor, noise)[0], expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("shape", [(8, 48, 64), (8, 70, 40), (8, 32, 32)])
    @pytest.mark.parametrize("mean_and_std", [(0.5, 0.5), (0.45, 0.225)])
    def test_they_are_those_of_the_timesformer_processor(self, shape, mean_and_std):
        video = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        mean, std = mean_and_std
        options = {
            "size": {"shortest_edge": 32},
            "crop_size": {"height": 28, "width": 28},
            "image_mean": [mean] * 3,
            "image_std": [std] * 3,
        }
        expected = pixels(TimesformerVideoProcessor(**options), video)
        torch.testing.assert_close(pixels(CoverVideoProcessor(**options), video), expected, rtol=0, atol=1e-6)

    def test_they_do_not_depend_on_the_rest_of_the_batch(self, processor, noise):
        videos = [noise, noise.astype(np.float32), noise[:, :40, :40], noise.astype(np.float64)]
        batch = pixels(processor, videos)
        assert batch.dtype == torch.float32
        for row, video in zip(batch, videos, strict=True):
            torch.testing.assert_close(row, pixels(processor, video)[0], rtol=0, atol=0)

    def test_each_step_can_be_left_out(self, processor, noise):
        assert pixels(processor, noise, do_center_crop=False).shape == (1, 4, 3, 32, 42)
        assert pixels(processor, noise, do_resize=False, do_center_crop=False).shape == (1, 4, 3, 48, 64)
        assert pixels(processor, noise, do_normalize=False).min() >= 0
        plain = pixels(processor, noise, do_normalize=False, do_rescale=False)
        assert plain.dtype == torch.float32
        assert plain.max() > 200

    def test_they_come_as_numpy_or_a_list_too(self, processor, noise):
        expected = pixels(processor, noise)
        np.testing.assert_array_equal(processor(noise, return_tensors="np")["pixel_values"], expected.numpy())
        (single,) = processor(noise)["pixel_values"]
        torch.testing.assert_close(single, expected[0], rtol=0, atol=0)


class TestSpatialCrops:
    @pytest.mark.parametrize(("height", "width"), [(20, 50), (50, 20)])
    def test_three_lie_at_the_start_the_centre_and_the_end_of_the_longer_side(self, height, width, bare_processor):
        places = np.zeros((4, height, width, 3), dtype=np.uint8)
        places[..., 0], places[..., 1] = np.mgrid[:height, :width]
        crops = pixels(
            bare_processor, places, do_center_crop=True, crop_size={"height": 16, "width": 16}, num_spatial_crops=3
        )
        assert crops.shape == (3, 4, 3, 16, 16)
        corners = [(int(crop[0, 0, 0, 0]), int(crop[0, 1, 0, 0])) for crop in crops]
        assert corners == ([(2, 0), (2, 17), (2, 34)] if width > height else [(0, 2), (17, 2), (34, 2)])

    def test_the_middle_one_is_the_centre_crop(self, processor, noise):
        crops = pixels(processor, noise, num_spatial_crops=3)
        assert crops.shape == (3, 4, 3, 32, 32)
        torch.testing.assert_close(crops[1:2], pixels(processor, noise), rtol=0, atol=0)
        assert not torch.equal(crops[0], crops[1])
        assert not torch.equal(crops[2], crops[1])

    def test_those_of_one_video_are_adjacent(self, processor, noise):
        videos = [noise, noise[::-1], noise[:, ::-1]]
        crops = pixels(processor, videos, num_spatial_crops=3)
        expected = torch.cat([pixels(processor, video, num_spatial_crops=3) for video in videos])
        torch.testing.assert_close(crops, expected, rtol=0, atol=0)

    def test_those_of_a_square_are_alike(self, processor, noise):
        crops = pixels(processor, noise[:, :40, :40], num_spatial_crops=3)
        torch.testing.assert_close(crops, crops[:1].expand_as(crops), rtol=0, atol=0)

    @pytest.mark.parametrize("number", [0, 2, 4, -1])
    def test_there_are_one_or_three(self, number, processor, noise):
        with pytest.raises(ValueError, match=f"1 or 3, got {number}"):
            processor(noise, num_spatial_crops=number)

    def test_they_need_cropping(self, processor, noise):
        with pytest.raises(ValueError, match="do_center_crop=False"):
            processor(noise, num_spatial_crops=3, do_center_crop=False)

    @pytest.mark.parametrize("number", [1, 3])
    def test_they_must_fit_into_the_frames(self, number, processor, noise):
        with pytest.raises(ValueError, match="crop of 40x40 does not fit into frames of 32x42"):
            processor(noise, crop_size={"height": 40, "width": 40}, num_spatial_crops=number)
