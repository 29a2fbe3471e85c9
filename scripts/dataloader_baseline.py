"""How fast a DataLoader makes batches of a folder of photographs, with nothing behind it that computes.

    python scripts/dataloader_baseline.py FOLDER [--count N] [--workers N] [--batch 128] [--epochs 3]
                                          [--resize 256] [--crop 224]

torchvision's transforms of a classification model on Pillow images, in worker processes that stay; the batches are
dropped. The first epoch warms up; the best of the others is printed, as JSON. It needs torch and torchvision, and not
trtbatch, so that another Python can run it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms._presets import ImageClassification


class Photographs:
    """The files as samples ``(3, H, W)`` float32, opened as ``torchvision.datasets.folder.pil_loader`` does."""

    def __init__(self, files: Sequence[Path], transforms: Any) -> None:
        self.files = files
        self.transforms = transforms

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        with self.files[index].open("rb") as file:
            return self.transforms(Image.open(file).convert("RGB"))


def epochs(loader: Any, count: int) -> list[float]:
    """Seconds of each."""
    found = []
    for _ in range(count):
        begun = time.perf_counter()
        for _batch in loader:
            pass
        found.append(time.perf_counter() - begun)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--resize", type=int, default=256)
    parser.add_argument("--crop", type=int, default=224)
    given = parser.parse_args()
    if given.epochs < 2:
        parser.error("the first epoch warms up: pass --epochs 2 or more")
    transforms = ImageClassification(crop_size=given.crop, resize_size=given.resize, antialias=True)
    samples = Photographs(sorted(given.folder.glob("*.jpg"))[: given.count], transforms)
    loader = DataLoader(
        samples, batch_size=given.batch, num_workers=given.workers, persistent_workers=given.workers > 0
    )
    _, *seconds = epochs(loader, given.epochs)
    result = {
        "images_per_s": len(samples) / min(seconds),
        "samples": len(samples),
        "epochs_s": seconds,
        "workers": given.workers,
        "batch": given.batch,
        "prefetch_factor": loader.prefetch_factor,
        "libraries": {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "pillow": PIL.__version__,
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
