"""Tables as data, and as Markdown: {"title": str, "caption": str, "head": [str], "rows": [[str]]}.

Consecutive tables of one title stand under one heading `### title`, each below the paragraph of its caption.
"""


def table(head: list, rows: list[list]) -> str:
    """A Markdown table. Cells are taken as they are: Markdown, without line breaks."""
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def tables(several: list[dict], level: int = 3) -> str:
    """Tables with their headings and captions. level: of the headings."""
    parts, title = [], ""
    for one in several:
        if one.get("title", "") != title:
            title = one.get("title", "")
            parts += [f"{'#' * level} {title}"] if title else []
        parts += [one["caption"]] if one.get("caption") else []
        parts.append(table(one["head"], one["rows"]))
    return "\n\n".join(parts)


def cell(text) -> str:
    """Text as it may stand in a cell."""
    return str(text).replace("|", "\\|")
