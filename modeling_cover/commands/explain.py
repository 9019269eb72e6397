# SPDX-License-Identifier: Apache-2.0
"""Draw where the model looks in a video (or an image) as it classifies it.

    cover explain VIDEO --model outputs/quickstart [--head motions] [--label "moving up"]

Writes <name of the video>.png into `--output`, with each frame that the model saw above the same frame with a heat
map. Also writes a .gif of the frames with the heat map. The map is of a label: the given label, or by default the one
that the head predicts. It is attention rollout, weighted with the gradient of the label, or gradient times input:
`--method gradient`, and the default where an encoder's attention maps are not known or are too large, or the head
attends to all tokens. `--plain` is rollout without the gradient, and shows where the model looks, whatever the label.
docs/explaining.md says what the map shows and what it does not.
"""

import argparse
import sys
from pathlib import Path

import modeling_cover as modeling_cover
import torch
from transformers import AutoModelForVideoClassification, AutoVideoProcessor

from ..evaluation.attention_maps import label_index
from ..evaluation.heat_maps import draw_explanation, overlay, save_gif, shown_frames
from ..evaluation.relevance import METHODS, default_method, label_relevance
from ..evaluation.rollout import attention_rollout
from ..model.heads_cover import attends_to_tokens
from ..model.pipeline_cover import head_scores
from ..text import make_printable
from .failing import command_parser, told


def explain(
    model: modeling_cover.CoverForVideoClassification,
    processor: modeling_cover.CoverVideoProcessor,
    video: str,
    output: Path,
    head: str | None = None,
    label: str | None = None,
    plain: bool = False,
    method: str | None = None,
) -> list[Path]:
    """Write the pictures of one file, and return their paths.

    Raises:
        VideoDecodingError: the file cannot be read.
        ValueError: the model has no such head, or the head no such label; or rollout is asked for, and the attention
            of the model's encoder is not known, or the head attends to all tokens.
    """
    if plain and method == "gradient":
        raise ValueError("--plain is of attention rollout: gradient times input is always of a label")
    head = head or model.config.default_head
    description = model.config.get_head(head)
    if plain and attends_to_tokens(description):
        raise ValueError(f"--plain follows the clip's feature, and head '{head}' attends to all tokens")
    inputs = processor(video, num_clips=1, num_spatial_crops=1, return_metadata=True, return_tensors="pt")
    clip = inputs["pixel_values"].to(model.device)
    with torch.inference_mode():
        scores = head_scores(description, model(clip, head=head).logits)
    chosen = description["labels"][scores.argmax()] if label is None else label
    index = label_index(model, head, chosen)
    method = ("rollout" if plain else default_method(model, clip, head)) if method is None else method
    relevance = attention_rollout(model, clip) if plain else label_relevance(model, clip, head, chosen, method)
    frames = shown_frames(processor, clip[0])
    heated = overlay(frames, relevance[0])
    score = scores[index].item()
    title = f"{head}: {chosen}, {score:.1%}"
    of_label = {"rollout": f", weighted with the gradient of “{chosen}”", "gradient": f", of the logit of “{chosen}”"}
    note = f"{METHODS[method]}{'' if plain else of_label[method]}. Upper row: what the model saw."
    is_video = len(frames) > 1
    times = inputs["video_metadata"][0].timestamps if is_video else None
    output.mkdir(parents=True, exist_ok=True)
    paths = [output / f"{stem_of(video)}.png"]
    draw_explanation(frames, heated, title, note, paths[0], times)
    if is_video:
        paths.append(paths[0].with_suffix(".gif"))
        save_gif(heated, paths[1])
    return paths


def stem_of(video: str) -> str:
    return Path(video.partition("?")[0] if "://" in video else video).stem


def parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("video", metavar="VIDEO", help="a video or image: a path or an http(s) URL")
    parser.add_argument("--model", required=True, help="a folder or Hub id of a CoVeR checkpoint")
    parser.add_argument("--head", help="which head's answer to explain; default: the default head")
    parser.add_argument("--label", help="which label to explain; default: the head's best label")
    parser.add_argument("--plain", action="store_true", help="where the model looks, whatever the label")
    parser.add_argument("--method", choices=METHODS, help="default: rollout, where the encoder gives maps for it")
    parser.add_argument("--output", type=Path, default=Path("outputs/explained"), help="the folder for the pictures")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


@told
def main() -> int:
    make_printable()
    arguments = parse_arguments()
    model = AutoModelForVideoClassification.from_pretrained(arguments.model).eval().to(arguments.device)
    processor = AutoVideoProcessor.from_pretrained(arguments.model)
    paths = explain(
        model,
        processor,
        arguments.video,
        arguments.output,
        arguments.head,
        arguments.label,
        arguments.plain,
        arguments.method,
    )
    print(*paths, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
