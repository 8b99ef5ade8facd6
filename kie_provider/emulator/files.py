"""Uploaded files, and short-lived links to files."""

from __future__ import annotations

import base64
import binascii
import mimetypes
import secrets
from dataclasses import dataclass
from urllib.parse import quote

from kie_provider.emulator.models import Refusal
from kie_provider.emulator.settings import DIRECT_LINK_SECONDS, UPLOAD_SECONDS
from kie_provider.emulator.tasks import iso

ACCOUNT_NUMBER = "100001"
"""Kie puts the number of the account into every upload's path."""
_TYPES = mimetypes.MimeTypes()  # reads the system's table now rather than in the event loop
_MAGIC = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"RIFF", "image/webp"))


@dataclass(frozen=True)
class Upload:
    """An uploaded file.

    :param path: of its URL.
    :param at: time of the upload, epoch seconds.
    """

    path: str
    content: bytes
    media_type: str
    at: float

    def as_data(self, base_url: str) -> dict[str, object]:
        """Return ``data`` of the response to an upload, as recorded from the real service."""
        return {
            "success": True,
            "fileName": self.path.rpartition("/")[2],
            "filePath": self.path.lstrip("/"),
            "downloadUrl": base_url + quote(self.path),
            "fileSize": len(self.content),
            "mimeType": self.media_type,
            "uploadedAt": iso(self.at),
        }


class Files:
    """The uploads of an account, by path, and the links that ``download-url`` returned."""

    def __init__(self) -> None:
        self._uploads: dict[str, Upload] = {}
        self._links: dict[str, tuple[str, float]] = {}

    def add(self, content: bytes, folder: object, name: object, media_type: str | None, now: float) -> Upload:
        """Store a file; one of the same name is replaced.

        :param folder: ``uploadPath``: required, without a slash at either end.
        :param name: ``fileName``; random when empty.
        :param media_type: as declared by the sender; if empty, guessed from name and content.
        :raises Refusal: 400: the folder is missing or invalid.
        """
        if not folder:
            raise Refusal(400, "uploadPath is required")
        if not isinstance(folder, str) or folder.strip("/") != folder or ".." in folder.split("/"):
            raise Refusal(400, "uploadPath must have no slash at its ends and no '..'")
        kind = media_type or _TYPES.guess_type(str(name or ""))[0] or _sniff(content)
        file_name = str(name) if name else secrets.token_hex(8) + (_TYPES.guess_extension(kind) or "")
        upload = Upload(f"/kieai/{ACCOUNT_NUMBER}/{folder}/{file_name}", content, kind, now)
        self._uploads[upload.path] = upload
        return upload

    def upload(self, path: str, now: float) -> Upload | None:
        """Return an upload; None: there is none, or it has expired."""
        found = self._uploads.get(path)
        return found if found and now < found.at + UPLOAD_SECONDS else None

    def link(self, path: str, now: float) -> str:
        """Return the path of a new direct link to ``path``."""
        link = f"/direct/{secrets.token_hex(8)}/{path.rpartition('/')[2]}"
        self._links[link] = (path, now + DIRECT_LINK_SECONDS)
        return link

    def behind(self, link: str, now: float) -> str | None:
        """Return the path that a direct link leads to; None: it is none, or has expired."""
        path, until = self._links.get(link, (None, 0.0))
        return path if now < until else None


def decode(data: object) -> tuple[bytes, str | None]:
    """Decode ``base64Data``, plain base64 or a data URL; return the bytes and the data URL's media type, if any.

    :raises Refusal: 400: it is missing or not base64.
    """
    if not data or not isinstance(data, str):
        raise Refusal(400, "base64Data is required")
    head, comma, tail = data.partition(",")
    is_url = bool(comma) and head.startswith("data:")
    try:
        content = base64.b64decode(tail if is_url else data, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(400, "base64Data is not valid base64") from None
    return content, (head[5:].partition(";")[0] or None) if is_url else None


def _sniff(content: bytes) -> str:
    return next((kind for magic, kind in _MAGIC if content.startswith(magic)), "application/octet-stream")
