"""What `--plan` foretells beside what the run then takes: `benchmark_plan.py [--cpu_time] OPTIONS OF unlearn`.

    python recipes/benchmarks/benchmark_plan.py --config unlearn_mnist_mae --output_dir /tmp/planned

Both are processes of their own. The run is left in its folder. `--check` ends with status 1 where the plan was off by more than
25% of the time or 10% of the memory.
"""

import json
import sys
import tempfile
from pathlib import Path

from hf_i2i_unlearn.commands.rehearse import CPU_TIME, run_child

TIME, MEMORY = 0.25, 0.10


def main() -> None:
    words = [word for word in sys.argv[1:] if word not in ("--cpu_time", "--check")]
    if not words or "--help" in words:
        sys.exit(__doc__)
    program = ["-c", CPU_TIME] if "--cpu_time" in sys.argv else ["-m", "hf_i2i_unlearn"]
    command = [sys.executable, *program, "unlearn", *words]
    with tempfile.TemporaryDirectory() as folder:
        plan = json.loads(run_child([*command, "--plan", "json"], Path(folder)).said.splitlines()[-1])
        run = run_child(command, Path(folder))
    seconds, foretold = run.cpu if "--cpu_time" in sys.argv else run.seconds, sum(plan["seconds"].values())
    print(f"| | {'CPU s' if '--cpu_time' in sys.argv else 's'} | GB |\n|---|---|---|")
    print(f"| foretold | {foretold:.0f} | {plan['memory']:.2f} |\n| measured | {seconds:.0f} | {run.gigabytes:.2f} |")
    print(f"| of it | {foretold / seconds:.2f} | {plan['memory'] / run.gigabytes:.2f} |")
    print("\nforetold, s: " + ", ".join(f"{name} {part:.1f}" for name, part in plan["seconds"].items()))
    off = abs(foretold / seconds - 1) > TIME, abs(plan["memory"] / run.gigabytes - 1) > MEMORY
    if "--check" in sys.argv and any(off):
        sys.exit("The plan was off by more than 25% of the time or 10% of the memory.")


if __name__ == "__main__":
    main()
