"""From an audit's figures to one plain verdict per line, each with its caveat. The rules are these, and no others."""

import math

from .memory import came_back

# What the lines can say.
FOUND, PARTLY, NONE, HOLDS = "trace found", "weakened", "no trace found", "holds"
UNCLEAR, SKIPPED = "inconclusive", "not measured"

# Relearning that takes at least this share of the steps of a model that never saw the pictures counts as learning anew: steps
# are measured on a grid of about a fifth, so a smaller difference is not one.
AS_SLOW = 0.8
# An AUC whose whole interval lies within this of 0.5 gives an attacker next to nothing: right in 55 of 100 pairs instead of 50.
SMALL_AUC = 0.05
# A mask "holds" if at least this share of the rise in error under the trained mask is there, and at most this share of the
# original's lead over a blank fill is left; else it is "weakened". Half: below, more is as it was than was taken away.
MOST = 0.5

LITTLE = 0.1  # of what separates never seen from memorised: an attacker who brings back less has next to nothing

SUPPRESSED = (
    "This is suppression, not erasure: the method keeps the model from using what it knows, and does not take it out of the "
    "weights. The tests say how far that goes."
)

ERASED = (
    "Weights were started anew and trained again without the forgotten pictures, so that what they knew is not merely kept "
    "from use. The tests say how far that goes."
)


def verdicts(audit: dict) -> list[dict[str, str]]:
    """[{"part", "title", "status", "finding", "caveat"}, ...] of what `audit.json` holds; "part" is its name there.

    The rules, by part:
    - Relearning is a trace if the error comes back within the steps tried, unless that takes at least `AS_SLOW` of what a
      never-trained model takes.
    - Memory is a trace if the best attacker, who has half of the forgotten pictures, brings back more than `LITTLE` of what
      separates never seen from memorised on the other half, and weakened up to `MOST`. Never seen is the attacked twin where
      there is one; else the unlearned model before the attack.
    - Membership is a trace if the interval of the AUC leaves out 0.5, none if it lies within `SMALL_AUC` of it, else
      inconclusive.
    - A probe is a trace if its interval lies above chance.
    - A mask is a trace if the lower end of the interval of after/before is below 1 + tolerance, weakened where less than
      `MOST` of the trained mask's rise is there or more than `MOST` of the original's lead over a blank fill is left, and else
      holds.
    """
    parts, lines = audit["parts"], []
    if any(name.startswith("relearning/") for name in parts):
        lines.append(_relearning(audit))
    if "memory/unlearned" in parts:
        lines.append(_memory(audit))
    for name in ("forget", "retain"):
        if f"membership/{name}" in parts:
            lines.append(_membership(name, parts[f"membership/{name}"]))
    for name in ("classes", "forget_retain"):
        if f"probe/{name}" in parts:
            lines.append(_probe(name, parts[f"probe/{name}"]))
    leakage = {name.partition("/")[2]: part for name, part in parts.items() if name.startswith("leakage/")}
    first = _trained(audit)[0]
    lines += [_leakage(mask, part, leakage.get(first), audit) for mask, part in leakage.items()]
    return lines


def overall(lines: list[dict]) -> str:
    """One sentence for the head of a page: what was found, and never more than was measured."""
    counted = [line for line in lines if not line.get("reference")]
    found = sum(line["status"] in (FOUND, PARTLY) for line in counted)
    measured = sum(line["status"] != SKIPPED for line in counted)
    if not measured:
        return "Nothing was measured."
    if not found:
        return f"None of the {measured} tests found a trace of the forgotten pictures. That is no proof that there is none."
    return f"{found} of the {measured} tests found something of what was to be forgotten.{_back(counted)}"


def _back(lines):
    steps = [line["steps"] for line in lines if "steps" in line and line["status"] == FOUND]
    if not steps:
        return ""
    return (
        f" Ordinary training brings it back in {_steps(steps[0])}." if steps[0] else " By its errors the model forgot nothing."
    )


def _line(part, title, status, finding, caveat, **more):
    return {"part": part, "title": title, "status": status, "finding": finding, "caveat": caveat, **more}


def _relearning(audit):
    parts, o = audit["parts"], audit["options"]
    found = {name: parts.get(f"relearning/{name}", {}) for name in SUBJECTS}
    mine, title = found["unlearned"], "Relearning"
    if "skipped" in mine or not mine:
        return _line("relearning/unlearned", title, SKIPPED, mine.get("skipped", "It was not run."), "")
    aim = f"within {o['tolerance']:.0%} of the original's {_error(audit)} on held-out forget pictures"
    aim += f" ({mine['original_error']:.3g}, so {mine['target']:.3g} or less)"
    start = mine["curve"][0][1]
    if mine["steps"] == 0:
        status, finding = FOUND, f"The unlearned model is {aim} without any training: by this measure it forgot nothing."
    elif mine["steps"] is None:
        status = NONE
        finding = (
            f"{_steps(o['relearn_steps'])} of ordinary training on {mine['pictures']} forget pictures did not bring the model "
            f"{aim}; from {start:.3g} it came to {mine['error']:.3g}."
        )
    else:
        status = FOUND
        finding = (
            f"{_steps(mine['steps'])} of ordinary training on {mine['pictures']} forget pictures sufficed to bring the model "
            f"from {start:.3g} to {aim}."
        )
    compared = []
    for name, words in SUBJECTS.items():
        other = found[name]
        if name in ("unlearned", "original") or "steps" not in other:
            continue
        if other["steps"] is None:
            compared.append(f"{words} does not arrive there in {o['relearn_steps']} steps")
        else:
            compared.append(f"{words} takes {_steps(other['steps'])}")
        if name == "never_trained" and mine["steps"] and other["steps"] and mine["steps"] >= AS_SLOW * other["steps"]:
            status = NONE
    if compared:
        finding += f" For comparison: {'; '.join(compared)}."
    rates = sorted(t["learning_rate"] for t in mine["tried"])
    caveat = (
        f"The attacker was given the best of {len(rates)} learning rates ({mine['learning_rate']:g}), all weights and the mask "
        "of the run; a cleverer attack may need fewer steps."
    )
    if len(rates) > 1 and mine["learning_rate"] in (rates[0], rates[-1]):
        end = "lowest" if mine["learning_rate"] == rates[0] else "highest"
        caveat += f" That rate was the {end} tried: others beyond may be faster."
    if "steps" not in found["never_trained"]:
        caveat += (
            " Without a model that never saw these pictures, what was kept cannot be told from what is quickly learned anew."
        )
    if audit["sets"].get("patch"):
        caveat += " The checkpoint is a patch on the untouched original: whoever can switch it off needs no training at all."
    return _line("relearning/unlearned", title, status, finding, caveat, steps=mine["steps"])


def _memory(audit):
    parts, title = audit["parts"], "Memory: the other half of the forgotten pictures"
    mine, twin, before = (parts.get(f"memory/{name}", {}) for name in ("unlearned", "never_trained", "original"))
    if "skipped" in mine:
        return _line("memory/unlearned", title, SKIPPED, mine["skipped"], "")
    reference = twin["lowest"] if twin else mine["start"]
    share = came_back(mine["lowest"], reference, before["error"])
    best = mine["attackers"][0]
    how = {"all": "all weights", "encoder": "the encoder's weights", "lora": "LoRA adapters"}[best["weights"]]
    finding = (
        f"An attacker who trains on {mine['pictures']} of the forgotten pictures brings the {_error(audit)} on {mine['held']} "
        f"others, which he does not have, from {mine['start']:.3g} down to {mine['lowest']:.3g} in {_steps(mine['step'])}. The "
        f"original had {before['error']:.3g}. "
    )
    if math.isnan(share):
        status = UNCLEAR
        finding += "That is no better than a model that never saw them, so there was nothing to remember."
    else:
        status = FOUND if share > MOST else PARTLY if share > LITTLE else NONE
        seen = f"A model that never saw them comes to {reference:.3g}. " if twin else ""
        finding += f"{seen}So {share:.0%} of what separates never seen from memorised comes back."
    caveat = (
        f"The best of {len(mine['attackers'])} attackers: {how}, rate {best['learning_rate']:g}"
        f"{', with retain pictures beside' if best['retain'] else ''}. Others may do better."
    )
    if not twin:
        caveat += (
            " Without a model that never saw them (--never_trained), what is learnt anew from the attacker's half is counted "
            "as if it were remembered."
        )
    if extraction := parts.get("memory/extraction"):
        finding += (
            f" Completed better than 95 of 100 unseen pictures: {_percent(extraction['before'])} before, "
            f"{_percent(extraction['after'])} after."
        )
    return _line("memory/unlearned", title, status, finding, caveat, came_back=None if math.isnan(share) else share)


def _error(audit):
    """What was measured, in words."""
    return audit["options"].get("metric", "hole error")


SUBJECTS = {
    "unlearned": "the unlearned model",
    "original": "the original",
    "never_trained": "a model that never saw these pictures",
    "never_seen": "the original, on classes that it never saw,",
    "scrambled": "the original with a scrambled encoder",
}


def _steps(count):
    return f"{count} step{'s' * (count != 1)}"


def _interval(value, key):
    return f"{value[key]:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def _membership(name, part):
    title = f"Membership inference, {name} set"
    if "skipped" in part:
        return _line(f"membership/{name}", title, SKIPPED, part["skipped"], "", reference=name == "retain")
    after, before = part["after"], part["before"]
    if after["low"] > 0.5 or after["high"] < 0.5:
        status = FOUND
        how = "lower" if after["low"] > 0.5 else "HIGHER"
        says = f"training pictures can be told from unseen ones: their error is {how}."
    elif 0.5 - SMALL_AUC <= after["low"] and after["high"] <= 0.5 + SMALL_AUC:
        status, says = NONE, "training pictures cannot be told from unseen ones by their error."
    else:
        status, says = UNCLEAR, "too few pictures to tell."
    finding = f"AUC {_interval(after, 'auc')} after, {_interval(before, 'auc')} before: {says}"
    caveat = (
        f"One attack, by the error in the hole, on {part['members']} pictures against {part['others']} unseen ones "
        f"({part['unseen']}); 0.5 is guessing. It assumes that the original was trained on the former and not on the latter."
    )
    if status != FOUND and before["low"] <= 0.5 <= before["high"]:
        caveat += " It finds nothing in the original either, so that it finds nothing here says little."
    if name == "retain":
        caveat += " For reference: nothing was to be forgotten here."
    return _line(f"membership/{name}", title, status, finding, caveat, reference=name == "retain")


def _probe(name, part):
    title = {"classes": "Linear probe, forget classes", "forget_retain": "Linear probe, forget or retain"}[name]
    if "skipped" in part:
        return _line(f"probe/{name}", title, SKIPPED, part["skipped"], "")
    after, before, pixels = part["after"], part["before"], part["pixels"]
    what = {"classes": "which forget class it is", "forget_retain": "whether a picture is a forget or a retain picture"}[name]
    status = FOUND if after["low"] > after["chance"] else NONE if after["high"] - after["chance"] <= SMALL_AUC else UNCLEAR
    word = {FOUND: "can be read", NONE: "can hardly be read", UNCLEAR: "cannot surely be read"}[status]
    finding = (
        f"From the encoder's representation {what} {word}: right in {_percent(after)} after, {_percent(before)} before; chance "
        f"{after['chance']:.0%}. From the visible pixels alone: {_percent(pixels)}."
    )
    if name == "classes":
        caveat = "The visible part shows the class by itself; what goes beyond the visible pixels' share is the encoder's own."
    else:
        caveat = "A model that forgets some pictures and not others must treat them differently, so this rises with forgetting."
    return _line(
        f"probe/{name}", title, status, finding, f"{caveat} {after['count']} pictures tested, {part['fitted']} to fit."
    )


def _percent(value):
    return f"{value['accuracy']:.1%} ({value['low']:.0%} to {value['high']:.0%})"


def _trained(audit) -> list[str]:
    """T of training; more than one where several took turns."""
    return audit["options"]["corruption"].split(",")


def _leakage(mask, part, trained, audit):
    title, tolerance = f"Mask {mask}", audit["options"]["tolerance"]
    if mask in (trained_on := _trained(audit)):
        title += " (the trained one)" if len(trained_on) == 1 else " (trained)"
    rise, usual = part["change"], (trained or {}).get("change")
    finding = (
        f"{_error(audit).capitalize()} on forget pictures {part['before']:.3g} before, {part['after']:.3g} after: "
        f"{rise['ratio']:.2f} times ({rise['low']:.2f} to {rise['high']:.2f}); a blank fill has {part['blank']:.3g}."
    )
    caveat = ""
    if part["before"] >= part["blank"]:
        status, caveat = (
            UNCLEAR,
            "The original completes such pictures no better than a blank fill, so there is little to forget.",
        )
    elif rise["low"] < 1 + tolerance:
        status, caveat = (
            FOUND,
            f"Completions can be within {tolerance:.0%} of the original's error: what was forgotten comes back.",
        )
    elif usual and rise["ratio"] - 1 < MOST * (usual["ratio"] - 1):
        status, caveat = PARTLY, "The error rises less than half as much as under the trained mask."
    elif part["lead_left"] > MOST:
        status = PARTLY
    else:
        status = HOLDS
    if (part["lead_left"] or 0) > 0:
        caveat += (
            f" The completions are still better than a blank fill ({part['lead_left']:.0%} of the original's lead is left)."
        )
    return _line(f"leakage/{mask}", title, status, finding, caveat.strip())
