"""Control over a run: a bound on what retain may cost, and when to stop."""

import math
from collections.abc import Callable

import torch
from transformers import TrainerCallback


class RetainBound:
    """Forget as much as possible while the retain distance stays at or below `bound` (epsilon).

    min over theta of the forget term subject to retain distance <= epsilon, by its Lagrangian: the retain term is weighted by
    a multiplier that rises while the bound is broken and falls while there is room (dual ascent), after the epsilon-
    constrained view of controllable unlearning (arXiv 2408.01689).

        loss = (m * retain + forget) / (1 + m),   log m += rate * clip(retain_average / target - 1, -1, 1) at each step

    The bound is meant for pictures that are not trained on, where the distance is larger. The target that training is held to
    starts at epsilon and is lowered at each evaluation by the gap between the two (`calibrate`).

    Args:
        bound: epsilon, in units of the run's retain distance, which is 0 at the original weights.
        multiplier: its start; 1 / alpha makes the first step that of the unconstrained loss.
        rate: of the multiplier. decay: of the running average of the retain distance.
    """

    def __init__(self, bound: float, multiplier: float = 4.0, rate: float = 0.05, decay: float = 0.9):
        self.bound, self.rate, self.decay = bound, rate, decay
        self.log_multiplier, self.average, self.target = math.log(multiplier), 0.0, bound
        self._seen = []

    def weigh(self, retain: torch.Tensor, forget: torch.Tensor) -> torch.Tensor:
        """The loss of one micro-batch, and a look at its retain distance."""
        self._seen.append(retain.detach())
        m = math.exp(self.log_multiplier)
        return (m * retain + forget) / (1 + m)

    def step(self, accelerator) -> None:
        """After an optimisation step: move the multiplier by what was seen, over all micro-batches and processes."""
        retain = accelerator.reduce(torch.stack(self._seen).mean(), "mean").item()
        self._seen = []
        self.average = self.decay * self.average + (1 - self.decay) * retain
        self.log_multiplier += self.rate * min(1.0, max(-1.0, self.average / self.target - 1))

    def calibrate(self, evaluated: float) -> None:
        """After an evaluation whose retain distance was `evaluated`: hold training to epsilon less the gap, as a ratio."""
        if evaluated > 0 and self.average > 0:
            self.target = self.bound * min(1.0, self.average / evaluated)

    def state(self) -> dict:
        """What a checkpoint must hold to go on."""
        return {"log_multiplier": self.log_multiplier, "average": self.average, "target": self.target}

    def load_state(self, state: dict) -> None:
        """Go on from what `state` returned."""
        self.log_multiplier, self.average, self.target = state["log_multiplier"], state["average"], state["target"]


class StopAtForgetDistance(TrainerCallback):
    """Ends the run at the first evaluation whose forget distance has reached the wanted one.

    Args:
        distance: wanted. rising: whether the method drives it up (max loss) or down (all others).
    """

    def __init__(self, distance: float, rising: bool = False):
        self.distance, self.rising = distance, rising

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        reached = metrics["eval_forget_distance"]
        if (reached >= self.distance) if self.rising else (reached <= self.distance):
            control.should_training_stop = True


class StopWhen(TrainerCallback):
    """Ends the run at the first of its steps `every`, 2 * `every`, ... at which `reached(step)` says so.

    All processes must come to the same answer.
    """

    def __init__(self, reached: Callable[[int], bool], every: int):
        self.reached, self.every = reached, every

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0 and self.reached(state.global_step):
            control.should_training_stop = True
