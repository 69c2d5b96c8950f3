"""Is it still in the weights? An attacker has half of the forgotten pictures; what counts is the other half, which he has not.

What comes back there was never shown to him: it was remembered. A model that never saw the pictures tells how much of it can
be learnt anew from the attacker's half.
"""

import itertools
import math

from ..methods.corruptions import Corruption
from ..models.base import I2IModel
from .attacks import Setting, relearn


def attack(
    model: I2IModel,
    rows: list,
    held: list,
    retain: list,
    corruption: Corruption,
    setting: Setting,
    *,
    weights: list[str],
    learning_rates: list[float],
    steps: int,
    batch_size: int,
    title: str = "attack",
) -> dict:
    """The lowest mean error on `held` that any attacker reaches at any step, training on `rows`.

    The attackers: every choice of weights at every rate, and with all weights, at every rate, with retain pictures beside.

    Returns:
        {"start": the error before, "lowest", "step", "attackers": [{"weights", "learning_rate", "retain", "lowest", "step",
        "curve": [[step, error], ...]}], the best one first}
    """
    plans = [(w, rate, False) for w, rate in itertools.product(weights, learning_rates)]
    plans += [(weights[0], rate, True) for rate in learning_rates] if retain else []
    found = []
    for chosen, rate, beside in plans:
        tried = relearn(
            model, rows, held, corruption, setting, target=-math.inf, learning_rate=rate, steps=steps, batch_size=batch_size,
            title=f"{title}: {chosen}", to_the_end=True, weights=chosen, beside=retain if beside else None,
        )  # fmt: skip
        step, lowest = min(tried["curve"], key=lambda point: point[1])
        found.append(
            {
                "weights": chosen,
                "learning_rate": rate,
                "retain": beside,
                "lowest": lowest,
                "step": step,
                "curve": tried["curve"],
            }
        )
    found.sort(key=lambda one: one["lowest"])
    start = found[0]["curve"][0][1]
    return {"start": start, "lowest": found[0]["lowest"], "step": found[0]["step"], "attackers": found}


def came_back(lowest: float, never_seen: float, memorised: float) -> float:
    """The share of what separates never seen from memorised that an attack brings back: 0 to 1.

    Args: errors on the other half: the attacked model's lowest, that of the attacked twin, and the memorised model's.
    """
    gap = never_seen - memorised
    return min(1.0, max(0.0, (never_seen - lowest) / gap)) if gap > 0 else math.nan
