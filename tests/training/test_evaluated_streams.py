# SPDX-License-Identifier: Apache-2.0
"""Evaluations of streams: each row once, in order, as those of a dataset whose rows are read by index."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Features, IterableDataset, Value
from forked_runs import start_processes
from given_datasets import given_trainer, image_stream, interleaved, video_rows, videos
from modeling_cover import CoverTrainer


def generated(folder: Path) -> IterableDataset:
    """The clips, one of which is damaged, from a generator of one shard."""
    rows = video_rows(folder)
    features = Features({"video": Value("string"), "label": ClassLabel(names=["class0", "class1"])})
    return IterableDataset.from_generator(
        lambda: (dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)), features=features
    )


def of_model(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics that do not depend on the machine."""
    return {key: value for key, value in metrics.items() if not key.endswith(("_runtime", "_per_second", "_time"))}


# The streams of each head, and the same rows to be read by index.
STREAMS = {
    "sharded": ("videos", lambda folder: videos(folder).to_iterable_dataset(num_shards=3), videos),
    "generated": ("videos", generated, videos),
    "Parquet": (
        "images",
        image_stream,
        lambda folder: datasets.Dataset.from_generator(image_stream(folder).__iter__, image_stream(folder).features),
    ),
    "interleaved": (
        "images",
        lambda folder: interleaved(folder)["images"],
        lambda folder: datasets.Dataset.from_list(list(interleaved(folder)["images"])),
    ),
}
SIZES = {"sharded": 6, "generated": 6, "Parquet": 12, "interleaved": 10}


def make_trainer(folder: Path, output_dir: Path, **options) -> CoverTrainer:
    given = {"videos": videos(folder), "images": image_stream(folder)}
    return given_trainer(folder, output_dir, given, per_device_eval_batch_size=4, **options)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_is_evaluated_as_its_rows_by_index(folder, tmp_path, kind, workers):
    head, stream, by_index = STREAMS[kind]
    trainer = make_trainer(
        folder, tmp_path, dataloader_num_workers=workers, trainer={"eval_sizes": {head: SIZES[kind]}}
    )
    expected = trainer.evaluate(eval_dataset={head: by_index(folder)})
    for _ in range(2):  # and once more, from its first row
        assert of_model(trainer.evaluate(eval_dataset={head: stream(folder)})) == of_model(expected)
    assert expected.get("eval_videos_unreadable", 0) == (head == "videos")
    rows, others = (trainer.predict({head: make(folder)}) for make in (stream, by_index))
    assert rows.label_ids.tolist() == others.label_ids.tolist()
    np.testing.assert_array_equal(rows.predictions, others.predictions)


def test_training_evaluates_it(folder, tmp_path):
    given = {"videos": videos(folder), "images": image_stream(folder)}
    of_stream, of_rows = ({"videos": make(folder)} for make in (generated, videos))
    logs = []
    for name, eval_dataset in (("stream", of_stream), ("rows", of_rows)):
        options = {"eval_strategy": "steps", "eval_steps": 3}
        evaluated = {"eval_dataset": eval_dataset, "eval_sizes": {"videos": 6}}
        trainer = given_trainer(folder, tmp_path / name, given, trainer=evaluated, **options)
        trainer.train()
        logs.append([of_model(entry) for entry in trainer.state.log_history if "eval_videos_top1" in entry])
    assert logs[0] == logs[1]
    assert [entry["step"] for entry in logs[0]] == [3, 6]


def evaluate_in_parts(folder: Path, output_dir: Path) -> None:
    trainer = make_trainer(folder, output_dir, trainer={"eval_sizes": {"videos": 6}})
    metrics = trainer.evaluate(eval_dataset={"videos": generated(folder)})
    predicted = trainer.predict({"videos": generated(folder)})
    if trainer.is_world_process_zero():
        found = {"metrics": of_model(metrics), "labels": predicted.label_ids.tolist()}
        (output_dir / "found.json").write_text(json.dumps(found))
    trainer.accelerator.end_training()


@pytest.mark.slow
def test_two_processes_share_its_rows(folder, tmp_path):
    run = start_processes(
        evaluate_in_parts, 2, tmp_path / "log", {"ACCELERATE_USE_CPU": "true"}, folder, tmp_path / "run"
    )
    assert run.wait(300) == 0, (tmp_path / "log").read_text()[-3000:]
    found = json.loads((tmp_path / "run" / "found.json").read_text())
    trainer = make_trainer(folder, tmp_path / "one", trainer={"eval_sizes": {"videos": 6}})
    expected = of_model(trainer.evaluate(eval_dataset={"videos": generated(folder)}))
    assert found["metrics"] == pytest.approx(expected, abs=1e-6)
    assert found["labels"] == trainer.predict({"videos": generated(folder)}).label_ids.tolist()


class TestBadInput:
    @pytest.mark.parametrize(
        ("size", "message"),
        [
            (5, r"a pass over its rows finds more rows than the 5 that it is said to have: give eval_sizes="),
            (8, r"finds 6 rows, not the 8 that it is said to have: give eval_sizes={\"videos\": \.\.\.}"),
            (0, r"eval_sizes: videos must be a positive whole number, got 0"),
        ],
    )
    def test_another_number_of_rows_than_is_said_is_an_error(self, folder, tmp_path, size, message):
        with pytest.raises(ValueError, match=message):
            make_trainer(folder, tmp_path, trainer={"eval_sizes": {"videos": size}}).evaluate(
                eval_dataset={"videos": generated(folder)}
            )

    def test_a_size_that_nothing_says_must_be_given(self, folder, tmp_path):
        with pytest.raises(ValueError, match=r"dataset 'videos': nothing says how many rows .*: give eval_sizes="):
            make_trainer(folder, tmp_path).evaluate(eval_dataset={"videos": generated(folder)})

    def test_a_size_of_no_head_is_named(self, folder, tmp_path):
        with pytest.raises(ValueError, match=r"eval_sizes: no head 'audio': the model's heads are"):
            make_trainer(folder, tmp_path, trainer={"eval_sizes": {"audio": 6}})

    def test_it_has_no_rows_by_index(self, folder, tmp_path):
        trainer = make_trainer(
            folder, tmp_path, trainer={"eval_dataset": {"videos": generated(folder)}, "eval_sizes": {"videos": 6}}
        )
        with pytest.raises(ValueError, match="dataset 'videos' is a stream: its rows come by RowSampler"):
            trainer.eval_dataset["videos"][0]

    def test_a_shard_that_is_damaged_is_named(self, folder, tmp_path):
        path = tmp_path / "rows.parquet"
        datasets.Dataset.from_list(list(image_stream(folder))).to_parquet(path)
        stream = datasets.load_dataset("parquet", data_files={"test": str(path)}, split="test", streaming=True)
        trainer = make_trainer(
            folder, tmp_path, trainer={"eval_dataset": {"images": stream}, "eval_sizes": {"images": 12}}
        )
        content = bytearray(path.read_bytes())
        content[4:200] = bytes(196)
        path.write_bytes(content)
        with pytest.raises(ValueError, match="dataset 'images': its rows, shard 0 cannot be read on: "):
            trainer.evaluate()
