"""Frechet distance of features for the library `evaluate`: `evaluate.load("FOLDER/fid")`. One import a line, as it asks."""

import datasets
import evaluate
import torch

from hf_i2i_unlearn.evaluation.statistics import GaussianStatistics, frechet_distance

DESCRIPTION = "Frechet distance between the features of generated and of true pictures; FID with Inception features."


class FID(evaluate.Metric):
    """predictions: features of generated pictures; references: as many of true ones."""

    def _info(self):
        features = datasets.Features({n: datasets.Sequence(datasets.Value("float32")) for n in ("predictions", "references")})
        return evaluate.MetricInfo(description=DESCRIPTION, citation="Heusel et al., 2017", features=features)

    def _compute(self, predictions, references):
        made, true = GaussianStatistics(), GaussianStatistics()
        made.update(torch.tensor(predictions))
        true.update(torch.tensor(references))
        return {"fid": frechet_distance(true, made)}
