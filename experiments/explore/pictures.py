"""The pictures of docs/explore.md: ``docs/images/explore.png`` and ``docs/images/explore.gif``.

python -m jaxvae.train --preset vae --dataset mnist --epochs 8 --run-dir runs/first
python experiments/explore/pictures.py runs/first
"""

import argparse
import io
from pathlib import Path
from typing import Any

from browser import opened, served
from PIL import Image

IMAGES = Path(__file__).parents[2] / "docs" / "images"
WIDTH, HEIGHT = 1320, 860
COLOURS = 256  # Of the GIF.


def frame(page: Any, milliseconds: int = 0) -> Image.Image:
    """The window, after a moment."""
    page.wait_for_timeout(milliseconds)
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def tour(page: Any) -> list[tuple[Image.Image, int]]:
    """A way over the map, along two sliders: frames, and how long each is shown, in milliseconds."""
    frames = [(frame(page, 2500), 900)]
    box = page.get_by_role("group", name="Map").bounding_box()
    for x, y in ((0.3, 0.35), (0.42, 0.42), (0.54, 0.5), (0.66, 0.42), (0.72, 0.3)):
        page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
        page.mouse.move(0, 0)
        frames.append((frame(page, 1500), 700))
    for number in (0, 2):
        slider = page.get_by_role("slider").nth(number)
        slider.focus()
        for _ in range(4):
            for _ in range(10):
                page.keyboard.press("ArrowRight" if number else "ArrowLeft")
            frames.append((frame(page, 1500), 450))
    return frames


def main() -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir")
    given = parser.parse_args()
    with served([given.run_dir]) as (address, _), opened(address, WIDTH, HEIGHT) as page:
        # The visitor's own path is of no interest.
        page.evaluate("document.querySelector('.run h2').textContent = 'runs/first'")
        frames = tour(page)
        page.evaluate("window.scrollTo(0, 0)")
        page.wait_for_timeout(500)
        first = page.locator("section.latents").bounding_box()
        assert first is not None
        page.set_viewport_size({"width": WIDTH, "height": round(first["y"] + first["height"] + 14)})
        shot = frame(page, 1500)
    shot.save(IMAGES / "explore.png", optimize=True)
    small = [image.resize((WIDTH * 2 // 3, HEIGHT * 2 // 3), Image.Resampling.LANCZOS) for image, _ in frames]
    palette = small[-1].quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    drawn = [image.quantize(COLOURS, palette=palette, dither=Image.Dither.NONE) for image in small]
    drawn[0].save(
        IMAGES / "explore.gif", save_all=True, append_images=drawn[1:], duration=[time for _, time in frames], loop=0,
        optimize=True,
    )  # fmt: skip
    for name in ("explore.png", "explore.gif"):
        print(IMAGES / name, f"{(IMAGES / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
