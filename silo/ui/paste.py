"""A picture pasted anywhere on the page becomes the photo, as if it had been dropped on it."""

# Programs for texts and tables add a picture of the text that they copy: it goes where text does. A
# field that holds a file takes no other: it is cleared first, as often as an upload that was
# under way fills it again. Of several pictures the last stays.
_SCRIPT = """
let last = null;
document.addEventListener('paste', async (event) => {
  const pasted = [...event.clipboardData.files].find((file) => file.type.startsWith('image/'));
  const isText = event.clipboardData.types.includes('text/plain');
  if (!pasted || (isText && event.target.matches?.(':read-write'))) return;
  event.preventDefault();
  last = pasted;
  const field = () => document.querySelector('#photo input[type=file]');
  while (!field()) {
    document.querySelector('#photo .icon-button-wrapper button')?.click();
    await new Promise(requestAnimationFrame);
    if (last !== pasted) return;
  }
  const files = new DataTransfer();
  files.items.add(pasted);
  field().files = files.files;
  field().dispatchEvent(new Event('change', { bubbles: true }));
});
"""
HEAD = f"<script>{_SCRIPT}</script>"
