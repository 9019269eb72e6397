# SPDX-License-Identifier: Apache-2.0
"""`CoverVideoProcessor` takes videos and images however they come, or says what is wrong with them."""

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
from clips import write_clip
from modeling_cover.model.video_decoding_cover import VideoDecodingError, read_video
from modeling_cover.model.video_processing_cover import CoverVideoProcessor
from tiny import pixels


@pytest.fixture
def failures(monkeypatch):
    """The status of the answers to come, the last first."""
    monkeypatch.setattr("modeling_cover.model.file_access_cover.RETRY_WAITS", (0.0,) * 4)
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
