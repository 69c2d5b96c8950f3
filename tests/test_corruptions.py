import pytest
import torch

from hf_i2i_unlearn import CenterCrop, Extend, InputError, Outpaint, RandomBlock, RandomMask, Turns
from hf_i2i_unlearn.commands.words import parse_corruption

GRIDS = [(4, 4), (14, 14), (7, 7), (5, 8)]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    "corruption, count",
    [
        (CenterCrop(2), lambda r, c: 4),
        (CenterCrop(3), lambda r, c: 9),
        (Outpaint(2), lambda r, c: r * c - 4),
        (Extend("left", 1), lambda r, c: r),
        (Extend("right", 2), lambda r, c: 2 * r),
        (Extend("up", 3), lambda r, c: 3 * c),
        (Extend("down", 1), lambda r, c: c),
        (RandomBlock(3), lambda r, c: 9),
    ],
)
def test_hides_exactly_as_many_patches(corruption, count, grid):
    mask = corruption(grid, range(20))
    assert mask.shape == (20, *grid) and mask.dtype == torch.bool
    assert mask.sum((1, 2)).tolist() == [count(*grid)] * 20 == [corruption.hidden(grid)] * 20


@pytest.mark.parametrize("hidden", range(1, 196))
def test_every_ratio_k_of_196_hides_k(hidden):
    # int(196 * (1 - k / 196)), the library's own count, is off by one for 34 of these.
    assert RandomMask(hidden / 196)((14, 14), [0]).sum() == hidden


def test_ratio_rounds_up_as_mae_and_mage_do():
    assert RandomMask(0.75).hidden((14, 14)) == 147 == 196 - int(196 * 0.25)
    assert RandomMask(0.55).hidden((16, 16)) == 141  # ceil(140.8)


@pytest.mark.parametrize(
    "word, where",
    [
        ("center:2", [(1, 1), (1, 2), (2, 1), (2, 2)]),
        ("left:1", [(0, 0), (1, 0), (2, 0), (3, 0)]),
        ("right:1", [(0, 3), (1, 3), (2, 3), (3, 3)]),
        ("up:1", [(0, 0), (0, 1), (0, 2), (0, 3)]),
        ("down:1", [(3, 0), (3, 1), (3, 2), (3, 3)]),
    ],
)
def test_place(word, where):
    corruption = parse_corruption(word)
    assert str(corruption) == word
    assert [tuple(p) for p in corruption((4, 4), [0])[0].nonzero().tolist()] == where


def test_outpainting_hides_what_the_crop_shows():
    assert torch.equal(Outpaint(4)((16, 16), [0]), ~CenterCrop(4)((16, 16), [0]))


@pytest.mark.parametrize("corruption", [RandomMask(0.5), RandomBlock(2)])
def test_a_mask_depends_on_its_own_seed_alone(corruption):
    together = corruption((7, 7), [11, 12, 13, 14])
    assert torch.equal(together[2:], corruption((7, 7), [13, 14]))
    assert not torch.equal(together[0], together[1])


def test_random_masks_are_uniform():
    share = RandomMask(0.25)((4, 4), range(4000)).float().mean(0)
    assert (share - 0.25).abs().max() < 0.03  # 4 standard deviations are 0.027


@pytest.mark.parametrize("word", ["center:0", "center:9", "random:0", "random:1", "outpaint:0", "outpaint:7", "left:4", "up:0"])
def test_refuses_to_hide_nothing_or_everything(word):
    with pytest.raises(InputError, match=r"hides (nothing|everything) \(.* 4x4 grid; choose"):
        parse_corruption(word)((4, 4), [0])


def test_several_take_turns():
    turns = parse_corruption("center:2, random:0.5,left:1", several=True)
    assert turns == Turns((CenterCrop(2), RandomMask(0.5), Extend("left", 1))) and str(turns) == "center:2,random:0.5,left:1"
    assert [str(turns.at(step)) for step in range(4)] == ["center:2", "random:0.5", "left:1", "center:2"]
    assert CenterCrop(2).at(7) == CenterCrop(2) == parse_corruption("center:2", several=True)
    turns.check((4, 4))
    with pytest.raises(InputError, match="'left:1' hides everything"):
        turns.check((4, 1))
    with pytest.raises(InputError, match="one of them is wanted here"):
        turns((4, 4), [0])
    with pytest.raises(InputError, match="is not a corruption"):
        parse_corruption("center:2,left:1")


@pytest.mark.parametrize("word", ["centre:8", "center", "center:x", "random", ""])
def test_unknown_words(word):
    with pytest.raises(InputError, match="is not a corruption: center:K"):
        parse_corruption(word)


@pytest.mark.parametrize("build", [lambda: CenterCrop(-1), lambda: RandomMask(1.5), lambda: Extend("north", 1)])
def test_impossible_corruptions(build):
    with pytest.raises(InputError):
        build()
