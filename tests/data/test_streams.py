# SPDX-License-Identifier: Apache-2.0

import io
import json
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, Video
from modeling_cover import VideoDecodingError
from modeling_cover.data.sources import Example, Source, Stream, StreamedSource, read_sources, streams
from modeling_cover.recipe.dataset_recipe import DatasetRecipe
from python_server import python


ROWS = 50  # in shards of 13, 13, 13 and 11; row i is the bytes of "i", of class i % 3
LABELS = ["push", "pull", "lift"]
FORMATS = ["parquet", "hub", "disk", "webdataset"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def table(rows: range) -> Dataset:
    columns = {
        "video": [{"bytes": str(row).encode(), "path": f"{row}.mp4"} for row in rows],
        "label": [row % 3 for row in rows],
    }
    return Dataset.from_dict(columns, Features({"video": Video(), "label": ClassLabel(names=LABELS)}))


def shards() -> list[range]:
    return [range(start, min(start + 13, ROWS)) for start in range(0, ROWS, 13)]


def write_tar(path: Path, rows: range) -> None:
    with tarfile.open(path, "w") as tar:
        for row in rows:
            for suffix, content in (("mp4", str(row).encode()), ("cls", str(row % 3).encode())):
                info = tarfile.TarInfo(f"{row:03d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The same rows in every layout that can be streamed."""
    folder = tmp_path_factory.mktemp("streams")
    for name in ("parquet", "tar"):
        (folder / name).mkdir()
    for index, rows in enumerate(shards()):
        table(rows).to_parquet(folder / f"parquet/train-{index:05d}-of-00004.parquet", batch_size=5)
        write_tar(folder / f"tar/{index}.tar", rows)
    (folder / "tar/dataset.json").write_text(json.dumps({"labels": LABELS}))
    DatasetDict({"train": table(range(ROWS))}).save_to_disk(folder / "disk", num_shards={"train": 2})
    return folder


def recipe(folder: Path, format: str, **options) -> DatasetRecipe:
    formats = {
        "parquet": {"format": "parquet", "splits": {"train": str(folder / "parquet")}},
        "hub": {"format": "dataset", "path": str(folder / "parquet"), "splits": {"train": "train"}},
        "disk": {"format": "dataset", "path": str(folder / "disk"), "splits": {"train": "train"}},
        "webdataset": {"format": "webdataset", "splits": {"train": str(folder / "tar")}},
    }
    sizes = {"sizes": {"train": ROWS}} if format in ("hub", "webdataset") else {}
    base = {"name": "mine", "modality": "video", "streaming": True, "shuffle_buffer": 7}
    return DatasetRecipe(**base | formats[format] | sizes | options)


def source(folder: Path, format: str, **options) -> StreamedSource:
    return read_sources(recipe(folder, format, **options))["train"]


def example(stream: Stream, draw: int) -> Example:
    return stream.source.example(stream.row(draw))


def rows_of(stream: Stream, draws) -> list[int]:
    return [int(example(stream, draw).media.content) for draw in draws]


@pytest.mark.parametrize("format", FORMATS)
class TestEveryFormat:
    def test_each_pass_has_every_row_once_in_another_order(self, folder, format):
        passes = np.array(rows_of(source(folder, format).open(seed=0), range(3 * ROWS))).reshape(3, ROWS)
        for order in passes:
            assert sorted(order) == list(range(ROWS))
        assert len({tuple(order) for order in passes}) == 3

    def test_an_example_is_the_encoded_file_and_its_class(self, folder, format):
        streamed = source(folder, format)
        assert (streamed.labels, len(streamed)) == (LABELS, ROWS)
        stream = streamed.open(seed=0)
        for draw in range(ROWS):
            media, target = example(stream, draw)
            assert target == int(media.content) % 3
            assert f"{int(media.content)}.mp4" in media.name

    def test_a_row_has_the_same_name_in_every_pass_and_none_of_another(self, folder, format):
        stream = source(folder, format).open(seed=0)
        names = Counter(example(stream, draw).media.name for draw in range(2 * ROWS))
        assert set(names.values()) == {2}

    def test_the_order_is_a_function_of_the_seed(self, folder, format):
        first, again, other = (source(folder, format).open(seed) for seed in (0, 0, 1))
        assert rows_of(first, range(60)) == rows_of(again, range(60)) != rows_of(other, range(60))

    def test_from_a_state_taken_anywhere_it_goes_on_the_same(self, folder, format):
        streamed = source(folder, format)
        expected = rows_of(streamed.open(seed=3), range(2 * ROWS + 20))
        stream = streamed.open(seed=3)
        for draw in range(0, 2 * ROWS, 17):
            rows_of(stream, range(draw, draw + 17))
            state = json.loads(json.dumps(stream.state_dict(draw)))  # although more was read
            resumed = source(folder, format).open(seed=3)
            resumed.load_state_dict(state)
            assert rows_of(resumed, range(draw, draw + 20)) == expected[draw : draw + 20]

    def test_the_first_rows_stand_in_for_others(self, folder, format):
        stream = source(folder, format).open(seed=5)
        before = rows_of(stream, range(3))
        pool = [stream.source.example(row) for row in stream.sample_pool(20)]
        assert [int(media.content) for media, _ in pool] == list(range(20))
        assert len(stream.sample_pool()) == ROWS
        assert rows_of(stream, range(3, 6)) != before
        assert rows_of(stream, range(3)) == before


def test_a_partner_is_another_row_of_the_block_and_as_good_as_any(folder):
    stream = source(folder, "parquet", shuffle_buffer=ROWS).open(seed=0)
    distances = Counter()
    for draw in range(10 * ROWS):
        row, partner = (
            int(stream.source.example(row).media.content) for row in (stream.row(draw), stream.partner(draw))
        )
        assert row != partner
        distances[(partner - row) % ROWS] += 1
    assert len(distances) > 40  # of 49


def test_rows_far_apart_come_close(folder):
    """Blocks alone would keep every row near its neighbours: whole shards change places too."""
    stream = source(folder, "parquet").open(seed=0)
    firsts = {rows_of(stream, [draw])[0] // 5 for draw in range(0, 20 * ROWS, ROWS)}
    assert len(firsts) >= 6


class TestGoingBackAndForth:
    @pytest.fixture
    def marks(self, monkeypatch):
        """Few and near, so that small data shows what happens to old ones."""
        monkeypatch.setattr(streams, "_DRAWS_PER_MARK", 10)
        monkeypatch.setattr(streams, "_REMEMBERED_DRAWS", 60)

    def test_any_draw_is_reached_in_any_order(self, folder, marks):
        streamed = source(folder, "parquet")
        expected = rows_of(streamed.open(seed=0), range(5 * ROWS))
        draws = np.random.default_rng(0).permutation(5 * ROWS)[:30]
        assert rows_of(streamed.open(seed=0), draws) == [expected[draw] for draw in draws]

    def test_little_is_read_to_go_back_a_little(self, folder, marks, monkeypatch):
        stream = source(folder, "parquet").open(seed=0)
        rows_of(stream, range(4 * ROWS))
        read, read_rows = [], streams._Pass.read
        monkeypatch.setattr(streams._Pass, "read", lambda self, count: read.append(count) or read_rows(self, count))
        stream.row(4 * ROWS - 40)
        assert sum(read) <= 30

    def test_what_is_remembered_is_bounded(self, folder, marks):
        stream = source(folder, "parquet").open(seed=0)
        rows_of(stream, range(20 * ROWS))
        assert len(stream._marks) <= 8

    def test_a_draw_before_the_first_is_refused(self, folder):
        with pytest.raises(ValueError, match="draws count from 0, got -1"):
            source(folder, "parquet").open(seed=0).row(-1)


class TestStates:
    @pytest.mark.parametrize(
        ("options", "seed", "key"), [({}, 1, "seed"), ({"shuffle_buffer": 8}, 0, "shuffle_buffer")]
    )
    def test_one_of_another_run_is_refused(self, folder, options, seed, key):
        state = source(folder, "parquet").open(seed=0).state_dict(0)
        stream = source(folder, "parquet", **options).open(seed)
        with pytest.raises(ValueError, match=f"dataset 'mine': cannot resume from a state with {key}"):
            stream.load_state_dict(state)

    def test_one_of_other_shards_is_refused(self, folder):
        state = source(folder, "webdataset").open(seed=0).state_dict(0)
        fewer = source(folder, "webdataset", splits={"train": str(folder / "tar/{0..2}.tar")})
        with pytest.raises(ValueError, match="cannot resume from a state with num_shards 4, which is now 3"):
            fewer.open(seed=0).load_state_dict(state)

    @pytest.mark.slow
    def test_another_process_goes_on_the_same(self, folder, tmp_path):
        stream = source(folder, "parquet").open(seed=0)
        expected = rows_of(stream, range(120))
        (tmp_path / "state.json").write_text(json.dumps(stream.state_dict(75)))
        program = (
            "import json, sys, datasets; from pathlib import Path\n"
            "from modeling_cover.recipe.dataset_recipe import DatasetRecipe\n"
            "from modeling_cover.data.sources import read_sources\n"
            "datasets.config.HF_DATASETS_CACHE = sys.argv[3]\n"
            "recipe = DatasetRecipe(name='mine', format='parquet', modality='video', streaming=True,\n"
            "                       shuffle_buffer=7, splits={'train': sys.argv[1]})\n"
            "stream = read_sources(recipe)['train'].open(seed=0)\n"
            "stream.load_state_dict(json.loads(Path(sys.argv[2]).read_text()))\n"
            "rows = map(stream.row, range(75, 120))\n"
            "print([int(stream.source.example(row).media.content) for row in rows])\n"
        )
        arguments = [str(folder / "parquet"), str(tmp_path / "state.json"), str(tmp_path / "cache")]
        output = subprocess.run(
            [python(), "-c", program, *arguments], capture_output=True, text=True, check=True
        ).stdout
        assert json.loads(output.splitlines()[-1]) == expected[75:]


class TestLabelsAndSizes:
    def test_the_validation_split_is_read_by_index(self, folder):
        dataset = recipe(folder, "parquet", splits=dict.fromkeys(("train", "validation"), str(folder / "parquet")))
        sources = read_sources(dataset)
        assert isinstance(sources["train"], StreamedSource)
        assert isinstance(sources["validation"], Source)
        assert [int(media.content) for media in sources["validation"].media] == list(range(ROWS))

    def test_the_order_of_a_head_counts(self, folder):
        streamed = read_sources(recipe(folder, "webdataset"), head_labels=["lift", "pull", "push"])["train"]
        media, target = example(streamed.open(seed=0), 0)
        assert streamed.labels == ["lift", "pull", "push"]
        assert target == 2 - int(media.content) % 3

    def test_classes_must_be_listed(self, tmp_path):
        write_tar(tmp_path / "0.tar", range(3))
        with pytest.raises(ValueError, match=r"dataset 'mine': .* does not list its classes: .* needs `labels`"):
            source(tmp_path, "webdataset", splits={"train": str(tmp_path)})
        streamed = source(tmp_path, "webdataset", splits={"train": str(tmp_path)}, labels=LABELS)
        assert example(streamed.open(seed=0), 0).target in range(3)

    @pytest.mark.parametrize("format", ["hub", "webdataset"])
    def test_a_size_that_nothing_says_must_be_given(self, folder, format):
        with pytest.raises(
            ValueError, match=r"dataset 'mine': .* does not say how many rows it has: give its `sizes`"
        ):
            source(folder, format, sizes=None)

    def test_the_size_that_a_repository_states_is_taken(self, tmp_path):
        (tmp_path / "data").mkdir()
        table(range(5)).to_parquet(tmp_path / "data/train-00000-of-00001.parquet")
        (tmp_path / "README.md").write_text(
            "---\ndataset_info:\n  splits:\n  - name: train\n    num_bytes: 100\n    num_examples: 5\n---\n"
        )
        assert len(source(tmp_path, "hub", path=str(tmp_path), sizes=None)) == 5

    def test_a_size_that_is_wrong_is_warned_of_once_and_every_row_comes(self, folder, caplog):
        stream = source(folder, "webdataset", sizes={"train": ROWS - 8}).open(seed=0)
        assert sorted(rows_of(stream, range(3 * ROWS))) == sorted(list(range(ROWS)) * 3)
        assert caplog.text.count(f"has {ROWS} rows, not {ROWS - 8}") == 1

    def test_a_label_of_no_class_is_an_error_of_its_row(self, tmp_path):
        write_tar(tmp_path / "0.tar", range(3))
        stream = source(tmp_path, "webdataset", splits={"train": str(tmp_path)}, labels=["push", "pull"]).open(seed=0)
        with pytest.raises(
            ValueError, match=r"dataset 'mine': .*/0\.tar/002\.mp4: the label 2 is none of the 2 classes"
        ):
            rows_of(stream, range(3))

    def test_several_labels_are_a_row_of_ones(self, tmp_path):
        features = Features({"video": Value("binary"), "label": datasets.List(ClassLabel(names=LABELS))})
        data = Dataset.from_dict({"video": [b"0", b"1"], "label": [[0, 2], []]}, features)
        data.to_parquet(tmp_path / "x.parquet")
        options = {"splits": {"train": str(tmp_path)}, "problem_type": "multi_label_classification"}
        stream = source(tmp_path, "parquet", **options).open(seed=0)
        targets = {media.content: target.tolist() for media, target in (example(stream, draw) for draw in range(2))}
        assert targets == {b"0": [1, 0, 1], b"1": [0, 0, 0]}

    def test_a_column_that_is_not_there_is_named(self, folder):
        for format in ("parquet", "hub", "disk"):
            with pytest.raises(ValueError, match=r"dataset 'mine': .*no column \['clip'\]"):
                source(folder, format, columns={"media": "clip"})


class TestDamage:
    def test_a_split_without_rows_is_an_error_and_no_endless_loop(self, tmp_path):
        write_tar(tmp_path / "0.tar", range(0))
        (tmp_path / "0.tar").write_bytes(bytes(10240))
        stream = source(tmp_path, "webdataset", splits={"train": str(tmp_path)}, labels=LABELS).open(seed=0)
        with pytest.raises(ValueError, match="dataset 'mine': no rows in"):
            stream.row(0)

    def test_a_damaged_table_is_named_when_its_turn_comes(self, tmp_path):
        table(range(5)).to_parquet(tmp_path / "0.parquet")
        streamed = source(tmp_path, "parquet", splits={"train": str(tmp_path)})
        content = bytearray((tmp_path / "0.parquet").read_bytes())
        content[4:200] = bytes(196)
        (tmp_path / "0.parquet").write_bytes(content)
        with pytest.raises(ValueError, match=f"dataset 'mine': {tmp_path}, shard 0 cannot be read on: "):
            rows_of(streamed.open(seed=0), range(5))

    @pytest.mark.parametrize("content", [None, b""])
    def test_an_empty_cell_is_an_error_of_its_row_when_it_is_read(self, tmp_path, content):
        features = Features({"video": Value("binary"), "label": ClassLabel(names=LABELS)})
        Dataset.from_dict({"video": [b"0", content], "label": [0, 1]}, features).to_parquet(tmp_path / "0.parquet")
        stream = source(tmp_path, "parquet", splits={"train": str(tmp_path)}).open(seed=0)
        bad = [row for row in (stream.row(0), stream.row(1)) if row.row == 1]
        with pytest.raises(VideoDecodingError, match="shard 0, row 1: expected a file's bytes or path"):
            stream.source.example(*bad)

    def test_a_truncated_shard_is_named_when_its_turn_comes(self, tmp_path):
        for index, rows in enumerate(shards()):
            write_tar(tmp_path / f"{index}.tar", rows)
        content = (tmp_path / "2.tar").read_bytes()
        (tmp_path / "2.tar").write_bytes(content[: 3 * 1024])
        stream = source(tmp_path, "webdataset", splits={"train": str(tmp_path)}, labels=LABELS).open(seed=0)
        with pytest.raises(ValueError, match=r"/2\.tar is truncated"):
            rows_of(stream, range(ROWS))
