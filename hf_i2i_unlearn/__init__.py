"""Machine unlearning of image-to-image generative models, after the ICLR 2024 paper of that name.

The public names; everything else is an implementation detail.
"""

from . import demo, tables
from .audit import AuditArguments, audit_section, run_audit
from .baselines import TRIVIAL, Biharmonic, MeanColour, TrueTokens
from .classification import ClassifierTrainer, LabelledPictures, ViewCollator
from .cli import JsonDict, command_line, parse, refuse_full_folder, run, write_run
from .comparison import FAILED, Comparison, Setting, best_within
from .config import UnlearningConfig
from .corruptions import (
    CORRUPTION_HELP,
    CenterCrop,
    CenterRatio,
    Corruption,
    Extend,
    Outpaint,
    RandomBlock,
    RandomMask,
    Turns,
    parse_corruption,
)
from .data import (
    AUGMENTATIONS,
    ForgetRetainPairs,
    ForgetRetainStream,
    ImageReader,
    PairCollator,
    SingleImages,
    SingleImageStream,
    load_processor,
    pixel_batches,
    undecoded,
)
from .errors import InputError, RunError
from .evaluation import (
    REGIONS,
    Evaluator,
    completions,
    describe_scores,
    embeddings,
    feature_rows,
    feature_table,
    markdown_table,
)
from .features import FEATURES_HELP, FeatureNetwork, hash_weights, load_features
from .hub import PushError, push
from .job import RunArguments, prepare_run, unlearn
from .loading import DEMOS, family_options, load_model
from .lora import add_patch, load_patches, merge
from .methods import DISTANCES, METHODS, Method, information_bound
from .metrics import (
    Accuracy,
    CosineSimilarity,
    GaussianStatistics,
    InceptionScore,
    frechet_distance,
)
from .model_card import inherited_license, update_card, write_card
from .models import (
    I2IMAE,
    I2ILatentUNet,
    I2IMage,
    I2IModel,
    I2IPaletteUNet,
    I2IPlainUNet,
    I2IUNet,
    palette_config,
    with_encoder_attention,
)
from .models.mae_training import MAEAdversarialTraining
from .models.mage_hf import MageConfig, MageModel
from .models.mage_training import (
    MageDecoderTraining,
    MageTokenizerTraining,
    MageTransformerTraining,
    informed_start,
)
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
from .originals import against_trivial, load_original, original_table, verdict
from .plots import completion_grid, embedding_map, frontier, metric_curves
from .pretraining import PretrainingConfig, PretrainingTrainer
from .progress import loss_curve
from .report import ReportArguments, write_report
from .results import claim_folder, kept, write_json
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
