"""Machine unlearning of image-to-image generative models, after the ICLR 2024 paper of that name.

The public names, each loaded when it is asked for; everything else is an implementation detail.
"""

import importlib

__version__ = "0.2.0"

_PUBLIC = {
    "audit.run": ["audit_model"],
    "data.pairs": ["ForgetRetainPairs"],
    "data.reading": ["ImageReader", "load_processor"],
    "data.requests": ["by_classes", "by_list", "by_rows", "by_values", "select"],
    "data.sources": ["load_source", "undecoded"],
    "data.streams": ["ForgetRetainStream"],
    "errors": ["InputError", "RunError"],
    "evaluation.evaluator": ["Evaluator", "evaluate"],
    "evaluation.feature_loaders": ["load_features"],
    "evaluation.features": ["FeatureNetwork"],
    "evaluation.metrics": ["Metric"],
    "experiments.comparison": ["compare", "comparison_frontier", "comparison_table"],
    "methods.corruptions": [
        "CenterCrop", "Corruption", "Extend", "Outpaint", "RandomBlock", "RandomMask", "Turns",
    ],
    "methods.distances": ["DISTANCES", "Distance"],
    "methods.method": ["METHODS", "Method"],
    "methods.noise": ["Noise", "StandardNormal"],
    "methods.targets": ["EncodedTarget", "PictureTarget"],
    "models.auto": ["load_model"],
    "models.base": ["I2IModel"],
    "models.diffusion.modeling": ["I2IUNet"],
    "models.mae.modeling": ["I2IMAE"],
    "models.mage.hf": ["MageModel"],
    "models.mage.modeling": ["I2IMage"],
    "models.patches": ["add_patch", "load_patches", "merge"],
    "reporting.hub": ["push"],
    "training.config": ["UnlearningConfig"],
    "training.trainer": ["UnlearningTrainer"],
}  # fmt: skip
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value  # asked for once only
    return value


def __dir__():
    return [*__all__, "__version__"]
