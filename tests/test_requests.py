"""Requests: what they name, in every way of writing them, against a plain model in Python of what they mean."""

import unicodedata
from pathlib import Path

import datasets
import pytest
from conftest import CLASSES, make_dataset, png
from helpers.sources import KINDS, make_table, names_of, write_source
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_i2i_unlearn import ForgetRetainStream, InputError, by_classes, by_list, by_rows, by_values, select, undecoded
from hf_i2i_unlearn.data.lists import plain_path, read_list
from hf_i2i_unlearn.data.options import SplitArguments
from hf_i2i_unlearn.data.requests import find, load_classes, per_class
from hf_i2i_unlearn.data.splits import build_splits

TAGS = datasets.List(datasets.Value("string"))
property_test = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=[False, True], ids=["loaded", "streamed"])
def as_source(request):
    """A dataset as it is, or as a stream of three shards."""
    return (lambda table: table.to_iterable_dataset(min(3, len(table)))) if request.param else lambda table: table


# ------------------------------------------------------------------------------------------------------------------- the items


def test_each_item_names_its_pictures(as_source, tmp_path):
    source = as_source(make_dataset(24))
    (tmp_path / "request").write_text("cat/002.png\n005.png")
    requests = {
        "cat dog": by_classes(source, ["cat", 3]),
        "owners": by_values(source, "owner", ["person1", "person4"]),
        "rows": by_rows("3,17, 20-22"),
        "list": by_list(source, str(tmp_path / "request")),
    }
    found = {name: {item: rows.tolist() for item, rows in find(source, r).rows.items()} for name, r in requests.items()}
    assert found == {
        "cat dog": {"cat": list(range(2, 24, 4)), "3": list(range(3, 24, 4))},
        "owners": {"person1": [1, 7, 13, 19], "person4": [4, 10, 16, 22]},
        "rows": {"3": [3], "17": [17], "20-22": [20, 21, 22]},
        "list": {"cat/002.png": [2], "005.png": [5]},
    }
    assert all(find(source, r).complete for r in requests.values())


@pytest.mark.parametrize(
    "rows, said",
    [
        ("9-3", "'9-3' in '9-3' ends before it begins; write '3-9'"),
        ("3,24", "Row '24' is not in the dataset: it has 24 rows, 0 to 23"),
        ("3,20-30", "Row '20-30' is not in the dataset"),
        ("3;4", "'3;4' in '3;4' is not a row number"),
        ("", "'' in '' is not a row number"),
        ("-1", "'-1' in '-1' is not a row number"),
        ("²", "'²' in '²' is not a row number"),
    ],
)
def test_rows_that_cannot_be(as_source, rows, said):
    with pytest.raises(InputError, match=said):
        find(as_source(make_dataset(24)), by_rows(rows))


def test_every_part_must_name_a_picture(as_source, tmp_path):
    source = as_source(make_dataset(24))
    for call, said in (
        (lambda: by_classes(source, ["cat", "cta"]), "no class 'cta' in its 4. Nearest: 'cat'"),
        (lambda: by_values(source, "owner", ["person1", "person9"]), r"No picture has owner 'person9'\. Nearest: 'person"),
        (lambda: by_values(source, "label", ["cta"]), "no class 'cta'"),
        (lambda: by_classes(as_source(make_dataset(2)), ["ant", "dog"]), "No picture has label 'dog'"),
        (lambda: by_values(source, "owners", ["x"]), "no column 'owners'"),
    ):
        with pytest.raises(InputError, match=said):
            call()
    (tmp_path / "request").write_text("cat/002.png\ncat/02.png")
    with pytest.raises(InputError, match="1 of the 2 pictures in .* first 'cat/02.png'; .* Nearest: 'cat/0"):
        by_list(source, str(tmp_path / "request"))
    (tmp_path / "request").write_text("person1\nperson9")
    with pytest.raises(InputError, match="1 of the 2 .* first 'person9'"):
        by_list(source, str(tmp_path / "request"), "owner")


def test_what_is_said_twice_is_said(as_source, tmp_path):
    source = as_source(make_dataset(24))
    (tmp_path / "request").write_text("cat/002.png\n002.png\n005.png\n005.png")
    request = by_list(source, str(tmp_path / "request"))
    assert find(source, request).notes == (
        "The request says 1 item more than once.",
        "More than one item of the request names 1 picture.",
    )
    assert find(source, by_rows("1,2")).notes == ()
    assert "names 2 pictures" in find(source, by_rows("1-5,4-5")).notes[0]
    args = SplitArguments(dataset="x", forget_rows="1-5,4-5")
    assert args.copies == "refuse"


def test_lists_of_labels_match_by_membership(as_source):
    tags = [["red", "cat"] if i % 2 else ["blue"] for i in range(8)]
    numbers = [[0, 2] if i % 2 else [1] for i in range(8)]
    label = datasets.ClassLabel(names=CLASSES)
    pictures = [(f"ant/{i}.png", png(i)) for i in range(8)]
    source = as_source(make_table(pictures, ["ant"], tags=(TAGS, tags), classes=(datasets.List(label), numbers)))
    for request in (
        by_values(source, "tags", ["cat"]),
        by_classes(source, ["cat"], "classes"),
        by_classes(source, [2], "classes"),
    ):
        assert names_of(select(source, request)) == [f"ant/{i}.png" for i in (1, 3, 5, 7)]
        assert names_of(select(source, request, False)) == [f"ant/{i}.png" for i in (0, 2, 4, 6)]
    with pytest.raises(InputError, match="No picture has tags 'rde'. Nearest: 'red'"):
        by_values(source, "tags", ["cat", "rde"])
    with pytest.raises(InputError, match="No picture has classes 'dog'"):
        by_classes(source, ["dog"], "classes")
    assert len(names_of(select(source, per_class(source, 1, "tags")))) in (2, 3)


def test_lists_of_labels_that_share_a_picture_are_not_forgotten_and_retained(tmp_path):
    tags = [["red", "cat"], ["red"], ["blue"]]
    make_table([(f"ant/{i}.png", png(i)) for i in range(3)], ["ant"], tags=(TAGS, tags)).to_parquet(tmp_path / "train.parquet")
    args = {"dataset": str(tmp_path), "label_column": "tags", "forget_classes": ["cat"], "eval_split": "none"}
    with pytest.raises(InputError, match="would be forgotten and retained at once"):
        build_splits(SplitArguments(**args, retain_classes=["red"]))
    assert names_of(build_splits(SplitArguments(**args, retain_classes=["blue"])).retain) == ["ant/2.png"]


def test_rows_without_a_picture_are_selected_like_others(as_source):
    pictures = [(f"{CLASSES[i % 4]}/{i}.png", None if i % 2 else png(i)) for i in range(8)]
    source = as_source(make_table(pictures, CLASSES))
    for request in (by_classes(source, ["bee", "cat"]), by_rows("1,2,5,6")):
        assert [row["label"] for row in select(source, request)] == [1, 2, 1, 2]
        assert [row["image"] is None for row in undecoded(select(source, request))] == [True, False, True, False]


def test_classes_belong_to_the_split_that_they_came_from(tmp_path):
    """The evaluation split numbers its classes otherwise, and lacks one."""
    pictures = [(f"{CLASSES[i % 4]}/{i}.png", png(i)) for i in range(8)]
    make_table(pictures, CLASSES).to_parquet(tmp_path / "train.parquet")
    held = [(f"{name}/{i}.png", png(100 + i)) for i, name in enumerate(["dog", "cat", "bee"])]
    make_table(held, ["dog", "cat", "bee"]).to_parquet(tmp_path / "validation.parquet")
    for classes in (["cat", "ant"], ["2", "0"]):
        for options in ({}, {"retain_classes": ["bee"]}, {"streaming": True}):
            splits = build_splits(SplitArguments(dataset=str(tmp_path), forget_classes=classes, **options))
            assert set(names_of(splits.forget)) == {"cat/2.png", "cat/6.png", "ant/0.png", "ant/4.png"}
            assert names_of(splits.eval_forget) == ["cat/1.png"]
            assert set(names_of(splits.eval_retain)) == (
                {"bee/2.png"} if "retain_classes" in options else {"dog/0.png", "bee/2.png"}
            )


def test_row_numbers_are_those_of_the_source_however_a_stream_is_shuffled():
    source = make_dataset(24).to_iterable_dataset(4)
    forget, retain = (undecoded(select(source, by_rows("0-5"), keep)) for keep in (True, False))
    pairs = iter(ForgetRetainStream(forget, retain, seed=1, shuffle_buffer=10))
    taken = [next(pairs) for _ in range(36)]
    assert {Path(p["forget"]["image"]["path"]).stem for p in taken} == {f"{i:03d}" for i in range(6)}
    assert {Path(p["retain"]["image"]["path"]).stem for p in taken} == {f"{i:03d}" for i in range(6, 24)}
    few = undecoded(select(retain, by_rows("0-1")))
    assert {Path(r["image"]["path"]).stem for r in few.shuffle(seed=3, buffer_size=5)} == {"006", "007"}


def test_classes_of_other_commands_must_be_there_too(tmp_path):
    make_dataset(2).to_parquet(tmp_path / "train.parquet")
    for streaming in (False, True):
        with pytest.raises(InputError, match="No picture has label 'dog'"):
            load_classes(SplitArguments(dataset=str(tmp_path)), "train", ["ant", "dog"], streaming)


# ------------------------------------------------------------------------------------------------------------------- the lists

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_lists_of_three_systems(tmp_path, encoding, end, form):
    lines = ["cat/a.png", "./cat/Käthe.png", ".\\dog\\c d.png", "", "# a comment"]
    file = tmp_path / "request.txt"
    file.write_bytes(unicodedata.normalize(form, end.join(lines)).encode(encoding))
    for stored in ("NFC", "NFD"):
        names = [unicodedata.normalize(stored, n) for n in ("cat/a.png", "cat/Käthe.png", "dog/c d.png", "dog/a.png")]
        table = make_table([(n, png(i)) for i, n in enumerate(names)], ["cat", "dog"])
        found = find(table, by_list(table, str(file)))
        assert [rows.tolist() for rows in found.rows.values()] == [[0], [1], [2]]


def test_a_line_like_a_comment_that_is_a_file_is_a_file(tmp_path):
    table = make_table([(f"cat/{name}", png(i)) for i, name in enumerate(["#cat.png", "a.png", "# b.png"])], ["cat"])
    (tmp_path / "request").write_text("# from the court\n#cat.png\n# b.png\n")
    for source in (table, table.to_iterable_dataset(2)):
        assert set(find(source, by_list(source, str(tmp_path / "request"))).rows) == {"#cat.png", "# b.png"}
    (tmp_path / "request").write_text("# only\n# comments\n")
    with pytest.raises(InputError, match="names no picture"):
        by_list(table, str(tmp_path / "request"))


TABLES = {
    "request.csv": 'file_name,why\ncat/a.png,court\n"dog/b, c.png",court\n',
    "excel.csv": "\ufeffwhy;file_name\r\ncourt;cat/a.png\r\ncourt;dog/b, c.png\r\n",
    "request.tsv": "file_name\twhy\ncat/a.png\tcourt\ndog/b, c.png\tcourt\n",
    "request.jsonl": '{"file_name": "cat/a.png"}\n\n{"file_name": "dog/b, c.png", "why": 3}\n',
    "names.jsonl": '"cat/a.png"\n"dog/b, c.png"\n',
    "names.csv": "cat/a.png\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_lists_with_columns(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(TABLES[name].encode())
    assert set(read_list(str(file)).items) == {"cat/a.png", "dog/b, c.png"} - (
        {"dog/b, c.png"} if name == "names.csv" else set()
    )


def test_the_column_of_a_list_is_an_option(tmp_path):
    make_dataset(8).to_parquet(tmp_path / "train.parquet")
    (tmp_path / "request.csv").write_text("url,picture\nx,cat/002.png\ny,cat/006.png\n")
    (tmp_path / "owners.jsonl").write_text('{"owner": "person1"}\n')
    args = {"dataset": str(tmp_path / "train.parquet"), "eval_split": "none"}
    given = {"forget_list": str(tmp_path / "request.csv"), "forget_list_column": "picture"}
    assert names_of(build_splits(SplitArguments(**args, **given)).forget) == ["cat/002.png", "cat/006.png"]
    given = {"forget_list": str(tmp_path / "owners.jsonl"), "forget_column": "owner"}
    assert names_of(build_splits(SplitArguments(**args, **given)).forget) == ["bee/001.png", "dog/007.png"]


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.txt", b"cat/K\xe4the.png", r"is no utf-8 text \(byte 5\); save it as UTF-8"),
        ("a.txt", b"\xff\xfea", "is no utf-16 text"),
        ("a.txt", b"", "names no picture"),
        (
            "a.csv",
            b"name,why\nx,y\n",
            r"has no column 'file_name'; it has \['name', 'why'\]. Name the one with --forget_list_column",
        ),
        ("a.jsonl", b'{"name": "x"}', r"Line 1 of .* has no 'file_name'; it has \['name'\]"),
        ("a.jsonl", b'"x"\n{x', "Line 2 of .* is no JSON"),
        ("a.jsonl", b'{"file_name": null}', "Line 1 of .* holds null, not a name"),
    ],
)
def test_lists_that_cannot_be_read_are_one_sentence(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_list(str(tmp_path / name))
    if name == "a.txt":
        with pytest.raises(InputError, match="|".join([said, "has no columns; --forget_list_column is for .csv"])):
            read_list(str(tmp_path / name), "picture")


# ------------------------------------------------------------------------------------------- any request, against a plain model

NAMES = (
    st.text("ab#é ü.[]*?(", min_size=1, max_size=6)
    .map(lambda s: unicodedata.normalize("NFC", s).strip())
    .filter(lambda s: s and not s.startswith((".", "__")) and not s.endswith("."))
)
FOLDERS = st.dictionaries(
    st.sampled_from(["ant", "bee", "train", "t[1]", "ü b"]), st.lists(NAMES, min_size=1, max_size=4, unique=True), min_size=2
)


def meaning(names: list[str], item: str) -> set[int]:
    """Rows that an item of a list means: those whose path ends with it, part by part."""
    wanted = plain_path(item).split("/")
    return {i for i, name in enumerate(names) if plain_path(name).split("/")[-len(wanted) :] == wanted}


@pytest.mark.parametrize("kind", ["imagefolder", "parquet"])
@property_test
@given(folders=FOLDERS, data=st.data())
def test_any_list_of_any_folder(tmp_path_factory, kind, folders, data):
    """Forget and retain sets part the source, each item names what it says, and what names nothing or several is refused."""
    folder = tmp_path_factory.mktemp("any")
    names = [f"{name}/{file}.png" for name, files in sorted(folders.items()) for file in files]
    source = write_source(kind, folder / "source", [(name, png(i, size=2)) for i, name in enumerate(names)])
    items = data.draw(
        st.lists(st.sampled_from(names + [name.split("/")[1] for name in names] + ["c.png"]), min_size=1, max_size=5)
    )
    written = [data.draw(st.sampled_from([item, f"./{item}", item.replace("/", "\\")])) for item in items]
    (folder / "request.txt").write_text("\n".join(written), encoding=data.draw(st.sampled_from(ENCODINGS[:3])))
    args = SplitArguments(
        **source, eval_split="none", forget_list=str(folder / "request.txt"), streaming=data.draw(st.booleans()), copies="skip"
    )
    means = [meaning(names, item) for item in written]
    comments = [line.startswith("#") and not rows for line, rows in zip(written, means)]
    wanted = set().union(*means)
    possible = all(len(rows) == 1 or comment for rows, comment in zip(means, comments)) and 0 < len(wanted) < len(names)
    if not possible:
        with pytest.raises(InputError):
            build_splits(args)
        return
    splits = build_splits(args)
    assert sorted(names_of(splits.forget)) == sorted(names[i] for i in wanted)
    assert sorted([*names_of(splits.forget), *names_of(splits.retain)]) == sorted(names)
    assert set(splits.found.rows) == {line for line, comment in zip(map(str.strip, written), comments) if not comment}
    assert [len(rows) for rows in splits.found.rows.values()] == [1] * len(splits.found.rows)


@property_test
@given(
    labels=st.lists(st.integers(0, 3), min_size=2, max_size=12),
    wanted=st.lists(st.sampled_from([*CLASSES, "0", "1", "2", "3", "cow"]), min_size=1, max_size=4),
    shards=st.integers(1, 4),
    order=st.randoms(use_true_random=False),
)
def test_any_classes_in_any_order_and_number_of_shards(labels, wanted, shards, order):
    pictures = [(f"{CLASSES[k]}/{i}.png", png(i, size=2)) for i, k in enumerate(labels)]
    order.shuffle(pictures)
    names = CLASSES[:]
    order.shuffle(names)
    table = make_table(pictures, names)
    sources = [table, table.to_iterable_dataset(min(shards, len(labels)))]
    means = [{p for p, _ in pictures if p.split("/")[0] == (names[int(w)] if w.isdigit() else w)} for w in wanted]
    for source in sources:
        if not all(means):
            with pytest.raises(InputError, match="(no class|No picture has label) '"):
                by_classes(source, wanted)
            continue
        request = by_classes(source, wanted)
        forget, retain = (names_of(select(source, request, keep)) for keep in (True, False))
        assert forget == [p for p, _ in pictures if p in set().union(*means)]
        assert retain == [p for p, _ in pictures if p not in set().union(*means)]
        found = find(source, request)
        assert {item: {pictures[row][0] for row in rows} for item, rows in found.rows.items()} == dict(zip(wanted, means))
        assert len(found.all_rows()) == len(forget)


@property_test
@given(
    size=st.integers(1, 15),
    parts=st.lists(st.tuples(st.integers(0, 20), st.none() | st.integers(0, 20)), min_size=1, max_size=4),
)
def test_any_rows(size, parts):
    text = ",".join(str(a) if b is None else f"{a}-{b}" for a, b in parts)
    means = [list(range(a, (a if b is None else b) + 1)) for a, b in parts]
    table = make_table([(f"ant/{i}.png", png(i, size=2)) for i in range(size)], ["ant"])
    for source in (table, table.to_iterable_dataset(min(3, size))):
        if not all(means) or max(map(max, means)) >= size:
            with pytest.raises(InputError):
                find(source, by_rows(text))
            continue
        found = find(source, by_rows(text))
        assert found.all_rows().tolist() == sorted(set().union(*means))
        assert names_of(select(source, by_rows(text))) == [f"ant/{i}.png" for i in found.all_rows()]
        assert bool(found.notes) == (sum(map(len, means)) > len(found.all_rows()))


@property_test
@given(
    cells=st.lists(st.none() | st.lists(st.sampled_from("abcé"), max_size=3), min_size=1, max_size=10),
    wanted=st.lists(st.sampled_from(["a", "b", "c", "é", "e\u0301", "d"]), min_size=1, max_size=3),
)
def test_any_tags(cells, wanted):
    table = make_table([(f"ant/{i}.png", png(i, size=2)) for i in range(len(cells))], ["ant"], tags=(TAGS, cells))
    means = [{i for i, cell in enumerate(cells) if unicodedata.normalize("NFC", w) in (cell or ())} for w in wanted]
    for source in (table, table.to_iterable_dataset(min(2, len(cells)))):
        if not all(means):
            with pytest.raises(InputError, match="No picture has tags"):
                by_values(source, "tags", wanted)
            continue
        rows = find(source, by_values(source, "tags", wanted)).all_rows()
        assert rows.tolist() == sorted(set().union(*means))


@pytest.mark.parametrize("kind", KINDS)
def test_no_number_of_workers_changes_the_sets(kind, tmp_path):
    import torch

    pictures = [(f"{CLASSES[i % 4]}/{i}.png", png(i, i % 4)) for i in range(12)]
    source = write_source(kind, tmp_path / "source", pictures, shards=3)
    forget = ["2"] if kind == "tar" else ["cat"]
    splits = build_splits(SplitArguments(**source, forget_classes=forget, eval_split="none", streaming=True, copies="skip"))
    taken = []
    for workers in (0, 2):
        pairs = ForgetRetainStream(splits.forget, splits.retain, seed=2, shuffle_buffer=4)
        context = "fork" if workers else None
        loader = torch.utils.data.DataLoader(pairs, None, num_workers=workers, multiprocessing_context=context)
        taken.append([pair for pair, _ in zip(loader, range(18))])
    assert taken[0] == taken[1]
    assert {p["forget"]["image"]["path"].split("/")[-1] for p in taken[0]} == {"2.png", "6.png", "10.png"}
    assert len({p["retain"]["image"]["path"] for p in taken[0]}) == 9
