# SPDX-License-Identifier: Apache-2.0
"""Folders named after classes: links, files beside them, suffixes, and what is said of what is there."""

import os
from pathlib import Path

import PIL.Image
import pytest
from clips import indexed_frames, write_clip
from modeling_cover import VideoDecodingError, read_video
from modeling_cover.data.sources import Source, read_sources
from modeling_cover.data.sources.media import VIDEO_SUFFIXES
from modeling_cover.model.image_reading_cover import read_image
from modeling_cover.recipe.dataset_recipe import DatasetRecipe


def read(folder: Path, modality: str = "video") -> Source:
    recipe = {"name": "clips", "format": "class_folders", "modality": modality, "splits": {"train": str(folder)}}
    return read_sources(DatasetRecipe(**recipe))["train"]


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def rows(source: Source, folder: Path) -> list[tuple[str, str]]:
    return [
        (os.path.relpath(media.name, folder), source.labels[source.target(row)])
        for row, media in enumerate(source.media)
    ]


class TestLinks:
    def test_a_linked_folder_is_followed_as_the_link_of_a_class_is(self, tmp_path):
        touch(tmp_path / "train/run/a.mp4")
        touch(tmp_path / "elsewhere/deep/b.mp4")
        (tmp_path / "train/run/more").symlink_to("../../elsewhere")
        (tmp_path / "train/walk").symlink_to("../elsewhere")
        assert rows(read(tmp_path / "train"), tmp_path / "train") == [
            ("run/a.mp4", "run"),
            ("run/more/deep/b.mp4", "run"),
            ("walk/deep/b.mp4", "walk"),
        ]

    def test_one_that_leads_back_is_not_followed_for_ever(self, tmp_path):
        touch(tmp_path / "run/deep/a.mp4")
        touch(tmp_path / "walk/b.mp4")
        (tmp_path / "run/deep/back").symlink_to("..")
        assert rows(read(tmp_path), tmp_path) == [("run/deep/a.mp4", "run"), ("walk/b.mp4", "walk")]


class TestWhatIsLeftOut:
    def test_files_beside_the_class_folders_and_of_other_suffixes(self, tmp_path, caplog):
        for name in ("run/a.mp4", "walk/b.mp4", "run/notes.txt", "stray.mp4", "run/.hidden.mp4"):
            touch(tmp_path / name)
        source = read(tmp_path)
        assert source.left_out == ("stray.mp4", "run/notes.txt")
        assert "2 files are left out" in caplog.text

    def test_a_class_without_a_video_says_what_there_is(self, tmp_path):
        for name in ("run/a.mp4", "walk/b.prproj", "walk/c.txt"):
            touch(tmp_path / name)
        with pytest.raises(
            ValueError, match=r"no video files in .*/walk.*: there are 'b\.prproj', 'c\.txt', and videos end"
        ):
            read(tmp_path)

    def test_files_without_class_folders_are_said(self, tmp_path):
        touch(tmp_path / "a.mp4")
        with pytest.raises(
            ValueError, match=r"no class folders in .*CLASS/FILE: there is 'a\.mp4', and videos end in"
        ):
            read(tmp_path)


class TestSuffixes:
    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("00000.MTS", {"container_format": "mpegts"}),
            ("clip.m2ts", {"container_format": "mpegts"}),
            ("clip.gif", {"codec": "gif", "pixel_format": "rgb8"}),
            ("clip.vob", {"codec": "mpeg2video", "container_format": "vob"}),
            ("clip.asf", {"codec": "mpeg4", "container_format": "asf"}),
            ("clip.m2v", {"codec": "mpeg2video", "container_format": "mpeg2video"}),
            ("clip.divx", {"codec": "mpeg4", "container_format": "avi"}),
            ("clip.3g2", {"container_format": "3g2"}),
            ("clip.f4v", {"container_format": "mov"}),
            ("clip.nut", {"container_format": "nut"}),
        ],
    )
    def test_a_video_of_a_rarer_kind_is_a_row_that_can_be_read(self, tmp_path, name, options):
        (tmp_path / "run").mkdir()
        write_clip(tmp_path / "run" / name, indexed_frames(6), **options)
        touch(tmp_path / "walk" / "b.mp4")
        source = read(tmp_path)
        assert os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES
        frames, _ = read_video(source.media[0].content, lambda metadata: [0, metadata.total_num_frames - 1])
        assert len(frames) == 2

    def test_an_image_dataset_takes_gif_and_jfif(self, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "walk").mkdir()
        PIL.Image.new("RGB", (8, 8), "red").save(tmp_path / "run" / "a.gif")
        PIL.Image.new("RGB", (8, 8), "red").save(tmp_path / "walk" / "b.jfif", "JPEG")
        source = read(tmp_path, "image")
        assert [read_image(media.content).convert("RGB").size for media in source.media] == [(8, 8)] * 2

    def test_a_row_without_a_video_in_it_is_named(self, tmp_path):
        touch(tmp_path / "run" / "00000.MTS")
        touch(tmp_path / "walk" / "b.mp4")
        with pytest.raises(VideoDecodingError, match=r"00000\.MTS cannot be read as a video"):
            read_video(read(tmp_path).media[0].content, lambda metadata: [0])
