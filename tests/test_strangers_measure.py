"""A stranger's metric, feature network, family and method, measured: classes made here, used through the public names alone."""

import pytest
import torch
from conftest import make_dataset, make_mae
from helpers.family import Smoother
from torch import nn
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_i2i_unlearn import (
    METHODS,
    CenterCrop,
    EncodedTarget,
    Evaluator,
    FeatureNetwork,
    ImageReader,
    InputError,
    Method,
    Metric,
    UnlearningConfig,
    audit_model,
    compare,
    comparison_table,
    evaluate,
    undecoded,
)
from hf_i2i_unlearn.audit.options import AuditOptions
from hf_i2i_unlearn.evaluation.metrics import PSNR, HoleError
from hf_i2i_unlearn.evaluation.tables import markdown_table
from hf_i2i_unlearn.reporting.plots import METHOD_STYLES, frontier, method_styles

ROWS = list(undecoded(make_dataset(12)))
SETS = {"forget": ROWS[:5], "retain": ROWS[5:]}
T = CenterCrop(2)


class Bright(Metric):
    """How much brighter the hole is than it should be, in grey levels of 255."""

    name, title = "bright", "brighter by"

    def __call__(self, completed, truth, hole):
        assert 0 <= truth.min() and truth.max() <= 1
        return 255 * ((completed - truth) * hole).flatten(1).sum(1) / (hole.flatten(1).sum(1) * truth.shape[1])

    def text(self, value):
        return f"{value:+.1f} levels"


class Largest(Metric):
    """The largest error, normalised."""

    name, unit = "largest", False

    def __call__(self, completed, truth, hole):
        return ((completed - truth).abs() * hole).flatten(1).amax(1)


@pytest.fixture
def reader(processor):
    return ImageReader(processor, 3)


def test_a_metric_is_a_figure_and_a_pair_of_columns(reader):
    """Against a loop over pictures; and without it everything is as it was."""
    original, model = Smoother(0.5), Smoother(0.8)
    metrics = (Bright(), Largest())
    result = evaluate(model, original, SETS, reader, T, metrics=metrics, batch_size=2, progress=False)
    for name, rows in SETS.items():
        x = reader.pixels([reader.decode(row) for row in rows])
        mask = T(original.grid, range(len(rows)))
        hole = original.hole(mask).expand_as(x)
        for prefix, one in (("", model), ("original_", original)):
            made = one.generate(x, mask)
            bright = 255 * (reader.unit(made) - reader.unit(x))[hole].view(len(rows), -1).mean(1).mean()
            assert result[name][prefix + "bright"] == pytest.approx(bright.item(), rel=1e-4)
            largest = (made - x).abs()[hole].view(len(rows), -1).amax(1).mean()
            assert result[name][prefix + "largest"] == pytest.approx(largest.item(), rel=1e-5)
    table = markdown_table(result, metrics).splitlines()
    assert table[0].endswith("| PSNR before | after | brighter by before | after | largest before | after | drift |")
    r = result["forget"]
    assert f"| {r['original_bright']:+.1f} levels | {r['bright']:+.1f} levels | {r['original_largest']:.3g} |" in table[3]
    assert "| bright before | after | largest before |" in markdown_table(result)  # without its object: by its key

    plain = evaluate(model, original, SETS, reader, T, progress=False)
    added = ("bright", "largest", "original_bright", "original_largest")
    assert plain["forget"] == pytest.approx({k: v for k, v in r.items() if k not in added}, rel=1e-6)
    assert markdown_table(plain).splitlines()[0] == (
        "| set | pictures | hole error before | after | PSNR before | after | drift |"
    )


def named(word):
    return type("Named", (Bright,), {"name": word})()


@pytest.mark.parametrize(
    "metrics, words",
    [
        ([named("")], "The metric Named needs a name of one word, such as 'ssim'; got ''"),
        ([named("two words")], "got 'two words'"),
        ([named("mse")], "The name 'mse' of a metric is taken"),
        ([named("drift")], "'drift' of a metric is taken"),
        ([named("fid")], "'fid' of a metric is taken"),
        ([named("original_x")], "'original_x' of a metric is taken"),
        ([Bright(), Bright()], "'bright' of a metric is taken"),
        (["psnr"], r"such as HoleError\(\); got 'psnr'"),
        ([Bright], "got the class Bright"),
    ],
)
def test_a_metric_without_a_name_of_its_own_is_refused_when_the_evaluator_is_made(reader, metrics, words):
    with pytest.raises(InputError, match=words):
        Evaluator(Smoother(0.5), SETS, reader, T, metrics=metrics)


def test_a_metric_that_gives_one_number_is_refused(reader):
    class Mean(Bright):
        def __call__(self, completed, truth, hole):
            return (completed - truth).mean()

    with pytest.raises(InputError, match=r"'bright' must give a tensor with a value per picture, \(5,\); got shape \(\)"):
        evaluate(Smoother(0.8), Smoother(0.5), SETS, reader, T, metrics=[Mean()], progress=False)


def test_the_built_in_metrics_by_hand():
    a, b = torch.zeros(1, 2, 2, 2), torch.tensor([[[[0.1, 9], [9, 9]], [[0.3, 9], [9, 9]]]])
    hole = torch.tensor([[[[True, False], [False, False]]]])
    assert HoleError()(a, b, hole).tolist() == pytest.approx([(0.01 + 0.09) / 2])
    assert PSNR()(a, b, hole).tolist() == pytest.approx([-10 * torch.tensor(0.05).log10().item()])
    assert (PSNR.higher_is_better, HoleError.higher_is_better, PSNR.unit, HoleError.unit) == (True, False, True, False)


def test_a_feature_network(reader):
    """Any module: its scores are in the result and in the table, under another T too."""
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # the mean colour
    network = FeatureNetwork(module, "mean colour", (8, 8), mean=0.0, std=1.0)
    evaluator = Evaluator(Smoother(0.5), SETS, reader, T, features=[network], keep_original=True, metrics=[Bright()])
    for one in (evaluator, evaluator.under(CenterCrop(1))):
        result = one(Smoother(0.8), progress=False)
        assert [how["network"] for how in result["forget"]["features"]] == ["mean colour"] * 2
        assert "bright" in result["forget"] and result["forget"]["features"][0]["fid"] >= 0
    assert evaluator(Smoother(0.8), progress=False) == evaluator.under(T)(Smoother(0.8), progress=False)


QUICK = {"samples": 8, "membership_samples": 8, "relearn_pictures": 4, "relearn_samples": 4, "relearn_steps": 2}
MORE = list(undecoded(make_dataset(36)))[12:]
UNSEEN = {"forget": MORE[:12], "retain": MORE[12:]}


@pytest.fixture(scope="module")
def audited():
    """A stranger's family, audited by a stranger's error."""
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    models, reader = (Smoother(3.0), Smoother(0.2)), ImageReader(processor, 3)
    options = AuditOptions(relearn_learning_rates=[1e-3], **QUICK)
    more = {"unseen": UNSEEN, "masks": [CenterCrop(1)], "options": options}
    return models, reader, more, audit_model(*models, SETS, reader, T, metric=Largest(), **more)


def test_an_audit_of_objects(audited, reader):
    """Every part, in the stranger's own error, with verdicts in its name."""
    (model, original), _, more, found = audited
    parts = {"memory/unlearned", "relearning/unlearned", "relearning/original", "relearning/scrambled", "membership/forget",
             "membership/retain",
             "probe/classes", "probe/forget_retain", "leakage/center:2", "leakage/center:1"}  # fmt: skip
    assert found["parts"].keys() == parts and len(found["verdicts"]) == 8 and found["overall"]
    leakage = found["parts"]["leakage/center:2"]
    wanted = evaluate(model, original, UNSEEN, reader, T, metrics=[Largest()], progress=False)["forget"]
    held = found["parts"]["leakage/center:2"]["count"]
    assert held == 8  # of 12, evenly spread
    assert leakage["after"] == pytest.approx(wanted["largest"], rel=0.3) and leakage["after"] > leakage["before"]
    line = next(line for line in found["verdicts"] if line["part"] == "leakage/center:2")
    assert line["title"] == "Mask center:2 (the trained one)" and line["finding"].startswith("Largest on forget pictures")
    assert found["parts"]["probe/classes"]["skipped"]  # no labels were given


def test_an_audit_is_kept_and_goes_on(audited, tmp_path):
    models, reader, more, found = audited
    options = AuditOptions(relearn_learning_rates=[1e-3], parts=["membership", "leakage"], **QUICK)
    kept = audit_model(*models, SETS, reader, T, **more | {"options": options}, folder=tmp_path)
    assert (tmp_path / "audit.json").is_file() and "metric" not in kept["options"]
    assert kept["parts"]["leakage/center:2"]["after"] != found["parts"]["leakage/center:2"]["after"]
    again = audit_model(*models, SETS, reader, T, **more | {"options": options}, folder=tmp_path)
    assert again["parts"] == kept["parts"]
    with pytest.raises(InputError, match=r"under other options \(metric\)"):
        audit_model(*models, SETS, reader, T, **more, metric=Largest(), folder=tmp_path)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"metric": PSNR()}, "'psnr' is higher where a completion is better; give one that is lower"),
        ({"metric": named("drift")}, "'drift' of a metric is taken"),
        ({"masks": [CenterCrop(4)]}, "hides everything"),
        ({"never_trained": make_mae()}, "The never-trained model is a model of another kind or size"),
        ({"options": AuditOptions(parts=["magic"])}, "'magic' is no part of an audit"),
    ],
)
def test_an_audit_refuses_before_it_measures(reader, change, words):
    with pytest.raises(InputError, match=words):
        audit_model(Smoother(0.5), Smoother(0.2), SETS, reader, T, **change)
    with pytest.raises(InputError, match="no forget pictures to audit with"):
        audit_model(Smoother(0.5), Smoother(0.2), {"retain": ROWS}, reader, T)


class Blurred(EncodedTarget):
    """E0(T(blur(x_f)))."""

    def pictures(self, halves):
        return torch.nn.functional.avg_pool2d(halves.forget, 5, stride=1, padding=2)


def test_a_comparison_of_objects(tmp_path, processor, capsys):
    """A stranger's family and method beside ours, with a stranger's metric: in the points, in the table and in the figure."""
    methods = [METHODS["ours"], Method("blurred", Blurred()), METHODS["control"]]
    training = UnlearningConfig(str(tmp_path), use_cpu=True, disable_tqdm=True, per_device_train_batch_size=2)
    points = compare(
        lambda: Smoother(0.2), processor, SETS, UNSEEN, T, methods, training,
        learning_rates=[1e-2], alphas=[0.25, 1.0], measure_at=[2, 4], metrics=[Bright()],
    )  # fmt: skip
    runs = list(dict.fromkeys(p["run"] for p in points))
    assert runs == ["ours-lr0.01-alpha0.25", "ours-lr0.01-alpha1", "blurred-lr0.01-alpha0.25", "blurred-lr0.01-alpha1",
                    "control-lr0.01-alpha0.25"]  # fmt: skip
    assert [p["steps"] for p in points] == [2, 4] * 5 and len({p["forget_mse"] for p in points}) == 10
    original = evaluate(Smoother(0.2), Smoother(0.2), UNSEEN, ImageReader(processor, 3), T, metrics=[Bright()], progress=False)
    assert points[0]["forget_original_bright"] == pytest.approx(original["forget"]["bright"], rel=1e-5)
    table = comparison_table(points, 9.0, [Bright()]).splitlines()
    assert table[2].endswith("| forget MSE | PSNR | retain brighter by | forget brighter by |")
    assert [line.split(" | ")[0] for line in table[4:]] == ["| original", "| ours", "| blurred", "| control"]
    assert table[6].endswith(" levels |") and not list(tmp_path.iterdir())
    before = {f"{s}_{k}": points[0][f"{s}_original_{k}"] for s in UNSEEN for k in ("mse", "psnr")}
    frontier(points, before, tmp_path / "frontier.png", 0.05)
    styles = method_styles(["blurred", "ours", "sharp"])
    assert (tmp_path / "frontier.png").stat().st_size > 5000
    assert styles["ours"] == METHOD_STYLES["ours"] and len(set(styles.values())) == 3
    assert not {styles["blurred"], styles["sharp"]} & set(METHOD_STYLES.values())


@pytest.mark.parametrize(
    "methods, words",
    [
        (["ours"], r"such as METHODS\['ours'\], got 'ours'"),
        ([METHODS["ours"], Method("ours", Blurred())], r"of different names, .* got \['ours', 'ours'\]"),
        ([], r"got \[\]"),
    ],
)
def test_a_comparison_refuses_methods_that_cannot_be_told_apart(tmp_path, processor, methods, words):
    training = UnlearningConfig(str(tmp_path), use_cpu=True, max_steps=2)
    with pytest.raises(InputError, match=words):
        compare(lambda: Smoother(0.2), processor, SETS, UNSEEN, T, methods, training)
