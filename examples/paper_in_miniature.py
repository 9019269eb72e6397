# SPDX-License-Identifier: Apache-2.0
"""The experiments of the paper in miniature: what does training on several datasets at once gain, and where from?

    python examples/paper_in_miniature.py --output outputs/miniature

It draws small datasets from Fashion-MNIST's pictures (miniature/data.py), and does all runs of miniature/plan.py:
those of the main table for five seeds, the others for the first three. It writes
outputs/miniature/report/paper_in_miniature.md with plots: gain against overlap and number of clips, what was expected
beforehand (miniature/expectations.py) and what came out, and each table and figure of the paper beside its miniature.
On 2 CPU cores this takes about an hour. If it is killed, the same command continues where it was, to the same
metrics.

Fashion-MNIST comes from Debian's package dataset-fashion-mnist (`apt-get install dataset-fashion-mnist`). Its four
files may also come from anywhere else, in the folder that `--fashion_mnist` names.

With `--split validation`, the runs are evaluated on the validation splits: use these to choose settings. The report is
on the test splits, which have chosen nothing.
"""

import argparse
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from miniature.comparisons import compare
from miniature.data import FashionMNIST, draw_preview
from miniature.introduction import introduction
from miniature.plan import SCALES
from miniature.predictions import PREDICTIONS_PICTURE, draw_predictions, predictions_section
from miniature.report import write_report
from miniature.results import Results
from miniature.study import Study
from modeling_cover.text import make_printable
from tqdm import tqdm


FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/miniature"), help="the folder for runs and report"
    )
    parser.add_argument("--fashion_mnist", type=Path, default=FASHION_MNIST, help="the folder of its four files")
    parser.add_argument("--scale", choices=SCALES, help="default: gpu where there is one, else cpu")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[11, 12, 13, 14, 15], help="seeds of data, weights and order"
    )
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="the split to evaluate")
    parser.add_argument(
        "--report", type=Path, help="the folder for the report; default: report in the folder of the runs"
    )
    parser.add_argument(
        "--processes", type=int, help="processes that train at once; default: one per CPU core, or one on a GPU"
    )
    return parser.parse_args(arguments)


def study_of(options: argparse.Namespace) -> Study:
    """What is asked for.

    Raises:
        ValueError: if seeds are repeated or not positive, or there are no processes.
    """
    if len(set(options.seeds)) < len(options.seeds) or min(options.seeds) < 1:
        raise ValueError(f"--seeds: expected different positive numbers, got {options.seeds}")
    if options.processes is not None and options.processes < 1:
        raise ValueError(f"--processes must be at least 1, got {options.processes}")
    use_gpu = torch.cuda.is_available()
    scale = SCALES[options.scale or ("gpu" if use_gpu else "cpu")]
    # Absolute, as recipes name folders, and one may be trained from anywhere.
    return Study(
        output=options.output.resolve(), scale=scale, seeds=tuple(options.seeds), split=options.split, use_gpu=use_gpu
    )


def do_rest(study: Study, done: dict[tuple[str, int], dict[str, Any]], processes: int) -> None:
    """Does what is not `done`, and adds it: each run as soon as the one that it starts from is there."""
    # Of the processes that are started: two threads that share a core wait for one another.
    os.environ["OMP_NUM_THREADS"] = "1"
    waiting, running = [(run, seed) for run, seed in study.tasks() if (run.name, seed) not in done], {}
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with, initargs=(os.getpid(),))
    with pool, tqdm(total=len(study.tasks()), initial=len(done), unit="run") as progress:
        while waiting or running:
            ready = [task for task in waiting if all(needed in done for needed in study.needed(*task))]
            for task in ready[: processes - len(running)]:
                waiting.remove(task)
                running[pool.submit(study.do, *task)] = task
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                run, seed = running.pop(future)
                done[run.name, seed] = future.result()
                progress.update()
                progress.set_postfix_str(f"{run.name} of seed {seed}")


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone, which may be killed, and started again, while this one still
    trains."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def write(study: Study, done: Mapping[tuple[str, int], Mapping[str, Any]], fashion_mnist: Path, folder: Path) -> Path:
    """The report; returns the path of the page."""
    results = Results([{name: figures for (name, of), figures in done.items() if of == seed} for seed in study.seeds])
    hours = sum(figures["seconds"] for figures in done.values()) / 3600
    comparisons = compare(results, study.scale)
    sections = predictions_section(results, "paper_in_miniature")
    page = write_report(results, comparisons, introduction(study, hours), folder, "paper_in_miniature", sections)
    draw_predictions(results, folder / page.stem / PREDICTIONS_PICTURE)
    draw_preview(FashionMNIST(fashion_mnist), study.seeds[0]).save(folder / page.stem / "data.png")
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    make_printable()
    options = parse_arguments(arguments)
    try:
        study = study_of(options)
        done = study.finished()
        study.draw(options.fashion_mnist)
        do_rest(study, done, options.processes or (1 if study.use_gpu else os.cpu_count()))
        page = write(study, done, options.fashion_mnist, options.report or options.output / "report")
    # BrokenProcessPool: a process was killed, for want of memory, say.
    except (OSError, ValueError, BrokenProcessPool) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"report: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
