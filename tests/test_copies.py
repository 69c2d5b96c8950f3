"""The same picture under another name is found in every source, and refused, forgotten too, or kept."""

import io
import sys

import datasets
import pytest
from conftest import png
from helpers.sources import KINDS, make_table, names_of, short, write_source
from PIL import Image

from hf_i2i_unlearn import InputError
from hf_i2i_unlearn.commands.jobs.certificate import copies_of
from hf_i2i_unlearn.data import copies as copies_module
from hf_i2i_unlearn.data import copy_search
from hf_i2i_unlearn.data.copies import can_find_near, find_copies
from hf_i2i_unlearn.data.copy_search import look_for_copies
from hf_i2i_unlearn.data.decoding import picture_hash
from hf_i2i_unlearn.data.options import SplitArguments
from hf_i2i_unlearn.data.requests import by_list, by_rows
from hf_i2i_unlearn.data.splits import build_splits
from hf_i2i_unlearn.storage import content_hash

needs_imagehash = pytest.mark.skipif(not can_find_near(), reason="imagehash, of the extra 'copies', is not here")


def again(content: bytes, kind: str, **options) -> bytes:
    """A picture saved again in another format."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(content)).save(buffer, kind, **options)
    return buffer.getvalue()


PICTURES = [
    *((f"cat/{i}.png", png(i, 2)) for i in range(4)),
    *((f"dog/{i}.png", png(10 + i, 3)) for i in range(4)),
    ("dog/same_bytes.png", png(0, 2)),
    ("dog/same_pixels.png", again(png(1, 2), "BMP")),
    ("dog/saved_again.png", again(png(0, 2), "JPEG", quality=95)),
]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["loaded", "streamed"])
def streaming(request):
    return request.param


@pytest.fixture
def splits(kind, streaming, tmp_path):
    """The sets of a request for cat/0 and cat/1, whose copies are in the class dog."""
    source = write_source(kind, tmp_path / "source", PICTURES)
    (tmp_path / "request.txt").write_text("cat/0.png\ncat/1.png\n")

    def build(record=None, **options):
        given = {"eval_split": "none", "streaming": streaming, "forget_list": str(tmp_path / "request.txt")}
        return build_splits(SplitArguments(**source | given | options), record)

    return build


def test_exact_copies_are_refused(splits):
    with pytest.raises(InputError, match=r"2 pictures of the rest of the dataset are exact copies .*row \d+.*forget") as said:
        splits()
    assert "same_" not in str(said.value) and "cat/" not in str(said.value)
    with pytest.raises(InputError, match=r"are exact copies .*same_.*--copies forget"):
        splits(card_names=True)
    with pytest.raises(InputError, match="--copies is one of refuse, forget, keep, skip, got 'ignore'"):
        splits(copies="ignore")


def test_exact_copies_are_forgotten_too(splits):
    made = splits(copies="forget")
    wanted = {"cat/0.png", "cat/1.png", "dog/same_bytes.png", "dog/same_pixels.png"}
    assert set(names_of(made.forget)) == wanted
    assert sorted([*names_of(made.forget), *names_of(made.retain)]) == sorted(name for name, _ in PICTURES)
    assert {short(c.name): c.how for c in made.copies.all("bytes", "pixels")} == {
        "dog/same_bytes.png": "bytes", "dog/same_pixels.png": "pixels",
    }  # fmt: skip
    assert made.description["forget"].startswith("a list of 2 lines")  # the request, as it was written


def test_a_retained_class_is_without_the_copies(splits, kind):
    wanted = {"cat/0.png", "cat/1.png", "dog/same_bytes.png", "dog/same_pixels.png"}
    dog = "1" if kind == "tar" else "dog"  # webdataset has numbers
    for option in ("retain_classes", "proxy_classes"):
        some = splits(copies="forget", **{option: [dog]})
        assert set(names_of(some.forget)) == wanted
        assert set(names_of(some.retain)) == {"dog/0.png", "dog/1.png", "dog/2.png", "dog/3.png", "dog/saved_again.png"}


@needs_imagehash
def test_near_copies_are_listed(splits, caplog):
    made = splits(copies="keep")
    assert {short(c.name) for c in made.copies.all("near")} == {"dog/saved_again.png"}
    assert any("trained to stay: 1" in note for note in made.notes) and "trained to stay: 1. Look" in caplog.text
    assert "saved_again" not in caplog.text + str(made.notes)  # no name reaches a log unless names are wanted
    splits(copies="keep", card_names=True)
    assert "trained to stay: 1 (first '" in caplog.text and "saved_again.png'" in caplog.text


@needs_imagehash
def test_near_copies_of_whole_classes_are_not_looked_for(tmp_path):
    source = write_source("parquet", tmp_path / "source", PICTURES)
    made = build_splits(SplitArguments(**source, forget_classes=["cat"], copies="forget", eval_split="none"))
    assert len(made.copies.all("bytes", "pixels")) == 2 and "near" not in made.copies.looked_for
    assert any("whole classes, whose pictures look alike" in note for note in made.notes)


def test_kept_copies_stay_and_are_listed_by_hash_alone(splits):
    made = splits(copies="keep")
    assert set(names_of(made.forget)) == {"cat/0.png", "cat/1.png"} and len(names_of(made.retain)) == 9
    data = made.copies.as_data()
    assert len(data["of"]) == 2 and data["pictures"] == 9 and data["unreadable"] == 0
    assert "png" not in str(data) and "dog" not in str(data) + str(made.notes)


def test_skipped_is_not_looked_for(splits, monkeypatch):
    monkeypatch.setattr(copies_module, "_print", None)  # whoever reads a picture fails
    made = splits(copies="skip")
    assert made.copies is None and any("not looked for" in note for note in made.notes)


@pytest.mark.parametrize("option", ["retain_dataset", "proxy_dataset"])
def test_other_datasets_are_searched(splits, kind, tmp_path, option):
    other = write_source(kind, tmp_path / "other", [("cow/0.png", png(50)), ("cow/copy.png", png(0, 2))])["dataset"]
    with pytest.raises(InputError, match="pictures of the rest of the dataset"):
        splits(**{option: other})
    made = splits(copies="forget", **{option: other})
    assert "cow/copy.png" not in names_of(made.retain) and "cow/0.png" in names_of(made.retain)
    assert {short(c.name) for c in made.copies.all("bytes", source=option[:-8])} == {"cow/copy.png"}


def test_evaluation_rows_that_are_copies_are_left_out_of_it(splits, kind, tmp_path):
    held = [("cat/9.png", png(90, 2)), ("dog/8.png", png(0, 2)), ("dog/9.png", png(91, 3))]
    write_source(kind, tmp_path / "source", held, "validation", 1)
    made = splits(copies="forget", eval_split="validation")
    assert set(names_of(made.eval_retain)) == {"cat/9.png", "dog/9.png"}
    assert [c.source for c in made.copies.all("bytes", source="evaluation")] == ["evaluation"]
    assert not any("trained to stay" in note and "Exact" in note for note in made.notes)
    assert len(names_of(splits(copies="keep", eval_split="validation").eval_retain)) == 3


def test_in_memory_in_any_order_with_rows_without_a_picture():
    rows = [("cat/0.png", png(0)), ("cat/1.png", None), ("dog/0.png", png(0)), ("dog/1.png", None), ("dog/2.png", b"broken")]
    for order in (rows, rows[::-1]):
        table = make_table(order, ["cat", "dog"])
        request = by_rows([order.index(rows[0]), order.index(rows[1])])
        for source in (table, table.to_iterable_dataset(2)):
            found = look_for_copies({"dataset": source}, request, "image", "keep")
            assert [(c.how, c.name, c.row) for c in found.all("bytes")] == [("bytes", "dog/0.png", order.index(rows[2]))]
            assert found.unreadable == 1


def test_pixels_are_compared_as_they_are_seen():
    """Turned by EXIF, of another mode: what the decoder makes of it counts. The size in the header may be turned."""
    picture = Image.open(io.BytesIO(png(3))).crop((0, 0, 16, 8))
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn clockwise
    picture.transpose(Image.Transpose.ROTATE_90).save(turned, "PNG", exif=exif)
    plain = io.BytesIO()
    picture.convert("RGBA").save(plain, "PNG")
    image = {"bytes": plain.getvalue(), "path": "a"}
    found = find_copies([(0, image)], {"x": [(7, {"bytes": turned.getvalue(), "path": "b"})]}, near=False)
    assert [(c.how, c.row) for c in found.all("pixels")] == [("pixels", 7)]


def test_few_are_decoded_without_a_search_for_near_ones(monkeypatch):
    decoded = []
    decode = copies_module.Decoder.__call__
    monkeypatch.setattr(copies_module.Decoder, "__call__", lambda self, image: (decoded.append(1), decode(self, image))[1])
    others = [(i, {"bytes": png(i, size=16 + i % 4), "path": ""}) for i in range(40)]
    find_copies([(0, {"bytes": png(99), "path": ""})], {"x": others}, near=False)
    assert len(decoded) == 1 + 10


def test_without_the_library_a_sentence_says_so(splits, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    monkeypatch.setattr("hf_i2i_unlearn.data.copy_search.can_find_near", lambda: False)
    made = splits(copies="keep")
    assert any("Near copies were not looked for: that needs imagehash" in note for note in made.notes)
    assert not made.copies.all("near") and len(made.copies.all("bytes", "pixels")) == 2


def test_a_source_is_searched_once(monkeypatch, tmp_path):
    table = make_table(PICTURES, ["cat", "dog"])
    (tmp_path / "request").write_text("cat/0.png")
    request = by_list(table, str(tmp_path / "request"))
    first = look_for_copies({"dataset": table}, request, "image", "keep")
    monkeypatch.setattr(copies_module, "_print", None)
    assert look_for_copies({"dataset": table}, request, "image", "keep") == first
    assert isinstance(table, datasets.Dataset)


def test_what_a_run_has_found_is_not_looked_for_again(splits, monkeypatch):
    """By its record: of the source the forget pictures alone are read, and evaluation rows are still without copies."""
    made = splits(copies="keep")
    hashes = sorted(picture_hash(row) for row in made.forget)
    record = {"dataset": made.description["dataset"], "identity": {"forget": content_hash(hashes)}}
    record["copies"] = copies_of(made.copies)
    read, make = [], copies_module._print
    monkeypatch.setattr(copies_module, "_print", lambda *args: (read.append(1), make(*args))[1])
    copy_search._LAST.clear()
    again = splits(record, copies="keep")
    assert len(read) == 2 and {n: len(c) for n, c in again.copies.of.items()} == {n: len(c) for n, c in made.copies.of.items()}
    assert again.notes == made.notes
    # Another forget set, another source, or copies that have to be told by their rows: all is read.
    for other, options in (
        (record | {"identity": {"forget": None}}, {"copies": "keep"}),
        (record | {"dataset": "elsewhere"}, {"copies": "keep"}),
        (record, {"copies": "forget"}),
    ):
        read.clear()
        copy_search._LAST.clear()
        splits(other, **options)
        assert len(read) >= 9
