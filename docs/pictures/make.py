"""Makes the pictures of ``docs/viewer.md`` from finished runs, in a headless chromium.

    python -m docs.pictures.make --tree RUN --tokens RUN --runs RUN RUN RUN

The pictures are of the page itself at 1280 x 800, with a palette so that they stay small.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from bench.chromium import start_chromium
from spanwise.viewer import Viewer, serve

HERE = Path(__file__).parent


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make the pictures of docs/viewer.md.")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="over seeds")
    parser.add_argument("--tree", type=Path, required=True, help="of paid_search.py")
    parser.add_argument("--tokens", type=Path, required=True, help="best one with a critic")
    parser.add_argument("--tree-place", default="#/tree/0/1", help="address after the /")
    parser.add_argument("--tokens-place", default="#/tokens/0/1/0?p=0.5")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as profile:
        driver = start_chromium(Path(profile))
        try:
            take(driver, arguments.runs, "#/runs?mode=median", "runs.png")
            take(driver, [arguments.tree], arguments.tree_place, "tree.png")
            take(driver, [arguments.tokens], arguments.tokens_place, "tokens.png")
        finally:
            driver.quit()


def take(driver: Any, folders: list[Path], place: str, name: str) -> None:
    """One picture of one place."""
    with serve(Viewer(folders), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = server.address
        driver.get(address)
        driver.execute_script("localStorage.setItem('theme', 'light')")
        driver.get("about:blank")
        driver.get(address + place)
        while driver.execute_script("return document.getElementById('main').dataset.ready") is None:
            time.sleep(0.05)
        time.sleep(0.5)
        path = HERE / name
        driver.save_screenshot(str(path))
        server.shutdown()
    fewer_colours(path)
    print(f"{path.name}  {path.stat().st_size / 1000:.0f} kB")


def fewer_colours(path: Path) -> None:
    """The same picture with a palette, where Pillow is there; a third of the size."""
    try:
        from PIL import Image
    except ImportError:
        return
    Image.open(path).convert("RGB").quantize(
        256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
    ).save(path, optimize=True)


if __name__ == "__main__":
    main()
