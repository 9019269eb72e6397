# SPDX-License-Identifier: Apache-2.0

import gzip
import io
import json
import multiprocessing
import os
import pickle
import tarfile
from pathlib import Path

import pytest
from modeling_cover import VideoDecodingError
from modeling_cover.data.sources import read_sources, tar_shards
from modeling_cover.data.sources.tar_shards import expand_braces
from modeling_cover.recipe.dataset_recipe import DatasetRecipe
from open_files import files_left


def webdataset(place, **options) -> DatasetRecipe:
    recipe = {"name": "shards", "format": "webdataset", "modality": "video", "splits": {"train": str(place)}}
    return DatasetRecipe(**recipe | options)


def write_shard(path: Path, members: dict[str, bytes | str], format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def rows(source) -> list[tuple[str, bytes, str]]:
    """(name from the shard's folder, content, label) of every row."""
    folders = [os.path.dirname(root) for root in source.roots]
    return [
        (os.path.relpath(media.name, folders[0]), media.content, source.labels[source.target(row)])
        for row, media in enumerate(source.media)
    ]


@pytest.fixture
def shards(tmp_path) -> Path:
    """Three samples in two shards."""
    write_shard(tmp_path / "train-000.tar", {"a.mp4": b"A" * 1000, "a.cls": "push", "b.mp4": b"B", "b.cls": "pull\n"})
    write_shard(tmp_path / "train-001.tar", {"deep/c.webm": b"C" * 513, "deep/c.cls": "push"})
    return tmp_path


EXPECTED = [
    ("train-000.tar/a.mp4", b"A" * 1000, "push"),
    ("train-000.tar/b.mp4", b"B", "pull"),
    ("train-001.tar/deep/c.webm", b"C" * 513, "push"),
]


class TestSamples:
    @pytest.mark.parametrize(
        "place", ["", "train-{000..001}.tar", "train-{000,001}.tar", "train-*.tar", "*-00[01].tar"]
    )
    def test_a_folder_or_a_pattern_names_the_shards(self, shards, place):
        source = read_sources(webdataset(shards / place))["train"]
        assert rows(source) == EXPECTED
        assert (source.labels, source.class_counts().tolist()) == (["pull", "push"], [1, 2])
        assert source.roots == (str(shards / "train-000.tar"), str(shards / "train-001.tar"))

    @pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_members_belong_together_by_name_in_whatever_order(self, tmp_path, format):
        name = "n" * 90 + "/" + "m" * 90  # beyond what a plain header holds
        write_shard(
            tmp_path / "x.tar",
            {"b.cls": "pull", f"{name}.MP4": b"A", "b.mp4": b"B", "notes": "", "._b.mp4": "", f"{name}.cls": "push"},
            format,
        )
        source = read_sources(webdataset(tmp_path))["train"]
        assert rows(source) == [("x.tar/b.mp4", b"B", "pull"), (f"x.tar/{name}.MP4", b"A", "push")]

    def test_an_extension_is_all_after_the_first_dot(self, tmp_path):
        write_shard(tmp_path / "x.tar", {"a.b.mp4": b"A", "a.txt": "push"})
        assert rows(read_sources(webdataset(tmp_path))["train"]) == [("x.tar/a.b.mp4", b"A", "push")]

    def test_images_are_the_files_where_the_modality_is_image(self, tmp_path):
        write_shard(tmp_path / "x.tar", {"a.mp4": b"V", "a.jpg": b"I", "a.cls": "push"})
        assert rows(read_sources(webdataset(tmp_path, modality="image"))["train"]) == [("x.tar/a.jpg", b"I", "push")]

    def test_labels_and_segments_may_be_in_json(self, tmp_path):
        fields = {"class": "push", "from": 1.5, "to": None}
        write_shard(tmp_path / "x.tar", {"a.mp4": b"A", "a.json": json.dumps(fields), "a.txt": "a caption"})
        columns = {"label": "class", "start": "from", "end": "to"}
        source = read_sources(webdataset(tmp_path, columns=columns))["train"]
        assert rows(source) == [("x.tar/a.mp4", b"A", "push")]
        assert (source.media[0].start, source.media[0].end) == (1.5, None)

    def test_there_may_be_several_labels(self, tmp_path):
        write_shard(tmp_path / "x.tar", {"a.mp4": b"A", "a.json": '{"label": ["walk", "talk"]}'})
        write_shard(tmp_path / "y.tar", {"b.mp4": b"B", "b.cls": "talk|run"})
        source = read_sources(webdataset(tmp_path, problem_type="multi_label_classification"))["train"]
        assert source.labels == ["run", "talk", "walk"]
        assert [source.target(row).tolist() for row in range(2)] == [[0, 1, 1], [1, 1, 0]]


class TestIndices:
    @pytest.fixture
    def indexed(self, tmp_path) -> Path:
        write_shard(tmp_path / "x.tar", {"a.mp4": b"A", "a.cls": "1", "b.mp4": b"B", "b.cls": "0"})
        return tmp_path

    def test_they_count_the_labels_beside_the_shards(self, indexed):
        (indexed / "dataset.json").write_text('{"labels": ["push", "pull"], "clips": 2}')
        source = read_sources(webdataset(indexed))["train"]
        assert source.labels == ["push", "pull"]
        assert [label for *_, label in rows(source)] == ["pull", "push"]

    def test_they_count_the_recipes_where_there_are_none(self, indexed):
        assert [label for *_, label in rows(read_sources(webdataset(indexed, labels=["pull", "push"]))["train"])] == [
            "push",
            "pull",
        ]

    def test_the_recipes_order_does_not_change_what_they_mean(self, indexed):
        (indexed / "dataset.json").write_text('{"labels": ["push", "pull"]}')
        source = read_sources(webdataset(indexed, labels=["pull", "push"]))["train"]
        assert source.labels == ["pull", "push"]
        assert [label for *_, label in rows(source)] == ["pull", "push"]

    def test_without_any_they_are_refused(self, indexed):
        with pytest.raises(ValueError, match=r"x\.tar/a\.mp4: the label 1 is an index: list the names"):
            read_sources(webdataset(indexed))

    @pytest.mark.parametrize("content", ["{", "[]", '{"labels": "push"}', '{"labels": ["push", "push"]}'])
    def test_a_list_that_is_none_is_named(self, indexed, content):
        (indexed / "dataset.json").write_text(content)
        with pytest.raises(ValueError, match=r"dataset 'shards': .*/dataset\.json"):
            read_sources(webdataset(indexed))


class TestDamagedShards:
    def test_one_truncated_anywhere_is_named(self, shards):
        content = (shards / "train-000.tar").read_bytes()
        end = len(content.rstrip(b"\0"))
        for length in [*range(0, end + 512, 97), *range(512, end + 512, 512)]:
            (shards / "train-000.tar").write_bytes(content[:length])
            with pytest.raises(ValueError, match=r"dataset 'shards': .*/train-000\.tar is truncated"):
                read_sources(webdataset(shards))

    def test_a_damaged_header_is_not_taken_for_the_end(self, shards):
        content = bytearray((shards / "train-000.tar").read_bytes())
        content[512 + 1024 + 10] ^= 0xFF  # in the header of the second member
        (shards / "train-000.tar").write_bytes(content)
        with pytest.raises(ValueError, match=r"train-000\.tar is truncated or damaged"):
            read_sources(webdataset(shards))

    def test_tar_files_joined_end_to_end_are_refused(self, shards):
        first, second = ((shards / f"train-00{index}.tar").read_bytes() for index in range(2))
        (shards / "train-000.tar").write_bytes(first + second)
        with pytest.raises(ValueError, match=r"train-000\.tar goes on after its end"):
            read_sources(webdataset(shards))

    @pytest.mark.parametrize("name", ["train-002.tar", "train-002.tar.gz"])
    def test_a_compressed_one_is_to_be_decompressed(self, shards, name):
        (shards / name).write_bytes(gzip.compress((shards / "train-001.tar").read_bytes()))
        with pytest.raises(ValueError, match=rf"/{name} is compressed.*: decompress it"):
            read_sources(webdataset(shards))

    def test_one_that_is_no_tar_file_is_named(self, shards):
        (shards / "train-001.tar").write_bytes(b"no tar file at all" * 100)
        with pytest.raises(ValueError, match=r"train-001\.tar is truncated or no tar file"):
            read_sources(webdataset(shards))

    def test_one_that_shrinks_later_is_an_error_of_its_rows(self, shards):
        source = read_sources(webdataset(shards))["train"]
        os.truncate(shards / "train-000.tar", 600)
        with pytest.raises(VideoDecodingError, match=r"train-000\.tar ends \d+ bytes early"):
            source.media[0]

    def test_one_that_vanishes_later_is_missing(self, shards):
        source = read_sources(webdataset(shards))["train"]
        (shards / "train-001.tar").unlink()
        with pytest.raises(FileNotFoundError, match=r"train-001\.tar"):
            source.media[2]


class TestNames:
    def test_a_number_that_is_a_name_is_a_name(self, tmp_path):
        write_shard(tmp_path / "x.tar", {"a.mp4": b"A", "a.cls": "1", "b.mp4": b"B", "b.cls": "2"})
        source = read_sources(webdataset(tmp_path, labels=["1", "2", "3"]))["train"]
        assert rows(source) == [("x.tar/a.mp4", b"A", "1"), ("x.tar/b.mp4", b"B", "2")]

    def test_lists_of_two_folders_must_be_one(self, tmp_path):
        for folder, labels in (("a", ["p", "q"]), ("b", ["q", "p"])):
            write_shard(tmp_path / folder / "x.tar", {f"{folder}.mp4": b"", f"{folder}.cls": "0"})
            (tmp_path / folder / "dataset.json").write_text(json.dumps({"labels": labels}))
        with pytest.raises(ValueError, match=r"b/dataset\.json lists other labels than .*a/dataset\.json"):
            read_sources(webdataset(tmp_path / "{a,b}" / "x.tar"))
        (tmp_path / "b" / "dataset.json").write_text('{"labels": ["p", "q"]}')
        source = read_sources(webdataset(tmp_path / "{a,b}" / "x.tar"))["train"]
        assert [source.labels[source.target(row)] for row in range(2)] == ["p", "p"]

    def test_shards_of_one_name_in_two_folders_have_rows_of_different_names(self, tmp_path):
        for folder in ("a", "b"):
            write_shard(tmp_path / folder / "x.tar", {"k.mp4": b"", "k.cls": folder})
        source = read_sources(webdataset(tmp_path / "{a,b}" / "x.tar"))["train"]
        assert len({media.name for media in source.media}) == 2


class TestBadSamples:
    @pytest.mark.parametrize(
        ("members", "message"),
        [
            ({"a.cls": "push"}, "x.tar/a: expected one video file, found the extensions cls"),
            (
                {"a.mp4": b"", "a.avi": b"", "a.cls": "push"},
                "expected one video file, found the extensions avi, cls, mp4",
            ),
            ({"a.mp4": b""}, "x.tar/a: no label: expected a .cls, .json or .txt member"),
            ({"a.mp4": b"", "a.json": '{"class": 5}'}, r"x.tar/a: no 'label' in the .json member, found \['class'\]"),
            ({"a.mp4": b"", "a.json": "[]"}, r"x.tar/a: expected an object in the .json member, got \[\]"),
            ({"a.mp4": b"", "a.cls": " "}, "x.tar/a.mp4: the label is empty"),
            ({"a.mp4": b"", "a.json": '{"label": ["push"]}'}, "x.tar/a.mp4: a label must be a name or an index"),
        ],
    )
    def test_one_is_named_with_its_shard(self, tmp_path, members, message):
        write_shard(tmp_path / "x.tar", members)
        with pytest.raises(ValueError, match=f"dataset 'shards': .*{message}"):
            read_sources(webdataset(tmp_path))

    @pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification"])
    @pytest.mark.parametrize(
        ("member", "message"),
        [
            ({"b.json": "{"}, "x.tar/b: its .json member cannot be read: Expecting property name"),
            ({"b.json": "[" * 100_000}, "x.tar/b: its .json member is too deeply nested"),
            (
                {"b.json": '{"label": ' + "9" * 5000 + "}"},
                "x.tar/b: its .json member cannot be read: Exceeds the limit",
            ),
            ({"b.cls": b"\xff"}, "x.tar/b: its .cls member is not in UTF-8: .*can't decode"),
            ({"b.cls": " " * (2**24 + 1)}, "x.tar/b: its .cls member has 16777217 bytes, more than"),
        ],
        ids=["broken", "nested", "digits", "bytes", "long"],
    )
    def test_one_whose_text_cannot_be_read_is_a_bad_row(self, tmp_path, member, message, problem_type):
        good = {"a.mp4": b"A", "a.cls": "push", "c.mp4": b"C", "c.cls": "pull"}
        write_shard(tmp_path / "x.tar", {**good, "b.mp4": b"B", **member})
        options = {"problem_type": problem_type} if problem_type.startswith("multi") else {}
        source = read_sources(webdataset(tmp_path, **options))["train"]
        assert [source.media[row].content for row in (0, 1)] == [b"A", b"C"]
        with pytest.raises(VideoDecodingError, match=message):
            source.media[2]
        assert source.labels == ["pull", "push"]
        assert source.class_counts().tolist() == [1, 1]
        if options:
            assert source.target(2).tolist() == [0, 0]
        else:
            assert source.target(2) == -1

    def test_two_members_of_one_name_are_refused(self, tmp_path):
        write_shard(tmp_path / "x.tar", {"a.mp4": b"A", "./a.mp4": b"B", "a.MP4": b"C", "a.cls": "push"})
        with pytest.raises(ValueError, match=r"x\.tar/a\.MP4: there is more than one member of that name"):
            read_sources(webdataset(tmp_path))

    def test_those_without_a_file_may_be_skipped(self, tmp_path, caplog):
        write_shard(tmp_path / "x.tar", {"a.cls": "push", "b.mp4": b"B", "b.cls": "pull"})
        source = read_sources(webdataset(tmp_path, missing_files="skip"))["train"]
        assert rows(source) == [("x.tar/b.mp4", b"B", "pull")]
        assert "dataset 'shards', train split: 1 samples without a file are left out" in caplog.text

    def test_a_column_of_segments_that_is_not_there_is_named(self, tmp_path):
        write_shard(tmp_path / "x.tar", {"a.mp4": b"A", "a.json": '{"label": "push"}'})
        with pytest.raises(ValueError, match=r"x\.tar/a: no \['from'\] in the \.json member, found \['label'\]"):
            read_sources(webdataset(tmp_path, columns={"start": "from"}))


class TestBoundsOfMemory:
    def sparse_shard(self, path: Path, size: int) -> Path:
        """A video of so many bytes that take no place on the disk, and its label."""
        with open(path, "wb") as file:
            for name, length in (("a.cls", 4), ("a.mp4", size), ("b.cls", 4), ("b.mp4", 0)):
                info = tarfile.TarInfo(name)
                info.size = length
                file.write(info.tobuf())
                file.write(b"push"[:length])
                file.seek(-(-length // 512) * 512 - min(length, 4), os.SEEK_CUR)
            file.truncate(file.tell() + 1024)
        return path

    @pytest.mark.parametrize("streaming", [False, True])
    def test_a_member_of_gigabytes_is_a_bad_row(self, streaming, tmp_path):
        self.sparse_shard(tmp_path / "x.tar", 3 * 2**30)
        options = {"streaming": True, "sizes": {"train": 2}, "shuffle_buffer": 2} if streaming else {}
        source = read_sources(webdataset(tmp_path, labels=["push"], **options))["train"]
        with pytest.raises(VideoDecodingError, match=r"x\.tar/a\.mp4 has 3221225472 bytes, more than 536870912"):
            if streaming:
                source.example(next(row for row in source.open(0).sample_pool() if row.content["member"] == "a.mp4"))
            else:
                source.media[0]

    def test_a_name_of_gigabytes_is_not_read(self, tmp_path):
        with open(tmp_path / "x.tar", "wb") as file:
            info = tarfile.TarInfo("././@LongLink")
            info.type, info.size = tarfile.GNUTYPE_LONGNAME, 3 * 2**30
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            file.truncate(4 * 2**30)
        with pytest.raises(
            ValueError, match=r"x\.tar is truncated or no tar file: a header has more than 1048576 bytes"
        ):
            read_sources(webdataset(tmp_path))

    def test_a_size_beyond_all_files_is_named(self, tmp_path):
        info = tarfile.TarInfo("a.mp4")
        info.pax_headers = {"size": "9" * 400}
        (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.PAX_FORMAT) + bytes(2048))
        with pytest.raises(ValueError, match=r"x\.tar is truncated or no tar file"):
            read_sources(webdataset(tmp_path))

    @pytest.mark.parametrize("text", ["[" * 100_000, "{", b"\xff"])
    def test_of_a_stream_a_text_that_cannot_be_read_is_a_bad_row(self, text, tmp_path):
        write_shard(tmp_path / "x.tar", {"a.mp4": b"A", "a.json": text, "b.mp4": b"B", "b.json": '{"label": "push"}'})
        options = {"streaming": True, "sizes": {"train": 2}, "shuffle_buffer": 2}
        source = read_sources(webdataset(tmp_path, labels=["push"], **options))["train"]
        bad, good = source.open(0).sample_pool()
        with pytest.raises(VideoDecodingError, match=r"x\.tar/a: its \.json member"):
            source.example(bad)
        assert source.example(good).media.content == b"B"


class TestPlaces:
    def test_an_empty_folder_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=f"dataset 'shards': no .tar files in {tmp_path}"):
            read_sources(webdataset(tmp_path))

    def test_shards_without_samples_are_named(self, tmp_path):
        write_shard(tmp_path / "x.tar", {"readme": "nothing here"})
        with pytest.raises(ValueError, match="dataset 'shards': no video files in the 1 shards of"):
            read_sources(webdataset(tmp_path))

    def test_a_pattern_that_nothing_matches_is_named(self, shards):
        with pytest.raises(ValueError, match=r"no files match .*/val-\*\.tar"):
            read_sources(webdataset(shards / "val-*.tar"))

    def test_of_a_range_every_shard_must_be_there(self, shards):
        with pytest.raises(ValueError, match=r"/train-002\.tar is not a file"):
            read_sources(webdataset(shards / "train-{000..002}.tar"))

    def test_braces_are_expanded_as_a_shell_does(self):
        assert expand_braces("{a,b}-{8..10}.tar") == [f"{letter}-{n}.tar" for letter in "ab" for n in (8, 9, 10)]
        assert expand_braces("x{008..010}") == ["x008", "x009", "x010"]
        for pattern in ("x{}", "x{a}", "x{3..1}"):
            with pytest.raises(ValueError, match=r"expected {first\.\.last} or {one,other}"):
                expand_braces(pattern)


def _contents(source, queue) -> None:
    queue.put([media.content for media in source.media])


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_link_is_refused_and_not_left_out(tmp_path, kind):
    path = write_shard(tmp_path / "x.tar", {"a.mp4": b"A", "a.cls": "push"})
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("b.mp4")
        info.type, info.linkname = kind, "a.mp4"
        tar.addfile(info)
    with pytest.raises(ValueError, match=r"x\.tar/b\.mp4 is a link to a\.mp4: write the shard with --dereference"):
        read_sources(webdataset(tmp_path))


class TestProcesses:
    def test_a_forked_worker_reads_the_same_while_the_main_process_does(self, shards):
        source = read_sources(webdataset(shards))["train"]
        assert source.media[0].content == b"A" * 1000
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        worker = context.Process(target=_contents, args=(source, queue))
        worker.start()
        assert queue.get(timeout=600) == [content for _, content, _ in EXPECTED]
        worker.join()
        assert [media.content for media in source.media] == [content for _, content, _ in EXPECTED]

    def test_what_is_sent_to_a_worker_holds_no_open_files(self, shards):
        source = read_sources(webdataset(shards))["train"]
        before = len(os.listdir("/proc/self/fd"))
        assert rows(source) == EXPECTED
        assert len(os.listdir("/proc/self/fd")) == before + 2
        again = pickle.loads(pickle.dumps(source))  # noqa: S301
        assert len(os.listdir("/proc/self/fd")) == before + 2
        assert rows(again) == EXPECTED
        del source, again
        assert len(os.listdir("/proc/self/fd")) == before

    def test_few_files_are_open_at_a_time(self, tmp_path, monkeypatch):
        monkeypatch.setattr(tar_shards, "_MAX_OPEN_FILES", 3)
        for index in range(8):
            write_shard(tmp_path / f"{index}.tar", {f"{index}.mp4": bytes([index]), f"{index}.cls": "x"})
        source = read_sources(webdataset(tmp_path))["train"]
        before = len(os.listdir("/proc/self/fd"))
        for row in [*range(8), 0, 7, 1, 6]:
            assert source.media[row].content == bytes([row])
        assert len(os.listdir("/proc/self/fd")) == before + 3

    def test_more_shards_can_be_read_than_files_may_be_open(self, tmp_path):
        for index in range(40):
            write_shard(tmp_path / f"{index:02d}.tar", {f"{index}.mp4": bytes([index]), f"{index}.cls": "x"})
        source = read_sources(webdataset(tmp_path))["train"]
        with files_left(12):
            assert [source.media[row].content for row in range(40)] == [bytes([row]) for row in range(40)]


class TestDotsInNames:
    @pytest.mark.parametrize(
        ("members", "reason"),
        [
            (
                {"Mr. Smith.mp4": b"A", "Mr. Smith.cls": "run"},
                r"/Mr: no label: .* here is ' smith\.cls': rename its files",
            ),
            (
                {"take.2.mp4": b"A", "take.2.cls": "run", "take.3.mp4": b"B", "take.3.cls": "run"},
                r"/take: expected one video file, .* here is '2\.cls': rename its files",
            ),
        ],
    )
    def test_the_message_says_where_a_name_ends(self, tmp_path, members, reason):
        write_shard(tmp_path / "train.tar", members)
        with pytest.raises(ValueError, match=reason):
            read_sources(webdataset(tmp_path / "train.tar"))

    def test_a_sample_without_dots_is_told_nothing_of_them(self, tmp_path):
        write_shard(tmp_path / "train.tar", {"a.mp4": b"A"})
        with pytest.raises(ValueError, match=r"/a: no label: expected a \.cls, \.json or \.txt member$"):
            read_sources(webdataset(tmp_path / "train.tar"))
