# SPDX-License-Identifier: Apache-2.0
"""CoVeR for Hugging Face Transformers: one video transformer co-trained on many video and image datasets."""

from . import _torchvision as _torchvision  # isort: skip  (before anything that imports torchvision)

import importlib
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel, AutoModelForVideoClassification, AutoVideoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .model.configuration_cover import PIPELINE_TASK, CoverConfig
from .model.modeling_cover import CoverEncoderModel, CoverForVideoClassification, CoverModel, CoverPreTrainedModel
from .model.pipeline_cover import CoverVideoClassificationPipeline
from .model.video_decoding_cover import VideoDecodingError, read_video
from .model.video_processing_cover import CoverVideoProcessor


if TYPE_CHECKING:
    from .data.collation import collate_clips
    from .data.samples import CoTrainingDataset, EvaluationDataset
    from .data.sources import file_rows, heads_of
    from .layouts import register_layout
    from .recipe.augmentation_recipe import Augmentation, register_transform
    from .recipe.mixture_recipe import register_sampling
    from .recipe.recipe import Recipe, load_recipe
    from .training.arguments import CoverTrainingArguments
    from .training.equal_updates import EqualUpdates
    from .training.from_recipe import CoTraining, prepare_cotraining
    from .training.trainer import CoverTrainer


# With the package installed, transformers' auto classes know the model: no `trust_remote_code` is needed.
AutoConfig.register("cover", CoverConfig)
AutoModel.register(CoverConfig, CoverModel)
AutoModelForVideoClassification.register(CoverConfig, CoverForVideoClassification)
AutoVideoProcessor.register(CoverConfig, CoverVideoProcessor)
PIPELINE_REGISTRY.register_pipeline(
    PIPELINE_TASK, CoverVideoClassificationPipeline, pt_model=AutoModelForVideoClassification, type="video"
)
CoverConfig._has_known_pipeline = True

# `save_pretrained` and `push_to_hub` write the code beside the weights, so that checkpoints load without the package.
CoverConfig.register_for_auto_class()
CoverEncoderModel.register_for_auto_class("AutoModel")
CoverModel.register_for_auto_class("AutoModel")
CoverForVideoClassification.register_for_auto_class("AutoModelForVideoClassification")
CoverVideoProcessor.register_for_auto_class()


__all__ = [
    "Augmentation",
    "CoTraining",
    "CoTrainingDataset",
    "CoverConfig",
    "CoverEncoderModel",
    "CoverForVideoClassification",
    "CoverModel",
    "CoverPreTrainedModel",
    "CoverTrainer",
    "CoverTrainingArguments",
    "CoverVideoClassificationPipeline",
    "CoverVideoProcessor",
    "EqualUpdates",
    "EvaluationDataset",
    "Recipe",
    "VideoDecodingError",
    "collate_clips",
    "file_rows",
    "heads_of",
    "load_recipe",
    "prepare_cotraining",
    "read_video",
    "register_layout",
    "register_sampling",
    "register_transform",
]

# What trains is imported when it is first asked for: who only runs a model needs no `datasets`, pandas or matplotlib.
_MODULES = {
    "Augmentation": "recipe.augmentation_recipe",
    "CoTraining": "training.from_recipe",
    "CoTrainingDataset": "data.samples",
    "CoverTrainer": "training.trainer",
    "CoverTrainingArguments": "training.arguments",
    "EqualUpdates": "training.equal_updates",
    "EvaluationDataset": "data.samples",
    "Recipe": "recipe.recipe",
    "collate_clips": "data.collation",
    "file_rows": "data.sources",
    "heads_of": "data.sources",
    "load_recipe": "recipe.recipe",
    "prepare_cotraining": "training.from_recipe",
    "register_layout": "layouts",
    "register_sampling": "recipe.mixture_recipe",
    "register_transform": "recipe.augmentation_recipe",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
