"""Machine unlearning of image-to-image generative models, after the ICLR 2024 paper of that name.

The public names; everything else is an implementation detail.
"""

from .cli import JsonDict, parse, refuse_full_folder, run
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
    undecoded,
)
from .errors import InputError
from .evaluation import Evaluator, markdown_table
from .methods import DISTANCES
from .models import I2IMAE, I2IModel
from .noise import Noise, StandardNormal
from .pretraining import PretrainingConfig, PretrainingTrainer
from .splits import (
    Selection,
    SourceArguments,
    SplitArguments,
    Splits,
    build_splits,
    by_classes,
    by_list,
    by_rows,
    by_values,
    first_rows,
    load_source,
    select,
)
from .trainer import UnlearningTrainer

__version__ = "0.1.0"
