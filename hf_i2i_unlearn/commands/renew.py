"""Renew a request: its patch is trained anew beside those of all other requests, and every request must hold.

    hf-i2i-unlearn renew --ledger patches --request one --max_steps 400

The options are those of the run that made the patch. Whatever stands on the command line beside those below is an option of
`unlearn`, and takes the place of the run's. The other patches are switched on and off at random in training, so that the new
one holds with any of them withdrawn. It goes to a new folder; the old one stays where it is, and the ledger names the new one.

Exit status 0: all requests hold. 3: one does not. 2: bad input.
"""

import argparse
import sys
from dataclasses import dataclass, field, fields

from .cli import parse
from .jobs.ledger import LedgerArguments


@dataclass
class Arguments(LedgerArguments):
    """What is trained anew."""

    request: str = field(default="", metadata={"help": "Its name in the ledger, or the first characters of its hash."})


def main() -> None:
    mine, more = parted(sys.argv[1:])
    (args,) = parse((Arguments,), __doc__, mine)

    from ..errors import NotForgotten
    from .jobs.ledger import check, given_pictures, open_ledger, train_again

    ledger = open_ledger(args.ledger, args.original)
    entry = ledger.find(args.request)
    pictures = given_pictures(args, ledger)
    train_again(args, ledger, entry, pictures[entry["name"]], more=more)
    ledger = open_ledger(args.ledger, args.original)
    print("\nWith all patches on:")
    broken = check(ledger, ledger.active, pictures, args)
    ledger.write()
    if broken:
        raise NotForgotten(
            f"{' and '.join(broken)} do not hold: fewer than {args.require_forgotten:g} of their pictures are forgotten. Renew "
            "them with more steps (--max_steps)."
        )


def parted(words: list[str]) -> tuple[list[str], list[str]]:
    """The words of this command's own options, and those of `unlearn`; what both have belongs to this one."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for option in fields(Arguments):
        own.add_argument(f"--{option.name}", nargs="*")
    _, more = own.parse_known_args(words)
    if {"-h", "--help", "--help_all"} & set(more):
        return words, []
    left, mine = list(more), []
    for word in words:  # in their order
        if left and word == left[0]:
            left.pop(0)
        else:
            mine.append(word)
    return mine, more
