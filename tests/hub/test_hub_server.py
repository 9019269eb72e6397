# SPDX-License-Identifier: Apache-2.0
"""The tests' own Hub does what huggingface_hub expects of the real one, and fails as it is told to."""

import os
import subprocess
from pathlib import Path

import huggingface_hub
import pytest
from checkpoints import save_quickstart
from hub_server import CUT, DROPPED, UNAVAILABLE, HubServer
from huggingface_hub import CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import httpx
from python_server import python


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with HubServer(part_bytes=1000) as server:
        yield server


@pytest.fixture
def api(hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.token)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Text, weights that are uploaded at once, weights that are uploaded in parts, and a file in a folder."""
    (tmp_path / "files" / "below").mkdir(parents=True)
    for name, content in {
        "config.json": b"{}",
        "small.safetensors": os.urandom(900),
        "large.safetensors": os.urandom(3500),
        "below/a.txt": b"text",
    }.items():
        (tmp_path / "files" / name).write_bytes(content)
    return tmp_path / "files"


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_what_is_uploaded_is_what_is_downloaded(hub, api, folder, tmp_path):
    api.create_repo("org/name", private=True)
    api.upload_folder(repo_id="org/name", folder_path=folder)
    downloaded = contents(Path(api.snapshot_download("org/name", local_dir=tmp_path / "downloaded")))
    assert downloaded.pop(".gitattributes")
    assert downloaded == contents(folder)
    assert hub.files("org/name") == contents(tmp_path / "downloaded")
    parts = [request for request in hub.requests if request.method == "PUT" and "/lfs/" in request.path]
    assert len(parts) == 1 + 4
    assert sorted(api.list_repo_files("org/name")) == sorted([*contents(folder), ".gitattributes"])
    assert api.model_info("org/name").private


def test_a_branch_keeps_what_the_main_one_loses(hub, api, folder, tmp_path):
    api.create_repo("org/name")
    api.upload_folder(repo_id="org/name", folder_path=folder)
    api.create_branch("org/name", branch="kept")
    api.create_commit("org/name", [CommitOperationDelete("config.json")], commit_message="Gone")
    assert [branch.name for branch in api.list_repo_refs("org/name").branches] == ["main", "kept"]
    assert "config.json" not in hub.files("org/name")
    kept = api.hf_hub_download("org/name", "config.json", revision="kept", cache_dir=tmp_path)
    assert Path(kept).read_bytes() == b"{}"
    assert [entry.path for entry in api.get_paths_info("org/name", ["config.json", "below"])] == ["below"]
    assert next(commit.title for commit in api.list_repo_commits("org/name")) == "Gone"
    with pytest.raises(RevisionNotFoundError):
        api.list_repo_files("org/name", revision="other")


def test_a_space_has_files_of_its_own(hub, api):
    for _ in range(2):
        api.create_repo("org/name", repo_type="space", space_sdk="gradio", exist_ok=True)
    api.upload_file(path_or_fileobj=b"1", path_in_repo="app.py", repo_id="org/name", repo_type="space")
    assert hub.files("org/name", repo_type="space")["app.py"] == b"1"
    assert api.space_info("org/name").sdk == "gradio"
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("org/name")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("org/name", repo_type="space", space_sdk="gradio")


def test_a_download_that_breaks_off_goes_on_where_it_was(hub, api, folder, tmp_path, monkeypatch):
    # Of an answer that is cut, the client keeps whole chunks.
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    api.create_repo("org/name")
    api.upload_folder(repo_id="org/name", folder_path=folder)
    hub.fail_every(2, faults=(CUT,), only="resolve")  # the request after the one for its size
    path = api.hf_hub_download("org/name", "large.safetensors", cache_dir=tmp_path)
    assert Path(path).read_bytes() == (folder / "large.safetensors").read_bytes()
    assert [request.status for request in hub.requests[-3:]] == [200, None, 206]


def test_a_private_repository_is_not_there_for_others(hub, api, tmp_path):
    api.create_repo("org/name", private=True)
    stranger = HfApi(endpoint=hub.url, token=False)
    with pytest.raises(RepositoryNotFoundError):
        stranger.model_info("org/name")
    with pytest.raises(RepositoryNotFoundError):
        stranger.hf_hub_download("org/name", ".gitattributes", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("card", "error"),
    [
        ("---\nlicense: mit\n", "no end"),
        ("---\nlicense: Apache-2.0\n---\n", "must be one of"),
        ("---\nlicense: 2\n---\n", "must be one of"),
    ],
)
def test_a_card_whose_metadata_is_wrong_is_refused(hub, api, card, error):
    api.create_repo("org/name")
    with pytest.raises(ValueError, match=error):
        api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id="org/name")
    assert "README.md" not in hub.files("org/name")


def test_transformers_publishes_and_loads_a_model(hub, tmp_path):
    save_quickstart(tmp_path / "model")
    code = """
import torch
from modeling_cover import CoverForVideoClassification

model = CoverForVideoClassification.from_pretrained("model")
model.push_to_hub("org/name", private=True)
loaded = CoverForVideoClassification.from_pretrained("org/name")
torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
"""
    environment = {**hub.environment(tmp_path / "home"), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [python(), "-c", code]
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert {"config.json", "model.safetensors"} <= set(hub.files("org/name"))


@pytest.mark.parametrize("fault", [UNAVAILABLE, DROPPED, CUT])
def test_it_fails_as_often_as_it_is_told_and_recovers(hub, api, fault):
    api.create_repo("org/name")
    hub.fail_every(2, faults=(fault,))
    before = len(hub.requests)
    good = bad = 0
    for _ in range(6):
        try:
            httpx.get(f"{hub.url}/api/models/org/name").raise_for_status()
            good += 1
        except httpx.HTTPError:
            bad += 1
    assert (good, bad, len(hub.requests) - before) == (3, 3, 6)
    hub.recover()
    assert api.whoami()["name"] == "somebody"


def test_it_goes_away_and_comes_back_where_it_was(hub, api):
    api.create_repo("org/name")
    hub.go_away(60)
    with pytest.raises(httpx.ConnectError):
        httpx.get(hub.url)
    hub.come_back()
    assert api.model_info("org/name").id == "org/name"


def test_it_refuses_a_token_altogether_or_for_writing(hub, api):
    hub.refuse_token()
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami()
    hub.refuse_token(403)
    assert api.whoami()
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("org/name")
