# SPDX-License-Identifier: Apache-2.0
"""Compact datasets come out the same to the byte, however the work was cut up or cut off."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from compact_clips import LENGTHS, compact, entry, files_of, settings, write_clips
from modeling_cover.data.sources import Source, read_sources
from modeling_cover.dataset_tools.preparation import prepare_dataset, write_shard
from modeling_cover.dataset_tools.prepared_rows import PreparationSettings, PreparedRow, prepare_row
from modeling_cover.recipe.dataset_recipe import DatasetRecipe


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    return write_clips(tmp_path_factory.mktemp("raw"))


class TestInterruptions:
    def test_the_number_of_workers_changes_no_byte(self, folders, tmp_path):
        for num_workers in (1, 3):
            prepare_dataset(entry(folders), tmp_path / f"{num_workers}", settings(), num_workers=num_workers)
        assert files_of(tmp_path / "1") == files_of(tmp_path / "3")
        assert len(list((tmp_path / "1").rglob("*.tar"))) == 4

    def test_killed_and_started_again_it_ends_with_the_same_bytes(self, folders, tmp_path, monkeypatch):
        raw, output = tmp_path / "raw", tmp_path / "killed"
        shutil.copytree(folders, raw)
        prepare_dataset(entry(raw), tmp_path / "whole", settings(), num_workers=1)
        # At a row that the last shard needs it waits to be killed.
        last = int(compact(tmp_path / "whole").media[-1].name[-13:-4])

        def wait_at_the_last(source: Source, row: int, wanted: PreparationSettings) -> PreparedRow:
            if row == last:
                time.sleep(1000)
            return prepare_row(source, row, wanted)

        with monkeypatch.context() as patch:
            patch.setattr("modeling_cover.dataset_tools.preparation.prepare_row", wait_at_the_last)
            process = multiprocessing.get_context("fork").Process(
                target=prepare_dataset, args=(entry(raw), output, settings()), kwargs={"num_workers": 2}
            )
            process.start()
        # It has begun the last shard, which is there when the one before is whole.
        _wait_for(lambda: any((output / "train").glob(".train-00002.tar.*")))
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert len(workers) == 2
        _wait_for(lambda: not any(_is_running(worker) for worker in workers))

        left = files_of(output)
        assert any(name.startswith("train/.train-00002.tar.") for name in left)
        assert not (output / "train/train-00002.tar").exists() and not (output / "train/report.json").exists()
        first = (output / "train/train-00000.tar").stat()
        prepare_dataset(entry(raw), output, settings(), num_workers=1)
        assert files_of(output) == files_of(tmp_path / "whole")
        again = (output / "train/train-00000.tar").stat()
        assert (again.st_ino, again.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)

    def test_killed_between_two_rows_the_shard_is_not_there(self, folders, tmp_path):
        def rows():
            yield prepare_row(read_sources(entry(folders))["train"], 0, settings())
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_shard(tmp_path / "train-00000.tar", rows(), "mp4")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("spoil", [lambda path: os.truncate(path, 1024), os.unlink], ids=["cut", "removed"])
    def test_a_shard_that_was_spoilt_is_written_again(self, folders, tmp_path, spoil):
        prepare_dataset(entry(folders), tmp_path, settings(), num_workers=1)
        before = files_of(tmp_path)
        spoil(tmp_path / "train" / "train-00001.tar")
        prepare_dataset(entry(folders), tmp_path, settings(), num_workers=1)
        assert files_of(tmp_path) == before

    @pytest.mark.parametrize("content", ["", '{"rows": 3}'])
    def test_a_shard_whose_summary_was_spoilt_is_written_again(self, folders, tmp_path, content):
        prepare_dataset(entry(folders), tmp_path, settings(), num_workers=1)
        before = files_of(tmp_path)
        (tmp_path / "train" / "train-00001.json").write_text(content)
        prepare_dataset(entry(folders), tmp_path, settings(), num_workers=1)
        assert files_of(tmp_path) == before

    def test_what_another_process_is_writing_at_the_end_stays(self, folders, tmp_path):
        prepare_dataset(entry(folders), tmp_path, settings(), num_workers=1)
        report, shard = tmp_path / "train/.report.json.host-1.tmp", tmp_path / "train/.train-00000.tar.host-1.tmp"
        for path in (report, shard):
            path.touch()
        prepare_dataset(entry(folders), tmp_path, settings(), num_workers=1)
        assert report.exists() and not shard.exists()

    def test_two_processes_write_together_what_one_writes(self, folders, tmp_path):
        prepare_dataset(entry(folders), tmp_path / "one", settings(), num_workers=1)
        both = [
            prepare_dataset(entry(folders), tmp_path / "two", settings(), num_workers=1, rank=rank, world_size=2)
            for rank in (1, 0)
        ]
        assert both[0] is None and both[1]["train"]["rows"] == len(LENGTHS)
        assert files_of(tmp_path / "one") == files_of(tmp_path / "two")

    def test_rows_are_shuffled_so_that_a_shard_holds_several_classes(self, folders, tmp_path):
        prepare_dataset(entry(folders), tmp_path, settings(), num_workers=1, splits=["train"])
        summary = json.loads((tmp_path / "train" / "train-00000.json").read_text())
        assert set(summary["class_counts"]) == {"wave", "point"}
        assert not (tmp_path / "validation").exists()

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"num_frames": 8}, "num_frames 4, not 8"),
            ({"codec": "h264"}, r"codec 'mjpeg', not 'h264'; quality 3, not 23"),
            ({"shard_size": 2}, "shard_size 3, not 2"),
        ],
    )
    def test_shards_of_other_settings_are_refused(self, folders, tmp_path, changed, message):
        prepare_dataset(entry(folders), tmp_path, settings(), num_workers=1)
        with pytest.raises(ValueError, match=f"train was written with {message}: name another --output"):
            prepare_dataset(entry(folders), tmp_path, settings(**changed), num_workers=1)

    def test_shards_of_other_segments_are_refused(self, folders, tmp_path):
        video = next(folders.rglob("*.mp4"))
        lists = {"place": str(tmp_path / "x.csv"), "columns": {"start": "start", "end": "end"}}

        def dataset(end: float) -> DatasetRecipe:
            (tmp_path / "x.csv").write_text(f"path,label,start,end\n{video},a,0,{end}\n{video},b,0,{end}\n")
            return entry(tmp_path, "manifest", splits={"train": lists["place"]}, columns=lists["columns"])

        prepare_dataset(dataset(0.2), tmp_path / "out", settings(), num_workers=1)
        with pytest.raises(ValueError, match=r"out/train was written with rows_hash"):
            prepare_dataset(dataset(0.3), tmp_path / "out", settings(), num_workers=1)

    def test_shards_of_other_rows_are_refused(self, folders, tmp_path):
        prepare_dataset(entry(folders), tmp_path, settings(), num_workers=1)
        with pytest.raises(ValueError, match=r"labels .*'point', 'wave'.*rows_hash"):
            prepare_dataset(entry(folders, labels=["wave", "point"]), tmp_path, settings(), num_workers=1)

    def test_a_folder_of_other_shards_is_refused(self, folders, tmp_path):
        (tmp_path / "train").mkdir()
        (tmp_path / "train" / "mine.tar").touch()
        with pytest.raises(ValueError, match="holds shards of another kind"):
            prepare_dataset(entry(folders), tmp_path, settings(), num_workers=1)


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
