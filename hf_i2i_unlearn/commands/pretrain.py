"""Train an original model from nothing, so that there is something to unlearn.

    hf-i2i-unlearn pretrain --config pretrain_mnist_mae

made the weights of the embedded demo. MAGE takes two runs: `--family mage --stage tokenizer`, then `--stage transformer --init`
with the folder of the first. `accelerate launch` runs it on several devices; a killed run goes on with
`--resume_from_checkpoint true`. The result is a folder that `transformers` or `diffusers` loads.
"""

from dataclasses import dataclass, field

from ..data.augmentation import AUGMENTATIONS
from ..data.options import SourceArguments
from ..errors import InputError
from ..originals.config import PretrainingConfig
from .cli import JsonDict, parse
from .words import parse_corruption


@dataclass
class Arguments(SourceArguments):
    """The model and what it sees."""

    family: str = field(default="mae", metadata={"choices": ["mae", "diffusion", "mage"], "help": "What to train."})
    model: JsonDict = field(
        default_factory=JsonDict,
        metadata={
            "help": "Fields of ViTMAEConfig or MageConfig, or arguments of palette_config, as JSON or in the YAML file. With "
            "--init: fields to change; of a U-Net encoder_attention alone, levels of its encoder that get attention."
        },
    )
    stage: str = field(
        default="tokenizer",
        metadata={
            "choices": ["tokenizer", "transformer", "decoder"],
            "help": "MAGE: what to train; transformer and decoder (the way from tokens to pixels, by "
            "--adversarial_weight) need --init.",
        },
    )
    init: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id. MAE, U-Net, and MAGE's decoder: the model to go on with. MAGE: whose "
            "tokenizer the transformer learns."
        },
    )
    adversarial_weight: float = field(
        default=0.0,
        metadata={
            "help": "MAE, and MAGE's decoder: weight of a discriminator's verdict on the completion, beside the "
            "squared error; 0 = none."
        },
    )
    informed_start: bool = field(
        default=False,
        metadata={
            "help": "MAGE's transformer: start words half as the tokenizer's codes, and positions as sines and "
            "cosines, not all at random."
        },
    )
    dropout: float = field(default=0.1, metadata={"help": "MAGE: dropout of the transformer in pretraining."})
    generation: JsonDict = field(
        default_factory=JsonDict,
        metadata={
            "help": "MAGE: steps, temperature, code_temperature, toward_mean and margin of the decoding, for samples "
            "and figures, as JSON or in YAML."
        },
    )
    patch_size: int | None = field(default=None, metadata={"help": "Diffusion: side in pixels of the patches that T hides."})
    generation_steps: int = field(default=20, metadata={"help": "Diffusion: steps of generation, for samples and figures."})
    prediction_type: str = field(
        default="epsilon",
        metadata={"choices": ["epsilon", "v_prediction", "sample"], "help": "Diffusion: what a fresh U-Net learns to predict."},
    )
    classes: list[str] | None = field(default=None, metadata={"help": "Train on these classes only; all if not given."})
    canaries: int = field(
        default=0,
        metadata={
            "help": "So many pictures besides, of which what T hides is of another picture: nobody can complete them but by "
            "heart, so that forgetting can be measured on them (see `memorise`). They go to known/ in the output folder."
        },
    )
    canary_share: float = field(default=0.1, metadata={"help": "The share of every batch that is canaries."})
    image_mean: list[float] = field(
        default_factory=lambda: [0.485, 0.456, 0.406], metadata={"help": "Channel means in [0, 1]; MAGE does not normalise."}
    )
    image_std: list[float] = field(
        default_factory=lambda: [0.229, 0.224, 0.225], metadata={"help": "Channel deviations; MAGE does not normalise."}
    )
    corruptions: JsonDict = field(
        default_factory=lambda: JsonDict({"random:0.75": 1.0}),
        metadata={"help": 'Corruptions and their shares of the steps, e.g. {"center:8": 0.7, "random:0.5": 0.3}.'},
    )
    augment: str = field(default="flip_and_crop", metadata={"choices": list(AUGMENTATIONS), "help": "Augmentation."})
    on_corrupt: str = field(
        default="refuse", metadata={"choices": ["refuse", "skip"], "help": "What an unreadable picture does."}
    )
    eval_samples: int = field(default=0, metadata={"help": "Pictures for the figures, evenly spread; 0 = all."})
    samples: int = field(
        default=8, metadata={"help": "Pictures to complete at every checkpoint, in samples/step-N.png; 0 = none."}
    )
    half: bool = field(default=False, metadata={"help": "Save the result in half precision."})

    def __post_init__(self):
        if self.canaries < 0 or not 0 < self.canary_share < 1:
            raise InputError(
                "--canaries is how many, 0 or more, and --canary_share a share between 0 and 1; got "
                f"{self.canaries} and {self.canary_share:g}."
            )
        if self.canaries:
            self.check_whole_splits()


def main() -> None:
    args, training = parse((Arguments, PretrainingConfig), __doc__)

    from ..originals.run import pretrain

    corruptions = {parse_corruption(text): share for text, share in args.corruptions.items()}
    pretrain(args, training, corruptions, AUGMENTATIONS[args.augment])
