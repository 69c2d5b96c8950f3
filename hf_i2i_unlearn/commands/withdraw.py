"""Withdraw a request: its patch comes off, and every other request must still hold.

    hf-i2i-unlearn withdraw --ledger patches --request one

A ledger (requests.json, which `unlearn --lora true --ledger FOLDER` writes) says which patch serves which request. The patch of
the one that is named is left out, and the pictures of all the others get their verdicts anew, as `verify` gives them. Where a
request does not hold any longer, its patch is trained anew beside the remaining ones, with more steps at each attempt. The
pictures are those that the ledger names; where they have moved, or it names none, they are given per request.

Exit status 0: withdrawn, and all others hold. 3: they cannot be made to; the ledger is as it was. 2: bad input. The patch's
folder stays where it is.
"""

from dataclasses import dataclass, field

from .cli import parse
from .jobs.ledger import LedgerArguments


@dataclass
class Arguments(LedgerArguments):
    """What is withdrawn."""

    request: str = field(default="", metadata={"help": "Its name in the ledger, or the first characters of its hash."})
    renewals: int = field(
        default=2, metadata={"help": "How often a request that does not hold is trained anew; 0 only checks."}
    )


def main() -> None:
    (args,) = parse((Arguments,), __doc__)

    from ..errors import NotForgotten
    from ..models.ledger import now
    from ..reporting.run_folder import RunFolder
    from .jobs.ledger import check, given_pictures, open_ledger, train_again

    ledger = open_ledger(args.ledger, args.original)
    before = open_ledger(args.ledger, args.original)
    entry = ledger.find(args.request)
    pictures = given_pictures(args, ledger)
    entry["withdrawn"] = now()
    print(f"Without the patch of {entry['name']}:")
    broken = check(ledger, ledger.active, pictures, args)
    ledger.write()
    for attempt in range(1, args.renewals + 1):
        if not broken:
            break
        try:
            for name in broken:
                other = ledger.find(name)
                steps = RunFolder(ledger.patch(other)).record["steps"]
                print(f"\n{name} is trained anew, for {attempt * steps} steps.")
                train_again(args, ledger, other, pictures[name], attempt * steps)
                ledger = open_ledger(args.ledger, args.original)
        except BaseException:
            before.write()
            raise
        print("\nAfter that:")
        broken = check(ledger, ledger.active, pictures, args)
        ledger.write()
    if broken:
        before.write()
        raise NotForgotten(
            f"Without {entry['name']}, {' and '.join(broken)} cannot be made to hold; nothing was withdrawn, and the ledger is "
            "as it was. Renew them first, with more steps: hf-i2i-unlearn renew."
        )
    print(f"\nWithdrawn: {entry['name']}. Its patch was left in '{ledger.patch(entry)}'.")
