"""Choose classes to forget and to retain: far from each other in the eyes of a feature network, or near (the hard case).

    hf-i2i-unlearn choose-classes --dataset photos-32 --features efficientnet_lite0 --count 10

Whole classes can be forgotten where they can be told from the retain ones. It prints both choices as options of `unlearn`.
Without options it looks at the embedded digits.
"""

import shlex
from dataclasses import dataclass, field

from ..data.options import SourceArguments
from ..errors import InputError
from ..evaluation.words import FEATURES_HELP
from .cli import parse


@dataclass
class Arguments(SourceArguments):
    """The pictures, which need classes, and the network."""

    features: str = field(default="demo", metadata={"help": f"The network that tells them apart, one of: {FEATURES_HELP}."})
    count: int = field(default=5, metadata={"help": "Classes to forget, and as many to retain."})
    samples: int = field(default=50, metadata={"help": "Pictures a class of --train_split that are looked at."})
    image_size: int = field(default=32, metadata={"help": "Pixels a side to which they are brought first."})

    def __post_init__(self):
        self.check_whole_splits(held_out=False)
        if self.count < 1 or self.samples < 1 or self.image_size < 1:
            raise InputError(
                f"--count, --samples and --image_size are 1 or more; got {self.count}, {self.samples} and {self.image_size}."
            )


def main() -> None:
    (args,) = parse((Arguments,), __doc__)

    import numpy as np
    import torch
    from PIL import Image
    from tqdm.auto import tqdm

    from ..data.decoding import Decoder, Unreadable
    from ..data.requests import load_classes
    from ..data.sources import class_label, undecoded
    from ..evaluation.feature_loaders import load_features
    from ..experiments.class_choice import class_centres, distances_of, far_apart, near_pairs
    from ..markdown import table

    source = load_classes(args, args.train_split)
    if args.label_column not in source.column_names:
        raise InputError(
            f"There is no column '{args.label_column}' of classes; --label_column names one of "
            f"{', '.join(source.column_names)}."
        )
    label = class_label(source.features.get(args.label_column))
    numbers = np.array(source[args.label_column])
    classes = sorted(set(numbers.tolist()) - {None, -1})
    if len(classes) < 2 * args.count:
        raise InputError(
            f"--count {args.count} takes {2 * args.count} classes, and --train_split '{args.train_split}' has {len(classes)}."
        )
    network, rows = load_features([args.features])[0], undecoded(source, args.image_column)
    decoder = Decoder(3, args.background, args.image_size)

    def picture(row):
        try:
            image = decoder(row["image"]).resize((args.image_size,) * 2, Image.Resampling.BICUBIC)
        except Unreadable as error:
            name = (row["image"] or {}).get("path") or "an image without a name"
            raise InputError(f"Cannot read {name}: {error}. Repair or remove it.") from error
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

    def pictures():
        for number in tqdm(classes, "classes", leave=False):
            places = np.flatnonzero(numbers == number)
            yield torch.stack([picture(rows[int(i)]) for i in places[:: max(1, len(places) // args.samples)][: args.samples]])

    distances = distances_of(class_centres(network, pictures()))
    for words, choose in {"far from each other": far_apart, "near pairs, the hard case": near_pairs}.items():
        forget, retain = choose(distances, args.count)
        between = distances[forget][:, retain]
        print(f"\n{words}: mean distance {between.mean():.2f}, least {between.min():.2f} (1 - cosine, {network.name})\n")
        names = [[_name(label, classes[a]), _name(label, classes[b])] for a, b in zip(forget, retain)]
        print(table(["forget", "retain"], names))
        print(f"\n--forget_classes {_options(forget, classes)} --retain_classes {_options(retain, classes)}")


def _name(label, number) -> str:
    return f"{number}" if label is None else f"{number} {label.int2str(number)}"


def _options(places, classes) -> str:
    return shlex.join(str(classes[place]) for place in places)
