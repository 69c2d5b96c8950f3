"""The options of an unlearning run, those of the Trainer aside."""

from dataclasses import dataclass, field

from ..data.augmentation import AUGMENTATIONS
from ..data.options import SplitArguments
from ..errors import InputError
from ..methods.distances import DISTANCES
from ..methods.method import METHODS
from .words import CORRUPTION_HELP, NOISE_HELP


def check_required(share: float | None) -> None:
    """Raise InputError unless `share` is a share, or None."""
    if share is not None and not 0 < share <= 1:
        raise InputError(f"--require_forgotten is a share of the forget pictures, above 0 and at most 1; got {share}.")


@dataclass
class ObjectiveArguments:
    """How the two terms of the loss are taken."""

    variant: str = field(
        default="paper",
        metadata={
            "choices": ["paper", "reference"],
            "help": "reference: what the released code intends where it departs from the paper (random_encoder: noise with the "
            "moments of the original's representations; retain_label: the original's completions for targets).",
        },
    )
    distance: str = field(
        default="mse",
        metadata={
            "choices": list(DISTANCES),
            "help": "Distance between representations. mse: what the released code trains with. l2: the literal norm of "
            "eq. 10. unit_l2: the same of unit-norm representations (theorem 1). l2 and unit_l2 forget NOTHING at alpha < 1.",
        },
    )


@dataclass
class MethodArguments(ObjectiveArguments):
    """How to unlearn."""

    method: str = field(
        default="ours",
        metadata={
            "choices": list(METHODS),
            "help": "; ".join(f"{k}: {m.summary} ({m.source})" for k, m in METHODS.items()) + ".",
        },
    )


@dataclass
class ErasureArguments:
    """Taking what was forgotten out of the weights too, so that an attacker cannot bring it back."""

    erase: float | None = field(
        default=None,
        metadata={
            "help": "Erase, not only suppress: the encoder's weights are moved this share of the way (up to 1.0) to a fresh "
            "initialisation, and learn the original's work on retain pictures again. 1.0 needs no unlearning before it."
        },
    )
    erase_decoder: bool = field(
        default=False,
        metadata={
            "help": "With --erase: the decoder too, which learns what the original makes of retain pictures. Pictures known by "
            "heart sit in it as well; but the decoder is then no longer the untouched one of the paper."
        },
    )
    erase_from: str | None = field(
        default=None,
        metadata={"help": "Folder of a finished run to start from, in place of unlearning first (--erase below 1)."},
    )
    erase_steps: int = field(default=1000, metadata={"help": "Steps of the erasure."})
    erase_learning_rate: float = field(default=2e-3, metadata={"help": "Its learning rate, which falls as a cosine."})
    erase_muon_learning_rate: float | None = field(
        default=None,
        metadata={"help": "That of Muon, which takes the weight matrices of blocks; 0: AdamW alone [0.02, 0 for U-Nets]."},
    )
    erase_batch_size: int = field(default=32, metadata={"help": "Its pairs per device and step."})

    def check_erasure(self) -> None:
        """Raise InputError for options that make no sense."""
        if self.erase is None:
            if self.erase_decoder or self.erase_from:
                raise InputError("--erase_decoder and --erase_from go with --erase, the share to erase, such as 1.0.")
            return
        if not 0 < self.erase <= 1:
            raise InputError(f"--erase is a share above 0 and at most 1, such as 1.0; got {self.erase:g}.")
        if self.erase_steps < 1 or self.erase_batch_size < 1 or not self.erase_learning_rate > 0:
            raise InputError(
                "--erase_steps and --erase_batch_size are 1 or more, and --erase_learning_rate is above 0; got "
                f"{self.erase_steps}, {self.erase_batch_size} and {self.erase_learning_rate:g}."
            )


@dataclass
class RunArguments(MethodArguments, ErasureArguments, SplitArguments):
    """What to unlearn."""

    model: str = field(default="mnist-demo", metadata={"help": "The original checkpoint: Hub id, folder, or mnist-demo."})
    corruption: str = field(
        default="center:8",
        metadata={
            "help": f"T(x) in training: {CORRUPTION_HELP}. Several, parted by commas, take turns, a step each; what "
            "is forgotten under one alone may still be completed under others. Not given, a request by list or rows takes "
            "several that suit the model."
        },
    )
    eval_corruption: str | None = field(
        default=None, metadata={"help": "T(x) in evaluation; as in training, the first of several, if not given."}
    )
    noise: str = field(default="normal", metadata={"help": f"The noise n. {NOISE_HELP}."})
    noise_rank: int = field(default=64, metadata={"help": "Directions of --noise low_rank."})
    augment: str = field(default="none", metadata={"choices": list(AUGMENTATIONS), "help": "Augmentation in training."})
    on_corrupt: str = field(
        default="refuse", metadata={"choices": ["refuse", "skip"], "help": "What an unreadable picture does."}
    )
    case_number: str | None = field(
        default=None,
        metadata={
            "help": "The number of the request in your own files, such as TD-2026-114. It stands in record, report and "
            "ledger, so it is not to be the name of a person."
        },
    )
    never_trained: str | None = field(
        default=None,
        metadata={
            "help": "A model trained like the original but without the forget pictures, where there is one: a verdict then "
            "compares each picture with what that model makes of it."
        },
    )
    require_forgotten: float | None = field(
        default=None,
        metadata={
            "help": "The share of the forget pictures that must not be completed any longer, such as 0.95; where it is missed, "
            "the run ends with exit status 3, and nothing is pushed. The folder is kept."
        },
    )
    plan: str = field(
        default="false",
        metadata={
            "nargs": "?",
            "const": "true",
            "choices": ["false", "true", "json"],
            "help": "true: measure a few steps here, say what the run will take (memory, time, disk, and what would make it "
            "cheaper), and end without training; nothing is left. json: the same as one line for scripts.",
        },
    )
    pictures: int = field(default=4, metadata={"help": "Pictures per set in the before/after grid; 0 = no grid."})
    verbose: bool = field(
        default=False, metadata={"help": "Print every number that is logged, as dictionaries. log.jsonl keeps them anyway."}
    )

    # A patch instead of a checkpoint
    lora: bool = field(
        default=False,
        metadata={
            "help": "Train LoRA adapters on the encoder instead of its weights; the result is a patch of the original, to be "
            "loaded by peft. The default alpha suits the learning rate of a full run."
        },
    )
    lora_rank: int = field(default=8, metadata={"help": "Rank of the adapters."})
    lora_alpha: float = field(default=32, metadata={"help": "Scale of the adapters is lora_alpha / lora_rank."})
    lora_targets: list[str] | None = field(
        default=None,
        metadata={
            "help": "Layers of the encoder to adapt, by the ends of their names, such as q_proj v_proj (too few to "
            "forget well); all linear layers if not given, of U-Nets the convolutions too."
        },
    )
    patches: list[str] | None = field(
        default=None,
        metadata={
            "help": "Patches (folders or Hub ids) that lie below: the run starts from the original with them on, and leaves "
            "them as they are. A patch given as --model brings its original and those below it."
        },
    )
    ledger: str | None = field(
        default=None,
        metadata={
            "help": "With --lora: a folder whose requests.json says which patch serves which request. The patch is trained "
            "beside those that are on, is entered there, and all the others are checked with it. hf-i2i-unlearn withdraw, "
            "renew and merge go on from there."
        },
    )
    patch_training: str = field(
        default="together",
        metadata={
            "choices": ["together", "alone"],
            "help": "With other patches, of --patches or the ledger. together: they are switched on and off at random while "
            "this one is trained, so that it holds with any of them withdrawn. alone: it is trained on the original alone and "
            "added, which serves those who do not know one another's patches; many of them change retain pictures more.",
        },
    )
    merge: bool = field(
        default=False, metadata={"help": "With --lora: write a full checkpoint with all patches merged in, not a patch."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.pictures < 0:
            raise InputError(f"--pictures is how many to show, 0 or more; got {self.pictures}.")
        check_required(self.require_forgotten)
        self.check_erasure()
        if self.erase and (self.lora or self.patches):
            raise InputError("--erase changes the original's own weights, which a patch leaves alone; merge patches first.")
        if self.ledger and (not self.lora or self.merge or self.streaming):
            what = "--streaming" if self.streaming else "--merge" if self.merge else "a run without --lora"
            raise InputError(
                f"A ledger is of patches and of pictures that can be counted, which {what} does not go with; give --lora true, "
                "and merge afterwards: hf-i2i-unlearn merge."
            )
        if self.merge and not self.lora:
            raise InputError(
                "--merge merges the adapters of --lora into a full checkpoint; a run without --lora writes one anyway."
            )
