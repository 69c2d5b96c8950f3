"""The data-protection officer: the report, and the page of `show`.

    hf-i2i-unlearn report --model unlearned
    hf-i2i-unlearn show unlearned
    hf-i2i-unlearn show unlearned --space space

Nothing of a picture that was taken down is in any of them, unless that is asked for. Without gradio the functions behind the
page are tested and the page is not; without playwright and a Chromium on the machine it is not opened.
"""

import hashlib
import io
import json
import re
import shutil
import socket
import threading

import numpy as np
import pytest
from conftest import make_dataset, png
from helpers.console import console, files_with  # noqa: F401 (a fixture)
from helpers.site import ASKED, RUN, site, words_of  # noqa: F401 (a fixture)
from PIL import Image

from hf_i2i_unlearn import InputError
from hf_i2i_unlearn.commands import report, show, unlearn
from hf_i2i_unlearn.commands.jobs import run as running
from hf_i2i_unlearn.commands.jobs.shown import PAINTED, Shown, page, painted_over

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def pixels(picture) -> bytes:
    return np.asarray(picture.convert("RGB")).tobytes()


def forgotten() -> list[Image.Image]:
    return [picture.convert("RGB") for picture in make_dataset(3)["image"]]


def test_the_report(site, console):  # noqa: F811
    code, _, err = console(report.main, "--model", site / "unlearned")
    assert code == 0, err
    text = (site / "unlearned" / "report.html").read_text()
    body = re.sub(r"<[^>]+>", " ", text.partition("<body>")[2])
    words = " ".join(body.split())
    found = json.loads((site / "unlearned" / "request.json").read_text())
    # The verdict first; the model by name; how many, which, and when.
    for first, then in (("Was the request to forget honoured?", "What was asked"), ("pictures can", "What was asked")):
        assert words.index(first) < words.index(then)
    assert "The model unlearned, made from original." in words
    for fact in ("pictures to be forgotten 3", found["identity"]["forget"], found["date"], "a list of 3 lines, not named here"):
        assert fact in words, fact
    for picture in found["pictures"]:  # picture by picture
        assert picture["sha256"][:12] in words
    assert not any(name in text for name in ASKED) and str(site) not in text
    assert "--" not in words and "hf-i2i-unlearn" not in words and "center:2" not in words
    assert "relative error" in words and "fingerprint (SHA-256)" in words
    # One measure, one name, one number: the hole error of figures.json stands there once per set.
    figures = json.loads((site / "unlearned" / "figures.json").read_text())
    for which in ("retain", "forget"):
        assert f"{figures[which]['mse']:.3f}" in words


def test_no_picture_of_the_request_is_drawn(site, console, monkeypatch):  # noqa: F811
    drawn = []
    monkeypatch.setattr(running, "completion_grid", lambda grid, path: drawn.append(set(grid)))
    for number, more in enumerate(([], ["--show_forgotten", "true"])):
        words = [*words_of(site), *RUN, "--max_steps", 2, "--pictures", 2, *more]
        assert console(unlearn.main, *words, "--output_dir", site / f"drawn{number}")[0] == 0
    assert drawn == [{"retain"}, {"retain", "forget"}]
    record = json.loads((site / "drawn0" / "run.json").read_text())
    assert record["show_forgotten"] is False
    assert files_with(site / "unlearned", *ASKED, "request.txt") <= {"run.yaml", "run.json", "README.md"}


def test_one_picture_completed_by_both(site):  # noqa: F811
    shown = Shown.load(str(site / "unlearned"))
    assert "3 pictures" in shown.verdict() or "all 3" in shown.verdict()
    first = next(iter(shown.masks))
    assert first == "a square of 2x2 patches in the middle (as in training)" and len(shown.masks) == 4
    picture = Image.open(io.BytesIO(png(1, 1)))
    found = shown.complete(picture, first)
    assert found.grade and "This picture: " in found.words() and found.seen.size == (224, 224)
    assert pixels(found.before) != pixels(found.after)
    record = json.loads((site / "unlearned" / "request.json").read_text())
    (cell,) = [p["masks"]["center:2"] for p in record["pictures"] if p["sha256"] == hashlib.sha256(png(1, 1)).hexdigest()]
    assert found.errors["after"] == pytest.approx(cell["after"], rel=0.02) and found.grade == cell["grade"]
    # Painted: the upper left quarter of the picture hides the four patches there.
    layer = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    layer.paste((128, 128, 128, 255), (0, 0, 8, 8))
    painted = shown.complete(picture, PAINTED, painted_over([layer]))
    grey = np.asarray(painted.seen.resize((16, 16), Image.Resampling.NEAREST).convert("RGB"))
    assert painted.grade is None and (grey[:8, :8] == 128).all() and not (grey[8:, 8:] == 128).all()
    for mask, over in ((PAINTED, None), ("nothing", None), (PAINTED, Image.new("L", picture.size, 255))):
        with pytest.raises(InputError):
            shown.complete(picture, mask, over)


def test_a_space_without_the_pictures(site, console, tmp_path):  # noqa: F811
    pytest.importorskip("gradio", reason="the extra [show] is not installed")
    space = tmp_path / "space"
    assert console(show.main, site / "unlearned", "--space", space, "--pictures", 29, "--use_cpu", "true")[0] == 0
    names = {file.name for file in space.iterdir()}
    assert names == {"app.py", "requirements.txt", "README.md", "hf_i2i_unlearn", "unlearned", "original", "pictures"}
    kept = {pixels(Image.open(file)) for file in (space / "pictures").iterdir()}
    assert len(kept) == 29 and not kept & {pixels(p) for p in forgotten()}
    assert files_with(space, *ASKED, tmp_path) == set() and not [*(space / "unlearned").glob("*.png")]
    said = (space / "README.md").read_text()
    assert "sdk: gradio" in said and "No picture of the forget set" in said
    code, _, err = console(show.main, site / "unlearned", "--space", space)
    assert code == 2 and "is not empty" in err
    # Asked for: they are there, and the page says so.
    other = tmp_path / "other"
    words = ["--space", other, "--pictures", 40, "--show_forgotten", "true"]
    assert console(show.main, site / "unlearned", *words)[0] == 0
    assert {pixels(p) for p in forgotten()} <= {pixels(Image.open(file)) for file in (other / "pictures").iterdir()}
    assert "are among those to choose from" in (other / "README.md").read_text()


@pytest.fixture
def served(site):  # noqa: F811
    """The page, served on this machine: its address."""
    pytest.importorskip("gradio", reason="the extra [show] is not installed")
    from hf_i2i_unlearn.commands.jobs.shown import launch

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    blocks = page(Shown.load(str(site / "unlearned")), [Image.open(io.BytesIO(png(9, 1))).convert("RGB")])
    launch(blocks, server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, quiet=True)
    yield f"http://127.0.0.1:{port}"
    blocks.close()


def test_the_page_by_its_client(served, tmp_path):
    client = pytest.importorskip("gradio_client").Client(served, verbose=False)
    file = tmp_path / "picture.png"
    file.write_bytes(png(5, 1))
    picture = {"path": str(file), "meta": {"_type": "gradio.FileData"}}
    edited = {"background": picture, "layers": [], "composite": picture}
    *pictures, words = client.predict(edited, "the left 2 columns of patches", api_name="/complete")
    assert len(pictures) == 3 and "Relative error" in words


def paint(tab):
    """Paint over the middle of the picture with the mouse, and have that completed."""
    tab.get_by_role("radio", name=PAINTED).check()
    box = tab.locator("#picture canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    tab.mouse.move(x - 20, y)
    tab.mouse.down()
    tab.mouse.move(x + 20, y, steps=10)
    tab.mouse.up()
    tab.wait_for_timeout(500)
    tab.get_by_role("button", name="Complete it").click()
    # Of a mask that nobody judged there are errors, and no verdict.
    tab.locator("#words").filter(has_text="Relative error", has_not_text="This picture").wait_for(timeout=120_000)


def test_the_page_in_a_browser(served):
    """A picture is chosen, the button pressed; the words appear, at both widths, and nothing is asked of other machines."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser = next((found for found in map(shutil.which, BROWSERS) if found), None)
    if browser is None:
        pytest.skip("there is no Chromium on this machine")
    result = {}

    def visit():  # in a thread of its own, for pytest may have an event loop
        with playwright.sync_playwright() as found:
            chromium = found.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            for width in (1200, 390):
                tab = chromium.new_page(viewport={"width": width, "height": 900})
                asked = []
                tab.on("request", lambda request, asked=asked: asked.append(request.url))
                tab.goto(served)
                tab.locator("button.thumbnail-item, .grid-container button").first.click()
                tab.wait_for_timeout(500)
                tab.get_by_role("button", name="Complete it").click()
                tab.locator("#words", has_text="Relative error").wait_for(timeout=120_000)  # a busy machine
                assert "This picture:" in tab.locator("#words").inner_text()
                if width == 1200:
                    paint(tab)
                wide = tab.evaluate("document.documentElement.scrollWidth")
                result[width] = wide, [url for url in asked if not url.startswith((served, "data:", "blob:"))]
                tab.close()
            chromium.close()

    thread = threading.Thread(target=visit)
    thread.start()
    thread.join(300)
    assert result == {1200: (1200, []), 390: (390, [])}
