# SPDX-License-Identifier: Apache-2.0
"""The configurations under examples/accelerate_configs: accelerate reads them, and the SLURM script requeues."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from modeling_cover.model import modeling_cover
from modeling_cover.training.stop_signals import PREEMPTED_EXIT_CODE


FOLDER = Path(__file__).parents[2] / "examples" / "accelerate_configs"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.name)
def test_accelerate_reads_it_and_its_first_lines_say_how_to_use_it(path):
    config = load_config_from_file(str(path))
    if config.deepspeed_config:
        zero = json.loads((FOLDER.parent.parent / config.deepspeed_config["deepspeed_config_file"]).read_text())
        assert zero["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    else:
        assert config.mixed_precision == "bf16"
    assert re.search(rf"^# .*accelerate launch --config_file {re.escape(f'examples/accelerate_configs/{path.name}')}",
                     path.read_text(), re.MULTILINE)  # fmt: skip


def test_the_layers_that_are_sharded_are_the_models():
    config = load_config_from_file(str(FOLDER / "one_node_fsdp2.yaml"))
    assert hasattr(modeling_cover, config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"])
    assert config.fsdp_config["fsdp_version"] == 2


@pytest.mark.parametrize(("code", "is_requeued"), [(PREEMPTED_EXIT_CODE, True), (0, False), (1, False)])
def test_the_slurm_job_goes_into_the_queue_again_when_it_was_told_to_stop(tmp_path, code, is_requeued):
    """There is no SLURM here: stand-ins for its two commands run what they are given, and write it down."""
    commands = {
        "srun": 'shift; SLURM_PROCID=3 SLURM_LOCALID=1 SLURM_NTASKS=32 exec "$@"',
        "scontrol": 'echo "$@" >> calls; [ "$1" = show ] && printf "node1\\nnode2\\n"; true',
        "python": f'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $@" > ran; exit {code}',
    }
    for name, script in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n",
    }
    finished = subprocess.run(
        ["bash", str(FOLDER / "slurm.sh"), "my recipe.yaml", "--bf16", "True"],
        cwd=tmp_path,
        env=environment,
        timeout=600,
    )
    assert finished.returncode == code
    assert (tmp_path / "ran").read_text() == "3 1 32 node1 examples/cotrain.py my recipe.yaml --bf16 True\n"
    assert ("requeue 7" in (tmp_path / "calls").read_text()) == is_requeued
