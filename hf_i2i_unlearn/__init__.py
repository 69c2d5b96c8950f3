"""Machine unlearning of image-to-image generative models, after the ICLR 2024 paper of that name.

The public names; everything else is an implementation detail.
"""

from . import demo
from .cli import JsonDict, command_line, parse, refuse_full_folder, run, write_run
from .config import UnlearningConfig
from .corruptions import (
    CORRUPTION_HELP,
    CenterCrop,
    Corruption,
    Extend,
    Outpaint,
    RandomBlock,
    RandomMask,
    parse_corruption,
)
from .data import (
    AUGMENTATIONS,
    ForgetRetainPairs,
    ForgetRetainStream,
    ImageReader,
    PairCollator,
    SingleImages,
    load_processor,
    pixel_batches,
    undecoded,
)
from .errors import InputError
from .evaluation import Evaluator, completions, markdown_table
from .job import RunArguments, prepare_run, unlearn
from .methods import DISTANCES, METHODS, Method, information_bound
from .model_card import inherited_license, write_card
from .models import I2IMAE, I2IMage, I2IModel, I2IUNet, palette_config
from .noise import (
    NOISE_HELP,
    BatchMatched,
    Constant,
    LowRankNormal,
    MomentMatched,
    Noise,
    StandardNormal,
    Uniform,
    make_noise,
)
from .plots import completion_grid, frontier
from .pretraining import PretrainingConfig, PretrainingTrainer
from .selection import (
    Selection,
    by_classes,
    by_list,
    by_rows,
    by_values,
    first_rows,
    load_source,
    per_class,
    select,
)
from .splits import SourceArguments, SplitArguments, Splits, build_splits
from .trainer import UnlearningTrainer

__version__ = "0.1.0"
