"""Merge: one plain checkpoint of the original with the patches of all requests in it.

    hf-i2i-unlearn merge --ledger patches --output_dir merged

The patches are added to the weights, and the pictures of every request get their verdicts, as `verify` gives them, of the model
that is then written. It loads with its own library alone, and is served, trained and pushed like any other. From it no request
can be withdrawn: keep the patches. merged.json in it says which requests it serves, by hash.

Exit status 0: written, and every request holds. 3: one does not, and nothing is written. 2: bad input.
"""

from dataclasses import dataclass, field

from .cli import parse
from .jobs.ledger import LedgerArguments


@dataclass
class Arguments(LedgerArguments):
    """What is merged, and where to."""

    output_dir: str = field(default="merged", metadata={"help": "Folder for the checkpoint; must be new or empty."})


def main() -> None:
    (args,) = parse((Arguments,), __doc__)

    from pathlib import Path

    from ..data.reading import load_processor
    from ..errors import NotForgotten
    from ..models.patches import merge
    from ..reporting.merged_card import write_merged_card
    from ..reporting.run_folder import refuse_full_folder
    from ..storage import write_json
    from .jobs.ledger import check, given_pictures, load_patched, open_ledger

    refuse_full_folder(args.output_dir, False)
    ledger = open_ledger(args.ledger, args.original)
    pictures = given_pictures(args, ledger)
    model, _ = load_patched(ledger, ledger.active, args)
    original, _ = load_patched(ledger, [], args)
    merge(model)
    print("Merged into one checkpoint:")
    broken = check(ledger, ledger.active, pictures, args, (model, original))
    ledger.write()
    if broken:
        raise NotForgotten(
            f"{' and '.join(broken)} do not hold in the merged model, so it was not written. Renew them first, with more "
            "steps: hf-i2i-unlearn renew."
        )
    folder = Path(args.output_dir)
    model.save_pretrained(folder)
    load_processor(ledger.patch(ledger.active[0])).save_pretrained(folder)
    told = [{name: entry.get(name) for name in ("name", "request", "case", "weights", "held")} for entry in ledger.active]
    write_json(folder / "merged.json", {"original": ledger.original, "requests": told})
    write_merged_card(folder, str(ledger.original), told)
    print(f"\nIn {folder}: the checkpoint, its processor, its card (README.md), and merged.json.")
