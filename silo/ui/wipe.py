"""Before and after on top of each other, with a slider that wipes from the one to the other."""

from PIL import Image

from silo.ui.cache import address

LABEL = "How much of the Before picture is shown, in percent"
CSS = """
.wipe { --cut: 50%; position: relative; overflow: hidden; border-radius: var(--radius-lg); }
.wipe { width: min(100%, calc(var(--view) * var(--ratio))); aspect-ratio: var(--ratio); }
.wipe { margin: 0 auto; }
.wipe:has(input:focus-visible) { outline: 2px solid var(--color-accent); outline-offset: 2px; }
.wipe img { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; }
.wipe img + img { clip-path: inset(0 0 0 var(--cut)); }
.wipe::after { content: ''; position: absolute; inset: 0 auto 0 var(--cut); width: 2px; }
.wipe::after { margin-left: -1px; background: white; box-shadow: 0 0 3px black; }
.wipe::after { pointer-events: none; }
.wipe span { position: absolute; top: .5rem; padding: .1rem .5rem; border-radius: 1rem; }
.wipe span { background: rgb(0 0 0 / 75%); color: white; font-size: var(--text-sm); }
.wipe .before { left: .5rem; }
.wipe .after { right: .5rem; }
.wipe input { position: absolute; inset: 0; z-index: 1; width: 100%; height: 100%; margin: 0; }
.wipe input { appearance: none; opacity: 0; cursor: ew-resize; touch-action: pan-y; }
.wipe input::-webkit-slider-thumb { appearance: none; width: 1px; height: 100%; }
.wipe input::-moz-range-thumb { width: 1px; height: 100%; border: 0; }
"""
# Runs once, when the component is mounted; `element` is its root, in which pictures come and go.
SCRIPT = """
element.addEventListener('input', (event) => {
  event.target.closest('.wipe').style.setProperty('--cut', `${event.target.value}%`);
});
"""


def wipe(before: str, after: str) -> str:
    """Return the HTML that compares two files of gradio's cache, of one size."""
    with Image.open(after) as picture:
        ratio = picture.width / picture.height

    def layer(path: str, caption: str) -> str:
        return f'<img src="{address(path)}" alt="{caption}" draggable="false">'

    pictures = layer(before, "Before") + layer(after, "After")
    captions = '<span class="before">Before</span><span class="after">After</span>'
    slider = f'<input type="range" value="50" aria-label="{LABEL}">'
    return f'<div class="wipe" style="--ratio: {ratio:.6f}">{pictures}{captions}{slider}</div>'
