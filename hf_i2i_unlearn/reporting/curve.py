"""The curve of relearning as SVG."""

import math

from markupsafe import Markup

# Okabe-Ito; each line has its own dashes too, so that they are told apart in grey.
CURVES = {
    "unlearned": ("the unlearned model", "#D55E00", ""),
    "never_trained": ("a model that never saw them", "#0072B2", "8 4"),
    "never_seen": ("the original, new classes", "#009E73", "2 3"),
    "scrambled": ("a scrambled encoder", "#888888", "6 3 2 3"),
    "original": ("the original", "#CC79A7", "12 4"),
}


WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 560, 320, 52, 14, 44


def relearning_svg(audit: dict) -> Markup | None:
    """The hole error over the steps of relearning, for each model that the audit trained, as SVG in the page's colours."""
    curves = {n: audit["parts"].get(f"relearning/{n}", {}).get("curve") for n in CURVES}
    curves = {n: c for n, c in curves.items() if c}
    if "unlearned" not in curves:
        return None
    mine = audit["parts"]["relearning/unlearned"]
    last = max(max(step for step, _ in c) for c in curves.values()) or 1
    top = 1.08 * max(mine["target"], *(error for c in curves.values() for _, error in c))

    # Steps on a logarithmic scale: what matters happens in the first ones.
    def x(step):
        return LEFT + (WIDTH - LEFT - 12) * math.log1p(step) / math.log1p(last)

    def y(error):
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - error / top)

    parts = []
    for step in [s for s in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if s <= last]:
        parts.append(f'<text x="{x(step):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{step}</text>')
    for tick in _ticks(top):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 12}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    level = y(mine["target"])
    parts.append(f'<line class="target" x1="{LEFT}" x2="{WIDTH - 12}" y1="{level:.1f}" y2="{level:.1f}"/>')
    parts.append(f'<text x="{WIDTH - 14}" y="{level + 15:.1f}" text-anchor="end">completed again, below this line</text>')
    for name, curve in curves.items():
        _, colour, dashes = CURVES[name]
        points = " ".join(f"{x(step):.1f},{y(error):.1f}" for step, error in curve)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dashes}"/>'
        )
        step, error = curve[-1]
        parts.append(f'<circle cx="{x(step):.1f}" cy="{y(error):.1f}" r="4" fill="{colour}"/>')
    parts.append(
        f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">steps of training (log scale)</text>'
    )
    ends = "; ".join(f"{CURVES[n][0]}: from {c[0][1]:.3g} to {c[-1][1]:.3g} after {c[-1][0]} steps" for n, c in curves.items())
    legend = "".join(
        f'<li><svg width="34" height="10" aria-hidden="true"><line x1="0" x2="34" y1="5" y2="5" stroke="{CURVES[n][1]}" '
        f'stroke-width="3" stroke-dasharray="{CURVES[n][2]}"/></svg> {CURVES[n][0]}</li>'
        for n in curves
    )
    return Markup(
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Hole error on held-out forget pictures over '
        f'steps of training. {ends}.">{"".join(parts)}</svg><ul class="legend">{legend}</ul>'
    )


def _ticks(top: float) -> list[float]:
    """About five round numbers from 0 to `top`."""
    size = 10 ** math.floor(math.log10(top))
    step = next(size * f for f in (0.1, 0.2, 0.25, 0.5, 1, 2) if top / (size * f) <= 6)
    return [round(i * step, 10) for i in range(int(top / step) + 1)]
