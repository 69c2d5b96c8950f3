"""Models to be trained from nothing, or to go on with, as options describe them."""

from dataclasses import fields

from diffusers import DDPMScheduler
from transformers import ViTMAEConfig

from ..errors import InputError
from ..models.diffusion.layout import palette_config, with_encoder_attention
from ..models.diffusion.modeling import I2IUNet
from ..models.mae.modeling import I2IMAE
from ..models.mae.pretraining import MAEAdversarialTraining
from ..models.mage.hf import MageConfig, MageModel
from ..models.mage.modeling import I2IMage
from ..models.mage.pretraining import MageDecoderTraining, MageTokenizerTraining, MageTransformerTraining, informed_start


def make_model(args):
    """A fresh model of the family `args.family`, or one that goes on with another.

    Args:
        args: the options of `commands.pretrain.Arguments`; what is read of them: family, model, stage, init,
            adversarial_weight, informed_start, dropout, generation, patch_size, generation_steps and prediction_type.

    Raises:
        InputError: options that the family does not have or that do not fit each other.
    """
    if args.adversarial_weight and not (args.family == "mae" or (args.family == "mage" and args.stage == "decoder")):
        stage = f" --stage {args.stage}" if args.family == "mage" else ""
        raise InputError(
            f"--adversarial_weight is for MAE and for MAGE's --stage decoder, not for --family {args.family}{stage}; "
            "leave it out."
        )
    if args.informed_start and (args.family, args.stage) != ("mage", "transformer"):
        raise InputError("--informed_start is for --family mage --stage transformer; leave it out.")
    try:
        if args.family == "mae":
            return make_mae(args)
        if args.family == "diffusion":
            return make_unet(args)
        return make_mage(args)
    except (TypeError, ValueError) as error:
        raise InputError(f"The options of the {args.family} model do not fit: {error}") from error


def make_mae(args):
    """A fresh MAE, or that of `args.init`, with a discriminator where its loss is asked for."""
    if args.init and args.model:
        raise InputError("--init brings a whole model, of which --model can change nothing; give one of them.")
    made = (
        I2IMAE.from_pretrained(args.init)
        if args.init
        else I2IMAE.from_config(ViTMAEConfig(**known_fields(args.model, ViTMAEConfig)))
    )
    return MAEAdversarialTraining(made.model, args.adversarial_weight) if args.adversarial_weight else made


def make_unet(args):
    """A fresh Palette U-Net, or that of `args.init`, its encoder with more attention where `args.model` says so."""
    options = {"patch_size": args.patch_size, "steps": args.generation_steps}
    if not args.init:
        # Palette's schedule; Palette itself predicts the noise.
        scheduler = DDPMScheduler(2000, beta_start=1e-6, beta_end=0.01, prediction_type=args.prediction_type)
        return I2IUNet.from_config(palette_config(**args.model), scheduler=scheduler, **options)
    if others := sorted(set(args.model) - {"encoder_attention"}):
        raise InputError(
            f"--init brings a whole U-Net, to which --model can add encoder_attention alone; leave out {', '.join(others)}."
        )
    made = I2IUNet.from_pretrained(args.init, **options)
    made.model = with_encoder_attention(made.model, args.model.get("encoder_attention", []))
    return made


def make_mage(args):
    """A fresh MAGE, or for its later stages what goes on with the one of `args.init`.

    The second stage takes its tokenizer and, but for `args.model`, its configuration; the third takes all of it.
    """
    changes = known_fields(args.model, MageConfig)
    if args.stage == "tokenizer":
        if args.init:
            raise InputError("--init goes with --stage transformer or decoder; a tokenizer is trained from nothing.")
        return MageTokenizerTraining(MageModel(MageConfig(**changes)), **args.generation)
    if args.init is None:
        wrote = "tokenizer" if args.stage == "transformer" else "transformer"
        raise InputError(f"--stage {args.stage} needs --init: the folder that --stage {wrote} wrote.")
    trained = I2IMage.from_pretrained(args.init).model
    if args.stage == "decoder":
        if changes:
            raise InputError("--init brings a whole model, of which --model can change nothing; give one of them.")
        return MageDecoderTraining(trained, args.adversarial_weight, **args.generation)
    shared = {
        name for name in changes if name.startswith(("tokenizer_", "codebook_")) or name in ("image_size", "num_channels")
    }
    if differing := sorted(name for name in shared if changes[name] != getattr(trained.config, name)):
        raise InputError(
            f"--model changes {', '.join(differing)}, which the tokenizer of --init was not trained with; leave it out."
        )
    model = MageModel(MageConfig(**trained.config.to_dict() | {"dtype": None} | changes))
    model.vqgan.load_state_dict(trained.vqgan.state_dict())
    if args.informed_start:
        informed_start(model)
    return MageTransformerTraining(model, args.dropout, **args.generation)


def known_fields(options: dict, config) -> dict:
    """The options, all of which must be fields of a configuration class."""
    known = {option.name for option in fields(config)} | {"attn_implementation"}
    for name in options:
        if name not in known:
            raise InputError(f"--model names '{name}', which {config.__name__} does not have.")
    return dict(options)
