"""Write the table of record into docs/papers.md, and its two pictures, from the results.

python experiments/record/table.py [--add DIR]      # DIR: a folder of results of reproduce.py, copied to results/ first
python experiments/record/table.py --check          # write nothing; exit code 1 if the page is not up to date
"""

import argparse
import itertools
import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rows import ROWS, Paper, Row, by_name

from jaxvae.errors import InputError

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DOCS = HERE.parents[1] / "docs"
BEGIN, END = "<!-- record: made by experiments/record/table.py -->", "<!-- record: end -->"
WIDTH = 120

Results = Mapping[str, Sequence[Mapping[str, Any]]]


def load_results(folder: Path) -> Results:
    """The results in a folder, by row, in order of their seeds.

    Raises `InputError` for one that is not of its row as it is now: of other flags, or of no such row or seed.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder")
    for file in folder.glob("*.json"):
        result = json.loads(file.read_text())
        row = by_name(result["row"])
        if file.name != f"{row.name}-{result['seed']}.json":
            raise InputError(f"{file} is the result of {row.name}, seed {result['seed']}")
        if result["seed"] not in row.seeds:
            raise InputError(f"{file}: the row has no seed {result['seed']}")
        if result["flags"] != row.flags:
            raise InputError(f"{file}: its flags are {result['flags']!r}, those of the row are {row.flags!r}")
        found.setdefault(row.name, []).append(result)
    return {name: sorted(results, key=lambda result: int(result["seed"])) for name, results in found.items()}


def numbers(values: Any) -> str:
    """Active units of each layer."""
    return " + ".join(map(str, values)) if isinstance(values, list) else str(values)


def cells(row: Row, results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line of a paper's table."""
    published = "" if row.published is None else f"{row.published:.2f}"
    head = [f"`{row.name}`", f"{row.what} ({row.where})", published]
    if not results:
        return [*head, f"not run{f': {row.waits}' if row.waits else ''}", "", ""]
    nats = [result["nats"] for result in results]
    spread = f" ({min(nats):.2f} to {max(nats):.2f})" if len(nats) > 1 else ""
    error = mean(result["standard_error"] for result in results)
    active = sorted({numbers(result["evaluation"]["active_units"]) for result in results})
    found = f"**{mean(nats):.2f}** +- {error:.2f}{spread}"
    return [*head, found, f"{len(nats)} of {len(row.seeds)}", " or ".join(active)]


def took(name: str, results: Sequence[Mapping[str, Any]]) -> str:
    """A sentence about how long a row was trained, and where."""
    said = []
    for result in results:
        seconds, models = result["training"]["seconds"], result["training"]["models"]
        time = f"{seconds} s" if seconds < 300 else f"{seconds / 60:.0f} minutes"
        together = f" for {models} models together" if models > 1 else ""
        versions = f"jax {result['versions']['jax']}"
        said.append(f"{time}{together} ({result['machine']}, {versions}, {result['date']})")
    return f"`{name}`: {'; '.join(dict.fromkeys(said))}."


def wrapped(text: str, indent: str = "") -> str:
    """A paragraph, or an item of a list, in lines of `WIDTH`."""
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def bullets(sentences: Iterable[str]) -> str:
    """A list of Markdown."""
    return "\n".join(wrapped(f"- {sentence}", "  ") for sentence in sentences)


def of_paper(paper: Paper, rows: Sequence[Row], results: Results) -> str:
    """What the page says of a paper."""
    head = ["row", "result", "published", "jaxvae", "seeds", "active units"]
    lines = [head, ["---"] * len(head), *(cells(row, results.get(row.name, ())) for row in rows)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    notes = []
    for differs, alike in itertools.groupby(rows, key=lambda row: row.differs):
        if differs:
            notes.append(f"{', '.join(f'`{row.name}`' for row in alike)}: {differs}")
    trained = [took(row.name, results[row.name]) for row in rows if row.name in results]
    said = [f"Source: {paper.source}.{f' {paper.protocol}' if paper.protocol else ''}"]
    parts = [f"### {paper.title}", *map(wrapped, said), table]
    if notes:
        parts += ["Differences from the published protocol:", bullets(notes)]
    if found := [f"`{row.name}`: {row.finding}" for row in rows if row.finding and row.name in results]:
        parts += ["Where the figures differ:", bullets(found)]
    if trained:
        parts += ["Training took:", bullets(trained)]
    return "\n\n".join([*parts, wrapped(f"The published figures: {paper.checked}")])


def section(results: Results) -> str:
    """What stands between the markers."""
    papers = list(dict.fromkeys(row.paper for row in ROWS))
    parts = [of_paper(paper, [row for row in ROWS if row.paper is paper], results) for paper in papers]
    drawn = [row for row in ROWS if row.name in results]
    curves = [row for row in drawn if curve_of(results[row.name])]
    if curves:
        named = ", ".join(row.name for row in curves)
        parts.append(
            f"![The loss in nats per image against the epoch, falling, a panel for each paper. Rows: {named}.]"
            "(images/record-curves.png)\n\n"
            + wrapped(
                "*The loss in evaluation after each epoch, of the first seed: of the validation images, or if there "
                "are none, of the test images. It is the bound that was trained, not the importance-sampled figure.*"
            )
        )
    if pictures := samples_of(results):
        parts.append(
            f"![Sixteen digits drawn from the prior of each of: {', '.join(pictures)}.](images/record-samples.png)\n\n"
            + wrapped("*16 draws from the prior of each row's first seed: mean intensities, not drawn pixels.*")
        )
    return "\n\n".join(parts)


def curve_of(results: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The first curve of a row, if a result has one."""
    return next((result["curve"] for result in results if result["curve"]), None)


def draw_curves(results: Results, file: Path) -> None:
    """A panel for each paper, a line for each row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = [(row, curve) for row in ROWS if (curve := curve_of(results.get(row.name, ())))]
    papers = list(dict.fromkeys(row.paper for row, _ in drawn))
    figure = Figure(figsize=(5 * len(papers), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, paper in zip(figure.subplots(1, len(papers), squeeze=False)[0], papers, strict=True):
        shown = [(row, curve) for row, curve in drawn if row.paper is paper]
        for row, curve in shown:
            axes.plot(curve["epoch"], curve["evaluated"], marker=".", markersize=3, label=row.name)
        ends = [curve["evaluated"][-1] for _, curve in shown]
        axes.set(title=paper.title.partition(" (")[0], xlabel="epoch", ylabel="nats/image", xscale="log")
        axes.set_ylim(min(ends) - 2, max(ends) + 30)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(file, dpi=110)


def samples_of(results: Results) -> dict[str, Path]:
    """A picture that `reproduce.py` drew for each row that has one."""
    found: dict[str, Path] = {}
    for row in ROWS:
        for result in results.get(row.name, ()):
            file = RESULTS / f"{row.name}-{result['seed']}.png"
            if file.exists():
                found.setdefault(row.name, file)
    return found


def draw_samples(pictures: Mapping[str, Path], file: Path) -> None:
    """Pictures of rows, beside and below each other, each below its row's name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    columns = min(3, len(pictures))
    figure = Figure(figsize=(3.6 * columns, 1.2 * -(-len(pictures) // columns)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(-(-len(pictures) // columns), columns, squeeze=False).flat)
    for axes in panels:
        axes.axis("off")
    for axes, (name, picture) in zip(panels, pictures.items(), strict=False):
        axes.imshow(Image.open(picture), cmap="gray", vmin=0, vmax=255)
        axes.set_title(name, fontsize="small")
    figure.savefig(file, dpi=130)


def replaced(page: str, text: str) -> str:
    """`page`, with `text` between the markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"the page has no lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--add", type=Path, metavar="DIR", help="a folder of results of reproduce.py, to copy to results/ first"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is not up to date")
    args = parser.parse_args(argv)
    page = DOCS / "papers.md"
    try:
        if args.add is not None:
            load_results(args.add)  # Refuses what does not fit before anything is copied.
            for file in sorted([*args.add.glob("*.json"), *args.add.glob("*.png")]):
                shutil.copyfile(file, RESULTS / file.name)
        results = load_results(RESULTS)
        new = replaced(page.read_text(), section(results))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.check:
        return int(new != page.read_text())
    page.write_text(new)
    draw_curves(results, DOCS / "images" / "record-curves.png")
    draw_samples(samples_of(results), DOCS / "images" / "record-samples.png")
    print(f"{sum(map(len, results.values()))} results of {len(results)} rows -> {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
