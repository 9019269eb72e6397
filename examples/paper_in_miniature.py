# SPDX-License-Identifier: Apache-2.0
"""The experiments of the paper in miniature: does training on several datasets at once beat training on each alone?

    python examples/paper_in_miniature.py --output outputs/miniature

It draws three small datasets from Fashion-MNIST's pictures (miniature/data.py), and does all runs of miniature/plan.py
for three seeds. It writes outputs/miniature/report/paper_in_miniature.md with plots: each table and figure of the
paper beside its miniature. On 2 CPU cores this takes 39 minutes. If it is killed, the same command continues where it
was, to the same metrics.

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
from miniature.data import LABELS, FashionMNIST, draw_preview
from miniature.plan import SCALES
from miniature.report import Results, compare, write_report
from miniature.study import Study
from modeling_cover.text import make_printable
from tqdm import tqdm


STANDS_FOR = {
    "outfits": "Kinetics",
    "moves": "Something-Something",
    "garments": "ImageNet",
    "wardrobe": "ImageNet-21k",
}
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/miniature"), help="the folder for runs and report"
    )
    parser.add_argument("--fashion_mnist", type=Path, default=FASHION_MNIST, help="the folder of its four files")
    parser.add_argument("--scale", choices=SCALES, help="default: gpu where there is one, else cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[4, 5, 6], help="seeds of data, weights and order")
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


def introduction(study: Study, hours: float) -> str:
    scale, (standard, small) = study.scale, (study.scale.inputs[name] for name in ("standard", "small"))
    rows = [["dataset", "stands for", "classes", "training files", "evaluated files", "rows in a step"], ["---"] * 6]
    for name, files in scale.files_per_label.items():
        classes = len(LABELS[name])
        counts = (files["train"] * classes, files[study.split] * classes, scale.rows[name])
        rows.append([name, STANDS_FOR[name], *map(str, (classes, *counts))])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    sizes = "; ".join(
        f"{name.capitalize()} {fields['num_hidden_layers']} layers, {fields['hidden_size']} wide"
        for name, fields in scale.encoders.items()
    )
    updates = scale.updates
    return f"""# The paper in miniature

Written by `python examples/paper_in_miniature.py` from what its runs measured on the {study.split} splits: {len(study.tasks())} runs,
seeds {", ".join(map(str, study.seeds))}, {hours:.1f} hours of {"one GPU" if study.use_gpu else "one CPU core"} in all. Does training on several datasets at once beat training on each
alone, as the paper finds? These are tiny models on made-up videos. Compare the signs with the paper's, not the numbers.

![Frames of training clips, and images](paper_in_miniature/data.png)

{table}

The clips show pictures of clothes from Fashion-MNIST, moved about in front of others. `outfits` asks what is seen, and
`moves` asks what moves where. `garments` and `wardrobe` ask what is on an image. `examples/miniature/data.py` says how
they are drawn. There are few training clips, so that there is something to gain. Garments of the {study.split} split were never
trained on.

- **The same number of updates.** In each step, a run has as many rows of each of its datasets as a run on that dataset
  alone. Both take {updates["training"]} steps. So each dataset has the same {updates["training"]} updates alone and together. Together, a step costs
  more.
- **Every run** except one of Table 4 **starts from an encoder pre-trained** on `wardrobe`, images, for {updates["pretraining"]} steps. There is
  one for each size and input setting, the same for all seeds. Fine-tuning (Figure 3) takes {updates["transfer"]} steps more, with a new
  head. All runs have the same learning rate and schedule.
- **A seed** has its own data, head weights and order of training. ± is the standard deviation over seeds. A difference
  is between runs of one seed.
- **Nothing was chosen on the test splits.** Settings were chosen on the validation split of data of another seed. (An
  earlier version of this study had been run with seeds 1 and 2, so these are others.)
- Input is {standard["num_frames"]} x {standard["image_size"]}² in general, and {small["num_frames"]} x {small["image_size"]}² in Table 7. The encoders are {sizes}. Views are 1x3, as in the paper.

Table 1 of the paper sums up Tables 3 and 4.

A difference *agrees* if each seed has the paper's sign, *disagrees* if each has the opposite sign, and is *undecided* otherwise."""


def write(study: Study, done: Mapping[tuple[str, int], Mapping[str, Any]], fashion_mnist: Path, folder: Path) -> Path:
    """The report; returns the path of the page."""
    results = Results([{name: figures for (name, of), figures in done.items() if of == seed} for seed in study.seeds])
    hours = sum(figures["seconds"] for figures in done.values()) / 3600
    page = write_report(compare(results, study.scale), introduction(study, hours), folder, "paper_in_miniature")
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
