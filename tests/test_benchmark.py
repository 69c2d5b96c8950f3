"""The benchmark: what its sides do, what it counts, and what it calls missed. What it measures is no matter for a test."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.close import assert_close
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "recipes" / "benchmarks"))

import benchmark  # noqa: E402
import benchmark_cost  # noqa: E402
import benchmark_steps  # noqa: E402

TINY = {"size": 64, "width": 32, "layers": 2, "pairs": 3, "rounds": 1}


def launch(*argv):
    return subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "benchmarks" / "benchmark.py"), *argv],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


def test_the_step_prints_all_sides_and_names_what_is_missed():
    run = launch("--size", "64", "--width", "32", "--layers", "1", "--pairs", "1", "--rounds", "2", "--threads", "1", "--check")
    rows = [line for line in run.stdout.splitlines() if line.startswith("| (")]
    assert [row.split()[1] for row in rows] == ["(a)", "(a2)", "(b)", "(c1)", "(c2)", "(c3)"], run.stderr
    assert all(len(row.split("|")) == 9 and "nan" not in row for row in rows)
    assert rows[0].split("|")[3].strip() == "1.000"
    # So small a model never comes near the peak of the matrix product.
    assert run.returncode == 1 and "(b) runs at" in run.stderr and "wanted 85%" in run.stderr


@pytest.mark.parametrize("name", ["activation checkpointing", "channels last (U-Net)"])
def test_options_are_measured_off_and_on(name, capsys):
    arguments = benchmark.Arguments(part="options", only=[name], unet_size=16, unet_width=8, **TINY)
    assert benchmark.options(arguments) == []
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith(f"| {name} |") and all(float(cell) >= 0 for cell in row.split("|")[2:5])


def test_what_each_side_lets_pass_through_the_models(tmp_path, monkeypatch):
    """Pictures that student and teacher see in a step, beside those of the floor."""
    seen = []
    real = benchmark_steps.I2IMAE.forward

    def forward(self, pixels, mask):
        seen.append(len(pixels) * (1 if torch.is_grad_enabled() else -1))
        return real(self, pixels, mask)

    monkeypatch.setattr(benchmark_steps.I2IMAE, "forward", forward)
    sides = benchmark.step_sides(benchmark.Arguments(**TINY), tmp_path)
    passes = {}
    for name, side in sides.items():
        side.step()
        seen.clear()
        side.step()
        passes[name] = sorted(seen)
    if not torch.cuda.is_available():
        assert passes == {"a": [-6, -6, 6], "a2": [-6, -6, 6], "b": [-6, 6], "c1": [-3, 6], "c2": [6], "c3": [6]}


def test_the_reference_pattern_is_equation_10(tmp_path):
    """Each half counts once, and only the student moves."""
    arguments = benchmark.Arguments(**TINY)
    student, teacher = benchmark_steps.mae(arguments).train_encoder_only(), benchmark_steps.mae(arguments).frozen_copy()
    batch = {"retain": torch.randn(3, 3, 64, 64), "forget": torch.randn(3, 3, 64, 64)}
    torch.manual_seed(7)
    mask = benchmark_steps.crop(student)(student.grid, range(3))
    noise = torch.randn(6, 3, 64, 64)[3:]
    loss = (student(batch["retain"], mask) - teacher(batch["retain"], mask)).square().mean()
    loss = loss + 0.25 * (student(batch["forget"], mask) - teacher(noise, mask)).square().mean()
    trained = [p for p in student.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    norm = sum(g.square().sum() for g in gradients if g is not None).sqrt()
    k = next(k for k, p in enumerate(trained) if p.ndim == 2)
    weight = trained[k]
    expected = weight.detach() - gradients[k] * min(1, 3 / norm)
    torch.manual_seed(7)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    benchmark_steps.reference_step(student, teacher, batch, optimizer)()
    assert_close(weight.detach(), expected)


def test_floors():
    """Against torch's own count of the operations, and the shares of the issue: 0.8, 0.7, 0.6 and 0.4 of (a)."""
    arguments = benchmark.Arguments(**TINY)
    model = benchmark_steps.mae(arguments)
    model.model.set_attn_implementation("eager")
    mask = benchmark_steps.crop(model)(model.grid, range(3))
    visible = benchmark.visible_patches(arguments)
    assert visible == int((~mask[0]).sum()) == 12
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(3, 3, 64, 64), mask)
    config = model.model.config
    hidden_patches = 3 * 2 * 4 * 3 * 16**2 * 32  # the library embeds them all and drops them then
    assert counter.get_total_flops() - hidden_patches == 3 * benchmark_steps.encoder_flops(config, visible)
    before = counter.get_total_flops()
    benchmark_steps.with_lora(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(3, 3, 64, 64), mask)
    assert counter.get_total_flops() - before == 3 * benchmark_steps.lora_flops(config, visible, benchmark_steps.LORA_RANK)

    base = benchmark_steps.ViTMAEConfig()
    floor = benchmark_steps.floors(base, 132, 8)
    assert floor["b"] == 6 * 8 * benchmark_steps.encoder_flops(base, 132) + 2 * 8 * benchmark_steps.encoder_flops(base, 132)
    shares = [floor[name] / floor["a"] for name in ("b", "c1", "c2", "c3")]
    assert shares[:3] == pytest.approx([0.8, 0.7, 0.6]) and 0.4 < shares[3] < 0.42


def test_taking_turns(monkeypatch):
    """Ratios are medians of the rounds' own ratios, so a slow round does not count; the share is floor / time / peak."""
    order, clock = [], iter([2, 1, 20, 10, 2, 1.2])
    monkeypatch.setattr(benchmark_steps, "timed", lambda function: (function(), next(clock))[1])
    sides = {name: benchmark_steps.Side(lambda name=name: order.append(name), floor=100.0) for name in ("a", "b")}
    result, peaks = benchmark_steps.take_turns(sides, {"fp32": lambda: 200.0}, 3)
    assert order == ["a", "a", "b", "b"] + ["a", "b"] * 3  # the first two steps, one for the memory, are not timed
    assert result["b"]["ratio"] == 0.5 and result["b"]["seconds"] == 1.2 and peaks == {"fp32": 200.0}
    assert result["b"]["share"] == pytest.approx(100 / 1.2 / 200)


def test_bounds_that_are_missed():
    wanted = {"a": (None, None), "b": (0.82, 0.85), "c3": (0.42, None)}
    good = {"a": {"ratio": 1, "share": 0.5}, "b": {"ratio": 0.82, "share": 0.85}, "c3": {"ratio": 0.42, "share": 0.1}}
    assert benchmark.missed_bounds(good, wanted) == []
    bad = good | {"b": {"ratio": 0.83, "share": 0.849}, "c3": {"ratio": float("nan"), "share": 1}}
    assert benchmark.missed_bounds(bad, wanted) == [
        "(b) takes 0.830 of (a)'s time, wanted 0.82",
        "(b) runs at 84.9% of the matrix-product peak, wanted 85%",
        "(c3) takes nan of (a)'s time, wanted 0.42",
    ]


def test_memory_of_a_call():
    with benchmark_steps.Memory() as memory:
        block = torch.ones(2**26)  # 256 MB, freed before the end
        del block
    if memory.taken is None:
        pytest.skip("This system does not tell the peak memory of a process.")
    assert 0.2 < memory.taken < 0.6


# What runs at the paper's scale would cost


def test_cost_by_hand():
    """10,000 pairs, 8 in a step, 5 epochs: 6,250 steps; and targets of 10,000 pictures and 1,024 draws."""
    extra = benchmark_cost.once(0.09, 10_000)
    assert extra == pytest.approx(0.09 * 11_024)
    cost = benchmark_cost.Cost("mae", "ours", 8, 2.0, 1.5, extra)
    assert cost.steps == 6_250 and cost.images_per_second == 8.0
    assert cost.hours == pytest.approx((12_500 + 992.16) / 3600)
    odd = benchmark_cost.Cost("unet", "ours", 7, 1.0, None)
    assert odd.steps == 3 * 35_715 and odd.hours == pytest.approx(107_145 / 3600)  # the last batch of an epoch is smaller


def test_the_table_of_costs():
    mae = benchmark_cost.Cost("mae", "ours", 8, 2.0, 1.5)
    lines = benchmark_cost.table([mae])
    assert lines[2:] == [
        "| MAE | ours | 8 | 2 | 8 | 1.5 | 6,250 steps, 3.47 h |",
        "| MAE | the paper | - | - | 27.8 on all | - | 1 h on 4 A10G, 4 GPU hours |",
    ]
    lines = benchmark_cost.table([benchmark_cost.Cost("unet", "ours", 1, 4.0, None), mae])
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["MAE", "MAE", "U-Net", "U-Net"]
    assert lines[4:] == [
        "| U-Net | ours | 1 | 4 | 0.5 | - | 750,000 steps, 833 h |",
        "| U-Net | the paper | - | - | 278 on all | - | 1.5 h on 8 A10G, 12 GPU hours |",
    ]
    assert len({line.count("|") for line in lines}) == 1


def test_costs_are_measured(monkeypatch):
    """Each setting by its own step, and the targets of those that precompute them with the teacher's measured pass."""
    tiny = benchmark.Arguments(part="cost", unet_size=16, unet_width=8, **TINY)
    seen, real = [], benchmark_cost.table
    monkeypatch.setattr(benchmark_cost, "table", lambda costs: (seen.extend(costs), real(costs))[1])
    monkeypatch.setattr(benchmark_cost, "pass_of", lambda trainer, args: 0.5)
    assert benchmark_cost.cost(tiny) == []
    assert [(c.scale, c.pairs, c.once) for c in seen] == [
        ("mae", 3, 0.0),
        ("mae", 3, 0.5 * 11_024),
        ("mae", 3, 0.5 * 11_024),
        ("unet", 1, 0.0),
    ]
    assert all(c.seconds > 0 and (c.gigabytes is None or c.gigabytes > 0.05) for c in seen)


def test_the_command_for_costs(monkeypatch, capsys):
    argv = ["--part", "cost", "--skip", "unet", "--size", "64", "--width", "32", "--layers", "1", "--pairs", "2"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *argv])
    benchmark.main()
    out = capsys.readouterr().out
    assert out.count("\n| MAE") == 4 and "| U-Net" not in out
    assert "10,000 retain and 10,000 forget pictures, 5 times" in out
