"""How fast the page of ``jaxvae.explore`` is, in a headless Chromium: from an input to the changed picture.

    python experiments/explore/latency.py runs/first [runs/other ...] --out experiments/explore/latency.json

For each run: the seconds from the command's start to its address, from the address to the drawn page, and, over
`ROUNDS` inputs each, the milliseconds from a click on the map or a key on a slider to the frame in which the decoded
picture is another, as the browser's own clock tells them. The server and the browser share the machine. Of a model with
discrete latents some inputs change nothing: they are counted apart.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

from browser import opened, served

from jaxvae.machine import cores, processor
from jaxvae.versions import package_versions

ROUNDS = 40

# Notes when an input arrives, and when the picture has changed and the next frame is drawn.
_WATCH = """
() => {
  const pictures = (root) => {
    const found = []
    for (const element of root.querySelectorAll("*")) {
      if (element.shadowRoot) found.push(...pictures(element.shadowRoot))
      if (element.alt === "The image decoded from the latents") found.push(element)
    }
    return found
  }
  const source = () => pictures(document)[0]?.src
  window.measured = []
  let start = null, before = null
  window.turn = 0
  const begin = () => { start = performance.now(); before = source(); turn += 1; poll(turn) }
  // The next frame begins when what this one holds is drawn.
  const poll = (own) => {
    const now = source()
    if (own !== turn) return
    if (now !== undefined && now !== before)
      requestAnimationFrame(() => { if (own === turn) measured[own - 1] = performance.now() - start })
    else requestAnimationFrame(() => poll(own))
  }
  window.addEventListener("pointerup", begin, true)
  window.addEventListener("keydown", begin, true)
}
"""


def measured(page: Any, act: Any) -> list[float]:
    """Milliseconds of those of `ROUNDS` inputs that changed the picture; `act` gets the number of each."""
    for number in range(ROUNDS):
        act(number)
        # Two seconds at most. The traversals are drawn meanwhile, as when a person looks at them.
        for _ in range(5):
            page.wait_for_timeout(400)
            if page.evaluate(f"measured[{number}]") is not None:
                break
    found: list[float | None] = page.evaluate("turn = 0, measured.splice(0)")
    return [time for time in found if time is not None]


def summary(times: list[float]) -> dict[str, float]:
    """How many there were, the median, the 95th percentile and the most."""
    ordered = sorted(times)
    if not ordered:
        return {"changed": 0}
    return {
        "changed": len(ordered),
        "median_ms": round(statistics.median(ordered), 1),
        "p95_ms": round(ordered[int(0.95 * (len(ordered) - 1))], 1),
        "most_ms": round(ordered[-1], 1),
    }


def of_run(run_dir: str) -> dict[str, Any]:
    """All figures of one run."""
    with served([run_dir]) as (address, to_address):
        start = time.perf_counter()
        with opened(address) as page:
            to_page = time.perf_counter() - start
            page.wait_for_timeout(1500)
            page.reload()
            page.wait_for_function("window.Bokeh && Bokeh.documents.length > 0 && Bokeh.documents[0].is_idle")
            again = page.evaluate("performance.now()")
            page.wait_for_timeout(1500)
            page.evaluate(_WATCH)
            box = page.get_by_role("group", name="Map").bounding_box()
            assert box is not None

            def click(number: int) -> None:
                x, y = 0.2 + 0.6 * (number * 0.618 % 1), 0.2 + 0.5 * (number * 0.382 % 1)
                page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])

            clicks = measured(page, click)
            slider = page.get_by_role("slider").first
            slider.focus()
            keys = measured(page, lambda number: page.keyboard.press("ArrowRight" if number // 10 % 2 else "ArrowLeft"))
    return {
        "command_to_address_s": round(to_address, 2),
        "browser_start_and_page_s": round(to_page, 2),
        "page_idle_after_reload_ms": round(again),
        "click_on_map": summary(clicks),
        "key_on_slider": summary(keys),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dirs", nargs="+")
    parser.add_argument("--out", type=Path, default=Path("latency.json"))
    given = parser.parse_args()
    machine = {"processor": processor(), "cores": cores(), "system": platform.system(), **package_versions()}
    found = {"machine": machine, "rounds": ROUNDS, "runs": {Path(run).name: of_run(run) for run in given.run_dirs}}
    given.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
