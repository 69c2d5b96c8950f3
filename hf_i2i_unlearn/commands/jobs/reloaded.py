"""What a run has written, loaded by its plain library alone: `python -m hf_i2i_unlearn.commands.jobs.reloaded RESULT MERGED`.

A patch is loaded onto its original by peft, and merged into a folder that is then loaded again. Prints one line.
"""

import json
import sys
from pathlib import Path


def plain(folder: Path) -> str:
    """Load a checkpoint by transformers or diffusers; the class that it gave."""
    if (folder / "model_index.json").exists():
        from diffusers import DiffusionPipeline

        return type(DiffusionPipeline.from_pretrained(folder)).__name__
    config = json.loads((folder / "config.json").read_text())
    if "_class_name" in config:
        import diffusers

        return type(getattr(diffusers, config["_class_name"]).from_pretrained(folder)).__name__
    from transformers import AutoModel, AutoModelForPreTraining

    kind = AutoModel if "auto_map" in config else AutoModelForPreTraining
    return type(kind.from_pretrained(folder, trust_remote_code="auto_map" in config)).__name__


def main(folder: Path, merged: Path) -> str:
    """What was loaded, in a few words."""
    if not (folder / "adapter_config.json").exists():
        return plain(folder)
    from ...models.auto import load_model
    from ...models.patches import merge

    model = load_model(str(folder))
    merge(model)
    model.save_pretrained(merged)
    del model
    return f"patch, merged: {plain(merged)}"


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2])))
