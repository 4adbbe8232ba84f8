"""Pictures in the folder that gradio serves files from."""

import hashlib
import io
import os
import secrets
from pathlib import Path

from PIL import Image

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
    aside = path.with_name(f"{secrets.token_hex(8)}.partial")
    aside.write_bytes(content)
    os.replace(aside, path)  # even if it is there: its age decides when it is cleaned up
    return str(path)
