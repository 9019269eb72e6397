# SPDX-License-Identifier: Apache-2.0
"""What a run logs, as lines of a table."""

import dataclasses

import pytest
from killed_runs import build_recipe, write_data
from modeling_cover.training.log_table import ROWS_A_HEADER, LogTable, plain_line
from short_runs import make_trainer, with_validation
from transformers import TrainerControl, TrainerState


LOGS = {
    "loss": 3.456,
    "k400_loss": 1.2345,
    "k400_top1": 0.431,
    "tags_loss": 0.51,
    "learning_rate": 1e-3,
    "samples_per_second": 123.4,
    "data_wait": 0.021,
}


def written(*entries: dict, names=("k400", "tags", "unseen")) -> list[str]:
    lines = []
    table = LogTable(names, lines.append)
    state = TrainerState(max_steps=200, global_step=50, epoch=0.25, is_world_process_zero=True)
    for logs in entries:
        table.on_log(None, state, TrainerControl(), logs=logs)
    return lines


class TestTheTable:
    def test_a_log_is_a_line_with_loss_and_top1_of_each_dataset(self):
        head, line = written(LOGS)
        assert head.split() == [
            "step",
            "epoch",
            "loss",
            "k400",
            "tags",
            "unseen",
            "learning",
            "rate",
            "samples/s",
            "data",
            "wait",
        ]
        assert line.split() == ["50/200", "0.25", "3.46", "1.23", "43.1%", "0.51", "-", "0.001", "123", "2.1%"]
        assert [line[head.index(name) :].split()[0] for name in ("k400", "tags", "unseen")] == ["1.23", "0.51", "-"]

    def test_the_smallest_losses_leave_the_columns_where_they_are(self):
        for loss in (1.23456e-4, 1.23456e-5):
            head, line = written({**LOGS, "k400_loss": loss, "k400_top1": 1.0})
            assert line[head.index("tags") - 2 :].startswith("  0.51")

    def test_an_evaluation_of_all_datasets_is_one_line(self):
        evaluated = [
            {"eval_k400_loss": 1.5, "eval_k400_top1": 0.4, "eval_k400_runtime": 3.0},
            {"eval_tags_loss": 0.6, "eval_tags_map": 0.2},
            {"eval_mean_top1": 0.4, "eval_mean_score": 0.3},
        ]
        *_, line = lines = written(LOGS, *evaluated)
        assert len(lines) == 3
        assert line.split() == ["50/200", "0.25", "eval", "1.5", "40.0%", "0.6", "20.0%", "-", "mean", "30.0%"]

    def test_metrics_of_a_users_own_are_at_its_end(self):
        evaluated = {
            "eval_k400_loss": 1.5,
            "eval_k400_top1": 0.4,
            "eval_k400_top5": 0.9,
            "eval_k400_runtime": 3.0,
            "eval_k400_recall": 0.25,
        }
        _, line = written(evaluated, {"eval_mean_score": 0.3})
        assert line.endswith("mean 30.0%  k400_recall 0.25")

    def test_metrics_that_have_no_mean_are_written_at_once(self):
        lines = written({"eval_k400_loss": 1.5, "eval_k400_worst": "falling"}, {"eval_tags_loss": 0.5})
        assert [line.split()[2:4] for line in lines] == [["loss", "k400"], ["eval", "1.5"], ["eval", "-"]]
        assert lines[1].endswith("k400_worst falling")

    def test_without_a_mean_it_is_written_before_what_comes_next(self):
        lines = written({"eval_k400_loss": 1.5}, LOGS)
        assert [line.split()[2] for line in lines] == ["loss", "eval", "3.46"]

    def test_skipped_steps_and_bad_files_are_at_the_end_of_a_line_where_there_are_some(self):
        bad = {"k400_bad_files": 3, "tags_bad_files": 0}
        _, line = written({**LOGS, **bad, "skipped_steps": 2, "mfu": 0.4})
        assert line.endswith("2.1%       MFU 40.0%  skipped 2  bad files of k400 3")

    def test_the_header_comes_again(self):
        lines = written(*[LOGS] * (ROWS_A_HEADER + 1))
        assert [index for index, line in enumerate(lines) if line.startswith("step")] == [0, ROWS_A_HEADER + 1]

    def test_what_somebody_else_logs_is_a_line_too(self):
        assert plain_line({"lucky": 0.123456, "total_flos": 9, "name": "x"}) == "lucky 0.1235  name x"

    def test_an_evaluation_of_a_dataset_without_a_column_is_lines_of_its_own(self):
        evaluated = {"eval_later_loss": 1.5, "eval_later_top1": 0.4}
        assert written(evaluated, {"eval_mean_score": 0.4}) == [
            "eval_later_loss 1.5  eval_later_top1 0.4",
            "eval_mean_score 0.4",
        ]

    def test_a_process_that_is_not_the_main_one_writes_nothing(self):
        lines = []
        state = TrainerState(max_steps=2, is_world_process_zero=False)
        LogTable(["k400"], lines.append).on_log(None, state, TrainerControl(), logs=LOGS)
        assert lines == []


@pytest.mark.parametrize("disable_tqdm", [True, False])
def test_a_run_prints_no_dictionaries(tmp_path, capsys, disable_tqdm):
    write_data(tmp_path)
    options = {"eval_strategy": "epoch", "logging_steps": 1, "disable_tqdm": disable_tqdm}
    trainer = make_trainer(tmp_path, tmp_path / "run", with_validation(build_recipe(tmp_path)), **options)
    trainer.train()
    out = capsys.readouterr().out
    assert "{" not in out
    lines = out.splitlines()
    assert lines[-1].startswith("trained up to step 6 in 0:00:")
    steps = [line.split()[0] for line in lines if "eval" not in line and "/6 " in line]
    assert steps == [f"{step}/6" for step in range(1, 7)]
    assert any("eval_videos_top1" in entry for entry in trainer.state.log_history)  # the log itself is as it was


def test_a_run_that_is_over_says_that_no_step_is_left(tmp_path, capsys):
    write_data(tmp_path)
    for said in ("trained up to step 6 in ", "no step was left after step 6"):
        make_trainer(tmp_path, tmp_path / "run").train(resume_from_checkpoint="auto")
        assert capsys.readouterr().out.splitlines()[-1].startswith(said)


def test_a_head_that_is_kept_from_another_run_has_no_column(tmp_path, capsys):
    write_data(tmp_path)
    make_trainer(tmp_path, tmp_path / "first").save_model()
    recipe = build_recipe(tmp_path)
    videos = dataclasses.replace(
        recipe, datasets=recipe.datasets[:1], model={"from_pretrained": str(tmp_path / "first")}
    )
    trainer = make_trainer(tmp_path, tmp_path / "second", videos, max_steps=1, logging_steps=1)
    assert set(trainer.head_names) == {"videos", "images"}
    trainer.train()
    (head,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert head.split()[:4] == ["step", "epoch", "loss", "videos"]
    assert "images" not in head
