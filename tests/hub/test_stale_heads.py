# SPDX-License-Identifier: Apache-2.0
"""Heads that came with a checkpoint, and that the run which started from it did not train: who is told of them."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import indexed_frames, write_clip
from lazy import lazily
from modeling_cover import CoverConfig, prepare_cotraining
from modeling_cover.commands import predict
from modeling_cover.hub.checkpoint_files import SUMMARY_NAME
from modeling_cover.hub.model_card import build_model_card
from modeling_cover.hub.run_record import read_summary, stale_heads, stale_heads_of
from modeling_cover.recipe.dataset_recipe import DatasetRecipe
from modeling_cover.recipe.recipe import ClipRecipe, Recipe
from tiny import save_tiny, tiny_trainer


demo = lazily("modeling_cover.commands.demo")

HEADS = {"k400": {"labels": ["abseiling", "zumba"]}, "gestures": {"labels": ["point", "wave"]}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint with two heads, and clips for one of them."""
    folder = tmp_path_factory.mktemp("stale")
    save_tiny(folder / "start", HEADS)
    for number, label in enumerate(("point", "wave")):
        (folder / "clips" / label).mkdir(parents=True)
        write_clip(folder / "clips" / label / "0.mp4", indexed_frames(4) + np.uint8(number))
    return folder


def recipe_of(folder: Path, **model) -> Recipe:
    splits = {"train": str(folder / "clips")}
    dataset = DatasetRecipe(name="gestures", format="class_folders", modality="video", splits=splits)
    clips = ClipRecipe(num_frames=4, image_size=32, short_side=40)
    return Recipe(datasets=(dataset,), clips=clips, model={"from_pretrained": str(folder / "start"), **model})


def trained(folder: Path, output: Path, model: dict | None = None, **options) -> Path:
    options = {"max_steps": 1, "per_device_train_batch_size": 2, **options}
    trainer = tiny_trainer(recipe_of(folder, **(model or {})), output, **options)
    trainer.train()
    trainer.save_model()
    return output


@pytest.fixture(scope="module")
def checkpoint(folder) -> Path:
    return trained(folder, folder / "run")


class TestWhichAreStale:
    def test_those_that_a_run_of_the_encoder_had_no_data_for(self, checkpoint):
        config, summary = CoverConfig.from_pretrained(checkpoint), read_summary(checkpoint)
        assert config.head_names == ["gestures", "k400"]
        assert stale_heads(summary, config) == stale_heads_of(checkpoint, config) == ["k400"]

    def test_none_where_heads_alone_were_trained(self, folder, tmp_path):
        run = trained(folder, tmp_path, trained_part="heads")
        assert stale_heads_of(run, CoverConfig.from_pretrained(run)) == []

    def test_where_heads_alone_were_trained_those_that_were_so_before(self, folder, checkpoint, tmp_path):
        run = trained(folder, tmp_path / "heads", {"from_pretrained": str(checkpoint)}, trained_part="heads")
        assert stale_heads_of(run, CoverConfig.from_pretrained(run)) == ["k400"]
        again = trained(folder, tmp_path / "again", {"from_pretrained": str(run)}, trained_part="heads")
        assert stale_heads_of(again, CoverConfig.from_pretrained(again)) == ["k400"]

    def test_none_of_a_checkpoint_without_a_record_or_with_a_damaged_one(self, folder, tmp_path, caplog):
        config = CoverConfig.from_pretrained(folder / "start")
        assert stale_heads_of(folder / "start", config) == []
        (tmp_path / SUMMARY_NAME).write_text("{")
        assert stale_heads_of(tmp_path, config) == []
        assert "Which heads were trained last is not known" in caplog.text

    def test_an_adapter_changes_what_they_classify(self, checkpoint):
        config, summary = CoverConfig.from_pretrained(checkpoint), read_summary(checkpoint)
        summary["training"]["trained_part"] = "heads"
        assert stale_heads(summary, config) == []
        summary["recipe"]["model"]["lora"] = {"r": 8}
        assert stale_heads(summary, config) == ["k400"]


class TestWhoIsTold:
    def test_the_log_of_the_run_names_them_at_its_start(self, folder, caplog):
        model = prepare_cotraining(recipe_of(folder)).model
        assert "Heads that are kept, and no dataset trains: k400" in caplog.text and "keep_heads: false" in caplog.text
        assert model.config.head_names == ["gestures", "k400"]

    def predicted(self, monkeypatch, capsys, folder: Path, *arguments) -> tuple[str, str]:
        clip = folder / "clips" / "wave" / "0.mp4"
        monkeypatch.setattr(sys, "argv", ["predict", str(clip), *map(str, arguments)])
        assert predict.main() == 0
        return capsys.readouterr()

    def test_predictions_mark_them(self, folder, checkpoint, monkeypatch, capsys):
        out, err = self.predicted(monkeypatch, capsys, folder, "--model", checkpoint)
        assert "k400 (stale)" in out and "gestures (stale)" not in out
        assert "not trained in the last run, which trained the encoder on other data: k400" in err
        out, _ = self.predicted(monkeypatch, capsys, folder, "--model", checkpoint, "--json")
        assert json.loads(out)[0]["stale"] == ["k400"]
        out, err = self.predicted(monkeypatch, capsys, folder, "--model", checkpoint, "--head", "gestures", "--json")
        assert "stale" not in json.loads(out)[0] and "not trained" not in err
        out, err = self.predicted(monkeypatch, capsys, folder, "--model", folder / "start")
        assert "(stale)" not in out and "not trained" not in err

    def test_the_page_of_the_demo_says_so(self, folder, checkpoint):
        uploads = demo.Uploads()
        page = demo.build_page(demo.Demo(str(checkpoint)), "title", uploads)
        assert "not trained in the last run, which trained the encoder on other data: k400" in str(
            page.get_config_file()
        )
        page = demo.build_page(demo.Demo(str(folder / "start")), "title", uploads)
        assert "not trained in the last run" not in str(page.get_config_file())

    def test_so_does_the_model_card(self, checkpoint):
        card = str(build_model_card(checkpoint))
        assert "had no data in this run: `k400`.\nThe run trained the encoder whose features they classify" in card


class TestDroppingThem:
    def test_what_no_dataset_trains_goes_and_what_is_trained_stays(self, folder, caplog):
        kept, dropped = (
            prepare_cotraining(recipe_of(folder, **options)).model for options in ({}, {"keep_heads": False})
        )
        assert dropped.config.head_names == ["gestures"] and set(dropped.classifiers) == {"gestures"}
        torch.testing.assert_close(
            dropped.classifiers["gestures"].weight, kept.classifiers["gestures"].weight, rtol=0, atol=0
        )
        assert "Heads that are dropped, as no dataset trains them: k400" in caplog.text

    def test_a_run_then_has_none_that_are_stale(self, folder, tmp_path):
        run = trained(folder, tmp_path, model={"keep_heads": False})
        assert stale_heads_of(run, CoverConfig.from_pretrained(run)) == []
        assert read_summary(run)["recipe"]["model"]["keep_heads"] is False

    def test_it_is_true_or_false_of_a_checkpoint_with_heads(self, folder):
        recipe = recipe_of(folder)
        with pytest.raises(ValueError, match="model: keep_heads must be true or false, got 'k400'"):
            recipe_of(folder, keep_heads="k400")
        with pytest.raises(ValueError, match="keep_heads is about the heads that a from_pretrained brings"):
            dataclasses.replace(recipe, model={"keep_heads": False})
