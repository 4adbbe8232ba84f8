"""A picture pasted anywhere on the page becomes the photo, as if it had been dropped on it."""

# A field that holds a file takes no other: it is cleared first.
_SCRIPT = """
document.addEventListener('paste', async (event) => {
  const pasted = [...event.clipboardData.files].find((file) => file.type.startsWith('image/'));
  if (!pasted) return;
  event.preventDefault();
  const field = () => document.querySelector('#photo input[type=file]');
  if (!field()) document.querySelector('#photo .icon-button-wrapper button')?.click();
  while (!field()) await new Promise(requestAnimationFrame);
  const files = new DataTransfer();
  files.items.add(pasted);
  field().files = files.files;
  field().dispatchEvent(new Event('change', { bubbles: true }));
});
"""
HEAD = f"<script>{_SCRIPT}</script>"
