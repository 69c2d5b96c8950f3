"""Make a MAGE model (VQ-GAN tokens) forget pictures (eq. 10 of "Machine Unlearning for Image-to-Image Generative Models").

Without options it runs the embedded demo: a small MAGE forgets the digits 5-9 of MNIST, offline, in two minutes. With your
own: --model (a folder or Hub id with a `MageModel` and its image processor, which must not normalise), --dataset, and one of
--forget_classes, --forget_list, --forget_rows, --forget_values. A published checkpoint is converted first:
`python -m hf_i2i_unlearn.conversion_mage --help`. The output folder is as for masked autoencoders; it loads with
`transformers.AutoModel` and trust_remote_code. Output methods train with the token cross-entropy, for no discriminator was
released. The released code's training is --corruption random:0.5 --mask_rate mage --blank_hole false --noise batch
--train_word_embeddings.
"""

from dataclasses import dataclass, field

from hf_i2i_unlearn import I2IMage, UnlearningConfig, load_processor
from hf_i2i_unlearn.commands.cli import parse, run
from hf_i2i_unlearn.commands.options import RunArguments
from hf_i2i_unlearn.commands.unlearn import prepare_run, unlearn
from hf_i2i_unlearn.models.auto import DEMOS

DEMO = "unlearn_mnist_mage"


@dataclass
class Arguments(RunArguments):
    """What to unlearn, what the encoder is given, and how pictures are generated for the figures."""

    model: str = field(
        default="mnist-demo-mage", metadata={"help": "The original: Hub id or folder of a MageModel, or mnist-demo-mage."}
    )
    decoding_steps: int = field(default=20, metadata={"help": "Steps of iterative decoding."})
    temperature: float = field(default=6.0, metadata={"help": "Temperature of its confidence noise."})
    code_temperature: float = field(
        default=1.0, metadata={"help": "Of sampling the codes: below 1 likelier ones and less variety, 0 the likeliest."}
    )
    toward_mean: float = field(
        default=0.0,
        metadata={"help": "Move each drawn code this share of the way to the mean of all: less error, less texture; 0 to 1."},
    )
    margin: int = field(default=1, metadata={"help": "Tokens around the hole that generation predicts too."})
    mask_rate: str = field(
        default="none",
        metadata={
            "choices": ["none", "mage"],
            "help": "mage: hide a random share of the tokens beside those that T drops, as MAGE trains.",
        },
    )
    blank_hole: bool = field(
        default=True,
        metadata={
            "help": "Fill the hole with the mean colour before tokenization (the paper: T comes before E). false: tokenize "
            "the whole picture, then drop (the released code); the kept tokens then tell of hidden pixels."
        },
    )
    train_word_embeddings: bool = field(
        default=False, metadata={"help": "Train them too, as the released code does; the head reads them, so it changes too."}
    )
    feather: bool = field(default=False, metadata={"help": "Paste completions softly, as the released code does."})


def main():
    args, training = parse((Arguments, UnlearningConfig), __doc__, demo=DEMO)
    prepare_run(training, args)
    path = DEMOS.get(args.model, args.model)
    model = I2IMage.from_pretrained(
        path, steps=args.decoding_steps, temperature=args.temperature, margin=args.margin, blank_hole=args.blank_hole,
        mask_rate=None if args.mask_rate == "none" else args.mask_rate, train_word_embeddings=args.train_word_embeddings,
        feather=args.feather, code_temperature=args.code_temperature, toward_mean=args.toward_mean,
    )  # fmt: skip
    processor = load_processor(path)
    model.check_processor(processor)
    unlearn(args, training, model, processor, path, "recipes/unlearn_mage.py")


if __name__ == "__main__":
    run(main)
