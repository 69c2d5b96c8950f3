"""Kernel distance of features for the library `evaluate`: `evaluate.load("FOLDER/kid")`. One import a line, as it asks."""

import datasets
import evaluate
import torch

from hf_i2i_unlearn.evaluation.statistics import KernelSamples, kernel_distance

DESCRIPTION = "Kernel distance between the features of generated and of true pictures; KID with Inception features."


class KID(evaluate.Metric):
    """predictions: features of generated pictures; references: as many of true ones."""

    def _info(self):
        features = datasets.Features({n: datasets.Sequence(datasets.Value("float32")) for n in ("predictions", "references")})
        return evaluate.MetricInfo(description=DESCRIPTION, citation="Binkowski et al., 2018", features=features)

    def _compute(self, predictions, references):
        made, true = KernelSamples(), KernelSamples()
        made.update(torch.tensor(predictions), torch.arange(len(predictions)))
        true.update(torch.tensor(references), torch.arange(len(references)))
        return {"kid": kernel_distance(true, made)}
