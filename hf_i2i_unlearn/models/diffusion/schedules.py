"""The noise schedules of diffusers' schedulers: gamma, the share of signal; samplers on the schedule of another; their loop."""

import inspect

import torch

from ...errors import InputError

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def on_schedule(kind, scheduler):
    """A sampler of class `kind` on the schedule of another scheduler; it begins at the noisiest step, as `generate` does."""
    return kind.from_config(plain_config(scheduler.config), timestep_spacing="trailing")


def plain_config(config) -> dict:
    """Without the list of "default" values, which holds positional arguments too: they would be replaced by other defaults."""
    return {name: value for name, value in config.items() if name != "_use_default_values"}


def between(gammas, t, share):
    """gamma at `share` (0..1) of the way from step t - 1 to step t."""
    return (gammas[t] - gammas[t - 1]) * share + gammas[t - 1]


def gamma_at(scheduler, t) -> torch.Tensor:
    """`alphas_cumprod` at a sampler's time, float32; some samplers go between the steps."""
    gammas, t = scheduler.alphas_cumprod.float().cpu(), torch.as_tensor(t).cpu()
    above = t.ceil().long() if t.is_floating_point() else t
    return gammas[above] if above == t or above == 0 else between(gammas, above, (t - (above - 1)).float())


def same_schedule(one, two) -> bool:
    """Whether two schedulers have the same share of signal at every step."""
    a, b = one.alphas_cumprod.cpu().float(), two.alphas_cumprod.cpu().float()
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def prediction_type(scheduler) -> str:
    """What a network of this scheduler predicts, one of `PREDICTIONS`. Raises InputError for one that the loss lacks."""
    if getattr(scheduler, "alphas_cumprod", None) is None:
        raise InputError(
            f"{type(scheduler).__name__} has no alphas_cumprod, from which the U-Net's gamma is taken; use a scheduler that "
            "has, such as DDPMScheduler, DDIMScheduler or DPMSolverMultistepScheduler."
        )
    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind not in PREDICTIONS:
        raise InputError(f"The scheduler's prediction type is '{kind}', expected one of {', '.join(PREDICTIONS)}.")
    return kind


def check_sampler(sampler, scheduler, any_schedule: bool) -> None:
    """Raise InputError unless a network that was trained with `scheduler` can be sampled from with `sampler`.

    Args:
        any_schedule: the network is told gamma and not a step's number, so the sampler may have another schedule.
    """
    if prediction_type(sampler) != prediction_type(scheduler):
        raise InputError(
            f"The sampler takes predictions of type '{prediction_type(sampler)}', but the network was trained for "
            f"'{prediction_type(scheduler)}'; make it with from_config(scheduler.config)."
        )
    if not any_schedule and not same_schedule(sampler, scheduler):
        raise InputError(
            "The sampler has another noise schedule than the network was trained on, which is told step numbers; make it "
            "with from_config(scheduler.config)."
        )


def denoise(sampler, steps: int, noise: torch.Tensor, show, predict, generators=None) -> torch.Tensor:
    """The loop of a sampler: `noise` (B, C, h, w) at its first step -> what is restored.

    Args:
        show: (sample, time t) -> network input. predict: (network input, t) -> the network's prediction, (B, C, h, w).
        generators: one a picture, for samplers that draw noise on the way.
    """
    sampler.set_timesteps(steps)
    options = {"generator": generators} if "generator" in inspect.signature(sampler.step).parameters else {}
    sample = noise * float(sampler.init_noise_sigma)
    for t in sampler.timesteps:
        predicted = predict(show(sampler.scale_model_input(sample, t), t), t)  # Euler and Heun scale their sample
        sample = sampler.step(predicted, t, sample, **options).prev_sample
    return sample
