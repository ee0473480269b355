"""Make a page of tables and a plot from what the campaign measured.

    python experiments/accelerator/page.py OUT        # the folder of run.py: writes OUT/page.md and OUT/speed.png

A piece that was not measured is left out.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

BENCHMARKS = ("dense", "dense-bfloat16", "dense-tf32", "conv", "resnet")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def spread(values: Sequence[float]) -> str:
    """The median, and the range in brackets."""
    return f"{median(values):,.0f} ({min(values):,.0f}-{max(values):,.0f})"


def machine(found: Mapping[str, Any]) -> str:
    """What the machine can do."""
    rows = [[f"products, {name}", f"{each / 1e12:,.0f} TFLOP/s"] for name, each in found["flops_per_second"].items()]
    rows.append(["memory, bytes read and written", f"{found['bytes_per_second'] / 1e12:,.2f} TB/s"])
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    named = f"{found['device']}, {found['cores']} cores of {found['processor']}, Python {found['python']}, {versions}"
    return f"{named}, {found['date']}.\n\n{table(['', ''], rows)}"


def same(found: Mapping[str, Any]) -> str:
    """How far losses are from a CPU's."""
    rows = [[name, f"{each['first']:.0e}", f"{each['most']:.0e}", str(each["steps"])] for name, each in found.items()]
    return table(["losses against a CPU's, relative", "first step", "the most", "steps"], rows)


def resume(found: Sequence[Mapping[str, Any]]) -> str:
    """Whether bits are the same."""
    words, kept = {True: "the same bytes", False: "other bits"}, {True: "kept", False: "compiled anew"}
    rows = []
    for r in found:
        flags = f"`{r['flags']}`" if r["flags"] else ""
        same = [words[r["again_the_same"]], words[r["resumed_the_same"]]]
        rows.append([r["model"], flags, kept[r["programs_kept"]], *same])
    return table(["model", "`XLA_FLAGS`", "programs", "the same run again", "killed and resumed"], rows)


def ways(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Steps per second of each way to compile."""
    timed = {name: each["steps_per_second"] for name, each in found.items() if each.get("steps_per_second")}
    return table(["way, `notes-vae` at batch 32", "steps/s"], [[name, spread(each)] for name, each in timed.items()])


def benchmark(found: Mapping[str, Any]) -> str:
    """Steps per second at each batch size."""
    rows = [
        [
            f"{r['batch_size']:,}",
            spread(r["steps_per_second_rounds"]),
            f"{r['images_per_second']:,.0f}",
            f"{r['peak_fraction']:.0%} of {r['products']}",
        ]
        for r in found["results"]
    ]
    head = ["batch", "steps/s", "images/s", "of the peak of products"]
    return f"{found['model']}:\n\n{table(head, rows)}"


def predicted(found: Mapping[str, Any], kernels: Mapping[str, Any]) -> str:
    """Kernels and time of a step: predicted from the compiled program, and measured."""
    rows = []
    for name, each in found.items():
        if name == "note":
            continue
        [result] = each["results"]
        seen = kernels.get(name)
        rows.append(
            [
                name,
                str(result["kernels_per_step"]),
                f"{seen['kernels_per_step']:.0f}" if seen else "",
                f"{1e6 * sum(result['predicted_seconds'].values()):,.0f} us",
                f"{1e6 * seen['seconds_per_step_unprofiled']:,.0f} us" if seen else "",
            ]
        )
    return table(["model", "kernels, compiled", "kernels, run", "a step, predicted", "a step, measured"], rows)


def sweep(found: Sequence[Mapping[str, Any]]) -> str:
    """Steps per second of all members together."""
    rows = [[str(each["members"]), spread(each["model_steps_per_second"])] for each in found]
    return table(["members, `notes-vae` at batch 32", "steps/s of all together"], rows)


def comparison(found: Sequence[Mapping[str, Any]]) -> str:
    """Steps per second of all contenders."""
    rows = [[f"{each['batch_size']:,}", each["name"], spread(each["steps_per_second"])] for each in found]
    return table(["`notes-vae`, batch", "contender", "steps/s"], rows)


def convolutions(found: Sequence[Mapping[str, Any]]) -> str:
    """Steps per second of all contenders."""
    rows = [
        [
            each["architecture"],
            " x ".join(map(str, each["shape"])),
            str(each["batch_size"]),
            each["name"],
            spread(each["steps_per_second"]),
        ]
        for each in found
    ]
    return table(["architecture", "images", "batch", "contender", "steps/s"], rows)


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Images per second over the batch size; steps per second of all members over their number."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    batch, members = figure.subplots(1, 2)
    for name in BENCHMARKS:
        if name in found:
            results = found[name]["results"]
            sizes = [r["batch_size"] for r in results]
            batch.loglog(sizes, [r["images_per_second"] for r in results], "o-", label=name)
    batch.set(xlabel="batch size", ylabel="images per second", title="one model")
    if batch.lines:
        batch.legend(loc="lower right")
    if "sweep" in found:
        counts = [each["members"] for each in found["sweep"]]
        speeds = [median(each["model_steps_per_second"]) for each in found["sweep"]]
        members.loglog(counts, speeds, "o-")
    members.set(xlabel="members", ylabel="steps per second, all together", title="a sweep of notes-vae, batch 32")
    for axes in (batch, members):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def page(found: Mapping[str, Any]) -> str:
    """All tables of what was found."""
    makers: Mapping[str, Callable[[Any], str]] = {
        "machine": machine,
        "same": same,
        "resume": resume,
        "ways": ways,
        "predicted": lambda each: predicted(each, found.get("kernels", {})),
        **dict.fromkeys(BENCHMARKS, benchmark),
        "sweep": sweep,
        "comparison": comparison,
        "convolutions": convolutions,
        "nats": lambda each: f"```\n{each['table'].rstrip()}\n```",
    }
    parts = [f"## {name}\n\n{make(found[name])}\n" for name, make in makers.items() if name in found]
    return "# What was measured on this accelerator\n\n![speed](speed.png)\n\n" + "\n".join(parts)


def main() -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="the folder of run.py")
    out = parser.parse_args().out
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*.json"))}
    if not found:
        parser.error(f"no piece was measured in {out}")
    plot(found, out / "speed.png")
    (out / "page.md").write_text(page(found), encoding="utf-8")
    print(f"-> {out / 'page.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
