"""Every setting of an experiment, declared once: default, bounds, meaning.

A TOML file names what differs from the defaults; unknown keys are errors. The resolved
configuration is saved in the run and its hash in the bundle's manifest.
"""

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bundle.errors import InvalidSettings
from bundle.images import ImageInput

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
ObjectiveName = Literal[
    "nested", "lesion", "patient", "flat", "simclr", "clip", "siglip", "mae", "supervised"
]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageSettings(Section):
    """The image tower."""

    source: str = Field("scratch", description="'scratch', a Hugging Face folder, or a hub id")
    size_px: Count = Field(224, description="input side")
    resize_px: Count = Field(224, description="shorter side before the centre crop")
    readout_block: Count | None = Field(None, description="blocks kept; none keeps all")
    readout: Literal["class", "mean"] = Field(
        "class",
        description="class token, or mean of the patch tokens, which learns sooner from scratch",
    )
    stem: Literal["linear", "convolutional"] = Field(
        "linear",
        description="how patches become tokens, from scratch only; convolutions learn sooner",
    )
    patch_px: Count = Field(16, description="patch side, from scratch only")
    width: Count = Field(384, description="embedding width D, from scratch only")
    blocks: Count = Field(12, description="transformer blocks, from scratch only")
    heads: Count = Field(6, description="attention heads, from scratch only")
    drop_path: Share = Field(0.0, description="stochastic depth rate, of DINOv2 only")
    views: Literal[1, 2, 4] = Field(
        1,
        description="features are the mean over a picture (1), its mirror image (2), and both of "
        "them upside down (4), at so many times the cost; while the tower trains, over one",
    )
    checkpoint_gradients: bool = Field(
        False,
        description="compute a block's activations again in the backward pass: less memory, more "
        "time, the same gradient",
    )
    frozen_blocks: int = Field(
        0,
        ge=0,
        description="first blocks (and patch embedding) that keep their weights",
    )

    @model_validator(mode="after")
    def _check_stem(self) -> Self:
        halves = self.patch_px > 1 and self.patch_px.bit_count() == 1
        if self.stem == "convolutional" and not halves:
            raise ValueError("image.patch_px must be a power of two under a convolutional stem")
        return self

    @property
    def input(self) -> ImageInput:
        return ImageInput(size_px=self.size_px, resize_px=self.resize_px)


class RecordSettings(Section):
    """The lesion-metadata tower and the patient tower."""

    width: Count = Field(192, description="token width")
    layers: Count = Field(3, description="pre-norm transformer layers")
    heads: Count = Field(6, description="attention heads")
    dropout: Share = Field(0.0, description="dropout inside the layers")


class ObjectiveSettings(Section):
    """What pre-training minimises: the nested loss (arXiv 2505.23709); values are our choice."""

    name: ObjectiveName = Field(
        "nested",
        description="nested, or a part of it alone: lesion (lambda 1), patient (lambda 0); or a "
        "baseline: flat (an image with its whole record), simclr, clip, siglip, mae, supervised",
    )
    lesion_weight: Share = Field(
        0.5, description="lambda: L = lambda L_lesions + (1 - lambda) L_patient"
    )
    temperature: float = Field(0.07, gt=0, description="initial temperature, learned")
    projection_dim: Count = Field(256, description="width of the contrastive projections")
    pooling: Literal["mean", "max", "attention"] = Field(
        "mean", description="how a patient's lesions are aggregated"
    )
    column_dropout: Share = Field(0.3, description="chance that a column is hidden in training")
    column_corruption: Share = Field(
        0.0, description="chance that a column shows another row's value in training"
    )
    soft_width: float = Field(
        0.0,
        ge=0,
        description="records that agree in every category and nearly in every number share an "
        "anchor's target, by a Gaussian of so many standard deviations; 0: its own record alone. "
        "Of nested, lesion and patient",
    )
    image_weight: float = Field(
        0.0,
        ge=0,
        description="weight of image self-supervision (two augmented views) beside the objective",
    )
    view_temperature: float = Field(
        0.1, gt=0, description="temperature between views, fixed; simclr and image_weight"
    )
    masked_share: float = Field(0.75, gt=0, lt=1, description="share of the patches that mae hides")

    @property
    def compares_views(self) -> bool:
        return self.name == "simclr" or self.image_weight > 0


class BatchSettings(Section):
    """A batch is `patients` x at most `lesions` images of one patient each, over all processes."""

    patients: Count = Field(64, description="patients (lesions where there are no patient ids)")
    lesions: Count = Field(8, description="images of one patient in a batch, at most")
    chunk: Count | None = Field(
        None,
        description="rows that a tower encodes at a time: a batch of any size fits the memory of "
        "one chunk, for one more forward pass; none encodes the batch at once",
    )
    malignant_patients: Share | None = Field(
        None,
        description="share of a batch's patients that have a malignant lesion; none draws all "
        "patients alike. It reads labels: what is trained with it is not label-free",
    )
    workers: int = Field(0, ge=0, le=64, description="processes that decode images")
    keep_mib: int = Field(
        2048,
        ge=0,
        description="memory for decoded images, so that later passes need no decoding; "
        "workers keep none",
    )

    @property
    def kept_mib(self) -> int:
        """Memory for decoded images in the training process; workers would each take as much."""
        return 0 if self.workers else self.keep_mib


class OptimiserSettings(Section):
    """AdamW with linear warm-up and cosine decay to zero."""

    epochs: Count = 10
    steps: Count | None = Field(
        None,
        description="steps after which a run ends, if its epochs have not before; the learning "
        "rate decays over them",
    )
    patience: Count | None = Field(
        None,
        description="epochs without a lower loss on the val split after which a run ends; none "
        "trains to the end",
    )
    keep_best: bool = Field(
        False, description="keep the weights of the epoch with the lowest loss on the val split"
    )
    adapt_attention: bool = Field(
        False, description="continual pre-training trains the attention layers too"
    )
    learning_rate: float = Field(3e-4, gt=0, description="peak, for new layers")
    image_rate_scale: float = Field(
        1.0,
        ge=0,
        description="image tower's rate relative to the peak",
    )
    weight_decay: float = Field(0.05, ge=0)
    warmup: Share = Field(0.1, description="share of the steps")
    clip_norm: float = Field(1.0, gt=0, description="gradient norm limit")


class AugmentSettings(Section):
    """Label-free image augmentation; colour is a sign of disease, so it moves little."""

    min_crop: float = Field(0.7, gt=0, le=1, description="smallest area share of a random crop")
    flip: bool = Field(True, description="mirror, left to right and top to bottom")
    quarter_turns: bool = Field(False, description="turn by 90, 180 or 270 degrees, or not at all")
    rotate_degrees: float = Field(0.0, ge=0, le=180, description="largest free rotation")
    brightness: Share = 0.15
    contrast: Share = 0.15
    saturation: Share = 0.1
    hue: float = Field(0.02, ge=0, le=0.5)


class FitSettings(Section):
    """Heads on the encoders: classifier, calibration, context model."""

    size_px: Count | None = Field(
        None,
        description="input side from here on, resize_px growing with it; none keeps that of "
        "pre-training, which fewer pixels make cheaper",
    )
    tune_image: bool = Field(False, description="fine-tune the image tower with the classifier")
    tune_epochs: Count = Field(4, description="passes over the images while fine-tuning")
    tune_batch: Count = Field(32, description="images in a batch while fine-tuning")
    tune_rate: float = Field(1e-4, gt=0, description="peak rate of the image tower")
    tune_mixup: float = Field(
        0.0,
        ge=0,
        le=10,
        description="Beta parameter by which pictures are mixed in pairs while fine-tuning "
        "(mixup), in half of the batches, drawn at random; 0 mixes none",
    )
    augment: AugmentSettings | None = Field(
        None, description="of pictures while fine-tuning; none takes [augment], pre-training's"
    )
    epochs: Count = Field(30, description="passes over the embeddings for the classifier")
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    batch: Count = Field(256, description="lesion images in a batch of embeddings")
    hidden: Count = Field(256, description="width of the classifier's interaction layer")
    dropout: Share = Field(0.2, description="dropout in the heads")
    folds: int = Field(3, ge=2, le=10, description="cross-fitting folds for the context model")
    context_width: Count = Field(64, description="token width of the context model")
    context_epochs: Count = Field(40, description="passes over the patients")
    balance_missing: bool = Field(
        True, description="draw and weight missing fields so that they go with no label"
    )
    alpha: float = Field(0.1, gt=0, lt=0.5, description="conformal miss rate")
    novel_share: Share = Field(
        0.02,
        description="share of calibration images that are called unlike the training images, by "
        "what the encoder makes of them or by their plain look, and get no answer; a larger one "
        "also turns more pictures of another kind away",
    )
    neighbours: int = Field(
        15, ge=1, le=200, description="nearest lesions that are asked for missing metadata"
    )
    neighbours_weighting: Literal["similarity", "equal"] = Field(
        "similarity", description="whether nearer neighbours weigh more"
    )
    neighbours_support: Count = Field(3, description="neighbours that must have a field")
    neighbours_agreement: Share = Field(
        0.5, description="least weighted share of neighbours that must agree"
    )
    neighbours_too_far: Share = Field(
        0.02, description="share of calibration lesions whose neighbours are called too far"
    )


class Config(Section):
    """One experiment."""

    seed: int = Field(0, ge=0)
    precision: Literal["fp32", "bf16", "auto"] = Field(
        "fp32", description="autocast type; auto takes bf16 where the device computes in it"
    )
    compile: bool = Field(
        False, description="compile the towers with torch.compile (needs a C++ compiler)"
    )
    checkpoint_steps: Count = Field(200, description="steps between checkpoints")
    log_steps: Count = Field(10, description="steps between log lines")
    image: ImageSettings = ImageSettings()
    record: RecordSettings = RecordSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    batch: BatchSettings = BatchSettings()
    optimiser: OptimiserSettings = OptimiserSettings()
    augment: AugmentSettings = AugmentSettings()
    fit: FitSettings = FitSettings()

    @model_validator(mode="after")
    def _check_crop(self) -> Self:
        if self.image.resize_px < self.image.size_px:
            raise ValueError("image.resize_px must be at least image.size_px")
        return self

    @model_validator(mode="after")
    def _check_chunk(self) -> Self:
        if self.batch.chunk is not None and self.image.stem == "convolutional":
            raise ValueError(
                "batch.chunk cannot be used with a convolutional stem, whose batch norm would see "
                "a chunk in the place of the batch: set image.stem to linear"
            )
        return self

    @model_validator(mode="after")
    def _check_positives(self) -> Self:
        share, patients = self.batch.malignant_patients, self.batch.patients
        if share is not None and not 0 < round(share * patients) < patients:
            raise ValueError(
                f"batch.malignant_patients must leave 1 to {patients - 1} of batch.patients "
                f"({patients}) places, got {round(share * patients)}: an epoch shows every other "
                "patient once"
            )
        return self

    @model_validator(mode="after")
    def _check_objective(self) -> Self:
        name, stem = self.objective.name, self.image.stem
        if name == "mae" and (self.batch.chunk is not None or stem == "convolutional"):
            raise ValueError(
                "objective.name mae needs whole patches and has no negatives to gather: leave "
                "batch.chunk out and set image.stem to linear"
            )
        if self.objective.soft_width and name not in ("nested", "lesion", "patient"):
            raise ValueError(f"objective.soft_width is no setting of {name}: set it to 0")
        if self.objective.image_weight and name in ("simclr", "mae"):
            raise ValueError(f"objective.image_weight adds nothing to {name}: set it to 0")
        return self

    def fitted(self) -> Self:
        """Return what holds from fitting on: images at `fit.size_px`, cropped by the same share."""
        if self.fit.size_px is None:
            return self
        size, image = self.fit.size_px, self.image
        sides = {"size_px": size, "resize_px": round(image.resize_px * size / image.size_px)}
        return self.model_copy(update={"image": image.model_copy(update=sides)})

    def sha256(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def read_config(path: Path) -> Config:
    """Return the configuration of a TOML file.

    Its `extends`, if there is one, names a file beside it that says what this one does not.

    Raises:
        InvalidSettings: no such file, not TOML, an unknown key or a value out of bounds.
    """
    try:
        return Config.model_validate(_read_toml(path))
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise InvalidSettings(f"{path}: {'; '.join(lines)}") from None


def _read_toml(path: Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in extending:
        raise InvalidSettings(f"{path}: extends itself")
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidSettings(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{path}: not TOML: {error}") from None
    base = content.pop("extends", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise InvalidSettings(f"{path}: extends: expected a file name, got {base!r}")
    return _merged(_read_toml(path.parent / base, (*extending, path.resolve())), content)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {**base, **over}
    for name in base.keys() & over.keys():
        if isinstance(base[name], dict) and isinstance(over[name], dict):
            both[name] = _merged(base[name], over[name])
    return both
