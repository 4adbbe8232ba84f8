"""Pictures in the folder that gradio serves files from."""

import hashlib
import html
import io
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from operators.files import write_whole

KEPT_HOURS = 4  # from when it was last written: then gradio deletes it


def keep(picture: Image.Image, folder: str | Path, name: str = "image") -> str:
    """Save a picture as PNG in a folder of its content's hash, all at once; return its path.

    The same picture has the same path for every visitor. gradio's own function writes there anew
    each time, and another visitor's restoration may be reading the file.
    """
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    content = buffer.getvalue()
    path = Path(folder).resolve() / hashlib.sha256(content).hexdigest() / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)  # even if it is there: its age decides when it is cleaned up
    return str(path)


def address(path: str) -> str:
    """Return where the page finds a file of that folder, as an attribute's value in HTML."""
    return html.escape(f"gradio_api/file={quote(path)}")  # relative: Spaces add a prefix
