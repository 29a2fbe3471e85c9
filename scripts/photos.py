"""Copy ten images from scikit-image's wheel to a folder: ``photos.py FOLDER``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import skimage

PHOTOS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)
"""File names in alphabetical order; camera and coins are grayscale."""


def copy_photos(target: Path) -> None:
    """Copy the images to `target`, which is created if missing."""
    target.mkdir(parents=True, exist_ok=True)
    for name in PHOTOS:
        shutil.copy(Path(skimage.__file__).parent / "data" / name, target / name)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: photos.py FOLDER")
    copy_photos(Path(sys.argv[1]))
