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
"""A pipeline that answers with several heads, averages views, and follows a long video in sliding windows.

Axes: V views of a video (spatial crops and clips), of all windows together   T frames, C channels, H height, W width.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.utils import logging

from .configuration_cover import MULTI_LABEL, REGRESSION
from .image_reading_cover import is_frame_list
from .normalisation_cover import check_normalisation


Scores = list[dict[str, str | float]]

ALL_HEADS = "all"

_PREPROCESSING = ("views", "num_clips", "num_frames", "frame_sampling", "frame_stride", "window", "stride", "fps")
_POSTPROCESSING = ("head", "top_k", "threshold", "return_embedding")


def head_scores(head: Mapping[str, Any], logits: torch.Tensor) -> torch.Tensor:
    """The mean over views, (..., labels), of what logits (..., V, labels) of a head of the config say: probabilities,
    or the numbers of a regression."""
    if head["problem_type"] == REGRESSION:
        return logits.float().mean(dim=-2)
    multi_label = head["problem_type"] == MULTI_LABEL
    return (logits.float().sigmoid() if multi_label else logits.float().softmax(dim=-1)).mean(dim=-2)


def head_of_name(config: Any, head: str | Sequence[str] | None) -> list[str]:
    """The names of the heads that `head` asks for: one, several, "all", or None for the default head.

    Raises:
        ValueError: if there is none of a name, or an empty list.
    """
    if head is None:
        return [config.default_head]
    if head == ALL_HEADS and ALL_HEADS not in config.heads:
        return config.head_names
    names = [head] if isinstance(head, str) else list(head)
    if not names:
        raise ValueError(f"head: expected at least one of {config.head_names}, got none")
    for name in names:
        config.get_head(name)
    return names


class CoverVideoClassificationPipeline(Pipeline):
    """Classifies videos and images with any of a model's heads.

    ```python
    >>> from transformers import pipeline

    >>> classify = pipeline("cover-video-classification", model="org/cover-base", trust_remote_code=True)
    >>> classify("clip.mp4")  # the default head
    [{'label': 'juggling balls', 'score': 0.93}, ...]
    >>> classify("clip.mp4", head=["k400", "ssv2"], views=3, num_clips=4)  # or head="all"
    {'k400': [{'label': 'juggling balls', 'score': 0.95}, ...], 'ssv2': [...]}
    >>> classify("film.mp4", window=4, stride=2)
    [{'start': 0.0, 'end': 4.0, 'label': 'juggling balls', 'score': 0.71}, ...]
    ```

    With this package installed `trust_remote_code` is not needed.
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.video_processor is None:
            raise ValueError("video_processor: expected the checkpoint's CoverVideoProcessor, got None")
        if not hasattr(self.model.config, "heads"):
            raise ValueError(f"model: expected a CoVeR model, got {type(self.model).__name__}")
        check_normalisation(self.model.config, self.video_processor)
        self.model.eval()

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Classify a video or an image, or each of a list, a generator or a dataset of them.

        Args:
            inputs: a video: a path, an http(s) URL, bytes, a binary file object, an array (T, H, W, C) or (T, C, H,
                W); an image: a path or URL that ends as images do, a PIL image, an array (H, W, C) or (C, H, W). Items
                of a list, which may be videos, lists of frames and images in any order, are classified each for
                itself, and so are the clips of an array of 5 axes. A list of nothing but images is refused: it could
                be the frames of one video.
            head: the name of a head, a list of names, or "all" (unless a head is called so); by default the model's
                default head.
            top_k: the labels of highest score to return, 5 by default; None for all. Of windows, 1 by default.
            threshold: return only labels of at least this score, from 0 to 1: for multi-label heads, say. With a
                threshold and no `top_k`, all such labels.
            views: 3 for crops at the start, the centre and the end of the longer side, whose scores are averaged, as
                in the paper's evaluation (section 4.1); 1 for the centre crop. By default as the processor has it.
            num_clips: temporal clips of a video, whose scores are averaged, too.
            num_frames, frame_sampling, frame_stride: of a clip; by default as the processor has it.
            window: seconds; classify windows of a video that follow one another, which gives a timeline.
            stride: seconds from the start of one window to that of the next, by default `window`.
            fps: frames a second of videos that are arrays, which do not tell it; with `window` only.
            return_embedding: also return the features that the heads classify.
            batch_size: videos that go through the model at once, or windows; 1 by default. The views of one video stay
                together.
            num_workers: processes that decode the items of a list, 0 by default.

        Returns:
            For each video `[{"label": ..., "score": ...}, ...]`, scores descending: probabilities over the labels of a
            head, or of each label of a multi-label head. For a list of heads or "all", `{head: [...]}`. With `window`
            each entry also has `"start"` and `"end"`, in seconds, and entries are in order of time. With
            `return_embedding`, `{"predictions": ..., "embedding": ...}`, a tensor (hidden_size,), the mean over views,
            or (windows, hidden_size).

        Raises:
            VideoDecodingError: a file cannot be read.
            ValueError: a head is unknown, an option is not what it must be, or what is to be classified could be one
                video or several images.
        """
        if isinstance(inputs, tuple) or _is_array_of_clips(inputs):
            inputs = list(inputs)
        if isinstance(inputs, list) and is_frame_list(inputs):
            raise ValueError(
                "a list of images, or of arrays of 3 axes, may be the frames of one video, or several images: for one "
                "video, pass [frames], or an array of 4 axes such as numpy.stack(frames); for several images, a "
                "generator, (image for image in images)"
            )
        return super().__call__(inputs, **kwargs) if not isinstance(inputs, list) or inputs else []

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown := sorted(set(kwargs) - {*_PREPROCESSING, *_POSTPROCESSING}):
            raise ValueError(f"unknown options {unknown}: expected {', '.join((*_PREPROCESSING, *_POSTPROCESSING))}")
        if "head" in kwargs:
            head_of_name(self.model.config, kwargs["head"])
        top_k, threshold = kwargs.get("top_k"), kwargs.get("threshold")
        if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise ValueError(f"top_k must be a positive number or None, got {top_k!r}")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be from 0 to 1, got {threshold}")
        preprocessing = {name: kwargs[name] for name in _PREPROCESSING if name in kwargs}
        return preprocessing, {}, {name: kwargs[name] for name in _POSTPROCESSING if name in kwargs}

    # ---- Whole videos ----

    def preprocess(self, video: Any, **options: Any) -> dict[str, torch.Tensor]:
        """The views of one video, (V, T, C, H, W)."""
        _check_is_one(video)
        clips = self.video_processor(video, return_tensors="pt", **_processor_options(options))
        return {"pixel_values": clips["pixel_values"]}

    def _forward(self, model_inputs: list[dict[str, torch.Tensor]]) -> list[dict[str, Any]]:
        """Logits and features of each of some videos. Clips of one shape go through the encoder together."""
        shapes = {}
        for index, inputs in enumerate(model_inputs):
            shapes.setdefault(inputs["pixel_values"].shape[1:], []).append(index)
        outputs = [None] * len(model_inputs)
        for indices in shapes.values():
            views = [len(model_inputs[index]["pixel_values"]) for index in indices]
            clips = torch.cat([model_inputs[index]["pixel_values"] for index in indices])
            output = self.model(clips)
            features = output.pooler_output.split(views)
            logits = {name: of_head.split(views) for name, of_head in output.head_logits.items()}
            for number, index in enumerate(indices):
                of_video = {name: of_head[number] for name, of_head in logits.items()}
                outputs[index] = {"logits": of_video, "features": features[number]}
        return outputs

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        head: str | Sequence[str] | None = None,
        top_k: int | None = 5,
        threshold: float | None = None,
        return_embedding: bool = False,
    ) -> Any:
        config = self.model.config
        names = head_of_name(config, head)
        scores = {name: head_scores(config.heads[name], model_outputs["logits"][name]) for name in names}
        predictions = {
            name: _best(of_head, config.heads[name]["labels"], top_k, threshold) for name, of_head in scores.items()
        }
        return _answer(predictions, head, model_outputs["features"].mean(dim=-2) if return_embedding else None)

    def run_single(self, inputs: Any, preprocess_params: dict, forward_params: dict, postprocess_params: dict) -> Any:
        of_one = self.get_iterator([inputs], 0, 1, preprocess_params, forward_params, postprocess_params)
        return next(of_one)

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[Any]:
        if "threshold" in postprocess_params and postprocess_params["threshold"] is not None:
            postprocess_params = {"top_k": None, **postprocess_params}
        if preprocess_params.get("window") is not None:
            for video in inputs:
                yield self._timeline(video, batch_size, preprocess_params, **postprocess_params)
            return
        if preprocess_params.get("stride") is not None:
            raise ValueError("stride is from one window to the next: give `window`, too")
        if preprocess_params.get("fps") is not None:
            raise ValueError("fps is of arrays that are classified in windows: give `window`, too")
        kind = PipelineDataset if hasattr(inputs, "__len__") else PipelineIterator
        videos = kind(inputs, self.preprocess, preprocess_params)
        # Videos of different shapes do not make one tensor, and those of one shape `_forward` puts together.
        # Its own generator, of which no seed of a training run is drawn.
        generator = torch.Generator()
        for batch in DataLoader(videos, batch_size, num_workers=num_workers, collate_fn=list, generator=generator):
            for output in self.forward(batch, **forward_params):
                yield self.postprocess(output, **postprocess_params)

    # ---- Windows of a long video ----

    def _timeline(
        self,
        video: Any,
        batch_size: int,
        options: dict[str, Any],
        head: str | Sequence[str] | None = None,
        top_k: int | None = 1,
        threshold: float | None = None,
        return_embedding: bool = False,
    ) -> Any:
        config, views = self.model.config, options.get("views") or self.video_processor.num_spatial_crops
        names = head_of_name(config, head)
        _check_is_one(video)
        timeline, embeddings = {name: [] for name in names}, []
        for part in _with_progress(self.video_processor.windows(video, **_processor_options(options))):
            clips = [{"pixel_values": clip} for clip in part["pixel_values"].split(batch_size * views)]
            outputs = [output for clip in clips for output in self.forward([clip])]
            features = torch.cat([output["features"] for output in outputs]).unflatten(0, (-1, views)).mean(dim=1)
            embeddings.append(features)
            for name in names:
                logits = torch.cat([output["logits"][name] for output in outputs]).unflatten(0, (-1, views))
                for window, scores in zip(part["windows"], head_scores(config.heads[name], logits), strict=True):
                    best = _best(scores, config.heads[name]["labels"], top_k, threshold)
                    timeline[name] += [{"start": window.start, "end": window.end, **entry} for entry in best]
        return _answer(timeline, head, torch.cat(embeddings) if return_embedding else None)


def _is_array_of_clips(inputs: Any) -> bool:
    return isinstance(inputs, np.ndarray | torch.Tensor) and inputs.ndim == 5


def _check_is_one(video: Any) -> None:
    """Raise a `ValueError` for what the processor takes for several videos: their scores would become one mean."""
    is_list = isinstance(video, list | tuple)
    if _is_array_of_clips(video) or (is_list and not is_frame_list(video)):
        found = f"a {type(video).__name__} of {len(video)}" if is_list else f"an array of shape {tuple(video.shape)}"
        raise ValueError(f"expected one video or image for each item of the list, got {found}: do not nest them")


def _processor_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a call under the processor's names for them; those that are None are the processor's own."""
    names = {"views": "num_spatial_crops"}
    return {names.get(name, name): value for name, value in options.items() if value is not None}


def _best(scores: torch.Tensor, labels: Sequence[str], top_k: int | None, threshold: float | None) -> Scores:
    """The labels of highest score (labels,), descending."""
    values, indices = scores.topk(len(labels) if top_k is None else min(top_k, len(labels)))
    entries = zip(values.tolist(), indices.tolist(), strict=True)
    return [
        {"label": labels[index], "score": score} for score, index in entries if threshold is None or score >= threshold
    ]


def _answer(predictions: dict[str, Scores], head: str | Sequence[str] | None, embedding: torch.Tensor | None) -> Any:
    """The predictions by head if several heads were asked for, even if one is there; else those of the one."""
    several = not isinstance(head, str | None) or (head == ALL_HEADS and ALL_HEADS not in predictions)
    answer = predictions if several else next(iter(predictions.values()))
    return answer if embedding is None else {"predictions": answer, "embedding": embedding}


def _with_progress(parts: Iterator[Any]) -> Iterator[Any]:
    """A bar of windows done, where they are many."""
    with ExitStack() as stack:
        bar = None
        for part in parts:
            if bar is None and part["num_windows"] > len(part["windows"]):
                bar = stack.enter_context(logging.tqdm(total=part["num_windows"], unit="window", leave=False))
            yield part
            if bar is not None:
                bar.update(len(part["windows"]))


__all__ = ["CoverVideoClassificationPipeline"]
