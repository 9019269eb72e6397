# SPDX-License-Identifier: Apache-2.0
"""Starting points that are damaged, or made to do harm: each is loaded, or refused by one `ValueError` that names
it."""

import json
import os
import pickle
import random
import resource
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import ORIGINAL_SIZES, make_timesformer, original_state, save_original, save_timesformer, save_vit
from forked_runs import start_processes
from modeling_cover import CoverForVideoClassification
from safetensors.torch import load_file, save_file


HEADS = {"k400": {"labels": ["abseiling", "zumba"]}}
MEMORY = 8 * 2**30  # bytes of addresses, of which torch itself takes some


def from_vit(path: str | os.PathLike) -> CoverForVideoClassification:
    return CoverForVideoClassification.from_image_checkpoint(path, heads=HEADS, default_head="k400")


def refusal(load: Callable, path: str | os.PathLike) -> str | None:
    """Why a starting point is refused, in an error that names it; None if it is loaded."""
    try:
        load(path)
    except ValueError as error:
        assert os.fspath(path) in str(error)
        return str(error)
    return None


class RunsCode:
    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / "ran"),)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """The weights of a model of the release."""
    return original_state(make_timesformer(**{**ORIGINAL_SIZES, "num_hidden_layers": 1}, num_labels=3))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Whole checkpoints of transformers."""
    folder = tmp_path_factory.mktemp("whole")
    save_vit(folder / "vit", num_hidden_layers=1)
    save_timesformer(folder / "timesformer", num_hidden_layers=1)
    return {kind: folder / kind for kind in ("vit", "timesformer")}


class TestAFileOfTheRelease:
    load = staticmethod(CoverForVideoClassification.from_timesformer)

    @pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
    def test_cut_anywhere_or_with_other_bytes_it_is_loaded_or_refused(self, state, is_zip, tmp_path):
        path = tmp_path / "x.pyth"
        torch.save({"model_state": state}, path, _use_new_zipfile_serialization=is_zip)
        whole, rng = path.read_bytes(), random.Random(0)
        assert refusal(self.load, path) is None
        for cut in (0, 1, 2, 3, 4, 30, 100, 1000, len(whole) // 2, len(whole) - 1000, len(whole) - 1):
            path.write_bytes(whole[:cut])
            assert refusal(self.load, path) is not None, cut
        for _ in range(40):
            damaged = bytearray(whole)
            # Where the pickle is, and the table of contents of an archive: the rest is numbers.
            place = rng.choice([rng.randrange(3000), len(whole) - 1 - rng.randrange(3000)])
            damaged[place] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            refusal(self.load, path)

    @pytest.mark.parametrize(
        "content", [b"no checkpoint", b"\x80\x02", b"\x80\x05.", pickle.dumps([1, 2]), b"PK\x03\x04"]
    )
    def test_other_content_is_refused(self, content, tmp_path):
        (tmp_path / "x.pth").write_bytes(content)
        assert "expected a" in refusal(self.load, tmp_path / "x.pth")

    def test_a_folder_is_refused(self, tmp_path):
        (tmp_path / "x.pth").mkdir()
        assert "is not a file" in refusal(self.load, tmp_path / "x.pth")

    def test_a_plain_pickle_with_code_runs_none(self, tmp_path):
        (tmp_path / "x.pth").write_bytes(pickle.dumps({"model_state": RunsCode(tmp_path)}, protocol=2))
        assert "expected a file of tensors only" in refusal(self.load, tmp_path / "x.pth")
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            (7, torch.ones(3), "expected tensors by name, got Tensor under 7"),
            ("model.norm.weight", "text", "expected tensors by name, got str under 'model.norm.weight'"),
            ("model.norm.weight", torch.ones(128, dtype=torch.int64), "expected plain numbers, got torch.int64"),
            ("model.norm.weight", torch.ones(128).to_sparse(), "expected plain numbers, got torch.float32"),
            ("model.norm.weight", torch.ones(128, device="meta"), "expected plain numbers, got torch.float32"),
            ("model.norm.weight", torch.full((128,), torch.nan), "weights are not finite, ['layernorm.weight']"),
            ("model.head.bias", torch.full((3,), torch.inf), "weights are not finite, ['bias']"),
            ("model.norm.weight", torch.ones(64), "'of another shape': ['layernorm.weight']"),
            ("model.pos_embed", torch.ones(5), "pos_embed: expected 3 axes, got the shape (5,)"),
            ("model.pos_embed", torch.ones(1, 4, 128), "expected those of a square of patches and of one token, got 4"),
            ("model.pos_embed", torch.ones(1, 0, 128), "pos_embed: expected 3 axes, got the shape (1, 0, 128)"),
            ("model.patch_embed.proj.weight", torch.ones(100, 3, 8, 8), "a multiple of 64, got 100"),
            ("model.head.weight", torch.ones(2, 128), "head.weight: expected the shape (3, 128), got (2, 128)"),
            ("model.blocks.7.norm1.weight", torch.ones(128), "blocks from 0 on without a gap, got ['0', '7']"),
            ("model.blocks.x.norm1.weight", torch.ones(128), "blocks from 0 on without a gap, got ['0', 'x']"),
            ("model.blocks.0.attn.qkv.weight", torch.ones(3), "'of another shape': ['layers.0.attention."),
        ],
    )  # fmt: skip
    def test_a_weight_that_is_not_what_it_should_be_is_named(self, state, name, value, message, tmp_path):
        path = save_original(tmp_path / "x.pyth", {**state, name: value})
        assert message in refusal(self.load, path)


class TestAFolderOfTransformers:
    @pytest.fixture(params=["vit", "timesformer"])
    def starting_point(self, request, folders, tmp_path) -> tuple[Callable, Path]:
        load = {"vit": from_vit, "timesformer": CoverForVideoClassification.from_timesformer}[request.param]
        return load, Path(shutil.copytree(folders[request.param], tmp_path / request.param))

    def test_weights_that_are_damaged_are_refused(self, starting_point):
        load, folder = starting_point
        path = folder / "model.safetensors"
        whole = path.read_bytes()
        length = int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8 : 8 + length])
        lying = {**header, "x": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}
        text = json.dumps(lying).encode()
        for damaged in (
            b"",
            whole[:5],
            whole[:100],
            whole[:-1],
            b"\xff" * 8 + whole[8:],
            whole[:8] + b"[" * length + whole[8 + length :],
            len(text).to_bytes(8, "little") + text + whole[8 + length :],
        ):
            path.write_bytes(damaged)
            assert refusal(load, folder) is not None, damaged[:20]
        path.unlink()
        assert refusal(load, folder) is not None

    def test_weights_that_are_not_finite_are_named(self, starting_point):
        load, folder = starting_point
        path = folder / "model.safetensors"
        weights = load_file(path)
        save_file({name: weight / 0 if "bias" in name else weight for name, weight in weights.items()}, path)
        assert "weights are not finite" in refusal(load, folder)

    @pytest.mark.parametrize("content", [None, "", "{", "[1]", '{"model_type": 7}', '{"model_type": "unknown"}'])
    def test_a_configuration_that_is_damaged_is_refused(self, starting_point, content):
        load, folder = starting_point
        (folder / "config.json").unlink()
        if content is not None:
            (folder / "config.json").write_text(content)
        assert refusal(load, folder) is not None

    @pytest.mark.parametrize("value", ["wide", -1, 0, None, [], 7])
    def test_so_is_one_whose_width_is_none(self, starting_point, value):
        load, folder = starting_point
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "hidden_size": value}))
        assert refusal(load, folder) is not None

    def test_code_beside_the_weights_is_not_run_and_nobody_is_asked(self, starting_point):
        load, folder = starting_point
        config = json.loads((folder / "config.json").read_text())
        own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}}
        (folder / "config.json").write_text(json.dumps({**config, **own}))
        (folder / "own.py").write_text(f"import os\nos.mkdir({str(folder / 'ran')!r})")
        assert refusal(load, folder) is not None
        (folder / "model.safetensors").unlink()
        (folder / "config.json").write_text(json.dumps(config))
        torch.save({"x": RunsCode(folder)}, folder / "pytorch_model.bin")
        assert refusal(load, folder) is not None
        assert not (folder / "ran").exists()

    def test_a_file_and_nothing_at_all_are_refused(self, starting_point, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        load, folder = starting_point
        for place in (folder / "config.json", folder / "model.safetensors", folder / "nowhere", ""):
            assert refusal(load, place) is not None


def test_a_file_that_claims_to_be_huge_is_refused_within_little_memory(tmp_path):
    log = tmp_path / "log"
    run = start_processes(load_huge_files, 1, log, {}, tmp_path)
    assert run.wait(600) == 0, log.read_text()[-3000:]
    assert json.loads((tmp_path / "reasons.json").read_text()) == [
        "its content is compressed",
        "its tensors would take",
        "weights do not fit",
        "expected blocks from 0 on",
    ]


def load_huge_files(folder: Path) -> None:
    """Tell why each is refused, within a bound on the memory."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    state = original_state(make_timesformer(**{**ORIGINAL_SIZES, "num_hidden_layers": 1}))
    bomb = folder / "bomb.pyth"
    torch.save({"model_state": state}, bomb)
    with zipfile.ZipFile(bomb) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
        with archive.open(next(iter(content)).split("/")[0] + "/data/999", "w", force_zip64=True) as entry:
            for _ in range(8):
                entry.write(bytes(2**24))
    width = 2**20
    wide = {
        "model.patch_embed.proj.weight": torch.zeros(width, 1, 1, 1),
        "model.pos_embed": torch.zeros(1, 2, width),
        "model.time_embed": torch.zeros(1, 1, width),
        "model.head.weight": torch.zeros(2, width),
    }
    for name, weights in {
        "repeated": {**state, "model.norm.weight": torch.zeros(1, dtype=torch.float16).expand(2**36)},
        "wide": {**state, **wide},
        "deep": {**state, "model.blocks.99999999.norm1.weight": torch.zeros(128)},
    }.items():
        save_original(folder / f"{name}.pyth", weights)
    reasons = []
    for name in ("bomb", "repeated", "wide", "deep"):
        reason = refusal(CoverForVideoClassification.from_timesformer, folder / f"{name}.pyth")
        starts = (
            "its content is compressed",
            "its tensors would take",
            "weights do not fit",
            "expected blocks from 0 on",
        )
        reasons.append(next((start for start in starts if start in str(reason)), reason))
    (folder / "reasons.json").write_text(json.dumps(reasons))
