"""Training a small classifier, whose features then measure completions: pictures in memory, views of whole and part."""

from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm.auto import tqdm
from transformers import Trainer

from ..data.pairs import Cycle, EpochSampler, seeds_for
from ..data.reading import ImageReader
from ..data.sources import undecoded_column
from ..errors import InputError
from ..training.checkpoints import last_whole_checkpoint
from ..training.optimizers import OptimizerPair


class LabelledPictures(torch.utils.data.Dataset):
    """Pictures of a labelled dataset, decoded once and held as bytes: (N, C, H, W) uint8.

    Index t may exceed the length (see `Cycle`); with a seed, item t is a picture of a fresh permutation per pass and
    carries a seed of its own; without one the pictures come in their order.

    Args:
        dataset: a map-style dataset. reader: decodes its pictures. size: side in pixels to which they are brought (bicubic).
        seed: of order and views, or None for evaluation. view: the share of the sides that evaluation sees; 1 = all of them.

    Raises:
        InputError: no such column, or labels that are no classes.
    """

    def __init__(self, dataset, reader: ImageReader, size: int, image_column="image", label_column="label", seed=None):
        feature = (dataset.features or {}).get(label_column)
        if not isinstance(feature, datasets.ClassLabel):
            raise InputError(
                f"Column '{label_column}' holds {feature}, expected datasets.ClassLabel; set --label_column, or cast it with "
                "dataset.class_encode_column."
            )
        rows = undecoded_column(dataset, image_column)
        pictures, labels = [], []
        for row in tqdm(rows, "decoding", leave=False, disable=None):
            picture = reader.decode({"image": row[image_column]})
            if picture is not None:
                picture = picture.resize((size, size), Image.Resampling.BICUBIC)  # a copy where it has that size
                pixels = torch.from_numpy(np.array(picture)).view(size, size, -1)  # (H, W, C)
                pictures.append(pixels.movedim(2, 0).contiguous())
                labels.append(row[label_column])
        if not pictures:
            raise InputError("There is no readable picture to train on.")
        self.pictures, self.labels, self.names = torch.stack(pictures), torch.tensor(labels), feature.names
        self.seed, self.view = seed, 1.0
        self.order = range(len(labels)) if seed is None else Cycle(range(len(labels)), seed)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, t):
        i = self.order[t]
        seed = None if self.seed is None else seeds_for(self.seed, t, 1)[0]
        return {"picture": self.pictures[i], "label": self.labels[i], "seed": seed, "view": self.view}

    def central(self, share: float) -> "LabelledPictures":
        """The same pictures, seen through the central `share` of their sides only."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, view=share)
        return other


class ViewCollator:
    """Items of `LabelledPictures` -> {"pixel_values": (B, C, H, W) normalised, "labels": (B,)}, each a random view in training.

    A view is an affine crop, resized to the whole: half of the pictures whole, half a part of at least `min_view` of the sides,
    for completions are judged by their hole alone too.

    Args:
        mean, std: (C,). flip: mirror half of them. shift: of whole pictures, as a share of the side. rotation: in degrees.
        whole: share of pictures shown whole.
    """

    def __init__(self, mean, std, min_view=0.35, flip=False, shift=0.1, rotation=0.0, whole=0.5):
        self.mean, self.std = (torch.as_tensor(v).view(-1, 1, 1) for v in (mean, std))
        self.min_view, self.flip, self.shift, self.rotation, self.whole = min_view, flip, shift, np.deg2rad(rotation), whole

    def __call__(self, items):
        pictures = torch.stack([item["picture"] for item in items]).float() / 255  # (B, C, H, W)
        if items[0]["seed"] is not None:
            theta = torch.tensor(np.stack([self._view(item["seed"]) for item in items]), dtype=torch.float)  # (B, 2, 3)
            grid = nn.functional.affine_grid(theta, pictures.shape, align_corners=False)
            pictures = nn.functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
        elif items[0]["view"] < 1:
            theta = torch.eye(2, 3)[None].repeat(len(items), 1, 1) * items[0]["view"]
            grid = nn.functional.affine_grid(theta, pictures.shape, align_corners=False)
            pictures = nn.functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
        labels = torch.stack([item["label"] for item in items])
        pixels = ((pictures - self.mean) / self.std).contiguous(memory_format=torch.channels_last)  # a third faster on CPUs
        return {"pixel_values": pixels, "labels": labels}

    def _view(self, seed):
        """The affine map from view to picture, both in -1..1: (2, 3)."""
        u = np.random.default_rng(seed).random(6)
        side = 1.0 if u[0] < self.whole else self.min_view + (1 - self.min_view) * u[1]
        room = np.maximum(1 - side, self.shift)
        angle = self.rotation * (2 * u[2] - 1)
        turn = side * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        if self.flip and u[3] < 0.5:
            turn[:, 0] *= -1
        return np.column_stack([turn, room * (2 * u[4:] - 1)])


class ClassifierTrainer(Trainer):
    """Trains any image classifier of transformers; Muon takes the convolutions, as matrices of (out, in * height * width)."""

    optimizer: torch.optim.Optimizer | None

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As `Trainer.train`; True resumes from the last checkpoint that is whole and removes a half-written one."""
        if str(resume_from_checkpoint).lower() == "true":
            with self.accelerator.main_process_first():
                resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _get_train_sampler(self, train_dataset=None):
        # Overrides Trainer: as in I2ITrainer, picture t is a function of t and of the seed, also after resuming.
        return EpochSampler(len(self.train_dataset), lambda: int(self.state.epoch or 0))

    def _save(self, output_dir=None, state_dict=None):
        # Overrides Trainer: it would write its arguments as a pickle, which nobody should have to unpickle.
        folder = Path(output_dir or self.args.output_dir)
        self.accelerator.unwrap_model(self.model).save_pretrained(folder)
        self.processing_class.save_pretrained(folder)
        (folder / "training_args.json").write_text(self.args.to_json_string())

    def create_optimizer(self, model=None):
        if self.optimizer is None and self.args.muon_learning_rate > 0:
            model = model or self.model
            head = {id(p) for p in [m for m in model.modules() if isinstance(m, nn.Linear)][-1].parameters()}
            trainable = [p for p in model.parameters() if p.requires_grad]
            matrices = [p for p in trainable if p.ndim >= 2 and id(p) not in head]
            taken = {id(p) for p in matrices}
            rest = [p for p in trainable if id(p) not in taken]
            decay = self.args.weight_decay
            self.optimizer = OptimizerPair(
                FlatMuon(matrices, lr=self.args.muon_learning_rate, weight_decay=decay),
                torch.optim.AdamW(
                    rest,
                    lr=self.args.learning_rate,
                    betas=(self.args.adam_beta1, self.args.adam_beta2),
                    weight_decay=0.0,
                    fused=True,
                ),
            )
        return super().create_optimizer(model)


class FlatMuon(torch.optim.Optimizer):
    """Muon (orthogonalised momentum) over weights of any rank, as matrices (out, rest), in the precision of the weights.

    `torch.optim.Muon` takes matrices only and orthogonalises in bfloat16, which most CPUs are very slow at.
    """

    def __init__(self, weights, lr=2e-2, weight_decay=0.0, momentum=0.95):
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                average = state.setdefault("momentum", torch.zeros_like(weight)).lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonalised(weight.grad.lerp(average, group["momentum"]).flatten(1)).view_as(weight)  # Nesterov
                scale = max(1.0, len(weight) / weight[0].numel()) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"] * scale)


def orthogonalised(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest matrix with singular values of about 1, by the Newton-Schulz iteration of Muon."""
    x = matrix / (matrix.norm() + 1e-7)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x if wide else x.T
