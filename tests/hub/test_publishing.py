# SPDX-License-Identifier: Apache-2.0
"""What of a checkpoint is published, and how, against a Hub on this machine."""

import errno
import json
import re
import shutil
import socket
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import modeling_cover.hub.publishing as publishing
import modeling_cover.training.checkpoints as checkpoints_module
import pytest
import torch
from checkpoints import save_quickstart
from hub_server import CUT, HubServer
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import httpx
from killed_runs import build_trainer, train, write_data
from modeling_cover import CoverConfig, CoverForVideoClassification
from modeling_cover.commands import publish as publish_script
from modeling_cover.hub.publishing import (
    LAST_CHECKPOINT,
    HubRepository,
    PublishingError,
    check_nothing_private,
    explain,
    files_to_publish,
    is_transient,
    publish,
    with_patience,
)
from modeling_cover.training.background_publisher import BackgroundPublisher
from safetensors.torch import load_file
from tiny import tiny_model
from transformers import AutoModel, AutoModelForVideoClassification, TrainerCallback


ROOT = Path(__file__).parents[2]
HEADS = {"motions": {"labels": ["left", "right", "up"]}}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that this process publishes to, with a cache of its own."""
    with HubServer() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    save_quickstart(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


class TestWhatIsPublished:
    def test_it_is_the_model_and_nothing_else_that_lies_beside_it(self, checkpoint):
        for name in ("training_args.json", "optimizer.pt", "notes.txt", "mine.py", "quarantine.jsonl", ".env"):
            (checkpoint / name).write_text("private")
        (checkpoint / "runs").mkdir()
        (checkpoint / "training_curves.png").write_bytes(b"curves")
        names = set(files_to_publish(checkpoint, "org/name"))
        code = {path.name for path in checkpoint.glob("*_cover.py")}
        others = {"config.json", "video_preprocessor_config.json", "model.safetensors", "training_curves.png"}
        assert names == code | others | {"README.md"}

    def test_a_card_is_written_where_there_is_none_and_one_written_by_hand_stays(self, checkpoint):
        assert b"org/name" in files_to_publish(checkpoint, "org/name")["README.md"]
        (checkpoint / "README.md").write_text("---\nlicense: mit\n---\nMine.")
        assert files_to_publish(checkpoint, "org/name")["README.md"] == checkpoint / "README.md"

    @pytest.mark.parametrize("name", ["config.json", "video_preprocessor_config.json", "model.safetensors"])
    def test_a_file_without_which_it_would_not_load_is_named(self, checkpoint, name):
        (checkpoint / name).unlink()
        with pytest.raises(ValueError, match=re.escape(name)):
            files_to_publish(checkpoint, "org/name")

    def test_so_is_code_that_the_configuration_names(self, checkpoint):
        (checkpoint / "modeling_cover.py").unlink()
        with pytest.raises(ValueError, match=r"modeling_cover\.py"):
            files_to_publish(checkpoint, "org/name")

    @pytest.mark.parametrize("name", ["config.json", "training_summary.json"])
    def test_a_damaged_file_is_named_at_once_and_no_failing_network(self, checkpoint, name):
        (checkpoint / name).write_text('{"half')
        with pytest.raises(ValueError, match=re.escape(name)) as caught:
            files_to_publish(checkpoint, "org/name")
        assert not is_transient(caught.value)

    def test_a_folder_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(ValueError, match="nowhere"):
            files_to_publish(tmp_path / "nowhere", "org/name")

    @pytest.mark.parametrize(
        ("text", "what"),
        [
            ("hf_abcdefghijklmnopqrstuvwxyz0123", "access token"),
            ("/home/somebody/data/train.csv", "/home/somebody"),
            ("C:\\\\Users\\\\somebody\\\\train.csv", "somebody"),
            (str(Path.cwd() / "data"), re.escape(str(Path.cwd()))),
            (f"file://{Path.cwd()}", re.escape(str(Path.cwd()))),
        ],
    )
    def test_a_token_or_a_folder_of_the_machine_is_refused_and_its_file_named(self, checkpoint, text, what):
        config = json.loads((checkpoint / "config.json").read_text())
        (checkpoint / "config.json").write_text(json.dumps({**config, "note": text}))
        with pytest.raises(ValueError, match=rf"config\.json.*{what}"):
            files_to_publish(checkpoint, "org/name")

    def test_a_folder_whose_name_is_within_another_path_is_not_taken_for_one_of_the_machine(self):
        check_nothing_private({"README.md": b"outputs/cover, https://hub.org/cover, /coverage"}, Path("/cover"))
        with pytest.raises(ValueError, match=r"README\.md names a folder of this machine, /cover:"):
            check_nothing_private({"README.md": b"trained in /cover/outputs"}, Path("/cover"))


class TestRepositories:
    def test_a_private_one_needs_the_token_and_a_tag_and_a_branch_name_what_they_named(self, hub, checkpoint):
        first = HubRepository("org/name", private=True)
        commit = publish(checkpoint, first)
        first.tag(commit, "v1")
        weights = hub.files("org/name")["model.safetensors"]
        save_quickstart(checkpoint)  # other weights
        publish(checkpoint, HubRepository("org/name", revision="next"))
        assert (
            hub.files("org/name")["model.safetensors"] == hub.files("org/name", "v1")["model.safetensors"] == weights
        )
        assert hub.files("org/name", "next")["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()

        stored = AutoModelForVideoClassification.from_pretrained("org/name", revision="v1").state_dict()
        newer = AutoModelForVideoClassification.from_pretrained("org/name", revision="next").state_dict()
        expected = load_file(checkpoint / "model.safetensors")
        assert all(torch.equal(newer[name], weight) for name, weight in expected.items())
        assert any(not torch.equal(stored[name], weight) for name, weight in expected.items())
        with pytest.raises(RepositoryNotFoundError):
            huggingface_hub.HfApi(token=False).list_repo_files("org/name")

    def test_a_tag_whose_answer_was_lost_is_there_all_the_same_and_does_not_move(self, hub, checkpoint):
        repository = HubRepository("org/name")
        commit = publish(checkpoint, repository)
        hub.fail_every(2, faults=(CUT,), only="/tag/")
        for name in ("v0", "v1"):
            with_patience(partial(repository.tag, commit, name), "org/name", patience=20)
        assert [request.status for request in hub.requests if "/tag/" in request.path] == [200, None, 409]
        hub.recover()
        save_quickstart(checkpoint)
        newer = publish(checkpoint, repository)
        with pytest.raises(ValueError, match="another commit has the tag v1"):
            repository.tag(newer, "v1")
        assert hub.files("org/name", "v1") != hub.files("org/name")

    def test_a_public_one_is_not_taken_for_a_private_one(self, hub, checkpoint):
        publish(checkpoint, HubRepository("org/name"))
        with pytest.raises(PublishingError, match="org/name is there already, and public"):
            publish(checkpoint, HubRepository("org/name", private=True))

    def test_the_weights_of_another_checkpoint_do_not_stay_beside_the_new(self, hub, checkpoint):
        publish(checkpoint, HubRepository("org/name"))
        model = save_quickstart(checkpoint)
        (checkpoint / "model.safetensors").unlink()
        model.save_pretrained(checkpoint, max_shard_size="100KB")
        publish(checkpoint, HubRepository("org/name"))
        names = {name for name in hub.files("org/name") if "safetensors" in name}
        assert names == {path.name for path in checkpoint.glob("*safetensors*")}
        assert len(names) >= 3
        loaded = CoverForVideoClassification.from_pretrained("org/name").state_dict()
        assert all(torch.equal(loaded[name], weight) for name, weight in model.state_dict().items())

    def test_a_name_that_none_can_have_is_refused_before_anything_is_sent(self):
        with pytest.raises(ValueError, match="a/b/c"):
            HubRepository("a/b/c")

    def test_a_network_that_stays_lost_is_given_up_with_the_reason(self, hub, checkpoint):
        hub.go_away(60)
        with pytest.raises(PublishingError, match="the Hub cannot be reached"):
            publish(checkpoint, HubRepository("org/name"), patience=1.5)


class TestWhatIsSaidOfAFailure:
    def failure(self, url: str, status: int) -> HfHubHTTPError:
        response = httpx.Response(status, request=httpx.Request("PUT", url))
        return HfHubHTTPError(f"Client error '{status}' for url '{url}'", response=response)

    def test_a_right_to_write_at_a_storage_is_not_in_it(self):
        message = explain(self.failure("https://storage.org/part?X-Signature=secret&partNumber=1", 503), "org/name")
        assert message == "the Hub answers 503: Client error '503' for url 'https://storage.org/part'"

    def test_a_storage_that_refuses_is_not_taken_for_a_token_that_may_not_write(self, hub):
        assert "the access token may not write to org/name" in explain(
            self.failure(f"{hub.url}/api/x", 403), "org/name"
        )
        assert "the Hub answers 403" in explain(self.failure("https://storage.org/part?X=1", 403), "org/name")


class TestInTheBackground:
    def train(self, folder: Path, **options) -> list[str]:
        """A script that does no more than to train. The names of its checkpoints."""
        write_data(folder / "data")
        publishing = {"push_to_hub": True, "hub_model_id": "org/name", "save_total_limit": 1, **options}
        build_trainer(folder / "data", folder / "run", max_steps=6, save_steps=3, **publishing).train()
        return [path.name for path in (folder / "run").iterdir() if path.is_dir()]

    @pytest.mark.slow
    def test_the_end_of_train_waits_until_its_last_save_is_published(self, hub, tmp_path):
        hub.go_away(5)
        assert self.train(tmp_path) == ["checkpoint-6"]
        assert hub.commits("org/name")[0].message == "Training in progress, step 6"
        weights = (tmp_path / "run" / "checkpoint-6" / "model.safetensors").read_bytes()
        assert hub.files("org/name")["model.safetensors"] == weights

    def test_a_save_is_no_push_where_only_the_end_is_published(self, hub, tmp_path):
        """A reporter that is told of a push may wait for a network."""
        pushes = []

        class Hears(TrainerCallback):
            def on_push_begin(self, args, state, control, **kwargs):
                pushes.append(state.global_step)

        write_data(tmp_path / "data")
        publishing = {"push_to_hub": True, "hub_model_id": "org/name"}
        for strategy, expected in (("end", []), ("every_save", [1, 2])):
            options = {"max_steps": 2, "save_steps": 1, "hub_strategy": strategy, **publishing}
            trainer = build_trainer(tmp_path / "data", tmp_path / strategy, **options)
            trainer.add_callback(Hears())
            trainer.train()
            assert pushes == expected

    def test_and_not_for_ever_and_says_how_to_publish_it(self, hub, tmp_path, caplog):
        hub.go_away(60)
        assert "checkpoint-6" in self.train(tmp_path, hub_patience=0.5, hub_private_repo=True)
        command = f"publish {tmp_path}/run/checkpoint-6 org/name --private"
        assert f"{tmp_path}/run/checkpoint-6 is not published yet" in caplog.text
        assert caplog.text.rstrip().endswith(f"to publish it, run: cover {command}")

    def test_a_checkpoint_that_cannot_be_kept_for_its_upload_is_said_and_training_goes_on(
        self, hub, checkpoint, caplog, monkeypatch
    ):
        def full(source: str, target: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", target)

        monkeypatch.setattr(checkpoints_module, "_link", full)
        publisher = BackgroundPublisher(HubRepository("org/name"), checkpoint.parent)
        publisher.submit(checkpoint, "Training in progress")
        publisher.close(patience=20)
        assert "checkpoint is not published" in caplog.text and "No space left" in caplog.text
        assert [path.name for path in checkpoint.parent.iterdir() if path.name.startswith(".")] == []

    def test_a_network_without_an_answer_is_not_waited_for_for_ever(self, checkpoint, monkeypatch):
        monkeypatch.setattr(publishing, "LONGEST_SILENCE", 0.5)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        with socket.create_server(("127.0.0.1", 0)) as silent:  # connections are taken, and nothing is said
            monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
            huggingface_hub.close_session()
            with pytest.raises(PublishingError, match="cannot be reached"):
                publish(checkpoint, HubRepository("org/name"), patience=1)
        huggingface_hub.close_session()


@pytest.fixture
def publish_by_command(hub, tmp_path, monkeypatch, capsys):
    """What the script prints and exits with, in the folder of the test."""

    def run(*arguments: str) -> SimpleNamespace:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["publish.py", *arguments])
        code = publish_script.main()
        return SimpleNamespace(returncode=code, **capsys.readouterr()._asdict())

    return run


def test_the_state_of_the_training_is_published_where_asked_for_and_a_run_goes_on_from_it(
    hub, tmp_path, publish_by_command
):
    write_data(tmp_path / "data")
    whole = train(tmp_path / "data", tmp_path / "whole", max_steps=6, save_steps=6)
    train(
        tmp_path / "data",
        tmp_path / "begun",
        max_steps=6,
        save_steps=3,
        eval_strategy="steps",
        eval_steps=3,
    )
    (tmp_path / "begun" / "checkpoint-3" / "notes.txt").write_text("mine")
    upload = ("begun/checkpoint-3", "org/name", "--training_state")
    planned = publish_by_command(*upload, "--dry_run")
    assert "Not uploaded: notes.txt, training_args.json, training_state/quarantine.jsonl\n" in planned.out, planned.err
    published = publish_by_command(*upload)
    assert published.returncode == 0, published.err
    files = hub.files("org/name")
    state = {name for name in files if name.startswith(LAST_CHECKPOINT)}
    assert f"{LAST_CHECKPOINT}/training_state/optimizer.safetensors" in state
    assert not any(str(tmp_path).encode() in content for content in files.values())

    downloaded = Path(huggingface_hub.snapshot_download("org/name", local_dir=tmp_path / "downloaded"))
    state = f"{downloaded}/{LAST_CHECKPOINT}"
    resumed = train(tmp_path / "data", tmp_path / "resumed", max_steps=6, save_steps=6, resume_from_checkpoint=state)
    assert resumed.state.global_step == whole.state.global_step
    weights = resumed.model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in whole.model.state_dict().items())


class TestLoading:
    def test_the_encoder_alone(self, hub, checkpoint):
        publish(checkpoint, HubRepository("org/name"))
        encoder = AutoModel.from_pretrained("org/name", dtype=torch.bfloat16)
        assert type(encoder).__name__ == "CoverModel"
        assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}
        expected = load_file(checkpoint / "model.safetensors")["cover.layernorm.weight"]
        assert torch.equal(encoder.layernorm.weight, expected.bfloat16())

    def test_a_sharded_checkpoint_spread_over_devices_answers_the_same(self, tmp_path):
        model = tiny_model(HEADS, image_size=16, hidden_size=64, num_hidden_layers=4, intermediate_size=128)
        model.save_pretrained(tmp_path / "sharded", max_shard_size="200KB")
        assert len(list((tmp_path / "sharded").glob("*.safetensors"))) >= 3
        spread = AutoModelForVideoClassification.from_pretrained(
            tmp_path / "sharded", device_map="auto", max_memory={"cpu": "400KB"}, offload_folder=tmp_path / "offloaded"
        )
        assert set(spread.hf_device_map.values()) == {"cpu", "disk"}
        clip = torch.randn(2, 4, 3, 16, 16)
        with torch.no_grad():
            assert torch.equal(spread.eval()(clip).logits, model(clip).logits)

    def test_other_heads_are_reported_as_new_and_those_there_are_keep_their_weights(self, checkpoint, caplog):
        motions = CoverConfig.from_pretrained(checkpoint).heads["motions"]
        heads = {"motions": motions, "gestures": {"labels": ["wave", "point"]}}
        caplog.set_level("WARNING")
        model = CoverForVideoClassification.from_pretrained(checkpoint, heads=heads, default_head="gestures")
        report = caplog.text
        assert re.search(r"classifiers\.gestures\.weight\W+MISSING", report)
        assert re.search(r"classifiers\.shapes\.weight\W+UNEXPECTED", report)
        assert "classifiers.motions.weight" not in report
        stored = load_file(checkpoint / "model.safetensors")
        assert torch.equal(model.classifiers["motions"].weight, stored["classifiers.motions.weight"])
        assert model.config.id2label == {0: "wave", 1: "point"}

    def test_a_head_of_the_same_name_and_other_labels_is_warned_of(self, checkpoint, caplog):
        heads = CoverConfig.from_pretrained(checkpoint).heads
        CoverConfig.from_pretrained(checkpoint, heads=heads, default_head="motions")
        assert caplog.text == ""
        heads = {**heads, "shapes": {"labels": ["star", "ring", "circle"]}}
        CoverConfig.from_pretrained(checkpoint, heads=heads, default_head="motions")
        assert (
            "head 'shapes' has weights for the labels circle, ring, star, and is given star, ring, circle"
            in caplog.text
        )
        assert "motions" not in caplog.text


class TestTheCommand:
    def test_a_dry_run_lists_all_and_sends_nothing(self, hub, checkpoint, publish_by_command):
        (checkpoint / "training_args.json").write_text("{}")
        finished = publish_by_command("checkpoint", "org/name", "--dry_run", "--private", "--revision", "next")
        assert finished.returncode == 0, finished.err
        assert "To org/name, branch next, private" in finished.out
        listed = {line.split()[2] for line in finished.out.splitlines() if line.startswith("  ")}
        assert listed == set(files_to_publish(checkpoint, "org/name"))
        assert "Not uploaded: training_args.json" in finished.out
        assert hub.requests == []

    def test_what_is_wrong_is_one_line_and_an_exit_code(self, hub, checkpoint, publish_by_command):
        shutil.rmtree(checkpoint)
        finished = publish_by_command("checkpoint", "org/name")
        assert finished.returncode == 2
        assert "Traceback" not in finished.err
        assert "checkpoint: expected the folder of a checkpoint" in finished.err

    def test_where_no_space_can_be_written_nothing_is_published(self, hub, checkpoint, publish_by_command):
        finished = publish_by_command("checkpoint", "org/name", "--space", "checkpoint")
        assert finished.returncode == 2
        assert finished.err == "error: checkpoint: expected a new or an empty folder for the Space\n"
        assert hub.requests == []
