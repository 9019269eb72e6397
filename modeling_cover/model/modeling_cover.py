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
"""CoVeR (Zhang et al. 2021, "Co-training Transformer with Videos and Images Improves Action Recognition").

A TimeSformer with divided space-time attention and one classification head for each dataset; an image is a clip of
one frame. Axes, in the shapes below:

    B clips   T frames of a clip   N patches of a frame   D hidden_size
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_cover import CoverConfig, check_head
from .conversion_cover import (
    check_config_fields,
    encoder_weights_from_timesformer,
    encoder_weights_from_vit,
    model_with_encoder_weights,
)
from .divided_attention_cover import CoverAttention, CoverLayer
from .embeddings_cover import CoverEmbeddings
from .encoder_checkpoints_cover import head_of_classifier, is_timesformer, model_with_encoder, read_encoder
from .encoders_cover import as_tubelets, check_size, encoder_adapter
from .frame_pooling_cover import CoverFramePooler, CoverTemporalLayer
from .head_losses_cover import head_loss, mixed_head_losses
from .heads_cover import CoverAttentiveHead, CoverHeads, new_head
from .outputs_cover import CoverModelOutput, CoverVideoClassifierOutput, record_both_attentions
from .packed_frames_cover import can_pack, packed_features


if TYPE_CHECKING:
    from .pipeline_cover import CoverVideoClassificationPipeline
    from .video_processing_cover import CoverVideoProcessor

logger = logging.get_logger(__name__)


@auto_docstring
class CoverPreTrainedModel(PreTrainedModel):
    config: CoverConfig
    base_model_prefix = "cover"
    main_input_name = "pixel_values"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["CoverEmbeddings", "CoverLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": CoverLayer,
        "attentions": OutputRecorder(CoverAttention, index=1, layer_name="attention"),
        "temporal_attentions": OutputRecorder(CoverAttention, index=1, layer_name="temporal_attention"),
    }
    _input_embed_layer = "patch_embeddings"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, CoverEmbeddings):
            init.trunc_normal_(module.cls_token, std=std)
            init.trunc_normal_(module.position_embeddings, std=std)
            time_std = self.config.time_initializer_range
            init.trunc_normal_(module.time_embeddings, std=std if time_std is None else time_std)
        elif isinstance(module, CoverAttentiveHead):
            init.zeros_(module.query)


@auto_docstring(
    custom_intro="""
    The CoVeR encoder: clips of any number of frames, height and width to token features.
    """
)
class CoverModel(CoverPreTrainedModel):
    # Types of devices on which all clips go through the layers together, see [`PackedFrames`].
    packing_devices = ("cuda",)

    def __init__(self, config: CoverConfig):
        super().__init__(config)
        if config.encoder is not None:
            raise ValueError(
                f"a checkpoint with an encoder of type {config.encoder.model_type} is a CoverEncoderModel"
            )
        self.embeddings = CoverEmbeddings(config)
        self.layers = nn.ModuleList([CoverLayer(config, index) for index in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @record_both_attentions
    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    @auto_docstring
    def forward(
        self, pixel_values: torch.Tensor | Sequence[torch.Tensor], **kwargs: Unpack[TransformersKwargs]
    ) -> CoverModelOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_frames, num_channels, height, width)` or a list):
            Clips; an image is a clip of one frame. The patch size must divide height and width, otherwise a
            `ValueError` is raised. A list of such groups of clips of different shapes goes through the layers at
            once: all that is returned is `pooler_output`.
        """
        if kwargs.pop("attention_mask", None) is not None:
            logger.warning_once("attention_mask is ignored: a clip has no padding")
        if isinstance(pixel_values, list | tuple):
            return CoverModelOutput(pooler_output=packed_features(self, pixel_values, **kwargs))
        self.embeddings.patch_embeddings.check(pixel_values)
        num_frames = pixel_values.shape[1]
        hidden_states = self.embeddings(pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype))
        for layer in self.layers:
            hidden_states = layer(hidden_states, num_frames, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        return CoverModelOutput(last_hidden_state=hidden_states, pooler_output=hidden_states[:, 0])


@auto_docstring(
    custom_intro="""
    An encoder of transformers in place of ours: clips to token features, and to one feature of each clip.
    """
)
class CoverEncoderModel(CoverPreTrainedModel):
    # The encoder records its own.
    _can_record_outputs = {}

    def __init__(self, config: CoverConfig):
        super().__init__(config)
        adapter = encoder_adapter(config.encoder)
        self.encoder = AutoModel.from_config(config.encoder)
        adapter.prepare(self.encoder)
        pooler = adapter.new_pooler(self.encoder.config, config.encoder_pooling)
        self.pooler = CoverFramePooler(config, pooler) if adapter.takes_frames else pooler
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        self.encoder._init_weights(module)  # of the pooler, which is of the encoder's kind
        if isinstance(module, CoverTemporalLayer):
            module.init_as_identity()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    @can_return_tuple
    @auto_docstring
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> CoverModelOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_frames, num_channels, height, width)`):
            Clips in whole tokens of the encoder, or images, which are clips of one frame.
        """
        if kwargs.pop("attention_mask", None) is not None:
            logger.warning_once("attention_mask is ignored: a clip has no padding")
        config = self.encoder.config
        adapter, clips = encoder_adapter(config), as_tubelets(pixel_values.to(self.encoder.dtype), config)
        pixels = clips.flatten(0, 1) if adapter.takes_frames else clips
        outputs = self.encoder(**adapter.arguments(config, pixels), **{**kwargs, "return_dict": True})
        num_frames = (clips.shape[1],) if adapter.takes_frames else ()
        pooled, tokens = self.pooler(outputs, *num_frames), outputs.last_hidden_state
        if adapter.takes_frames:
            tokens = tokens.unflatten(0, clips.shape[:2]).flatten(1, 2)
        recorded = {key: outputs[key] for key in ("hidden_states", "attentions") if outputs.get(key) is not None}
        return CoverModelOutput(last_hidden_state=tokens, pooler_output=pooled, **recorded)


@auto_docstring(
    custom_intro="""
    The CoVeR encoder with one classification head for each dataset: linear on its class token, unless it says otherwise.
    """
)
class CoverForVideoClassification(CoverPreTrainedModel):
    # The loss is a mean over the rows given, not one normalised by the Trainer's `num_items_in_batch`.
    accepts_loss_kwargs = False

    def __init__(self, config: CoverConfig):
        super().__init__(config)
        # CODEPATH: our own encoder by default; another where `from_encoder` made the checkpoint.
        self.cover = CoverModel(config) if config.encoder is None else CoverEncoderModel(config)
        self.classifiers = CoverHeads()
        for name in config.head_names:
            self.classifiers[name] = self._new_classifier(name, config.heads[name])
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor | Sequence[torch.Tensor],
        labels: torch.Tensor | Mapping[str, torch.Tensor] | None = None,
        head: str | None = None,
        head_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CoverVideoClassifierOutput:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_frames, num_channels, height, width)` or a list):
            Clips, or a list of such groups of clips of different shapes; the encoder runs once for each group, or on a
            GPU for all at once, and rows are numbered through the groups in order.
        labels (`torch.LongTensor` of shape `(batch_size,)`, a `torch.FloatTensor` or a dict, *optional*):
            The class of each row in its head's label space, -100 if the row is to count for nothing; for a multi-label
            head 0 or 1 for each class, of shape `(batch_size, num_labels)`; for a regression the numbers. With
            `head_ids` and such heads a dict: each head's rows in order.
        head (`str`, *optional*, defaults to the default head):
            The head that all rows belong to: `logits` are its logits, and `labels` its labels.
        head_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            The head of each row, as an index into `config.head_names`; needed with `labels` of several heads. A row
            with -100 counts for nothing.
        """
        if head is not None and head_ids is not None:
            raise ValueError("give `head` (one for all rows) or `head_ids` (one for each row), not both")
        head = self.config.default_head if head is None else head
        self.config.get_head(head)
        several_groups = isinstance(pixel_values, list | tuple)
        if several_groups and not pixel_values:
            raise ValueError("pixel_values: an empty list of clip groups")
        groups = pixel_values if several_groups else [pixel_values]
        kwargs = {**kwargs, "return_dict": True}
        # On a GPU our own encoder takes all groups together.
        together = isinstance(self.cover, CoverModel) and can_pack(self.cover, groups, self.training, **kwargs)
        outputs = [self.cover(clips, **kwargs) for clips in ([groups] if together else groups)]
        pooled = torch.cat([output.pooler_output for output in outputs])
        head_logits = self.classifiers(pooled, [output.last_hidden_state for output in outputs])

        head_losses = None
        if labels is not None and head_ids is not None:
            head_losses = mixed_head_losses(self.config, head_logits, labels, head_ids)
        elif labels is not None:
            # The others' are 0 with a gradient, as DDP needs of each parameter.
            head_losses = {name: logits[:0].float().sum() for name, logits in head_logits.items()}
            head_losses[head] = head_loss(self.config, head, head_logits[head], labels)
        recorded = {
            key: tuple(output[key] for output in outputs) if several_groups else outputs[0][key]
            for key in ("hidden_states", "attentions", "temporal_attentions")
            if outputs[0].get(key) is not None
        }
        return CoverVideoClassifierOutput(
            loss=None if head_losses is None else sum(head_losses.values()),
            logits=head_logits[head],
            head_logits=head_logits,
            head_losses=head_losses,
            pooler_output=pooled,
            **recorded,
        )

    def _new_classifier(self, name: str, head: Mapping[str, Any]) -> nn.Module:
        if hasattr(self.classifiers, name):
            raise ValueError(f"head name {name!r} is taken by torch.nn.Module, choose another")
        return new_head(name, self.config, head)

    def add_head(
        self,
        name: str,
        labels: Sequence[str],
        modality: str = "video",
        problem_type: str = "single_label_classification",
        head: Mapping[str, Any] | None = None,
    ) -> None:
        """Add a head, as `heads` of [`CoverConfig`] has it, with new weights, of which no optimizer there is knows.

        Raises:
            ValueError: if there is a head of that name, or the head is malformed.
        """
        if name in self.config.heads:
            raise ValueError(f"there is a head {name!r} already")
        entry = {"labels": labels, "modality": modality, "problem_type": problem_type, "head": head}
        classifier = self._new_classifier(name, check_head(name, entry))
        self.config.update_heads({**self.config.heads, name: entry}, self.config.default_head)
        classifier.apply(self._init_weights)
        self.classifiers[name] = classifier.to(device=self.device, dtype=self.dtype)

    def remove_head(self, name: str) -> None:
        """Remove a head and its weights.

        Raises:
            ValueError: if there is none of that name, or it is the default head.
        """
        self.config.get_head(name)
        if name == self.config.default_head:
            raise ValueError(f"head {name!r} is the default head: set another with config.update_heads first")
        remaining = {other: head for other, head in self.config.heads.items() if other != name}
        self.config.update_heads(remaining, self.config.default_head)
        del self.classifiers[name]

    def resize_clips(self, num_frames: int, image_size: int | tuple[int, int]) -> None:
        """Store time and position embeddings for clips of another usual size, resized from those there are.

        The model takes clips of any size all the same; this is for training on, at that size.
        """
        # CODEPATH: our own encoder stores embeddings; another, of `from_encoder`, resizes them anew for each clip.
        if self.config.encoder is None:
            self.cover.embeddings.resize(num_frames, image_size)
        else:
            check_size(self.config.encoder, num_frames, image_size)
        self.config.num_frames, self.config.image_size = num_frames, image_size

    def pipeline(self, video_processor: "CoverVideoProcessor", **kwargs: Any) -> "CoverVideoClassificationPipeline":
        """A [`CoverVideoClassificationPipeline`] of this model; `kwargs` are options of it, or of any pipeline."""
        # This line is also what makes transformers save the pipeline's code with the model's.
        from .pipeline_cover import CoverVideoClassificationPipeline

        return CoverVideoClassificationPipeline(self, video_processor=video_processor, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As in the base class; what is saved can also be loaded as `AutoModel`, and as the custom pipeline."""
        if self.is_remote_code():
            self.config.register_code()
        super().save_pretrained(save_directory, *args, **kwargs)

    def freeze_backbone(self) -> None:
        """Train the heads only (section 3.2 of the paper: transfer with frozen features)."""
        self.cover.requires_grad_(False)

    @classmethod
    def from_image_checkpoint(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        heads: Mapping[str, Mapping[str, Any]],
        default_head: str | None = None,
        num_frames: int = 8,
        revision: str | None = None,
        **kwargs,
    ) -> "CoverForVideoClassification":
        """Start from a ViT of transformers, as section 3.1 of the paper starts from an image model.

        Spatial attention, MLP, patch and position embeddings are the ViT's, temporal attention is a copy of spatial
        attention, `temporal_dense` and the time embeddings are zeros, so that at first the features of an image are
        the ViT's. The heads are new. What is new, copied or left out is logged.

        Args:
            pretrained_model_name_or_path: a folder or Hub id of any checkpoint of model type "vit".
            heads, default_head: as in [`CoverConfig`].
            num_frames: frames sampled from a video.
            revision: of a Hub id: a branch, a tag or a commit.
            kwargs: further fields of [`CoverConfig`], such as `drop_path_rate`; another `image_size` resizes the
                position embeddings once, here.

        Raises:
            ValueError: if there is no checkpoint, or it is damaged, of another architecture, or lacks weights.
        """
        check_config_fields(kwargs)
        weights = encoder_weights_from_vit(pretrained_model_name_or_path, num_frames, revision)
        config = CoverConfig(**{**weights.config, **kwargs}, heads=heads, default_head=default_head)
        return model_with_encoder_weights(cls, config, weights)

    @classmethod
    def from_timesformer(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        head: str | None = "k400",
        labels: Sequence[str] | None = None,
        heads: Mapping[str, Mapping[str, Any]] | None = None,
        default_head: str | None = None,
        revision: str | None = None,
        **kwargs,
    ) -> "CoverForVideoClassification":
        """Convert a TimeSformer, of transformers or of the original release, into a model with its head, or others.

        Args:
            pretrained_model_name_or_path: a folder or Hub id of a checkpoint of model type "timesformer" with divided
                space-time attention, or a `.pyth` file of the original release.
            head: the name of the head that the checkpoint's classifier becomes; None leaves the classifier out.
            labels: its labels; by default those that `heads` has for it, or else the checkpoint ("LABEL_0", ... for a
                `.pyth` file, which has none).
            heads, default_head: the other heads, newly initialised, and the default one, as in [`CoverConfig`].
            revision: of a Hub id: a branch, a tag or a commit.
            kwargs: further fields of [`CoverConfig`], such as `drop_path_rate`.

        Raises:
            ValueError: if there is no checkpoint, or it is damaged, of another architecture, or weights are missing,
                left over or not finite; or the labels are not as many as its classifier has.
        """
        check_config_fields(kwargs)
        weights = encoder_weights_from_timesformer(pretrained_model_name_or_path, revision)
        heads, default_head = dict(heads or {}), default_head or head
        if head is None:
            if labels is not None:
                raise ValueError("labels: they are those of the checkpoint's classifier, which needs a `head`")
            config = CoverConfig(**{**weights.config, **kwargs}, heads=heads, default_head=default_head)
            unused = (*weights.unused, *(f"classifier.{name}" for name in weights.classifier))
            return model_with_encoder_weights(cls, config, replace(weights, unused=unused))
        heads[head] = head_of_classifier(weights, head, heads.get(head, {}), labels)
        config = CoverConfig(**{**weights.config, **kwargs}, heads=heads, default_head=default_head)
        model = model_with_encoder_weights(cls, config, weights, classified=(head,))
        model.classifiers[head].load_state_dict(weights.classifier)
        return model

    @classmethod
    def from_encoder(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        heads: Mapping[str, Mapping[str, Any]] | None = None,
        default_head: str | None = None,
        head: str | None = None,
        pooling: str | None = None,
        image_size: int | None = None,
        revision: str | None = None,
        **kwargs,
    ) -> "CoverForVideoClassification":
        """Start from any encoder of transformers that there is an adapter of, see [`EncoderAdapter`]: of videos, or of
        images, which is run on each frame. A TimeSformer becomes one of ours, see `from_timesformer`.

        Args:
            pretrained_model_name_or_path: a folder or Hub id; or a file of torchvision's Video Swin or of its release.
            heads, default_head: as in [`CoverConfig`]; these heads are new.
            head: the name of the head that the checkpoint's classifier of videos becomes; by default it is left out.
            pooling: `encoder_pooling` of [`CoverConfig`]; by default as the checkpoint's classifier does it.
            image_size: height and width, in pixels, if not the checkpoint's.
            revision: of a Hub id: a branch, a tag or a commit.
            kwargs: further fields of [`CoverConfig`], such as `num_frames`.

        Raises:
            ValueError: if there is no checkpoint, or it is damaged, lacks weights, or is of a kind without an adapter;
                or `head` is asked for and it has no classifier of videos.
        """
        check_config_fields(kwargs)
        heads, default_head = dict(heads or {}), default_head or head
        kwargs |= {} if image_size is None else {"image_size": image_size}
        if is_timesformer(pretrained_model_name_or_path, revision, pooling):
            options = {"heads": heads, "default_head": default_head, "revision": revision, **kwargs}
            return cls.from_timesformer(pretrained_model_name_or_path, head, **options)
        stored = read_encoder(pretrained_model_name_or_path, pooling, image_size, revision, head)
        if head is not None:
            heads[head] = head_of_classifier(stored, head, heads.get(head, {}))
        config = CoverConfig(**kwargs, **stored.config_fields, heads=heads, default_head=default_head)
        return model_with_encoder(cls, config, stored, head)


__all__ = ["CoverEncoderModel", "CoverForVideoClassification", "CoverModel", "CoverPreTrainedModel"]
