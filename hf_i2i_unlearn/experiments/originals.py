"""An original beside completions that have learnt nothing: the section of its card."""

from pathlib import Path

from huggingface_hub import EvalResult

from ..evaluation.tables import describe_scores, feature_rows
from ..evaluation.trivial import TRIVIAL
from ..originals.quality import original_table, verdict

SECTION = "Against trivial completions"
# What of the figures goes into a card's metadata, and what it is called there.
KINDS = {
    "mse": "mse",
    "psnr": "psnr",
    "fid": "frechet_distance",
    "kid": "kernel_distance",
    "similarity": "similarity",
    "accuracy": "accuracy",
}


def against_trivial_text(found: dict[str, dict[str, dict]], verdicts: dict[str, dict[str, list]]) -> str:
    """How it was measured, and a table and a verdict per T and set, as Markdown.

    Args:
        found: {T: {model: result of `Evaluator`}}. verdicts: {T: {set: what `against_trivial` found}}.
    """
    result = next(iter(next(iter(found.values())).values()))
    parts = [describe_scores(how) for how in next(iter(result.values())).get("features", ())]
    for what, results in found.items():
        for which, rows in verdicts[what].items():
            title = f"`{what}`" + (f", {which}" if len(verdicts[what]) > 1 else "")
            parts += [f"### {title}", original_table(results, which)]
            if any(name in results for name in TRIVIAL):
                parts.append(verdict(rows, title))
    return "\n\n".join(parts)


def card_results(found: dict[str, dict[str, dict]], dataset: str) -> list[EvalResult]:
    """The original's figures for the metadata. dataset: where the pictures come from."""
    name, results = Path(dataset).name, {}
    for row in feature_rows({what: {"original": r["original"]} for what, r in found.items()}):
        seen = "whole pictures" if row["region"] == "whole" else "the hole alone"
        where = f" of {seen} by {Path(row['network']).name}" if row["region"] else ""
        for key, kind in KINDS.items():
            if key not in row:
                continue
            title = f"{kind.replace('_', ' ')}, features{where} ({row['corruption']})"
            if key in ("mse", "psnr"):
                title = f"{key} in the hole ({row['corruption']})"
            results[row["set"], title] = EvalResult(
                task_type="image-to-image",
                dataset_type=name,
                dataset_name=name,
                dataset_config=row["set"],
                metric_type=kind,
                metric_name=title,
                metric_value=round(row[key], 4),
            )
    return list(results.values())
