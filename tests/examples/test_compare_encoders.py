# SPDX-License-Identifier: Apache-2.0
"""Encoders of each kind learn the quickstart's datasets together, and the script that compares them."""

import dataclasses
from pathlib import Path

import compare_encoders
import numpy as np
import pytest
import torch
from compare_encoders import PRESETS, build_model, heads_of_data, read_data, steps_of, trainer_of
from encoder_sizes import HEADS, OURS, TINY, operations, tiny_config, tiny_encoder
from encoders import CONFIGS
from modeling_cover import CoverForVideoClassification
from modeling_cover.model.encoders_cover import ENCODERS
from transformers import set_seed


LEARNS_MOTION = [OURS, *(kind for kind in TINY if not ENCODERS[kind].takes_frames)]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> compare_encoders.Data:
    return read_data(tmp_path_factory.mktemp("quickstart"), scale=0.5)


def train(model: CoverForVideoClassification, data: compare_encoders.Data, steps: int, folder: Path) -> dict:
    """The top-1 of each head after training on all datasets together, as a multiple of chance."""
    trainer = trainer_of(model, "tiny", data, steps, str(folder))
    trainer.train()
    metrics = trainer.evaluate()
    return {name: metrics[f"eval_{name}_top1"] * len(splits["train"].classes) for name, splits in data.items()}


def test_there_is_a_tiny_one_of_each_kind():
    assert TINY.keys() == CONFIGS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [OURS, *TINY])
def test_sixty_steps_from_random_weights_beat_chance_three_times_over(kind, data, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    set_seed(1)
    # A mean over frames is the same whichever way they are played, and each motion is another one played backwards.
    learnt = set(data) if kind in LEARNS_MOTION else {"shapes", "textures"}
    rows = {OURS: 256, "videoprism_vision_model": 256}.get(kind, 128 if "motions" in learnt else 64)
    monkeypatch.setitem(PRESETS, "tiny", dataclasses.replace(PRESETS["tiny"], rows=rows))
    found = train(build_model(kind, "tiny", heads_of_data(data)), data, 60, tmp_path)
    assert all(found[name] >= 3 for name in learnt), found


@pytest.mark.slow
def test_with_a_layer_of_attention_over_frames_an_encoder_of_images_learns_motion(data, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    set_seed(1)
    monkeypatch.setitem(PRESETS, "tiny", dataclasses.replace(PRESETS["tiny"], num_frames=4, rows=96))
    heads = {"heads": heads_of_data(data), "default_head": "motions"}
    model = tiny_encoder("vit", num_frames=4, encoder_temporal_layers=1, **heads)
    found = train(model, data, 240, tmp_path)
    assert all(times >= 3 for times in found.values()), found


class TestOperations:
    def test_a_backward_pass_costs_twice_the_forward_pass_and_an_image_no_more_than_a_token_of_time(self):
        clip, image = operations(tiny_config("videomae", heads=HEADS), 4, 40)
        assert 2 * image <= clip < 2.2 * image

    @pytest.mark.parametrize("kind", ["vit", "siglip2_vision_model"])
    def test_encoders_of_images_take_frames_one_by_one(self, kind):
        clip, image = operations(tiny_config(kind, heads=HEADS), 4, 40)
        assert clip == 4 * image

    def test_cheaper_encoders_take_more_steps(self):
        heads = {name: {"labels": ["a", "b"], "modality": "video"} for name in compare_encoders.SHARES}
        ours, videomae = (steps_of(kind, "tiny", heads, 0.1) for kind in (OURS, "videomae"))
        assert 1 < ours < videomae


class TestScript:
    @pytest.mark.parametrize("kind", ["videomae", "vit"])
    def test_a_row_has_what_an_encoder_costs_and_the_top1_of_each_head_alone_and_together(self, kind, tmp_path):
        rng, data = np.random.default_rng(0), {}
        for name in compare_encoders.SHARES:
            shape = (12, 40, 40, 3) if name == "textures" else (12, 4, 40, 40, 3)
            rows = compare_encoders.Rows(rng.integers(0, 256, shape, dtype=np.uint8), np.arange(12) % 2, ["a", "b"])
            data[name] = {"train": rows, "validation": rows}
        compare_encoders.save_data(str(tmp_path / "data.npz"), data)
        row = compare_encoders.compare(kind, "tiny", str(tmp_path / "data.npz"), 0.002, False)
        assert row[0] == f"`{kind}`"
        assert int(row[4]) >= 1
        assert all(cell.count("%") == 2 for cell in row[-3:])

    @pytest.mark.slow
    def test_it_prints_what_each_encoder_costs_and_learns(self, tmp_path, capsys):
        arguments = ["--kinds", "videomae", "--data", str(tmp_path / "data"), "--scale", "0.02"]
        assert compare_encoders.main([*arguments, "--tera_operations", "0.002", "--processes", "1"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split("|")[1].strip() for line in lines if line.startswith("| `")] == ["`videomae`"]
        assert all(line.count(" / ") == 3 for line in lines if line.startswith("|") and "---" not in line)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--kinds", "resnet"], "--kinds: expected some of"),
            (["--pretrained"], "there are no weights of tiny encoders"),
        ],
    )
    def test_what_it_does_not_take_is_named(self, arguments, message, capsys):
        with pytest.raises(SystemExit):
            compare_encoders.main(arguments)
        assert message in capsys.readouterr().err
