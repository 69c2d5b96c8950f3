"""What feature networks make of completed pictures: sums, and the scores that they give."""

import warnings

import torch

from .features import FeatureNetwork, crop_to_hole
from .statistics import (
    Accuracy,
    CosineSimilarity,
    GaussianStatistics,
    InceptionScore,
    KernelSamples,
    frechet_distance,
    kernel_distance,
)

# What is measured with a feature network, by completions of the model, of the original, and by a hole of one colour ("blank").
SCORES = {
    "fid": "Frechet distance of the features of completed and true pictures; FID (Heusel et al., 2017) with Inception features",
    "kid": "squared maximum mean discrepancy of those features; KID (Binkowski et al., 2018) with Inception features",
    "inception_score": "exp of the mean KL divergence of p(class | picture) from p(class) (Salimans et al., 2016)",
    "similarity": "mean cosine similarity of the features of a completed picture and of the true one (App. C.2, with CLIP's)",
    "accuracy": "share of completed pictures which the network gives the class that it gives the true, whole picture",
}


class Scores:
    """What one network makes of one region of a set's pictures: sums for the true ones and every kind of completed ones."""

    def __init__(self, network: FeatureNetwork, region: str, splits: int):
        self.network, self.region, self.splits = network, region, splits
        self.gauss, self.samples, self.inception, self.similarity, self.accuracy = {}, {}, {}, {}, {}

    def add(self, kind, features, logits, truth, places, labels):
        """One batch; kind is "true_", "", "original_" or "blank_". truth: the features of the true pictures."""
        self.gauss.setdefault(kind, GaussianStatistics()).update(features)
        self.samples.setdefault(kind, KernelSamples()).update(features, places)
        if kind != "true_":
            self.similarity.setdefault(kind, CosineSimilarity()).update(features, truth)
        if logits is not None:
            self.inception.setdefault(kind, InceptionScore(self.splits)).update(logits, places)
            self.accuracy.setdefault(kind, Accuracy()).update(logits, labels)

    def compute(self, accelerator=None) -> dict:
        if accelerator:
            for sums in (self.gauss, self.samples, self.inception, self.similarity, self.accuracy):
                for kind in sums:  # in the same order on every process
                    sums[kind].reduce(accelerator)
        true = self.gauss["true_"]
        result = self.network.describe() | {"region": self.region, "count": true.count, "dimensions": true.dimensions}
        result["few_samples"] = true.count < true.dimensions
        for kind in self.gauss:
            if kind != "true_":
                with warnings.catch_warnings():  # few_samples says it: no table shows such a distance
                    warnings.simplefilter("ignore")
                    result[kind + "fid"] = frechet_distance(true, self.gauss[kind])
                result[kind + "kid"] = kernel_distance(self.samples["true_"], self.samples[kind])
                result[kind + "similarity"] = self.similarity[kind].compute()
            if kind in self.inception:
                result[kind + "inception_score"], deviation = self.inception[kind].compute()
                if self.splits > 1:
                    result[kind + "inception_score_std"] = deviation
                result[kind + "accuracy"] = self.accuracy[kind].compute()
        return result


def look(images, hole, network, region):
    """What a network is shown of (B, C, H, W) pictures in [0, 1]: all, or the hole alone."""
    return images if region == "whole" else crop_to_hole(images, hole, network.size, network.fill(images.shape[1]))


def update_scores(scores, truth, true, pictures, hole, places, blank=True):
    """Add a batch to all scores, each picture seen once by each network.

    Args:
        scores: list of `Scores`. truth: (B, C, H, W) in [0, 1]. true: {(network, region): (features, logits)} of them.
        pictures: {kind: completed pictures}. hole: (B, 1, H, W). places: (B,) numbers of the pictures in the set.
        blank: measure the hole filled with the network's mean colour as well.
    """
    for score in scores:
        network, region = score.network, score.region
        labels = true[network, "whole"][1].argmax(1) if network.classifies else None
        true_features, true_logits = true[network, region]
        score.add("true_", true_features, true_logits, None, places, labels)
        kinds = dict(pictures)
        if blank:
            kinds["blank_"] = torch.where(hole, network.fill(truth.shape[1]).view(1, -1, 1, 1), truth)
        for kind, images in kinds.items():
            score.add(kind, *network(look(images, hole, network, region)), true_features, places, labels)


def shown_scores(few: bool) -> list[str]:
    """The names of the scores that a table shows. few: whether there are fewer pictures than dimensions.

    Of so few a Frechet distance says nothing, and the kernel distance takes its place. Of more, both say the same.
    """
    return [score for score in SCORES if score != ("fid" if few else "kid")]
