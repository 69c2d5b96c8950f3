from pathlib import Path

import datasets
import pytest
from conftest import CLASSES, make_dataset

from hf_i2i_unlearn import InputError, by_classes, by_list, by_rows, by_values, load_source, select
from hf_i2i_unlearn.data.decoding import Decoder
from hf_i2i_unlearn.data.options import SplitArguments
from hf_i2i_unlearn.data.sources import first_rows
from hf_i2i_unlearn.data.splits import build_splits

SHARED = Path(__file__).parents[2] / "shared" / "data" / "tiny-imagenet-100"


def names(dataset):
    return [row["image"]["path"] for row in dataset]


@pytest.fixture
def decodes(monkeypatch):
    """Counts decoded pictures."""
    count = []
    decode = Decoder.__call__
    monkeypatch.setattr(Decoder, "__call__", lambda self, *a, **k: (count.append(1), decode(self, *a, **k))[1])
    return count


@pytest.fixture
def parquet(tmp_path):
    """A folder with two train shards and a validation file."""
    make_dataset(16).to_parquet(tmp_path / "train-00000-of-00002.parquet")
    make_dataset(24).select(range(16, 24)).to_parquet(tmp_path / "train-00001-of-00002.parquet")
    make_dataset(8).to_parquet(tmp_path / "validation-00000-of-00001.parquet")
    return tmp_path


SELECTIONS = {
    "class names": lambda d: (by_classes(d, ["cat"]), {2, 6, 10, 14, 18, 22}),
    "class numbers": lambda d: (by_classes(d, [2, "0"]), {i for i in range(24) if i % 4 in (0, 2)}),
    "values": lambda d: (by_values(d, "owner", ["person1"]), {1, 7, 13, 19}),
    "values of a class column": lambda d: (by_values(d, "label", ["bee"]), {1, 5, 9, 13, 17, 21}),
    "rows": lambda d: (by_rows("3,17, 20-22"), {3, 17, 20, 21, 22}),
    "row list": lambda d: (by_rows([5]), {5}),
}


@pytest.mark.parametrize("how", SELECTIONS)
@pytest.mark.parametrize("streaming", [False, True])
def test_select_takes_the_rows_asked_for_and_decodes_none(how, streaming, decodes):
    dataset = make_dataset()
    selection, expected = SELECTIONS[how](dataset)
    source = dataset.to_iterable_dataset(3) if streaming else dataset
    kept, rest = (select(source, selection, keep) for keep in (True, False))
    assert {int(Path(n).stem) for n in names(kept)} == expected
    assert {int(Path(n).stem) for n in names(rest)} == set(range(24)) - expected
    assert not decodes


def test_takedown_list(tmp_path, decodes):
    dataset, file = make_dataset(), tmp_path / "request.txt"
    file.write_text("# received 2026-11-01\n\nbee/005.png\n014.png\n")
    for source in (dataset, dataset.to_iterable_dataset(3)):
        assert set(names(select(source, by_list(source, str(file))))) == {"bee/005.png", "cat/014.png"}
    file.write_text("person2\nperson4")
    kept = select(dataset, by_list(dataset, str(file), "owner"))
    assert len(kept) == 8 and {row["owner"] for row in kept.remove_columns("image")} == {"person2", "person4"}
    assert not decodes


def test_takedown_list_must_be_found_whole(tmp_path):
    dataset, file = make_dataset(), tmp_path / "request.txt"
    file.write_text("bee/005.png\nbee/004.png\nnobody.png")
    with pytest.raises(InputError, match="2 of the 3 pictures in .* not in the dataset, first 'bee/004.png'"):
        by_list(dataset, str(file))
    file.write_text("# nothing")
    with pytest.raises(InputError, match="names no picture"):
        by_list(dataset, str(file))
    with pytest.raises(InputError, match="Cannot read the takedown list"):
        by_list(dataset, str(tmp_path / "gone.txt"))
    file.write_text("1.png")
    double = datasets.concatenate_datasets([dataset.select([0])] * 2)
    file.write_text("000.png")
    with pytest.raises(InputError, match="'000.png' .* matches 2 pictures; give more of the path"):
        by_list(double, str(file))


def test_unknown_names_come_with_the_nearest():
    dataset = make_dataset()
    with pytest.raises(InputError, match=r"no class 'cats' in its 4\. Nearest: 'cat'"):
        by_classes(dataset, ["cats"])
    with pytest.raises(InputError, match="no class '7'"):
        by_classes(dataset, [7])
    with pytest.raises(InputError, match=r"No picture has owner 'person9'\. Nearest: 'person"):
        by_classes(dataset, ["person9"], "owner")
    with pytest.raises(InputError, match="no column 'breed'"):
        by_classes(dataset, ["cat"], "breed")
    with pytest.raises(InputError, match="'x' in '1,x' is not a row number"):
        by_rows("1,x")


def arguments(parquet, **changes):
    return SplitArguments(**{"dataset": str(parquet), "forget_classes": ["cat"], "eval_samples": 100} | changes)


@pytest.mark.parametrize("streaming", [False, True])
def test_build_splits_from_parquet(parquet, streaming, decodes):
    splits = build_splits(arguments(parquet, streaming=streaming, copies="skip"))
    forget, retain = set(names(splits.forget)), set(names(splits.retain))
    assert forget == {f"cat/{i:03d}.png" for i in range(2, 24, 4)}
    assert len(retain) == 18 and not forget & retain
    assert names(splits.eval_forget) == ["cat/002.png", "cat/006.png"] and len(splits.eval_retain) == 6
    assert "never trained on" in splits.description["evaluation"]
    assert not decodes


def test_retain_classes_and_evaluation_on_training_pictures(parquet):
    splits = build_splits(arguments(parquet, retain_classes=["ant"], eval_split="none", eval_samples=3))
    assert {Path(n).parent.name for n in names(splits.retain)} == {"ant"}
    assert len(splits.eval_forget) == len(splits.eval_retain) == 3
    assert splits.description["retain"] == "classes ant"


def test_single_pictures_are_evaluated_themselves(parquet):
    splits = build_splits(arguments(parquet, forget_classes=None, forget_rows="2,5"))
    assert names(splits.eval_forget) == ["cat/002.png", "bee/005.png"]
    # The evaluation split has the first eight pictures of the training split: two of them are to be forgotten.
    assert len(splits.eval_retain) == 6 and any("left out of it: 2" in note for note in splits.notes)
    assert splits.description["forget_size"] == "2"


def test_retain_from_another_dataset(parquet, tmp_path_factory):
    other = tmp_path_factory.mktemp("proxy")
    for split in ("train", "validation"):
        make_dataset(60).select(range(40, 60)).to_parquet(other / f"{split}.parquet")
    splits = build_splits(arguments(parquet, retain_dataset=str(other)))
    assert len(splits.retain) == 20 and names(splits.retain)[0] == "ant/040.png"
    with pytest.raises(InputError, match="6 pictures of the retain dataset are exact copies of pictures to be forgotten"):
        build_splits(arguments(parquet, retain_dataset=str(parquet)))


def labels(splits):
    return {Path(n).parent.name for n in names(splits.retain)}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "options, count, classes, availability",
    [
        ({"retain_per_class": 2}, 6, {"ant", "bee", "dog"}, "2 pictures per class"),
        ({"proxy_classes": ["dog"]}, 6, {"dog"}, "proxy classes dog alone"),
        (
            {"proxy_classes": ["dog"], "retain_per_class": 1},
            8,
            {"ant", "bee", "dog"},
            "proxy classes dog and 1 pictures per class",
        ),
        ({"retain_classes": ["ant"], "proxy_classes": ["dog"], "retain_per_class": 0}, 6, {"dog"}, "proxy classes dog alone"),
    ],
)
def test_retain_availability(parquet, streaming, options, count, classes, availability, decodes):
    splits = build_splits(arguments(parquet, streaming=streaming, copies="skip", **options))
    assert len(names(splits.retain)) == count and labels(splits) == classes
    assert splits.description["retain_availability"] == availability
    evaluated = {Path(row["image"]["path"]).parent.name for row in splits.eval_retain}
    assert evaluated == ({"ant"} if "retain_classes" in options else {"ant", "bee", "dog"})
    assert not decodes


def test_proxy_dataset(parquet, tmp_path_factory):
    other = tmp_path_factory.mktemp("proxy")
    make_dataset(50).select(range(40, 50)).to_parquet(other / "train.parquet")
    splits = build_splits(arguments(parquet, proxy_dataset=str(other), retain_per_class=1))
    assert len(splits.retain) == 13
    assert build_splits(arguments(parquet)).description["retain_availability"] == "full"


def test_impossible_availability(parquet):
    with pytest.raises(InputError, match="leaves no retain picture"):
        build_splits(arguments(parquet, retain_per_class=0))
    with pytest.raises(InputError, match="must be 0 or more, got -1"):
        build_splits(arguments(parquet, retain_per_class=-1))
    with pytest.raises(InputError, match="'cat' would be forgotten and retained"):
        build_splits(arguments(parquet, proxy_classes=["cat"]))
    with pytest.raises(InputError, match="'ant' would be retained and stand in as a proxy"):
        build_splits(arguments(parquet, retain_classes=["ant"], proxy_classes=["ant"]))


def test_overlapping_sets_are_refused(parquet):
    with pytest.raises(InputError, match="'cat' would be forgotten and retained at once"):
        build_splits(arguments(parquet, retain_classes=["ant", "cat"]))
    with pytest.raises(InputError, match="be forgotten and retained at once: single pictures"):
        build_splits(arguments(parquet, forget_classes=None, forget_rows="0", retain_classes=["ant"]))
    assert build_splits(arguments(parquet, forget_classes=None, forget_rows="0", retain_classes=["bee"]))


@pytest.mark.parametrize("streaming", [False, True])
def test_empty_sets_are_refused(parquet, streaming):
    with pytest.raises(InputError, match=r"Row '900' is not in the dataset: it has 24 rows, 0 to 23"):
        build_splits(arguments(parquet, forget_classes=None, forget_rows="900", streaming=streaming))
    with pytest.raises(InputError, match="The retain set is empty"):
        build_splits(arguments(parquet, forget_classes=CLASSES, streaming=streaming))


def test_the_forget_set_is_named_once(parquet):
    with pytest.raises(
        InputError, match="exactly one way .* got none. A run.yaml keeps neither rows nor values .* give them again"
    ):
        build_splits(arguments(parquet, forget_classes=None))
    with pytest.raises(InputError, match="got --forget_classes and --forget_rows"):
        build_splits(arguments(parquet, forget_rows="1"))
    with pytest.raises(InputError, match="needs --forget_column"):
        build_splits(arguments(parquet, forget_classes=None, forget_values=["x"]))


def test_sources(parquet, tmp_path):
    folder = tmp_path / "pictures"
    for row in make_dataset(8).cast_column("image", datasets.Image(decode=False)):
        file = folder / "train" / row["image"]["path"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(row["image"]["bytes"])
    images = load_source(str(folder), "train")
    assert images.features["label"].names == CLASSES and len(images) == 8
    listed = tmp_path / "request.txt"
    listed.write_text("bee/001.png")
    assert len(select(images, by_list(images, str(listed)))) == 1

    assert len(load_source(str(parquet / "train-*.parquet"), "train")) == 24
    assert len(load_source(str(parquet / "{split}-*.parquet"), "validation")) == 8
    with pytest.raises(InputError, match="holds 3 parquet files but none of the split 'test'"):
        load_source(str(parquet), "test")
    with pytest.raises(InputError, match="No parquet file matches"):
        load_source(str(parquet / "test-*.parquet"), "test")


def test_first_rows_are_spread():
    dataset = make_dataset(20)
    assert [r["label"] for r in first_rows(dataset.remove_columns("image"), 5)] == [0, 0, 1, 2, 3]
    assert len(first_rows(dataset.to_iterable_dataset(), 3)) == 3
    assert len(first_rows(dataset, 0)) == 20


@pytest.mark.skipif(not SHARED.is_dir(), reason="the photographs to measure on are not here; the tests above are their twin")
def test_streaming_real_photographs_decodes_nothing(decodes):
    args = SplitArguments(
        dataset=str(SHARED), forget_classes=["n01443537 goldfish"], streaming=True, eval_samples=5, copies="skip"
    )
    splits = build_splits(args)
    assert len(first_rows(splits.forget, 20)) == 20 and len(splits.eval_retain) == 5
    assert not decodes
