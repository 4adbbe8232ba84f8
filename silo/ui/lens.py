"""Before and after side by side, under one lens: what is zoomed in the one is in the other."""

import html

from silo.ui.cache import address

HINT = "Point at a picture, or focus it and use the arrow keys, to enlarge both at that place."
CSS = """
.lens { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem; cursor: zoom-in; }
.lens:focus-visible { outline: 2px solid var(--color-accent); outline-offset: 2px; }
.lens figure { margin: 0; }
.lens figure div { overflow: hidden; border-radius: var(--radius-lg); touch-action: pan-y; }
.lens img { display: block; width: 100%; max-height: var(--view); object-fit: contain; }
.lens figcaption, .lens + p { font-size: var(--text-sm); color: var(--body-text-color-subdued); }
.lens.zoomed img { transform: scale(4); transform-origin: var(--x, 50%) var(--y, 50%); }
"""
# Runs once, when the component is mounted; `element` is its root, in which pictures come and go.
SCRIPT = """
const place = (lens, x, y) => {
  const inside = (value) => Math.min(100, Math.max(0, value));
  lens.dataset.x = inside(x);
  lens.dataset.y = inside(y);
  lens.style.setProperty('--x', `${lens.dataset.x}%`);
  lens.style.setProperty('--y', `${lens.dataset.y}%`);
  lens.classList.add('zoomed');
};
const leave = () => element.querySelector('.lens')?.classList.remove('zoomed');
element.addEventListener('pointermove', (event) => {
  const frame = event.target.closest('figure div');
  if (!frame) return;
  const box = frame.getBoundingClientRect();
  place(
    frame.closest('.lens'),
    (100 * (event.clientX - box.left)) / box.width,
    (100 * (event.clientY - box.top)) / box.height,
  );
});
element.addEventListener('pointerleave', leave);
element.addEventListener('focusout', leave);
element.addEventListener('keydown', (event) => {
  const lens = event.target.closest('.lens');
  const [dx, dy] = { ArrowLeft: [-5, 0], ArrowRight: [5, 0], ArrowUp: [0, -5], ArrowDown: [0, 5] }[
    event.key
  ] ?? [0, 0];
  if (event.key === 'Escape') leave();
  if (!lens || (!dx && !dy)) return;
  event.preventDefault();
  place(lens, Number(lens.dataset.x ?? 50) + dx, Number(lens.dataset.y ?? 50) + dy);
});
"""


def lens(before: str, after: str) -> str:
    """Return the HTML that shows two files of gradio's cache, of one size, side by side."""

    def figure(path: str, caption: str) -> str:
        picture = f'<img src="{address(path)}" alt="{caption}">'
        return f"<figure><div>{picture}</div><figcaption>{caption}</figcaption></figure>"

    pair = figure(before, "Before") + figure(after, "After")
    label = html.escape(HINT)
    group = f'<div class="lens" tabindex="0" role="group" aria-label="{label}">{pair}</div>'
    return f"{group}<p>{label}</p>"
