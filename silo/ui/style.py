"""How the page looks: theme, fonts that need no download, style sheet."""

from gradio import themes

MONOSPACE = ("ui-monospace", "Consolas", "monospace")
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")  # none is downloaded
CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
#picture img { width: 100%; height: 100%; object-fit: contain; }
#status { min-height: 3.5rem; }
#status p { margin: 0 0 .4rem; }
#status progress { appearance: none; width: 100%; height: .5rem; border: 0; border-radius: 1rem; }
#status progress { overflow: hidden; background: var(--border-color-primary); }
#status progress::-webkit-progress-bar { background: var(--border-color-primary); }
#status progress::-webkit-progress-value { background: var(--color-accent); }
#status progress::-moz-progress-bar { background: var(--color-accent); }
#uncertainty img { width: 100%; height: 100%; object-fit: contain; }
"""


def theme() -> themes.Base:
    """Return the page's colours and fonts, for light and dark mode."""
    return themes.Default(primary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=MONOSPACE)
