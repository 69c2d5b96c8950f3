"""What a takedown does by itself: a request that names single pictures, without a word on how they are to be forgotten.

The paper's defaults are for whole classes: five passes over a dozen pictures are five steps, which forget nothing, and what is
forgotten under one mask is completed under others. So where neither corruption nor steps are given, several masks that suit the
grid take turns, and training goes on until the verdicts hold, with a ceiling. What is given stays as it is given.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

from ...audit.picture_verdicts import Judge, Standing
from ...data.requests import counted
from ...data.sources import first_rows, load_accounted
from ...errors import InputError
from ...methods.corruptions import CenterCrop, Corruption, RandomMask
from ...models.base import I2IModel
from ...training.control import StopWhen
from ..words import find_distance, find_method
from .certificate import masks_of, twin_of, unseen_rows
from .measuring import duration, seconds_of

SPLITS = ("validation", "test")  # that are looked for, to compare with
HOLD_OUT = 0.2  # of the retain pictures where there is no such split
PASSES, FEWEST, MOST = 400, 1_200, 20_000  # the ceiling: so many passes over the forget set, between these numbers of steps
LOOKS = 40  # during training, at most
WATCHED = 64  # forget pictures, and as many retain pictures, that each of them is at
RETAIN = 1.05  # times the original's error on retain pictures that they may have
BROKEN = 8  # looks in a row at which they have more, after which training ends; the first steps often overshoot
LARGE = 86e6  # trained weights of ViT-Base, whose learning rate the paper's is


@dataclass
class Takedown:
    """The choices of one takedown.

    Attributes:
        own: the options that were chosen here; the others were given. ceiling: the most steps, 0 where they were given.
        ended: why training has ended, for people.
    """

    own: set[str] = field(default_factory=set)
    ceiling: int = 0
    ended: str = ""

    @classmethod
    def of(cls, args, training, given: set[str], model: I2IModel) -> "Takedown | None":
        """The takedown that the options are; None for another request, or where both corruption and steps are given.

        Args:
            args, training: the options, in which what is chosen here is set. given: names of the options that were given.
            model: the original model.
        """
        single = args.forget_rows or (args.forget_list and not args.forget_column)
        has_steps, has_masks = bool(given & {"max_steps", "num_train_epochs"}), "corruption" in given
        if not single or (has_steps and has_masks):
            return None
        made = cls()
        if "eval_split" not in given:
            args.eval_split = _split_of(args)
            if args.eval_split == "none" and "hold_out" not in given:
                args.hold_out = HOLD_OUT
            made.own.add("eval_split")
        if not has_masks:
            args.corruption = ",".join(map(str, masks_for(model.grid)))
            made.own.add("corruption")
        if not has_steps and not args.streaming:
            made.own.add("max_steps")
            _choose_training(args, training, given, model)
        return made

    def fit(self, run) -> None:
        """Set the most steps of a `Run`, by its forget pictures."""
        if "max_steps" in self.own:
            training, count = run.training, len(run.splits.forget)
            size = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
            self.ceiling = training.max_steps = min(MOST, max(FEWEST, PASSES * math.ceil(count / size)))

    def start(self, run, trainer) -> None:
        """Say what will be done, and watch the verdicts while it is."""
        is_main = trainer.is_world_process_zero()
        if is_main:
            print("\n".join(self.lines(run, seconds_of(trainer))))
        if not self.ceiling:
            return
        args, training, masks, rows = run.args, run.training, masks_of(run.corruption), run.rows
        unseen, *_ = unseen_rows(args, rows, True)
        forget, retain = _some(first_rows(run.splits.forget, args.eval_samples), WATCHED), _some(rows["retain"], WATCHED)
        size, progress = training.per_device_eval_batch_size, not training.disable_tqdm
        judge = Judge(run.original, run.reader.plain, masks, [], size, training.seed, progress, twin_of(run))
        standing = Standing(judge, forget, unseen, retain)

        broken = 0

        def reached(step: int) -> bool:
            nonlocal broken
            with trainer.averaged():  # a run that keeps an average ends with it
                done, of, risen = standing(trainer.whole_model())
            broken = broken + 1 if risen > RETAIN else 0
            if is_main:
                print(f"Step {step}: {done} of {of} can no longer be completed; retain error x{risen:.3f}.", flush=True)
            if broken == BROKEN:
                self.ended = f"retain pictures have kept {risen:.3f} times the original's error, and {RETAIN} is the bound"
            elif done == of and not broken:
                self.ended = f"{counted(of, 'picture')} of {of} could no longer be completed"
            return bool(self.ended)

        trainer.add_callback(StopWhen(reached, self.every(run, len(masks) * (len(forget) + len(retain)))))

    def every(self, run, completions: int) -> int:
        """Steps between looks at so many completions: a sixth of the time at most, more often for a model that is quick."""
        passes = completions * getattr(run.model, "steps", 1)
        steps = passes / (4 * run.training.per_device_train_batch_size)  # of training, that cost as much
        return max(math.ceil(self.ceiling / LOOKS), min(round(5 * steps), self.ceiling // 4))

    def lines(self, run, seconds: float | None) -> list[str]:
        """What will be forgotten, what retained, how hidden, and about how long: a line each."""
        args, said, grid, most = run.args, run.splits.description, run.model.grid, run.training.max_steps
        masks, count = masks_of(run.corruption), len(run.rows["retain"])
        compared = f"{count} pictures of the split '{args.eval_split}'"
        if args.eval_split == "none":
            held = "held out of training" if args.hold_out else "trained on"
            compared = f"{count} retain pictures, which are {held}, for there is no evaluation split"
        ways = str(masks[0]) if len(masks) == 1 else f"{len(masks)} masks take turns, {', '.join(map(str, masks))}"
        steps = f"{most:,} steps" if most > 0 else f"{run.training.num_train_epochs:g} passes over them"
        if self.ceiling:
            steps = f"until none can be completed, or retain error rises by {RETAIN - 1:.0%}; at most {steps}"
        longest = f", about {duration(most * seconds)}" if seconds and most > 0 else ""
        return [
            f"Forgotten: {said['forget_size']} pictures, by {said['forget'].split(',')[0]}.",
            f"Retained: {said['retain']}, {said['retain_size']} pictures. Compared with {compared}.",
            f"Hidden: {ways}, on a grid of {grid[0]}x{grid[1]} patches.",
            f"How long: {steps}{longest}. Then the verdicts.",
        ]


def masks_for(grid: tuple[int, int]) -> list[Corruption]:
    """The masks that take turns on a grid of patches.

    Random ones make it forget under masks that were never trained with (`recipes/benchmarks/takedown_masks.py`).
    """
    rows, cols = grid
    found = [CenterCrop(max(1, min(grid) // 2)), RandomMask(0.5), RandomMask(0.75)]
    return [mask for mask in found if 0 < mask.hidden(grid) < rows * cols]


def rate_for(rate: float, weights: int, family: str = "mae") -> float:
    """The learning rate for an encoder of so many weights: the paper's for its own size, more for smaller ones.

    The demos say how much more: of 1M weights, ten times as much for MAE and MAGE, a hundred times and more for U-Nets.
    """
    smaller = max(1.0, LARGE / weights)
    return float(f"{rate * (smaller if family == 'diffusion' else math.sqrt(smaller)):.1g}")


def _choose_training(args, training, given, model) -> None:
    """How to train until the verdicts hold."""
    method, distance = find_method(args.method, args.variant), find_distance(args.distance)
    if "noise_target" not in given and not training.noise_bank and args.noise != "batch":
        if model.noise_target_is_shared and method.shared_target and distance.squared:
            training.noise_target = "mean"  # the same in expectation, with less variance
    if "learning_rate" not in given:
        weights = {id(p): p.numel() for module in model.encoder_modules() for p in module.parameters()}
        training.learning_rate = rate_for(training.learning_rate, sum(weights.values()), model.family)
    if "eval_strategy" not in given:
        training.eval_strategy = type(training.eval_strategy)("no")  # the verdicts are looked at instead


def _split_of(args) -> str:
    """The evaluation split that is there, "none" without one."""
    one = any(c in args.dataset for c in "*?") and "{split}" not in args.dataset or Path(args.dataset).is_file()
    for name in () if one else SPLITS:
        try:
            for source, config in ((args.dataset, args.dataset_config), (args.retain_dataset, None)):
                if source:
                    load_accounted(source, name, config, args.streaming)
            return name
        except InputError:
            continue
    return "none"


def _some(rows: list, count: int) -> list:
    """So many of the rows, evenly spread."""
    return rows[:: math.ceil(len(rows) / count)] if len(rows) > count else rows
