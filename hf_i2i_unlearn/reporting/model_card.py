"""The card of an unlearned checkpoint: metadata that the Hub reads, and a text that stands on its own."""

from collections.abc import Iterable
from pathlib import Path
from string import Template

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.utils import cached_file

from ..errors import InputError
from ..markdown import cell, table
from ..storage import write_aside
from .facts import MEANINGS, before_after, facts, versions
from .request import details, headline, left_in_weights
from .run_folder import AUDITED, CARD, FIGURES, PICTURE, RECORD, RunFolder
from .sections import audit_section, evaluation_section, place_section, split_sections

TEMPLATE = Path(__file__).parent / "templates" / "card.md"
TAGS = ("machine-unlearning", "image-to-image")


def write_card(folder) -> ModelCard:
    """Write the card of an unlearned checkpoint from the data of its folder: record, figures, evaluations, audit.

    Of a card that is there, sections and metadata of other names stay as they are, and its own are written anew.

    Raises:
        InputError: the folder has no run.json or no figures.json.
    """
    run = RunFolder(folder)
    for name, content in ((RECORD, run.record), (FIGURES, run.figures)):
        if not content:
            raise InputError(
                f"'{folder}' has no {name}, from which its card is written; give the output folder of an unlearning run."
            )
    later = {AUDITED: audit_section(run.audit)} if "verdicts" in run.audit else {}
    later |= {title: evaluation_section(content) for title, content in run.evaluation.items()}
    sections = split_sections(Template(TEMPLATE.read_text(encoding="utf-8")).substitute(_words(run)))
    card = ModelCard.load(run.card) if run.card.is_file() else None
    if card and any(title == sections[1][0] for title, _ in split_sections(card.text)):
        sections = _merged(split_sections(card.text), sections)
    else:  # none, or one that a library wrote with the weights
        card = ModelCard(f"---\n{ModelCardData().to_yaml()}\n---\n")
    for title, (text, _) in later.items():
        place_section(sections, title, f"## {title}\n\n{text}\n\n")
    card.text = "\n" + "".join(text for _, text in sections).lstrip("\n")  # a blank line below the metadata
    for name, value in _metadata(run).items():
        if value is not None:
            setattr(card.data, name, value)
    card.data.tags = list(dict.fromkeys([*(card.data.tags or ()), *TAGS]))
    _add_results(card, run, [*_results(run.record, run.figures), *(r for _, found in later.values() for r in found)])
    write_aside(run.card, card.save)
    return card


def _merged(old, new):
    """The sections of a card, those of `new` among them."""
    merged, titles = list(old), [title for title, _ in old]
    for title, text in new:
        if not (title == AUDITED and title in titles):  # of an audit whose data are not here
            place_section(merged, title, text)
    return merged


def _words(run: RunFolder) -> dict[str, str]:
    """What stands in the places of the template."""
    record, figures = run.record, run.figures
    shared = before_after(figures, titles=record.get("metrics"))
    return {k: str(v) for k, v in record.items()} | {
        "name": run.name,
        "decoder": "The decoder is the original's, bit for bit."
        if record["decoder_untouched"]
        else "The decoder was trained too.",
        "patch": _describe_patch(record),
        "remains": _remains(record.get("erasure")),
        "verdict": _verdict(run.request),
        "note": f"{record['note'].strip()}\n\n" if record.get("note") else "",
        "picture": f"![before and after]({PICTURE})\n\n" if run.picture.is_file() else "",
        "before_after": table(shared["head"], shared["rows"]),
        "meanings": "\n".join(f"- {key}: {words}." for key, words in MEANINGS.items()),
        "facts": "\n".join(f"| {k} | {cell(v)} |" for k, v in facts(record, figures.get("retain_bound"), "`").items()),
        "versions": versions(record),
    }


def _verdict(request: dict) -> str:
    """Whether the request was honoured, as the first paragraphs; nothing where no pictures were judged."""
    if not request:
        return ""
    lines = [f"- {line}" for line in details(request)]
    return f"**{headline(request)}**\n\n" + "\n".join(lines) + "\n\n"


def _remains(erasure: dict | None) -> str:
    """What is left in the weights, as far as the way of training says it."""
    test = "`hf-i2i-unlearn audit --update_card true` adds it here, as the section Audit."
    known = (
        "" if erasure else " Small models are known to come back within tens of steps of fine-tuning on some of the pictures."
    )
    return f"{left_in_weights(erasure)} {test}{known}"


def _metadata(run: RunFolder) -> dict:
    """What the Hub reads."""
    record = run.record
    return {
        "model_name": run.name,
        "base_model": record["base_model"] if record["base_model_on_hub"] else None,  # the Hub refuses what is no Hub id
        "datasets": [record["dataset"]] if record["dataset_on_hub"] else None,
        "library_name": record["library"],
        "license": record["license"],
        "pipeline_tag": "image-to-image",
        "base_model_relation": record["relation"],
    }


def _results(record: dict, figures: dict) -> list[EvalResult]:
    """Before and after of both sets, for the metadata."""
    dataset = record["dataset"] if record["dataset_on_hub"] else Path(record["dataset"]).name
    return [
        EvalResult(
            task_type="image-to-image",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_config=split,
            metric_type=metric,
            metric_name=f"{metric} in the hole ({record['eval_corruption']}), {when} unlearning",
            metric_value=round(figures[split][prefix + metric], 4),
        )
        for split in ("retain", "forget")
        for metric in ("mse", "psnr")
        for when, prefix in (("before", "original_"), ("after", ""))
    ]


def _describe_patch(record: dict) -> str:
    """What the adapters are and what is under them, or nothing where there are none."""
    line, below = record["patch"], record["below"]
    if line is None and not below:
        return ""
    names = ", ".join(f"`{path}`" for path in below)
    under = f' The run started from the original with {names} on: "before" means that.' if below else ""
    if record["relation"] != "adapter":
        return f"\n\n{line + ' ' if line else ''}All adapters are merged into the weights.{under}"
    return (
        f"\n\n{line} They are all that is in this repository: a patch for the original, which stays as it is.{under} Without "
        "any patch (`model.disable_adapter()`) the original is back, bit for bit."
        + (" A patch forgets best with those on that it was trained on." if below else "")
    )


def write_section(folder, title: str, earlier: dict | None = None) -> None:
    """Set a section of the card from the folder's data: "Audit" from audit.json, others from evaluation.json. The rest stays.

    Args:
        earlier: the data that the section was made from until now. What they said in the metadata goes with them.

    Raises:
        InputError: there is no card.
    """
    run = RunFolder(folder)
    make = audit_section if title == AUDITED else evaluation_section
    text, results = make(run.audit if title == AUDITED else run.evaluation[title])
    update_card(folder, title, text, results, gone=make(earlier)[1] if earlier else ())


def update_card(folder, title: str, text: str, results: Iterable[EvalResult] = (), gone: Iterable[EvalResult] = ()) -> None:
    """Set the section `## title` of the card in `folder`, and add results to its metadata.

    A section of that title is replaced, a new one stands before `## Limits`, or last. A result takes the place of one of the
    same dataset, configuration and metric name.

    Args:
        text: Markdown without headings of the first two levels. results: `EvalResult`s, as the model-index holds them.
        gone: results of an older measurement, which leave the metadata.

    Raises:
        InputError: there is no card.
    """
    run = RunFolder(folder)
    if not run.card.is_file():
        raise InputError(f"'{folder}' has no card ({CARD}) to add to; give the output folder of an unlearning run.")
    card = ModelCard.load(run.card)
    sections = split_sections(card.text)
    place_section(sections, title, f"## {title}\n\n{text.strip()}\n\n")
    card.text = "".join(section for _, section in sections)
    _add_results(card, run, results, gone)
    write_aside(run.card, card.save)


def _add_results(card: ModelCard, run: RunFolder, results: Iterable[EvalResult], gone: Iterable[EvalResult] = ()) -> None:
    """A result takes the place of one of the same dataset, configuration and metric; those that are `gone` leave."""

    def named(found):
        return {(r.dataset_name, r.dataset_config, r.metric_type, r.metric_name): r for r in found}

    leave = named(gone)
    stay = {name: r for name, r in named(card.data.eval_results or ()).items() if name not in leave}
    several = list((stay | named(results)).values())
    card.data.eval_results = several or None
    if several:
        card.data.model_name = card.data.model_name or run.name  # a model-index needs one


def inherited_license(base_model: str) -> str | None:
    """The license that the card of the base model names, in its folder or on the Hub; None if there is none to be had."""
    try:
        card = cached_file(base_model, "README.md", _raise_exceptions_for_missing_entries=False)
    except OSError:
        return None
    return ModelCard.load(card).data.license if card else None
