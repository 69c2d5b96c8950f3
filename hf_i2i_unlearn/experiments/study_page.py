"""What a study of erasing found, as tables and as points of plots."""

import json
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..evaluation.scores import shown_scores
from ..evaluation.tables import title_of
from ..markdown import table
from .erasure_study import KNOWS, NEVER_SAW

ERRORS = ("retain", "drift", "known", "start", "lowest")
HEADS = "retain error|drift|the pictures|honoured|the other half: before an attack|after it|came back".split("|")
ROWS = "rows.json"  # {seed: the rows of its study}


def study_table(rows: list[dict]) -> str:
    """The rows of `Study.run` as Markdown."""
    lines = []
    for row in rows:
        rate = f"{row['learning_rate']:g}" if row["learning_rate"] else ""
        judged = f"{row['honoured']['count']} of {row['honoured']['of']}"
        errors = [f"{row[name]:.3f}" for name in ERRORS]
        cells = [row["name"], rate, f"{row['seconds']:.0f}", *errors[:3], judged, *errors[3:], _share([row])]
        lines.append(cells)
    return table(["model", "rate", "seconds", *HEADS], lines)


def mean_table(studies: list[list[dict]]) -> str:
    """The mean of several seeds, with their deviation where it is not 0, as Markdown."""
    lines = []
    for rows in _by_name(studies).values():
        errors = [_spread([row[name] for row in rows]) for name in ERRORS]
        counts = [row["honoured"]["count"] for row in rows]
        judged = f"{np.mean(counts):.0f} of {rows[0]['honoured']['of']}"
        seconds = f"{np.mean([row['seconds'] for row in rows]):.0f}"
        lines.append([rows[0]["name"], seconds, *errors[:3], judged, *errors[3:], _share(rows)])
    return table(["model", "seconds", *HEADS], lines)


def scores_tables(studies: list[list[dict]]) -> dict[str, str]:
    """{network: what it says of the completions, the mean of all seeds, as Markdown}; see `shown_scores`."""
    named, tables = _by_name(studies), {}
    some = next(iter(named.values()))[0]["scores"]
    for network in dict.fromkeys(seen["network"] for seen in some):
        mine = [seen for seen in some if seen["network"] == network]
        few = any(seen["few_samples"] for seen in mine)
        scores = [score for score in shown_scores(few) if all(score in seen for seen in mine)]
        regions = list(dict.fromkeys(seen["region"] for seen in mine))
        columns = [(score, region, kind) for score in scores for region in regions for kind in ("retain", "known")]
        heads = [f"{title_of(score, mine[0])}, {region}: {kind}" for score, region, kind in columns]
        lines = []
        for name, rows in named.items():
            found = [
                [one[score] for row in rows for one in row["scores"] if _is(one, network, region, kind)]
                for score, region, kind in columns
            ]
            lines.append([name, *(f"{np.mean(values):.3g}" for values in found)])
        tables[network] = table(["model", *heads], lines)
    return tables


def points_of(studies: list[list[dict]]) -> dict[str, list[tuple[float, float, float]]]:
    """What `plots.came_back_plot` draws of the rows of studies, one a seed."""
    points: dict[str, list[tuple[float, float, float]]] = {}
    for rows in studies:
        before = next(row["retain"] for row in rows if row["name"] == KNOWS)
        for row in rows:
            if row["name"] not in (NEVER_SAW, KNOWS):
                points.setdefault(row["name"], []).append((row["retain"] / before, row["came_back"], row["seconds"]))
    return points


def forgotten_of(studies: list[list[dict]]) -> dict[str, list[tuple[float, float]]]:
    """{model: a point a seed: (drift, error on the pictures)}, both in units of the error of the model that never saw them.

    Without such a model, in units of the mean error on retain pictures of the one that knows them.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for rows in studies:
        named = {row["name"]: row for row in rows}
        unit = named[NEVER_SAW]["known"] if NEVER_SAW in named else named[KNOWS]["retain"]
        for name, row in named.items():
            points.setdefault(_label(name), []).append((row["drift"] / unit, row["known"] / unit))
    return points


def _label(name: str) -> str:
    """The name of a row among those of other methods."""
    return "ours" if name == "unlearned" else name.replace("_", " ")


def _by_name(studies):
    """{name: its rows, one a seed}, in the order of the first study."""
    return {row["name"]: [one for rows in studies for one in rows if one["name"] == row["name"]] for row in studies[0]}


def _share(rows):
    shares = [row["came_back"] for row in rows]
    return "" if rows[0]["name"] == NEVER_SAW or np.isnan(shares).any() else f"{np.mean(shares):.0%}"


def _spread(values):
    deviation = f"{np.std(values):.3f}"
    return f"{np.mean(values):.3f}" + ("" if float(deviation) == 0 else f" ± {deviation}")


def _is(one, network, region, kind):
    return (one["network"], one["region"], one["set"]) == (network, region, kind)


def families_of(names: list[str], studies: list[list[list[dict]]]) -> dict[str, dict[str, list[list[dict]]]]:
    """{family: {what is special in a study of it: its rows, one list a seed}}; "U-Net: 600 steps" is of the family U-Net."""
    found: dict[str, dict[str, list[list[dict]]]] = {}
    for name, rows in zip(names, studies, strict=True):
        family, _, special = (part.strip() for part in name.partition(":"))
        if special in found.setdefault(family, {}):
            raise InputError(f"Two studies are called '{name}'; write what is special in each, as in 'U-Net: 600 steps'.")
        found[family][special] = rows
    return found


def family_points(parts: dict[str, list[list[dict]]]) -> dict[str, list[tuple[float, float]]]:
    """`forgotten_of` of all studies of a family; what is special in a study stands in the names of its models."""
    points: dict[str, list[tuple[float, float]]] = {}
    for special, studies in parts.items():
        for label, mine in forgotten_of(studies).items():
            points.setdefault(_special(label, special), mine)
    return points


def summary_table(families: dict[str, dict[str, list[list[dict]]]]) -> str:
    """One line a model, the families one below the other, as Markdown: means over the seeds.

    Forgotten: the error on the pictures, times that of the model that never saw them. Retain: the error on others, times that
    of the model that knows them. Drift: the squared move of those completions, as a share of the same error. Judged: verdicts
    that are honoured. Back: of the other half, after an attack.

    Args:
        families: of `families_of`; each study has a model that never saw the pictures.
    """
    lines = []
    for family, parts in families.items():
        made = {}
        for special, studies in parts.items():
            named = _by_name(studies)
            for name in named:
                made.setdefault(_special(_label(name), special), _summed(named, name))
        lines += [["" if number else f"**{family}**", *cells] for number, cells in enumerate([k, *v] for k, v in made.items())]
    return table(["", "", "forgotten", "retain", "drift", "judged", "back"], lines)


def _special(label, special):
    return label if not special or label in (NEVER_SAW, KNOWS) else f"{label} ({special})"


def _summed(named, name):
    mine, never, knew = named[name], named[NEVER_SAW], named[KNOWS]
    forgotten = np.mean([row["known"] / other["known"] for row, other in zip(mine, never)])
    retain = np.mean([row["retain"] / other["retain"] for row, other in zip(mine, knew)])
    drift = np.mean([row["drift"] / other["retain"] for row, other in zip(mine, knew)])
    honoured = np.mean([row["honoured"]["share"] for row in mine])
    return [f"x{forgotten:.2f}", f"x{retain:.2f}", f"{drift:.0%}", f"{honoured:.0%}", _share(mine)]


def read_rows(folder) -> list[list[dict]]:
    """What a study left in its folder, one list a seed.

    Raises:
        InputError: no study with a model that never saw the pictures.
    """
    file = Path(folder, ROWS)
    try:
        studies = list(json.loads(file.read_text()).values())
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"Cannot read '{file}': {error}. Give folders that erasure-study wrote.") from error
    if not all({KNOWS, NEVER_SAW} <= {row["name"] for row in rows} for rows in studies):
        raise InputError(f"'{folder}' has no model that never saw the pictures; run erasure-study with --never_trained.")
    return studies
