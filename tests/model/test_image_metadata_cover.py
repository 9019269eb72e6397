# SPDX-License-Identifier: Apache-2.0
"""Images become the pixels that they show, whatever their bit depth is and whatever their metadata are."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import PIL.Image
import pytest
from modeling_cover import CoverVideoProcessor, VideoDecodingError
from modeling_cover.model.image_reading_cover import image_to_tensor, read_image


RAMP = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (8, 1))
NOISE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
UPRIGHT = np.rot90(NOISE, -1)  # of orientation 6
END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))


def pixels_of(image: PIL.Image.Image) -> np.ndarray:
    """(H, W, 3)"""
    return image_to_tensor(image).permute(1, 2, 0).numpy()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(image: PIL.Image.Image, *chunks: bytes, **options) -> bytes:
    """A PNG file with some more chunks before its pixels."""
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    start = len(b"\x89PNG\r\n\x1a\n") + 25
    return file.getvalue()[:start] + b"".join(chunks) + file.getvalue()[start:]


def deep_png(values: np.ndarray, colour_type: int, *chunks: bytes) -> bytes:
    """A PNG file of 16 bits, of values (H, W) or (H, W, channels), uint16."""
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    parts = (chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(lines)), END)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def exif(*entries: bytes, byte_order: str = "<") -> bytes:
    """EXIF data of orientation 6, and of other entries before it."""
    mark = b"II*\0" if byte_order == "<" else b"MM\0*"
    orientation = struct.pack(f"{byte_order}HHIHH", 0x0112, 3, 1, 6, 0)
    counted = struct.pack(f"{byte_order}IH", 8, len(entries) + 1)
    return mark + counted + b"".join(entries) + orientation + bytes(4)


class TestSixteenBits:
    @pytest.mark.parametrize(
        ("mode", "dtype"), [("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"), ("I;16N", "=u2"), ("I", "=i4")]
    )
    def test_grey_is_scaled(self, mode, dtype):
        image = PIL.Image.frombytes(mode, RAMP.shape[::-1], RAMP.astype(dtype).tobytes())
        found = pixels_of(image)
        np.testing.assert_allclose(found, np.stack([RAMP / 257] * 3, axis=-1), atol=0.5)
        assert (found[:, 0] == 0).all()
        assert (found[:, -1] == 255).all()

    @pytest.mark.parametrize("form", ["PNG", "TIFF"])
    def test_a_file_that_pil_has_opened_is_scaled(self, form):
        file = io.BytesIO()
        PIL.Image.fromarray(RAMP).save(file, form)
        with PIL.Image.open(file) as image:
            np.testing.assert_allclose(pixels_of(image)[..., 1], RAMP / 257, atol=0.5)

    def test_a_file_of_grey_is_scaled_and_its_transparent_value_is_white(self):
        chosen = int(RAMP[0, 3])
        for content in (deep_png(RAMP, 0), deep_png(RAMP, 0, chunk(b"tRNS", struct.pack(">H", chosen)))):
            expected = np.where((chosen == RAMP) & (b"tRNS" in content), 255, RAMP / 257)
            np.testing.assert_allclose(pixels_of(read_image(content))[..., 0], expected, atol=0.5)
            with PIL.Image.open(io.BytesIO(content)) as image:
                np.testing.assert_allclose(pixels_of(image)[..., 0], expected, atol=0.5)

    def test_colours_are_scaled(self):
        colours = np.stack([RAMP, RAMP[:, ::-1], RAMP // 2], axis=-1)
        np.testing.assert_allclose(pixels_of(read_image(deep_png(colours, 2))), colours / 257, atol=1)
        opaque = np.full((*RAMP.shape, 1), 65535, np.uint16)
        found = pixels_of(read_image(deep_png(np.concatenate([colours, opaque], axis=-1), 6)))
        np.testing.assert_allclose(found, colours / 257, atol=1)
        found = pixels_of(read_image(deep_png(np.concatenate([RAMP[..., None], opaque], axis=-1), 4)))
        np.testing.assert_allclose(found[..., 2], RAMP / 257, atol=1)

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            (
                np.full((4, 4), 255.5, np.float32),
                "floats must have values of 0 to 1, or of 0 to 255, got 255.5 to 255.5",
            ),
            (np.full((4, 4), 70000, np.int32), "must have values of 0 to 65535, got 70000 to 70000"),
            (np.full((4, 4), -1, np.int32), "must have values of 0 to 65535, got -1 to -1"),
        ],
    )
    def test_values_of_no_defined_range_are_refused(self, values, said):
        with pytest.raises(ValueError, match=said):
            image_to_tensor(PIL.Image.fromarray(values))
        with pytest.raises(ValueError, match=rf"videos\[1\]: an? .*{said[-20:]}"):
            CoverVideoProcessor()([NOISE, PIL.Image.fromarray(values)])

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV"])
    def test_other_modes_show_the_same(self, mode):
        grey = PIL.Image.fromarray(NOISE).convert("L").point(lambda level: 255 * (level > 127))
        steps = {"La": ["LA"], "RGBa": ["RGBA"], "PA": ["P"], "HSV": ["RGB"], "CMYK": ["RGB"]}.get(mode, [])
        image = grey
        for step in (*steps, mode):
            image = image.convert(step)
        assert image.mode == mode
        np.testing.assert_allclose(pixels_of(image)[..., 0].astype(int), np.asarray(grey).astype(int), atol=1)


class TestArrays:
    @pytest.fixture
    def processor(self) -> CoverVideoProcessor:
        return CoverVideoProcessor(do_resize=False, do_center_crop=False, do_normalize=False, num_frames=2)

    def test_they_are_left_alone_where_the_options_say_what_they_hold(self, processor):
        for options in ({"do_rescale": False}, {"rescale_factor": 1 / 65535}):
            found = processor(RAMP[None], return_tensors="pt", **options)["pixel_values"].numpy()
            np.testing.assert_allclose(found[0, 0, 0], RAMP * options.get("rescale_factor", 1), rtol=1e-5)

    @pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint16, np.uint32, np.int64])
    def test_other_integers_must_be_of_0_to_255(self, processor, dtype):
        clip = NOISE[None].astype(dtype)
        assert processor(clip)["pixel_values"][0].max() <= 1
        clip[0, 5, 5, 1] = 256
        with pytest.raises(
            ValueError, match=r"videos has values from 0 to 256, expected 0 to 255: divide what is of 16 bits by 257"
        ):
            processor(clip)


class TestMetadata:
    """The pixels are what counts."""

    LONG = b"k\0\0" + zlib.compress(bytes(2**20 + 1))

    @pytest.mark.parametrize(
        "broken",
        [
            chunk(b"eXIf", b"no EXIF"),
            chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
            chunk(b"eXIf", exif()[:12]),
            chunk(b"zTXt", LONG),
            chunk(b"iTXt", b"k\0\1\0en\0k\0" + zlib.compress(bytes(2**20 + 1))),
            chunk(b"iCCP", LONG),
            chunk(b"iCCP", b"no profile"),
            chunk(b"iCCP", b"k\0\7"),
            b"".join(chunk(b"tEXt", b"k\0" + bytes(2**20 - 2)) for _ in range(65)),
            chunk(b"tEXt", b"k\0text")[:-1] + b"?",
            chunk(b"zTXt", b"k\0\7"),
            chunk(b"pHYs", b"1"),
            chunk(b"gAMA", b"1"),
            chunk(b"cHRM", b"1"),
            chunk(b"sRGB", b""),
            chunk(b"acTL", b"1"),
            chunk(b"fcTL", b"1"),
            chunk(b"tRNS", b"\0\1\0\2\0\3")[:-1] + b"?",
        ],
    )
    def test_a_png_file_is_read_whatever_lies_beside_its_pixels(self, broken):
        image = PIL.Image.fromarray(NOISE)
        assert (pixels_of(read_image(png(image, broken))) == NOISE).all()
        with_orientation = png(image, broken, chunk(b"eXIf", exif()))
        assert (pixels_of(read_image(with_orientation)) == UPRIGHT).all()
        behind = png(image)[: -len(END)] + broken + END
        assert (pixels_of(read_image(behind)) == NOISE).all()
        for cut in (1, 5, 11):
            assert (pixels_of(read_image(behind[: -len(END) - cut])) == NOISE).all()

    def test_the_orientation_is_found_in_whatever_tells_it(self):
        image, bad = PIL.Image.fromarray(NOISE), chunk(b"zTXt", self.LONG)
        xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
        digits = "\nexif\n 99\n" + exif().hex()
        resolution = struct.pack("<HHI4s", 0x011A, 2, 4, b"abc\0")  # a text, where a number should be
        far = struct.pack("<HHII", 0x010E, 2, 99, 2**31)  # a text beyond the end
        for told in (
            [chunk(b"eXIf", exif())],
            [chunk(b"eXIf", exif(byte_order=">"))],
            [chunk(b"eXIf", exif(resolution, far))],
            [chunk(b"iTXt", xmp)],
            [chunk(b"iTXt", xmp), bad],
            [chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(digits.encode()))],
        ):
            assert (pixels_of(read_image(png(image, *told))) == UPRIGHT).all()

    @pytest.mark.parametrize("options", [{}, {"exif": b"Exif\0\0no EXIF"}, {"icc_profile": b"no profile"}])
    def test_a_webp_file_is_read_whatever_lies_beside_its_pixels(self, options):
        file = io.BytesIO()
        PIL.Image.fromarray(NOISE).save(file, "WEBP", lossless=True, xmp=b"<no XMP", **options)
        content = file.getvalue()
        end_of_pixels = content.index(b"EXIF" if "exif" in options else b"XMP ")
        for kept in range(end_of_pixels, len(content) + 1):
            assert (pixels_of(read_image(content[:kept])) == NOISE).all()
        with pytest.raises(VideoDecodingError, match="cannot be read as an image"):
            read_image(content[: end_of_pixels - 2])

    def test_what_a_webp_file_has_behind_its_pixels_turns_it(self):
        file = io.BytesIO()
        PIL.Image.fromarray(NOISE).save(file, "WEBP", lossless=True, exif=b"Exif\0\0" + exif(), xmp=bytes(99))
        for content in (file.getvalue(), file.getvalue()[:-9]):
            assert (pixels_of(read_image(content)) == UPRIGHT).all()

    def test_an_entry_that_refers_to_much_is_not_copied(self):
        # Each of 1000 entries is the same text of 1 MiB.
        entries = [struct.pack("<HHII", 0x8000 + number, 2, 2**20, 0) for number in range(1000)]
        image = png(PIL.Image.fromarray(NOISE), chunk(b"eXIf", exif(*entries) + bytes(2**20)))
        tracemalloc.start()
        try:
            read_image(image)
            assert tracemalloc.get_traced_memory()[1] < 2**25
        finally:
            tracemalloc.stop()

    def test_a_text_that_inflates_is_not_inflated(self):
        bomb = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**28)))
        tracemalloc.start()
        try:
            image = read_image(png(PIL.Image.fromarray(NOISE), bomb))
            assert tracemalloc.get_traced_memory()[1] < 2**25
        finally:
            tracemalloc.stop()
        assert (pixels_of(image) == NOISE).all()


class TestTiff:
    """PIL copies what each entry refers to, and decodes a tile whole however small the image is."""

    def save(self, **options) -> bytes:
        file = io.BytesIO()
        PIL.Image.fromarray(NOISE).save(file, "TIFF", **options)
        return file.getvalue()

    def with_entries(self, entries: list[bytes], directory: bytes = b"") -> bytes:
        """A file whose first directory has these entries before its own."""
        content = self.save()
        (place,) = struct.unpack_from("<I", content, 4)
        (count,) = struct.unpack_from("<H", content, place)
        own = content[place + 2 : place + 2 + 12 * count]
        table = struct.pack("<H", count + len(entries)) + own + b"".join(entries) + bytes(4)
        return content[:4] + struct.pack("<I", len(content)) + content[8:] + table + directory

    @pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "jpeg", "packbits"])
    def test_a_file_that_pil_writes_is_read(self, compression):
        found = pixels_of(read_image(self.save(compression=compression)))
        assert np.abs(found.astype(int) - NOISE).mean() < (20 if compression == "jpeg" else 1e-9)

    def test_one_of_few_more_entries_is_read(self):
        assert (pixels_of(read_image(self.with_entries([struct.pack("<HHII", 60000, 2, 4, 0)]))) == NOISE).all()

    def test_entries_that_refer_to_the_same_bytes_again_and_again_are_refused(self):
        entries = [struct.pack("<HHII", 60000 + number, 2, 2**20, 0) for number in range(300)]
        content = self.with_entries(entries, bytes(2**20))
        tracemalloc.start()
        try:
            with pytest.raises(VideoDecodingError, match=r"its entries refer to \d+ bytes, and it has \d+"):
                read_image(content)
            assert tracemalloc.get_traced_memory()[1] < 2**25
        finally:
            tracemalloc.stop()

    def test_tiles_larger_than_an_image_may_be_are_refused(self):
        sides = [struct.pack("<HHII", tag, 4, 1, 12000) for tag in (322, 323)]
        with pytest.raises(VideoDecodingError, match="it has tiles of 12000 x 12000 pixels"):
            read_image(self.with_entries(sides))


class TestJpeg:
    """Each scan goes through all pixels, and one that says nothing new takes few bytes."""

    def segment(self, code: int, content: bytes) -> bytes:
        return b"\xff" + bytes([code]) + struct.pack(">H", len(content) + 2) + content

    def progressive(self, side: int, num_scans: int) -> bytes:
        """A grey image, in one scan of zeros for the means of its blocks, and others for the rest of them."""
        blocks = (side // 8) ** 2
        rest = "".join("0" + format(min(16383, max(0, left - 16384)), "014b") for left in range(blocks, 0, -32767))

        def scan(first: int, last: int, bits: str) -> bytes:
            bits += "1" * (-len(bits) % 8)
            data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
            return self.segment(0xDA, bytes([1, 1, 0, first, last, 0])) + data

        head = [
            self.segment(0xDB, bytes([0]) + bytes([1] * 64)),
            self.segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + bytes([1, 0x11, 0])),
            self.segment(0xC4, bytes([0x00, 1] + [0] * 15 + [0x00])),  # one bit: nothing changes
            self.segment(0xC4, bytes([0x10, 1] + [0] * 15 + [0xE0])),  # and 14: so many blocks are zero
        ]
        scans = scan(0, 0, "0" * blocks) + (num_scans - 1) * scan(1, 63, rest)
        return b"\xff\xd8" + b"".join(head) + scans + b"\xff\xd9"

    def test_scans_that_go_through_too_many_pixels_are_refused(self):
        content = self.progressive(4096, 4000)
        assert len(content) < 2**18
        with pytest.raises(
            VideoDecodingError, match="its pixels are encoded again and again: 16777216 in more than 64"
        ):
            read_image(content)

    def test_many_scans_of_a_small_image_are_read(self):
        assert (pixels_of(read_image(self.progressive(256, 1000))) == 128).all()
        assert (pixels_of(read_image(self.progressive(4096, 3))) == 128).all()

    def test_what_looks_like_a_scan_within_a_profile_is_none(self):
        comments = b"".join(self.segment(0xFE, b"\xff\xda\0\4" * 16_000) for _ in range(4))
        content = self.progressive(4096, 3)
        assert read_image(content[:2] + comments + content[2:]).size == (4096, 4096)

    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
    def test_a_file_that_pil_writes_is_read(self, options):
        noise = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
        file = io.BytesIO()
        PIL.Image.fromarray(noise).save(file, "JPEG", quality=95, **options)
        assert (pixels_of(read_image(file.getvalue())) == np.asarray(PIL.Image.open(file))).all()

    @pytest.mark.parametrize("length", [3, 4, 6, 30, 2**16 - 1, 2**16, 2**16 + 5])
    def test_a_file_that_ends_early_ends(self, length):
        content = self.progressive(2048, 100)[:length]
        with pytest.raises(VideoDecodingError, match="cannot be read as an image"):
            read_image(b"\xff\xd8\xff\xfe\0\3\0" * (length > 30) + content)
