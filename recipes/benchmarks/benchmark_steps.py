"""What the parts of benchmark.py share: models of random weights, steps of the product on them, and the measuring of steps."""

import ctypes
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from PIL import Image
from transformers import ViTMAEConfig
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_i2i_unlearn import I2IMAE, CenterCrop, ForgetRetainPairs, UnlearningConfig, UnlearningTrainer, add_patch
from hf_i2i_unlearn.models.diffusion.layout import palette_config
from hf_i2i_unlearn.models.diffusion.pixels import I2IPaletteUNet

OURS = {
    "b": {},
    "c1": {"cache_targets": True},
    "c2": {"cache_targets": True, "noise_target": "mean"},
    "c3": {"cache_targets": True, "noise_target": "mean"},
}
LORA_RANK = 8

clock = time.perf_counter  # or time.process_time, on a machine with other work


def made_pictures(count, size, batch=32):
    """Batches of smooth random pictures: noise at an eighth of the size, enlarged, plus a little of its own."""
    for start in range(0, count, batch):
        generator = torch.Generator().manual_seed(start)
        coarse = torch.randn(min(batch, count - start), 3, size // 8, size // 8, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
        yield smooth + 0.1 * torch.randn(smooth.shape, generator=generator)


@dataclass
class Side:
    """What takes turns: `step()` is a step, `floor` its indispensable FLOPs, `gemm` measures the peak in FLOP/s."""

    step: Callable
    floor: float = 0.0
    gemm: str = "fp32"


def mae(args) -> I2IMAE:
    """A MAE of ViT geometry, patches of 16 pixels, and of a small decoder, which a step does not use."""
    torch.manual_seed(0)
    return I2IMAE.from_config(
        ViTMAEConfig(
            image_size=args.size,
            hidden_size=args.width,
            num_hidden_layers=args.layers,
            norm_pix_loss=False,
            num_attention_heads=max(1, args.width // 64),
            intermediate_size=4 * args.width,
            decoder_num_hidden_layers=1,
        )
    )


def crop(model) -> CenterCrop:
    """8x8 of 14x14 patches, and as large a part of other grids."""
    return CenterCrop(max(1, model.grid[0] * 8 // 14))


def make_trainer(args, folder, model, original=None, **options) -> UnlearningTrainer:
    """The product, on pictures made for it."""
    (height, width), mean = model.image_size, [0.5] * model.channels
    rows = []
    for pixels in next(made_pictures(args.pairs, height, args.pairs)):
        picture = (pixels.clamp(-2, 2) * 63 + 128).byte().permute(1, 2, 0).numpy()
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}})
    processor = ViTImageProcessorPil(size={"height": height, "width": width}, image_mean=mean, image_std=mean)
    config = UnlearningConfig(
        str(folder), per_device_train_batch_size=args.pairs, per_device_eval_batch_size=args.pairs, mean_draws=args.pairs,
        targets_dir=str(folder), max_steps=1, save_strategy="no", disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(), **options,
    )  # fmt: skip
    return UnlearningTrainer(model, config, ForgetRetainPairs(rows, rows, 0), processor, crop(model), original=original)


def product_step(trainer, optimizer=None) -> Callable:
    """What `trainer.train` does in a step, with one batch, read beforehand."""
    trainer.prepare_targets()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.current_gradient_accumulation_steps = 1
    if trainer.args.activation_checkpointing:
        trainer.model.activation_checkpointing_enable()
    optimizer = optimizer or trainer.create_optimizer()
    model = trainer.accelerator.prepare_model(trainer.model)  # autocast and torch.compile

    def step():
        trainer.training_step(model, batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def released_optimizer(model):
    """torch's AdamW as it comes, as the released code has it."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)


def reference_step(
    model, original, batch, optimizer, alpha: float = 0.25, attention: str = "eager", corruption=None
) -> Callable:
    """The released code's pattern: the teacher over all pictures, and over noise for all, of which half is used.

    Gradients are clipped at a norm of 3, and attention is written out ("eager"), its weights in memory.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    pixels, half = torch.cat([batch["retain"], batch["forget"]]), len(batch["retain"])
    mask = (corruption or crop(model))(model.grid, range(len(pixels)))

    def step():
        others = [(one.model, one.model.config._attn_implementation) for one in (model, original)]
        for inner, _ in others:
            inner.set_attn_implementation(attention)
        loss = objective()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 3.0)
        optimizer.step()
        optimizer.zero_grad()
        for inner, before in others:  # the other sides train the same model
            inner.set_attn_implementation(before)

    def objective():
        encoded = model(pixels, mask)
        with torch.no_grad():
            known, noise = original(pixels, mask), original(torch.randn_like(pixels), mask)
        return (encoded[:half] - known[:half]).square().mean() + alpha * (encoded[half:] - noise[half:]).square().mean()

    return step


def encoder_flops(config, visible: int) -> float:
    """Of one picture's forward pass, in matrix products: patches, projections, MLP and attention over the visible tokens."""
    width, tokens, layers = config.hidden_size, visible + 1, config.num_hidden_layers
    patches = 2 * visible * config.num_channels * config.patch_size**2 * width
    return patches + layers * (2 * tokens * width * (4 * width + 2 * config.intermediate_size) + 4 * tokens**2 * width)


def lora_flops(config, visible: int, rank: int) -> float:
    """What adapters on all linear layers add to that."""
    width, hidden = config.hidden_size, config.intermediate_size
    return config.num_hidden_layers * 2 * (visible + 1) * rank * (4 * 2 * width + 2 * (width + hidden))


def floors(config, visible: int, pairs: int) -> dict[str, float]:
    """Indispensable FLOPs of a step of each side; a backward pass costs two forward passes, one where weights are frozen."""
    one = encoder_flops(config, visible) * pairs
    adapters = lora_flops(config, visible, LORA_RANK) * pairs
    return {"a": 10 * one, "b": 8 * one, "c1": 7 * one, "c2": 6 * one, "c3": 4 * one + 6 * adapters}


class Gemm:
    """Rate of the product of the tokens of a step with the first matrix of an MLP."""

    def __init__(self, tokens: int, width: int, hidden: int, dtype, device, least: float = 0.3):
        self.x = torch.randn(tokens, width, dtype=dtype, device=device)
        self.w = torch.randn(width, hidden, dtype=dtype, device=device)
        self.out = self.x @ self.w
        self.flops, self.repeats, self.least = 2 * tokens * width * hidden, 1, least

    def __call__(self) -> float:
        """FLOP/s."""
        while True:
            took = timed(lambda: [torch.mm(self.x, self.w, out=self.out) for _ in range(self.repeats)])
            if took >= self.least / 2:
                return self.flops * self.repeats / took
            self.repeats = max(2 * self.repeats, int(self.repeats * self.least / took))


def timed(function) -> float:
    """Seconds of a call, until a GPU has done its work too."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = clock()
    function()
    wait()
    return clock() - start


class Memory:
    """GB that a call takes at its peak beyond what was held before, and its peak; None where the system does not say."""

    def __enter__(self):
        try:
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            else:
                ctypes.CDLL(None).malloc_trim(0)  # what is free, but not given back yet, would not count
                Path("/proc/self/clear_refs").write_text("5")
            self.before = self._held(peak=False)
        except (OSError, AttributeError):
            self.before = None
        return self

    def __exit__(self, *error):
        self.peak = None if self.before is None else self._held(peak=True) / 2**30
        self.taken = None if self.before is None else self.peak - self.before / 2**30

    def _held(self, peak):
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
        lines = Path("/proc/self/status").read_text().splitlines()
        return 2**10 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM" if peak else "VmRSS"))


def take_turns(sides: dict[str, Side], gemms: dict[str, Gemm], rounds: int) -> dict[str, dict]:
    """{side: {"seconds", "ratio" to the first side, "share" of the peak, "memory", its "peak"}}, medians; and the peaks."""
    seen, memory = {name: [] for name in sides}, {}
    for name, one in sides.items():
        one.step()  # makes the optimiser's state, compiles
        with Memory() as memory[name]:  # apart, for the release of what is free makes the next step slower
            one.step()
    peaks = {name: [] for name in gemms}
    for _ in range(rounds):
        for name, gemm in gemms.items():
            peaks[name].append(gemm())
        for name, one in sides.items():
            seen[name].append(timed(one.step))
    first = next(iter(sides))
    result = {}
    for name, one in sides.items():
        times = seen[name]
        result[name] = {
            "seconds": median(times),
            "ratio": median(t / base for t, base in zip(times, seen[first])),
            "memory": memory[name].taken,
            "peak": memory[name].peak,
        }
        if one.floor:
            result[name]["share"] = median(one.floor / t / peak for t, peak in zip(times, peaks[one.gemm]))
    return result, {name: median(rates) for name, rates in peaks.items()}


def machine(device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def with_lora(model):
    add_patch(model, "random weights", LORA_RANK)
    return model


def unet(args) -> I2IPaletteUNet:
    torch.manual_seed(0)
    groups = min(32, args.unet_width // 2)
    return I2IPaletteUNet.from_config(
        palette_config(args.unet_size, inner=args.unet_width, norm_groups=groups, head_channels=min(32, args.unet_width))
    )
