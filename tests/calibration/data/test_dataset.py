from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from resnet_export.calibration.data import image_sources as sources
from resnet_export.calibration.data.dataset import (
    Dataset,
    DatasetWarning,
    open_dataset,
)
from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.errors import DatasetError
from resnet_export.runtime.preprocess import load

SMALL = Preprocessing(resize=20, crop=16)


def pictures(count: int, height: int = 24, width: int = 28) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), np.uint8)


def save_images(folder: Path, images: Iterable[np.ndarray], prefix: str = "") -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, image in enumerate(images):
        paths.append(folder / f"{prefix}{number:03}.png")
        Image.fromarray(image).save(paths[-1])
    return paths


def everything(dataset: Dataset, batch_size: int = 4) -> tuple[np.ndarray, list[str]]:
    batches = list(dataset.batches(batch_size))
    return np.concatenate([batch.images for batch in batches]), [
        name for batch in batches for name in batch.names
    ]


# Forms


def test_a_flat_folder_a_list_and_an_archive_of_the_same_images_are_the_same_data(tmp_path: Path) -> None:
    images = pictures(7)
    save_images(tmp_path / "photos", images)
    (tmp_path / "photos" / "README.txt").write_text("no image")
    (tmp_path / "photos" / ".hidden.png").write_bytes(b"")
    (tmp_path / "list.txt").write_text("".join(f"photos/{n:03}.png\n" for n in range(7)))
    np.savez_compressed(tmp_path / "images.npz", images=images)
    expected = np.stack([load(image, SMALL) for image in images])
    descriptions = []
    for name in ("photos", "list.txt", "images.npz"):
        dataset = open_dataset(tmp_path / name, preprocessing=SMALL)
        crops, _ = everything(dataset)
        assert np.array_equal(crops, expected), name
        assert dataset.labels is None
        descriptions.append(dataset.describe())
    assert [description.kind for description in descriptions] == ["folder", "list", "npz"]
    assert len({description.sha256 for description in descriptions}) == 1
    assert {
        (description.count, description.skipped, description.labeled) for description in descriptions
    } == {(7, 0, False)}


def test_class_folders_get_the_classes_of_torchvisions_image_folder(
    tmp_path: Path, torchvision: ModuleType
) -> None:
    from torchvision.datasets import ImageFolder

    for name in ("n02", "n01", "n10"):
        save_images(tmp_path / name, pictures(2))
    save_images(tmp_path / "n10" / "deeper", pictures(1))
    reference = ImageFolder(str(tmp_path))
    with pytest.warns(DatasetWarning, match="alphabetical order"):
        dataset = open_dataset(tmp_path, preprocessing=SMALL, num_classes=3)
    assert dataset.labels is not None
    assert dict(zip(dataset.names, dataset.labels.tolist(), strict=True)) == {
        Path(path).relative_to(tmp_path).as_posix(): label for path, label in reference.samples
    }
    assert [batch.labels.tolist() for batch in dataset.batches(3) if batch.labels is not None] == [
        [0, 0, 1],
        [1, 2, 2],
        [2],
    ]


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    save_images(tmp_path / "0", pictures(2))
    save_images(tmp_path / "0", pictures(1), prefix=".")
    save_images(tmp_path / "0" / ".cache", pictures(1))
    save_images(tmp_path / ".trash", pictures(1))
    assert open_dataset(tmp_path, preprocessing=SMALL).names == ("0/000.png", "0/001.png")


@pytest.mark.parametrize(
    ("folders", "labels", "num_classes", "expected"),
    [
        (["dog", "cat"], ["cat", "cow", "dog"], None, {"cat": 0, "dog": 2}),
        (["7", "007x"], ["007x", "7"], None, {"007x": 0, "7": 1}),
        (["10", "9"], [], 11, {"10": 10, "9": 9}),
        (["003", "1"], ["a", "b", "c", "d"], None, {"003": 3, "1": 1}),
        (["1", "2"], ["1", "2", "3"], None, {"1": 0, "2": 1}),
        (["7", "0"], ["1", "2", "3", "4", "5", "6", "7", "8", "9", "0"], None, {"7": 6, "0": 9}),
        (["cat", "1"], ["cat", "dog"], None, {"cat": 0, "1": 1}),
        (["x", "y"], [], None, {"x": 0, "y": 1}),
    ],
)
def test_class_folders_are_named_by_label_then_by_index_then_in_sorted_order(
    folders: list[str], labels: list[str], num_classes: int | None, expected: dict[str, int], tmp_path: Path
) -> None:
    for name in folders:
        save_images(tmp_path / name, pictures(1))
    dataset = open_dataset(tmp_path, preprocessing=SMALL, labels=labels, num_classes=num_classes)
    assert dataset.labels is not None
    found = dict(zip((Path(name).parts[0] for name in dataset.names), dataset.labels.tolist(), strict=True))
    assert found == expected


def test_a_list_takes_labels_as_mlperf_writes_them_and_names_after_a_tab(tmp_path: Path) -> None:
    save_images(tmp_path / "a b", pictures(3))
    (tmp_path / "val_map.txt").write_text(
        "\ufeffa b/000.png 2\n\na b/001.png\tsiamese cat\r\na b/002.png\t0\n", encoding="utf-8"
    )
    dataset = open_dataset(
        tmp_path / "val_map.txt", preprocessing=SMALL, labels=["cow", "siamese cat", "dog"]
    )
    assert dataset.names == ("a b/000.png", "a b/001.png", "a b/002.png")
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [2, 1, 0]
    assert dataset.labels.dtype == np.int64
    assert len(everything(dataset)[0]) == 3


def test_archive_images_of_exactly_the_crop_go_through_unchanged(tmp_path: Path) -> None:
    images = pictures(5, 16, 16)
    np.savez(tmp_path / "crops.npz", images=images, labels=np.array([3, 1, 2, 0, 1], np.uint8))
    dataset = open_dataset(tmp_path / "crops.npz", preprocessing=SMALL, num_classes=4)
    crops, names = everything(dataset, 2)
    assert np.array_equal(crops, images)
    assert names[1] == "images[1]"
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [3, 1, 2, 0, 1]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_is_streamed_and_not_held(compression: int, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (400, 64, 64, 3), np.uint8)
    np.savez(tmp_path / "plain.npz", images=images)
    with (
        zipfile.ZipFile(tmp_path / "plain.npz") as plain,
        zipfile.ZipFile(tmp_path / "images.npz", "w", compression) as archive,
    ):
        archive.writestr("images.npy", plain.read("images.npy"))
    total = images.nbytes
    dataset = open_dataset(
        tmp_path / "images.npz", preprocessing=Preprocessing(resize=64, crop=64), limit=300
    )
    expected = images[[int(name[7:-1]) for name in dataset.names]]
    del images
    tracemalloc.start()
    try:
        seen = 0
        for batch in dataset.batches(8):
            assert np.array_equal(batch.images, expected[seen : seen + 8])
            seen += len(batch.images)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen == 300
    assert peak < total / 2


def test_archives_of_gray_and_rgba_images_are_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, shape in {"flat": (5, 8, 9), "gray": (5, 8, 9, 1), "rgba": (5, 8, 9, 4)}.items():
        images = rng.integers(0, 256, shape, np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images)
        for channels in (1, 3, 4):
            one = (0.5,) * channels
            asked = Preprocessing(resize=20, crop=16, mean=one, std=one)
            crops, _ = everything(open_dataset(tmp_path / f"{name}.npz", preprocessing=asked))
            assert crops.shape == (5, 16, 16, channels)
            assert np.array_equal(crops, [load(image, asked) for image in images])


# Passes


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 23), batch_size=st.integers(1, 25), workers=st.integers(1, 4))
def test_every_pass_gives_the_same_images_whatever_the_batch_size_and_the_workers(
    count: int, batch_size: int, workers: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    images = pictures(count)
    path = tmp_path_factory.mktemp("passes") / "images.npz"
    np.savez(path, images=images)
    dataset = open_dataset(path, preprocessing=SMALL, workers=workers)
    expected = np.stack([load(image, SMALL) for image in images])
    sizes = [len(batch.images) for batch in dataset.batches(batch_size)]
    assert sizes == [min(batch_size, count - start) for start in range(0, count, batch_size)]
    for _ in range(2):
        assert np.array_equal(everything(dataset, batch_size)[0], expected)
    again = open_dataset(path, preprocessing=SMALL)
    assert dataset.describe() == again.describe()


def test_the_hash_is_of_the_crops_that_are_used(tmp_path: Path) -> None:
    images = pictures(6)
    changed = images.copy()
    changed[3, 10, 10, 0] ^= 128
    np.savez(tmp_path / "a.npz", images=images)
    np.savez(tmp_path / "b.npz", images=changed)
    np.savez(tmp_path / "c.npz", images=images[::-1])

    def digest(name: str, preprocessing: Preprocessing = SMALL) -> str:
        return open_dataset(tmp_path / name, preprocessing=preprocessing).describe().sha256

    other = Preprocessing(resize=20, crop=16, interpolation="bicubic")
    assert len({digest("a.npz"), digest("b.npz"), digest("c.npz"), digest("a.npz", other)}) == 4


def test_a_pass_can_be_left_early_and_begun_anew(tmp_path: Path) -> None:
    save_images(tmp_path, pictures(20))
    dataset = open_dataset(tmp_path, preprocessing=SMALL)
    first = next(iter(dataset.batches(2)))
    crops, _ = everything(dataset)
    assert np.array_equal(first.images, crops[:2])
    assert dataset.describe().count == 20


def test_decoding_ahead_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "images.npz", images=pictures(60))
    read = []
    original = sources._read_archive

    def counting(*arguments: Any) -> Any:
        for image in original(*arguments):
            read.append(image)
            yield image

    monkeypatch.setattr(sources, "_read_archive", counting)
    batches = open_dataset(tmp_path / "images.npz", preprocessing=SMALL, workers=3).batches(4)
    next(batches)
    assert len(read) <= 4 + 2 * 3
    assert sum(len(batch.images) for batch in batches) == 56
    assert len(read) == 60


# Sampling


def test_a_sample_is_the_same_for_the_same_seed_and_another_for_another(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=pictures(100, 4, 4))

    def draw(seed: int, limit: int = 10) -> tuple[str, ...]:
        return open_dataset(tmp_path / "images.npz", preprocessing=SMALL, limit=limit, seed=seed).names

    assert draw(0) == draw(0)
    assert len({draw(seed) for seed in range(5)}) == 5
    assert len(set(draw(0))) == 10
    assert set(draw(0)) < set(draw(0, limit=20))
    assert draw(0, limit=1000) == tuple(f"images[{index}]" for index in range(100))
    # Written out, since a table's data hash must mean the same on every machine and with every numpy.
    assert draw(0, limit=3) == ("images[22]", "images[26]", "images[43]")


def test_a_sample_is_uniform_over_the_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=pictures(10, 4, 4))
    drawn: Counter[str] = Counter()
    for seed in range(1000):
        drawn.update(open_dataset(tmp_path / "images.npz", preprocessing=SMALL, limit=3, seed=seed).names)
    assert len(drawn) == 10
    assert all(abs(times - 300) < 5 * np.sqrt(1000 * 0.3 * 0.7) for times in drawn.values())


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    share=st.floats(0.01, 1),
    seed=st.integers(-5, 5),
)
def test_a_stratified_sample_keeps_each_class_within_one_of_its_share(
    sizes: list[int], share: float, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    path = tmp_path_factory.mktemp("strata") / "images.npz"
    np.savez(path, images=np.zeros((len(labels), 2, 2, 3), np.uint8), labels=labels)
    limit = max(1, int(share * len(labels)))
    dataset = open_dataset(path, preprocessing=SMALL, limit=limit, seed=seed)
    assert dataset.labels is not None
    assert len(dataset) == limit
    for label, size in enumerate(sizes):
        assert abs(int((dataset.labels == label).sum()) - limit * size / len(labels)) < 1
    indices = [int(name[7:-1]) for name in dataset.names]
    assert indices == sorted(set(indices))
    assert labels[indices].tolist() == dataset.labels.tolist()


# Unreadable images


def test_an_unreadable_image_is_skipped_and_counted_once(tmp_path: Path) -> None:
    paths = save_images(tmp_path, pictures(40))
    paths[7].write_bytes(b"")
    paths[30].write_bytes(paths[30].read_bytes()[:100])
    dataset = open_dataset(tmp_path, preprocessing=SMALL)
    with pytest.warns(
        DatasetWarning, match="^2 of 40 images of .* skipped; the first: .*007.png' is empty"
    ) as seen:
        crops, names = everything(dataset)
    assert len(seen) == 1
    assert len(crops) == 38
    assert {"007.png", "030.png"}.isdisjoint(names)
    everything(dataset)  # a second warning would be an error here
    description = dataset.describe()
    assert (description.count, description.skipped, description.first_skipped) == (38, 2, "007.png")


def test_more_than_the_stated_share_of_unreadable_images_fails_the_run(tmp_path: Path) -> None:
    paths = save_images(tmp_path, pictures(40))
    for path in paths[10:13]:
        path.write_bytes(b"x")
    dataset = open_dataset(tmp_path, preprocessing=SMALL)
    with pytest.raises(
        DatasetError, match=r"at least 3 of 40 .* limit of 5%; the first: .*010.png"
    ) as caught:
        everything(dataset)
    assert caught.value.__cause__ is not None


def test_one_bad_image_in_a_few_is_forgiven_and_only_bad_ones_are_not(tmp_path: Path) -> None:
    paths = save_images(tmp_path, pictures(3))
    paths[0].unlink()
    paths[0].symlink_to(tmp_path / "nowhere.png")
    with pytest.warns(DatasetWarning, match="1 of 3"):
        assert open_dataset(tmp_path, preprocessing=SMALL).describe().count == 2
    (tmp_path / "list.txt").write_text("missing.png\n")
    with pytest.raises(DatasetError, match=r"no readable image: .*missing\.png' cannot be read"):
        open_dataset(tmp_path / "list.txt", preprocessing=SMALL).describe()


@pytest.mark.skipif(os.name != "posix", reason="needs named pipes")
def test_a_pipe_or_device_among_the_images_is_skipped_and_never_opened(tmp_path: Path) -> None:
    save_images(tmp_path, pictures(20))
    os.mkfifo(tmp_path / "f.jpg")
    with pytest.warns(DatasetWarning, match=r"1 of 21 .* was skipped; .*f\.jpg' is not a regular file"):
        assert open_dataset(tmp_path, preprocessing=SMALL).describe().count == 20
    (tmp_path / "list.txt").write_text("000.png\n001.png\n/dev/zero\n")
    with pytest.warns(DatasetWarning, match="'/dev/zero' is not a regular file"):
        assert open_dataset(tmp_path / "list.txt", preprocessing=SMALL).describe().count == 2
    for name in ("pipe.npz", "pipe.txt"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(DatasetError, match="is not a regular file"):
            open_dataset(tmp_path / name, preprocessing=SMALL)


# What is said of a data set that is used


def test_class_folders_in_alphabetical_order_are_said_to_be(tmp_path: Path) -> None:
    names = ["eight", "five", "four", "nine"]
    for name in names:
        save_images(tmp_path / name, pictures(1))
    with pytest.warns(
        DatasetWarning, match=r"alphabetical.*: 'eight' = 0, 'five' = 1, 'four' = 2, …$"
    ) as seen:
        open_dataset(tmp_path, preprocessing=SMALL, labels=["class 0", "class 1", "class 2", "class 3"])
    assert len(seen) == 1
    # A warning would be an error: here each is called by its label, and there nothing is known of the classes.
    open_dataset(tmp_path, preprocessing=SMALL, labels=sorted(names, reverse=True))
    open_dataset(tmp_path, preprocessing=SMALL)


def test_arrays_that_are_not_read_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=pictures(2), ids=np.arange(2))
    with pytest.warns(DatasetWarning, match="only `images` and `labels` are read, not 'ids'$"):
        assert open_dataset(tmp_path / "a.npz", preprocessing=SMALL).labels is None
    np.savez(tmp_path / "b.npz", images=pictures(2), labels=np.array([1, 0]), label=np.arange(2))
    with pytest.warns(DatasetWarning, match="not 'label'$"):
        dataset = open_dataset(tmp_path / "b.npz", preprocessing=SMALL)
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [1, 0]


# Labels in digits


@pytest.mark.parametrize("separator", ["\t", " "])
def test_a_word_of_digits_means_the_same_in_a_list_and_as_a_folder(separator: str, tmp_path: Path) -> None:
    labels = ["1", "2", "3", "10"]
    for word in ("3", "10", "0"):
        save_images(tmp_path / "photos" / word, pictures(1))
    (tmp_path / "list.txt").write_text(
        "".join(f"photos/{word}/000.png{separator}{word}\n" for word in ("0", "10", "3"))
    )
    for source in ("photos", "list.txt"):
        dataset = open_dataset(tmp_path / source, preprocessing=SMALL, labels=labels)
        assert dataset.labels is not None
        found = {
            Path(name).parts[-2]: label for name, label in zip(dataset.names, dataset.labels, strict=True)
        }
        # 3 is both a label, of class 2, and an index; 0 is an index alone.
        assert found == {"0": 0, "3": 2, "10": 3}


# Forms that people have


DROPPINGS = ["__MACOSX", "@eaDir", "$RECYCLE.BIN", ".ipynb_checkpoints", "lost+found"]


@pytest.mark.parametrize("labels", [[], ["cat", "dog"]])
def test_what_operating_systems_leave_behind_is_neither_class_nor_image(
    labels: list[str], tmp_path: Path
) -> None:
    for name in ("cat", "dog"):
        save_images(tmp_path / name, pictures(2))
        for file in (".DS_Store", "Thumbs.db", "desktop.ini", "._000.png"):
            (tmp_path / name / file).write_bytes(b"x")
            (tmp_path / file).write_bytes(b"x")
        save_images(tmp_path / name / "@eaDir" / "000.png", pictures(1), prefix="SYNOPHOTO_THUMB_")
    for name in DROPPINGS:
        save_images(tmp_path / name, pictures(1))
        (tmp_path / name / "empty").mkdir()
    dataset = open_dataset(tmp_path, preprocessing=SMALL, labels=labels)
    assert dataset.names == ("cat/000.png", "cat/001.png", "dog/000.png", "dog/001.png")
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 0, 1, 1]


def test_folders_called_by_wordnet_ids_are_imagenets_classes(tmp_path: Path) -> None:
    for name in ("n01440764", "n02102040", "n03888257", "n15075141"):
        save_images(tmp_path / name, pictures(1))
    dataset = open_dataset(tmp_path, preprocessing=SMALL, num_classes=1000)
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 217, 701, 999]
    with pytest.warns(
        DatasetWarning, match="alphabetical"
    ):  # another network's folders are classes of their own
        other = open_dataset(tmp_path, preprocessing=SMALL, num_classes=4)
    assert other.labels is not None
    assert other.labels.tolist() == [0, 1, 2, 3]
    save_images(tmp_path / "n99999999", pictures(1))
    with pytest.raises(DatasetError, match="'n99999999', which is none of the network's labels"):
        open_dataset(tmp_path, preprocessing=SMALL, num_classes=1000)


@pytest.mark.parametrize("names", [("train", "val"), ("Train", "Test"), ("training", "validation", "test")])
@pytest.mark.parametrize("labels", [[], ["cat", "dog"], ["a", "b", "c"]])
def test_the_parts_of_a_data_set_are_not_its_classes(
    names: tuple[str, ...], labels: list[str], tmp_path: Path
) -> None:
    for name in names:
        for label in ("cat", "dog"):
            save_images(tmp_path / "data" / name / label, pictures(1))
    for root in (tmp_path / "data", tmp_path):
        with pytest.raises(
            DatasetError, match=r"which are parts of a data set and not classes; give one of them"
        ):
            open_dataset(root, preprocessing=SMALL, labels=labels)
    for name in names:
        open_dataset(tmp_path / "data" / name, preprocessing=SMALL, labels=["cat", "dog"])


def test_parts_that_are_labels_are_classes(tmp_path: Path) -> None:
    for name in ("bus", "train"):
        save_images(tmp_path / name, pictures(1))
    dataset = open_dataset(tmp_path, preprocessing=SMALL, labels=["bus", "train"])
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 1]


def test_a_folder_that_holds_nothing_but_the_data_set_stands_for_it(tmp_path: Path) -> None:
    for label in ("dog", "cat"):
        save_images(tmp_path / "flowers" / "train" / label, pictures(1))
    with pytest.warns(DatasetWarning, match="are those of .*train', the only folder in it"):
        dataset = open_dataset(tmp_path, preprocessing=SMALL, labels=["cat", "dog"])
    assert dataset.names == ("flowers/train/cat/000.png", "flowers/train/dog/000.png")
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 1]


LISTS = {
    "tab.tsv": "{path}\t{label}\n",
    "space.lst": "{path} {index}\n",
    "comma.txt": "{path},{label}\n",
    "comma and space.txt": "{path}, {index}\r\n",
    "semicolon.txt": "{path};{label}\n",
    "quotes.txt": '"{path}" {index}\n',
    "single quotes.txt": "'{path}'\t'{label}'\n",
    "quotes and comma.txt": '"{path}","{label}"\n',
    "windows.txt": "{windows}\t{label}\r\n",
    "old mac.txt": "{path}\t{label}\r",
    "plain.csv": '"{path}",{index}\n',
    "header.csv": 'path,label\n"{path}",{label}\n',
    "swapped.csv": "class;filename\n{label};{path}\n",
    "pandas.csv": ',file,split,label\n0,"{path}",train,{label}\n',
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_are_read_in_the_forms_that_people_have(name: str, tmp_path: Path) -> None:
    labels = ["cow", "siamese cat", "dog"]
    save_images(tmp_path / "my photos, 2024", pictures(3))
    head, row = "", LISTS[name]
    if name.endswith(".csv") and name != "plain.csv":
        head, _, row = row.partition("\n")
        head += "\n"
    paths = [f"my photos, 2024/{number:03}.png" for number in range(3)]
    rows = [
        row.format(path=path, windows=path.replace("/", "\\"), index=index, label=labels[index])
        for path, index in zip(paths, (2, 1, 0), strict=True)
    ]
    (tmp_path / name).write_text(head + "".join(rows), encoding="utf-8-sig", newline="")
    dataset = open_dataset(tmp_path / name, preprocessing=SMALL, labels=labels)
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [2, 1, 0]
    crops, _ = everything(dataset)
    assert np.array_equal(crops, [load(image, SMALL) for image in pictures(3)])
    assert [path.exists() for path in sources.files_of(tmp_path / name)] == [True] * 3


def test_lists_without_labels_keep_commas_and_backslashes_in_their_names(tmp_path: Path) -> None:
    save_images(tmp_path / "a, b", pictures(1))
    (tmp_path / "odd\\name.png").write_bytes((tmp_path / "a, b" / "000.png").read_bytes())
    for name in ("list.txt", "list.csv"):
        quote = '"' if name.endswith("csv") else ""
        (tmp_path / name).write_text(f"{quote}a, b/000.png{quote}\nodd\\name.png\n")
        dataset = open_dataset(tmp_path / name, preprocessing=SMALL)
        assert dataset.labels is None
        assert len(everything(dataset)[0]) == 2


@pytest.mark.skipif(os.name != "posix", reason="needs names that are not UTF-8")
def test_names_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    (path,) = save_images(tmp_path / "photos", pictures(1))
    path.rename(os.fsdecode(os.fsencode(path.parent) + b"/caf\xe9.png"))
    (tmp_path / "list.txt").write_bytes(b"photos/caf\xe9.png\n")
    for source in ("photos", "list.txt"):
        assert len(everything(open_dataset(tmp_path / source, preprocessing=SMALL))[0]) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png,1,2\nb.png,1,2\n", "has 3 columns, and which holds the labels is not clear; call it `label`"),
        ("a.png,1\nb, c.png,1\n", "line 2 of .* has 3 columns, the first 2; quote a path"),
        ("path,label\na.png,bird\n", "line 2 of .* has the label 'bird'"),
        ("", "lists no images"),
    ],
)
def test_a_table_that_is_not_clear_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path / "list.csv", preprocessing=SMALL, labels=["cat", "dog"])


# Bad input


def test_a_source_that_is_no_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    save_images(tmp_path / "images", pictures(1))
    for name, message in {
        "nowhere": "does not exist",
        "notes.md": "is not a data set",
        "images/000.png": "is not a data set",
    }.items():
        with pytest.raises(DatasetError, match=message):
            open_dataset(tmp_path / name, preprocessing=SMALL)
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    (tmp_path / "empty" / "text.txt").write_text("x")
    with pytest.raises(DatasetError, match="has no images"):
        open_dataset(tmp_path / "empty", preprocessing=SMALL)


@pytest.mark.parametrize(
    ("folders", "labels", "num_classes", "message"),
    [
        (["cat", "dgo"], ["cat", "dog"], None, "folder 'dgo', which is none of the network's labels"),
        (["x", "y"], [], 3, "has 2 class folders, the network has 3 classes, and names such as 'x'"),
        (["0", "3"], [], 3, "the label 3, expected 0 to 2"),
        (["1", "01"], [], 3, "two folders for one class index"),
        (["cat", "0"], ["cat", "dog"], None, "two folders for one class index"),
        (["0", "9" * 20], [], 3, "class index 99999999999999999999, expected 0 to 2; correct it"),
        (["crane"], ["crane", "heron", "crane"], None, "names classes 0 and 2"),
        (["", "x"], [], None, "images beside subfolders with images"),
    ],
)
def test_class_folders_that_do_not_fit_the_network_are_refused(
    folders: list[str], labels: list[str], num_classes: int | None, message: str, tmp_path: Path
) -> None:
    for name in folders:
        save_images(tmp_path / name, pictures(1))
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path, preprocessing=SMALL, labels=labels, num_classes=num_classes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no images"),
        ("\n \n", "lists no images"),
        ("a.png 1\nb.png\n", "none to 'b.png'"),
        ("a.png 1\nb.png 5\n", "'b.png' the label 5, expected 0 to 1"),
        ("a.png -1\n", "the label -1, expected 0 to 1"),
        ("a.png\t1\nb.png\tbird\n", "line 2 of .* has the label 'bird', expected a class"),
        ("\t1\n", "line 1 of .* has a label and no path"),
        (f"a.png {'9' * 20}\n", "line 1 of .* has the class index 9{20}, expected 0 to 1"),
        (f"a.png\t{'9' * 5000}\n", "line 1 of .* has the class index 9{18}…, expected 0 to 1"),
        (f"a.png\t{'0' * 5000}2\n", "the label 2, expected 0 to 1"),
    ],
)
def test_a_bad_list_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path / "list.txt", preprocessing=SMALL, labels=["cat", "dog"])


def test_a_list_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="not UTF-8 text"):
        open_dataset(tmp_path / "list.txt", preprocessing=SMALL)


IMAGES = np.zeros((4, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": IMAGES, "y": IMAGES}, "holds x, y, expected `images`"),
        ({}, "holds nothing, expected `images`"),
        ({"images": IMAGES.astype(np.float32)}, r"images of float32 \[4, 8, 8, 3\], expected uint8"),
        ({"images": IMAGES.transpose(0, 3, 1, 2)}, r"images of uint8 \[4, 3, 8, 8\], expected"),
        ({"images": IMAGES[0]}, r"images of uint8 \[8, 8, 3\], expected"),
        ({"images": IMAGES[:0]}, "has no images"),
        ({"images": IMAGES[:, :0]}, r"expected uint8 \[N, H, W, 3\]"),
        ({"images": np.array([IMAGES[0], None], object)}, r"images of object \[2\], expected uint8"),
        ({"images": np.asfortranarray(IMAGES)}, "in Fortran order"),
        ({"images": IMAGES, "labels": np.zeros(4)}, r"labels of float64 \[4\], expected integers \[4\]"),
        ({"images": IMAGES, "labels": np.zeros(3, int)}, r"labels of int64 \[3\], expected integers \[4\]"),
        ({"images": IMAGES, "labels": np.array([None] * 4)}, r"labels of object \[4\]"),
        ({"images": IMAGES, "labels": np.array([0, 1, 2, 9])}, r"'images\[3\]' the label 9, expected 0 to 2"),
        ({"images": IMAGES, "labels": np.array([0, -1, 2, 9])}, "the label -1"),
        ({"images": IMAGES, "labels": np.full(4, 2**64 - 1, np.uint64)}, "the label -1"),
        ({"images": IMAGES, "label": np.arange(4)}, "holds 'label' and no `labels`, by which name labels"),
        ({"images": IMAGES, "Targets": np.arange(4)}, "holds 'Targets' and no `labels`"),
        ({"images": IMAGES, "y": np.arange(4)}, "holds 'y' and no `labels`"),
    ],
)
def test_an_archive_of_another_form_is_refused(
    arrays: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path / "data.npz", preprocessing=SMALL, num_classes=3)


def test_an_archive_shorter_than_its_header_says_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", images=IMAGES)
    with (
        zipfile.ZipFile(tmp_path / "whole.npz") as whole,
        zipfile.ZipFile(tmp_path / "short.npz", "w") as short,
    ):
        short.writestr("images.npy", whole.read("images.npy")[:-100])
    with pytest.raises(DatasetError, match=r"announces images \[4, 8, 8, 3\] but stores 668 bytes"):
        open_dataset(tmp_path / "short.npz", preprocessing=SMALL)


@pytest.mark.parametrize(
    "header",
    [
        b"{" * 118,
        b"(" * 9000,
        b"  a\n b\n",
        b"-" * 9990,
        b"a" * 20000,
        b"{'descr': ',,', 'fortran_order': False, 'shape': (1, 2, 3, 4)}",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (-4, -2, 2, 3)}",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (-4, 2, 2, 3)}",
    ],
    ids=lambda header: header[-42:].decode(),
)
def test_an_archive_whose_header_is_no_header_is_refused_in_one_sentence(
    header: bytes, tmp_path: Path
) -> None:
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("images.npy", start + header + bytes(48))
    with pytest.raises(DatasetError) as caught:
        open_dataset(tmp_path / "data.npz", preprocessing=SMALL)
    assert "data.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_archive_is_refused_or_read_whole(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    images = pictures(3, 4, 4)
    save = data.draw(st.sampled_from([np.savez, np.savez_compressed]))
    save(folder / "data.npz", images=images, labels=np.arange(3))
    content = bytearray((folder / "data.npz").read_bytes())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[position] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(len(content) // 2, len(content))) :]
    (folder / "data.npz").write_bytes(content)
    try:
        crops, _ = everything(open_dataset(folder / "data.npz", preprocessing=SMALL))
    except DatasetError:
        return
    assert np.array_equal(crops, np.stack([load(image, SMALL) for image in images]))


def test_numbers_below_one_are_refused(tmp_path: Path) -> None:
    save_images(tmp_path, pictures(2))
    with pytest.raises(DatasetError, match="limit is 0, expected at least 1"):
        open_dataset(tmp_path, preprocessing=SMALL, limit=0)
    with pytest.raises(DatasetError, match="number of workers is 0"):
        open_dataset(tmp_path, preprocessing=SMALL, workers=0)
    with pytest.raises(DatasetError, match="batch size is 0"):
        open_dataset(tmp_path, preprocessing=SMALL).batches(0)


# Imports


def test_reading_data_needs_neither_onnx_nor_torch() -> None:
    script = (
        "import sys, resnet_export.calibration as calibration\n"
        "before = set(sys.modules)\n"
        "assert 'resnet_export.calibration.data.dataset' not in before\n"
        "calibration.open_dataset, calibration.Batch\n"
        "heavy = {'onnx', 'onnxruntime', 'torch', 'click', 'openvino', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_every_public_name_of_the_package_exists() -> None:
    import resnet_export.calibration as calibration

    for name in calibration.__all__:
        assert getattr(calibration, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = calibration.nonsense
