# SPDX-License-Identifier: Apache-2.0
"""Metrics of a user's own, beside those that an evaluation has."""

import json

import numpy as np
import pytest
import torch
from forked_runs import start_processes
from given_datasets import Rows
from killed_runs import build_recipe
from modeling_cover import CoverTrainer, CoverTrainingArguments, prepare_cotraining
from modeling_cover.evaluation.metrics import ComputeWithFunctions, compute_metrics, metric_inputs
from short_runs import with_validation
from tiny import tiny_model, tiny_processor
from transformers import EvalPrediction


def recall(logits, targets):
    return np.mean([(logits.argmax(-1) == targets)[targets == label].mean() for label in np.unique(targets)])


def make_trainer(folder, output_dir, metrics, **options) -> CoverTrainer:
    quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "per_device_train_batch_size": 4}
    args = CoverTrainingArguments(str(output_dir), **quiet, max_steps=4, **options)
    torch.manual_seed(0)
    cotraining = prepare_cotraining(with_validation(build_recipe(folder)), output_dir=output_dir)
    return CoverTrainer(args=args, metrics=metrics, **cotraining.trainer_kwargs)


def readable_outputs(trainer) -> tuple[np.ndarray, np.ndarray]:
    """Logits and classes of the videos that can be decoded, one of six cannot."""
    output = trainer.predict(trainer.eval_dataset["videos"])
    readable = output.label_ids != -100
    assert readable.sum() == 5
    return output.predictions[readable], output.label_ids[readable]


class TestAFunction:
    def test_it_sees_the_logits_and_targets_of_the_rows_that_could_be_decoded(self, folder, tmp_path):
        seen = []

        def note(logits, targets):
            seen.append((logits, targets))
            return 0.5

        trainer = make_trainer(folder, tmp_path, {"note": note})
        metrics = trainer.evaluate()
        assert metrics["eval_videos_note"] == 0.5
        logits, targets = readable_outputs(trainer)
        assert np.array_equal(seen[0][0], logits) and np.array_equal(seen[0][1], targets)
        assert logits.dtype == np.float32 and logits.shape == (5, 2)

    def test_it_changes_none_of_the_metrics_that_there_are(self, folder, tmp_path):
        with_it = make_trainer(folder, tmp_path / "with", {"recall": recall}).evaluate()
        without = make_trainer(folder, tmp_path / "without", None).evaluate()
        of_time = ("_runtime", "_per_second", "_time")
        assert with_it.pop("eval_videos_recall") > 0
        assert {key: value for key, value in with_it.items() if not key.endswith(of_time)} == {
            key: value for key, value in without.items() if not key.endswith(of_time)
        }
        assert {"eval_videos_top1", "eval_videos_unreadable", "eval_mean_top1"} <= with_it.keys()

    def test_it_is_logged_and_chooses_the_best_checkpoint(self, folder, tmp_path):
        values = iter([0.1, 0.9, 0.4, 0.3])
        options = {"save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
        metrics = {"chance": lambda logits, targets: next(values)}
        trainer = make_trainer(folder, tmp_path, metrics, metric_for_best_model="videos_chance", **options)
        trainer.train()
        logged = [entry["eval_videos_chance"] for entry in trainer.state.log_history if "eval_videos_chance" in entry]
        assert logged == [0.1, 0.9, 0.4, 0.3]
        assert (trainer.state.best_metric, trainer.state.best_global_step) == (0.9, 2)

    def test_two_processes_compute_what_one_does(self, folder, tmp_path):
        expected = make_trainer(folder, tmp_path / "one", {"recall": recall}).evaluate()["eval_videos_recall"]
        theirs, log = tmp_path / "two" / "recall.json", tmp_path / "log"
        started = start_processes(evaluate_in_process, 2, log, {"ACCELERATE_USE_CPU": "true"}, folder, theirs)
        assert started.wait(600) == 0, log.read_text()[-3000:]
        assert json.loads(theirs.read_text()) == pytest.approx(expected)

    def test_of_several_labels_a_row_the_targets_are_one_and_zero(self):
        logits = np.array([[2.0, -1.0], [-1.0, 3.0]], np.float16)
        targets = np.array([[1.0, 0.0], [1.0, 1.0]], np.float32)
        exact = lambda logits, targets: np.float32(((logits > 0) == (targets > 0)).all(-1).mean())  # noqa: E731
        found = ComputeWithFunctions({"exact": exact})(EvalPrediction(logits, targets))
        assert found == {**compute_metrics(EvalPrediction(logits, targets)), "exact": 0.5}
        assert type(found["exact"]) is float

    def test_top_5_is_that_of_the_logits(self):
        logits, targets = np.random.default_rng(0).normal(size=(40, 9)).astype(np.float32), np.arange(40) % 9
        inputs = metric_inputs(torch.from_numpy(logits), torch.from_numpy(targets)).numpy()
        found = ComputeWithFunctions({"one": lambda *_: 1})(EvalPrediction(logits, targets))
        assert found == {**compute_metrics(EvalPrediction(inputs, targets)), "one": 1.0}


def evaluate_in_process(folder, output) -> None:
    trainer = make_trainer(folder, output.parent, {"recall": recall})
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        output.write_text(json.dumps(metrics["eval_videos_recall"]))


class TestMistakes:
    @pytest.mark.parametrize(
        ("metrics", "message"),
        [
            ({"top1": recall}, "metric 'top1': an evaluation has one of that name already"),
            ({"a b": recall}, "metric name 'a b': expected letters"),
            ({"recall": "recall"}, r"metric 'recall': expected a function of \(logits, targets\), got 'recall'"),
            ([recall], "metrics: expected a function for each name, got"),
        ],
    )
    def test_what_is_no_metric_is_named_at_the_start(self, folder, tmp_path, metrics, message):
        with pytest.raises(ValueError, match=message):
            make_trainer(folder, tmp_path, metrics)

    def test_what_is_no_number_is_named(self, folder, tmp_path):
        trainer = make_trainer(folder, tmp_path, {"hits": lambda logits, targets: logits.argmax(-1) == targets})
        with pytest.raises(ValueError, match="metric 'hits': expected a number, got ndarray"):
            trainer.evaluate()

    def test_the_best_by_a_metric_that_is_not_there_is_refused_with_those_there_are(self, folder, tmp_path):
        with pytest.raises(ValueError, match=r"no 'eval_videos_recal', its metrics are .*eval_videos_recall"):
            make_trainer(
                folder, tmp_path, {"recall": recall}, metric_for_best_model="videos_recal", eval_strategy="epoch"
            )

    @pytest.mark.parametrize("key", ["compute_metrics", "preprocess_logits_for_metrics"])
    def test_they_and_what_takes_their_place_are_not_both_given(self, tmp_path, key):
        data = {
            "clips": Rows([{"video": np.zeros((4, 40, 40, 3), np.uint8), "label": row} for row in (0, 1)], ["a", "b"])
        }
        model = tiny_model({"clips": {"labels": ["a", "b"]}})
        args = CoverTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
        options = {"metrics": {"recall": recall}, key: compute_metrics, "processing_class": tiny_processor()}
        with pytest.raises(ValueError, match=f"metrics: they come on top of the trainer's own, which {key} takes the"):
            CoverTrainer(model, args, train_dataset=data, **options)
