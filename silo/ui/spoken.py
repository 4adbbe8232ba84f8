"""What a screen reader says of the status line: how it begins and ends, not every step."""

ID = "spoken"
HTML = f'<div id="{ID}" role="status" aria-live="polite"></div>'
CSS = f"""
#{ID} {{ position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }}
"""
# Runs once, when the status line is mounted; `element` is its root, whose content is replaced.
SCRIPT = f"""
new MutationObserver(() => {{
  const spoken = document.getElementById('{ID}');
  const said = element.innerText.trim();
  if (!element.querySelector('progress') && said !== spoken.textContent) spoken.textContent = said;
}}).observe(element, {{ childList: true, subtree: true, characterData: true }});
"""
