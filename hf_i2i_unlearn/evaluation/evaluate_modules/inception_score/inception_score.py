"""Inception score for the library `evaluate`: `evaluate.load("FOLDER/inception_score")`. One import a line, as it asks."""

import datasets
import evaluate
import torch

from hf_i2i_unlearn.evaluation.statistics import InceptionScore as Score

DESCRIPTION = "exp of the mean KL divergence of p(class | picture) from p(class)."


class InceptionScore(evaluate.Metric):
    """predictions: logits of generated pictures."""

    def _info(self):
        features = datasets.Features({"predictions": datasets.Sequence(datasets.Value("float32"))})
        return evaluate.MetricInfo(description=DESCRIPTION, citation="Salimans et al., 2016", features=features)

    def _compute(self, predictions, splits=1):
        score = Score(splits)
        score.update(torch.tensor(predictions))
        mean, deviation = score.compute()
        return {"inception_score": mean, "inception_score_std": deviation}
