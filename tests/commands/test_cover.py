# SPDX-License-Identifier: Apache-2.0
"""The command `cover`: a table of subcommands, each of which has its own arguments."""

import subprocess
import sys
from pathlib import Path

from checkpoints import save_quickstart
from clips import indexed_frames, write_clip
from modeling_cover.commands import cover
from python_server import python


def run(monkeypatch, *arguments: str) -> int | str | None:
    """The exit code, or what is said in place of one."""
    monkeypatch.setattr(sys, "argv", ["cover", *arguments])
    try:
        cover.main()
    except SystemExit as exit:
        return exit.code
    return 0


def test_its_help_fits_a_screen(monkeypatch, capsys):
    assert run(monkeypatch, "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(cover.COMMANDS)
    assert run(monkeypatch) == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_every_subcommand_is_a_module_and_has_a_help(monkeypatch, capsys):
    folder = Path(cover.__file__).parent
    for name in cover.COMMANDS:
        assert (folder / f"{name}.py").is_file()
        assert run(monkeypatch, name, "--help") in (0, None)
        assert f"cover {name}" in capsys.readouterr().out


def test_a_subcommand_that_is_not_there_is_named_with_those_that_are(monkeypatch, capsys):
    assert run(monkeypatch, "fit") == 2
    assert capsys.readouterr().err.startswith("error: no command 'fit', expected one of train, evaluate, predict")


def test_training_asks_for_a_recipe(monkeypatch, capsys):
    assert run(monkeypatch, "train") == 2
    assert capsys.readouterr().err == "error: name a recipe, a YAML file, such as `cover train RECIPE.yaml`\n"


def test_a_script_of_the_examples_is_the_same(tmp_path):
    save_quickstart(tmp_path / "model")
    clip = write_clip(tmp_path / "clip.mp4", indexed_frames(8))
    command = [python(), Path(__file__).parents[2] / "examples" / "predict.py", clip, "--model", tmp_path / "model"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert finished.stdout.startswith(clip)
    assert "%" in finished.stdout
