"""What a run's record says, in words: the rows that card and report share.

A record (run.json) holds plain values under these names:

    original       base_model, base_model_on_hub (bool), license (None if unknown)
    checkpoint     library, relation ("finetune", "adapter"), usage (Python that loads it), decoder_untouched (bool)
    adapters       patch (a line on them, None without), below (patches under them)
    pictures       dataset, dataset_on_hub (bool), forget, forget_size, retain, retain_size, retain_availability, evaluation
    method         method: {"name", "source", "summary", "options"}, alpha, distance, noise, corruption, eval_corruption
    erasure        optional: {"share", "decoder" (bool), "moved", "weights", "steps"}
    training       steps, batch, learning_rate, seed, kept ("best", "last"), skipped
    how            command, versions: {package: version}
    metrics        optional: {name in figures.json: title in tables}, of those beside mse and psnr
    note           optional: Markdown of somebody's own, which the card shows under the usage

Names of what was to be forgotten are in it only where `--card_names true` says so.
"""

from .plain import called, hidden

MEANINGS = {
    "mse": "mean squared error in the hole, normalised units",
    "psnr": "PSNR in the hole, dB, mean over pictures (pixels clipped to [0, 1])",
    "drift": "mean squared difference in the hole between the model's completion and the original model's, normalised units",
}
KEPT = {"best": "the one with the lowest objective on the evaluation pictures", "last": "the last"}


def facts(record: dict, bound: dict | None = None, mark: str = "") -> dict[str, str]:
    """{name of a row: its text}.

    Args:
        bound: "retain_bound" of figures.json. mark: around words of a command line, "`" in Markdown.
    """
    method, r = record["method"], record
    details = "; ".join(word for word in (method["summary"], method["options"]) if word)
    return {
        "dataset": called(r["dataset"]),
        "forget set": f"{r['forget']} ({r['forget_size']} pictures)",
        "retain set": f"{r['retain']}; available for training: {r['retain_availability']} ({r['retain_size']} pictures)",
        "method": f"{mark}{method['name']}{mark} ({method['source']}): {details}",
        "weight of forgetting": f"alpha = {r['alpha']}" if bound is None else describe_bound(bound),
        "distance": r["distance"],
        "n ~ N(0, Sigma)": r["noise"],
        "T in training": f"{mark}{r['corruption']}{mark}",
        "steps": f"{r['steps']} of {r['batch']} pairs, learning rate {r['learning_rate']:g}",
        **_erased(r.get("erasure")),
        "seed": str(r["seed"]),
        "checkpoint kept": KEPT[r["kept"]],
        "unreadable pairs skipped": str(r["skipped"]),
    }


def _erased(erasure: dict | None) -> dict[str, str]:
    """The row on what was erased, where something was."""
    if not erasure:
        return {}
    which = "encoder and decoder" if erasure["decoder"] else "encoder"
    return {
        "erased": f"{which}: {erasure['moved']:,} of {erasure['weights']:,} weights, {erasure['share']:.0%} of the way to a "
        f"fresh initialisation; {erasure['steps']:,} steps to learn the original's work again"
    }


def asked(record: dict, request: dict) -> dict[str, str]:
    """{name of a row: its text} on what was asked, for readers of a page; one of the two may be {}."""
    total = request.get("total") or record.get("forget_size")
    identity = request.get("identity") or {}
    rows = {
        "case": request.get("case"),
        "pictures to be forgotten": str(total) if total else None,
        "named as": request.get("asked") or record.get("forget"),
        "of the collection": called(request.get("dataset") or record["dataset"]),
        "fingerprint of the request": identity.get("forget"),
        "judged on": request.get("date"),
    }
    if record:
        rows["to be completed as before"] = f"{record['retain']} ({record['retain_size']} pictures)"
    return {name: text for name, text in rows.items() if text}


def done(record: dict, bound: dict | None = None) -> dict[str, str]:
    """The rows of `facts` on what was done, for engineers."""
    rows = {name: text for name, text in facts(record, bound).items() if name not in ("dataset", "forget set", "retain set")}
    return rows | {"T in training": hidden(record["corruption"])}


def describe_bound(bound: dict) -> str:
    """Half a sentence on what `UnlearningTrainer.bound_report` found."""
    verdict = "holds" if bound["holds"] else "is broken"
    return (
        f"as much as a retain distance of at most {bound['bound']:g} allows; on the evaluation pictures it is "
        f"{bound['retain_distance']:.4g}, so the bound {verdict}"
    )


def versions(record: dict) -> str:
    """The versions that the run was made with, in a line."""
    return ", ".join(f"{package} {number}" for package, number in record["versions"].items())


def before_after(figures: dict, error: str = "hole error", titles: dict[str, str] | None = None, plain: bool = False) -> dict:
    """{"head", "rows"}: what `Evaluator` measured of both sets, before and after.

    Args:
        error: what the mean squared error is called. titles: of further metrics, by their name in `figures`.
        plain: leave out PSNR, which says of the same completions what the error says.
    """
    sets = {name: figures[name] for name in ("retain", "forget") if name in figures}
    known = ("mse", "psnr")
    more = [k for k in next(iter(sets.values()), {}) if f"original_{k}" in next(iter(sets.values())) and k not in known]
    head = ["set", "pictures", f"{error} before", "after", *([] if plain else ["PSNR before", "after"])]
    for name in more:
        head += [f"{(titles or {}).get(name, name)} before", "after"]
    rows = []
    for name, f in sets.items():
        cells = [f"{f['original_mse']:.3f}", f"{f['mse']:.3f}"]
        cells += [] if plain else [f"{f['original_psnr']:.1f} dB", f"{f['psnr']:.1f} dB"]
        cells += [f"{f[key]:.3g}" for other in more for key in (f"original_{other}", other)]
        rows.append([name, str(f["count"]), *cells, f"{f['drift']:.3f}"])
    return {"head": [*head, "drift"], "rows": rows}
