"""Which masks, taking turns, make single pictures forgotten under masks that were never trained with?

    python recipes/benchmarks/takedown_masks.py --model model_cards/photos-mae --dataset photos/ --forget_list request.txt \\
        --mixtures center:4 random:0.5,random:0.75 center:4,random:0.5,random:0.75

Each mixture is trained with for as many steps. Then every forget picture is judged under masks that no mixture has, so that all
are compared on the same ones: `of all` counts the verdicts that honour the request, over pictures and masks. Seconds are those
of the processor, looking aside. The retain error is in units of the original's, over pictures of the evaluation split.
"""

import time
from dataclasses import dataclass, field

from transformers import TrainerCallback

from hf_i2i_unlearn import ForgetRetainPairs, ImageReader, UnlearningConfig, UnlearningTrainer, load_model, load_processor
from hf_i2i_unlearn.audit.picture_verdicts import HONOURED, Judge, Standing
from hf_i2i_unlearn.commands.cli import parse, run
from hf_i2i_unlearn.commands.words import parse_corruption
from hf_i2i_unlearn.data.options import SplitArguments
from hf_i2i_unlearn.data.splits import build_splits

NEVER = ("center:6", "random:0.25", "random:0.9", "outpaint:2", "outpaint:6", "block:3", "block:5")


@dataclass
class Arguments(SplitArguments):
    """Compare mixtures of masks on one takedown."""

    model: str = field(default="model_cards/photos-mae", metadata={"help": "The original."})
    mixtures: list[str] = field(default_factory=lambda: ["center:4"], metadata={"help": "Masks, parted by commas; several."})
    never: list[str] = field(default_factory=lambda: list(NEVER), metadata={"help": "Masks to judge under."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Of all."})
    alpha: float = field(default=0.25, metadata={"help": "Of all."})
    steps: int = field(default=300, metadata={"help": "Of each."})
    every: int = field(default=150, metadata={"help": "Steps between two looks."})


class Looks(TrainerCallback):
    """Prints a row of the table at every look."""

    def __init__(self, every, row):
        self.every, self.row, self.aside, self.start = every, row, 0.0, time.process_time()

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every == 0:
            seconds = time.process_time() - self.start - self.aside
            begun = time.process_time()
            print(self.row(state.global_step, seconds), flush=True)
            self.aside += time.process_time() - begun


def main() -> None:
    (args,) = parse((Arguments,), __doc__)
    splits, processor, original = build_splits(args), load_processor(args.model), load_model(args.model).eval()
    reader, never = ImageReader(processor, original.channels), list(map(parse_corruption, args.never))
    unseen = splits.eval_retain
    print("| masks that take turns | steps | seconds | trained | never trained | retain |\n|---|---|---|---|---|---|")
    for words in args.mixtures:
        trained = list(map(parse_corruption, words.split(",")))
        model = load_model(args.model)
        options = {"use_cpu": True, "save_strategy": "no", "eval_strategy": "no", "disable_tqdm": True, "logging_steps": 10**6}
        options |= {"max_steps": args.steps, "learning_rate": args.learning_rate, "alpha": args.alpha, "noise_target": "mean"}
        config = UnlearningConfig("takedown-masks", **options)
        pairs = ForgetRetainPairs(splits.forget, splits.retain, 0)
        trainer = UnlearningTrainer(model, config, pairs, processor, parse_corruption(words, several=True))
        standing = Standing(Judge(original, reader, trained, [], progress=False), splits.eval_forget, unseen, unseen[:64])
        judge = Judge(original, reader, never, [], progress=False)

        def row(step, seconds, words=words, standing=standing, judge=judge, model=model):
            done, of, risen = standing(model)
            cells = [c["grade"] for p in judge(model, splits.eval_forget, unseen)["pictures"] for c in p["masks"].values()]
            good = sum(grade in HONOURED for grade in cells)
            return f"| `{words}` | {step} | {seconds:.0f} | {done} of {of} | {good} of {len(cells)} | x{risen:.3f} |"

        trainer.add_callback(Looks(args.every, row))
        trainer.train()


if __name__ == "__main__":
    run(main)
