"""What a run's folder remembers of it: objects become the plain facts that `reporting.facts` lists."""

import json
from importlib.metadata import version
from pathlib import Path

from ...methods.distances import Distance
from ...methods.method import Method
from ...models.auto import DEMOS
from ...models.base import I2IModel
from ...training.config import UnlearningConfig

PACKAGES = ("torch", "transformers", "diffusers", "peft", "datasets", "accelerate")


def model_facts(
    model: I2IModel,
    base_model: str,
    name: str,
    patch: str | None = None,
    below: list[str] | None = None,
    encoder_alone: bool = True,
) -> dict:
    """Where a checkpoint came from, what it is and how it is loaded.

    Args:
        model: unlearned, as it is saved. base_model: Hub id, demo or folder of the original.
        name: under which it will be loaded.
        patch: what `add_patch` returned, None for a run without. below: the patches under it.
        encoder_alone: whether the method trains nothing else.
    """
    return {
        "base_model": base_model,
        "base_model_on_hub": not Path(base_model).exists(),
        "library": "peft" if model.patch else _library(model),
        "relation": "adapter" if model.patch else "finetune",
        "usage": _usage(model, base_model, name),
        "decoder_untouched": bool(patch) or (encoder_alone and model.decoder_untouched),
        "patch": patch,
        "below": below or [],
    }


def picture_facts(description: dict) -> dict:
    """What `Splits` says of the pictures: {"dataset", "forget", "forget_size", ...}."""
    return description | {"dataset_on_hub": not Path(description["dataset"]).exists()}


def training_facts(args: UnlearningConfig, method: Method, distance: Distance, variant: str = "paper") -> dict:
    """What was trained, and how."""
    bank = f" (a bank of {args.noise_bank} draws)" if args.noise_bank else ""
    return {
        "method": {
            "name": method.name,
            "source": method.source,
            "summary": method.summary,
            "options": f"variant: {variant}, noise target: {args.noise_target}{bank}",
        },
        "alpha": args.alpha,
        "distance": distance.name if method.space == "encoder" else "the model's own training loss",
        "batch": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "learning_rate": args.learning_rate,
        "seed": args.seed,
        "kept": "best" if args.load_best_model_at_end else "last",
        "versions": {package: version(package) for package in PACKAGES},
    }


def _library(model) -> str:
    inner = type(model.model)
    remote = getattr(inner, "_auto_class", None)  # its code travels with the weights
    return "transformers" if remote else inner.__module__.split(".")[0]


def _usage(model, base_model: str, name: str) -> str:
    """Python that loads the checkpoint, or the original with all patches."""
    inner = type(model.model)
    remote = getattr(inner, "_auto_class", None)
    kind, library = remote or inner.__name__, _library(model)
    more = ", trust_remote_code=True" if remote else ', subfolder="unet"' if getattr(model, "pipeline", None) else ""
    if not model.patch:
        return f'from {library} import {kind}\n\nmodel = {kind}.from_pretrained("{name}"{more})'
    lines, base = ["from peft import PeftModel", f"from {library} import {kind}", ""], f'"{base_model}"'
    if base_model in DEMOS:
        base = f"DEMOS[{base}]"
        lines.insert(0, "from hf_i2i_unlearn.loading import DEMOS  # this original comes with the package")
    lines += [f"original = {kind}.from_pretrained({base}{more})"]
    if not (model.patch.below and model.patch.brings_others):
        return "\n".join([*lines, f'model = PeftModel.from_pretrained(original, "{name}")'])
    first, *others = names = [f"patch{i}" for i in range(len(model.patch.below) + 1)]
    paths = [*model.patch.below, name]
    lines += [f'model = PeftModel.from_pretrained(original, "{paths[0]}", adapter_name="{first}")']
    lines += [f'model.load_adapter("{path}", "{other}")' for path, other in zip(paths[1:], others)]
    return "\n".join([*lines, f"model.base_model.set_adapter({json.dumps(names)})  # leave one out to switch it off"])
