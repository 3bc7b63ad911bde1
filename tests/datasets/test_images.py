import dataclasses
import gzip
import hashlib
import io
import struct
import tarfile

import numpy as np
import pytest

from zoo.datasets import (
    cifar10,
    digits,
    fashion_mnist,
    fashion_mnist_sample,
    idx,
    load_arrays,
    mnist,
    mnist_sample,
    source,
    specs,
)

SPLITS = ("train", "validation", "test")
DIGITS_TRAIN_SHA256 = "d00d018da07d4dd4daedebdb78b6365dbda1c8fd1acf5403351164c29fea8300"


def make_idx(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def needs_cached(module):
    """Skips a check of the full data unless the cache holds it: tests never download."""
    folder = source.cache_dir() / module.INFO.name
    missing = [file for file in module.SOURCES if not (folder / file).is_file()]
    return pytest.mark.skipif(bool(missing), reason=f"the cache lacks {', '.join(missing)} of {module.INFO.name}")


# === The IDX format ===


@pytest.mark.parametrize("shape", [(7,), (3, 28, 28), (0,), (0, 4, 4)])
def test_idx_gives_its_array(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    read = idx.read_idx(make_idx(array), len(shape))

    np.testing.assert_array_equal(read, array)
    assert read.dtype == np.uint8
    assert read.flags.writeable


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "3 dimensions"),
        (make_idx(np.zeros((2, 4, 4), np.uint8))[:10], "3 dimensions"),
        (make_idx(np.zeros(5, np.uint8)), "3 dimensions"),
        (b"\x00\x00\x0d\x03" + make_idx(np.zeros((2, 4, 4), np.uint8))[4:], "3 dimensions of uint8"),
        (make_idx(np.zeros((2, 4, 4), np.uint8))[:-1], r"Expected 32 values.*Received: 31"),
        (make_idx(np.zeros((2, 4, 4), np.uint8)) + b"x", r"Expected 32 values.*Received: 33"),
        (b"\x00\x00\x08\x03" + b"\xff" * 12, "Expected .* values"),
    ],
)
def test_malformed_idx_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        idx.read_idx(data, 3)


# === mnist and fashion_mnist ===


@pytest.fixture(params=[mnist, fashion_mnist], ids=lambda module: module.INFO.name)
def small_idx(request, cache, no_sockets, monkeypatch):
    """A loader of IDX files, with small files in the cache as if they had been downloaded, and their arrays."""
    module = request.param
    folder = cache / module.INFO.name
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays, sources = {}, {}
    for name, real in module.SOURCES.items():
        count = 30 if name.startswith("train") else 10
        high, shape = (256, (count, 28, 28)) if "images" in name else (10, (count,))
        arrays[name] = rng.integers(0, high, shape, dtype=np.uint8)
        data = make_idx(arrays[name])
        packed = gzip.compress(data)
        (folder / f"{name}.gz").write_bytes(packed)
        hashes = {"sha256": source.sha256(data), "archive_sha256": source.sha256(packed)}
        sources[name] = dataclasses.replace(real, size=len(data), **hashes)
    monkeypatch.setattr(module, "SOURCES", sources)
    splits = {"train": 20, "validation": 10, "test": 10}
    monkeypatch.setattr(module, "INFO", dataclasses.replace(module.INFO, splits=splits))
    return module, folder, arrays


def test_idx_splits_are_the_files(small_idx):
    module, _, arrays = small_idx
    train, validation, test = (load_arrays(module.INFO.name, split) for split in SPLITS)

    assert [len(part["label"]) for part in (train, validation, test)] == [20, 10, 10]
    joined = np.concatenate([train["image"], validation["image"]])
    np.testing.assert_array_equal(joined, arrays["train-images-idx3-ubyte"])
    labels = np.concatenate([train["label"], validation["label"]])
    np.testing.assert_array_equal(labels, arrays["train-labels-idx1-ubyte"])
    np.testing.assert_array_equal(test["image"], arrays["t10k-images-idx3-ubyte"])
    assert test["label"].dtype == np.int32


def test_a_truncated_idx_file_is_refused(small_idx):
    module, folder, _ = small_idx
    load_arrays(module.INFO.name, "test")
    path = folder / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte is truncated or corrupt"):
        load_arrays(module.INFO.name, "test")


def test_images_without_labels_are_refused(small_idx, monkeypatch):
    module, folder, _ = small_idx
    data = make_idx(np.zeros(9, np.uint8))
    name = "t10k-labels-idx1-ubyte"
    (folder / name).write_bytes(data)
    changed = dataclasses.replace(module.SOURCES[name], sha256=source.sha256(data))
    monkeypatch.setitem(module.SOURCES, name, changed)

    with pytest.raises(ValueError, match="10 images, 9 labels"):
        load_arrays(module.INFO.name, "test")


def test_fashion_mnist_has_the_files_of_mnist():
    assert list(fashion_mnist.SOURCES) == list(mnist.SOURCES)
    for name, each in fashion_mnist.SOURCES.items():
        other = mnist.SOURCES[name]
        assert each.size == other.size and each.url != other.url
        assert each.sha256 != other.sha256 and each.archive_sha256 != other.archive_sha256


# First labels and counts of the classes in the test set, as published with the data.
@pytest.mark.parametrize(
    ("name", "first", "counts"),
    [
        pytest.param(
            "mnist",
            {"train": [5, 0, 4, 1, 9, 2], "test": [7, 2, 1, 0, 4, 1]},
            [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
            marks=needs_cached(mnist),
        ),
        pytest.param(
            "fashion_mnist",
            {"train": [9, 0, 0, 3, 0, 2], "test": [9, 2, 1, 1, 6, 1]},
            [1000] * 10,
            marks=needs_cached(fashion_mnist),
        ),
    ],
)
def test_full_idx_data_is_the_original(name, first, counts, no_sockets):
    for split, labels in first.items():
        arrays = load_arrays(name, split)
        assert arrays["image"].shape == ({"train": 50000, "test": 10000}[split], 28, 28)
        assert arrays["label"][:6].tolist() == labels
    assert np.bincount(arrays["label"]).tolist() == counts


def test_combined_hash_is_that_of_a_checksum_list():
    listing = b"1" * 64 + b"  a\n" + b"2" * 64 + b"  b\n"

    assert specs.combined_sha256({"b": "2" * 64, "a": "1" * 64}) == hashlib.sha256(listing).hexdigest()


# === mnist_sample and fashion_mnist_sample ===

SAMPLES = {
    "mnist_sample": {"train": 500, "validation": 100, "test": 200},
    "fashion_mnist_sample": {"train": 400, "validation": 50, "test": 100},
}


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_is_balanced(name):
    for split, count in SAMPLES[name].items():
        arrays = load_arrays(name, split)
        assert arrays["image"].shape == (10 * count, 28, 28)
        assert (arrays["image"].dtype, arrays["label"].dtype) == (np.uint8, np.int32)
        assert np.bincount(arrays["label"]).tolist() == [count] * 10


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_shares_no_image_between_splits(name):
    images = [{image.tobytes() for image in load_arrays(name, split)["image"]} for split in SPLITS]

    assert [len(part) for part in images] == [10 * count for count in SAMPLES[name].values()]
    assert len(set.union(*images)) == sum(len(part) for part in images)


@pytest.mark.parametrize(
    ("module", "limit", "licence"),
    [(mnist_sample, 1_500_000, "ShareAlike 3.0"), (fashion_mnist_sample, 2_500_000, "Zalando SE")],
    ids=SAMPLES,
)
def test_sample_file_is_small_checked_and_licensed(module, limit, licence):
    path = source.EMBEDDED / module.INFO.name / module.FILE
    assert hashlib.sha256(path.read_bytes()).hexdigest() == module.INFO.sha256
    assert path.stat().st_size < limit
    assert licence in (path.parent / "LICENSE.md").read_text()


@pytest.mark.parametrize(
    ("full", "sample"),
    [
        pytest.param("mnist", "mnist_sample", marks=needs_cached(mnist)),
        pytest.param("fashion_mnist", "fashion_mnist_sample", marks=needs_cached(fashion_mnist)),
    ],
)
def test_sample_is_the_first_of_each_class(full, sample, no_sockets):
    for split, count in SAMPLES[sample].items():
        original, arrays = load_arrays(full, split), load_arrays(sample, split)
        for label in range(10):
            expected = original["image"][original["label"] == label][:count]
            np.testing.assert_array_equal(arrays["image"][arrays["label"] == label], expected)


def test_pickled_arrays_are_refused(tmp_path, monkeypatch):
    stream = io.BytesIO()
    np.savez(stream, test_image=np.array([{}], dtype=object), test_label=np.zeros(1))
    (tmp_path / "mnist_sample").mkdir()
    (tmp_path / "mnist_sample" / mnist_sample.FILE).write_bytes(stream.getvalue())
    monkeypatch.setattr(source, "EMBEDDED", tmp_path)
    changed = dataclasses.replace(mnist_sample.INFO, sha256=source.sha256(stream.getvalue()))
    monkeypatch.setattr(mnist_sample, "INFO", changed)

    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_arrays("mnist_sample", "test")


# === digits ===


def test_digits_splits_cover_all_examples_once_and_are_stratified():
    from sklearn.datasets import load_digits

    labels = load_digits().target
    positions = digits.split_positions(labels)

    assert {name: len(part) for name, part in positions.items()} == digits.INFO.splits
    assert sorted(np.concatenate(list(positions.values()))) == list(range(1797))
    for name, part in positions.items():
        expected = np.bincount(labels) * digits.INFO.splits[name] / 1797
        assert np.abs(np.bincount(labels[part]) - expected).max() <= 1.5


def test_digits_are_scikit_learns():
    arrays = load_arrays("digits", "train")

    assert arrays["image"].shape == (1257, 8, 8)
    assert (arrays["image"].dtype, arrays["label"].dtype) == (np.uint8, np.int32)
    assert (arrays["image"].min(), arrays["image"].max()) == (0, 16)
    assert hashlib.sha256(arrays["image"].tobytes()).hexdigest() == DIGITS_TRAIN_SHA256


def test_other_digits_are_refused(monkeypatch):
    monkeypatch.setattr(digits, "INFO", dataclasses.replace(digits.INFO, sha256="0" * 64))

    with pytest.raises(ValueError, match="installed scikit-learn must hold digits"):
        load_arrays("digits", "train")


# === cifar10 ===


def records(labels, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    return np.concatenate([np.asarray(labels, np.uint8)[:, None], pixels], 1)


def test_records_are_planes_of_colour():
    data = records([3, 9])
    images, labels = cifar10.read_records(data.tobytes())
    assert images.shape == (2, 32, 32, 3) and labels.tolist() == [3, 9] and labels.dtype == np.int32
    row, column = 5, 7
    for colour in range(3):
        assert images[1, row, column, colour] == data[1, 1 + colour * 1024 + row * 32 + column]


@pytest.mark.parametrize(
    ("data", "message"),
    [(records([1])[:, :-1].tobytes(), "3,073 bytes. Received: 3,072"), (records([10]).tobytes(), "from 0 to 9")],
)
def test_malformed_records_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        cifar10.read_records(data)


@pytest.fixture
def small_cifar(cache, no_sockets, monkeypatch):
    """The archive with six files of ten records each, in the cache as if it had been downloaded."""
    folder = cache / "cifar10"
    folder.mkdir(parents=True)
    files = {name: records(np.arange(10), seed) for seed, name in enumerate(cifar10.SOURCES)}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = data.nbytes
            archive.addfile(entry, io.BytesIO(data.tobytes()))
    (folder / "cifar-10-binary.tar.gz").write_bytes(stream.getvalue())
    sources = {
        name: dataclasses.replace(
            real,
            size=files[name].nbytes,
            sha256=source.sha256(files[name].tobytes()),
            archive_sha256=source.sha256(stream.getvalue()),
        )
        for name, real in cifar10.SOURCES.items()
    }
    monkeypatch.setattr(cifar10, "SOURCES", sources)
    splits = {"train": 45, "validation": 5, "test": 10}
    monkeypatch.setattr(cifar10, "INFO", dataclasses.replace(cifar10.INFO, splits=splits))
    return folder, files


def test_cifar10_splits_are_the_files_in_order(small_cifar):
    _, files = small_cifar
    parts = [load_arrays("cifar10", split) for split in SPLITS]
    assert [len(part["label"]) for part in parts] == [45, 5, 10]
    joined = np.concatenate([part["image"] for part in parts])
    expected = np.concatenate([cifar10.read_records(data.tobytes())[0] for data in files.values()])
    np.testing.assert_array_equal(joined, expected)


def test_a_truncated_archive_is_refused(small_cifar):
    folder, _ = small_cifar
    archive = folder / "cifar-10-binary.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated or corrupt"):
        load_arrays("cifar10", "test")
    assert [path.name for path in folder.iterdir()] == [archive.name]


def test_an_archive_with_another_file_is_refused(small_cifar, monkeypatch):
    folder, _ = small_cifar
    name = "data_batch_3.bin"
    changed = dataclasses.replace(cifar10.SOURCES[name], sha256="0" * 64)
    monkeypatch.setitem(cifar10.SOURCES, name, changed)
    with pytest.raises(ValueError, match=r"data_batch_3\.bin in .* must have SHA-256 0000"):
        load_arrays("cifar10", "train")
    assert not (folder / name).exists()


def test_a_truncated_file_of_records_is_refused(small_cifar):
    folder, files = small_cifar
    load_arrays("cifar10", "test")
    (folder / "test_batch.bin").write_bytes(files["test_batch.bin"].tobytes()[:-1])
    with pytest.raises(ValueError, match=r"test_batch\.bin is truncated or corrupt"):
        load_arrays("cifar10", "test")


@needs_cached(cifar10)
def test_full_cifar10_is_the_original(no_sockets):
    train, validation, test = (load_arrays("cifar10", split) for split in SPLITS)

    assert [len(part["image"]) for part in (train, validation, test)] == [45000, 5000, 10000]
    assert train["label"][:6].tolist() == [6, 9, 9, 4, 1, 1]
    assert test["label"][:6].tolist() == [3, 8, 8, 0, 6, 6]
    assert np.bincount(np.concatenate([train["label"], validation["label"]])).tolist() == [5000] * 10
    assert np.bincount(test["label"]).tolist() == [1000] * 10
    # The mean red, green and blue that every recipe for CIFAR-10 subtracts.
    sums = sum(part["image"].sum((0, 1, 2), dtype=np.int64) for part in (train, validation))
    np.testing.assert_allclose(sums / (50000 * 32 * 32), [125.307, 122.950, 113.865], atol=5e-4)
