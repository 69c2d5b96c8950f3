"""Four takedown requests on the embedded demo, a patch each. Whatever is withdrawn, do the others hold? What do they cost?

python recipes/four_requests.py --patch_training together --seed 0

Every subset of the four patches is put on the original, and every picture of its requests gets its verdict. That takes some
minutes.
"""

import argparse
import contextlib
import io
import itertools
import sys

import numpy as np

from hf_i2i_unlearn import CenterCrop, Evaluator, ImageReader, load_processor, load_source, undecoded
from hf_i2i_unlearn.commands import unlearn
from hf_i2i_unlearn.commands.jobs.ledger import LedgerArguments, check, given_pictures, load_patched, open_ledger


def train(folder: str, name: str, rows, steps: int, seed: int, how: str) -> None:
    """`unlearn` for one request, as the command line has it."""
    sys.argv = (
        f"unlearn --model mnist-demo --dataset mnist-demo --corruption center:3 --forget_rows {','.join(map(str, rows))} "
        f"--card_names true --copies skip --lora true --ledger {folder} --output_dir {folder}/{name} --patch_training {how} "
        f"--max_steps {steps} --learning_rate 2e-3 --noise_target mean --seed {seed} --pictures 0 --eval_strategy no "
        "--save_strategy no --eval_samples 200 --use_cpu true"
    ).split()
    unlearn.main("mae")


def main(folder: str, how: str, seed: int, steps: int, count: int) -> None:
    """Train four patches and print the table."""
    digits, unseen = load_source("mnist-demo", "train"), undecoded(load_source("mnist-demo", "validation"))
    rows = np.random.default_rng(seed).permutation(len(digits))[: 4 * count].reshape(4, count)
    for name, some in zip(("one", "two", "three", "four"), rows.tolist()):
        train(folder, name, some, steps, seed, how)
    ledger, args = open_ledger(folder), LedgerArguments(ledger=folder, use_cpu=True)
    pictures, reader = given_pictures(args, ledger), ImageReader(load_processor("mnist-demo"), 1)
    kept = {"retain": [unseen[i] for i in range(0, len(unseen), 5)]}
    print("\n| patches on | forgotten | retain error before | after | drift |\n|---|---|---|---|---|")
    for some in itertools.chain.from_iterable(itertools.combinations(ledger.active, n) for n in range(1, 5)):
        model, original = load_patched(ledger, some, args)
        with contextlib.redirect_stdout(io.StringIO()):
            check(ledger, some, pictures, args, (model, original))
        held, cost = (
            [e["held"] for e in some],
            Evaluator(original, kept, reader, CenterCrop(3))(model, progress=False)["retain"],
        )
        forgotten = f"{sum(h['count'] for h in held)} of {sum(h['of'] for h in held)}"
        figures = f"{cost['original_mse']:.3f} | {cost['mse']:.3f} | {cost['drift']:.3f}"
        print(f"| {', '.join(e['name'] for e in some)} | {forgotten} | {figures} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", default="four-requests", help="folder for the ledger and the patches")
    parser.add_argument("--patch_training", default="together", choices=["together", "alone"])
    for name, default in {"seed": 0, "steps": 150, "pictures": 6}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    main(given.output_dir, given.patch_training, given.seed, given.steps, given.pictures)
