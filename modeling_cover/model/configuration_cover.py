# Copyright 2026 The CoVeR for Transformers authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""CoVeR model configuration"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.utils import auto_docstring, logging


logger = logging.get_logger(__name__)

MODALITIES = ("video", "image")
SINGLE_LABEL, MULTI_LABEL = "single_label_classification", "multi_label_classification"
REGRESSION = "regression"  # one number for each label
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
PIPELINE_TASK = "cover-video-classification"
HEAD_DEFAULTS = {"modality": "video", "problem_type": SINGLE_LABEL}
# What a head may be made of, by `type`, and the sizes that each needs.
HEAD_TYPES = {"linear": (), "mlp": ("hidden_size",), "attentive": ("num_heads",)}
# A head's name becomes part of parameter names and of metric names.
HEAD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


def check_head(name: str, head: Mapping[str, Any]) -> dict[str, Any]:
    """Return `head` with its defaults filled in.

    Raises:
        ValueError: if the name, a key, the labels or one of the other values is not what a head takes.
    """
    if not isinstance(name, str) or not HEAD_NAME.fullmatch(name):
        raise ValueError(f"head name {name!r}: expected letters, digits, '_' and '-' (not at the start)")
    if not isinstance(head, Mapping):
        raise ValueError(f"head '{name}': expected a dict with 'labels', got {type(head).__name__}")
    if unknown := set(head) - {"labels", "head", *HEAD_DEFAULTS}:
        raise ValueError(
            f"head '{name}': unknown keys {sorted(unknown)}, expected labels, modality, problem_type, head"
        )
    head = {**HEAD_DEFAULTS, **head}
    try:
        kind = check_head_kind(head.pop("head", None))
    except ValueError as error:
        raise ValueError(f"head '{name}': {error}") from error
    labels = head.get("labels")
    if not isinstance(labels, list | tuple) or not labels or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"head '{name}': labels must be a non-empty list of strings, got {labels!r}")
    if repeated := sorted(label for label, count in Counter(labels).items() if count > 1):
        raise ValueError(f"head '{name}': labels {repeated} are given more than once")
    if head["modality"] not in MODALITIES:
        raise ValueError(f"head '{name}': modality must be one of {MODALITIES}, got {head['modality']!r}")
    if head["problem_type"] not in PROBLEM_TYPES:
        raise ValueError(f"head '{name}': problem_type must be one of {PROBLEM_TYPES}, got {head['problem_type']!r}")
    if head["problem_type"] == SINGLE_LABEL and len(labels) < 2:
        raise ValueError(
            f"head '{name}': a single-label head needs at least two labels, got {list(labels)}; one of a single number "
            f"has the problem_type {REGRESSION!r}"
        )
    return {**head, "labels": list(labels), **({} if kind is None else {"head": kind})}


def check_head_kind(kind: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a head is made of; None of a linear one, of which configurations say nothing.

    Raises:
        ValueError: if it is none of `{"type": "linear"}`, `{"type": "mlp", "hidden_size": ...}` and `{"type":
            "attentive", "num_heads": ...}`.
    """
    if kind is None:
        return None
    given = kind.get("type") if isinstance(kind, Mapping) else None
    sizes = HEAD_TYPES.get(given) if isinstance(given, str) else None
    if sizes is None or {*kind} != {"type", *sizes}:
        expected = "{'type': 'linear'}, {'type': 'mlp', 'hidden_size': ...} or {'type': 'attentive', 'num_heads': ...}"
        raise ValueError(f"head must be {expected}, got {dict(kind) if isinstance(kind, Mapping) else kind!r}")
    for size in sizes:
        if not isinstance(kind[size], int) or isinstance(kind[size], bool) or kind[size] < 1:
            raise ValueError(f"head: {size} must be a whole number, at least 1, got {kind[size]!r}")
    return {key: kind[key] for key in ("type", *sizes)} if sizes else None


@auto_docstring(
    custom_intro="""
    The configuration of a [`CoverModel`] or a [`CoverForVideoClassification`]. By default it is that of a ViT-Base which
    takes 8 frames.
    """,
    checkpoint="org/cover-base",
)
@strict
class CoverConfig(PreTrainedConfig):
    r"""
    num_frames (`int`, *optional*):
        The number of frames sampled from a video, and of stored time embeddings; 8 unless an `encoder` has its own.
        The model takes clips of any length; the time embeddings are resized linearly.
    image_size (`int` or `tuple[int, int]`, *optional*):
        Height and width, in pixels, for which position embeddings are stored; 224 unless an `encoder` has its own. The
        model takes frames of any height and width that `patch_size` divides; the position embeddings are resized
        bicubically.
    drop_path_rate (`float`, *optional*, defaults to 0.0):
        Stochastic depth: the rate of the last layer, growing linearly from 0 at the first.
    time_initializer_range (`float`, *optional*):
        The standard deviation of newly initialised time embeddings; `initializer_range` if not given. Without a
        checkpoint to start from, larger ones let motion be learnt sooner.
    encoder (`dict` or `PreTrainedConfig`, *optional*):
        The configuration of an encoder of transformers, such as a V-JEPA 2 or a VideoMAE, in place of ours: of a kind
        in [`~modeling_cover.model.encoders_cover.ENCODERS`]. What is said above of an encoder is then its own.
    encoder_pooling (`str`, *optional*):
        How a feature is made of that encoder's tokens; by default the first way that its kind has.
    encoder_temporal_layers (`int`, *optional*, defaults to 0):
        Of an encoder of images: layers of attention among the features of a clip's frames, before their mean.
    encoder_normalisation (`dict`, *optional*):
        `image_mean`, `image_std` and `rescale_factor` that the encoder's checkpoint was trained with: a processor's
        must be the same.
    heads (`dict[str, dict]`, *optional*):
        The classification heads by name, one for each dataset: `{"labels": [...], "modality": "video" | "image",
        "problem_type": "single_label_classification" | "multi_label_classification" | "regression", "head": {"type":
        "linear"} | {"type": "mlp", "hidden_size": ...} | {"type": "attentive", "num_heads": ...}}`; all but the labels
        default to the first of each. Order carries no meaning. Without heads there is one, named `default_head` (or
        "default"), with the labels of `id2label` (or `num_labels` of them), and `problem_type`, by default that of a
        regression for one label.
    default_head (`str`, *optional*):
        The head whose logits are `outputs.logits`, and whose labels are `id2label`, `label2id` and `num_labels`. May
        be left out where there is just one head. Assigning one of these, or `problem_type`, changes this head.

    Example:

    ```python
    >>> from modeling_cover import CoverConfig, CoverForVideoClassification

    >>> configuration = CoverConfig(
    ...     heads={
    ...         "k400": {"labels": ["abseiling", "zumba"]},
    ...         "imagenet": {"labels": ["tench", "goldfish"], "modality": "image"},
    ...     },
    ...     default_head="k400",
    ... )
    >>> model = CoverForVideoClassification(configuration)
    ```"""

    model_type = "cover"
    sub_configs = {"encoder": AutoConfig}
    # Where the package is installed, transformers knows its pipeline, and must not ask for consent to run a stored
    # one.
    _has_known_pipeline = False
    # One head's logits are what a Trainer gathers as predictions.
    keys_to_ignore_at_inference = [
        "head_logits",
        "head_losses",
        "pooler_output",
        "hidden_states",
        "attentions",
        "temporal_attentions",
    ]

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float | int = 0.02
    time_initializer_range: float | int | None = None
    layer_norm_eps: float | int = 1e-6
    image_size: int | list[int] | tuple[int, int] | None = None
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    num_frames: int | None = None
    qkv_bias: bool = True
    encoder: dict[str, Any] | PreTrainedConfig | None = None
    encoder_pooling: str | None = None
    encoder_temporal_layers: int = 0
    encoder_normalisation: dict[str, Any] | None = None
    heads: dict[str, Any] | None = None
    default_head: str | None = None

    def __post_init__(self, **kwargs):
        if self.encoder is not None:
            self._describe_encoder()
        self.num_frames = 8 if self.num_frames is None else self.num_frames
        self.image_size = 224 if self.image_size is None else self.image_size
        if self.heads is None:
            super().__post_init__(**kwargs)
            labels = _in_order(self.id2label)
            head = {
                "labels": labels,
                "problem_type": self.problem_type or (SINGLE_LABEL if labels[1:] else REGRESSION),
            }
            self.update_heads({self.default_head or "default": head})
            return
        id2label, problem_type, num_labels = self.id2label, self.problem_type, kwargs.pop("num_labels", None)
        self.update_heads(self.heads, self.default_head)
        super().__post_init__(**kwargs)
        labels = self.heads[self.default_head]["labels"]
        if (id2label is not None and _in_order(id2label) != labels) or num_labels not in (None, len(labels)):
            raise ValueError(
                f"id2label or num_labels differs from the labels of the default head '{self.default_head}' "
                f"({len(labels)} labels): give labels in `heads` only"
            )
        if problem_type not in (None, self.problem_type):
            raise ValueError(
                f"problem_type '{problem_type}' differs from that of the default head '{self.default_head}': give it "
                "in `heads` only"
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As in the base class; `heads`, `default_head` and the labels of the default head may be replaced by keyword.

        A head of a stored one's name and other labels than that one's is warned of: weights are loaded by name.

        Raises:
            ValueError: if the dictionary is the configuration of another architecture.
        """
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"expected a checkpoint of model type '{cls.model_type}', got '{model_type}'. To start from a ViT use "
                "CoverForVideoClassification.from_image_checkpoint, from a TimeSformer from_timesformer."
            )
        if cls._has_known_pipeline:
            config_dict = {name: value for name, value in config_dict.items() if name != "custom_pipelines"}
        _warn_of_other_labels(config_dict.get("heads"), kwargs.get("heads"))
        given = {name: kwargs.pop(name) for name in ("heads", "default_head") if name in kwargs}
        of_head = ("id2label", "label2id", "num_labels", "problem_type")
        labels = {name: kwargs.pop(name) for name in of_head if name in kwargs}
        if {**config_dict, **given}.get("heads") is not None:
            # What is derived from the heads is derived again: a stored id2label is that of the stored default head.
            derived = ("id2label", "label2id", "problem_type")
            config_dict = {name: value for name, value in config_dict.items() if name not in derived}
        loaded = super().from_dict({**config_dict, **given}, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded)._replace_labels(**labels)
        return loaded

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("heads") and name in ("id2label", "label2id", "problem_type"):
            self._replace_labels(**{name: value})
        else:
            super().__setattr__(name, value)

    @property
    def head_names(self) -> list[str]:
        """The heads' names, sorted; a head id is an index into this list."""
        return sorted(self.heads)

    def get_head(self, name: str) -> dict[str, Any]:
        """The head called `name`.

        Raises:
            ValueError: if there is none.
        """
        if name not in self.heads:
            raise ValueError(f"unknown head {name!r}: expected one of {self.head_names}")
        return self.heads[name]

    def update_heads(self, heads: Mapping[str, Mapping[str, Any]], default_head: str | None = None) -> None:
        """Replace the heads, and with them `id2label`, `label2id` and `problem_type`, which are the default head's.

        Raises:
            ValueError: if a head is malformed, or the default head is none of them.
        """
        if not heads:
            raise ValueError("heads: expected at least one head")
        checked = {name: check_head(name, head) for name, head in heads.items()}
        if default_head is None:
            if len(checked) > 1:
                raise ValueError(f"default_head: expected one of {sorted(checked)}, got None")
            default_head = next(iter(checked))
        if default_head not in checked:
            raise ValueError(f"unknown default_head {default_head!r}: expected one of {sorted(checked)}")
        default = checked[default_head]
        self.heads = None  # what is assigned from here on is not to change the head
        self.id2label = dict(enumerate(default["labels"]))
        self.label2id = {label: index for index, label in enumerate(default["labels"])}
        self.problem_type = default["problem_type"]
        self.heads, self.default_head = checked, default_head

    def _describe_encoder(self) -> None:
        """Make our fields those of the encoder, and its own sizes the default ones."""
        from .encoders_cover import encoder_adapter

        if isinstance(self.encoder, dict):
            model_type = self.encoder.get("model_type")
            if model_type not in CONFIG_MAPPING:
                raise ValueError(f"encoder: expected a model_type of transformers, got {model_type!r}")
            self.encoder = CONFIG_MAPPING[model_type](**self.encoder)
        encoder, adapter = self.encoder, encoder_adapter(self.encoder)
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_channels"):
            setattr(self, name, getattr(encoder, name, getattr(self, name)))
        self.num_hidden_layers, self.patch_size = adapter.num_layers(encoder), list(adapter.tubelet(encoder)[1:])
        if self.num_frames is None and adapter.num_frames is not None:
            self.num_frames = getattr(encoder, adapter.num_frames)
        if self.image_size is None:
            self.image_size = list(adapter.image_size(encoder))

    @property
    def tubelet(self) -> tuple[int, int, int]:
        """Frames, rows and columns of pixels that make a token."""
        from .encoders_cover import encoder_adapter

        if self.encoder is None:
            return 1, *as_pair(self.patch_size)
        return encoder_adapter(self.encoder).tubelet(self.encoder)

    @property
    def layer_lists(self) -> list[str]:
        """The names, in a [`CoverForVideoClassification`], of the lists of layers, as a clip goes through them."""
        from .encoders_cover import encoder_adapter

        if self.encoder is None:
            return ["cover.layers"]
        return [f"cover.encoder.{name}" for name in encoder_adapter(self.encoder).layers]

    @property
    def smallest_clip(self) -> tuple[int, int, int]:
        """Frames, height and width, in pixels, of the smallest clip that the model takes."""
        from .encoders_cover import encoder_adapter

        if self.encoder is not None and (adapter := encoder_adapter(self.encoder)).size_field is not None:
            return 1, *adapter.image_size(self.encoder)
        return 1, *as_pair(self.patch_size)

    def register_code(self) -> None:
        """Note where, in the code that is saved beside a checkpoint, the encoder and the pipeline are."""
        encoder = "CoverModel" if self.encoder is None else "CoverEncoderModel"
        self.auto_map = {**getattr(self, "auto_map", {}), "AutoModel": f"modeling_cover.{encoder}"}
        self.custom_pipelines = {
            PIPELINE_TASK: {
                "impl": "pipeline_cover.CoverVideoClassificationPipeline",
                "pt": ["AutoModelForVideoClassification"],
                "type": "video",
            }
        }

    def validate_architecture(self):
        """Part of `@strict`: checks what depends on several fields."""
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_channels")
        for name in (*sizes, "num_frames", "image_size", "patch_size"):
            value = getattr(self, name)
            if min(value if isinstance(value, list | tuple) else [value]) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) is not a multiple of num_attention_heads "
                f"({self.num_attention_heads})"
            )
        for name in ("image_size", "patch_size"):
            size = getattr(self, name)
            if not isinstance(size, int) and len(size) != 2:
                raise ValueError(f"{name} must be one number or a height and a width, got {size}")
        if any(size % patch for size, patch in zip(as_pair(self.image_size), as_pair(self.patch_size), strict=True)):
            raise ValueError(f"image_size ({self.image_size}) is not a multiple of patch_size ({self.patch_size})")
        if self.encoder is not None:
            from .encoders_cover import check_size

            check_size(self.encoder, self.num_frames, as_pair(self.image_size))
        self._check_temporal_layers()
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate must be in [0, 1), got {self.drop_path_rate}")

    def _check_temporal_layers(self) -> None:
        from .encoders_cover import encoder_adapter

        number = self.encoder_temporal_layers
        if number < 0:
            raise ValueError(f"encoder_temporal_layers must be at least 0, got {number}")
        if number and (self.encoder is None or not encoder_adapter(self.encoder).takes_frames):
            kind = "ours" if self.encoder is None else f"a {self.encoder.model_type}"
            raise ValueError(f"encoder_temporal_layers: they are for encoders of images, and {kind} sees whole clips")

    def _replace_labels(
        self,
        id2label: Mapping | None = None,
        label2id: Mapping | None = None,
        num_labels: int | None = None,
        problem_type: str | None = None,
    ) -> None:
        """Those of the default head: `from_pretrained(..., num_labels=10, ignore_mismatched_sizes=True)` is how every
        model of transformers is given another label space."""
        head = dict(self.heads[self.default_head])
        if id2label is None and label2id is not None:
            id2label = {index: label for label, index in label2id.items()}
        if id2label is not None and num_labels not in (None, len(id2label)):
            raise ValueError(
                f"num_labels ({num_labels}) differs from the number of labels of id2label ({len(id2label)})"
            )
        if id2label is not None:
            head["labels"] = _in_order(id2label)
        elif num_labels not in (None, len(head["labels"])):
            head["labels"] = [f"LABEL_{index}" for index in range(num_labels)]
        if problem_type is not None:
            head["problem_type"] = problem_type
        elif len(head["labels"]) == 1 and head["problem_type"] == SINGLE_LABEL:
            head["problem_type"] = REGRESSION  # as a model of transformers that is given one label
        if head != self.heads[self.default_head]:
            self.update_heads({**self.heads, self.default_head: head}, self.default_head)


def as_pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    """A height and a width from a size that may be one number for both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def patch_grid(
    image_size: int | list[int] | tuple[int, int], patch_size: int | list[int] | tuple[int, int]
) -> tuple[int, int]:
    """Rows and columns of patches in a frame."""
    (height, width), (rows, columns) = as_pair(image_size), as_pair(patch_size)
    return height // rows, width // columns


def _in_order(id2label: Mapping) -> list[str]:
    """The labels by their indices, which in JSON are strings."""
    return [label for _, label in sorted((int(index), label) for index, label in id2label.items())]


def _warn_of_other_labels(stored: Any, given: Any) -> None:
    if not isinstance(stored, Mapping) or not isinstance(given, Mapping):
        return
    for name in [name for name in given if isinstance(stored.get(name), Mapping)]:
        old, new = list(stored[name].get("labels") or []), check_head(name, given[name])["labels"]
        if old != new:
            logger.warning(
                f"head {name!r} has weights for the labels {_some(old)}, and is given {_some(new)}: give it another name "
                "unless they mean the same, in this order"
            )


def _some(labels: list[str]) -> str:
    return ", ".join(labels[:5]) + (", ..." if len(labels) > 5 else "")


__all__ = ["CoverConfig"]
