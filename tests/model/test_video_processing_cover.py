# SPDX-License-Identifier: Apache-2.0
"""`CoverVideoProcessor` takes videos and images however they come, and makes the same pixels of the same frames."""

import functools
import http.server
import io
import threading
import traceback
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from clips import frame_numbers, indexed_frames, write_clip
from modeling_cover.model.video_decoding_cover import VideoDecodingError, read_video
from modeling_cover.model.video_processing_cover import CoverVideoProcessor
from torchvision.transforms.v2 import functional as tvF
from transformers import TimesformerVideoProcessor
from transformers.video_utils import VideoMetadata


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


@pytest.fixture
def failures(monkeypatch):
    """The status of the answers to come, the last first."""
    monkeypatch.setattr("modeling_cover.model.addresses_cover.RETRY_WAITS", (0.0,) * 4)
    yield _FAILURES
    _FAILURES.clear()


_FAILURES: list[int] = []


@pytest.fixture(scope="module")
def server(clip, noise):
    """Serves the folder of `clip`, unless it shall fail; /moved.mp4 leads there, too."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if _FAILURES:
                self.send_error(_FAILURES.pop())
            elif self.path == "/moved.mp4":
                self.send_response(302)
                self.send_header("Location", "/clip.mp4")
                self.end_headers()
            else:
                super().do_GET()

        def log_message(self, *args):
            pass

    folder = Path(clip).parent
    PIL.Image.fromarray(noise[0]).save(folder / "image.png")
    (folder / "text.mp4").write_text("This is no video.")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def pixels(processor, videos, **kwargs) -> torch.Tensor:
    return processor(videos, return_tensors="pt", **kwargs)["pixel_values"]


class TestInputs:
    def test_a_file_makes_the_same_pixels_however_it_comes(self, processor, clip, server):
        content = Path(clip).read_bytes()
        expected = pixels(processor, clip)
        assert expected.shape == (1, 4, 3, 32, 32)
        assert expected.dtype == torch.float32
        for video in (Path(clip), content, io.BytesIO(content), f"{server}/clip.mp4", f"{server}/moved.mp4", [clip]):
            torch.testing.assert_close(pixels(processor, video), expected, rtol=0, atol=0)
        with open(clip, "rb") as file:
            torch.testing.assert_close(pixels(processor, file), expected, rtol=0, atol=0)

    def test_frames_make_the_same_pixels_however_they_come(self, processor, frames):
        expected = pixels(processor, frames)
        for video in (
            frames.transpose(0, 3, 1, 2),
            torch.from_numpy(frames),
            torch.from_numpy(frames).permute(0, 3, 1, 2),
            frames[None],
            list(frames),
            list(frames.transpose(0, 3, 1, 2)),
            tuple(torch.from_numpy(frames)),
            [PIL.Image.fromarray(frame) for frame in frames],
            [frames],
            [list(frames)],
        ):
            torch.testing.assert_close(pixels(processor, video), expected, rtol=0, atol=0)

    @pytest.mark.parametrize(
        "options",
        [
            {"do_resize": False, "crop_size": {"height": 40, "width": 40}},
            {"resample": 3},
            {"size": {"height": 40, "width": 36}},
        ],
    )
    def test_a_file_and_its_frames_make_the_same_pixels_where_decoding_does_not_scale(
        self, options, processor, clip, frames
    ):
        result = pixels(processor, clip, **options)
        torch.testing.assert_close(result, pixels(processor, frames, **options), rtol=0, atol=0)

    @pytest.mark.parametrize("side", [32, 60])
    def test_a_file_and_its_frames_make_nearly_the_same_pixels_where_it_does(self, side, bare_processor, tmp_path):
        rows, columns = np.mgrid[:48, :64]
        smooth = np.stack([rows * 5, columns * 3, 255 - rows * 2 - columns * 2], axis=-1).astype(np.uint8)
        path = write_clip(tmp_path / "smooth.mp4", np.repeat(smooth[None], 8, axis=0))
        frames, _ = read_video(path, lambda metadata: range(8))
        options = {"do_resize": True, "size": {"shortest_edge": side}}
        result, expected = (pixels(bare_processor, video, **options) for video in (path, frames))
        assert result.shape == expected.shape
        assert (result - expected).abs().mean() < 2
        assert (result - expected).abs().max() < 12

    def test_values_of_any_type_run_to_255_unless_they_are_not_to_be_rescaled(self, processor, frames):
        expected = pixels(processor, frames)
        for dtype in (np.int64, np.uint16, np.float16, np.float32, np.float64):  # one grey level is 0.008
            torch.testing.assert_close(pixels(processor, frames.astype(dtype)), expected, rtol=0, atol=0.01)
        scaled = pixels(processor, frames.astype(np.float32) / 255, do_rescale=False)
        torch.testing.assert_close(scaled, expected, rtol=0, atol=0.01)

    def test_an_image_makes_the_same_pixels_however_it_comes(self, processor, image, noise, server):
        expected = pixels(processor, image)
        assert expected.shape == (1, 1, 3, 32, 32)
        with PIL.Image.open(image) as opened:
            opened.load()
        for video in (
            Path(image),
            f"{server}/image.png",
            opened,
            noise[0],
            noise[0].transpose(2, 0, 1),
            torch.from_numpy(noise[0]),
            [opened],
            [image],
            noise[:1],
        ):
            sampled = pixels(processor, video, num_frames=1)
            torch.testing.assert_close(sampled, expected, rtol=0, atol=0)

    def test_a_batch_is_its_items_each_taken_by_itself(self, processor, clip, frames, noise):
        content = Path(clip).read_bytes()
        videos = [clip, noise.transpose(0, 3, 1, 2), content, list(noise), frames, Path(clip), torch.from_numpy(noise)]
        batch = pixels(processor, videos)
        assert batch.shape == (7, 4, 3, 32, 32)
        for row, video in zip(batch, videos, strict=True):
            torch.testing.assert_close(row, pixels(processor, video)[0], rtol=0, atol=0)

    def test_a_five_dimensional_array_is_a_batch(self, processor, noise):
        expected = torch.cat([pixels(processor, noise), pixels(processor, noise[::-1])])
        batch = np.stack([noise, noise[::-1]])
        torch.testing.assert_close(pixels(processor, batch), expected, rtol=0, atol=0)
        torch.testing.assert_close(pixels(processor, torch.from_numpy(batch)), expected, rtol=0, atol=0)

    def test_a_list_of_image_files_is_a_batch_and_a_list_of_images_is_a_clip(self, processor, image):
        with PIL.Image.open(image) as opened:
            opened.load()
        assert pixels(processor, [image, image]).shape == (2, 1, 3, 32, 32)
        assert pixels(processor, [opened, opened]).shape == (1, 4, 3, 32, 32)

    def test_images_and_videos_can_be_processed_together_without_being_stacked(self, processor, clip, image, noise):
        batch = processor([clip, image, PIL.Image.fromarray(noise[0])])["pixel_values"]
        assert [tuple(item.shape) for item in batch] == [(4, 3, 32, 32), (1, 3, 32, 32), (1, 3, 32, 32)]

    def test_the_channel_order_is_told_for_each_clip(self, bare_processor, noise):
        batch = pixels(bare_processor, [noise, noise.transpose(0, 3, 1, 2), list(noise)])
        for row in batch:
            assert row.shape == (4, 3, 48, 64)
            np.testing.assert_array_equal(row, noise[[1, 3, 6, 8]].transpose(0, 3, 1, 2))

    @pytest.mark.parametrize(
        ("shape", "size"), [((2, 4, 6, 3), (4, 6)), ((2, 3, 6, 4), (6, 4)), ((2, 1, 6, 3), (1, 6))]
    )
    def test_three_channels_are_likelier_than_one_or_four(self, shape, size, bare_processor):
        assert pixels(bare_processor, np.zeros(shape, dtype=np.uint8)).shape == (1, 4, 3, *size)

    def test_the_channel_order_can_be_given(self, bare_processor):
        clip = np.zeros((4, 3, 5, 3), dtype=np.uint8)
        clip[:, 0] = 9
        first = pixels(bare_processor, clip, input_data_format="channels_first")
        last = pixels(bare_processor, clip, input_data_format="channels_last")
        assert first.shape == (1, 4, 3, 5, 3)
        assert last.shape == (1, 4, 3, 3, 5)
        assert (first[:, :, 0] == 9).all()
        assert (last[..., 0, :] == 9).all()

    @pytest.mark.parametrize("shape", [(4, 20, 30, 1), (4, 1, 20, 30)])
    def test_grey_becomes_rgb(self, bare_processor, shape):
        grey = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        expected = grey.reshape(4, 1, 20, 30).repeat(3, axis=1)
        np.testing.assert_array_equal(pixels(bare_processor, grey)[0], expected)

    def test_transparency_becomes_white_in_arrays_and_images_alike(self, bare_processor, tmp_path):
        rgba = np.full((20, 30, 4), (200, 100, 0, 255), dtype=np.uint8)
        rgba[:10, :, 3] = 0
        rgba[10:15, :, 3] = 51
        image = PIL.Image.fromarray(rgba)
        image.save(tmp_path / "image.png")
        for video in (rgba, image, tmp_path / "image.png"):
            result = pixels(bare_processor, video)[0, 0]
            assert (result[:, :10] == 255).all()
            np.testing.assert_allclose(result[:, 12, 0], (244, 224, 204), atol=1)
            np.testing.assert_array_equal(result[:, 19, 0], (200, 100, 0))

    def test_grey_and_palette_images_become_rgb(self, bare_processor):
        for mode in ("L", "P", "1", "CMYK"):
            assert pixels(bare_processor, PIL.Image.new(mode, (30, 20))).shape == (1, 1, 3, 20, 30)

    def test_image_files_are_turned_upright(self, bare_processor, tmp_path):
        exif = PIL.Image.Exif()
        exif[0x0112] = 6  # orientation: to be turned clockwise
        rows = np.zeros((20, 30, 3), dtype=np.uint8)
        rows[:10] = 255
        PIL.Image.fromarray(rows).save(tmp_path / "image.JPG", exif=exif)
        result = pixels(bare_processor, tmp_path / "image.JPG")
        assert result.shape == (1, 1, 3, 30, 20)
        assert (result[..., :8] < 30).all()
        assert (result[..., 12:] > 225).all()

    @pytest.mark.filterwarnings("error")  # such as torch's for read-only arrays
    def test_the_input_is_left_as_it_was(self, processor, frames):
        for video in (frames.copy(), frames.astype(np.float32)):
            before = video.copy()
            video.flags.writeable = False
            processor(video)
            np.testing.assert_array_equal(video, before)


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

    def test_a_frame_rate_is_refused(self, processor, clip):
        with pytest.raises(ValueError, match=r"num_frames.*fps=2"):
            processor(clip, fps=2)

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


class TestErrors:
    @pytest.mark.parametrize(
        ("videos", "message"),
        [
            ([], "videos is empty"),
            ([[]], r"videos\[0\] is <class 'list'>"),
            (None, "videos is <class 'NoneType'>"),
            ([np.zeros((4, 20, 30, 3)), 7], r"videos\[1\] is <class 'int'>"),
            (np.zeros((20, 30)), r"videos is an array of shape \(20, 30\)"),
            ([["a.png", "b.png"]], r"videos\[0\] is <class 'list'>"),
            (np.zeros((0, 20, 30, 3)), r"videos has no frames.*\(0, 20, 30, 3\)"),
            (np.zeros((4, 20, 30, 2)), r"videos must have 1, 3 or 4 channels.*\(4, 20, 30, 2\)"),
            ([np.zeros((4, 20, 30, 3)), torch.zeros(4, 5, 20, 30)], r"videos\[1\] must have 1, 3 or 4 channels"),
            ([np.zeros((20, 30, 3)), np.zeros((30, 20, 3))], r"frames of videos must have one shape.*\(3, 30, 20\)"),
        ],
    )
    def test_what_is_no_video_is_named(self, videos, message, processor):
        with pytest.raises(ValueError, match=message):
            processor(videos)

    def test_the_channel_order_that_is_given_must_fit(self, processor, noise):
        with pytest.raises(ValueError, match="channels"):
            processor(noise, input_data_format="channels_first")

    def test_an_image_and_a_video_do_not_make_one_tensor(self, processor, clip, image):
        with pytest.raises(ValueError, match=r"\(4, 3, 32, 32\), \(1, 3, 32, 32\).*process them apart"):
            processor([clip, image], return_tensors="pt")

    def test_a_missing_file_is_named(self, processor, tmp_path):
        for name in ("nowhere.mp4", "nowhere.png"):
            with pytest.raises(VideoDecodingError, match=name):
                processor(tmp_path / name)

    def test_a_broken_image_is_named(self, processor, image):
        content = Path(image).read_bytes()
        for broken in (b"", b"This is no image.", content[:100], content[:-2000]):
            Path(image).write_bytes(broken)
            with pytest.raises(VideoDecodingError, match=r"image\.png cannot be read as an image"):
                processor(image)

    def test_a_file_of_another_format_is_no_image(self, processor, image, noise):
        with open(image, "wb") as file:
            PIL.Image.fromarray(noise[0]).save(file, "EPS")
        with pytest.raises(VideoDecodingError, match=r"image\.png cannot be read as an image"):
            processor(image)

    def test_a_url_that_fails_is_named(self, processor, server):
        with pytest.raises(VideoDecodingError, match=r"/nowhere\.mp4 cannot be fetched.*404"):
            processor(f"{server}/nowhere.mp4")
        with pytest.raises(VideoDecodingError, match=r"a\.\.b/x\.mp4 cannot be fetched"):
            processor("http://a..b/x.mp4")
        with pytest.raises(VideoDecodingError, match=r"/nowhere\.png cannot be fetched.*404"):
            processor(f"{server}/nowhere.png")
        with pytest.raises(VideoDecodingError, match=r"/text\.mp4"):
            processor(f"{server}/text.mp4")

    def test_a_download_has_a_limit(self, processor, clip, image, server, monkeypatch):
        monkeypatch.setattr("modeling_cover.model.image_reading_cover._MAX_DOWNLOAD_BYTES", 1000)
        for name in ("clip.mp4", "image.png"):
            with pytest.raises(VideoDecodingError, match=f"/{name} has more than 1000 bytes"):
                processor(f"{server}/{name}")

    def test_a_download_that_fails_for_a_while_is_tried_again(self, processor, clip, server, failures):
        failures.extend([503, 429, 500, 503])
        torch.testing.assert_close(pixels(processor, f"{server}/clip.mp4"), pixels(processor, clip), rtol=0, atol=0)
        failures.extend([503] * 6)
        with pytest.raises(VideoDecodingError, match=r"/clip\.mp4 cannot be fetched: the server answers 503"):
            processor(f"{server}/clip.mp4")
        assert len(failures) == 1
        failures.append(403)
        with pytest.raises(VideoDecodingError, match=r"/clip\.mp4 cannot be fetched: the server answers 403"):
            processor(f"{server}/clip.mp4")
        assert len(failures) == 1

    def test_a_download_has_a_time_limit(self, processor, server, monkeypatch):
        monkeypatch.setattr("modeling_cover.model.image_reading_cover._MAX_DOWNLOAD_SECONDS", 0)
        with pytest.raises(VideoDecodingError, match=r"/clip\.mp4 takes more than 0 s to fetch"):
            processor(f"{server}/clip.mp4")

    @pytest.mark.parametrize("name", ["nowhere.mp4", "nowhere.png", "text.mp4", "clip.png"])
    def test_no_message_shows_what_would_be_the_right_to_fetch(self, processor, clip, server, name):
        (Path(clip).parent / "clip.png").write_text("This is no image.")
        address = f"{server.replace('://', '://me:password@')}/{name}?signature=c2VjcmV0"
        with pytest.raises(VideoDecodingError) as raised:
            processor(address)
        text = "".join(traceback.format_exception(raised.value))
        assert f"{server}/{name}" in text
        assert "password" not in text and "c2VjcmV0" not in text

    def test_a_download_need_not_fit_into_memory(self, processor, clip, server, monkeypatch):
        monkeypatch.setattr("modeling_cover.model.image_reading_cover._MAX_BYTES_IN_MEMORY", 1000)
        result = pixels(processor, f"{server}/clip.mp4")
        torch.testing.assert_close(result, pixels(processor, clip), rtol=0, atol=0)

    def test_a_server_that_is_not_there_is_named(self, processor):
        with pytest.raises(VideoDecodingError, match=r"http://127\.0\.0\.1:1/clip\.mp4 cannot be fetched"):
            processor("http://127.0.0.1:1/clip.mp4")


class TestSaving:
    def test_options_survive(self, tmp_path, noise):
        saved = CoverVideoProcessor(
            frame_sampling="dense",
            frame_stride=2,
            num_clips=2,
            num_spatial_crops=3,
            num_frames=16,
            size={"shortest_edge": 32},
            crop_size={"height": 32, "width": 32},
        )
        saved.save_pretrained(tmp_path)
        loaded = CoverVideoProcessor.from_pretrained(tmp_path)
        assert loaded.to_dict() == saved.to_dict()
        assert (loaded.num_spatial_crops, loaded.num_frames) == (3, 16)
        assert (loaded.frame_sampling, loaded.frame_stride, loaded.num_clips) == ("dense", 2, 2)
        torch.testing.assert_close(pixels(loaded, noise), pixels(saved, noise), rtol=0, atol=0)

    def test_options_can_be_changed_while_loading(self, tmp_path):
        CoverVideoProcessor().save_pretrained(tmp_path)
        loaded = CoverVideoProcessor.from_pretrained(tmp_path, num_spatial_crops=3, num_frames=32)
        assert (loaded.num_spatial_crops, loaded.num_frames) == (3, 32)

    def test_the_defaults_are_those_of_a_vit(self):
        processor = CoverVideoProcessor()
        assert (processor.num_frames, processor.num_spatial_crops) == (8, 1)
        assert (processor.frame_sampling, processor.frame_stride, processor.num_clips) == ("uniform", 1, 1)
        assert processor.size["shortest_edge"] == processor.crop_size["height"] == processor.crop_size["width"] == 224
        assert list(processor.image_mean) == list(processor.image_std) == [0.5, 0.5, 0.5]
