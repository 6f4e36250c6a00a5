"""Pre-training's images per second beside open_clip's training loop: same ViT-S/16, same batch.

    python -m benchmarks.training_rate COHORT --out FOLDER [--precision auto] [--rounds 3]

open_clip needs torchvision at import, which torch's CPU build does not have. So its loop
(`open_clip_train`: both towers under autocast, ClipLoss, AdamW with decay on matrices only, cosine
rate set at every step, logit scale clamped to ln 100) is written here plainly in torch, and so is
its image transform (decode, RandomResizedCrop of 90 to 100 % of the area, bicubic, normalise) in a
DataLoader with worker processes. Its image tower is ours; its other tower is once our record tower,
so that the loops alone are compared, and once its text transformer (12 layers of width 384, 77
tokens), which is what a user of open_clip would train on captions. Ours is `slimp train`:
objective, masks, augmentation and logging as they are. All take turns in one run, each anew in
every round; the first step of each is left out. `data wait` is the share of the time in which the
loop waited.
"""

import argparse
import io
import itertools
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from bundle.images import ImageInput
from cohort.cohort import Cohort
from training.config import BatchSettings, Config, ImageSettings, OptimiserSettings, RecordSettings
from training.data import Rows, fit_schema, load_rows
from training.image_encoder import build_image_encoder
from training.precision import is_bf16
from training.record_encoder import RecordEncoder
from training.trainer import pretrain

BATCH, SIZE_PX, RESIZE_PX = 64, 112, 128
WIDTH, HEADS, BLOCKS = 384, 6, 12
TOKENS, VOCABULARY, JOINT = 77, 49_408, 384
LOGIT_SCALE_MAX = math.log(100)
Batch = tuple[torch.Tensor, ...]
Step = tuple[float, float, float]


def config_of(precision: str, steps: int) -> Config:
    return Config(
        precision=precision,
        log_steps=1,
        image=ImageSettings(size_px=SIZE_PX, resize_px=RESIZE_PX),
        record=RecordSettings(),
        batch=BatchSettings(patients=BATCH, lesions=1),
        optimiser=OptimiserSettings(steps=steps),
    )


def ours(cohort: Cohort, config: Config, out: Path) -> list[Step]:
    """Return each step's seconds, share of waiting and core seconds."""
    steps: list[Step] = []
    mark = time.process_time()

    def report(step: int, total: int, metrics: dict[str, float]) -> None:
        nonlocal mark
        now = time.process_time()
        seconds = BATCH / metrics["images_per_second"]
        steps.append((seconds, metrics["data_wait_share"], now - mark))
        mark = now

    shutil.rmtree(out, ignore_errors=True)
    pretrain(cohort, config, out, report=report)
    return steps


class Pictures(Dataset[Batch]):
    """Images by open_clip's training transform, and the other tower's inputs."""

    def __init__(self, files: list[bytes], other: Batch, spec: ImageInput) -> None:
        self.files, self.other = files, other
        self.mean = torch.tensor(spec.mean).view(3, 1, 1)
        self.std = torch.tensor(spec.std).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Batch:
        image = Image.open(io.BytesIO(self.files[index])).convert("RGB")
        box = self._crop(*image.size)
        resized = image.resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC, box=box)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255
        return ((pixels - self.mean) / self.std, *(part[index] for part in self.other))

    def _crop(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return a box of 90 to 100 % of the area whose sides are as 3:4 to 4:3."""
        draw = torch.rand(4).tolist()
        area = width * height * (0.9 + 0.1 * draw[0])
        ratio = math.exp((2 * draw[1] - 1) * math.log(4 / 3))
        w, h = min(width, math.sqrt(area * ratio)), min(height, math.sqrt(area / ratio))
        left, top = draw[2] * (width - w), draw[3] * (height - h)
        return left, top, left + w, top + h


class TextTower(nn.Module):
    """open_clip's text transformer at ViT-S-16's size; the last token is the feature."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.place = nn.Parameter(torch.randn(TOKENS, WIDTH) * 0.01)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True,
            norm_first=True,
        )  # fmt: skip
        self.blocks = nn.TransformerEncoder(layer, BLOCKS, nn.LayerNorm(WIDTH), False)
        mask = nn.Transformer.generate_square_subsequent_mask(TOKENS)
        self.register_buffer("mask", mask)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.blocks(self.embed(tokens) + self.place, self.mask, is_causal=True)
        return out[:, -1]


class Clip(nn.Module):
    """Two towers, a projection each, and the learned scale."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.image = build_image_encoder(config_of("fp32", 1).image)
        self.other = other
        self.image_projection = nn.Linear(WIDTH, JOINT, bias=False)
        self.other_projection = nn.Linear(WIDTH, JOINT, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, pixels: torch.Tensor, *other: torch.Tensor) -> torch.Tensor:
        """Return ClipLoss."""
        images = functional.normalize(self.image_projection(self.image(pixels)), dim=-1)
        others = functional.normalize(self.other_projection(self.other(*other)), dim=-1)
        logits = self.logit_scale.exp() * images @ others.T
        target = torch.arange(len(logits))
        both = functional.cross_entropy(logits, target), functional.cross_entropy(logits.T, target)
        return (both[0] + both[1]) / 2


def their_loop(model: Clip, pictures: Pictures, bf16: bool, steps: int, workers: int) -> list[Step]:
    """Return each step's seconds, share of waiting and core seconds of this process."""
    decays = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.0}, {"params": decays, "weight_decay": 0.2}],
        lr=5e-4,
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    loader = DataLoader(
        pictures, BATCH, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True
    )
    taken: list[Step] = []
    mark, core = time.perf_counter(), time.process_time()
    for number, batch in enumerate(itertools.islice(_endless(loader), steps)):
        waited = time.perf_counter() - mark
        for group in optimiser.param_groups:
            group["lr"] = 5e-4 * 0.5 * (1 + math.cos(math.pi * number / steps))
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            loss = model(*batch)
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, LOGIT_SCALE_MAX)
        loss.item()
        now, core_now = time.perf_counter(), time.process_time()
        taken.append((now - mark, waited / (now - mark), core_now - core))
        mark, core = now, core_now
    return taken


def _endless(loader: DataLoader[Batch]) -> Iterator[Any]:
    while True:
        yield from loader


def contenders(cohort: Cohort, options: argparse.Namespace) -> dict[str, Callable[[], list[Step]]]:
    rows = load_rows(cohort, ["train"], cohort.info.labels)
    config = config_of(options.precision, options.steps)
    schema = fit_schema(cohort.schema, rows)
    bf16 = is_bf16(options.precision, torch.device("cpu"))
    files = cohort.images([int(p) for p in rows.position])

    def theirs(other: nn.Module, inputs: Batch) -> list[Step]:
        pictures = Pictures(files, inputs, config.image.input)
        return their_loop(Clip(other), pictures, bf16, options.steps, options.workers)

    def record_tower() -> list[Step]:
        encoded = rows.encode(schema, "lesion")
        tower = RecordEncoder(schema.at("lesion"), config.record, WIDTH)
        inputs = torch.from_numpy(encoded.values), torch.from_numpy(encoded.present)
        return theirs(tower, inputs)

    return {
        "slimp train": lambda: ours(cohort, config, options.out / "run"),
        "open_clip's loop, our record tower": record_tower,
        "open_clip's loop, its text tower": lambda: theirs(TextTower(), (_captions(rows),)),
    }


def _captions(rows: Rows) -> torch.Tensor:
    """Return (N, 77) int64 tokens; which they are makes no difference to the time."""
    return torch.randint(VOCABULARY, (len(rows), TOKENS))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--precision", choices=["fp32", "bf16", "auto"], default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="of open_clip's loader; its own: 4")
    options = parser.parse_args()
    runs = contenders(Cohort.open(options.cohort), options)
    found: dict[str, list[Step]] = defaultdict(list)
    for _ in range(options.rounds):
        for name, run in runs.items():
            found[name] += run()[1:]
    bf16 = is_bf16(options.precision, torch.device("cpu"))
    threads = torch.get_num_threads()
    print(f"ViT-S/16, {SIZE_PX} px, batch {BATCH}, {'bf16' if bf16 else 'fp32'}, {threads} threads")
    print("\n| | images per second | data wait | core ms an image |\n| --- | --- | --- | --- |")
    for name, steps in found.items():
        seconds, waited, core = (np.array(column) for column in zip(*steps, strict=True))
        low, middle, high = BATCH / np.quantile(seconds, [0.9, 0.5, 0.1])
        rate = f"{middle:.1f} ({low:.1f} to {high:.1f})"
        shown = f"{np.median(waited):.1%} | {np.median(core) / BATCH * 1000:.0f}"
        print(f"| {name} | {rate} | {shown} |")


if __name__ == "__main__":
    main()
