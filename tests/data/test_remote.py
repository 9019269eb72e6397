# SPDX-License-Identifier: Apache-2.0
"""Remote files: what is tried again, what is given up, what no message shows; and rows of them, up to a batch."""

import json
import os
import subprocess
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from clips import frame_numbers, indexed_frames, write_clip
from hub_server import HubServer
from modeling_cover import CoTrainingDataset, CoverVideoProcessor, EvaluationDataset, VideoDecodingError, collate_clips
from modeling_cover.data.mixture import MixtureSampler, MixtureSchedule, SampleReference
from modeling_cover.data.quarantine import Quarantine, TooManyBadFilesError
from modeling_cover.data.samples import load_frames
from modeling_cover.data.sources import read_sources, remote
from modeling_cover.data.sources.media import Media
from modeling_cover.data.sources.remote import RemoteError, RemoteFile, local_copy
from modeling_cover.model.file_access_cover import is_address, joined_file, parent, public_name, without_secrets
from modeling_cover.recipe.dataset_recipe import DatasetRecipe
from PIL import Image
from python_server import python
from remote_servers import FileServer, closed_port
from torch.utils.data import DataLoader


PROCESSOR = CoverVideoProcessor(num_frames=4, size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
SECRET = "X-Signature=c2VjcmV0"


@pytest.fixture
def port() -> Iterator[int]:
    with closed_port() as port:
        yield port


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MODELING_COVER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr("modeling_cover.model.file_access_cover.RETRY_WAITS", (0.0,) * 4)


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    with FileServer(tmp_path / "served") as server:
        yield server


def content_of(address: str) -> bytes:
    with local_copy(address) as path:
        return Path(path).read_bytes()


def copies(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("??/*") if path.is_file()]


class TestAddresses:
    def test_paths_are_none(self):
        for path in ("a.mp4", "/a/b.mp4", "a:b.mp4", "C:/a.mp4", "a//b.mp4", "", "a/s3://b"):
            assert not is_address(path)
        for address in ("http://a/b", "s3://bucket/a.mp4", "zip://a.jpg::hf://datasets/org/name/x.zip"):
            assert is_address(address)

    def test_what_may_be_the_right_to_read_is_not_shown(self):
        assert public_name(f"https://user:pw@host:80/a b.mp4?{SECRET}#x") == "https://host:80/a b.mp4"
        assert public_name("s3://key:secret@bucket/a?b#c.mp4") == "s3://bucket/a?b#c.mp4"
        assert public_name("hf://datasets/org/name@main/a.mp4") == "hf://datasets/org/name@main/a.mp4"
        assert public_name(f"zip://a.jpg::https://host/x.zip?{SECRET}") == "zip://a.jpg::https://host/x.zip"
        assert public_name("/a?b#c.mp4") == "/a?b#c.mp4"
        text = f"cannot read 'https://me:pw@host/a.mp4?{SECRET}', url='http://b/c#d' at all"
        assert without_secrets(text) == "cannot read 'https://host/a.mp4', url='http://b/c' at all"

    def test_names_of_files_are_joined_to_folders_as_they_are(self):
        assert joined_file("https://host/dir/", "a b/100%#1?.mp4") == "https://host/dir/a%20b/100%25%231%3F.mp4"
        assert joined_file(f"https://host/dir?{SECRET}", "a.mp4") == f"https://host/dir/a.mp4?{SECRET}"
        assert joined_file("s3://bucket", "a b#1?.mp4") == "s3://bucket/a b#1?.mp4"
        assert parent(f"https://host/dir/train.csv?{SECRET}") == f"https://host/dir?{SECRET}"
        assert parent("s3://bucket/train.csv") == "s3://bucket"

    @pytest.mark.parametrize("address", ["ftpx://a/b.mp4", "simplecache::http://a/b.mp4", "sftp://host/a.mp4"])
    def test_a_row_may_name_files_of_listed_protocols_alone(self, address):
        with pytest.raises(ValueError, match=r"b?\.mp4: expected a path, or an address of one of http://, https://"):
            remote.check_address(address, is_row=True)

    @pytest.mark.parametrize(
        ("address", "package", "extra"), [("s3://b/a.csv", "s3fs", "s3"), ("gs://b/a.csv", "gcsfs", "gcs")]
    )
    def test_the_extra_that_a_protocol_needs_is_named(self, address, package, extra):
        program = (
            "import sys\n"
            f"sys.modules[{package!r}] = None\n"
            "from modeling_cover.recipe.dataset_recipe import DatasetRecipe\n"
            "from modeling_cover.data.sources import read_sources\n"
            f"recipe = DatasetRecipe(name='far', format='manifest', modality='video', splits={{'train': {address!r}}})\n"
            "try:\n"
            "    read_sources(recipe)\n"
            "except ValueError as error:\n"
            "    print(error)\n"
        )
        finished = subprocess.run([python(), "-c", program], capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr[-2000:]
        protocol = address.partition(":")[0]
        assert finished.stdout.splitlines()[-1] == (
            f"dataset 'far': splits: train: {protocol}:// needs a package that is not installed: "
            f"pip install modeling-cover[{extra}]"
        )


class TestFetching:
    def test_a_file_is_fetched_once(self, server):
        (server.folder / "a b#1.mp4").write_bytes(b"A" * 3_000_000)
        for _ in range(3):
            assert content_of(f"{server.url}/a b%231.mp4") == b"A" * 3_000_000
        assert server.requests == [("GET", "/a b#1.mp4", None)]

    @pytest.mark.parametrize("faults", [[503], [429], [500, 502], ["reset"], ["reset", 503, "reset", 408]], ids=str)
    def test_a_failure_that_heals_is_none(self, server, faults):
        (server.folder / "a.mp4").write_bytes(bytes(range(256)) * 1000)
        server.faults["/a.mp4"].extend(faults)
        assert content_of(f"{server.url}/a.mp4") == bytes(range(256)) * 1000
        assert server.count("/a.mp4") == len(faults) + 1

    @pytest.mark.parametrize(
        ("status", "reason"),
        [
            (401, r"the server answers 401 \(Unauthorized\)"),
            (403, r"the server answers 403 \(Forbidden\)"),
            (404, "there is no such file"),
            (410, r"the server answers 410 \(Gone\)"),
        ],
    )
    def test_what_is_refused_is_not_asked_for_again(self, server, status, reason, cache):
        server.always["/a.mp4"] = status
        with pytest.raises(RemoteError, match=rf"/a\.mp4 cannot be fetched: {reason}$"):
            content_of(f"{server.url}/a.mp4")
        assert server.count("/a.mp4") == 1
        assert copies(cache) == []

    def test_what_keeps_failing_is_given_up(self, server):
        server.always["/a.mp4"] = 503
        with pytest.raises(RemoteError, match=r"/a\.mp4 cannot be fetched: the server answers 503"):
            content_of(f"{server.url}/a.mp4")
        assert server.count("/a.mp4") == 5

    def test_the_wait_that_a_server_asks_for_counts(self, server, monkeypatch):
        (server.folder / "a.mp4").write_bytes(b"A")
        server.retry_after = "7"
        server.faults["/a.mp4"].append(429)
        waits = []
        monkeypatch.setattr("modeling_cover.model.file_access_cover.time.sleep", waits.append)
        assert content_of(f"{server.url}/a.mp4") == b"A"
        assert waits == [7.0]

    def test_a_server_that_is_not_there_is_named(self, port):
        with pytest.raises(RemoteError, match=rf"^http://127\.0\.0\.1:{port}/a\.mp4 cannot be fetched: .*Connect"):
            content_of(f"http://127.0.0.1:{port}/a.mp4")

    def test_a_file_has_a_time_limit(self, server, monkeypatch, cache):
        server.always["/a.mp4"] = "drip"
        monkeypatch.setenv("MODELING_COVER_FETCH_SECONDS", "0.2")
        with pytest.raises(RemoteError, match=r"/a\.mp4 .*longer than the 0\.2 s of MODELING_COVER_FETCH_SECONDS"):
            content_of(f"{server.url}/a.mp4")
        assert copies(cache) == []

    def test_a_file_that_is_larger_than_all_copies_may_be_is_refused(self, server, monkeypatch, cache):
        (server.folder / "a.mp4").write_bytes(bytes(1001))
        (server.folder / "b.mp4").write_bytes(bytes(1000))
        monkeypatch.setenv("MODELING_COVER_CACHE_GB", "1e-6")
        with pytest.raises(RemoteError, match=r"/a\.mp4 .*more than 1000 bytes, which MODELING_COVER_CACHE_GB allows"):
            content_of(f"{server.url}/a.mp4")
        assert len(content_of(f"{server.url}/b.mp4")) == 1000

    @pytest.mark.parametrize("variable", ["MODELING_COVER_CACHE_GB", "MODELING_COVER_FETCH_SECONDS"])
    @pytest.mark.parametrize("value", ["ten", "0", "-1", "nan", "inf"])
    def test_a_setting_that_is_no_number_is_named(self, server, monkeypatch, variable, value):
        monkeypatch.setenv(variable, value)
        with pytest.raises(ValueError, match=f"{variable}: expected a number above 0, got '{value}'"):
            content_of(f"{server.url}/a.mp4")

    @pytest.mark.parametrize("fault", [404, 503])
    @pytest.mark.parametrize("read", [content_of, remote.size_of, lambda address: RemoteFile(address).read_at(5, 5)])
    def test_no_message_shows_what_would_be_the_right_to_fetch(self, server, fault, read):
        server.always["/a.mp4"] = fault
        address = f"{server.url.replace('://', '://me:password@')}/a.mp4?{SECRET}"
        with pytest.raises(RemoteError) as raised:
            read(address)
        text = "".join(traceback.format_exception(raised.value))
        assert f"{server.url}/a.mp4 cannot be fetched" in text
        assert "password" not in text and SECRET not in text

    def test_parts_are_read_alone(self, server):
        (server.folder / "a.bin").write_bytes(bytes(range(256)) * 10_000)
        file = RemoteFile(f"{server.url}/a.bin")
        assert file.read_at(256_005, 4) == bytes([5, 6, 7, 8])
        assert file.read_at(2_559_999, 10) == b"\xff"
        assert server.sent["/a.bin"] == 5

    @pytest.mark.parametrize("size", [None, 100])
    def test_a_server_without_parts_sends_the_whole_once(self, tmp_path, size):
        (tmp_path / "a.bin").write_bytes(bytes(range(256)) * 1000)
        with FileServer(tmp_path, has_ranges=False) as server:
            for _ in range(2):
                file = RemoteFile(f"{server.url}/a.bin")
                assert file.read_at(2561, 3) == bytes([1, 2, 3])
                assert file.read_at(0, 2) == bytes([0, 1])
                file.close()
            whole = [request for request in server.requests if request[0] == "GET" and request[2] is None]
            assert len(whole) == 1

    def test_the_hub_is_read(self, tmp_path):
        program = (
            "from pathlib import Path\n"
            "from huggingface_hub import HfApi\n"
            "from modeling_cover.data.sources import remote\n"
            "name, address = 'org/clips', 'hf://datasets/org/clips/a/x.tar'\n"
            "HfApi().create_repo(name, repo_type='dataset')\n"
            "HfApi().upload_file(\n"
            "    path_or_fileobj=bytes(range(256)), path_in_repo='a/x.tar', repo_id=name, repo_type='dataset')\n"
            "with remote.local_copy(address) as path:\n"
            "    assert Path(path).read_bytes() == bytes(range(256))\n"
            "assert remote.RemoteFile(address).read_at(250, 10) == bytes(range(250, 256))\n"
            "assert remote.find_remote('hf://datasets/org/clips', ('.tar',), deep=True) == [address]\n"
            "try:\n"
            "    remote.size_of(address + 'x')\n"
            "except remote.RemoteError as error:\n"
            "    print(error, error.is_missing)\n"
        )
        with HubServer() as hub:
            environment = hub.environment(tmp_path / "home")
            finished = subprocess.run([python(), "-c", program], capture_output=True, text=True, env=environment)
        assert finished.returncode == 0, finished.stderr[-2000:]
        expected = "hf://datasets/org/clips/a/x.tarx cannot be fetched: there is no such file True"
        assert finished.stdout.splitlines()[-1] == expected


@pytest.fixture
def greys(server) -> list[str]:
    """Ten remote images, each of a grey of its own: 0, 20, ... 180."""
    for index in range(10):
        Image.new("L", (16, 16), 20 * index).save(server.folder / f"{index}.png")
    return [f"{server.url}/{index}.png?{SECRET}" for index in range(10)]


def image_rows(tmp_path: Path, addresses: list[str]):
    """The train split of a list of images; the class of the i-th is i."""
    lines = [f"{address},{index}" for index, address in enumerate(addresses)]
    (tmp_path / "train.csv").write_text("\n".join(["path,label", *lines]))
    recipe = {
        "name": "greys",
        "format": "manifest",
        "modality": "image",
        "splits": {"train": str(tmp_path / "train.csv")},
    }
    return read_sources(DatasetRecipe(**recipe))["train"]


def reference(row: int) -> SampleReference:
    return SampleReference("greys", row, row, draw=row)


class TestRows:
    def test_a_row_is_trained_on_as_if_it_lay_here(self, server, greys, tmp_path):
        dataset = CoTrainingDataset([image_rows(tmp_path, greys)], ["greys"], PROCESSOR, seed=0)
        assert server.requests == []  # nothing was looked for
        for row in range(10):
            sample = dataset[reference(row)]
            assert sample["labels"] == row
            assert (sample["pixel_values"] == 20 * row).all()

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_workers_share_what_is_fetched(self, server, greys, tmp_path, num_workers):
        dataset = CoTrainingDataset([image_rows(tmp_path, greys)], ["greys"], PROCESSOR, seed=0)
        sampler = MixtureSampler(MixtureSchedule(dataset.sizes, seed=0), step_size=5)
        loader = DataLoader(dataset, 5, sampler=sampler, num_workers=num_workers, collate_fn=collate_clips)
        for _ in range(2):
            batches = list(loader)
            labels = torch.cat([batch["labels"] for batch in batches])
            pixels = torch.cat([batch["pixel_values"][0] for batch in batches])
            assert sorted(labels.tolist()) == list(range(10))
            assert (pixels == 20 * labels[:, None, None, None, None]).all()
        assert {server.count(f"/{index}.png") for index in range(10)} == {1}

    def test_segments_of_one_file_fetch_it_once(self, server):
        write_clip(server.folder / "long.mp4", indexed_frames(24))
        address = f"{server.url}/long.mp4?{SECRET}"
        for start in (0.0, 0.25, 0.5):
            media = Media(address, public_name(address), start, start + 0.25)
            frames = load_frames(media, "video", PROCESSOR, lambda metadata: [0, metadata.total_num_frames - 1])
            first = int(24 * start)
            assert frame_numbers(frames.permute(0, 2, 3, 1).numpy()) == [first, first + 5]
        assert server.count("/long.mp4") == 1

    def test_one_that_stays_away_is_a_bad_file_by_its_public_name(self, server, greys, tmp_path):
        (server.folder / "3.png").unlink()
        (server.folder / "5.png").write_bytes(b"no image")
        server.faults["/4.png"].extend([503, "reset"])
        quarantine = Quarantine(tmp_path / "quarantine.jsonl", 1)
        dataset = CoTrainingDataset([image_rows(tmp_path, greys)], ["greys"], PROCESSOR, 0, quarantine=quarantine)
        labels = [dataset[reference(row)]["labels"] for row in range(10)]
        assert labels[3] not in (3, 5) and labels[5] not in (3, 5)
        assert [label for row, label in enumerate(labels) if row not in (3, 5)] == [0, 1, 2, 4, 6, 7, 8, 9]
        entries = [json.loads(line) for line in quarantine.path.read_text().splitlines()]
        assert [entry["path"].split(" (")[0] for entry in entries] == [f"{server.url}/3.png", f"{server.url}/5.png"]
        assert entries[0]["reason"] == f"{server.url}/3.png cannot be fetched: there is no such file"
        assert entries[1]["reason"].startswith(f"{server.url}/5.png cannot be read as an image: ")
        assert SECRET not in quarantine.path.read_text()

    def test_rows_that_differ_in_their_query_alone_are_different_rows(self, server, tmp_path):
        source = image_rows(tmp_path, [f"{server.url}/get?id={number}" for number in range(3)])
        assert {media.name for media in source.media} == {f"{server.url}/get"}
        assert len({media.key for media in source.media}) == 3

    def test_a_store_that_is_gone_stops_training_by_the_share_of_bad_files(self, port, tmp_path):
        source = image_rows(tmp_path, [f"http://127.0.0.1:{port}/{index}.png" for index in range(8)])
        quarantine = Quarantine(tmp_path / "quarantine.jsonl")
        dataset = CoTrainingDataset([source], ["greys"], PROCESSOR, 0, quarantine=quarantine)
        with pytest.raises(TooManyBadFilesError, match=rf"http://127\.0\.0\.1:{port}/\d\.png cannot be fetched"):
            dataset[reference(0)]

    def test_an_evaluation_counts_one_that_stays_away_as_unreadable(self, server, greys, tmp_path):
        server.always["/2.png"] = 404
        dataset = EvaluationDataset(image_rows(tmp_path, greys), PROCESSOR, Quarantine(tmp_path / "bad.jsonl", 1))
        assert [int(dataset[row]["labels"]) for row in range(4)] == [0, 1, -100, 3]

    def test_without_a_quarantine_it_is_an_error_that_names_it(self, server, greys, tmp_path):
        server.always["/2.png"] = 404
        dataset = CoTrainingDataset([image_rows(tmp_path, greys)], ["greys"], PROCESSOR, 0)
        with pytest.raises(VideoDecodingError, match=r"/2\.png cannot be fetched"):
            dataset[reference(2)]

    def test_a_full_disk_is_no_fault_of_a_file(self, server, greys, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        monkeypatch.setenv("MODELING_COVER_CACHE", str(tmp_path / "file" / "cache"))
        quarantine = Quarantine(tmp_path / "quarantine.jsonl", 1)
        dataset = CoTrainingDataset([image_rows(tmp_path, greys)], ["greys"], PROCESSOR, 0, quarantine=quarantine)
        with pytest.raises(remote.CacheError, match="cannot be used"):
            dataset[reference(0)]
        assert not os.path.exists(quarantine.path)
