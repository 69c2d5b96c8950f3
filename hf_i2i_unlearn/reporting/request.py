"""What a run's request.json says, in plain sentences: for the screen, the card, the report and `verify`.

A record of a request holds, beside the verdicts as `audit.picture_verdicts.Judge` gives them:

    case                     the number of the request in the files of whoever ran it; None without
    erasure                  what was erased, see `commands.jobs.erasing`; None where the pictures were suppressed alone
    date, dataset, asked     when, of which pictures, and what (counts and hashes; names only where `--card_names true` says so)
    identity                 {"forget": hash of the set, "corruption", "method"}: what a checkpoint of the run serves
    total                    pictures of the forget set; None for a stream
    trained                  {"pictures", "least", "most"}: how many were trained on, and how often each
    missed                   hashes of those that never were
    ended                    {"steps", "why"}: when training ended, and why before its last step
    unseen                   what the bounds were taken from; seen: whether the original may have been trained on those
    weights                  {"before": hash of the original's, "after": {file: sha256}}
    certified, reason        whether the run may vouch for its verdicts, and if not why
"""

from .plain import hidden

ORDER = ("still completed", "in part", "as if never seen", "cannot be completed", "nothing to complete")
HONOURED, IN_PART, NOT, UNKNOWN = "honoured", "honoured in part", "not honoured", "not certified"
STATUS_CLASSES = {HONOURED: "good", IN_PART: "middling", NOT: "bad", UNKNOWN: "bad"}


def status(request: dict) -> str:
    """One of `HONOURED`, `IN_PART`, `NOT`, `UNKNOWN`."""
    if not request["certified"]:
        return UNKNOWN
    done, of = request["honoured"]["count"], request["honoured"]["of"]
    return HONOURED if done == of else NOT if done == 0 else IN_PART


def headline(request: dict) -> str:
    """The verdict in one sentence."""
    found, word = request["honoured"], status(request)
    if word == UNKNOWN:
        return f"Not certified: {request['reason']}."
    if word == HONOURED:
        return f"The request was honoured: {all_of(found['of'])} can no longer be completed."
    if word == NOT:
        return f"The request was not honoured: {all_of(found['of'])} can still be completed."
    return f"The request was honoured in part: {found['count']} of {found['of']} pictures can no longer be completed."


def answer(request: dict, holds: bool) -> str:
    """Yes or no, in one line. holds: whether enough pictures are forgotten."""
    word, found = "Yes" if holds else "No", request["honoured"]
    if not request["certified"]:
        return f"{word}: {request['reason']}."
    changed = [line for line in request.get("checks", []) if line.startswith("The weights are not those")]
    return f"{word}: {found['count']} of {found['of']} pictures can no longer be completed." + "".join(f" {x}" for x in changed)


def all_of(count: int) -> str:
    return f"all {count} pictures" if count != 1 else "the one picture"


def details(request: dict) -> list[str]:
    """What stands behind it, a sentence each."""
    grades, found, lines = request["grades"], request["honoured"], []
    if found["of"]:
        lines.append(
            f"{found['count']} of {found['of']} can no longer be completed: {percent(found['share'])}; with 95% confidence "
            f"{between(found)}."
        )
    counts = [f"{grades[g]} {g}" for g in reversed(ORDER) if grades.get(g)]
    lines.append(f"By grade: {', '.join(counts)}.")
    if request["total"] is not None and len(request["pictures"]) < request["total"]:
        lines.append(f"{len(request['pictures'])} of the {request['total']} forget pictures were judged, evenly spread.")
    others, known = request["honoured_other_masks"], request["memorised"]
    if others["of"]:
        ways = "; ".join(hidden(t) for t, m in request["masks"].items() if not m["trained"])
        lines.append(f"Hidden in ways that were not trained with ({ways}): {others['count']} of {others['of']}.")
    lines.append(
        f"Before unlearning, the model knew {known['count']} of {known['of']} by heart: better than 95 of 100 pictures that it "
        "never saw."
    )
    if request["seen"]:
        lines.append(
            f"They were compared with {request['unseen']}, which the original may have been trained on: they may be too kind."
        )
    if request.get("ended", {}).get("why"):
        lines.append(f"Training ended after {request['ended']['steps']} steps, because {request['ended']['why']}.")
    for name, word in (("missed", "never trained on"), ("unreadable", "could not be read, and were not judged")):
        if request[name]:
            lines.append(
                f"{len(request[name])} forget pictures were {word}." if name == "missed" else f"{len(request[name])} {word}."
            )
    return lines


def remains(request: dict) -> list[str]:
    """What is left to do, a sentence each."""
    lines, found = [], request["honoured"]
    if request["missed"]:
        lines.append(f"{len(request['missed'])} pictures were never trained on. Train for more steps.")
    if found["count"] < found["of"]:
        lines.append(
            f"{found['of'] - found['count']} pictures are not forgotten. Train for more steps, or with a larger weight of "
            "forgetting (alpha)."
        )
    others = request["honoured_other_masks"]
    if others["count"] < others["of"]:
        lines.append(
            f"Hidden in other ways, {others['of'] - others['count']} of {others['of']} pictures can be completed. Train with "
            "several masks that take turns."
        )
    if request["unreadable"]:
        lines.append(
            f"{len(request['unreadable'])} pictures could not be read, so nobody knows of them. Repair the files, "
            "and ask again."
        )
    near = sum(len(some) for some in request.get("copies", {}).get("of", {}).values())
    if near:
        lines.append(f"{near} other pictures are copies of these, or look much like them; the record lists them by hash.")
    return [*lines, left_in_weights(request.get("erasure"))]


def left_in_weights(erasure: dict | None) -> str:
    """Whether further training may bring the pictures back, as far as the way of training says it. erasure: of the record."""
    if not erasure:
        return "This is suppression, not erasure: further training may bring the pictures back. The audit says how fast."
    which = "encoder and decoder" if erasure["decoder"] else "the encoder"
    left = "" if erasure["decoder"] else " What the decoder knows by heart is still there."
    left += " Something of what the weights were is left in them." if erasure["share"] < 1 else ""
    return (
        f"More was done than suppression: the weights of {which} were moved {erasure['share']:.0%} of the way to a fresh "
        f"initialisation, and learnt the original's work again.{left} The audit says whether training brings the pictures back."
    )


def worst(request: dict, count: int = 10) -> list[dict]:
    """The pictures that are forgotten least: {"sha256", "grade", "before", "after"} under the mask where they are."""
    trained = [t for t, m in request["masks"].items() if m["trained"]]
    rows = []
    for picture in request["pictures"]:
        cell = min((picture["masks"][t] for t in trained), key=lambda c: (ORDER.index(c["grade"]), c["after"]))
        rows.append({"sha256": picture["sha256"]} | cell)
    rows.sort(key=lambda row: (ORDER.index(row["grade"]), row["after"] / max(row["before"], 1e-9)))
    return rows[:count]


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def between(found: dict) -> str:
    return f"{percent(found['low'])} to {percent(found['high'])}"
