"""The finished models of an output folder and of the named runs in it, as they appear."""

import sys
from pathlib import Path

from chat_agent.load import USUAL
from tools.errors import UserError

MOST, BYTES = 8, 1 << 30        # models that are held, and what their files may weigh together


class Finals:
    """A `find` for Models: called often, it loads only what is new. load(paths) -> list of Served."""

    def __init__(self, folder, load):
        self.folder, self.load = Path(folder), load
        self.kept, self.failed = {}, {}                  # {path: stamp}: what is served, what could not be read and why

    def __call__(self):
        """-> all that is there now, or None where nothing has changed."""
        there = self.there()
        if there == self.kept:
            return None
        while True:
            paths = [path for path, stamp in there.items() if self.failed.get(path, (None,))[0] != stamp]
            try:
                served = self.load(paths) if paths else []
                self.kept = there
                return served
            except UserError as error:                   # the others are served; it is read again when it changes
                bad = next((path for path in paths if path in str(error)), paths[-1])
                print(error, file=sys.stderr)
                self.failed[bad] = there[bad], error

    def there(self):
        """{path: stamp}, the usual model first, then the newest."""
        found = {}
        for path in [*self.folder.glob("TinySeek_*_final.pkl"), *self.folder.glob("*/TinySeek_*_final.pkl")]:
            if not path.parent.name.startswith("backup_"):
                try:
                    found[str(path)] = path.stat()
                except OSError:                          # it has just gone
                    continue
        first = str(self.folder / USUAL)
        order = sorted(found, key=lambda path: (path != first, -found[path].st_mtime))[:MOST]
        weighs, kept = 0, {}
        for path in order:
            weighs += found[path].st_size
            if not kept or weighs <= BYTES:
                kept[path] = found[path].st_mtime_ns, found[path].st_size
        return kept
