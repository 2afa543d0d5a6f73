"""Pictures and videos of a report, embedded as data: URIs up to a total size."""

import base64
import dataclasses
import struct
from collections.abc import Sequence
from pathlib import Path

from launch.report.arms import Arm
from launch.report.data import Material
from launch.report.markup import Html, short, tag

TOTAL_BYTES = 32 * 2**20  # of files on one page; base64 makes them a third larger
FILE_BYTES = 12 * 2**20
SMALL = 256  # pixels: pictures no wider are enlarged by a whole factor, with hard pixel edges


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture, video or text of the page. `kind`: 'figure' is a plot, 'frame' and 'text' come from a run.

    `body` is the element, or a note that says why it is missing.
    """

    name: str
    caption: str
    body: Html
    kind: str


def pictures(material: Material, arms: Sequence[Arm]) -> list[Picture]:
    """The figures, then the last picture, video or text of each name, from the first run of each arm that has one."""
    wanted: list[tuple[str, str, Path | str | None, str]] = [(path.stem, "", path, "figure") for path in material.figures]
    for name in dict.fromkeys(name for run in material.runs for name in run.media):
        for arm in arms:
            run = next((run for run in arm.runs if name in run.media), None)
            if run is None:
                continue
            last = run.media[name]
            path = (run.path / last.file).resolve()
            who = run.label if len(arm.runs) > 1 else arm.name
            caption = f"step {short(last.step, 6)}" + (f" · {who}" if len(material.runs) > 1 else "")
            if last.text:
                wanted.append((name, caption, last.text, "text"))
                continue
            # A path in a metrics row is data: one that leads out of the workdir must not pull a stranger's file into the page.
            wanted.append((name, caption, path if path.is_relative_to(run.path.resolve()) else None, "frame"))
    shown, used = [], 0
    for name, caption, path, kind in wanted:
        data, body = (0, tag("pre", path)) if isinstance(path, str) else embed(path, TOTAL_BYTES - used)
        used += data
        shown.append(Picture(name, caption, body, kind))
    return shown


def embed(path: Path | None, room: int) -> tuple[int, Html]:
    """(bytes, element) of a file, for a page that has room for so many bytes.

    The element is a note for a file that is missing, damaged or too large, and for None: a path out of the workdir.
    """
    if path is None:
        return 0, note("left out: its path leads out of the workdir")
    try:
        size = path.stat().st_size
        if size > min(FILE_BYTES, room):
            return 0, note(f"left out: {path.name} has {size / 2**20:.1f} MB, more than this page may still take")
        data = path.read_bytes()
    except OSError:
        return 0, note(f"{path.name} is missing")
    kind, width = recognise(data)
    if kind is None:
        return 0, note(f"{path.name} is damaged, or no PNG, GIF, JPEG, MP4 or WebM")
    source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    if kind.startswith("video/"):
        return size, tag("video", src=source, controls=True, loop=True, muted=True, playsinline=True)
    factor = SMALL // width if width and width <= SMALL else 1
    small = {"width": width * factor, "cls": "pixels"} if width and width <= SMALL else {"width": width}
    return size, tag("img", src=source, alt=path.stem, **small)


def recognise(data: bytes) -> tuple[str | None, int | None]:
    """(MIME type, width in pixels or None) by a file's first bytes; (None, None) for a type that pages do not show."""
    if data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) >= 24:
        return "image/png", struct.unpack(">I", data[16:20])[0]
    if data[:6] in (b"GIF87a", b"GIF89a") and len(data) >= 10:
        return "image/gif", struct.unpack("<H", data[6:8])[0]
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg", None
    if data[4:8] == b"ftyp":
        return "video/mp4", None
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return "video/webm", None
    return None, None


def note(text: str) -> Html:
    """A note in place of a picture."""
    return tag("p", text, cls="missing")
