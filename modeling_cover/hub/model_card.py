# SPDX-License-Identifier: Apache-2.0
"""Model cards: a README.md that says what a checkpoint's own files say, and where they say nothing, "not recorded".

The text is in `model_card_template.md.jinja`. A card that was written by hand, or edited since it was generated, is
nobody's but its author's: it carries no mark that fits its content, and is left alone.
"""

import hashlib
import html
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, StrictUndefined, Template
from safetensors import safe_open
from transformers.utils import logging

from ..model.configuration_cover import PIPELINE_TASK, CoverConfig
from ..text import printable
from .checkpoint_files import CURVES_NAME
from .run_record import RANDOM_WEIGHTS, read_summary, stale_heads


logger = logging.get_logger(__name__)

MODEL_CARD_NAME = "README.md"
TEMPLATE = Path(__file__).with_name("model_card_template.md.jinja")

_TAGS = ["video-classification", "image-classification", "action-recognition", "co-training", "cover"]
_METRICS = {"top1": ("accuracy", "top-1 accuracy"), "top5": ("accuracy", "top-5 accuracy"), "map": ("mAP", "mean AP")}
_SHOWN_ARGUMENTS = (
    "optim",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "layer_decay",
    "ema_decay",
    "loss_reduction",
    "seed",
)
# What somebody chose for a generated card, and nothing else tells: it is in the next one, too.
_KEPT = ("language", "license", "license_name", "license_link")
_NONCOMMERCIAL = re.compile(r"\bnc\b|non-?commercial", re.IGNORECASE)
_MARK = re.compile(r"\n<!-- Generated from the checkpoint's files\. sha256: ([0-9a-f]{64}) -->\n*\Z")


def build_model_card(folder: str | os.PathLike, model_id: str | None = None, **overrides: Any) -> ModelCard:
    """The model card of a checkpoint, out of its configuration, the record of its training and the picture of its
    curves.

    Args:
        folder: of the checkpoint. A generated card in it hands on its language, its license and its tags.
        model_id: what the snippets load, `org/name` on the Hub.
        overrides: fields of the front matter, as [`~huggingface_hub.ModelCardData`] takes them, such as `license`;
            tags come on top of those that every card has.

    Raises:
        ValueError: if the folder has no configuration of a CoVeR model, its record of the training is damaged,
            `model_id` is no id of the Hub, or `license` allows commercial use and that of the checkpoint that the
            training started from does not.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: expected the folder of a checkpoint, with its config.json")
    if model_id is not None:
        validate_repo_id(model_id)
    config, summary = CoverConfig.from_pretrained(folder), read_summary(folder)
    metadata = {**_front_matter(config, summary, model_id), **_kept_metadata(folder), **overrides}
    if not metadata["eval_results"]:  # which is what the name is for
        metadata.pop("model_name", None)
    metadata["tags"] = [*_TAGS, *(tag for tag in metadata.get("tags") or [] if tag not in _TAGS)]
    start = _checkpoint_before(summary)
    _check_license(metadata, start)
    data = ModelCardData(**{key: value for key, value in metadata.items() if value})
    text = _template().render(
        config=config,
        heads=config.heads,
        image_heads=[name for name, head in config.heads.items() if head["modality"] == "image"],
        mirrored=_mirrored(summary),
        stale=stale_heads(summary, config),
        summary=summary,
        num_parameters=_num_parameters(folder),
        start=start,
        only_noncommercial=start is not None and is_noncommercial(start["license"]),
        evaluations=_evaluations(config, summary),
        shown_arguments=_SHOWN_ARGUMENTS,
        curves=CURVES_NAME if (folder / CURVES_NAME).is_file() else None,
        data=data,
        model_id=model_id or "path/to/this/folder",
        title=_title(model_id),
        task=PIPELINE_TASK,
    )
    # UTF-8 lacks the surrogates that stand for the bytes of a file's name that is not UTF-8.
    text = text.encode("utf-8", errors="backslashreplace").decode()
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text.strip()}\n")
    card.text += f"\n<!-- Generated from the checkpoint's files. sha256: {_digest(str(card))} -->\n"
    return card


def write_model_card(folder: str | os.PathLike, model_id: str | None = None, **overrides: Any) -> Path:
    """Write [`build_model_card`]'s as the README.md of a checkpoint's folder, unless somebody has written one
    there."""
    path = Path(folder) / MODEL_CARD_NAME
    if path.exists() and not is_generated_card(path):
        logger.warning(f"{path} was written or edited by hand, and is left as it is: to have one generated, remove it")
        return path
    path.write_text(str(build_model_card(folder, model_id, **overrides)), encoding="utf-8")
    return path


def is_generated_card(path: str | os.PathLike) -> bool:
    """Whether a card was generated, and not edited since."""
    text = Path(path).read_bytes().decode("utf-8", errors="replace").replace("\r\n", "\n")
    mark = _MARK.search(text)
    return mark is not None and mark[1] == _digest(text[: mark.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.rstrip("\n").encode()).hexdigest()


def _title(model_id: str | None) -> str:
    return "A CoVeR checkpoint" if model_id is None else model_id.rpartition("/")[2]


def is_noncommercial(license: str | None) -> bool:
    """Whether a license is one that says so by its name, such as "cc-by-nc-4.0"."""
    return license is not None and _NONCOMMERCIAL.search(license) is not None


def _checkpoint_before(summary: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a run started from, if that was a checkpoint and is recorded."""
    start = None if summary is None else summary["starting_point"]
    return None if start is None or start["kind"] == RANDOM_WEIGHTS else start


def _check_license(metadata: Mapping[str, Any], start: Mapping[str, Any] | None) -> None:
    given = metadata.get("license_name") or metadata.get("license")
    if given is None or start is None or not is_noncommercial(start["license"]) or is_noncommercial(str(given)):
        return
    raise ValueError(
        f"license: {given!r} allows commercial use, which {start['license']!r} does not, the license of "
        f"{start['hub_id'] or 'the checkpoint'} that the weights started from: give that one"
    )


def _num_parameters(folder: Path) -> int | None:
    """How many numbers the encoder has in a checkpoint's files; None if there are no weights yet."""
    files, total = list(folder.glob("*.safetensors")), 0
    for file in files:
        with safe_open(file, "pt") as weights:
            names = [name for name in [*weights.keys()] if name.startswith("cover.")]
            total += sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
    return total if files else None


# ---- Front matter ----


def _front_matter(config: CoverConfig, summary: Mapping[str, Any] | None, model_id: str | None) -> dict[str, Any]:
    results = _results(config, summary)
    metadata = {
        "library_name": "transformers",
        "pipeline_tag": "video-classification",
        "metrics": sorted({result.metric_type for result in results}),
        "model_name": _title(model_id),
        "eval_results": results,
    }
    if summary is not None:
        metadata["datasets"] = list(dict.fromkeys(entry["hub_id"] for entry in summary["datasets"] if entry["hub_id"]))
        start = summary["starting_point"]
        if start is not None and start["hub_id"] is not None:
            metadata |= {"base_model": start["hub_id"], "base_model_relation": "finetune"}
        if summary["emissions"] is not None:
            metadata["co2_eq_emissions"] = {
                "emissions": round(1000 * summary["emissions"], 3),  # in grams
                "source": "codecarbon",
                "training_type": "pre-training"
                if start is not None and start["kind"] == RANDOM_WEIGHTS
                else "fine-tuning",
                "hardware_used": summary["hardware"]["device"],
            }
    return metadata


def _kept_metadata(folder: Path) -> dict[str, Any]:
    path = folder / MODEL_CARD_NAME
    if not path.is_file() or not is_generated_card(path):
        return {}
    there = ModelCard.load(path).data
    return {key: there.get(key) for key in (*_KEPT, "tags") if there.get(key) is not None}


def _evaluations(config: CoverConfig, summary: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The last evaluation of each head; without the top-5 of a head that has no more than five labels."""
    found = {} if summary is None else summary["evaluation"]
    return {
        name: {key: value for key, value in values.items() if key != "top5" or len(config.heads[name]["labels"]) > 5}
        for name, values in found.items()
        if name in config.heads
    }


def _results(config: CoverConfig, summary: Mapping[str, Any] | None) -> list[EvalResult]:
    """Each metric of the last evaluations, as the Hub lists them."""
    origins = {} if summary is None else {entry["name"]: entry for entry in summary["datasets"]}
    results = []
    for name, evaluation in _evaluations(config, summary).items():
        origin = origins.get(name, {})
        shared = {
            "task_type": f"{config.heads[name]['modality']}-classification",
            "dataset_type": origin.get("hub_id") or name,
            "dataset_name": name,
            "dataset_config": origin.get("config_name"),
            "dataset_split": origin.get("validation_split") or "validation",
        }
        # Two heads may be of one dataset of the Hub, whose results come as one list: so each names its head.
        results += [
            EvalResult(
                **shared,
                metric_type=metric,
                metric_name=f"{title}, head {name}",
                metric_value=round(evaluation[key], 4),
            )
            for key, (metric, title) in _METRICS.items()
            if key in evaluation
        ]
    return results


# ---- Text ----


def _mirrored(summary: Mapping[str, Any] | None) -> list[str]:
    """The datasets whose training samples were mirrored at random, as far as it is recorded."""
    recipe = None if summary is None else summary["recipe"]
    entries = [] if recipe is None else recipe["datasets"]
    return [entry["name"] for entry in entries if entry.get("horizontal_flip", True)]


def _template() -> Template:
    options = {"trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    environment = Environment(**options)
    environment.filters |= {
        "md": escape_markdown,
        "setting": lambda value: "not set" if value is None else escape_markdown(str(value)),
        "row": lambda cells: f"| {' | '.join(map(str, cells))} |",
        "names": lambda names: ", ".join(f"`{name}`" for name in names),
        "percent": lambda share: f"{share:.1%}",
        "number": lambda number: f"{number:,}",
        "duration": _duration,
        "yaml": lambda content: yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100),
        "fenced": _fenced,
    }
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def escape_markdown(text: str) -> str:
    """`text` so that it shows as it is on one line of Markdown, in a cell of a table, too."""
    escaped = html.escape(printable(" ".join(str(text).split())), quote=False)
    # The last three would make links, and a colon emoji as well.
    return re.sub(r"([\\`*_{}\[\]()#+!|~$@]|:(?=\S)|(?<=www)\.)", r"\\\1", escaped, flags=re.IGNORECASE)


def _fenced(text: str, language: str) -> str:
    """A block of code, whatever fences are in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"


def front_matter(
    language: str | None = None,
    license: str | None = None,
    tags: str | list[str] | None = None,
    model_name: str | None = None,
    finetuned_from: str | None = None,
    dataset_tags: str | list[str] | None = None,
) -> dict[str, Any]:
    """The overrides of [`write_model_card`], by the names of the arguments of `Trainer.create_model_card`.

    `tags` come on top of those that every card has; the ids of the Hub, `finetuned_from` and `dataset_tags`, are by
    default those of the starting point and of the datasets that come from there.
    """
    given = {
        "language": language,
        "license": license,
        "tags": [tags] if isinstance(tags, str) else tags,
        "model_name": model_name,
        "base_model": finetuned_from,
        "datasets": [dataset_tags] if isinstance(dataset_tags, str) else dataset_tags,
    }
    return {key: value for key, value in given.items() if value is not None}
