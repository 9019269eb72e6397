# SPDX-License-Identifier: Apache-2.0
"""Every layout that may lie elsewhere has the rows that it has here, in the same order, wherever a run stops."""

import gc
import json
import multiprocessing
import os
import sys
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Video
from modeling_cover import load_recipe
from modeling_cover.commands import check as check_dataset
from modeling_cover.data.sources import Source, StreamedSource, read_sources, remote
from modeling_cover.data.sources.media import Media
from modeling_cover.dataset_tools.preparation import PreparationSettings, prepare_dataset
from modeling_cover.recipe.dataset_recipe import DatasetRecipe
from PIL import Image
from remote_servers import FileServer, closed_port, s3_server


ROWS, ROWS_OF_A_SHARD = 12, 3
LABELS = ["push", "pull", "lift"]
NAMES = [f"clips/{row} of 100%#?é.mp4" for row in range(ROWS)]  # what an address would have to quote
SERVERS = ["http", "http without parts", "s3"]


@pytest.fixture
def port() -> Iterator[int]:
    with closed_port() as port:
        yield port


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELING_COVER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("modeling_cover.model.file_access_cover.RETRY_WAITS", (0.0,) * 4)
    datasets.disable_progress_bars()


def content(row: int) -> bytes:
    return f"{row} ".encode() * 20_000


def label(row: int) -> str:
    return LABELS[row % 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The same rows in every layout."""
    folder = tmp_path_factory.mktemp("layouts")
    (folder / "clips").mkdir()
    for row, name in enumerate(NAMES):
        (folder / name).write_bytes(content(row))
    _write_lists(folder)
    for layout in ("tar", "parquet"):
        (folder / layout).mkdir()
    for shard, start in enumerate(range(0, ROWS, ROWS_OF_A_SHARD)):
        rows = range(start, start + ROWS_OF_A_SHARD)
        _write_tar(folder / f"tar/train-{shard:03d}.tar", rows)
        videos = [{"bytes": content(row), "path": f"{row}.mp4"} for row in rows]
        features = Features({"video": Video(), "label": ClassLabel(names=LABELS)})
        table = Dataset.from_dict({"video": videos, "label": [row % 3 for row in rows]}, features)
        table.to_parquet(folder / f"parquet/train-{shard:03d}.parquet", batch_size=2)
    (folder / "tar/dataset.json").write_text(json.dumps({"labels": LABELS}))
    (folder / "labels.txt").write_text("\n".join(LABELS))
    return folder


def _write_lists(folder: Path) -> None:
    records = [{"path": name, "label": label(row)} for row, name in enumerate(NAMES)]
    for name, separator in (("train.csv", ","), ("train.tsv", "\t")):
        lines = [separator.join(record.values()) for record in records]
        (folder / name).write_text("\n".join([separator.join(("path", "label")), *lines]))
    (folder / "train.json").write_text(json.dumps(records))
    (folder / "train.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    classes = [record["label"] for record in records]
    pq.write_table(pa.table({"video": NAMES, "label": classes}), folder / "paths.parquet")
    files = [{"bytes": None, "path": name} for name in NAMES]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"video": pa.array(files, kind), "label": classes}), folder / "structs.parquet")


def _write_tar(path: Path, rows: range) -> None:
    with tarfile.open(path, "w") as tar:
        for row in rows:
            for suffix, data in (("mp4", content(row)), ("cls", str(row % 3).encode())):
                info = tarfile.TarInfo(f"{row:03d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, BytesIO(data))


@pytest.fixture(scope="module")
def file_server(folder) -> Iterator[FileServer]:
    with FileServer(folder) as server:
        yield server


@pytest.fixture(scope="module", params=SERVERS)
def place(folder, file_server, request) -> Iterator[str]:
    """The address of a copy of the folder."""
    if request.param == "s3":
        with s3_server():
            bucket = fsspec.filesystem("s3")
            bucket.mkdir("bucket")
            bucket.put(f"{folder}/", "bucket/data/", recursive=True)
            yield "s3://bucket/data"
    elif request.param == "http":
        yield file_server.url
    else:
        with FileServer(folder, has_ranges=False) as server:
            yield server.url


def recipe(format: str, train: str, **options) -> DatasetRecipe:
    base = {"name": "far", "format": format, "modality": "video", "splits": {"train": train}}
    return DatasetRecipe(**base | options).resolved(".")


def bytes_of(media: Media) -> bytes:
    with media.on_disk() as local:
        return local.content if isinstance(local.content, bytes) else Path(local.content).read_bytes()


def rows(source: Source) -> list[tuple[bytes, str]]:
    return [(bytes_of(media), source.labels[source.target(row)]) for row, media in enumerate(source.media)]


EXPECTED = [(content(row), label(row)) for row in range(ROWS)]


class TestByIndex:
    @pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl"])
    def test_a_list_and_what_it_names_beside_it(self, place, suffix):
        source = read_sources(recipe("manifest", f"{place}/train.{suffix}"))["train"]
        assert rows(source) == EXPECTED
        assert all(media.name.startswith(f"{place}/clips/{row}") for row, media in enumerate(source.media))

    def test_a_list_here_of_files_elsewhere(self, folder, place):
        source = read_sources(recipe("manifest", str(folder / "train.csv"), media_root=place))["train"]
        assert rows(source) == EXPECTED

    def test_addresses_and_paths_may_be_mixed_in_a_list(self, folder, place, tmp_path):
        far = [media.content for media in read_sources(recipe("manifest", f"{place}/train.csv"))["train"].media]
        paths = [far[row] if row % 2 else str(folder / NAMES[row]) for row in range(ROWS)]
        (tmp_path / "train.csv").write_text(
            "\n".join(["path,label", *(f"{path},{label(row)}" for row, path in enumerate(paths))])
        )
        source = read_sources(recipe("manifest", str(tmp_path / "train.csv")))["train"]
        assert rows(source) == EXPECTED
        assert [root for root in source.roots if not os.path.exists(root)] == []

    @pytest.mark.parametrize("name", ["paths.parquet", "structs.parquet"])
    def test_paths_in_a_parquet_file(self, folder, place, name):
        assert rows(read_sources(recipe("parquet", f"{place}/{name}"))["train"]) == EXPECTED
        assert rows(read_sources(recipe("parquet", str(folder / name), media_root=place))["train"]) == EXPECTED

    def test_addresses_in_a_dataset_of_the_library(self, place, tmp_path):
        far = [media.content for media in read_sources(recipe("manifest", f"{place}/train.csv"))["train"].media]
        table = Dataset.from_dict({"video": far, "label": [label(row) for row in range(ROWS)]})
        table.save_to_disk(tmp_path / "saved")
        options = {"path": str(tmp_path / "saved"), "labels": LABELS, "shuffle_buffer": 5}
        assert rows(read_sources(recipe("dataset", "train", path=options["path"]))["train"]) == EXPECTED
        stream = read_sources(recipe("dataset", "train", streaming=True, **options))["train"].open(seed=0)
        assert sorted(bytes_of(stream.source.example(stream.row(draw)).media) for draw in range(ROWS)) == sorted(
            map(content, range(ROWS))
        )

    @pytest.mark.parametrize("name", ["parquet", "parquet/*.parquet", "parquet/train-00[0-3].parquet"])
    def test_parquet_files(self, folder, place, name):
        source = read_sources(recipe("parquet", f"{place}/{name}"))["train"]
        assert rows(source) == rows(read_sources(recipe("parquet", str(folder / name)))["train"]) == EXPECTED
        assert source.labels == LABELS
        assert source.media[4].name == f"{place}/parquet/train-001.parquet, row 1 (4.mp4)"

    @pytest.mark.parametrize("name", ["tar", "tar/train-{000..003}.tar", "tar/*.tar"])
    def test_shards(self, folder, place, name):
        source = read_sources(recipe("webdataset", f"{place}/{name}"))["train"]
        assert rows(source) == rows(read_sources(recipe("webdataset", str(folder / name)))["train"]) == EXPECTED
        assert source.labels == LABELS
        assert source.media[4].name == f"{place}/tar/train-001.tar/004.mp4"

    def test_a_whole_recipe_may_be_elsewhere(self, place, tmp_path):
        entry = "name: far, format: manifest, modality: video, splits: {train: train.csv}, media_root: ., labels: labels.txt"
        (tmp_path / "recipe.yaml").write_text(f"data_root: {place}\ndatasets:\n  - {{{entry}}}\n")
        (dataset,) = load_recipe(tmp_path / "recipe.yaml").datasets
        source = read_sources(dataset)["train"]
        assert (rows(source), source.labels) == (EXPECTED, LABELS)


def _contents(source: Source, queue: multiprocessing.Queue) -> None:
    queue.put([bytes_of(media) for media in source.media])


@pytest.mark.parametrize(("format", "name"), [("webdataset", "tar"), ("manifest", "train.csv")])
def test_a_forked_worker_reads_the_same_after_the_main_process_has_begun_to(place, format, name):
    source = read_sources(recipe(format, f"{place}/{name}"))["train"]
    assert bytes_of(source.media[0]) == content(0)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_contents, args=(source, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for _ in workers:
        assert queue.get(timeout=600) == [content(row) for row in range(ROWS)]
    for worker in workers:
        worker.join()
    assert bytes_of(source.media[ROWS - 1]) == content(ROWS - 1)


def _collect_and_read(address: str) -> None:
    gc.collect()
    assert len(remote.RemoteFile(address).read_at(5, 5)) == 5


def test_a_forked_worker_does_not_cut_the_connections_of_the_main_process(place, monkeypatch):
    monkeypatch.setattr("modeling_cover.model.file_access_cover.RETRY_WAITS", ())
    monkeypatch.setattr(remote, "_READ_SECONDS", 5.0)
    address = f"{place}/labels.txt"
    for _ in range(2):
        assert len(remote.RemoteFile(address).read_at(5, 5)) == 5
        worker = multiprocessing.get_context("fork").Process(target=_collect_and_read, args=(address,))
        worker.start()
        worker.join()
        assert worker.exitcode == 0
        assert len(remote.RemoteFile(address).read_at(5, 5)) == 5


def drawn(source: StreamedSource, draws: range, state: dict | None = None) -> tuple[list, dict]:
    """What a stream gives, and its state at the end."""
    stream = source.open(seed=3)
    if state is not None:
        stream.load_state_dict(state)
    examples = [source.example(stream.row(draw)) for draw in draws]
    state = json.loads(json.dumps(stream.state_dict(draws.stop)))
    return [(bytes_of(example.media), example.target) for example in examples], state


# Each read of the server that stands for S3 costs as much as ten of the others'.
slow_on_s3 = pytest.mark.parametrize(
    "place", [*SERVERS[:-1], pytest.param("s3", marks=pytest.mark.slow)], indirect=True, scope="module"
)


@pytest.mark.parametrize(("format", "name"), [("webdataset", "tar"), ("parquet", "parquet")])
class TestStreams:
    def source(self, format: str, place: str) -> StreamedSource:
        options = {"sizes": {"train": ROWS}} if format == "webdataset" else {}
        return read_sources(recipe(format, place, streaming=True, shuffle_buffer=5, **options))["train"]

    @slow_on_s3
    def test_the_order_is_that_of_local_files(self, folder, place, format, name):
        local, _ = drawn(self.source(format, str(folder / name)), range(3 * ROWS))
        assert drawn(self.source(format, f"{place}/{name}"), range(3 * ROWS))[0] == local

    @slow_on_s3
    def test_a_run_that_stops_goes_on_with_the_same_rows(self, place, format, name, tmp_path, monkeypatch):
        source = self.source(format, f"{place}/{name}")
        stream, whole, states = source.open(seed=3), [], {}
        for draw in range(2 * ROWS + 5):
            if draw in (1, 7, ROWS, ROWS + 9):
                states[draw] = json.loads(json.dumps(stream.state_dict(draw)))
            example = source.example(stream.row(draw))
            whole.append((bytes_of(example.media), example.target))
        for stop, state in states.items():
            monkeypatch.setenv("MODELING_COVER_CACHE", str(tmp_path / f"another {stop}"))
            draws = range(stop, min(stop + ROWS, len(whole)))  # into the next pass
            assert drawn(self.source(format, f"{place}/{name}"), draws, state)[0] == whole[stop : draws.stop]
        assert len(states) == 4

    def test_a_state_is_that_of_local_files(self, folder, place, format, name):
        _, local = drawn(self.source(format, str(folder / name)), range(ROWS + 9))
        expected, _ = drawn(self.source(format, str(folder / name)), range(ROWS + 9, 2 * ROWS), local)
        assert drawn(self.source(format, f"{place}/{name}"), range(ROWS + 9, 2 * ROWS), local)[0] == expected

    def test_failures_that_heal_change_nothing(self, folder, format, name):
        local, _ = drawn(self.source(format, str(folder / name)), range(ROWS))
        shards = [f"/{name}/{path.name}" for path in (folder / name).iterdir() if path.suffix != ".json"]
        with FileServer(folder) as server:
            source = self.source(format, f"{server.url}/{name}")
            for path in shards:
                server.faults[path].extend([503, None, "reset", 429])
            assert drawn(source, range(ROWS))[0] == local
            assert [list(server.faults[path]) for path in shards] == [[]] * 4

    def test_one_that_is_not_there_is_named_at_the_start(self, place, format, name):
        suffix = "tar" if format == "webdataset" else "parquet"
        with pytest.raises(
            ValueError, match=rf"dataset 'far': {place}/{name}/none\.{suffix} cannot be fetched: there is no"
        ):
            self.source(format, f"{place}/{name}/none.{suffix}")


class TestParts:
    def test_of_a_shard_the_headers_are_read_and_then_the_members_that_are_asked_for(self, tmp_path):
        with tarfile.open(tmp_path / "0.tar", "w") as tar:
            for row in range(5):
                for suffix, data in (("mp4", bytes([row]) * 1_000_000), ("cls", b"run")):
                    info = tarfile.TarInfo(f"{row}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, BytesIO(data))
        with FileServer(tmp_path) as server:
            source = read_sources(recipe("webdataset", f"{server.url}/0.tar"))["train"]
            assert server.sent["/0.tar"] < 1_000_000
            server.sent.clear()
            assert source.media[3].content == bytes([3]) * 1_000_000
            assert server.sent["/0.tar"] == 1_000_000

    def test_of_a_parquet_file_the_wanted_columns_are_read(self, tmp_path):
        table = pa.table(
            {"video": [b"A" * 10, b"B" * 10], "more": [os.urandom(500_000)] * 2, "label": ["run", "walk"]}
        )
        pq.write_table(table, tmp_path / "x.parquet")
        with FileServer(tmp_path) as server:
            source = read_sources(recipe("parquet", f"{server.url}/x.parquet"))["train"]
            assert [media.content for media in source.media] == [b"A" * 10, b"B" * 10]
            assert server.sent["/x.parquet"] < 300_000

    def test_a_parquet_file_that_has_changed_is_read_anew(self, tmp_path):
        with FileServer(tmp_path) as server:
            for word in (b"one", b"three"):
                pq.write_table(pa.table({"video": [word], "label": ["run"]}), tmp_path / "x.parquet")
                source = read_sources(recipe("parquet", f"{server.url}/x.parquet"))["train"]
                assert source.media[0].content == word


def test_any_store_of_fsspec_will_do(tmp_path):
    store = fsspec.filesystem("memory")
    store.pipe("/memory store/clips/a b.mp4", b"A")
    store.pipe("/memory store/train.csv", b"path,label\nclips/a b.mp4,run\n")
    source = read_sources(recipe("manifest", "memory://memory store/train.csv"))["train"]
    assert rows(source) == [(b"A", "run")]
    store.rm("/memory store", recursive=True)


class TestRefusals:
    @pytest.mark.parametrize(
        ("format", "train", "options", "message"),
        [
            (
                "manifest",
                "ftpx://a/train.csv",
                {},
                r"splits: train: ftpx://a/train\.csv: expected a path, or an address",
            ),
            (
                "manifest",
                "train.csv",
                {"media_root": "ftpx://a"},
                "media_root: ftpx://a: expected a path, or an address",
            ),
            (
                "class_folders",
                "s3://b/train",
                {},
                "splits: train: the format 'class_folders' reads a folder on the disk",
            ),
            (
                "kinetics",
                "train.csv",
                {"media_root": "http://a/clips"},
                "media_root: the format 'kinetics' reads a folder",
            ),
            ("dataset", "train", {"path": "s3://b/saved"}, "path: the format 'dataset' reads a folder on the disk"),
        ],
    )
    def test_a_place_that_cannot_be_read_is_named(self, format, train, options, message):
        with pytest.raises(ValueError, match=f"dataset 'far': {message}"):
            read_sources(recipe(format, train, **options))

    @pytest.mark.parametrize("address", ["ftpx://a/b.mp4", "simplecache::http://a/b.mp4", "zip://x::ftp://a/b.zip"])
    def test_a_row_of_another_protocol_is_named(self, tmp_path, address):
        (tmp_path / "train.csv").write_text(f"path,label\nhttp://a/b.mp4,run\n{address},walk\n")
        with pytest.raises(
            ValueError, match=r"train\.csv, line 3: .*: expected a path, or an address of one of http://"
        ):
            read_sources(recipe("manifest", str(tmp_path / "train.csv")))
        for name, cells in (
            ("paths", [address]),
            (
                "structs",
                pa.array([{"bytes": None, "path": address}], pa.struct([("bytes", "binary"), ("path", "string")])),
            ),
        ):
            pq.write_table(pa.table({"video": cells, "label": ["run"]}), tmp_path / f"{name}.parquet")
            with pytest.raises(
                ValueError, match=rf"{name}\.parquet.*: expected a path, or an address of one of http://"
            ):
                read_sources(recipe("parquet", str(tmp_path / f"{name}.parquet")))

    def test_no_message_shows_what_would_be_the_right_to_fetch(self, file_server):
        address = file_server.url.replace("://", "://me:password@")
        places = [
            ("manifest", "none.csv"),
            ("manifest", "labels.txt"),
            ("parquet", "labels.txt"),
            ("webdataset", "none.tar"),
        ]
        for format, name in places:
            with pytest.raises(ValueError, match="dataset 'far'") as raised:
                read_sources(recipe(format, f"{address}/{name}?sig=c2VjcmV0"))
            assert f"{file_server.url}/{name}" in str(raised.value)
            assert "password" not in str(raised.value) and "c2VjcmV0" not in str(raised.value)


def test_rows_that_stay_away_are_unreadable_and_no_crash_of_a_check(tmp_path, port, capsys, monkeypatch):
    files = [{"bytes": None, "path": f"http://127.0.0.1:{port}/{row}.mp4"} for row in range(8)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"video": pa.array(files, kind), "label": ["run", "walk"] * 4}), tmp_path / "rows.parquet")
    entry = f"name: far, format: parquet, modality: video, splits: {{train: {tmp_path}/rows.parquet}}"
    (tmp_path / "recipe.yaml").write_text(f"datasets:\n  - {{{entry}}}\n")
    arguments = ["check_dataset.py", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "found.jsonl")]
    monkeypatch.setattr(sys, "argv", arguments)
    assert check_dataset.main() == 1
    found = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [(finding["kind"], finding["name"]) for finding in found] == [
        ("unreadable", file["path"]) for file in files
    ]
    assert "Traceback" not in "".join(capsys.readouterr())


def test_remote_rows_are_prepared_and_one_that_stays_away_is_a_listed_failure(tmp_path):
    (tmp_path / "served").mkdir()
    with FileServer(tmp_path / "served") as server:
        for row in range(4):
            Image.new("L", (16, 16), 60 * row).save(server.folder / f"{row}.png")
        lines = [f"{server.url}/{row}.png?sig=c2VjcmV0,grey" for row in range(5)]
        (tmp_path / "train.csv").write_text("\n".join(["path,label", *lines]))
        server.faults["/2.png"].extend([503, "reset"])
        dataset = recipe("manifest", str(tmp_path / "train.csv"), modality="image")
        prepare_dataset(dataset, tmp_path / "out", PreparationSettings(modality="image"), num_workers=1)
        address = server.url
    failures = [json.loads(line) for line in (tmp_path / "out/train/failures.jsonl").read_text().splitlines()]
    assert [(failure["path"], failure["reason"]) for failure in failures] == [
        (f"{address}/4.png", f"{address}/4.png cannot be fetched: there is no such file")
    ]
    prepared = read_sources(recipe("webdataset", str(tmp_path / "out/train"), modality="image"))["train"]
    assert len(prepared) == 4
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or b"c2VjcmV0" not in path.read_bytes()
