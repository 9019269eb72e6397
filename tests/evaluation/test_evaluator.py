# SPDX-License-Identifier: Apache-2.0
"""`evaluate`'s metrics and evaluator, on any video-classification pipeline and any dataset."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import perturb
from clips import moving_frames, write_clip
from datasets import ClassLabel, Dataset, Features, Sequence, Value, Video
from modeling_cover.evaluation.evaluator import VideoClassificationEvaluator
from modeling_cover.evaluation.metrics import (
    MeanAveragePrecision,
    TopKAccuracy,
    mean_average_precision,
    top_k_accuracy,
)
from scipy.stats import bootstrap
from tiny import ENCODER, save_tiny
from transformers import VideoMAEConfig, VideoMAEForVideoClassification, VideoMAEImageProcessor, pipeline


LABELS = ["up", "down", "left", "right", "round", "still"]
TAGS = ["red", "green", "blue"]


class TestMetrics:
    def test_top_k_is_the_share_of_rows_whose_class_torch_finds_among_the_largest(self):
        logits, classes = torch.randn(50, 9, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 9
        found = TopKAccuracy().compute(predictions=logits.topk(5).indices, references=classes)
        for k, name in ((1, "top1"), (5, "top5")):
            expected = (logits.topk(k).indices == classes[:, None]).any(dim=1).float().mean().item()
            assert found[name] == pytest.approx(expected)

    def test_rows_may_come_in_batches(self):
        rng = np.random.default_rng(0)
        best, classes = rng.integers(0, 6, (40, 5)), rng.integers(0, 6, 40)
        metric = TopKAccuracy()
        for first in range(0, 40, 16):
            metric.add_batch(predictions=best[first : first + 16], references=classes[first : first + 16])
        assert metric.compute() == top_k_accuracy(best, classes)

    def test_average_precision_is_that_of_the_same_arrays(self):
        rng = np.random.default_rng(0)
        scores, has_label = rng.normal(size=(60, 7)).astype(np.float32), rng.random((60, 7)) < 0.3
        found = MeanAveragePrecision().compute(predictions=scores, references=has_label)
        assert found == {"map": mean_average_precision(scores, has_label)}

    def test_nothing_is_left_on_the_disk(self, tmp_path):
        (tmp_path / "file").touch()
        # Where there can be no folder, as in a home that is read-only.
        for folder in (tmp_path, tmp_path / "file"):
            TopKAccuracy(cache_dir=str(folder)).compute(predictions=[[1, 0]], references=[1])
        assert [path.name for path in tmp_path.rglob("*")] == ["file"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("clips")
    return [
        write_clip(folder / f"{number}.mp4", np.roll(moving_frames(12), 11 * number, axis=2)) for number in range(6)
    ]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    heads = {"moves": {"labels": LABELS}, "tags": {"labels": TAGS, "problem_type": "multi_label_classification"}}
    save_tiny(folder, heads)
    return folder


def labelled(clips: list[str], labels: list[int]) -> Dataset:
    features = Features({"video": Video(decode=False), "label": ClassLabel(names=LABELS)})
    return Dataset.from_dict({"video": clips, "label": labels}, features=features)


def measured(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in scores.items() if not name.endswith(("_in_seconds", "_per_second"))}


class TestEvaluator:
    def test_of_our_pipeline_the_metrics_are_those_of_its_answers(self, checkpoint, clips):
        classify = pipeline("cover-video-classification", model=str(checkpoint))
        best = [[LABELS.index(entry["label"]) for entry in classify(clip)] for clip in clips]
        labels = [row[number % 3] for number, row in enumerate(best)]  # the first, second and third in turn
        scores = VideoClassificationEvaluator().compute(classify, labelled(clips, labels))
        assert measured(scores) == {"top1": pytest.approx(2 / 6), "top5": 1.0}
        assert scores["samples_per_second"] == pytest.approx(6 / scores["total_time_in_seconds"])

    def test_options_are_the_pipelines(self, checkpoint, clips):
        classify = pipeline("cover-video-classification", model=str(checkpoint))
        options = {"head": "moves", "views": 3, "num_clips": 2}
        labels = [LABELS.index(classify(clip, **options)[0]["label"]) for clip in clips]
        scores = VideoClassificationEvaluator().compute(str(checkpoint), labelled(clips, labels), **options)
        assert scores["top1"] == 1.0

    def test_names_and_files_as_bytes_do_as_well(self, checkpoint, clips):
        classify = pipeline("cover-video-classification", model=str(checkpoint))
        names = [classify(clip)[0]["label"] for clip in clips]
        data = Dataset.from_dict({"clip": [Path(clip).read_bytes() for clip in clips], "class": names})
        evaluator = VideoClassificationEvaluator()
        scores = evaluator.compute(classify, data, input_column="clip", label_column="class")
        assert measured(scores) == {"top1": 1.0, "top5": 1.0}

    def test_of_several_labels_a_row_it_is_the_mean_average_precision(self, checkpoint, clips):
        classify = pipeline("cover-video-classification", model=str(checkpoint))
        has_label = np.array([[1, 0, 1], [0, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1]], dtype=bool)
        features = Features({"video": Value("string"), "label": Sequence(ClassLabel(names=TAGS))})
        rows = {"video": clips, "label": [np.flatnonzero(row).tolist() for row in has_label]}
        answers = [{entry["label"]: entry["score"] for entry in classify(clip, head="tags")} for clip in clips]
        scores = np.array([[answer[tag] for tag in TAGS] for answer in answers], dtype=np.float32)
        data = Dataset.from_dict(rows, features=features)
        found = VideoClassificationEvaluator().compute(classify, data, head="tags")
        assert measured(found) == {"map": mean_average_precision(scores, has_label)}

    @pytest.mark.parametrize("as_bytes", [False, True])
    def test_of_anothers_pipeline_too(self, clips, as_bytes):
        config = VideoMAEConfig(**ENCODER, image_size=32, num_frames=4, id2label=dict(enumerate(LABELS)))
        torch.manual_seed(0)
        processor = VideoMAEImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        model = perturb(VideoMAEForVideoClassification(config)).eval()
        classify = pipeline("video-classification", model=model, image_processor=processor)
        labels = [LABELS.index(classify(clip)[0]["label"]) for clip in clips]
        data = labelled(clips, [*labels[:-1], (labels[-1] + 1) % 6])
        if as_bytes:
            files = [{"bytes": Path(clip).read_bytes(), "path": None} for clip in clips]
            data = Dataset.from_dict({"video": files, "label": data["label"][:]}, features=data.features)
        assert VideoClassificationEvaluator().compute(classify, data)["top1"] == pytest.approx(5 / 6)

    def test_intervals_are_evaluates_bootstrap(self, checkpoint, clips):
        classify = pipeline("cover-video-classification", model=str(checkpoint))
        labels = [LABELS.index(classify(clip)[number % 2]["label"]) for number, clip in enumerate(clips)]
        options = {"strategy": "bootstrap", "n_resamples": 200, "random_state": 0}
        scores = VideoClassificationEvaluator().compute(classify, labelled(clips, labels), **options)
        expected = bootstrap(([1, 0, 1, 0, 1, 0],), np.mean, n_resamples=200, rng=0)
        assert scores["top1"]["score"] == 0.5
        assert scores["top1"]["confidence_interval"] == pytest.approx(expected.confidence_interval)
        assert scores["top1"]["standard_error"] == pytest.approx(expected.standard_error)


class TestBadInput:
    def test_a_column_that_is_not_there(self, checkpoint, clips):
        with pytest.raises(ValueError, match=r"Invalid `input_column` film specified.*'video', 'label'"):
            VideoClassificationEvaluator().compute(str(checkpoint), labelled(clips, [0] * 6), input_column="film")

    def test_no_rows(self, checkpoint):
        with pytest.raises(ValueError, match="data: it has no rows"):
            VideoClassificationEvaluator().compute(str(checkpoint), labelled([], []))

    def test_a_head_of_other_labels(self, checkpoint, clips):
        with pytest.raises(
            ValueError, match="the pipeline gives the label 'blue', and the dataset has 'down', 'left'"
        ):
            VideoClassificationEvaluator().compute(str(checkpoint), labelled(clips, [0] * 6), head="tags")

    def test_a_name_that_the_model_does_not_know(self, checkpoint, clips):
        data = Dataset.from_dict({"video": clips, "label": ["up"] * 5 + ["over"]})
        with pytest.raises(
            ValueError, match="row 5 of the dataset has the label 'over', and the model 'down', 'left'"
        ):
            VideoClassificationEvaluator().compute(str(checkpoint), data)

    def test_labels_that_are_kept_back(self, checkpoint, clips):
        with pytest.raises(ValueError, match="row 2 of the dataset has the label -1, and the model 'down', 'left'"):
            VideoClassificationEvaluator().compute(str(checkpoint), labelled(clips, [0, 1, -1, 2, 3, 4]))

    def test_a_pipeline_for_something_else(self, checkpoint, clips):
        classify = pipeline("cover-video-classification", model=str(checkpoint))
        classify.task = "image-classification"
        with pytest.raises(ValueError, match="expected a pipeline for video-classification, got one for image-"):
            VideoClassificationEvaluator().compute(classify, labelled(clips, [0] * 6))

    def test_scipy_that_is_missing_is_named_with_the_extra(self, monkeypatch):
        monkeypatch.setattr(sys.modules["evaluate.evaluator.base"], "SCIPY_AVAILABLE", False)
        with pytest.raises(ImportError, match=r"scipy.*pip install modeling-cover\[evaluator\]"):
            VideoClassificationEvaluator()
