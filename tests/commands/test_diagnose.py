# SPDX-License-Identifier: Apache-2.0
"""`cover diagnose`: what it prints and leaves, and what it cannot do, said on one line."""

import json

import pytest
import yaml
from killed_runs import write_data
from modeling_cover.commands import diagnose
from tiny import ENCODER


ARGUMENTS = ["--per_device_train_batch_size", "8", "--use_cpu", "True", "--disable_tqdm", "True"]
VIDEOS = {
    "name": "videos",
    "format": "class_folders",
    "modality": "video",
    "splits": {"train": "videos", "validation": "videos"},
}
IMAGES = {
    "name": "images",
    "format": "parquet",
    "modality": "image",
    "splits": {"train": "images"},
    "streaming": True,
    "sizes": {"train": 12},
}


@pytest.fixture
def run(tmp_path, capsys):
    """Diagnoses a recipe with other sections, and returns the exit code and what was printed."""
    write_data(tmp_path)

    def run(*arguments, **sections):
        recipe = {
            "data_root": str(tmp_path),
            "model": ENCODER,
            "clips": {"num_frames": 2, "image_size": 16},
            "bad_files": {"max_share": 0.5},
            "datasets": [VIDEOS, IMAGES],
            "training": {
                "num_train_epochs": 100,
                "save_strategy": "epoch",
                "learning_rate_drop_epochs": [50],
                "restart_schedule": True,
                "eval_on_start": True,
            },
        }
        path = tmp_path / "mixed.yaml"
        path.write_text(yaml.safe_dump({**recipe, **sections}))
        output = ["--output", str(tmp_path / "diagnosis")]
        code = diagnose.main([str(path), "--steps", "6", *output, *ARGUMENTS, *arguments])
        return code, capsys.readouterr()

    return run


def test_it_prints_tables_and_sentences_and_leaves_figures_and_a_picture(run, tmp_path):
    code, printed = run()
    assert code == 0
    assert "dataset  of the rows  weight" in printed.out
    assert "images, videos" in printed.out
    assert "- images and videos" in printed.out
    folder = tmp_path / "diagnosis"
    assert sorted(path.name for path in folder.iterdir()) == ["diagnosis.json", "diagnosis.png"]
    found = json.loads((folder / "diagnosis.json").read_text())
    assert (found["steps"], found["rows_per_step"], found["datasets"]) == (6, 8, ["images", "videos"])


@pytest.mark.parametrize(
    ("arguments", "sections", "message"),
    [
        ((), {"datasets": [VIDEOS]}, "diagnose: 'videos' is trained alone, expected at least two datasets to compare"),
        (("--output_dir", "outputs/trained"), {}, "--output_dir: nothing of the run is kept; --output is the folder"),
        (("--max_steps", "1"), {}, "diagnose: none of 1 steps could be measured, take more --steps"),
        (("--optim", "adafactor"), {}, "what Adafactor makes of a gradient is not known"),
        (("--trained_part", "heads"), {}, "diagnose: the encoder is frozen: no gradients of datasets meet in it"),
        (("--checkpoint", "/nowhere/at/all"), {}, "model: /nowhere/at/all cannot be loaded"),
    ],
)
def test_what_it_cannot_do_is_said_without_a_traceback(run, arguments, sections, message):
    code, printed = run(*arguments, **sections)
    assert code == 2
    assert message in printed.err
    assert "Traceback" not in printed.err


def test_debug_with_a_value_is_a_training_argument():
    _, others = diagnose.parse_arguments(["mixed.yaml", "--debug", "underflow_overflow"])
    assert others == ["--debug", "underflow_overflow"]


def test_one_step_is_too_few(run, capsys):
    with pytest.raises(SystemExit):
        run("--steps", "1")
    assert "--steps must be at least 2, got 1" in capsys.readouterr().err
