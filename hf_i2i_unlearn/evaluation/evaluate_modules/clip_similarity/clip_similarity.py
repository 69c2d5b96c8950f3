"""Cosine similarity of embeddings for the library `evaluate`: `evaluate.load("FOLDER/clip_similarity")`. One import a line."""

import datasets
import evaluate
import torch

from hf_i2i_unlearn.evaluation.statistics import CosineSimilarity

DESCRIPTION = (
    "Mean cosine similarity of the embeddings of generated pictures and of their true pictures, with CLIP's in the paper."
)


class CLIPSimilarity(evaluate.Metric):
    """predictions: embeddings of generated pictures; references: of the true ones, in the same order."""

    def _info(self):
        features = datasets.Features({n: datasets.Sequence(datasets.Value("float32")) for n in ("predictions", "references")})
        return evaluate.MetricInfo(description=DESCRIPTION, citation="Radford et al., 2021", features=features)

    def _compute(self, predictions, references):
        similarity = CosineSimilarity()
        similarity.update(torch.tensor(predictions), torch.tensor(references))
        return {"clip_similarity": similarity.compute()}
