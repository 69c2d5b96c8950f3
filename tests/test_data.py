import datasets
import numpy as np
import pytest
import torch
from conftest import make_dataset, png
from helpers.close import assert_close

from hf_i2i_unlearn import ForgetRetainPairs, ForgetRetainStream, ImageReader, InputError, undecoded
from hf_i2i_unlearn.data.augmentation import AUGMENTATIONS
from hf_i2i_unlearn.data.pairs import Cycle, EpochSampler, seeds_for
from hf_i2i_unlearn.data.reading import PairCollator


def rows(count, start=0):
    return [{"image": {"bytes": png(i), "path": f"{i}.png"}} for i in range(start, start + count)]


def names(pairs, which):
    return [pair[which]["image"]["path"] for pair in pairs]


def test_an_epoch_is_one_pass_of_forget_and_retain_is_cycled():
    pairs = ForgetRetainPairs(rows(4), rows(6, 100), seed=3)
    assert len(pairs) == 4
    three_epochs = [pairs[t] for t in range(12)]
    for epoch in range(3):
        assert sorted(names(three_epochs[4 * epoch :][:4], "forget")) == [f"{i}.png" for i in range(4)]
    for cycle in range(2):  # 12 pairs are two full cycles of the 6 retain pictures, over the ends of epochs
        assert sorted(names(three_epochs[6 * cycle :][:6], "retain")) == [f"{i}.png" for i in range(100, 106)]
    assert names(three_epochs[:4], "forget") != names(three_epochs[4:8], "forget")  # reshuffled


def test_pairs_are_reproducible_and_their_draws_are_their_own():
    one, two, other = (ForgetRetainPairs(rows(4), rows(6, 100), seed=s) for s in (3, 3, 4))
    assert [one[t] for t in (0, 7, 3)] == [two[t] for t in (0, 7, 3)]
    assert len({tuple(one[t]["seeds"]) for t in range(50)}) == 50
    assert one[0]["seeds"] != other[0]["seeds"]
    assert all(0 <= s < 2**63 for s in seeds_for(12345, 10**9))


def test_epoch_sampler_follows_the_epoch():
    epoch = [0]
    sampler = EpochSampler(3, lambda: epoch[0])
    assert (list(sampler), len(sampler)) == ([0, 1, 2], 3)
    epoch[0] = 2
    assert list(sampler) == [6, 7, 8]


def test_stream_restarts_and_reshuffles_but_keeps_its_pairs_equal():
    source = undecoded(make_dataset(8))
    stream = lambda indices: source.select(indices).to_iterable_dataset(2)
    pairs = ForgetRetainStream(stream(range(3)), stream(range(3, 8)), seed=1, shuffle_buffer=10)
    taken = [pair for pair, _ in zip(pairs, range(15))]
    for k in range(5):
        assert len(set(names(taken[3 * k :][:3], "forget"))) == 3
    for k in range(3):
        assert len(set(names(taken[5 * k :][:5], "retain"))) == 5
    assert len({tuple(names(taken[3 * k :][:3], "forget")) for k in range(5)}) > 1
    again = [pair for pair, _ in zip(pairs, range(15))]
    assert again == taken


@pytest.mark.parametrize("batch", [1, 3])
def test_workers_share_a_stream_and_keep_its_order(batch):
    source = undecoded(make_dataset(8)).to_iterable_dataset(4)
    pairs = ForgetRetainStream(source.take(4), source.skip(4), seed=1, shuffle_buffer=3)
    pairs.rows_per_batch = batch
    loaders = [
        torch.utils.data.DataLoader(pairs, batch, num_workers=n, collate_fn=list, multiprocessing_context="fork" if n else None)
        for n in (0, 1, 2, 3)
    ]
    taken = [[pair for rows, _ in zip(loader, range(24 // batch)) for pair in rows] for loader in loaders]
    assert all(other == taken[0] for other in taken[1:])
    for k in range(6):  # each row once a pass
        assert sorted(names(taken[0][4 * k :][:4], "forget")) == sorted(r["image"]["path"] for r in source.take(4))
        assert len(set(names(taken[0][4 * k :][:4], "retain"))) == 4
    assert [pair["seeds"] for pair in taken[0]] == [seeds_for(1, t) for t in range(24)]


def test_empty_sets_are_refused():
    with pytest.raises(InputError, match="The forget set is empty"):
        ForgetRetainPairs([], rows(2))
    with pytest.raises(InputError, match="The retain set is empty"):
        Cycle([], 0, "retain")
    empty = undecoded(make_dataset(4)).to_iterable_dataset().take(0)
    with pytest.raises(InputError, match="The forget set is empty"):
        next(iter(ForgetRetainStream(empty, undecoded(make_dataset(4)).to_iterable_dataset())))


def test_collator_normalises_and_balances(processor):
    reader = ImageReader(processor, 3)
    pairs = ForgetRetainPairs(rows(4), rows(4, 100))
    batch = PairCollator(reader)([pairs[t] for t in range(4)])
    assert batch["forget"].shape == batch["retain"].shape == (4, 3, 16, 16) and batch["skipped"] == 0
    raw = np.asarray(datasets.Image().decode_example(pairs[0]["retain"]["image"]), dtype=np.float32) / 255
    assert_close(batch["retain"][0], torch.tensor((raw - 0.5) / 0.25).movedim(-1, 0))
    assert_close(reader.unit(batch["retain"][0]), torch.tensor(raw).movedim(-1, 0))
    assert batch["seeds"].tolist() == [pairs[t]["seeds"] for t in range(4)]


BROKEN = {"image": {"bytes": b"\x89PNG\r\n\x1a\n not a picture", "path": "broken.png"}}
TRUNCATED = {"image": {"bytes": png(0)[:-40], "path": "truncated.png"}}
GONE = {"image": {"bytes": None, "path": "/no/such/file.png"}}


@pytest.mark.parametrize("bad", [BROKEN, TRUNCATED, GONE])
def test_unreadable_pictures_are_refused_or_skipped_with_their_pair(processor, bad, caplog):
    pairs = [{"forget": f, "retain": r, "seeds": [1, 2, 3]} for f, r in zip(rows(3), rows(3, 100))]
    pairs[1]["forget"] = bad
    with pytest.raises(InputError, match=f"Cannot read {bad['image']['path']}: .*on_corrupt='skip'"):
        PairCollator(ImageReader(processor, 3))(pairs)
    batch = PairCollator(ImageReader(processor, 3, on_corrupt="skip"))(pairs)
    assert len(batch["forget"]) == len(batch["retain"]) == 2 and batch["skipped"] == 1
    # The log names no forget picture, but gives its hash.
    assert bad["image"]["path"] not in caplog.text and "of the forget set, sha256" in caplog.text
    pairs[1]["forget"], pairs[1]["retain"] = pairs[1]["retain"], bad
    PairCollator(ImageReader(processor, 3, on_corrupt="skip"))(pairs)
    assert bad["image"]["path"] in caplog.text
    with pytest.raises(InputError, match="All 1 pairs of a batch"):
        PairCollator(ImageReader(processor, 3, on_corrupt="skip"))(pairs[1:2])


def test_grey_and_colour(processor):
    assert ImageReader(processor, 3).decode(rows(1)[0]).mode == "RGB"
    processor.image_mean = processor.image_std = [0.5]
    assert ImageReader(processor, 1).decode(rows(1)[0]).mode == "L"
    assert ImageReader(processor, 1).pixels([ImageReader(processor, 1).decode(rows(1)[0])]).shape == (1, 1, 16, 16)


def test_processor_and_model_must_agree(processor):
    with pytest.raises(InputError, match="normalises 3 channels, the model takes 1"):
        ImageReader(processor, 1)
    with pytest.raises(InputError, match="1 or 3 channels can be read, the model takes 4"):
        ImageReader(processor, 4)
    with pytest.raises(InputError, match="'refuse' or 'skip', got 'ignore'"):
        ImageReader(processor, 3, on_corrupt="ignore")


def test_undecoded_checks_the_column():
    with pytest.raises(InputError, match=r"no column 'picture'; it has \['image', 'label', 'owner'\]"):
        undecoded(make_dataset(2), "picture")
    with pytest.raises(InputError, match="Column 'owner' holds .* expected datasets.Image"):
        undecoded(make_dataset(2), "owner")
    assert undecoded(make_dataset(2).rename_column("image", "photo"), "photo").column_names == ["image"]


@pytest.mark.parametrize("name", ["flip_and_crop", "jitter"])
def test_augmentation_is_reproducible_and_keeps_the_size(processor, name):
    reader = ImageReader(processor, 3, AUGMENTATIONS[name])
    one, again, other = (np.asarray(reader.decode(rows(1)[0], seed)) for seed in (5, 5, 6))
    assert one.shape == (16, 16, 3)
    assert (one == again).all() and (one != other).any()


def test_a_picture_that_comes_by_again_is_not_decoded_again(processor, monkeypatch):
    seen, real = [], ImageReader.decode
    monkeypatch.setattr(ImageReader, "decode", lambda self, row, *more: seen.append(row) or real(self, row, *more))
    pairs = ForgetRetainPairs(rows(4), rows(6, 100), seed=3)
    epochs = [[pairs[t] for t in range(4 * k, 4 * k + 4)] for k in range(3)]

    collator, fresh = PairCollator(ImageReader(processor, 3)), [PairCollator(ImageReader(processor, 3)) for _ in epochs]
    first = [collator(batch) for batch in epochs]
    assert 10 <= len(seen) < 24  # one may stand in a batch twice
    seen.clear()
    kept = [collator(batch) for batch in epochs]
    assert not seen and all(torch.equal(a["retain"], b["retain"]) for a, b in zip(first, kept))
    for batch, wanted in zip(kept, [other(batch) for other, batch in zip(fresh, epochs)]):
        assert all(torch.equal(batch[name], wanted[name]) for name in ("forget", "retain"))

    seen.clear()
    full = PairCollator(ImageReader(processor, 3))
    full._room = 4 * kept[0]["forget"][0].nbytes  # for four of the ten
    for batch in epochs:
        full(batch)
    assert len(full._known) == 4 and 12 < len(seen) < 24
    seen.clear()
    augmented = PairCollator(ImageReader(processor, 3, AUGMENTATIONS["flip_and_crop"]))
    for batch in epochs:
        augmented(batch)
    assert len(seen) == 24  # another picture each time
