"""Figures of the evaluator as Markdown, and as rows of a CSV file."""

from .scores import SCORES

FIGURES = {
    "mse": "mean squared error in the hole, normalised units",
    "psnr": "PSNR in the hole, dB, mean over pictures (pixels clipped to [0, 1])",
    "drift": "mean squared difference in the hole between the model's completion and the original model's, normalised units",
}


def markdown_table(result: dict[str, dict[str, float]]) -> str:
    """The before/after table of a result of `Evaluator`, one row per set."""
    lines = [
        "| set | pictures | hole MSE before | after | PSNR before | after | drift |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ("retain", "forget"):
        r = result[name]
        lines.append(
            f"| {name} | {r['count']} | {r['original_mse']:.3f} | {r['mse']:.3f} | {r['original_psnr']:.1f} dB | "
            f"{r['psnr']:.1f} dB | {r['drift']:.3f} |"
        )
    return "\n".join(lines)


# FID is the Frechet distance in Inception's features; in others it is called FD here, for its numbers do not compare.
TITLES = {"fid": "FID", "inception_score": "IS", "similarity": "similarity", "accuracy": "accuracy"}


def title_of(key: str, how: dict) -> str:
    """The name of a score in a table's head."""
    if key == "fid" and "inception" not in how["kind"]:
        return "FD"
    return "CLIP" if key == "similarity" and how["kind"] == "clip" else TITLES[key]


def feature_table(results: dict[str, dict]) -> str:
    """Results of `Evaluator` with feature networks, of one corruption, as Markdown: a row per model, original and blank hole first.

    Args:
        results: {model name: result}; all of one original, corruption and selection of pictures.
    """
    lines = []
    first = next(iter(results.values()))
    for place, how in enumerate(first["retain"]["features"]):
        keys = [key for key in SCORES if key in how]
        head = [f"{name} {title_of(key, how)}" for key in keys for name in ("retain", "forget")]
        lines += [describe_scores(how), "", f"| model | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
        rows = {"true pictures": (first, "true_"), "blank hole": (first, "blank_"), "original": (first, "original_")}
        for model, (result, kind) in (rows | {name: (result, "") for name, result in results.items()}).items():
            figures = [result[s]["features"][place].get(kind + key) for key in keys for s in ("retain", "forget")]
            lines.append(f"| {model} | {' | '.join('' if f is None else f'{f:.3g}' for f in figures)} |")
        lines.append("")
    return "\n".join(lines).strip()


def describe_scores(how: dict) -> str:
    """One line on how the figures of a row of "features" were measured."""
    seen = "whole pictures" if how["region"] == "whole" else "the hole alone"
    few = "; **fewer pictures than dimensions, FID is biased upwards**" if how["few_samples"] else ""
    return (
        f"Features of {seen}: {how['network']} (weights sha256 {how['weights_sha256'][:12]}), {how['dimensions']} dimensions, "
        f"input {'x'.join(map(str, how['input']))}, {how['resize']}, range {how['range']}, {how['count']} pictures per set{few}."
    )


def feature_rows(found: dict[str, dict[str, dict]]) -> list[dict]:
    """{T: {model: result}} as flat rows: one per T, model, set, network and region, with all its figures."""
    rows = []
    for corruption, results in found.items():
        for model, result in results.items():
            for which, figures in result.items():
                base = {"corruption": corruption, "model": model, "set": which, "network": "", "region": ""}
                base |= {k: v for k, v in figures.items() if k != "features"}
                rows += [base | {k: v for k, v in how.items() if k != "input"} for how in figures.get("features", [{}])]
    return rows
