# SPDX-License-Identifier: Apache-2.0
"""What the report says of the study before anything that was measured."""

from collections.abc import Mapping

from miniature.data import FEW_MOMENTS, LABELS, OF_MOVES, OVERLAP_OF, OVERLAPS
from miniature.plan import TRIED, Scale
from miniature.study import Study


STANDS_FOR = {
    "outfits": "Kinetics",
    "moves": "Something-Something",
    **dict.fromkeys(OVERLAP_OF, "Moments in Time"),
    "garments": "ImageNet",
    "wardrobe": "ImageNet-21k",
}


def introduction(study: Study, hours: float) -> str:
    tasks, seeds = study.tasks(), ", ".join(map(str, study.seeds))
    machine = "one GPU" if study.use_gpu else "one CPU core"
    shared = ", ".join(f"{len(set(motions) & set(OF_MOVES))} ({overlap})" for overlap, motions in OVERLAPS.items())
    return f"""# The paper in miniature

Written by `python examples/paper_in_miniature.py` from what its runs measured on the {study.split} splits:
{len(tasks)} runs, seeds {seeds}, {hours:.1f} hours of {machine} in all. What does training on several datasets at once
gain over training on each alone, and where does the gain come from? These are tiny models on made-up videos. Compare
the signs with the paper's, not the numbers.

![Frames of training clips, and images](paper_in_miniature/data.png)

{_datasets(study)}

The clips show pictures of clothes from Fashion-MNIST, moved about in front of others. `outfits` asks what is seen,
`moves` asks how something moves, and `moments` asks what moves how. `garments` and `wardrobe` ask what is on an image.
`examples/miniature/data.py` says how they are drawn. Garments of the {study.split} split were never trained on.

- **The knob.** `moments` shares {shared} of the {len(OF_MOVES)} motions of `moves`, under other names. It has the
  same number of clips, classes and motions each time. The other motions are the same with x and y exchanged.
  `{FEW_MOMENTS["all"]}` and `{FEW_MOMENTS["none"]}` have the first quarter of the training clips of each class. A run
  with them has as many steps.
{_protocol(study.scale)}
- **A seed** has its own data, head weights and order of training. ± is the standard deviation over seeds. A difference
  is between runs of one seed. {_num_seeds(study)}
- **Nothing was chosen on the test splits.** Settings were chosen on the validation split of data of seed 93: the
  learning rate for each kind of run, so that alone is no worse tuned than together, and then the same for all seeds. Together,
  it was chosen with all shared.

{_rates(study.scale)}

Departures from the paper:

- **The optimizer** is AdamW with clipped gradients, in place of SGD without clipping. SGD, also clipped, is beside
  it in a table of its own.
- **Pre-training.** The paper's is without temporal layers, which it adds afterwards. Here the temporal layers are
  there from the start, and images are videos of one frame. Temporal attention to one key is 1 whatever query and key
  are. So what projects values and what follows is pre-trained, and queries and keys are not: they get no gradient,
  and decay a little. The one frame has the middle time embedding, or the mean of the middle two. The others are not
  trained.
- **With images**, runs are not for as many epochs as without, but for as many steps, to save time. The paper's have
  more steps with images. What the paper starts from (Table 4) has no miniature, for the same reason.

A difference *agrees* if each seed has the paper's sign, *disagrees* if each has the opposite sign, and is *undecided*
otherwise."""


def _datasets(study: Study) -> str:
    scale = study.scale
    rows = [["dataset", "stands for", "classes", "training files", "evaluated files"], ["---"] * 5]
    for name, files in scale.files_per_label.items():
        classes = len(LABELS[name])
        counts = (classes, files["train"] * classes, files[study.split] * classes)
        rows.append([name, STANDS_FOR[name], *map(str, counts)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _protocol(scale: Scale) -> str:
    standard, small = (scale.inputs[name] for name in ("standard", "small"))
    base = scale.encoders["base"]
    return f"""- **Training** is for {scale.epochs["training"]:g} epochs of the mixture, in steps of
  {scale.rows["training"]} rows, which are drawn from all datasets in proportion to their sizes. So alone for as
  many *epochs*, a dataset has fewer steps than together. Alone for as many *steps*, it is gone through more often.
  The learning rate is divided by 10 at 11/20 and 15/20 of the training, as in the paper.
- **Every run starts from an encoder pre-trained** on `wardrobe`, images, for {scale.epochs["pretraining"]:g} epochs.
  There is one for each input setting and size, the same for all seeds. Fine-tuning (Figure 3) takes
  {scale.epochs["transfer"]:g} epochs more, with a new head.
- Input is {_input(standard)} in general, and {_input(small)} in Table 7. The encoder has
  {base["num_hidden_layers"]} layers and is {base["hidden_size"]} wide, but for Figure 4. Views are 1x3, as in the
  paper."""


def _input(clips: Mapping[str, int]) -> str:
    return f"{clips['num_frames']} x {clips['image_size']}²"


def _rates(scale: Scale) -> str:
    """The learning rates, and what was tried to choose them."""
    rows = [["optimizer", "run", "learning rate", "tried on seed 93: top-1"], ["---"] * 4]
    for optimizer, kinds in scale.learning_rates.items():
        for kind, rate in kinds.items():
            tried = TRIED.get((optimizer, kind), {})
            rows.append([optimizer, kind, f"{rate:g}", "; ".join(f"{key:g}: {found}" for key, found in tried.items())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _num_seeds(study: Study) -> str:
    runs = {run.name: run.num_seeds for run, _ in study.tasks() if run.stage in ("training", "transfer")}
    fewer = {number for number in runs.values() if number is not None and number < len(study.seeds)}
    if not fewer:
        return ""
    all_seeds = ", ".join(f"`{name}`" for name, number in runs.items() if number is None)
    return (
        f"These runs are done for all {len(study.seeds)} seeds: {all_seeds}. The others are done for the first "
        f"{min(fewer)}."
    )
