import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.close import assert_close

import hf_i2i_unlearn
from hf_i2i_unlearn.evaluation.statistics import (
    Accuracy,
    CosineSimilarity,
    GaussianStatistics,
    InceptionScore,
    KernelSamples,
    frechet_distance,
    kernel_distance,
)


def features(count, dim, seed, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator)
    return shift + scale * torch.randn(count, dim, generator=generator) @ mix


def statistics(x, batch=17):
    result = GaussianStatistics()
    for part in x.split(batch):
        result.update(part)
    return result


def samples(x):
    result = KernelSamples()
    result.update(x, torch.arange(len(x)))
    return result


def numpy_frechet(x, y):
    """The textbook formula with the eigenvalues of the general (not symmetric) product S1 S2."""
    x, y = x.double().numpy(), y.double().numpy()
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    cross = np.sqrt(np.linalg.eigvals(s1 @ s2).astype(complex)).real.sum()
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * cross


def test_frechet_of_known_gaussians():
    """In one dimension (m1 - m2)^2 + (s1 - s2)^2; axes add up."""
    x = torch.tensor([[-1.0, 0], [1, 0], [0, -2], [0, 2]])  # mean 0, variances 2/3 and 8/3
    y = x * torch.tensor([3.0, 0.5]) + torch.tensor([1.0, -2])
    s1, s2 = math.sqrt(2 / 3), math.sqrt(8 / 3)
    wanted = 1 + 4 + (s1 - 3 * s1) ** 2 + (s2 - 0.5 * s2) ** 2
    assert frechet_distance(statistics(x), statistics(y)) == pytest.approx(wanted, rel=1e-6)
    assert frechet_distance(statistics(x), statistics(x)) == pytest.approx(0, abs=1e-9)


def test_frechet_agrees_with_numpy():
    x, y = features(300, 12, 0), features(200, 12, 1, 1.5, 0.3)
    ours = frechet_distance(statistics(x), statistics(y))
    assert ours == pytest.approx(numpy_frechet(x, y), rel=1e-6)
    assert ours == pytest.approx(frechet_distance(statistics(y), statistics(x)), rel=1e-9)


@pytest.mark.filterwarnings("ignore:The Frechet distance of")
@pytest.mark.parametrize("count", [300, 20])  # 20: singular covariances
def test_frechet_agrees_with_scipy(count):
    linalg = pytest.importorskip("scipy.linalg")
    x, y = features(count, 32, 2), features(count, 32, 3, 0.7, 0.2)
    s1, s2 = (np.cov(v.double().numpy(), rowvar=False) for v in (x, y))
    cross = np.trace(linalg.sqrtm(s1 @ s2).real)
    wanted = ((x.double().mean(0) - y.double().mean(0)) ** 2).sum().item() + np.trace(s1) + np.trace(s2) - 2 * cross
    assert frechet_distance(statistics(x), statistics(y)) == pytest.approx(wanted, rel=1e-3)


class Twice(torch.nn.Module):
    """Pictures (B, 3, 4, 4) of bytes -> 8 features, for torchmetrics."""

    num_features = 8

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(48, 8, generator=torch.Generator().manual_seed(0)) / 100)

    def forward(self, x):
        return x.to(self.weight.dtype).flatten(1) @ self.weight


def test_agreement_with_torchmetrics():
    frechet = pytest.importorskip("torchmetrics.image.fid").FrechetInceptionDistance
    inception = pytest.importorskip("torchmetrics.image.inception").InceptionScore
    kernel = pytest.importorskip("torchmetrics.image.kid").KernelInceptionDistance
    network = Twice().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    true = torch.randint(0, 256, (100, 3, 4, 4), dtype=torch.uint8, generator=generator)
    made = torch.randint(0, 180, (80, 3, 4, 4), dtype=torch.uint8, generator=generator)
    fid = frechet(feature=network, input_img_size=(3, 4, 4)).set_dtype(torch.float64)
    fid.update(true, real=True)
    fid.update(made, real=False)
    ours = frechet_distance(statistics(network(true)), statistics(network(made)))
    assert ours == pytest.approx(fid.compute().item(), rel=1e-3)
    kid = kernel(feature=network, subsets=1, subset_size=80).set_dtype(torch.float64)
    kid.update(true[:80], real=True)  # its subsets are equally large
    kid.update(made, real=False)
    ours = kernel_distance(samples(network(true[:80])), samples(network(made)))
    assert ours == pytest.approx(kid.compute()[0].item(), rel=1e-3)
    score = inception(feature=network, splits=1)
    score.update(made)
    ours = InceptionScore()
    for part in made.split(33):
        ours.update(network(part))
    assert ours.compute()[0] == pytest.approx(score.compute()[0].item(), rel=1e-3)


def test_merging_parts_is_the_whole():
    x = features(50, 5, 4)
    whole, parts = statistics(x), statistics(x[:20]).merge(statistics(x[20:], 7))
    assert parts.count == whole.count == 50
    assert_close(parts.mean, x.double().mean(0), 1e-10)
    assert_close(parts.covariance, torch.cov(x.double().T), 1e-10)
    # A large common offset costs no digits that matter: the sums are float64.
    assert_close(statistics(x + 1000).covariance, torch.cov((x + 1000).double().T), 1e-6)


def test_the_kernel_distance_of_few_pictures():
    """Unbiased: of one distribution about 0, where the Frechet distance is far from it. The first 1,000 pictures count."""
    parts = features(800, 30, 1).split(20)
    near = [kernel_distance(samples(x), samples(y)) for x, y in zip(parts[::2], parts[1::2])]
    far = kernel_distance(samples(parts[0]), samples(parts[1] + 2))
    assert abs(sum(near) / len(near)) < 0.1 * far
    x = features(1200, 4, 3)
    some = samples(x[:700])
    some.update(x[700:], torch.arange(700, 1200))
    assert torch.equal(some.features, x[:1000].double())
    with pytest.raises(ValueError, match="4 and 5 dimensions"):
        kernel_distance(samples(features(9, 4, 1)), samples(features(9, 5, 1)))
    with pytest.raises(ValueError, match="two samples or more, got 1"):
        kernel_distance(samples(features(1, 4, 1)), samples(features(9, 4, 1)))


def test_few_samples_are_warned_of():
    x, y = features(9, 10, 5), features(30, 10, 6)
    with pytest.warns(UserWarning, match="9 samples in 10 dimensions"):
        frechet_distance(statistics(x), statistics(y))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(statistics(y), statistics(features(10, 10, 7)))
    with pytest.raises(ValueError, match="10 and 5 dimensions"):
        frechet_distance(statistics(y), statistics(features(9, 5, 8)))
    with pytest.raises(ValueError, match="two samples"):
        frechet_distance(statistics(y[:1]), statistics(y))


def test_inception_score_by_hand():
    """Sure and balanced over k classes: k. All alike: 1. And a mixed case from the definition."""
    score = InceptionScore()
    score.update(torch.eye(4) * 1000)
    assert score.compute() == (pytest.approx(4), 0.0)
    flat = InceptionScore()
    flat.update(torch.zeros(3, 4))
    assert flat.compute()[0] == pytest.approx(1)
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]).double()
    marginal = p.mean(0)
    wanted = math.exp(sum(float((row * (row / marginal).log()).sum()) for row in p) / 2)
    mixed = InceptionScore()
    mixed.update(p.log())
    assert mixed.compute()[0] == pytest.approx(wanted)


def test_inception_score_in_parts():
    logits = features(12, 5, 9)
    score, alone = InceptionScore(splits=3), []
    score.update(logits[:7], torch.arange(7))
    other = InceptionScore(splits=3)
    other.update(logits[7:], torch.arange(7, 12))  # another process's share
    score.merge(other)
    for part in range(3):
        one = InceptionScore()
        one.update(logits[part::3])
        alone.append(one.compute()[0])
    assert score.compute() == (pytest.approx(np.mean(alone)), pytest.approx(np.std(alone, ddof=1)))
    with pytest.raises(ValueError, match="2 samples do not fill 3 parts"):
        few = InceptionScore(splits=3)
        few.update(logits[:2])
        few.compute()


def test_similarity_and_accuracy_by_hand():
    similarity = CosineSimilarity()
    similarity.update(torch.tensor([[1.0, 0], [0, 2]]), torch.tensor([[5.0, 0], [3, 0]]))
    similarity.update(torch.tensor([[1.0, 1]]), torch.tensor([[-2.0, -2]]))
    assert similarity.compute() == pytest.approx((1 + 0 - 1) / 3) and similarity.count == 3
    accuracy = Accuracy()
    accuracy.update(torch.tensor([[1.0, 2], [3, 0], [0, 1]]), torch.tensor([1, 1, 1]))
    assert accuracy.compute() == pytest.approx(2 / 3)


def test_modules_of_evaluate(tmp_path, monkeypatch):
    """`evaluate.load` of a folder, offline, gives what the metrics themselves give."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path))
    evaluate = pytest.importorskip("evaluate")
    folder = Path(hf_i2i_unlearn.__file__).parent / "evaluation" / "evaluate_modules"
    x, y = features(30, 6, 10), features(30, 6, 11, 1.3)
    load = {"cache_dir": str(tmp_path / "cache"), "experiment_id": "test"}
    fid = evaluate.load(str(folder / "fid"), **load).compute(predictions=y.tolist(), references=x.tolist())
    assert fid["fid"] == pytest.approx(numpy_frechet(x, y), rel=1e-5)
    kid = evaluate.load(str(folder / "kid"), **load).compute(predictions=y.tolist(), references=x.tolist())
    assert kid["kid"] == pytest.approx(kernel_distance(samples(x), samples(y)), rel=1e-5)
    score = evaluate.load(str(folder / "inception_score"), **load)
    wanted = InceptionScore(3)
    wanted.update(x)
    assert score.compute(predictions=x.tolist(), splits=3)["inception_score"] == pytest.approx(wanted.compute()[0], rel=1e-5)
    similarity = evaluate.load(str(folder / "clip_similarity"), **load)
    found = similarity.compute(predictions=x.tolist(), references=y.tolist())["clip_similarity"]
    assert found == pytest.approx(torch.nn.functional.cosine_similarity(x, y).mean().item(), rel=1e-5)
