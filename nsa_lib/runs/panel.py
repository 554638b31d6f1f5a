"""The panel that tells where a run is: in its cell, in a corner of JupyterLab, and as a page in the run folder.

After "Run All Cells" JupyterLab shows the last cell, far below the one that runs, so the panel stands in a corner of
the window too while the run goes on. The page does what a cell cannot: it is there after the notebook is loaded again.
"""

from __future__ import annotations

import json
from contextlib import suppress
from html import escape
from pathlib import Path

from nsa_lib.contract.files import write_text

PAGE = "progress.html"
"""In a run folder."""

REFRESH_S = 2

CORNER_S = 5
"""After so long without an update the corner is taken away: its run has ended, or its kernel is dead."""

# JupyterLab shows its own notices at the right of the bottom.
CORNER = """((said, seconds) => {
  let box = document.getElementById("nsa-run");
  if (!box) {
    box = document.body.appendChild(document.createElement("div"));
    box.id = "nsa-run";
    box.setAttribute("style", "position:fixed;right:350px;bottom:36px;z-index:1000;width:380px;padding:.6em 1em;" +
      "overflow:hidden;background:var(--jp-layout-color1);color:var(--jp-ui-font-color1);font-size:13px;" +
      "border:1px solid var(--jp-border-color1);box-shadow:0 2px 12px rgba(0,0,0,.3)");
    const close = box.appendChild(document.createElement("button"));
    close.textContent = "hide";
    close.style.float = "right";
    close.onclick = () => (box.style.display = "none");
    box.appendChild(document.createElement("div"));
  }
  box.lastChild.innerHTML = said;
  clearTimeout(box.gone);
  if (seconds) box.gone = setTimeout(() => box.remove(), 1000 * seconds);
})"""


def in_corner(html: str, *, seconds: float = CORNER_S) -> str:
    """Return a script that shows `html` in a corner of the page, for so many seconds; for good if that is 0."""
    # As \\u003c no sign in it can end the script.
    text = json.dumps(html).replace("<", "\\u003c")
    return f"<script>{CORNER}({text}, {seconds:g});</script>"


FOLLOW = """(async function follow(address, id) {
  const asked = await fetch(address, { credentials: "same-origin", cache: "no-store" });
  const page = new DOMParser().parseFromString(await asked.text(), "text/html");
  const places = document.querySelectorAll("." + id);
  if (asked.ok) places.forEach((place) => (place.innerHTML = page.body.innerHTML));
  if (page.querySelector("meta[http-equiv=refresh]")) setTimeout(() => follow(address, id), 1000 * SECONDS);
})"""


def following(address: str) -> tuple[str, str]:
    """Return the place where a run's page is shown, as HTML, and the script that keeps it up to date until the end.

    A frame would not do: JupyterLab lets no page of a frame load itself again.
    """
    script = f"{FOLLOW.replace('SECONDS', str(REFRESH_S))}({json.dumps(address)}, 'nsa-follows');"
    return '<div class="nsa-follows"></div>', f"<script>{script}</script>"


def write_page(folder: Path, html: str, *, ended: bool = False) -> None:
    """Write the page of a run; it loads itself again until the run has ended. A disk that is full changes nothing."""
    refresh = "" if ended else f'<meta http-equiv="refresh" content="{REFRESH_S}">'
    style = "body{font:13px system-ui,sans-serif;margin:.4em;color:#222;background:#fff}"
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{refresh}<title>{escape(folder.name)}</title>'
        f"<style>{style}</style></head><body>{html}</body></html>"
    )
    with suppress(OSError):
        write_text(folder / PAGE, page)
