"""The card of a checkpoint into which the patches of a ledger were merged."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..markdown import table
from ..places import portable
from ..storage import write_aside
from .model_card import TAGS
from .run_folder import CARD

TEXT = """
# {name}

{original}, which can no longer complete the pictures of {count}. The patches of a ledger are merged into its weights; from here
none can be withdrawn. Each was checked in the merged model, picture by picture.

{table}

A request is named by the SHA-256 of its pictures' hashes. Whoever has the pictures can compute it; nobody finds them from it.
**This is suppression, not erasure**: further training may bring the pictures back.
"""


def write_merged_card(folder, original: str, requests: list[dict]) -> None:
    """Write `README.md`. original: the checkpoint below. requests: {"request", "held"} of each, as a ledger says."""
    folder = Path(folder)
    rows = [[r["request"], f"{r['held']['count']} of {r['held']['of']}"] for r in requests]
    told = table(["request", "can no longer be completed"], rows)
    count = "one request" if len(requests) == 1 else f"{len(requests)} requests"
    text = TEXT.format(name=folder.resolve().name, original=portable(original, folder), count=count, table=told)
    data = ModelCardData(tags=list(TAGS), pipeline_tag="image-to-image")
    write_aside(folder / CARD, ModelCard(f"---\n{data.to_yaml()}\n---\n{text}").save)
