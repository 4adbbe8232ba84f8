"""ICC profiles (version 2, ICC.1:2001-04) that are as small as a colour management module takes."""

import struct

# What sRGB's primaries are in the profile connection space, adapted to D50.
RED, GREEN, BLUE = (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)
WHITE = (0.9642, 1.0, 0.8249)


def rgb_profile(*primaries: tuple[float, float, float], gamma: float = 2.2) -> bytes:
    """A display whose red, green and blue are these colours (X, Y, Z)."""
    colours = zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(gamma))
    return _profile(b"RGB ", {**{tag: _xyz(*colour) for tag, colour in colours}, **curves})


def grey_profile(gamma: float) -> bytes:
    """A display without colours."""
    return _profile(b"GRAY", {b"kTRC": _curve(gamma)})


def _profile(space: bytes, own_tags: dict[bytes, bytes]) -> bytes:
    name = b"test\0"
    description = struct.pack(">4sII", b"desc", 0, len(name)) + name + bytes(78)
    tags = {b"desc": description, b"cprt": b"text\0\0\0\0-\0", b"wtpt": _xyz(*WHITE), **own_tags}
    table, data, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        table += struct.pack(">4sII", tag, start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    header = struct.pack(
        ">II4s4s4s4s", start + len(data), 0, b"\2\x40\0\0", b"mntr", space, b"XYZ "
    )
    header += bytes(12) + b"acsp" + bytes(28)
    illuminant = b"".join(struct.pack(">i", round(65536 * x)) for x in WHITE)
    return (header + illuminant).ljust(128, b"\0") + table + data


def _xyz(*colour: float) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(65536 * x)) for x in colour)


def _curve(gamma: float) -> bytes:
    return struct.pack(">4sIIH", b"curv", 0, 1, round(256 * gamma))
