"""Grids of images in figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def tiled(images: np.ndarray) -> np.ndarray:
    """Returns one image of images `(rows, columns, height, width)`, with a line of 0 around each."""
    framed = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows, columns, height, width = framed.shape
    return framed.transpose(0, 2, 1, 3).reshape(rows * height, columns * width)


def show_images(axes: Axes, images: np.ndarray, title: str) -> None:
    """Draws images `(rows, columns, height, width)` with values in [0, 1], light on dark."""
    axes.imshow(tiled(np.clip(images, 0, 1)), cmap="gray", vmin=0, vmax=1)
    axes.set_title(title)
    axes.set_axis_off()


def show_rows(axes: Axes, rows: Mapping[str, np.ndarray], title: str) -> None:
    """Draws a row of images `(columns, height, width)` for each name, which stands beside it."""
    images = np.array(list(rows.values()))
    show_images(axes, images, title)
    axes.set_axis_on()
    height = images.shape[2] + 2
    axes.set_yticks([height * (row + 0.5) for row in range(len(rows))], list(rows))
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
