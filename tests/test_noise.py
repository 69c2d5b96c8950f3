import pytest
import torch
from helpers.close import assert_close

from hf_i2i_unlearn import InputError, StandardNormal
from hf_i2i_unlearn.commands.words import make_noise
from hf_i2i_unlearn.methods.noise import BatchMatched, LowRankNormal, MomentMatched

LOW, HIGH = torch.full((3,), -2.0), torch.full((3,), 2.0)


def draw(noise, count=2000, shape=(3, 4, 4)):
    return noise(torch.zeros(count, *shape), range(count))


def in_batches(pictures, size=7):
    return lambda: iter(pictures.split(size))


@pytest.mark.parametrize("word", ["normal", "moments", "low_rank", "batch", "uniform", "constant"])
def test_a_noise_picture_depends_on_its_own_seed_alone(word):
    pictures = torch.randn(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    noise = make_noise(word, in_batches(pictures), LOW, HIGH, rank=5)
    like = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    together = noise(like, [11, 12, 13])
    assert together.shape == (3, 3, 4, 4) and together.dtype == like.dtype and str(noise)
    assert_close(together[1:], noise(like, [12, 13]))
    assert word == "constant" or not torch.equal(together[0], together[1])


def test_standard_normal():
    sample = draw(StandardNormal())
    assert abs(sample.mean()) < 0.02 and abs(sample.std() - 1) < 0.02


def test_uniform_and_constant():
    uniform = draw(make_noise("uniform", None, LOW, HIGH))
    assert uniform.min() >= -1 and uniform.max() <= 1 and abs(uniform.mean()) < 0.02
    assert uniform.var().item() == pytest.approx(1 / 3, rel=0.02)
    assert (draw(make_noise("constant", None, LOW, HIGH), 2) == 0).all()


def test_moments_of_the_set():
    scale, shift = torch.tensor([0.5, 1, 2]).view(3, 1, 1), torch.tensor([1.0, 0, -1]).view(3, 1, 1)
    pictures = torch.randn(50, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * scale + shift
    noise = MomentMatched.fit(in_batches(pictures))
    channels = pictures.movedim(1, 0).flatten(1)
    assert_close(noise.mean.flatten(), channels.mean(1))
    assert_close(noise.std.flatten(), channels.std(1, unbiased=False))
    sample = draw(noise).movedim(1, 0).flatten(1)
    assert_close(sample.std(1), channels.std(1), 0.03)


def test_matched_to_the_batch_and_clamped():
    like = torch.randn(8, 3, 4, 4) * 0.3 + 0.5
    noise = BatchMatched(LOW, HIGH)(like, range(500))
    assert abs(noise.mean() - like.mean()) < 0.02 and abs(noise.std() - like.std()) < 0.02
    wild = BatchMatched(LOW, HIGH)(like * 100, range(50))
    assert wild.min() == -2 and wild.max() == 2


def low_rank_pictures(count=300, rank=6, sigma=0.3):
    """Pictures of 48 values with a known covariance: `rank` strong directions over a weak floor."""
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(48, rank, generator=generator) * torch.linspace(3, 1, rank)
    x = torch.randn(count, rank, generator=generator) @ factor.T + sigma * torch.randn(count, 48, generator=generator)
    return (x + torch.randn(48, generator=generator)).view(count, 3, 4, 4)


def test_low_rank_fit_is_probabilistic_pca():
    """Against the eigenvalues of the covariance matrix, which is small enough to be formed here."""
    pictures, rank = low_rank_pictures(), 6
    noise = LowRankNormal.fit(in_batches(pictures), rank)
    covariance = torch.cov(pictures.flatten(1).T.double())
    values = torch.linalg.eigvalsh(covariance).flip(0)
    sigma2 = values[rank:].mean()
    assert_close(noise.mean, pictures.flatten(1).mean(0))
    assert noise.sigma**2 == pytest.approx(sigma2.item(), rel=1e-3)
    fitted = noise.factor.double() @ noise.factor.double().T + noise.sigma**2 * torch.eye(48)
    assert_close(torch.linalg.eigvalsh(fitted).flip(0)[:rank], values[:rank], 1e-3)
    assert fitted.trace().item() == pytest.approx(covariance.trace().item(), rel=1e-4)


def test_covariance_of_the_samples_converges_to_that_of_the_set():
    pictures = low_rank_pictures()
    covariance = torch.cov(pictures.flatten(1).T)

    def error(rank, count):
        sample = draw(LowRankNormal.fit(in_batches(pictures), rank), count)
        return ((torch.cov(sample.flatten(1).T) - covariance).norm() / covariance.norm()).item()

    few, many = error(47, 200), error(47, 20000)
    assert many < 0.03 < few  # with samples, as 1 / sqrt(count)
    assert error(1, 20000) > error(3, 20000) > error(6, 20000)  # with rank


def test_the_fit_does_not_depend_on_the_batches():
    pictures = low_rank_pictures(100)
    one, two = (LowRankNormal.fit(in_batches(pictures, size), 4) for size in (100, 9))
    assert_close(one.factor @ one.factor.T, two.factor @ two.factor.T, 1e-3)


def test_impossible_fits_are_refused():
    with pytest.raises(InputError, match=r"must lie between 1 and 9 \(10 pictures of 48 values\), got 64"):
        make_noise("low_rank", in_batches(low_rank_pictures(10)), LOW, HIGH, rank=64)
    with pytest.raises(InputError, match="too few pictures"):
        LowRankNormal.fit(in_batches(low_rank_pictures(1)), 1)
    with pytest.raises(InputError, match="'pink' is no noise; choose normal"):
        make_noise("pink", None, LOW, HIGH)
