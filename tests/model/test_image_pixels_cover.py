# SPDX-License-Identifier: Apache-2.0
"""Pixels of images: of 16 bits, transparent, with metadata that are broken or too large, and under any name."""

import io
import json
import os
import struct
import sys
import zlib

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
from checkpoints import save_quickstart
from clips import indexed_frames, write_clip
from modeling_cover import CoverVideoProcessor, VideoDecodingError, read_video
from modeling_cover.commands import predict
from modeling_cover.model.image_pixels_cover import image_kind
from modeling_cover.model.image_reading_cover import image_to_tensor, read_image


RAMP = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (48, 1))
PICTURE = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)


def pixels(source) -> np.ndarray:
    """(H, W, 3), uint8."""
    image = source if isinstance(source, PIL.Image.Image) else read_image(source)
    return image_to_tensor(image).permute(1, 2, 0).numpy()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(*chunks: bytes, behind: tuple[bytes, ...] = ()) -> bytes:
    """`PICTURE` as PNG, with chunks before its pixels and behind them."""
    file = io.BytesIO()
    PIL.Image.fromarray(PICTURE).save(file, "PNG")
    content = file.getvalue()
    end = content.index(b"IEND") - 4
    header = 8 + 25  # signature, IHDR
    return b"".join([content[:header], *chunks, content[header:end], *behind, content[end:]])


class TestSixteenBits:
    @pytest.mark.parametrize(
        ("name", "dtype"), [("a.png", np.uint16), ("a.tif", np.uint16), ("a.tiff", ">u2"), ("b.tif", np.int32)]
    )
    def test_a_file_is_scaled_by_257(self, tmp_path, name, dtype):
        PIL.Image.fromarray(RAMP.astype(dtype)).save(tmp_path / name)
        found = pixels(tmp_path / name)
        assert (found == found[..., :1]).all()
        assert np.abs(found[..., 0] - RAMP / 257).max() <= 0.5
        assert 127 <= found.mean() <= 128

    @pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
    def test_so_is_an_image_in_memory_also_through_the_processor(self, mode):
        dtype = {"I;16": "<u2", "I;16B": ">u2", "I": np.int32}[mode]
        image = PIL.Image.frombytes(mode, (64, 48), RAMP.astype(dtype).tobytes())
        assert np.abs(pixels(image)[..., 0] - RAMP / 257).max() <= 0.5
        processor = CoverVideoProcessor(do_resize=False, do_center_crop=False, do_normalize=False)
        clip = processor(image, return_tensors="pt")["pixel_values"]
        np.testing.assert_allclose(clip[0, 0, 0].numpy(), RAMP / 65535, atol=1 / 255)

    def test_a_value_that_is_transparent_becomes_white(self, tmp_path):
        PIL.Image.fromarray(RAMP).save(tmp_path / "a.png", transparency=int(RAMP[0, 20]))
        found = pixels(tmp_path / "a.png")[..., 0]
        expected = np.where(RAMP[0, 20] == RAMP, 255, RAMP / 257)
        assert np.abs(found - expected).max() <= 0.5

    def test_a_tiff_whose_white_is_zero_is_no_negative(self, tmp_path):
        PIL.Image.fromarray(65535 - RAMP).save(tmp_path / "a.tif", tiffinfo={262: 0})
        assert np.abs(pixels(tmp_path / "a.tif")[..., 0] - RAMP / 257).max() <= 0.5

    def test_in_colour_they_are_as_pil_has_them(self, tmp_path):
        deep = np.stack([RAMP, RAMP[:, ::-1], RAMP // 2], axis=-1)
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
        content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 48, 16, 2, 0, 0, 0))
        content += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        assert np.abs(pixels(content) - deep / 257).max() <= 1

    @pytest.mark.parametrize("image", [PIL.Image.new("I", (4, 4), 70_000), PIL.Image.new("I", (4, 4), -1)])
    def test_values_of_another_range_are_refused(self, image):
        with pytest.raises(ValueError, match="must have values of 0 to 65535"):
            image_to_tensor(image)
        with pytest.raises(ValueError, match="floats must have values of 0 to 1, or of 0 to 255, got"):
            image_to_tensor(image.convert("F"))

    def test_arrays_of_16_bits_are_refused_where_they_are_not_of_8(self):
        processor = CoverVideoProcessor()
        with pytest.raises(
            ValueError, match="videos has values from 0 to 65535, expected 0 to 255: divide what is of 16 bits by 257"
        ):
            processor(np.stack([RAMP] * 3, axis=-1))
        small = processor(PICTURE.astype(np.uint16), return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(small, processor(PICTURE, return_tensors="np")["pixel_values"], atol=0.02)


HUGE_TEXT = b"Comment\0\0" + zlib.compress(bytes(2**21))


class TestMetadata:
    def test_damage_to_its_pixels_is_still_found(self):
        content = bytearray(png(chunk(b"zTXt", HUGE_TEXT)))
        place = content.index(b"IDAT") + 40
        content[place : place + 20] = bytes(20)
        with pytest.raises(VideoDecodingError, match=r"<\d+ bytes> cannot be read as an image"):
            read_image(bytes(content))
        with pytest.raises(VideoDecodingError):
            read_image(png(chunk(b"zTXt", HUGE_TEXT))[:-3000])

    def test_an_orientation_beside_a_text_that_is_too_large_still_turns(self, tmp_path):
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        content = png(chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")), chunk(b"zTXt", HUGE_TEXT))
        np.testing.assert_array_equal(pixels(content), np.rot90(PICTURE, -1))

    def test_a_jpeg_with_broken_exif_is_read(self, tmp_path):
        image = PIL.Image.fromarray(PICTURE)
        for exif in (b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff"):
            image.save(tmp_path / "a.jpg")
            plain = pixels(tmp_path / "a.jpg")
            image.save(tmp_path / "a.jpg", exif=exif)
            np.testing.assert_array_equal(pixels(tmp_path / "a.jpg"), plain)


class TestNames:
    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
    @pytest.mark.parametrize("name", ["photo", "photo.jfif", "photo.mp4", "photo.JPG", None])
    def test_an_image_is_one_whatever_it_is_called(self, tmp_path, format, name):
        file = io.BytesIO()
        PIL.Image.fromarray(PICTURE).save(file, format)
        processor = CoverVideoProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        expected = processor(PIL.Image.open(file), return_tensors="np")["pixel_values"]
        assert expected.shape == (1, 1, 3, 32, 32)
        sources = [file.getvalue(), file]
        if name is not None:
            (tmp_path / name).write_bytes(file.getvalue())
            sources = [str(tmp_path / name), tmp_path / name]
        for source in sources:
            np.testing.assert_array_equal(processor(source, return_tensors="np")["pixel_values"], expected)
            frames, metadata = processor.fetch_videos(source)
            assert len(frames) == metadata.total_num_frames == 1

    def test_the_kind_is_told_by_the_content(self, tmp_path):
        write_clip(tmp_path / "clip.mp4", indexed_frames(4))
        assert image_kind(tmp_path / "clip.mp4") is None
        assert image_kind(tmp_path / "nowhere") is None
        assert image_kind(b"BM is how this text begins") is None
        assert image_kind(png()) == "PNG"

    def test_a_video_dataset_is_told_that_its_row_is_an_image(self, tmp_path):
        (tmp_path / "a.mp4").write_bytes(png())
        with pytest.raises(
            VideoDecodingError, match=r"a\.mp4 cannot be read as a video: its content is an image \(PNG\)"
        ):
            read_video(tmp_path / "a.mp4", lambda metadata: [0])

    def test_a_file_object_is_called_by_its_name_and_not_by_its_place_in_memory(self, tmp_path):
        (tmp_path / "a.mp4").write_bytes(b"rubbish")
        with (
            open(tmp_path / "a.mp4", "rb") as file,
            pytest.raises(VideoDecodingError, match=r"^/.*/a\.mp4 cannot be read"),
        ):
            read_video(file, lambda metadata: [0])
        with pytest.raises(VideoDecodingError, match=r"^<a file object> cannot be read"):
            read_video(io.BytesIO(b"rubbish"), lambda metadata: [0])

    def test_predict_answers_for_each(self, tmp_path, monkeypatch, capsys):
        save_quickstart(tmp_path / "model")
        names = [str(tmp_path / name) for name in ("photo", "photo.jfif", "photo.mp4")]
        for name in names:
            PIL.Image.fromarray(PICTURE).save(name, "JPEG")
        monkeypatch.setattr(sys, "argv", ["predict.py", *names, "--model", str(tmp_path / "model"), "--json"])
        assert predict.main() == 0
        out = capsys.readouterr().out
        first, second, third = json.loads(out[out.index("[\n") :])  # behind what libraries say when they are imported
        assert first["heads"] == second["heads"] == third["heads"]
        assert [os.path.basename(entry["file"]) for entry in (first, second, third)] == [
            "photo",
            "photo.jfif",
            "photo.mp4",
        ]
