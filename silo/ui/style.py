"""How the page looks: theme, fonts that need no download, style sheet."""

from gradio import themes

from silo.ui import brush, spoken

MONOSPACE = ("ui-monospace", "Consolas", "monospace")
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")  # none is downloaded
# WCAG AA: text has a contrast of 4.5 at least with what is behind it, a control of 3.
_COLOURS = {
    "color_accent": "*primary_700",  # in the dark the style sheet's, and these
    "checkbox_background_color_selected_dark": "*primary_500",
    "slider_color_dark": "*primary_500",
    "loader_color_dark": "*primary_500",
    "button_primary_background_fill": "*primary_700",
    "button_primary_background_fill_hover": "*primary_800",
    "button_primary_background_fill_dark": "*primary_700",
    "button_primary_background_fill_hover_dark": "*primary_800",
    "body_text_color_subdued": "*neutral_500",
    "input_placeholder_color": "*neutral_500",
    "input_placeholder_color_dark": "*neutral_300",
    "checkbox_border_color": "*neutral_500",
    "checkbox_border_color_dark": "*neutral_400",
}
_LAYOUT = """
.gradio-container {
  --view: clamp(320px, calc(100vh - 345px), 900px);
  width: 100% !important;
  max-width: clamp(1180px, 84vw, 1680px) !important;
  margin: 0 auto !important;
}
.dark .gradio-container { --color-accent: var(--primary-400); }
.gradio-container :is(button, a, input, textarea, [tabindex]):focus-visible {
  outline: 2px solid var(--color-accent) !important;
  outline-offset: 1px;
}
#photo button:focus-visible, #saved button:focus-visible { outline-offset: -4px; }
#inputs { max-width: 480px; }
@media (width < 768px) {
  #inputs { max-width: none; }
  #picture:has(.empty) { height: 9rem !important; }
}
:is(#task, #prior, #operator, #offered) input { padding-right: 1.5rem; text-overflow: ellipsis; }
#examples { display: grid; grid-template-columns: repeat(4, 1fr); gap: .5rem; }
#examples button { border: 1px solid var(--border-color-primary); background: none; }
#examples button:hover { border-color: var(--color-accent); }
#examples button { flex-direction: column; gap: .25rem; min-width: 0; padding: .25rem; }
#examples img { width: 100%; height: auto; aspect-ratio: 1; margin: 0; }
#examples img { border-radius: var(--radius-md); }

#go { flex-wrap: nowrap; }
#go button { min-width: 0; }
#status { min-height: 3.5rem; }
#status .html-container, #views .html-container { padding: 0; }
#status p { margin: 0 0 .4rem; }
#status .error { display: none; } /* a toast says which, and this would cover the status */
#status progress { appearance: none; width: 100%; height: .5rem; border: 0; border-radius: 1rem; }
#status progress { overflow: hidden; background: var(--border-color-primary); }
#status progress::-webkit-progress-bar { background: var(--border-color-primary); }
#status progress::-webkit-progress-value { background: var(--color-accent); }
#status progress::-moz-progress-bar { background: var(--color-accent); }
/* The brush's colour, white or black, is that of its button, too: an outline shows it on either. */
#canvas button[aria-label="Color"] path { stroke: var(--neutral-500); stroke-width: 1.5px; }
footer .divider { display: none !important; } /* between links of which one is left */
#picture img, #uncertainty img { width: 100%; height: 100%; object-fit: contain; }
"""
CSS = _LAYOUT + spoken.CSS + brush.CSS


def theme() -> themes.Base:
    """Return the page's colours and fonts, for light and dark mode."""
    plain = themes.Default(primary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=MONOSPACE)
    return plain.set(**_COLOURS)
