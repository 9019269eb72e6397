# SPDX-License-Identifier: Apache-2.0
"""What a recipe may say of augmentation (section 4.1 of the paper, and the field's usual)."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

from .checks import (
    check_flag,
    check_known,
    check_new_name,
    check_number,
    check_range,
    check_whole_number,
    checked_keys,
    is_text,
)


MAX_MAGNITUDE = 30  # of RandAugment

# Of `register_transform`, by name.
TRANSFORMS: dict[str, Callable[..., Any]] = {}


def register_transform(name: str, transform: Callable[..., Any]) -> None:
    """Make `transform: name` an augmentation that recipes may name, in this process.

    Args:
        name: letters, digits, "_" and "-"; by it a checkpoint tells of the transform.
        transform: see [`Augmentation`].

    Raises:
        ValueError: if the name is no name, or `transform` cannot be called.
    """
    check_new_name("transform", name)
    if not callable(transform):
        raise ValueError(f"transform '{name}': expected a function of (frames, rng), got {transform!r}")
    TRANSFORMS[name] = transform


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """A crop of a random size and shape, resized to the size that the model takes."""

    scale: tuple[float, float] = (0.08, 1.0)  # range of the crop's area, as a part of the frame's
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # range of the crop's width / height

    def __post_init__(self):
        check_range("scale", self.scale, at_most=1)
        check_range("ratio", self.ratio)


@dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue, changed in random order.

    Attributes:
        brightness, contrast, saturation: x multiplies by a factor between max(0, 1 - x) and 1 + x.
        hue: x turns by up to x of the colour circle either way, at most 0.5. It costs several times the others
            together.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.0

    def __post_init__(self):
        for name in ("brightness", "contrast", "saturation"):
            check_number(name, getattr(self, name))
        check_number("hue", self.hue, at_most=0.5)


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """Operations out of those of torchvision, drawn and done one after the other."""

    num_ops: int = 2
    magnitude: float = 9  # from 0, which changes little, to 30; torchvision's scale. (timm's goes to 10.)
    magnitude_std: float = 0.5  # standard deviation of the strength of a single operation around `magnitude`
    probability: float = 1.0  # of each of the `num_ops` to be done at all

    def __post_init__(self):
        check_whole_number("num_ops", self.num_ops)
        check_number("magnitude", self.magnitude, at_most=MAX_MAGNITUDE)
        check_number("magnitude_std", self.magnitude_std)
        check_number("probability", self.probability, at_most=1)


@dataclass(frozen=True, kw_only=True)
class RandomErasing:
    """A box, the same in all frames, replaced by the mean colour (Zhong et al. 2020)."""

    probability: float = 0.25  # of a box
    scale: tuple[float, float] = (0.02, 0.33)  # range of its area, as a part of the frame's
    ratio: tuple[float, float] = (0.3, 3.3)  # range of its width / height

    def __post_init__(self):
        check_number("probability", self.probability, at_most=1)
        check_range("scale", self.scale, at_most=1)
        check_range("ratio", self.ratio)


def _described(function: Callable) -> str:
    if isinstance(function, partial):  # which is another function for each of its arguments
        given = [*map(repr, function.args), *(f"{name}={value!r}" for name, value in function.keywords.items())]
        return f"{_described(function.func)}({', '.join(given)})"
    described = function if hasattr(function, "__qualname__") else type(function)
    return f"{described.__module__}.{described.__qualname__}"


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The augmentation of a dataset: by default that of the paper, a random crop and a horizontal flip.

    Attributes:
        horizontal_flip: mirror half of the clips; false where left and right are different classes.
        short_side_range: of frames before the random crop, in pixels, drawn uniformly, both ends included; without it,
            the short side of the recipe.
        random_resized_crop: in place of the random crop, out of frames as large as they are.
        color_jitter: change the colours.
        rand_augment: do RandAugment's operations, after the colour jitter.
        transform: the user's own, a function or the name of a registered one, called as `transform(frames, rng)` after
            all of the above: `frames` is a tensor (T, 3, H, W) of uint8, cropped, and so must be what it returns. All
            that it draws must come from `rng`, a `np.random.Generator` that follows from the run's seed and the
            sample's position, or from torch's generator, which does, too, while it runs.
        random_erasing: erase a box.
        mixup_alpha: mix two clips of the dataset, and their labels, in shares out of Beta(alpha, alpha) (Zhang et al.
            2018); 0 for none.
        cutmix_alpha: put a box of one clip into another, of an area out of Beta(alpha, alpha) (Yun et al. 2019); 0 for
            none. With mixup too, each is as likely.
        mix_probability: of mixing at all.
    """

    horizontal_flip: bool = True
    short_side_range: tuple[int, int] | None = None
    random_resized_crop: RandomResizedCrop | None = None
    color_jitter: ColorJitter | None = None
    rand_augment: RandAugment | None = None
    transform: str | Callable[..., Any] | None = None
    random_erasing: RandomErasing | None = None
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    mix_probability: float = 1.0

    def __post_init__(self):
        check_flag("horizontal_flip", self.horizontal_flip)
        for name, kind in _SECTIONS.items():
            if not isinstance(value := getattr(self, name), kind | None):
                raise ValueError(f"{name} must be a {kind.__name__}, got {value!r}")
        if isinstance(self.transform, str):
            check_known("transform", self.transform, TRANSFORMS, "register_transform")
            # The function itself is what goes to workers, also where these are not forked.
            object.__setattr__(self, "transform", TRANSFORMS[self.transform])
        elif self.transform is not None and not callable(self.transform):
            raise ValueError(f"transform must be a function of (frames, rng), got {self.transform!r}")
        if self.short_side_range is not None:
            check_range("short_side_range", self.short_side_range)
            for bound in self.short_side_range:
                check_whole_number("each end of short_side_range", bound)
            if self.random_resized_crop is not None:
                raise ValueError(
                    "short_side_range is of no effect with random_resized_crop, which takes frames as they are"
                )
        check_number("mixup_alpha", self.mixup_alpha)
        check_number("cutmix_alpha", self.cutmix_alpha)
        check_number("mix_probability", self.mix_probability, at_most=1)
        if self.mix_probability != 1 and not self.mixup_alpha and not self.cutmix_alpha:
            raise ValueError("mix_probability is of no effect without mixup_alpha or cutmix_alpha")

    @property
    def mixes(self) -> bool:
        """Whether clips are mixed, so that labels become vectors."""
        return self.mix_probability > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)

    @property
    def transform_name(self) -> str | None:
        """That which the transform is registered under, or its own."""
        registered = [name for name, transform in TRANSFORMS.items() if transform is self.transform]
        if registered or self.transform is None:
            return registered[0] if registered else None
        return _described(self.transform)

    def settings(self) -> dict[str, Any]:
        """JSON-able: the fields, of a transform its name."""
        own = asdict(replace(self, transform=None))
        del own["transform"]  # of which checkpoints that had none say nothing
        return own if self.transform is None else {**own, "transform": self.transform_name}

    @classmethod
    def from_recipe(cls, where: str, content: Any, horizontal_flip: bool = True) -> "Augmentation":
        """The augmentation that a recipe asks for, by fields of this class: those that are classes are mappings in
        turn, or `true` for their defaults, or `false`.

        Raises:
            ValueError: for an unknown key, or a value that is not what the key takes.
        """
        values = {"horizontal_flip": horizontal_flip, **_checked_fields(where, cls, content)}
        if (transform := values.get("transform")) is not None and not is_text(transform):
            raise ValueError(f"{where}: transform must be the name of a registered one, got {transform!r}")
        for name, kind in _SECTIONS.items():
            section = {} if values.get(name) is True else values.get(name)
            if section is None or section is False:
                values[name] = None
            else:
                place = f"{where}: {name}"
                values[name] = _build(place, kind, _checked_fields(place, kind, section))
        return _build(where, cls, values)

    def check(self, image_size: int) -> None:
        """Raise a `ValueError` if a crop of `image_size` x `image_size` pixels may not fit into the frames."""
        if self.short_side_range is not None and self.short_side_range[0] < image_size:
            raise ValueError(f"short_side_range {self.short_side_range} begins below image_size ({image_size})")


_SECTIONS = {
    "random_resized_crop": RandomResizedCrop,
    "color_jitter": ColorJitter,
    "rand_augment": RandAugment,
    "random_erasing": RandomErasing,
}


def _checked_fields(where: str, kind: type, content: Any) -> dict[str, Any]:
    return checked_keys(where, content, {field.name for field in fields(kind)})


def _build(where: str, kind: type, values: Mapping[str, Any]) -> Any:
    tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    try:
        return kind(**tuples)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
