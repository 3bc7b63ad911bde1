"""Fashion-MNIST: 70,000 photographs of clothes, 28 x 28 pixels, in the form of MNIST."""

from __future__ import annotations

import numpy as np

from zoo.datasets import idx
from zoo.datasets.source import Source
from zoo.datasets.specs import DatasetInfo, combined_sha256

_ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

SOURCES = {
    file: Source(file, f"{_ADDRESS}{file}.gz", sha256, size, archive_sha256)
    for file, size, sha256, archive_sha256 in (
        (
            "train-images-idx3-ubyte",
            47040016,
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        (
            "train-labels-idx1-ubyte",
            60008,
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        (
            "t10k-images-idx3-ubyte",
            7840016,
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        (
            "t10k-labels-idx1-ubyte",
            10008,
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    )
}

INFO = DatasetInfo(
    name="fashion_mnist",
    description=(
        "Photographs of clothes in ten classes, 28 x 28 grey pixels. Validation is the last 10,000 of the original 60,000 "
        "training examples, test is the original test set. A 31 MB download; `fashion_mnist_sample` is the embedded part."
    ),
    licence="MIT (Zalando SE)",
    source="https://github.com/zalandoresearch/fashion-mnist",
    features={"image": "uint8 (28, 28), 0..255", "label": "int32 (), 0..9"},
    splits={"train": 50000, "validation": 10000, "test": 10000},
    unit="examples",
    embedded=False,
    sha256=combined_sha256({each.file: each.sha256 for each in SOURCES.values()}),
)


def load(split: str) -> dict[str, np.ndarray]:
    """Returns the images and labels of a split."""
    return idx.load_split(INFO, SOURCES, split)
