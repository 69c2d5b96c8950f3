"""Make a masked autoencoder forget pictures (eq. 10 of "Machine Unlearning for Image-to-Image Generative Models").

Without options it runs the embedded demo: a small MAE forgets the digits 5-9 of MNIST, offline, in about a minute. With
your own: --model (Hub id or folder), --dataset, and one of --forget_classes, --forget_list, --forget_rows, --forget_values.
The output folder holds the checkpoint, its card, a before/after picture, the figures and the options of the run.
"""

from hf_i2i_unlearn import I2IMAE, UnlearningConfig, load_processor
from hf_i2i_unlearn.commands.cli import parse, run
from hf_i2i_unlearn.commands.options import RunArguments
from hf_i2i_unlearn.commands.unlearn import prepare_run, unlearn
from hf_i2i_unlearn.models.auto import DEMOS

DEMO = "unlearn_mnist_mae"


def main():
    args, training = parse((RunArguments, UnlearningConfig), __doc__, demo=DEMO)
    prepare_run(training, args)
    path = DEMOS.get(args.model, args.model)
    unlearn(args, training, I2IMAE.from_pretrained(path), load_processor(path), path, "recipes/unlearn_mae.py")


if __name__ == "__main__":
    run(main)
