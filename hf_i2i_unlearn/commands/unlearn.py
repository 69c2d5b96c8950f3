"""`unlearn`: the family is that of the checkpoint, and its options are those of `families`."""

import argparse
import sys

import yaml

from .cli import find_config, given_options, parse
from .families import FAMILIES


def main(family: str | None = None) -> None:
    """Parse and run. `family` is a word of `FAMILIES`; None takes that of the original that the command line names."""
    family = family or asked_family()
    options = FAMILIES[family]
    args, training = parse((options.arguments, options.training), options.arguments.__doc__ or "", demo=options.demo)

    from .jobs.run import Run, prepare_run, unlearn

    planned = args.plan != "false"
    training.push_to_hub = training.push_to_hub and not planned
    path = prepare_run(args, training)
    model, processor = options.load(args, path)
    run = Run.prepare(args, training, model, processor, path, given=given_options(demo=options.demo))
    if planned:
        from .jobs.plan import report

        report(run, args.plan)
    else:
        unlearn(run, f"recipes/unlearn_{family}.py")


def asked_family() -> str:
    """The family of --model, or of the model in the file of --config; without either that of the demo.

    Its configuration is read, and no weights.

    Raises:
        InputError: nothing there, or a model of no known family.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--model", "--subfolder", "--config"):
        early.add_argument(name)
    given, _ = early.parse_known_args(sys.argv[1:])
    options = {name: value for name, value in vars(given).items() if value is not None}
    if given.config and find_config(given.config).is_file():
        try:
            options = (yaml.safe_load(find_config(given.config).read_text()) or {}) | options
        except yaml.YAMLError:
            pass  # `parse` says what is wrong with it
    if "model" not in options:
        return "mae"

    from ..models.auto import family_of

    return family_of(options["model"], options.get("subfolder")).family
