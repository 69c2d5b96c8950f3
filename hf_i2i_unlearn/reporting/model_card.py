"""The card of an unlearned checkpoint: metadata that the Hub reads, and a text that stands on its own."""

import json
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.utils import cached_file

from ..errors import InputError
from ..evaluation.tables import FIGURES, markdown_table
from ..models.auto import DEMOS
from ..storage import write_aside
from .run_folder import AUDITED, CARD, RunFolder
from .sections import audit_section, evaluation_section

CITATION = """@inproceedings{li2024machine,
  title = {Machine Unlearning for Image-to-Image Generative Models},
  author = {Li, Guihong and Hsu, Hsiang and Chen, Chun-Fu and Marculescu, Radu},
  booktitle = {International Conference on Learning Representations},
  year = {2024}
}"""


TEMPLATE = """---
{card_data}
---

# {name}

`{base_model}` after machine unlearning: pictures of the forget set can no longer be completed, those of the retain set are
completed as before. {decoder}{patch}

```python
{usage}
```

{picture}## Before and after

Corruption T(x): `{eval_corruption}`. Evaluated on: {evaluation}.

{table}

{figures}

`recipes/evaluate.py` measures FID, Inception score and similarity, of whole pictures and of the hole alone, and adds them under
Metrics.

## What was forgotten, and how

| | |
|---|---|
| dataset | {dataset} |
| forget set | {forget} ({forget_size} pictures) |
| retain set | {retain}; available for training: {retain_availability} ({retain_size} pictures) |
| method | {method} |
| weight of forgetting | {weight} |
| distance | {distance} |
| n ~ N(0, Sigma) | {noise} |
| T in training | `{corruption}` |
| steps | {steps} of {batch} pairs, learning rate {learning_rate:g} |
| seed | {seed} |
| checkpoint kept | {kept} |
| unreadable pairs skipped | {skipped} |

```bash
{command}
```

The exact options are in `run.yaml` (`--config run.yaml` repeats the run). Versions: {versions}.

## Audit

Not run. `recipes/audit.py` tells how fast the forget pictures are learnt again, and whether they can still be told from others;
it adds its findings here.

## Limits

- This is suppression, not erasure. Fine-tuning on a few dozen forget pictures is known to bring small models back within
  tens of steps. How far this checkpoint resists that is in the section Audit, which `recipes/audit.py` adds.
- Pictures hidden in another way than in training (`{corruption}`) were not evaluated unless a table says so.
- Hole MSE on the forget set says that the truth is not reproduced. It does not say that the filling looks like noise.

## Citation

```bibtex
{citation}
```
"""


def write_card(
    folder,
    *,
    model,
    base_model: str,
    license: str | None,
    result: dict,
    description: dict,
    args,
    method,
    variant: str,
    distance,
    corruption,
    eval_corruption,
    noise,
    bound: dict | None,
    patch: str | None,
    below: list[str] | None,
    steps: int,
    skipped: int,
    command: str,
    picture: str | None,
) -> ModelCard:
    """Write `README.md` into `folder`.

    Args:
        model: the unlearned `I2IModel`. base_model: Hub id or folder of the original. license: its license identifier, inherited; None if unknown.
        result: what `Evaluator` returned. description: that of `Splits`. args: the `UnlearningConfig` of the run.
        method, variant, distance: how it was unlearned.
        bound: what `UnlearningTrainer.bound_report` returned. patch: what `add_patch` returned, None for a run without.
        below: the patches under it.
        picture: file name of the before/after grid inside the folder; None if there is none.
    """
    name = Path(folder).resolve().name
    dataset, local = description["dataset"], Path(description["dataset"]).exists()
    data = ModelCardData(
        model_name=name,
        base_model=None if Path(base_model).exists() else base_model,  # the Hub refuses what is no Hub id
        base_model_relation="adapter" if model.patch else "finetune",
        license=license,
        library_name=_library(model),
        pipeline_tag="image-to-image",
        tags=["machine-unlearning", "image-to-image"],
        datasets=None if local else [dataset],
        eval_results=[
            EvalResult(
                task_type="image-to-image",
                dataset_type=Path(dataset).name if local else dataset,
                dataset_name=Path(dataset).name if local else dataset,
                dataset_config=split,
                metric_type=metric,
                metric_name=f"{metric} in the hole ({eval_corruption}), {when} unlearning",
                metric_value=round(result[split][prefix + metric], 4),
            )
            for split in ("retain", "forget")
            for metric in ("mse", "psnr")
            for when, prefix in (("before", "original_"), ("after", ""))
        ],
    )
    text = TEMPLATE.format(
        card_data=data.to_yaml(),
        name=name,
        usage=_usage(model, base_model, args.hub_model_id if args.push_to_hub else name),
        patch=_describe_patch(model, patch, below),
        base_model=base_model,
        picture=f"![before and after]({picture})\n\n" if picture else "",
        corruption=corruption,
        eval_corruption=eval_corruption,
        table=markdown_table(result),
        figures="\n".join(f"- {key}: {FIGURES[key]}." for key in ("mse", "psnr", "drift")),
        decoder="The decoder is the original's, bit for bit."
        if patch or (method.space == "encoder" and model.decoder_untouched)
        else "The decoder was trained too.",
        method=f"`{method}` ({method.source}): {method.summary}; variant: {variant}, noise target: {args.noise_target}"
        + (f" (a bank of {args.noise_bank} draws)" if args.noise_bank else ""),
        weight=f"alpha = {args.alpha}" if bound is None else _describe_bound(bound),
        distance=distance if method.space == "encoder" else "the model's own training loss",
        noise=noise,
        steps=steps,
        batch=args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        learning_rate=args.learning_rate,
        seed=args.seed,
        kept="the one with the lowest objective on the evaluation pictures" if args.load_best_model_at_end else "the last",
        skipped=skipped,
        command=command,
        versions=", ".join(
            f"{p} {version(p)}" for p in ("torch", "transformers", "diffusers", "peft", "datasets", "accelerate")
        ),
        citation=CITATION,
        **description,
    )
    card = ModelCard(text)
    card.save(Path(folder) / "README.md")
    return card


def write_section(folder, title: str) -> None:
    """Set a section of the card from the folder's data: "Audit" from audit.json, others from evaluation.json. The rest stays.

    Raises:
        InputError: there is no card.
    """
    run = RunFolder(folder)
    text, results = audit_section(run.audit) if title == AUDITED else evaluation_section(run.evaluation[title])
    update_card(folder, title, text, results)


def update_card(folder, title: str, text: str, results: list[EvalResult] = ()) -> None:
    """Set the section `## title` of the card in `folder`, and add results to its metadata.

    A section of that title is replaced, a new one stands before `## Limits`, or last. A result takes the place of one of the same
    dataset, configuration and metric name.

    Args:
        text: Markdown without headings of the first two levels. results: `EvalResult`s, as the model-index holds them.

    Raises:
        InputError: there is no card.
    """
    run = RunFolder(folder)
    if not run.card.is_file():
        raise InputError(f"'{folder}' has no card ({CARD}) to add to; give the output folder of an unlearning run.")
    card = ModelCard.load(run.card)
    sections = split_sections(card.text)
    place = [i for i, (name, _) in enumerate(sections) if name == title]
    before = [i for i, (name, _) in enumerate(sections) if name.startswith("Limits")]
    new = (title, f"## {title}\n\n{text.strip()}\n\n")
    if place:
        sections[place[0]] = new
    else:
        sections.insert(before[0] if before else len(sections), new)
    card.text = "".join(section for _, section in sections)
    if results:
        card.data.eval_results = list({_result_key(r): r for r in [*(card.data.eval_results or []), *results]}.values())
        card.data.model_name = card.data.model_name or run.name  # a model-index needs one
    write_aside(run.card, card.save)


def split_sections(text: str) -> list[tuple[str, str]]:
    """[(title, Markdown with its heading)] of the parts that begin with `## `, after what stands above them, titled ""."""
    sections, fence = [["", ""]], ""
    for line in text.splitlines(keepends=True):
        mark = line.lstrip()[:3]
        if mark in ("```", "~~~") and fence in ("", mark):  # what looks like a heading in code is none
            fence = "" if fence else mark
        if line.startswith("## ") and not fence:
            sections.append([line[3:].strip(), ""])
        sections[-1][1] += line
    return [tuple(section) for section in sections]


def _result_key(result: EvalResult):
    return result.dataset_name, result.dataset_config, result.metric_type, result.metric_name


def inherited_license(base_model: str) -> str | None:
    """The license that the card of the base model names, in its folder or on the Hub; None if there is none to be had."""
    try:
        card = cached_file(base_model, "README.md", _raise_exceptions_for_missing_entries=False)
    except OSError:
        return None
    return ModelCard.load(card).data.license if card else None


def _library(model) -> str:
    inner = type(model.model)
    remote = getattr(inner, "_auto_class", None)  # its code travels with the weights
    return "peft" if model.patch else "transformers" if remote else inner.__module__.split(".")[0]


def _usage(model, base_model: str, name: str) -> str:
    """Python that loads the checkpoint, or the original with all patches."""
    inner = type(model.model)
    remote = getattr(inner, "_auto_class", None)
    kind, library = remote or inner.__name__, "transformers" if remote else inner.__module__.split(".")[0]
    more = ", trust_remote_code=True" if remote else ', subfolder="unet"' if getattr(model, "pipeline", None) else ""
    if not model.patch:
        return f'from {library} import {kind}\n\nmodel = {kind}.from_pretrained("{name}"{more})'
    lines, base = ["from peft import PeftModel", f"from {library} import {kind}", ""], f'"{base_model}"'
    if base_model in DEMOS:
        base = f"DEMOS[{base}]"
        lines.insert(0, "from hf_i2i_unlearn.loading import DEMOS  # this original comes with the package")
    lines += [f"original = {kind}.from_pretrained({base}{more})"]
    if not model.patch.below:
        return "\n".join([*lines, f'model = PeftModel.from_pretrained(original, "{name}")'])
    first, *others = names = [f"patch{i}" for i in range(len(model.patch.below) + 1)]
    paths = [*model.patch.below, name]
    lines += [f'model = PeftModel.from_pretrained(original, "{paths[0]}", adapter_name="{first}")']
    lines += [f'model.load_adapter("{path}", "{other}")' for path, other in zip(paths[1:], others)]
    return "\n".join([*lines, f"model.base_model.set_adapter({json.dumps(names)})  # leave one out to switch it off"])


def _describe_patch(model, line: str | None, below: list[str] | None) -> str:
    """What the adapters are and what is under them, or nothing where there are none."""
    if line is None and not below:
        return ""
    names = ", ".join(f"`{path}`" for path in below or ())
    under = f' The run started from the original with {names} on: "before" means that.' if below else ""
    if not model.patch:
        return f"\n\n{line + ' ' if line else ''}All adapters are merged into the weights.{under}"
    return (
        f"\n\n{line} They are all that is in this repository: a patch for the original, which stays as it is.{under} Without any "
        "patch (`model.disable_adapter()`) the original is back, bit for bit."
        + (" A patch forgets best with those on that it was trained on." if below else "")
    )


def _describe_bound(bound: dict) -> str:
    verdict = "holds" if bound["holds"] else "is broken"
    return (
        f"as much as a retain distance of at most {bound['bound']:g} allows; on the evaluation pictures it is "
        f"{bound['retain_distance']:.4g}, so the bound {verdict}"
    )
