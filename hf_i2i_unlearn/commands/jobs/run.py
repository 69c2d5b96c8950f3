"""One unlearning run from options to a documented checkpoint: what all families share."""

from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from ...data.augmentation import AUGMENTATIONS
from ...data.pairs import ForgetRetainPairs
from ...data.reading import ImageReader, pixel_batches
from ...data.splits import Splits, build_splits, make_pairs
from ...data.streams import ForgetRetainStream
from ...errors import InputError
from ...evaluation.completions import completions
from ...evaluation.evaluator import Evaluator
from ...evaluation.metrics import Metric
from ...evaluation.tables import markdown_table
from ...methods.corruptions import Corruption
from ...methods.distances import Distance
from ...methods.method import Method
from ...methods.noise import Noise
from ...models.auto import DEMOS, split_patch
from ...models.base import I2IModel
from ...models.patches import AdaptersOff, add_patch, load_patches, merge, original_of
from ...reporting.hub import check_access
from ...reporting.model_card import inherited_license, write_card
from ...reporting.plots import completion_grid, to_show
from ...reporting.request import details, headline
from ...reporting.run_folder import PICTURE, REQUEST, RunFolder, refuse_full_folder
from ...training.config import UnlearningConfig, check_options
from ...training.trainer import UnlearningTrainer
from ..cli import command_line
from ..options import RunArguments
from ..words import find_distance, find_method, make_noise, parse_corruption
from .certificate import certify, require, write_record
from .console import LOG, speak, write_log
from .erasing import erasing
from .ledger import check_others, enter, others_of
from .record import model_facts, picture_facts, training_facts
from .takedown import Takedown


def prepare_run(args: RunArguments, training: UnlearningConfig) -> str:
    """Before any model is loaded: refuse what cannot work, seed everything, leave one progress bar.

    Where `args.model` is a patch, its original takes its place, and it and those below it go to the front of `args.patches`.

    Returns:
        Folder or Hub id of the original.

    Raises:
        InputError: a full output folder, a patch without an original, or no permission to push.
    """
    state = PartialState()
    with state.main_process_first():
        refuse_full_folder(training.output_dir, bool(training.resume_from_checkpoint))
    disable_progress_bar()
    original, patches = split_patch(args.model)
    if patches:
        args.model, args.patches = original, [*patches, *(args.patches or [])]
    if training.push_to_hub and state.is_main_process:
        training.hub_model_id = check_access(
            training.hub_model_id or Path(training.output_dir).resolve().name, training.hub_private_repo,
            training.hub_revision, training.hub_token,
        )  # fmt: skip
    set_seed(training.seed)
    return DEMOS.get(args.model, args.model)


@dataclass
class Run:
    """What a run is made of; made once, by `prepare`, and passed on.

    Attributes:
        args, training: the options. path: folder or Hub id of the original; base_model: its name in cards.
        model: the target model, with the patch that is to be trained, if there is one. original: the original model.
        patch: a line on that patch. below: folders or Hub ids of the patches that are on beside it.
        reader: reads the pictures, with the augmentation of training.
        method, distance: of the loss. corruption, eval_corruption: T in training and in evaluation. noise: n.
        splits: the four sets. pairs: the training pairs. rows: {"retain", "forget"}: the evaluation pictures, undecoded.
        metrics: that are measured besides. erasure: what was erased, for the record, see `erasing`.
        takedown: the choices of a takedown, which trains until its verdicts hold.
    """

    args: RunArguments
    training: UnlearningConfig
    path: str
    base_model: str
    model: I2IModel
    original: I2IModel
    patch: str | None
    below: list[str]
    processor: object
    reader: ImageReader
    method: Method
    distance: Distance
    corruption: Corruption
    eval_corruption: Corruption
    noise: Noise
    splits: Splits
    pairs: ForgetRetainPairs | ForgetRetainStream
    rows: dict[str, list]
    metrics: tuple[Metric, ...] = ()
    erasure: dict | None = None
    takedown: Takedown | None = None

    @classmethod
    def prepare(
        cls,
        args: RunArguments,
        training: UnlearningConfig,
        model: I2IModel,
        processor,
        path: str,
        metrics: tuple[Metric, ...] = (),
        given: set[str] | None = None,
    ) -> "Run":
        """Turn the words of the options into objects; patches are put on `model`.

        Args:
            model: the original model; it is trained in place. processor: its image processor. path: where both came from.
            metrics: that are measured besides.
            given: names of the options that were given; a takedown chooses among the others. None: all were.

        Raises:
            InputError: options that cannot work.
        """
        takedown = None if given is None else Takedown.of(args, training, given, model)
        method, distance = find_method(args.method, args.variant), find_distance(args.distance)
        check_options(training, method, distance)
        base_model = next((name for name, demo in DEMOS.items() if demo == path), args.model)
        corruption = parse_corruption(args.corruption, several=True)
        splits = build_splits(args)
        below = [*(args.patches or []), *others_of(args, splits)]
        patch = _put_patches(model, args, base_model, below)
        original = original_of(model)
        augment = AUGMENTATIONS[args.augment]
        reader = ImageReader(processor, model.channels, augment, args.on_corrupt, args.background)
        noise = make_noise(
            args.noise,
            lambda: pixel_batches(splits.forget, reader.plain),
            *reader.black_and_white(),
            args.noise_rank,
            training.seed,
        )
        run = cls(
            args=args,
            training=training,
            path=path,
            base_model=base_model,
            model=model,
            original=original,
            patch=patch,
            below=below,
            processor=processor,
            reader=reader,
            method=method,
            distance=distance,
            corruption=corruption,
            eval_corruption=parse_corruption(args.eval_corruption) if args.eval_corruption else corruption.at(0),
            noise=noise,
            splits=splits,
            pairs=make_pairs(args, splits, training.seed),
            rows={"retain": splits.eval_retain, "forget": splits.eval_forget},
            metrics=metrics,
            takedown=takedown,
        )
        if takedown:
            takedown.fit(run)
        return run

    def trainer(
        self, kind: type[UnlearningTrainer] = UnlearningTrainer, training: UnlearningConfig | None = None, **more
    ) -> UnlearningTrainer:
        """The trainer of this run. During training it looks at up to 100 of the evaluation pictures of each set.

        Args:
            kind, more: its class, and what that takes besides. training: other options than those of the run.
        """
        trainer = kind(
            self.model,
            training or self.training,
            self.pairs,
            self.processor,
            self.corruption,
            eval_dataset={name: rows[:: len(rows) // 100 + 1] for name, rows in self.rows.items()},
            eval_corruption=self.eval_corruption,
            noise=self.noise,
            original=self.original,
            reader=self.reader,
            method=self.method,
            distance=self.distance,
            metrics=self.metrics,
            **more,
        )
        speak(trainer, self.args.verbose)
        if self.args.merge and trainer.is_fsdp_enabled:
            raise InputError("--merge does not go with FSDP; leave it out, and merge the patch afterwards.")
        return trainer


def unlearn(run: Run, recipe: str, check: bool = True) -> dict:
    """Unlearn, evaluate, and write checkpoint or patch, processor, card, picture, figures and options to `training.output_dir`.

    With `training.push_to_hub` the finished folder is then pushed.

    Args:
        recipe: the recipe's path in the repository, for the command in the card.
        check: whether the other requests of the run's ledger are checked afterwards.

    Returns:
        What `Evaluator` returned.

    Raises:
        InputError: what cannot work, before training starts. PushError: the push failed; the folder is whole.
    """
    trainer, resume = (run.trainer(), run.training.resume_from_checkpoint) if not run.args.erase else erasing(run)
    is_main = trainer.is_world_process_zero()
    if run.patch and is_main:
        print(run.patch)
    if run.takedown and not run.args.erase:
        run.takedown.start(run, trainer)
    trainer.train(resume_from_checkpoint=resume)
    run.model, run.original = trainer.whole_model(), trainer.original or run.original  # under FSDP they are others
    _put_others(run)
    result, bound = _measure(run, trainer), trainer.bound_report()
    request = certify(run, trainer) if is_main else {}
    if run.args.pictures and is_main:
        _draw(run)
    if run.args.merge:
        merge(run.model)
    trainer.save_model()
    if is_main:
        _document(run, trainer, result, bound, request, command_line(recipe, run.args.private))
        _report(run, result, bound, request)
        if run.args.ledger:
            enter(run.args, run.training.output_dir, request)
            if check:
                check_others(run.args, request)
        require(request, run.args.require_forgotten)
        if run.training.push_to_hub:
            print(f"Pushed: {trainer.push_to_hub()}")
    return result


def _put_patches(model: I2IModel, args: RunArguments, base_model: str, below: list[str]) -> str | None:
    """Put the patches below on the model, and the one to be trained; a line on the latter."""
    if below and not (args.lora and args.patch_training == "alone"):
        load_patches(model, below)
        if not args.lora:  # a full run goes on from the patched weights
            merge(model)
    if not args.lora:
        return None
    line = add_patch(model, base_model, args.lora_rank, args.lora_alpha, args.lora_targets)
    model.patch.brings_others = not args.ledger  # with a ledger that says who is on
    return line


def _put_others(run: Run) -> None:
    """After training: the patches that were left out come on, for it is with them that the new one is measured.

    With a ledger all is compared with the original without any patch.
    """
    if not run.model.patch:
        return
    if run.args.patch_training == "alone" and run.below:
        load_patches(run.model, run.below)
    if run.args.ledger:
        run.original = AdaptersOff(run.model, alone=True)


def _measure(run: Run, trainer) -> dict:
    """The figures of the unlearned model on all evaluation pictures."""
    evaluator = Evaluator(
        run.original,
        run.rows,
        run.reader.plain,
        run.eval_corruption,
        run.training.per_device_eval_batch_size,
        run.training.seed,
        trainer.accelerator,
        metrics=run.metrics,
    )
    return evaluator(run.model)


def _draw(run: Run) -> None:
    """The grid of pictures before and after, `args.pictures` of each set that may be shown."""
    models, shown = {"before": run.original, "after": run.model}, to_show(run.rows, run.args.pictures, run.args.show_forgotten)
    grid = {name: completions(models, run.reader.plain, run.eval_corruption, rows) for name, rows in shown.items()}
    completion_grid(grid, RunFolder(run.training.output_dir).picture)


def _document(run: Run, trainer, result: dict, bound: dict | None, request: dict, command: str) -> None:
    """Options, figures, records and card."""
    folder = RunFolder(run.training.output_dir)
    folder.write_options(run.args, run.training, leave_out=run.args.private)
    folder.write_figures(result, bound)
    write_log(folder.path, trainer.state.log_history)
    name = run.training.hub_model_id if run.training.push_to_hub else folder.name
    folder.write_record(
        model_facts(
            run.model,
            run.base_model,
            name,
            run.patch,
            run.args.patches,
            run.method.trains_encoder_alone and not run.args.erase_decoder,
        )  # fmt: skip
        | picture_facts(run.splits.description)
        | training_facts(run.training, run.method, run.distance, run.args.variant)
        | {
            "license": inherited_license(run.path),
            "corruption": str(run.corruption),
            "eval_corruption": str(run.eval_corruption),
            "noise": str(run.noise),
            "steps": trainer.state.global_step,
            "skipped": trainer.skipped,
            "command": command,
            "erasure": run.erasure,
            "metrics": {metric.name: metric.title for metric in run.metrics},
            "show_forgotten": run.args.show_forgotten,
        }
    )
    folder.make_portable()
    write_record(folder, request)
    write_card(folder.path)


def _report(run: Run, result: dict, bound: dict | None, request: dict) -> None:
    """What is said on the screen at the end: the verdict first."""
    print("\n" + "\n".join([headline(request), *details(request)]))
    if bound:
        word = "holds" if bound["holds"] else "is BROKEN"
        found = f"distance {bound['retain_distance']:.4g} on evaluation pictures, bound {bound['bound']:g}"
        print(f"\nThe retain bound {word}: {found}.")
    what = "patch" if run.model.patch else "checkpoint"
    picture = f", {PICTURE}" if run.args.pictures else ""
    print(f"\n{markdown_table(result)}\n")
    print(f"In {run.training.output_dir}: the {what}, its card (README.md){picture}, the record ({REQUEST}), and {LOG}.")
