# SPDX-License-Identifier: Apache-2.0
"""Calls that could be taken for something else: the processor and the pipeline agree on them, or an error says how."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from clips import moving_frames, write_clip
from modeling_cover import CoverVideoClassificationPipeline, CoverVideoProcessor
from modeling_cover.model.image_pixels_cover import rgb_pixels
from tiny import pixels, save_tiny, tiny_processor
from transformers import pipeline


HEADS = {"motions": {"labels": ["left", "right", "up", "down"]}}
FPS = 24


@pytest.fixture(scope="module")
def classify(tmp_path_factory) -> CoverVideoClassificationPipeline:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_tiny(folder, HEADS, std=0.3)
    return pipeline("cover-video-classification", model=str(folder), device="cpu", top_k=None)


@pytest.fixture(scope="module")
def processor() -> CoverVideoProcessor:
    return tiny_processor()


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return moving_frames(12)


@pytest.fixture(scope="module")
def files(tmp_path_factory, frames) -> list[str]:
    """Two frames in image files."""
    folder = tmp_path_factory.mktemp("files")
    for number in range(2):
        PIL.Image.fromarray(frames[6 * number]).save(folder / f"{number}.png")
    return [str(folder / "0.png"), str(folder / "1.png")]


def scores(answer: list[dict]) -> dict[str, float]:
    return {entry["label"]: pytest.approx(entry["score"], abs=1e-5) for entry in answer}


def same(one: list[dict], other: list[dict]) -> bool:
    return {entry["label"]: entry["score"] for entry in one} == scores(other)


class TestListsOfImages:
    @pytest.mark.parametrize("kind", [list, tuple])
    @pytest.mark.parametrize(
        "to_frame", [PIL.Image.fromarray, np.asarray, torch.from_numpy, lambda frame: frame.transpose(2, 0, 1)]
    )
    def test_the_pipeline_takes_them_for_neither_one_video_nor_several_images(self, classify, frames, kind, to_frame):
        images = kind(to_frame(frame) for frame in frames)
        for options in ({}, {"window": 0.2, "fps": FPS}):
            with pytest.raises(ValueError, match=r"for one video, pass \[frames\].*for several images, a generator"):
                classify(images, **options)

    def test_the_ways_that_the_error_names_do_what_it_says(self, classify, processor, frames):
        images = [PIL.Image.fromarray(frame) for frame in frames]
        expected = classify(frames)
        (as_list,) = classify([images])
        assert same(as_list, expected) and same(classify(np.stack(images)), expected)
        torch.testing.assert_close(pixels(processor, images), pixels(processor, frames), rtol=0, atol=0)
        torch.testing.assert_close(pixels(processor, [images]), pixels(processor, frames), rtol=0, atol=0)
        answers = list(classify(image for image in images[:3]))
        assert len(answers) == 3
        for answer, image in zip(answers, images, strict=False):
            assert same(answer, classify(image))

    def test_a_list_of_clips_is_several_videos_however_they_come(self, classify, processor, frames):
        clips = [
            frames,
            list(frames[::-1]),
            [PIL.Image.fromarray(frame) for frame in frames],
            torch.from_numpy(frames),
        ]
        each = [classify(frames), classify(frames[::-1]), classify(frames), classify(frames)]
        for inputs in (clips, tuple(clips)):
            answers = classify(inputs)
            assert len(answers) == 4 and all(map(same, answers, each))
        assert pixels(processor, clips).shape[0] == 4

    def test_a_list_of_files_is_several_images(self, classify, processor, files):
        for inputs in (files, tuple(files), [Path(file) for file in files]):
            answers = classify(inputs)
            assert len(answers) == 2 and all(map(same, answers, map(classify, files)))
            assert pixels(processor, inputs).shape[:2] == (2, 1)
        with pytest.raises(ValueError, match=r"videos\[0\] is <class 'list'>"):
            processor([files])
        with pytest.raises(ValueError, match="expected one video or image for each item of the list, got a list of 2"):
            classify([files])

    def test_clips_are_not_averaged_as_if_they_were_views_of_one(self, classify, frames):
        for nested in ([[frames, frames]], [np.stack([frames, frames])]):
            for options in ({}, {"window": 0.2, "fps": FPS}):
                with pytest.raises(ValueError, match="expected one video or image for each item of the list, got a"):
                    classify(nested, **options)


class TestFiveAxes:
    @pytest.mark.parametrize("options", [{}, {"window": 0.2, "fps": FPS}])
    @pytest.mark.parametrize("is_tensor", [False, True])
    @pytest.mark.parametrize("channels_first", [False, True])
    def test_they_are_several_clips_in_both(self, classify, processor, frames, options, is_tensor, channels_first):
        batch = np.stack([frames, frames[::-1]])
        each = [classify(clip, **options) for clip in batch]
        batch = np.moveaxis(batch, -1, 2) if channels_first else batch
        batch = torch.from_numpy(batch.copy()) if is_tensor else batch
        answers = classify(batch, **options)
        assert len(answers) == 2
        for answer, expected in zip(answers, each, strict=True):
            assert [entry["label"] for entry in answer] == [entry["label"] for entry in expected]
            assert [entry["score"] for entry in answer] == pytest.approx(
                [entry["score"] for entry in expected], abs=1e-5
            )
        expected = torch.cat([pixels(processor, frames), pixels(processor, frames[::-1])])
        torch.testing.assert_close(pixels(processor, batch), expected, rtol=0, atol=0)


class TestFloats:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_those_of_0_to_1_are_scaled(self, processor, frames, dtype):
        expected = pixels(processor, frames)
        small = (frames / 255).astype(dtype)
        for video in (small, torch.from_numpy(small), list(small), small.transpose(0, 3, 1, 2), [small], small[None]):
            torch.testing.assert_close(pixels(processor, video), expected, rtol=0, atol=0.02)
        torch.testing.assert_close(pixels(processor, frames.astype(dtype)), expected, rtol=0, atol=0.02)
        image = pixels(processor, small[0])
        torch.testing.assert_close(image, pixels(processor, frames[0]), rtol=0, atol=0.02)

    def test_the_pipeline_answers_alike(self, classify, frames):
        expected = classify(frames)
        for video in (frames.astype(np.float32), (frames / 255).astype(np.float32)):
            assert {entry["label"]: entry["score"] for entry in classify(video)} == {
                entry["label"]: pytest.approx(entry["score"], abs=0.01) for entry in expected
            }

    def test_a_dark_frame_of_a_bright_clip_stays_dark(self, processor, frames):
        dark = frames.astype(np.float32)
        dark[0] = 1.0
        torch.testing.assert_close(
            pixels(processor, list(dark)), pixels(processor, dark.astype(np.uint8)), rtol=0, atol=0.02
        )
        black = np.zeros_like(dark)
        torch.testing.assert_close(
            pixels(processor, [black, dark]),
            pixels(processor, [black.astype(np.uint8), dark.astype(np.uint8)]),
            rtol=0,
            atol=0.02,
        )

    @pytest.mark.parametrize(
        ("low", "high", "found"),
        [
            (-0.1, 1, "-0.1 to 1"),
            (-1, 255, "-1 to 255"),
            (0, 256, "0 to 256"),
            (0, 1.2, "0 to 1.2"),
            (0, float("nan"), "nan to nan"),
            (0, float("inf"), "0 to inf"),
        ],
    )
    def test_what_is_of_neither_is_refused(self, processor, classify, low, high, found):
        video = np.full((4, 40, 40, 3), low, np.float32)
        video[2, 5, 5, 0] = high
        message = f"floats must have values of 0 to 1, or of 0 to 255, got {found}"
        for call in (processor, classify, lambda video: processor([video]), lambda video: processor(list(video))):
            with pytest.raises(ValueError, match=message):
                call(video)
        assert torch.isfinite(pixels(processor, np.nan_to_num(video, posinf=0), do_rescale=False)).all()

    def test_both_scales_in_one_call_are_refused(self, processor, frames):
        bright = frames.astype(np.float32)
        with pytest.raises(ValueError, match=r"one call .*: videos\[1\] has none above .*, and videos\[0\] has up to"):
            processor([bright, bright / 255])
        with pytest.raises(
            ValueError, match="the frames of videos must have one kind of values, got floats and whole"
        ):
            processor([frames[0], *(frames[1:] / 255)])

    def test_truth_is_white(self, processor, frames):
        mask = frames > 128
        expected = pixels(processor, mask.astype(np.uint8) * 255)
        torch.testing.assert_close(pixels(processor, mask), expected, rtol=0, atol=0)

    def test_an_image_of_floats_is_taken_alike(self, processor):
        grey = np.linspace(0, 255, 40 * 40, dtype=np.float32).reshape(40, 40)
        expected = np.asarray(PIL.Image.fromarray(grey).convert("L"))
        for values in (grey, grey / 255):
            np.testing.assert_allclose(rgb_pixels(PIL.Image.fromarray(values))[..., 0], expected, atol=1)
        with pytest.raises(ValueError, match=r"floats must have values of 0 to 1, or of 0 to 255, got 0 to 1\.5"):
            processor(PIL.Image.fromarray(grey / 170))

    def test_it_is_the_range_of_the_whole_image_that_counts(self, monkeypatch):
        monkeypatch.setattr("modeling_cover.model.image_pixels_cover._PIXELS_AT_A_TIME", 40)
        image = PIL.Image.fromarray(np.repeat(np.float32([0, 1, 200, 1]), 10).reshape(40, 1).repeat(40, axis=1))
        assert rgb_pixels(image)[::10, 0, 0].tolist() == [0, 1, 200, 1]


class TestWindowsOfFrames:
    @pytest.fixture(scope="class")
    @staticmethod
    def film() -> np.ndarray:
        return moving_frames(60, 40, 40)

    def test_each_is_answered_as_the_frames_between_its_ends(self, classify, film):
        timeline = classify(film, window=1.0, stride=0.5, fps=FPS)
        starts = sorted({entry["start"] for entry in timeline})
        assert starts == [0.0, 0.5, 1.0, 1.5]
        for start in starts:
            entries = [entry for entry in timeline if entry["start"] == start]
            assert entries[0]["end"] == start + 1
            assert same(entries, classify(film[int(start * FPS) : int((start + 1) * FPS)]))

    def test_they_are_those_of_a_file_of_the_same_frames(self, classify, film, tmp_path):
        path = write_clip(tmp_path / "film.mp4", film)
        for window, stride in ((0.7, 0.3), (0.01, 0.5), (9, None)):
            of_file = [(entry["start"], entry["end"]) for entry in classify(path, window=window, stride=stride)]
            of_array = classify(film, window=window, stride=stride, fps=FPS)
            assert [(entry["start"], entry["end"]) for entry in of_array] == [
                (start, pytest.approx(end)) for start, end in of_file
            ]

    def test_frames_of_0_to_1_and_lists_of_them_too(self, classify, film):
        expected = classify(film, window=1.0, fps=FPS)
        dark = film.astype(np.float32)
        dark[:24] = np.minimum(dark[:24], 1)  # a window of nothing above 1
        for video, whole in (((film / 255).astype(np.float32), film), (dark, dark.astype(np.uint8))):
            answer = classify(video, window=1.0, fps=FPS)
            assert answer == [
                {**entry, "score": pytest.approx(entry["score"], abs=1e-5)}
                for entry in classify(whole, window=1.0, fps=FPS)
            ]
        (listed,) = classify([list(film)], window=1.0, fps=FPS)
        assert listed == expected

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"window": 1.0}, "window: frames that are no file do not tell when they are displayed, give fps="),
            ({"fps": 24}, "fps is of arrays that are classified in windows: give `window`, too"),
            ({"window": 1.0, "fps": 0}, "fps must be a positive number of frames a second, got 0"),
            ({"window": 0, "fps": 24}, "window must be a positive number of seconds, got 0"),
        ],
    )
    def test_what_is_missing_is_named(self, classify, film, options, message):
        with pytest.raises(ValueError, match=message):
            classify(film, **options)

    def test_a_file_and_an_image_are_refused(self, classify, film, tmp_path):
        path = write_clip(tmp_path / "film.mp4", film)
        with pytest.raises(ValueError, match="fps: each window has num_frames frames, and a file its times"):
            classify(path, window=1.0, fps=FPS)
        for image in (film[0], PIL.Image.fromarray(film[0])):
            with pytest.raises(ValueError, match="window: expected a file, or the frames of one video"):
                classify(image, window=1.0, fps=FPS)
