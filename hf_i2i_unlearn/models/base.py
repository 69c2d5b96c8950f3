"""What a model family must offer to be unlearned: an encoder, a decoder, and a way to complete pictures."""

import abc
import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import InputError

HUB = ("revision", "token", "cache_dir", "local_files_only")  # options of `from_pretrained` on where files are fetched

PATCHES_FILE = "patches.json"  # beside a patch that was trained on top of others: their Hub ids or folders, lowest first


class I2IModel(nn.Module, abc.ABC):
    """A family: h = D o E (eq. 1) around a library's own model, which stays loadable by its own library.

    To bring a family of your own, write a subclass and give it to `load_model(path, family=...)`, or make one yourself and give
    it to `UnlearningTrainer` and `Evaluator`. It needs:

    - `model`, set in `__init__`: the inner model. It has `save_pretrained(folder)` and a class method
      `from_pretrained(folder)`, as models of transformers and diffusers have, and any module with huggingface_hub's
      `PyTorchModelHubMixin`.
    - `family`, `image_size`, `channels` and `grid`, as class attributes or properties.
    - `forward`, which encodes, and nothing else: it is what DDP, FSDP and `torch.compile` see.
    - `generate`, which completes pictures, and `training_loss`, which methods in the output space train with.
    - `encoder_modules`, the inner modules that are trained. D must not read their weights.
    - `from_pretrained`, a class method, for `load_model`.

    Pictures are normalised (B, C, H, W), as the model's image processor makes them. Masks are boolean (B, rows, cols) over the
    grid, True = hidden; `hole` makes pixels of them. The smallest example fills holes by one convolution each way::

        class Autoencoder(nn.Module, PyTorchModelHubMixin):
            def __init__(self, width: int = 8):
                super().__init__()
                self.encoder = nn.Conv2d(3, width, 4, stride=4)
                self.decoder = nn.ConvTranspose2d(width, 3, 4, stride=4)


        class I2IAutoencoder(I2IModel):
            family, image_size, channels, grid = "autoencoder", (16, 16), 3, (4, 4)

            def __init__(self, model):
                super().__init__()
                self.model = model

            @classmethod
            def from_pretrained(cls, path, **options):
                return cls(Autoencoder.from_pretrained(path, **options))

            def encoder_modules(self):
                return [self.model.encoder]

            def forward(self, pixel_values, draw):  # (B, 3, 16, 16), (B, 4, 4) -> (B, width, 4, 4)
                hole = self.hole(draw).to(pixel_values.device)
                return self.model.encoder(pixel_values.masked_fill(hole, 0))

            @torch.no_grad()
            def generate(self, pixel_values, mask, seeds=None):
                hole = self.hole(mask).to(pixel_values.device)
                return torch.where(hole, self.model.decoder(self(pixel_values, mask)), pixel_values)

            def training_loss(self, pixel_values, draw, target=None):  # -> (B,)
                target = pixel_values if target is None else target
                error = (self.model.decoder(self(pixel_values, draw)) - target).square()
                hole = self.hole(draw).to(error)
                return (error * hole).flatten(1).sum(1) / (hole.flatten(1).sum(1) * self.channels)

    The rest has defaults for a model like this one, whose encoder draws nothing beside T: `draw`, `noised`, `noise_like` and
    `levels` are for models with a diffusion time or a latent space. A run's options reach `from_pretrained` by `run_options`.
    """

    model: nn.Module
    family: str  # one word for cards and messages
    run_options: dict[str, str] = {}  # {option of a recipe, as run.yaml holds it: argument of `from_pretrained`}
    patch: Any = None  # the adapters on the inner model (`lora.Patch`), if there are any
    adapted_layers: tuple[type[nn.Module], ...] = (nn.Linear,)  # kinds of layers that a patch is put on, if none are named
    muon_learning_rate = 0.02  # of an erasure, for the matrices of the blocks; 0 where AdamW suits all weights
    distils = "completions"  # what `distillation_target` is
    noise_is_a_picture = True  # whether n of E0(T(n)) is a picture; else it lives in the family's latent space

    @property
    @abc.abstractmethod
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""

    @property
    @abc.abstractmethod
    def channels(self) -> int:
        """Colour channels of a picture: 1 or 3."""

    @property
    @abc.abstractmethod
    def grid(self) -> tuple[int, int]:
        """(rows, cols) of patches that a corruption hides."""

    @property
    def noise_target_is_shared(self) -> bool:
        """Whether E0(T(n)) is the same for all pictures under one T, so that its mean can be a target."""
        return True

    @property
    def draws_beside_t(self) -> bool:
        """Whether `draw` draws more than T, so that an encoder pass over the same picture differs each time."""
        return False

    @property
    def training_only(self) -> nn.Module | None:
        """A module that training needs beside the model; checkpoints have it, results do not."""
        return None

    def draw(self, pixel_values: torch.Tensor, mask: torch.Tensor, seeds):
        """Everything random in an encoder pass, drawn once for student and teacher: a tensor or a named tuple of tensors.

        A picture's draw depends on its own seed alone. Here T is all: the mask itself.
        """
        return mask

    def noised(self, pixel_values: torch.Tensor, draw, noise: torch.Tensor):
        """What the original encoder is given for the forget target, as (pixel values, draw): here n in the picture's place."""
        return noise, draw

    def noise_like(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """A tensor whose shape, device and dtype n of E0(T(n)) has, for each of the pictures: here the pictures themselves."""
        return pixel_values

    def levels(self, encoded: torch.Tensor) -> list[torch.Tensor]:
        """The parts of a representation (B, ...) whose statistics differ, each (B, ...); along dimension 1 they make it up."""
        return [encoded]

    @abc.abstractmethod
    def forward(self, pixel_values: torch.Tensor, draw) -> torch.Tensor:
        """E(T(x)): the encoder's representation, first dimension B. `draw` is what `draw` returned."""

    @abc.abstractmethod
    def generate(self, pixel_values: torch.Tensor, mask: torch.Tensor, seeds=None) -> torch.Tensor:
        """D(E(T(x))) in the hole, x elsewhere: (B, C, H, W) in the normalised space of `pixel_values`.

        `seeds`, one per picture, fix what a family draws on the way.
        """

    @abc.abstractmethod
    def training_loss(self, pixel_values, draw, target=None) -> torch.Tensor:
        """The loss the family is trained with, per sample: (B,).

        `target` (B, C, H, W) takes the place of the true picture in the loss (not in the input); None is the truth.
        """

    @torch.no_grad()
    def distillation_target(self, pixel_values, draw, mask, seeds) -> torch.Tensor:
        """What a decoder that learns anew takes from this model (`ErasureTrainer`): its completions, (B, C, H, W).

        draw: what `draw(pixel_values, mask, seeds)` returns; the loss is given the same. A family whose completions are slow to
        make may return another tensor, which its own `distillation_loss` takes, and names it in `distils`.
        """
        return self.generate(pixel_values, mask, seeds)

    def distillation_loss(self, pixel_values, draw, wanted) -> torch.Tensor:
        """How far this model is from another one's `distillation_target`, per sample: (B,)."""
        return self.training_loss(pixel_values, draw, wanted)

    @property
    def decoder_untouched(self) -> bool:
        """Whether training the encoder leaves every weight that D reads as it was."""
        return True

    @abc.abstractmethod
    def encoder_modules(self) -> list[nn.Module]:
        """The inner modules that make up E, and no weight that D reads."""

    def activation_checkpointing_enable(self, activation_checkpointing_kwargs=None, **options) -> None:
        """Recompute activations in the backward pass instead of keeping them; the Trainer calls this.

        Raises:
            InputError: the model's library cannot do that for it.
        """
        try:
            self.model.activation_checkpointing_enable(activation_checkpointing_kwargs, **options)
        except (ValueError, AttributeError) as error:
            raise InputError(f"Gradient checkpointing is not possible: {error}") from None

    def save_pretrained(self, folder, **kwargs) -> None:
        """Write the inner model alone, so that its own library's `from_pretrained(folder)` reads it."""
        if self.patch:
            raise InputError("The model has a patch on it; save that with model.patch.save_pretrained, or merge it first.")
        self.model.save_pretrained(folder, **kwargs)

    def load_weights(self, folder) -> None:
        """Copy the weights that `save_pretrained` wrote to `folder` into this model, strictly.

        The detour over `from_pretrained` is needed because on disk some families use other key names than in memory.
        """
        loaded = type(self.model).from_pretrained(folder)
        self.model.load_state_dict(loaded.state_dict(), strict=True)

    def train_encoder_only(self) -> "I2IModel":
        """Freeze all but the encoder's own trainable weights ("decoder untouched", section 3.3)."""
        keep = {id(p) for module in self.encoder_modules() for p in module.parameters() if p.requires_grad}
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) in keep)
        return self

    def frozen_copy(self) -> "I2IModel":
        """The original model (theta_0, phi_0): a deep copy in eval mode that takes no gradient."""
        return copy.deepcopy(self).eval().requires_grad_(False)

    def fresh(self) -> "I2IModel":
        """A model of the same settings that has learnt nothing, with torch's global random numbers.

        Models of transformers are made anew, by their own initialiser; of others each layer is, by its own
        (`reset_parameters`). A family overrides it where that is not how its originals start.
        """
        made = copy.deepcopy(self)
        if hasattr(self.model, "_init_weights"):
            made.model = type(self.model)(copy.deepcopy(self.model.config))
        else:
            reset(made.model)
        return made

    def hole(self, mask: torch.Tensor) -> torch.Tensor:
        """(B, rows, cols) patch mask -> (B, 1, H, W) boolean pixel mask, True = hidden."""
        (rows, cols), (height, width) = self.grid, self.image_size
        mask = mask.repeat_interleave(height // rows, 1).repeat_interleave(width // cols, 2)  # (B, H, W)
        return mask.unsqueeze(1)

    def check_pixels(self, pixel_values: torch.Tensor) -> None:
        """Raise InputError unless the pictures have the channels and the size that the model takes."""
        wanted, got = (self.channels, *self.image_size), tuple(pixel_values.shape[1:])
        if got != wanted:
            raise InputError(
                f"The model takes pictures of {wanted[0]} channel(s) and {wanted[1]}x{wanted[2]} pixels, got {got[0]} and "
                f"{'x'.join(map(str, got[1:]))}; use the image processor saved with the model, or set its size."
            )


class TrainingLoss(nn.Module):
    """A model's training loss as a module, so that DDP sees the whole model in one `forward`."""

    def __init__(self, i2i: I2IModel):
        super().__init__()
        self.i2i = i2i

    def forward(self, pixel_values, draw, target=None):
        """(B, C, H, W), what `I2IModel.draw` returned, (B, C, H, W) or None -> (B,)."""
        return self.i2i.training_loss(pixel_values, draw, target)

    def activation_checkpointing_enable(self, *args, **options) -> None:
        """That of the model; the Trainer calls it."""
        self.i2i.activation_checkpointing_enable(*args, **options)


def join(one, two):
    """Two draws of a family as one of both batches: tensors, or named tuples of tensors."""
    return torch.cat([one, two]) if isinstance(one, torch.Tensor) else type(one)(*map(join, one, two))


def reset(module: nn.Module) -> None:
    """Every layer below as its own initialiser makes it; parameters that belong to no such layer as N(0, 0.02^2)."""
    for layer in module.modules():
        initialise = getattr(layer, "reset_parameters", None)
        if initialise is not None:
            initialise()
            continue
        for weight in layer.parameters(recurse=False):
            if weight.requires_grad:
                nn.init.normal_(weight, std=0.02)


FOR_TRAINING, FOR_SAMPLING = 1, 2  # separate streams of random numbers from one seed


def seeded(seeds, purpose: int, device="cpu") -> list[torch.Generator]:
    """One generator per picture, from its seed and the purpose; independent of the corruption's, which has the seed itself."""
    states = [np.random.SeedSequence([int(seed), purpose]).generate_state(1, np.uint64)[0] for seed in seeds]
    return [torch.Generator(device).manual_seed(int(state) >> 1) for state in states]
