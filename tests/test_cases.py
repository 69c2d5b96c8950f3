"""Inputs that went wrong once, each with its neighbours: what is found in a source, and what a request makes of it."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import datasets
import pytest
import yaml
from conftest import CLASSES, png
from helpers.sources import make_table, names_of, short

from hf_i2i_unlearn import InputError, load_source, undecoded
from hf_i2i_unlearn.commands.cli import parse
from hf_i2i_unlearn.data.folders import Accounting
from hf_i2i_unlearn.data.options import SplitArguments
from hf_i2i_unlearn.data.sources import load_accounted
from hf_i2i_unlearn.data.splits import build_splits


@pytest.fixture(params=[False, True], ids=["loaded", "streamed"])
def streaming(request):
    return request.param


def write(folder: Path, *names: str) -> str:
    """Files below a folder: pictures by their ending, else a line of text."""
    for i, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(i) if file.suffix.lower() in (".png", ".bmp") else b"text")
    return str(folder)


def loaded(source: str, split: str = "train", streaming: bool = False) -> tuple[list[str], Accounting]:
    """What of a folder is used, and its accounting."""
    rows, account = load_accounted(source, split, None, streaming)
    names = sorted(str(Path(row["image"]["path"]).relative_to(source)) for row in undecoded(rows))
    assert len(names) == account.used == account.found - len(account.metadata) - sum(map(len, account.left_out.values()))
    return names, account


# ------------------------------------------------------------------------------------------ everything below a folder is found

WORDS = [
    ("vehicles/bus_1.png", "vehicles/bus_2.png", "vehicles/train_01.png", "vehicles/tram_1.png"),
    tuple(f"{c}/{i}.png" for c in ("bus", "car", "train") for i in range(3)),
    tuple(f"{c}/{i}.png" for c in ("bus", "testing ground", "validation-marks") for i in range(2)),
    ("test/1.png", "tram/1.png"),
    ("a/eval.png", "a/dev/1.png", "b/train/2.png"),
    ("train_1.png", "test_1.png", "val.png"),
    ("[2024] photos/a [1].png", "[2024] photos/b*.png", "ü/ö ä.png", "q?/c#d.png", "x{split}/e.png"),
    ("CAPITALS/A.PNG", "CAPITALS/B.Bmp"),
]


@pytest.mark.parametrize("names", WORDS, ids=[names[0] for names in WORDS])
def test_no_picture_is_lost_because_of_a_word_in_its_name(tmp_path, streaming, names):
    for place in (tmp_path / "plain", tmp_path / "train [x] set" / "test"):
        assert loaded(write(place, *names), streaming=streaming)[0] == sorted(names)


@pytest.mark.parametrize("top", ["", "photos/", "photos/all/"])
@pytest.mark.parametrize("words", [("train", "validation"), ("Training", "dev"), ("train", "val")])
def test_folders_that_are_all_called_like_splits_are_splits(tmp_path, streaming, top, words):
    names = [f"{top}{word}/{name}" for word in words for name in ("cat/1.png", "dog/train_2.png")]
    source = write(tmp_path, *names, f"{top}notes.txt")
    for split, word in zip(("train", "validation"), words):
        found, account = loaded(source, split, streaming)
        assert found == sorted(n for n in names if n.startswith(f"{top}{word}/"))
        assert len(account.left_out["of another split"]) == 2 and "of another split" not in account.unexpected()
    with pytest.raises(InputError, match=r"has the splits \['train', 'validation'\], not 'test'; .* --eval_split none"):
        load_source(source, "test")


def test_classes_of_all_splits_have_one_numbering(tmp_path):
    write(tmp_path, "train/bee/1.png", "train/dog/1.png", "val/ant/1.png", "val/dog/1.png")
    assert load_source(str(tmp_path), "train").features["label"].names == ["ant", "bee", "dog"]


def test_a_class_called_train_can_be_forgotten(tmp_path, streaming):
    source = write(tmp_path, *(f"{c}/{i}.png" for c in ("bus", "car", "train") for i in range(3)))
    args = {"dataset": source, "forget_classes": ["train"], "streaming": streaming}
    with pytest.raises(InputError, match=r"has the splits \['train'\], not 'validation'; .* give --eval_split none"):
        build_splits(SplitArguments(**args))
    splits = build_splits(SplitArguments(**args, eval_split="none"))
    assert names_of(splits.forget) == [f"train/{i}.png" for i in range(3)] and len(names_of(splits.retain)) == 6


def test_what_is_left_out_is_said(tmp_path, caplog):
    names = [
        "train/cat/1.png",
        "train/dog/1.png",
        "overview.png",
        "train/cat/.hidden.png",
        "train/__MACOSX/1.png",
        "train/notes.txt",
    ]
    source = write(tmp_path, *names, "train/more.zip", "val/cat/1.png")
    found, account = loaded(source)
    assert found == ["train/cat/1.png", "train/dog/1.png"] and account.found == 8
    assert account.left_out == {
        "hidden": ["train/__MACOSX/1.png", "train/cat/.hidden.png"],
        "no picture by its ending": ["train/notes.txt"],
        "an archive, not opened": ["train/more.zip"],
        "beside the folders of the splits": ["overview.png"],
        "of another split": ["val/cat/1.png"],
    }
    load_source(source, "train")
    assert "8 files, 2 used; left out: " in caplog.text
    assert "2 hidden (first" in caplog.text and "1 an archive, not opened" in caplog.text
    assert "notes" not in json.dumps(account.as_data()) and account.as_data()["left_out"]["hidden"] == 2
    assert build_splits(SplitArguments(dataset=source, forget_classes=["cat"], eval_split="none")).accounting == [account]


def test_links_are_followed_once(tmp_path):
    write(tmp_path / "elsewhere", "1.png")
    source = Path(write(tmp_path / "source", "cat/1.png"))
    (source / "dog").symlink_to(tmp_path / "elsewhere")
    (source / "cat" / "loop").symlink_to(source)
    names = sorted(short(row["image"]["path"]) for row in undecoded(load_source(str(source), "train")))
    assert names == ["cat/1.png", "dog/1.png"]


@pytest.mark.parametrize(
    "names, said", [((), "it is empty"), (("a.zip", "b.txt"), "1 an archive, not opened, 1 no picture by")]
)
def test_a_folder_without_pictures(tmp_path, names, said):
    with pytest.raises(InputError, match=f"holds no picture .{said}"):
        load_source(write(tmp_path, *names), "train")


def test_a_link_to_nothing_is_one_sentence_or_an_unreadable_picture(tmp_path):
    source = Path(write(tmp_path, "cat/1.png", "dog/1.png"))
    (source / "dog" / "2.png").symlink_to("/nowhere.png")
    with pytest.raises(InputError, match="Cannot read '.*' as imagefolder: Local file .*2.png doesn't exist"):
        load_source(str(source), "train")
    assert len(list(undecoded(load_source(str(source), "train", streaming=True)))) == 3


METADATA = {
    "metadata.csv": "file_name,owner\ncat/1.png,Jane\ndog/1.png,John\n",
    "metadata.jsonl": '{"file_name": "cat/1.png", "owner": "Jane"}\n{"file_name": "dog/1.png", "owner": "John"}\n',
}


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("split", ["", "train/"])
def test_metadata_files(tmp_path, streaming, name, split):
    source = write(tmp_path, *(f"{split}{n}" for n in ("cat/1.png", "dog/1.png", "dog/unnamed.png")))
    (tmp_path / split / name).write_text(METADATA[name])
    _, account = loaded(source, streaming=streaming)
    assert account.metadata == [f"{split}{name}"] and account.left_out == {
        "not named in the metadata file": [f"{split}dog/unnamed.png"]
    }
    args = SplitArguments(dataset=source, forget_column="owner", forget_values=["Jane"], eval_split="none", streaming=streaming)
    splits = build_splits(args)
    assert names_of(splits.forget) == ["cat/1.png"] and names_of(splits.retain) == ["dog/1.png"]


def test_metadata_of_one_split_only_and_broken_ones(tmp_path, streaming):
    source = write(tmp_path, "train/1.png", "train/2.png", "val/1.png", "metadata.csv")
    (tmp_path / "train" / "metadata.jsonl").write_text('{"file_name": "1.png"}\n{"file_name": "2.png"}\n')
    assert loaded(source, "train", streaming)[1].left_out["a metadata file above the folders of the splits"] == ["metadata.csv"]
    assert loaded(source, "validation", streaming)[0] == ["val/1.png"]
    (tmp_path / "train" / "metadata.jsonl").write_text("no JSON")
    with pytest.raises(InputError, match="Cannot read the metadata file '.*metadata.jsonl'"):
        load_source(source, "train", streaming=streaming)


def test_brackets_in_the_paths_of_files(tmp_path, streaming):
    folder = tmp_path / "[2024] photos"
    folder.mkdir()
    for shard in range(3):
        make_table([(f"ant/{shard}.png", png(shard))], CLASSES).to_parquet(folder / f"train-{shard}.parquet")
    counts = {"": 3, "train-*.parquet": 3, "train-1.parquet": 1, "{split}-*.parquet": 3, "train-[01].parquet": 2}
    for pattern, count in counts.items():
        if pattern == "train-[01].parquet":
            folder = folder.rename(tmp_path / "2024 photos")
        assert len(list(load_source(str(folder / pattern), "train", streaming=streaming))) == count
    shutil.rmtree(folder)


# ------------------------------------------------------------------------------------------------- classes belong to their file


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize(
    "orders", [(CLASSES, ["bee", "cat", "dog", "ant"]), (CLASSES[1:], CLASSES), (CLASSES[::-1], CLASSES, CLASSES)]
)
def test_shards_that_name_their_classes_in_other_orders(tmp_path, streaming, orders, listed):
    feature = datasets.List(datasets.ClassLabel(names=CLASSES))
    for shard, names in enumerate(orders):
        pictures = [(f"{c}/{shard}{i}.png", png(10 * shard + i)) for i, c in enumerate(CLASSES) if c in names]
        table = make_table(pictures, names)
        if listed:
            feature = datasets.List(datasets.ClassLabel(names=names))
            lists = [[k, (k + 1) % len(names)] if i == 0 else [k] for i, k in enumerate(table["label"])]
            table = make_table(pictures, names, kinds=(feature, lists))
        table.to_parquet(tmp_path / f"train-{shard}.parquet")
    rows = list(load_source(str(tmp_path), "train", streaming=streaming).select_columns(["label"]))
    for name in CLASSES:
        splits = build_splits(
            SplitArguments(dataset=str(tmp_path), forget_classes=[name], eval_split="none", streaming=streaming)
        )
        assert names_of(splits.forget) == [f"{name}/{s}{CLASSES.index(name)}.png" for s, n in enumerate(orders) if name in n]
        assert len(names_of(splits.forget)) + len(names_of(splits.retain)) == len(rows)
    if listed:
        args = {"label_column": "kinds", "eval_split": "none", "streaming": streaming}
        forget = names_of(build_splits(SplitArguments(dataset=str(tmp_path), forget_classes=["dog"], **args)).forget)
        assert {f"dog/{s}3.png" for s in range(len(orders))} <= set(forget)


def test_shards_of_which_one_names_no_classes_are_refused(tmp_path):
    table = make_table([("ant/0.png", png(0))], CLASSES)
    table.to_parquet(tmp_path / "train-0.parquet")
    table.cast_column("label", datasets.Value("int64")).to_parquet(tmp_path / "train-1.parquet")
    with pytest.raises(InputError, match="Column 'label' of .*train-1.parquet' does not say the names of its classes"):
        load_source(str(tmp_path), "train")


# ---------------------------------------------------------------------------------------------------- tar members with dots


def write_tar(file: Path, names: list[str]) -> str:
    with tarfile.open(file, "w") as tar:
        for i, name in enumerate(names):
            info = tarfile.TarInfo(name)
            content = png(i) if name.endswith("png") else b"0"
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(file)


def test_tar_members_with_dots(tmp_path, streaming):
    source = write_tar(tmp_path / "train.tar", [f"photos.d/{i}.{x}" for i in range(6) for x in ("b.png", "cls")])
    (tmp_path / "request.txt").write_text("3.b.png\nphotos.d/4.b.png")
    args = {"dataset": source, "image_column": "b.png", "eval_split": "none", "streaming": streaming}
    splits = build_splits(SplitArguments(**args, forget_list=str(tmp_path / "request.txt")))
    assert names_of(splits.forget) == ["photos.d/3.b.png", "photos.d/4.b.png"] and len(names_of(splits.retain)) == 4


@pytest.mark.parametrize(
    "names",
    [
        [*(f"{i}.png" for i in range(8)), "x.v2.png"],
        [f"IMG.{i}.png" for i in range(8)],
        ["0.png", "1.b.png"],
        ["a.1.png", "b.2.png"],
    ],
)
def test_tar_members_whose_dots_put_pictures_into_several_columns_are_refused(tmp_path, streaming, names):
    with pytest.raises(InputError, match=r"has a dot in its name: webdataset takes a name up to its first dot.*other names"):
        load_source(write_tar(tmp_path / "train.tar", names), "train", streaming=streaming)


def test_tar_members_that_are_no_samples_are_said(tmp_path, streaming, caplog):
    source = write_tar(tmp_path / "train.tar", ["0.png", "1.png", "._1.png", "noending"])
    assert len(list(load_source(source, "train", streaming=streaming))) == 2
    assert "2 a name that webdataset does not read (first '" in caplog.text and "._1.png'" in caplog.text


# ------------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    "written, given",
    [
        ('forget_classes: "56"', {"forget_classes": ["56"]}),
        ("forget_classes: 5", {"forget_classes": ["5"]}),
        ("forget_classes: 005", {"forget_classes": ["005"]}),
        ("forget_classes: [5, cat, 1.50, no]", {"forget_classes": ["5", "cat", "1.50", "no"]}),
        ("forget_rows: 3", {"forget_rows": "3"}),
        ("forget_rows: 3,17", {"forget_rows": "3,17"}),
        ("forget_values: 2024-01-01", {"forget_values": ["2024-01-01"]}),
        ("retain_classes: ant", {"retain_classes": ["ant"]}),
        ("dataset: 2024", {"dataset": "2024"}),
        ("eval_split: none", {"eval_split": "none"}),
        ("eval_split: null", {"eval_split": None}),
        ("eval_samples: 7", {"eval_samples": 7}),
        ("streaming: true", {"streaming": True}),
    ],
)
def test_one_value_for_a_list_and_a_number_for_a_text(tmp_path, written, given):
    (tmp_path / "options.yaml").write_text(written)
    assert yaml.safe_load(written)
    (args,) = parse((SplitArguments,), "", ["--config", str(tmp_path / "options.yaml")])
    assert args == SplitArguments(**given)
