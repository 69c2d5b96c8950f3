"""What would make a planned run cheaper, and by how much: measured where it was, else counted, and said which."""

import time

import torch

from ...errors import InputError
from ...training.objective import check_noise_target
from ...training.targets import check_cacheable


def levers(run, plan) -> list[str]:
    """One line an option that the run does not use yet; the dearest part of it first.

    Args:
        run: a `Run`. plan: its `Plan`, without these lines.
    """
    found = [_teacher(run, plan), _noise(run, plan), _lora(run, plan), _bf16(run, plan), _evaluation(run, plan)]
    half = plan.measured.step * plan.steps / 2
    found.append(
        f"twice the devices with half of --per_device_train_batch_size each: {_hours(half)} less, if they have nothing to say "
        "to each other (counted)"
    )
    return [line for line in found if line]


def _hours(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _saved(plan, seconds_a_step: float, once: float = 0.0) -> str:
    saved = seconds_a_step * plan.steps - once
    return f"{seconds_a_step / plan.measured.step:.0%} of a step, {_hours(saved)} less" if saved > 0 else ""


def _teacher(run, plan) -> str | None:
    """`cache_targets`."""
    training, m = run.training, plan.measured
    if training.cache_targets or not run.method.trains_encoder_alone:
        return None
    try:
        check_cacheable(run.model, run.corruption, run.reader.augment, run.pairs)
    except InputError:
        return None
    half = training.per_device_train_batch_size * training.gradient_accumulation_steps
    count = len(run.splits.retain)
    saved = _saved(plan, half * m.encoding, count * (m.encoding + m.reading))
    if not saved:
        return f"--cache_targets true does not pay in so few steps: {count:,} retain pictures would be encoded once (measured)"
    return f"--cache_targets true: {saved}, for {count * m.target_bytes / 1e9:.2g} GB of disk (measured)"


def _noise(run, plan) -> str | None:
    """`noise_target mean`."""
    training, m = run.training, plan.measured
    if training.noise_target == "mean" or training.noise_bank or run.corruption.is_random:
        return None
    try:
        check_noise_target(run.method, run.distance, "mean")
    except InputError:
        return None
    if not run.model.noise_target_is_shared or run.noise.of_batch:
        return None
    half = training.per_device_train_batch_size * training.gradient_accumulation_steps
    saved = _saved(plan, half * m.encoding, training.mean_draws * m.encoding)
    return f"--noise_target mean: {saved} (measured)" if saved else None


def _lora(run, plan) -> str | None:
    """Adapters: no copy of the weights, no gradients and no optimiser's state of the encoder."""
    if run.args.lora or not run.method.trains_encoder_alone or not run.model.decoder_untouched:
        return None
    copied = sum(p.nbytes for p in run.original.parameters())
    saved = (copied + 12 * plan.trained / _shards(run)) / 2**30
    share = min(1.0, saved / plan.memory)
    return (
        f"--lora true: {saved:.2g} GB a device less, {share:.0%} of it, and checkpoints of some MB; no gradient of the weights "
        "themselves, about a third of the trained model's pass (counted)"
    )


def _shards(run) -> int:
    return run.training.world_size if run.training.fsdp else 1


def _bf16(run, plan) -> str | None:
    """Half precision, by what a matrix product takes in it here."""
    if plan.precision != "fp32":
        return None
    device = run.training.device
    rates = [_product(dtype, device) for dtype in (torch.float32, torch.bfloat16)]
    if rates[1] > 0.9 * rates[0]:
        return None
    return f"--bf16 true: matrix products take {rates[1] / rates[0]:.0%} of their time here (measured), and activations half"


def _product(dtype, device) -> float:
    """Seconds of a matrix product."""
    a, b = torch.ones(512, 768, dtype=dtype, device=device), torch.ones(768, 1024, dtype=dtype, device=device)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        (a @ b).sum().item()
        times.append(time.perf_counter() - start)
    return min(times)


def _evaluation(run, plan) -> str | None:
    """Smaller batches in evaluation, where that is what fills the memory; fewer of its pictures, where it takes the time."""
    parts = plan.seconds
    lines, size = [], run.training.per_device_eval_batch_size
    if plan.of_evaluation and size > 1:
        lines.append(
            f"--per_device_eval_batch_size {max(1, size // 8)} (it is {size}): evaluation needs less memory than "
            f"{plan.memory:.2g} GB then"
        )
    looked = parts["verdicts"] + parts["figures"] + parts["evaluations"]
    if looked > parts["steps"]:
        lines.append(f"--eval_samples below {run.args.eval_samples}: looking takes {_hours(looked)}, longer than the steps")
    return "\n- ".join(lines) or None
