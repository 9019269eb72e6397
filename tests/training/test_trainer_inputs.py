# SPDX-License-Identifier: Apache-2.0
"""What a trainer is given and cannot use: named before anything is trained."""

import pytest
from killed_runs import build_recipe
from modeling_cover import CoverTrainer, CoverTrainingArguments, prepare_cotraining
from short_runs import make_trainer, with_validation
from transformers import TrainingArguments


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"loss_reduction": "sum"}, "loss_reduction must be one of"),
            (
                {"learning_rate_drop_epochs": [11.0], "lr_scheduler_type": "linear"},
                "needs lr_scheduler_type 'constant'",
            ),
            ({"learning_rate_drop_epochs": [4.0], "num_train_epochs": 3}, r"\[4.0\] are not between 0 and"),
            ({"learning_rate_drop_factor": 0.0}, "learning_rate_drop_factor must be a finite number above 0, got 0.0"),
            ({"layer_decay": 0}, "layer_decay must be a finite number above 0"),
            ({"new_parameters_learning_rate": -1.0}, "new_parameters_learning_rate must be a finite number"),
            ({"trained_part": "head"}, "trained_part must be one of"),
            ({"ema_decay": 1.0}, "from 0 to below 1, got 1.0"),
            ({"label_smoothing_factor": 1.0}, "from 0 to below 1, got 1.0"),
            ({"max_skipped_steps": 0}, "at least 1, got 0"),
            ({"save_only_model": True}, "could not resume from such a checkpoint"),
            ({"save_on_each_node": True}, "where all nodes see them"),
            ({"auto_find_batch_size": True}, "auto_find_batch_size: which samples a process reads follows"),
            ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy 'sequential'"),
        ],
    )
    def test_training_arguments_that_do_not_fit_are_named(self, tmp_path, options, message):
        options = {"lr_scheduler_type": "constant", **options}
        with pytest.raises(ValueError, match=message):
            CoverTrainingArguments(output_dir=str(tmp_path), report_to="none", **options)

    def test_weights_and_data_of_unknown_heads_are_named(self, folder, tmp_path):
        trainer = make_trainer(folder, tmp_path)
        for arguments in ({"loss_weights": {"k400": 1.0}}, {"eval_dataset": {"k400": None}}):
            with pytest.raises(ValueError, match=r"unknown datasets \['k400'\]: the model's heads are"):
                CoverTrainer(model=trainer.model, args=trainer.args, **arguments)

    def test_training_data_made_for_other_heads_is_refused(self, folder, tmp_path):
        cotraining = prepare_cotraining(build_recipe(folder), seed=0)
        cotraining.model.add_head("aardvarks", labels=["one", "two", "three"])
        with pytest.raises(ValueError, match=r"made for the heads \['images', 'videos'\], and the model has"):
            CoverTrainer(args=make_trainer(folder, tmp_path).args, **cotraining.trainer_kwargs)

    def test_arguments_that_would_do_nothing_are_refused(self, folder, tmp_path):
        trainer = make_trainer(folder, tmp_path)
        with pytest.raises(ValueError, match="expected CoverTrainingArguments, got TrainingArguments"):
            CoverTrainer(model=trainer.model, args=TrainingArguments(str(tmp_path), use_cpu=True))
        with pytest.raises(ValueError, match="expected datasets by name, or a CoTrainingDataset, got list"):
            CoverTrainer(model=trainer.model, args=trainer.args, train_dataset=[1])
        with pytest.raises(ValueError, match="compute_loss_func"):
            CoverTrainer(model=trainer.model, args=trainer.args, compute_loss_func=lambda *_: 0)

    def test_the_best_is_the_mean_score_wherever_one_is_asked_for(self, tmp_path):
        for options in ({"save_strategy": "best"}, {"lr_scheduler_type": "reduce_lr_on_plateau"}):
            args = CoverTrainingArguments(str(tmp_path), report_to="none", eval_strategy="steps", **options)
            assert (args.metric_for_best_model, args.greater_is_better) == ("eval_mean_score", True)
        assert args.lr_scheduler_kwargs == {"mode": "max"}
        options |= {"metric_for_best_model": "videos_loss", "lr_scheduler_kwargs": {"patience": 3}}
        args = CoverTrainingArguments(str(tmp_path), report_to="none", eval_strategy="steps", **options)
        assert args.lr_scheduler_kwargs == {"mode": "min", "patience": 3}

    def test_a_metric_that_no_evaluation_has_is_named_before_the_first(self, folder, tmp_path):
        options = {"eval_strategy": "steps", "metric_for_best_model": "top1"}
        with pytest.raises(ValueError, match="metric_for_best_model: an evaluation has no 'eval_top1', its metrics"):
            make_trainer(folder, tmp_path, with_validation(build_recipe(folder)), **options)

    def test_a_training_batch_that_does_not_say_whose_rows_are_whose_is_refused(self, folder, tmp_path):
        trainer = make_trainer(folder, tmp_path)
        collate = trainer.data_collator
        trainer.data_collator = lambda samples: {k: v for k, v in collate(samples).items() if k != "head_ids"}
        with pytest.raises(ValueError, match="a training batch needs head_ids"):
            trainer.train()

    def test_a_negative_weight_is_named(self, folder, tmp_path):
        trainer = make_trainer(folder, tmp_path)
        with pytest.raises(ValueError, match=r"must not be negative, got \{'videos': -1\}"):
            CoverTrainer(model=trainer.model, args=trainer.args, loss_weights={"videos": -1})
