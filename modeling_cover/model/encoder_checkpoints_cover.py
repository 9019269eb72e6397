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
"""Checkpoints of other encoders of transformers, with the classifiers that they may have."""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForVideoClassification, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .configuration_cover import CoverConfig, check_head_kind
from .conversion_cover import (
    EncoderWeights,
    Model,
    Weights,
    check_finite,
    check_revision,
    is_original_release,
    stored_config,
    where_stored,
    without_load_report,
)
from .encoders_cover import EncoderAdapter, encoder_adapter, vision_part
from .normalisation_cover import normalisation_of
from .video_swin_checkpoints_cover import VIDEO_SWIN_MEAN, VIDEO_SWIN_STD, is_video_swin, read_video_swin


logger = logging.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class StoredEncoder:
    """An encoder as it was read from a checkpoint of its own kind."""

    source: str
    config: PreTrainedConfig
    pooling: str
    encoder: Weights
    pooler: Weights  # without what the checkpoint does not bring
    unused: tuple[str, ...]
    labels: list[str] = field(default_factory=list)  # of the classifier, in order; empty where there is none
    classifier: Weights = field(default_factory=dict)
    normalisation: dict[str, Any] = field(default_factory=dict)  # as `normalisation_of` has it

    @property
    def config_fields(self) -> dict[str, Any]:
        """Of `CoverConfig`."""
        normalisation = self.normalisation or None
        return {"encoder": self.config, "encoder_pooling": self.pooling, "encoder_normalisation": normalisation}


def is_timesformer(path: str | os.PathLike, revision: str | None, pooling: str | None) -> bool:
    """Whether a checkpoint is one that becomes an encoder of ours.

    Raises:
        ValueError: if it is, and its tokens are to be pooled.
    """
    if is_original_release(path):
        is_one = not is_video_swin(path)
    else:
        is_one = stored_config(path, revision).model_type == "timesformer"
    if is_one and pooling is not None:
        raise ValueError(f"pooling: a TimeSformer's feature is its class token, got {pooling!r}")
    return is_one


def head_of_classifier(
    stored: StoredEncoder | EncoderWeights, name: str, given: Mapping[str, Any], labels: Sequence[str] | None = None
) -> dict[str, Any]:
    """The head that a checkpoint's classifier becomes, of what is given of it.

    Args:
        labels: of the classifier, in order; by default those given, or else the checkpoint's.

    Raises:
        ValueError: if there is no classifier, or it has another number of labels, or another head is asked for.
    """
    if not stored.classifier:
        raise ValueError(f"head '{name}': {stored.source} has no classifier of videos: leave `head` out")
    if check_head_kind(given.get("head")) is not None:
        raise ValueError(f"head '{name}': the classifier of {stored.source} is linear, leave out {given['head']}")
    labels = list(given.get("labels", stored.labels) if labels is None else labels)
    if len(labels) != len(stored.labels):
        raise ValueError(
            f"head '{name}': expected {len(stored.labels)} labels, as the checkpoint's classifier, got {len(labels)}"
        )
    return {**given, "labels": labels}


def read_encoder(
    path: str | os.PathLike, pooling: str | None, image_size: int | None, revision: str | None, head: str | None
) -> StoredEncoder:
    """Read a checkpoint; see `CoverForVideoClassification.from_encoder`."""
    if is_original_release(path):
        check_revision(path, revision)
        return _video_swin(path, pooling)
    whole = stored_config(path, revision)
    try:
        adapter, config = encoder_adapter(vision_part(whole)), _of_size(vision_part(whole), image_size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    classifies = any(name.endswith("ForVideoClassification") for name in whole.architectures or [])
    try:
        auto_class = AutoModelForVideoClassification if classifies else AutoModel
        with without_load_report():
            native, info = auto_class.from_pretrained(
                path, config=config, dtype=torch.float32, output_loading_info=True, **where_stored(revision)
            )
    except Exception as error:  # as above; and a safetensors file has its own
        raise ValueError(f"{path}: its weights cannot be loaded: {error}") from error
    names = list(adapter.poolers)
    of_classifier = "attentive" if "attentive" in names else names[0]
    if pooling is None and classifies:
        pooling = of_classifier
    elif head is not None and classifies and pooling != of_classifier:
        raise ValueError(
            f"pooling: the classifier that becomes the head '{head}' sees features by {of_classifier!r}, got {pooling!r}"
        )
    parts = _parts(path, adapter, native, classifies, pooling, info)
    return replace(parts, normalisation=normalisation_of(path, revision))


def _video_swin(path: str | os.PathLike, pooling: str | None) -> StoredEncoder:
    stored = read_video_swin(path)
    encoder_adapter(stored.config).new_pooler(stored.config, pooling)  # which there must be
    return StoredEncoder(
        source=str(path),
        config=stored.config,
        pooling="mean",
        encoder=stored.encoder,
        pooler={},
        unused=(),
        labels=[f"LABEL_{index}" for index in range(len(stored.classifier.get("bias", ())))],
        classifier=stored.classifier,
        normalisation={"image_mean": VIDEO_SWIN_MEAN, "image_std": VIDEO_SWIN_STD},
    )


def _of_size(config: PreTrainedConfig, image_size: int | None) -> PreTrainedConfig:
    """The configuration for frames of this size, where it says the one size that an encoder takes."""
    field_name = encoder_adapter(config).size_field
    if image_size is None or field_name is None:
        return config
    if not isinstance(image_size, int):
        raise ValueError(f"image_size: a {config.model_type} takes squares of one size, got {image_size}")
    config = copy.deepcopy(config)
    setattr(config, field_name, image_size)
    return config


def _parts(
    path: str | os.PathLike,
    adapter: EncoderAdapter,
    native: PreTrainedModel,
    classifies: bool,
    pooling: str | None,
    info: Mapping[str, Any],
) -> StoredEncoder:
    base, config = native.base_model if classifies else native, native.config
    prefix = "" if base is native else f"{native.base_model_prefix}."
    pooler = adapter.new_pooler(config, pooling)
    own = {name: adapter.classifier[name] for name, _ in pooler.named_children() if name in adapter.classifier}
    parts = {name: getattr(native, attribute) for name, attribute in own.items() if classifies}
    adapter.prepare(base)
    state, classifier = base.state_dict(), native.classifier.state_dict() if classifies else {}
    needed = {f"{prefix}{name}" for name in state}
    needed |= {name for name, _ in native.named_parameters() if name.split(".")[0] in {*own.values(), "classifier"}}
    missing = sorted(set(info["missing_keys"]) & needed)
    if missing or info["mismatched_keys"]:
        raise ValueError(f"{path}: weights are missing or of another shape: {missing or info['mismatched_keys']}")
    weights = {
        f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in module.state_dict().items()
    }
    check_finite(path, {**state, **weights, **classifier})
    return StoredEncoder(
        source=str(path),
        config=config,
        pooling=next(iter(adapter.poolers)) if pooling is None else pooling,
        encoder=state,
        pooler=weights,
        unused=tuple(sorted(info["unexpected_keys"])),
        labels=[config.id2label[index] for index in range(config.num_labels)] if classifies else [],
        classifier=classifier,
    )


def model_with_encoder(
    model_class: type[Model], config: CoverConfig, stored: StoredEncoder, classified: str | None
) -> Model:
    """A `CoverForVideoClassification` of this configuration with this encoder; what is new is logged.

    Args:
        classified: the name of the head that the checkpoint's classifier becomes.
    """
    model = model_class(config)
    model.cover.encoder.load_state_dict(stored.encoder)
    new = [f"classifiers.{name}" for name in config.head_names if name != classified]
    pooler: nn.Module = model.cover.pooler
    if stored.pooler:
        pooler.load_state_dict(stored.pooler)
    elif any(True for _ in pooler.parameters()):
        new.insert(0, "pooler")
    unused = list(stored.unused)
    if classified is not None:
        model.classifiers[classified].load_state_dict(stored.classifier)
    elif stored.classifier:
        unused.append("classifier")
    model.to(config.dtype or torch.float32)
    logger.warning(
        f"Encoder loaded from {stored.source}.\n"
        f"- newly initialised, to be trained: {', '.join(new) or 'nothing'}\n"
        f"- in the checkpoint and not used: {', '.join(unused) or 'nothing'}"
    )
    return model.eval()
