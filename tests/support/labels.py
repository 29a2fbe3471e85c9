"""What the images of the tests are made into, and the names of their classes."""

from __future__ import annotations

from trtbatch.core.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(10, (8, 8))


CLASSES = ["ant", "bee", "cat", "dog", "elk"]
