# SPDX-License-Identifier: Apache-2.0
"""How a run was started: in how many processes, and by a launcher that it does not outlive."""

import os
import signal
import threading
from collections.abc import Mapping

import torch
from transformers import TrainingArguments
from transformers.utils import logging


logger = logging.get_logger(__name__)

# accelerate's launcher has processes meet on GPUs only.
ON_CPUS = ("ACCELERATE_USE_CPU=true", "torchrun", "--standalone", "--nproc_per_node")
TWO_ON_CPUS = f"{' '.join(ON_CPUS)} 2 SCRIPT.py ..."

# Here, as a launcher that dies before has not brought its processes together, and they end anyway.
_PARENT = os.getppid()

# What torchrun, and accelerate's launcher of a single process, tell the process that they start.
_MARKS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")

_SECONDS_BETWEEN_LOOKS = 1.0


def check_processes(processes: int, environment: Mapping[str, str] = os.environ) -> None:
    """Raise a `ValueError` where a launcher has started several processes that each take themselves for the only
    one."""
    launched = int(environment.get("WORLD_SIZE", "1"))
    if processes == 1 < launched:
        raise ValueError(
            f"{launched} processes were started, and each takes itself for the only one, as there is no GPU: to train on "
            f"CPUs, or evaluate there, say so, `{TWO_ON_CPUS}`"
        )


def processes_line(processes: int, device: torch.device, environment: Mapping[str, str] = os.environ) -> str:
    """In words, in how many processes a run trains, and where more were asked for, how to have them."""
    line = f"Training in {processes} process{'' if processes == 1 else 'es'}, on {device.type}"
    # accelerate's launcher says where several would meet, and then starts one.
    are_fewer = processes == 1 and "WORLD_SIZE" not in environment and "MASTER_ADDR" in environment
    if are_fewer and "ACCELERATE_MIXED_PRECISION" in environment:
        line += f": on CPUs `accelerate launch` starts one, whatever --num_processes says; for two, `{TWO_ON_CPUS}`"
    return line


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process was started by `accelerate launch` or `torchrun`."""
    return any(mark in environment for mark in _MARKS)


def begin_training(args: TrainingArguments) -> None:
    """Say in how many processes a run trains; from now on, this process ends with its launcher."""
    if args.process_index == 0:
        logger.warning(processes_line(args.world_size, args.device))
    end_with_launcher()


def end_with_launcher() -> None:
    """From now on, once its launcher is gone, this process gets the signal by which launchers stop theirs: SIGTERM.

    A process that no launcher has started is left alone: it may well outlive the shell that did.
    """
    if is_launched() and not any(thread.name == _watch_launcher.__name__ for thread in threading.enumerate()):
        threading.Thread(target=_watch_launcher, name=_watch_launcher.__name__, daemon=True).start()


def _watch_launcher() -> None:
    pause = threading.Event()
    while os.getppid() == _PARENT:
        pause.wait(_SECONDS_BETWEEN_LOOKS)
    os.write(2, b"the launcher of this process is gone, so it ends, too\n")
    os.kill(os.getpid(), signal.SIGTERM)
