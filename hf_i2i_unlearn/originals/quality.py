"""Originals: loaded with their settings of generation, and measured against completions that have learnt nothing.

What does not beat those knows nothing that could be unlearned.
"""

import numpy as np

from ..errors import InputError
from ..evaluation.scores import shown_scores
from ..evaluation.tables import title_of
from ..evaluation.trivial import TRIVIAL
from ..models.auto import load_model
from ..models.base import I2IModel
from ..reporting.run_folder import RunFolder


def load_original(path: str, generation: dict | None = None, steps: int | None = None) -> I2IModel:
    """A checkpoint, in eval mode.

    Args:
        path: as `load_model` takes it. generation: options of its family, such as MAGE's steps, temperature and margin; what is
            not given is as in the pretraining run whose run.yaml is in the folder. steps: of generation, where there are any.

    Raises:
        InputError: nothing there, or options that the family does not have.
    """
    options = dict(RunFolder(path).options.get("generation") or {}) | dict(generation or {})
    try:
        model = load_model(path, **options)
    except TypeError as error:
        raise InputError(f"The options of generation {options} do not fit '{path}': {error}.") from None
    if steps is not None and hasattr(model, "steps"):
        model.steps = steps
    return model.eval()


REFERENCES = {"true pictures": "true_", "blank hole": "blank_"}  # measured beside any model, by features alone


def original_table(results: dict[str, dict], which: str) -> str:
    """Results of `Evaluator` as Markdown, a row per model, for one set of pictures and one T; a table per feature network.

    Args:
        results: {model: result}. which: the set.
    """
    figures = {name: result[which] for name, result in results.items()}
    first = next(iter(figures.values()))
    networks = list(dict.fromkeys(how["network"] for how in first.get("features", ())))
    blocks = []
    for network in networks or [None]:
        places = [i for i, how in enumerate(first.get("features", ())) if how["network"] == network]
        scores = shown_scores(any(first["features"][place].get("few_samples") for place in places))
        columns = [(key, place) for key in scores for place in places if key in first["features"][place]]
        heads = [f"{title_of(key, first['features'][place])}, {first['features'][place]['region']}" for key, place in columns]
        lines = [f"| {network or ''} | {' | '.join(['hole error', 'PSNR', *heads])} |", "|---" * (len(heads) + 3) + "|"]
        for name, prefix in REFERENCES.items():
            values = [first["features"][place].get(prefix + key) for key, place in columns]
            if columns:
                lines.append(f"| {name} | | | {' | '.join('' if v is None else f'{v:.3g}' for v in values)} |")
        for name, f in figures.items():
            values = [f"{f['mse']:.3f}", f"{f['psnr']:.1f} dB", *(f"{f['features'][place][key]:.3g}" for key, place in columns)]
            lines.append(f"| {name} | {' | '.join(values)} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


# The distance from perfection of each figure that tells a good completion from a bad one.
GAPS = {
    "mse": lambda v: v,
    "fid": lambda v: v,
    "kid": lambda v: max(0.0, v),
    "similarity": lambda v: 1 - v,
    "accuracy": lambda v: 1 - v,
}


CLEARLY = 0.1  # by this share of the trivial completion's distance


def against_trivial(results: dict[str, dict], which: str, original: str = "original") -> list[dict]:
    """The original's figures beside those of the best completion that nothing has learnt.

    Args:
        results: {model: result}, those of `TRIVIAL` among them. which: the set.

    Returns:
        One dict per figure: figure, original, trivial (the best value), by (whose), closer: the share by which the original is
        closer to perfection (0 error or distance, similarity or accuracy 1); negative where it is farther.
    """
    mine = results[original][which]
    trivial = {name: results[name][which] for name in TRIVIAL if name in results}
    rows = []
    networks = {how["network"] for how in mine.get("features", ())}

    def several(how):
        return f" ({how['network']})" if len(networks) > 1 else ""

    def add(figure, key, value, others):
        gap = {name: GAPS[key](v) for name, v in others.items() if v is not None}
        best = min(gap, key=gap.__getitem__)
        closer = 1 - GAPS[key](value) / gap[best] if gap[best] else float(np.sign(gap[best] - GAPS[key](value)))
        rows.append({"figure": figure, "original": value, "trivial": others[best], "by": best, "closer": closer})

    add("hole error", "mse", mine["mse"], {name: f["mse"] for name, f in trivial.items()})
    for place, how in enumerate(mine.get("features", ())):
        for key in shown_scores(how.get("few_samples", False)):
            if key in how and key in GAPS:
                others = {name: f["features"][place][key] for name, f in trivial.items()}
                others["blank hole"] = how.get(f"blank_{key}")
                add(f"{title_of(key, how)}, {how['region']}{several(how)}", key, how[key], others)
    return rows


def verdict(rows: list[dict], what: str) -> str:
    """What `against_trivial` found, in words and as a table. what: T and set."""
    clear = [r for r in rows if r["closer"] >= CLEARLY]
    behind = [r for r in rows if r["closer"] <= 0]
    if len(clear) == len(rows):
        word = "the original **clearly beats** every trivial completion in all figures"
    elif not behind:
        clearly = f"clearly (by {CLEARLY:.0%} or more) in {len(clear)} of {len(rows)} figures"
        word = f"the original beats every trivial completion, {clearly}"
    elif len(behind) == len(rows):
        word = "the original **does not beat** the trivial completions in any figure"
    else:
        names = ", ".join(r["figure"] for r in behind)
        ahead = f"{len(rows) - len(behind)} of {len(rows)} figures"
        word = f"the original beats every trivial completion in {ahead}, **not in** {names}"
    lines = ["| figure | original | best trivial completion | original closer to the truth by |", "|---|---|---|---|"]
    lines += [f"| {r['figure']} | {r['original']:.3g} | {r['trivial']:.3g} ({r['by']}) | {r['closer']:+.0%} |" for r in rows]
    return f"{what}: {word}.\n\n" + "\n".join(lines)
