"""The wheel carries the notebooks inside the library, so that an installed one can run them; a checkout has its own."""

from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NotebooksHook(BuildHookInterface):
    """Put notebooks/ into the wheel; an editable installation reads those of the checkout."""

    def initialize(self, version, build_data):
        """Name the files to include. What papermill left there, `out*.ipynb`, stays out as it does of git."""
        if version == "standard":
            kept = (path for path in Path(self.root, "notebooks").glob("*.ipynb") if not path.name.startswith("out"))
            build_data["force_include"] |= {str(path): f"nsa_lib/notebooks/{path.name}" for path in kept}
