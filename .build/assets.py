"""Build hook: brings the scripts and styles of /docs and /redoc into the package, so that neither page needs the internet.

They come out of a distribution that carries them (a requirement of the build alone, see pyproject.toml), with their licences, and
land in a folder that git ignores: in the checkout itself, because an editable installation and PyInstaller read them there.
"""

from __future__ import annotations

import re
import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "drf-spectacular-sidecar"
FROM = "drf_spectacular_sidecar/static/drf_spectacular_sidecar"
TO = "miniflow/web/static/vendor"
FILES = {
    "swagger-ui-dist/swagger-ui-bundle.js": "swagger-ui/swagger-ui-bundle.js",
    "swagger-ui-dist/swagger-ui.css": "swagger-ui/swagger-ui.css",
    "swagger-ui-dist/LICENSE": "swagger-ui/LICENSE",
    "redoc/bundles/redoc.standalone.js": "redoc/redoc.standalone.js",
    "redoc/bundles/redoc.standalone.js.LICENSE.txt": "redoc/redoc.standalone.js.LICENSE.txt",
    "redoc/LICENSE": "redoc/LICENSE",
}
FOREIGN_IMAGE = re.compile(rb'"https://[^"]*/logo-mini\.svg"')  # ReDoc's badge asks its maker's server for it


class Assets(BuildHookInterface[Any]):
    def initialize(self, _version: str, build_data: dict[str, Any]) -> None:
        try:
            carrier = distribution(SOURCE)
        except PackageNotFoundError:
            raise RuntimeError(f"the build needs {SOURCE}; without build isolation, install it first") from None
        folder = Path(self.root, TO)
        shutil.rmtree(folder, ignore_errors=True)
        for source, target in FILES.items():
            data = Path(str(carrier.locate_file(f"{FROM}/{source}"))).read_bytes()
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            (folder / target).write_bytes(FOREIGN_IMAGE.sub(b'"data:,"', data))
        build_data["artifacts"].append(f"/{TO}/")
