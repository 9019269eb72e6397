# SPDX-License-Identifier: Apache-2.0
"""Model cards: what they say of a checkpoint, in the Hub's form; that their snippets run; and whose card is whose."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from checkpoints import QUICKSTART_LABELS, save_quickstart
from clips import write_clip
from encoders import model_of
from hub_server import HubServer
from huggingface_hub import EvalResult, ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from modeling_cover import CoverConfig
from modeling_cover.hub.checkpoint_files import SUMMARY_NAME
from modeling_cover.hub.model_card import (
    MODEL_CARD_NAME,
    TEMPLATE,
    build_model_card,
    escape_markdown,
    is_generated_card,
    write_model_card,
)
from modeling_cover.hub.run_record import read_summary, write_summary
from packageless import run_without_package
from python_server import python
from test_training_summary import make_recipe, make_trainer
from tiny import tiny_config


ROOT = Path(__file__).parents[2]
DATA = "What it was trained on"
WRITTEN_CARDS = sorted((ROOT / "model_cards").glob("*.md"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The output folder of a run of 6 steps on 6 clips and 12 images, with checkpoints at 3 and 6."""
    trainer = make_trainer(make_recipe(tmp_path_factory.mktemp("data")), tmp_path_factory.mktemp("run"))
    trainer.train()
    trainer.save_model()
    return Path(trainer.args.output_dir)


@pytest.fixture
def checkpoint(trained, tmp_path) -> Path:
    """A copy of it that a test may change."""
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-*"))
    return tmp_path / "run"


def change_summary(folder: Path, **changes) -> None:
    write_summary({**read_summary(folder), **changes}, folder)


def row_of(text: str, start: str) -> list[str]:
    """The cells of the row that begins so, of a section's only table."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def introduction(card: ModelCard) -> str:
    return card.text.split("\n## ")[0]


def section(card: ModelCard, title: str) -> str:
    return card.text.split(f"\n## {title}\n")[1].split("\n## ")[0]


class TestFrontMatter:
    def test_it_lists_the_last_evaluation_in_the_form_of_the_hub(self, checkpoint):
        metadata = metadata_load(write_model_card(checkpoint, "org/mine", license="cc-by-4.0"))
        assert metadata["library_name"] == "transformers"
        assert metadata["pipeline_tag"] == "video-classification"
        assert metadata["license"] == "cc-by-4.0"
        assert metadata["metrics"] == ["accuracy"]
        assert {"cover", "action-recognition"} <= set(metadata["tags"])
        measured = read_summary(checkpoint)["evaluation"]["videos"]
        result = EvalResult(
            task_type="video-classification",
            dataset_type="videos",
            dataset_name="videos",
            dataset_split="validation",
            metric_type="accuracy",
            metric_name="top-1 accuracy, head videos",
            metric_value=round(measured["top1"], 4),
        )
        assert model_index_to_eval_results(metadata["model-index"]) == ("mine", [result])

    def test_top_5_is_there_only_where_it_can_be_missed(self, checkpoint):
        assert "top5" in read_summary(checkpoint)["evaluation"]["videos"]
        config = CoverConfig.from_pretrained(checkpoint)
        heads = {**config.heads, "videos": {"labels": [*"abcdef"]}}
        config.update_heads(heads, "videos")
        config.save_pretrained(checkpoint)
        names = [result.metric_name for result in build_model_card(checkpoint).data.eval_results]
        assert names == ["top-1 accuracy, head videos", "top-5 accuracy, head videos"]

    def test_what_comes_from_the_hub_is_linked_there(self, checkpoint):
        start = {"kind": "from_image_checkpoint", "hub_id": "google/vit"}
        videos, images = read_summary(checkpoint)["datasets"]
        videos |= {"hub_id": "org/ucf101", "config_name": "full", "validation_split": "test"}
        change_summary(checkpoint, starting_point=start, datasets=[videos, images])
        card = build_model_card(checkpoint)
        assert (card.data.base_model, card.data.datasets) == ("google/vit", ["org/ucf101"])
        result = card.data.eval_results[0]
        assert (result.dataset_type, result.dataset_config, result.dataset_split) == ("org/ucf101", "full", "test")
        assert "(https://huggingface.co/google/vit)" in card.text
        assert row_of(section(card, DATA), "[`videos`]")[0] == "[`videos`](https://huggingface.co/datasets/org/ucf101)"

    def test_records_from_before_there_were_shares_of_the_update_have_a_card(self, checkpoint):
        path = checkpoint / "training_summary.json"
        summary = json.loads(path.read_text())
        for entry in summary["datasets"]:
            del entry["update_share"]
        path.write_text(json.dumps(summary))
        assert "of the update" not in build_model_card(checkpoint, "org/mine").text

    def test_a_license_that_allows_more_than_that_of_the_start_is_refused(self, checkpoint):
        start = {"kind": "from_encoder", "hub_id": "org/encoder", "license": "cc-by-nc-4.0"}
        change_summary(checkpoint, starting_point=start)
        with pytest.raises(
            ValueError, match=r"'apache-2.0' allows commercial use, which 'cc-by-nc-4.0' .*org/encoder"
        ):
            build_model_card(checkpoint, license="apache-2.0")
        assert build_model_card(checkpoint, license="cc-by-nc-sa-4.0").data.license == "cc-by-nc-sa-4.0"
        change_summary(checkpoint, starting_point={**start, "license": "mit"})
        assert build_model_card(checkpoint, license="apache-2.0").data.license == "apache-2.0"

    def test_it_survives_being_read_and_written(self, checkpoint):
        card = build_model_card(checkpoint, "org/mine", license="other", license_name="no: 'such' # license")
        again = ModelCard(str(card))
        assert again.data.to_dict() == card.data.to_dict()
        assert str(again) == str(card)

    def test_emissions_are_in_grams(self, checkpoint):
        change_summary(checkpoint, emissions=0.75)
        card = build_model_card(checkpoint)
        assert card.data.co2_eq_emissions["emissions"] == 750
        assert "0.75 kg of CO2" in section(card, "Emissions")

    def test_average_precision_of_a_multi_label_head_is_no_accuracy(self, checkpoint):
        values = {"step": 6, "map": 0.25, "loss": 0.5, "rows": 5, "unreadable": 0}
        change_summary(checkpoint, evaluation={"images": values})
        card = build_model_card(checkpoint)
        (result,) = card.data.eval_results
        assert (result.task_type, result.metric_type, result.metric_value) == ("image-classification", "mAP", 0.25)
        assert row_of(section(card, "Results"), "`images`") == ["`images`", "-", "-", "25.0%", "0.500", "5", "6"]


class TestText:
    def test_it_says_what_the_model_was_trained_on_and_how(self, trained):
        card, summary = build_model_card(trained, "org/mine"), read_summary(trained)
        data = section(card, DATA)
        assert row_of(data, "`videos`")[2:] == ["6", "2", "33.3%", "1", "class\\_folders", "cc-by-4.0"]
        assert row_of(data, "`images`")[2:] == ["12", "3", "66.7%", "0.3", "parquet", "not recorded"]
        training = section(card, "How it was trained")
        assert summary["command"] in training
        assert "  augmentation:\n    mixup_alpha: 0.2\n" in training
        assert "started from random weights" in training
        assert "after 6 optimizer steps." in training
        assert "Files of `videos` that could not be decoded, in whose place other rows of it were drawn: 1." in data
        assert row_of(training, "hardware")[1].startswith("1 x CPU, ")
        assert "(training_curves.png)" in training
        top1, loss = (summary["evaluation"]["videos"][key] for key in ("top1", "loss"))
        results = section(card, "Results")
        assert f"| `videos` | {top1:.1%} | - | - | {loss:.3f} | 5, 1 unreadable left out | 6 |" in results
        assert "Not measured." in section(card, "Emissions")
        assert "samples of `videos` were mirrored at random" in card.text

    def test_a_checkpoint_in_the_middle_of_training_has_the_card_of_its_step(self, trained):
        card, summary = build_model_card(trained / "checkpoint-3"), read_summary(trained / "checkpoint-3")
        assert "after 3 optimizer steps of 6 planned." in card.text
        assert card.data.eval_results[0].metric_value == round(summary["evaluation"]["videos"]["top1"], 4)
        assert "training_curves.png" not in card.text

    def test_an_evaluation_of_earlier_weights_is_told_apart(self, checkpoint):
        assert "weights before these" not in build_model_card(checkpoint).text
        change_summary(checkpoint, progress={**read_summary(checkpoint)["progress"], "step": 5})
        assert "Where the step is not 5, the metrics are those of earlier weights" in build_model_card(checkpoint).text

    def test_a_checkpoint_without_a_record_says_so(self, tmp_path):
        save_quickstart(tmp_path)
        card = build_model_card(tmp_path)
        for title in (DATA, "How it was trained", "Results"):
            assert section(card, title).strip().startswith("Not recorded")
        assert set(card.data.to_dict()) == {"library_name", "pipeline_tag", "tags"}
        assert "model_name" not in build_model_card(tmp_path, model_name="mine").data.to_dict()
        assert "License of the weights: not stated." in card.text
        assert row_of(introduction(card), "`motions`") == [
            "`motions` (default)",
            "videos",
            "3",
            "growing, moving down, moving left",
        ]

    @pytest.mark.parametrize(
        ("license", "said"),
        [
            ("cc-by-nc-4.0", "cc-by-nc-4.0: it does not allow commercial use, and so neither do these weights."),
            ("apache-2.0", "apache-2.0."),
            (None, "not known."),
        ],
    )
    def test_another_encoder_is_named_with_its_checkpoint_its_size_and_its_license(self, checkpoint, license, said):
        model = model_of("videomae")
        model.save_pretrained(checkpoint)
        start = {"kind": "from_encoder", "hub_id": "org/encoder", "license": license}
        change_summary(checkpoint, starting_point=start)
        text = " ".join(introduction(build_model_card(checkpoint)).split())
        size = sum(weight.numel() for weight in model.cover.parameters())
        assert f"that of a `videomae`: 2 layers, 32 wide, 4 attention heads, {size:,} parameters." in text
        assert f"They started from [org/encoder](https://huggingface.co/org/encoder), whose license is {said}" in text

    def test_a_run_without_a_recipe_says_that_it_is_not_recorded(self, checkpoint):
        change_summary(checkpoint, recipe=None, command=None, starting_point=None)
        text = section(build_model_card(checkpoint), "How it was trained")
        assert "started from a model that is not recorded" in text
        assert "The recipe is not recorded." in text

    def test_labels_and_names_show_as_they_are_and_break_nothing(self, checkpoint):
        labels = ["a | b", "<script>alert(1)</script>", "*star* `code` [link](x)\nline"]
        heads = {"odd_head": {"labels": labels}, "videos": {"labels": ["a", "b"]}}
        tiny_config(heads).save_pretrained(checkpoint)
        videos, _ = read_summary(checkpoint)["datasets"]
        recipe = {**read_summary(checkpoint)["recipe"], "model": {"default_head": "x\n```\n# not a title"}}
        change_summary(checkpoint, recipe=recipe, datasets=[{**videos, "license": "a | b: <c>"}])
        card = build_model_card(checkpoint, license="other", license_name="- a: b\n---\n| #")
        assert row_of(introduction(card), "`odd_head`")[3] == (
            r"a \| b, &lt;script&gt;alert\(1\)&lt;/script&gt;, \*star\* \`code\` \[link\]\(x\) line"
        )
        assert len(row_of(introduction(card), "`odd_head`")) == 4
        assert row_of(section(card, DATA), "`videos`")[-1] == r"a \| b: &lt;c&gt;"
        assert ModelCard(str(card)).data.license_name == "- a: b\n---\n| #"
        fence = re.search(r"^(`{4,})yaml$", card.text, re.MULTILINE)[1]
        assert card.text.count(f"\n{fence}\n") == 1

    @pytest.mark.parametrize(
        "text", ["a\\b", "#1 {x}", "1 < 2 & 3", "~~a~~", "$x$", "!x", "https://a.b", "www.a.b", ":x:", "a@b.c"]
    )
    def test_escaped_text_has_no_character_of_markdown_by_itself(self, text):
        escaped = escape_markdown(text)
        assert re.sub(r"\\(.)", r"\1", escaped).replace("&lt;", "<").replace("&amp;", "&") == text
        assert not re.search(r"(?<!\\)[`*_#~$!{@]|:/|:x|www\.", escaped.replace(r"\:", ""))

    def test_escaped_text_reorders_nothing(self):
        assert escape_markdown("a\u202egnp \x1b") == r"a\\u202egnp \\x1b"

    def test_its_snippets_run_where_only_transformers_is_installed(self, tmp_path):
        save_quickstart(tmp_path / "checkpoint")
        frames = np.random.default_rng(0).integers(0, 256, (72, 48, 64, 3), dtype=np.uint8)
        write_clip(tmp_path / "clip.mp4", frames)
        card = build_model_card(tmp_path / "checkpoint", "checkpoint")
        snippets = re.findall(r"^```python\n(.*?)^```$", card.text, re.MULTILINE | re.DOTALL)
        assert len(snippets) == 3
        finished = run_without_package("\n".join(snippets), tmp_path)
        assert finished.returncode == 0, finished.stderr[-3000:]
        *answers, features = finished.stdout.splitlines()[-(2 + 2 + len(QUICKSTART_LABELS) + 2) :]
        assert features == "torch.Size([1, 64])"
        assert [line.split()[0] for line in answers[-3:]] == sorted(QUICKSTART_LABELS)


class TestWhatIsWrong:
    def test_a_folder_without_a_configuration_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=rf"{tmp_path}: expected the folder of a checkpoint"):
            build_model_card(tmp_path)

    def test_an_id_that_is_none_is_refused(self, trained):
        with pytest.raises(ValueError, match="org name"):
            build_model_card(trained, "org name")

    def test_a_damaged_record_is_named(self, checkpoint):
        (checkpoint / SUMMARY_NAME).write_text("{")
        with pytest.raises(ValueError, match=SUMMARY_NAME):
            build_model_card(checkpoint)


class TestWhoseCardItIs:
    def test_a_generated_one_is_written_anew_and_hands_on_what_was_chosen_for_it(self, checkpoint):
        path = write_model_card(checkpoint, license="mit", tags=["sports"])
        assert is_generated_card(path)
        change_summary(checkpoint, evaluation={})
        card = ModelCard.load(write_model_card(checkpoint, "org/mine"))
        assert (card.data.license, card.data.tags[-1], card.data.eval_results) == ("mit", "sports", None)
        assert is_generated_card(path)

    @pytest.mark.parametrize("edit", [lambda text: "# Mine\n", lambda text: text.replace("Not measured.", "None.")])
    def test_one_that_somebody_wrote_or_edited_is_left_as_it_is(self, checkpoint, caplog, edit):
        path = write_model_card(checkpoint)
        path.write_text(edit(path.read_text()))
        before = path.read_text()
        assert not is_generated_card(path)
        assert write_model_card(checkpoint, license="mit") == path
        assert path.read_text() == before
        assert any("written or edited by hand" in record.getMessage() for record in caplog.records)

    def test_the_trainer_writes_it_with_what_was_evaluated_since(self, tmp_path):
        trainer = make_trainer(make_recipe(tmp_path / "data"), tmp_path / "run", eval_strategy="no", max_steps=1)
        trainer.train()
        trainer.save_model()
        assert read_summary(tmp_path / "run")["evaluation"] == {}
        measured = trainer.evaluate()
        trainer.create_model_card(license="mit", tags="sports", model_name="mine")
        card = ModelCard.load(tmp_path / "run" / MODEL_CARD_NAME)
        assert (card.data.license, card.data.model_name, card.data.tags[-1]) == ("mit", "mine", "sports")
        assert card.data.eval_results[0].metric_value == round(measured["eval_videos_top1"], 4)
        (tmp_path / "run" / MODEL_CARD_NAME).write_text("# Mine\n")
        trainer.create_model_card()
        assert (tmp_path / "run" / MODEL_CARD_NAME).read_text() == "# Mine\n"


class TestTheHub:
    def test_it_accepts_generated_and_written_cards(self, trained, tmp_path):
        cards = [write_model_card(trained, "org/mine", license="apache-2.0"), *WRITTEN_CARDS]
        code = "import sys; from huggingface_hub import ModelCard; [ModelCard.load(card).validate() for card in sys.argv[1:]]"
        with HubServer() as hub:
            command = [python(), "-c", code, *map(str, cards)]
            finished = subprocess.run(
                command, env=hub.environment(tmp_path), capture_output=True, text=True, timeout=600
            )
            answered = [request.status for request in hub.requests if request.path == "/api/validate-yaml"]
        assert finished.returncode == 0, finished.stderr[-3000:]
        assert answered == [200] * len(cards)


class TestWrittenCards:
    @pytest.mark.parametrize("path", WRITTEN_CARDS, ids=lambda path: path.name)
    def test_they_claim_nothing_that_was_not_measured(self, path):
        card = ModelCard.load(path)
        assert "not been trained or published" in card.text
        assert card.data.eval_results is None
        assert card.data.library_name == "transformers"
        assert not is_generated_card(path)

    @pytest.mark.parametrize("path", WRITTEN_CARDS, ids=lambda path: path.name)
    def test_every_file_that_they_link_to_exists(self, path):
        links = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
        assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


class TestTemplate:
    def test_it_is_shown_among_the_cards(self):
        assert (ROOT / "model_cards" / "template.md.jinja").read_text() == TEMPLATE.read_text()

    def test_it_is_in_the_wheel(self, tmp_path):
        for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, tmp_path)
        shutil.copytree(ROOT / "modeling_cover", tmp_path / "modeling_cover")
        command = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "bdist_wheel"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=600)
        (wheel,) = (tmp_path / "dist").glob("*.whl")
        assert f"modeling_cover/hub/{TEMPLATE.name}" in zipfile.ZipFile(wheel).namelist()
