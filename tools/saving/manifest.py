"""The list of finished checkpoints of one stage in one folder: manifest_<stage>.json.

    {"format": 1, "entries": [{"stem", "number", "kind": ""|"best"|"final", "step", "config", "time",
                               "starts": {"folder/name": weights hash},
                  "files": {name: {"sha256", "size"}}}, ...],     oldest first, `number` only ever grows
     "pending": null | {"entry", "temporary": {name: temporary name}},   a name that is just being used again
     "drop": [names that may be deleted], "backup": null | folder that everything is just being moved to,
     "moved_for": {"folder/name": weights hash}: in a backup, what the run that moved it there started from,
     "ended": false between the final checkpoint of a run and its end, "sha256"}
"""
import hashlib
import json

from tools.checkpoint import best_name, final_name, name_pattern, read_checkpoint
from tools.saving.archive import CheckpointError, read_json, read_torch, verify_torch, write_json


def fingerprint(run):
    """SHA-256 (hex) of a resolved configuration."""
    return hashlib.sha256(json.dumps(run, sort_keys=True, default=str).encode()).hexdigest()


def new_entry(number, stem, payload, files, kind="", time=""):
    return {"stem": stem, "number": number, "kind": kind, "step": payload["step"],
            "config": fingerprint(payload["run"]),
            "time": time, "starts": payload.get("starts", {}), "files": files}


class Manifest:
    def __init__(self, folder, label, warn):
        self.folder, self.label, self.warn = folder, label, warn
        self.path = folder / f"manifest_{label}.json"
        self.pattern = name_pattern(label)

    def files(self):
        """{name: path} of the stage's .pkl and .state files in the folder, listed or not."""
        return {p.name: p for p in sorted(self.folder.glob("TinySeek_*")) if self.pattern.fullmatch(p.name)}

    def read(self):
        """The dict above, without its digest. Raises CheckpointError when the file is missing, damaged or of a newer
        format."""
        body = read_json(self.path)
        names = [n for e in body["entries"] for n in e["files"]] + body["drop"]
        if body["format"] != 1 or not all(self.pattern.fullmatch(n) for n in names):
            raise CheckpointError(f"{self.path} 不是这个版本的检查点清单。")
        return body

    def write(self, body):
        write_json(self.path, body)

    def load(self):
        """The dict above. Without a readable file it is built anew from the pairs in the folder that prove
        themselves."""
        try:
            if self.path.exists():
                return self.read()
        except CheckpointError as error:
            self.warn(f"{error}；按检查点自带的校验码重建清单。")
        return {"format": 1, "entries": self._proven(), "pending": None, "drop": [], "backup": None}

    def mend(self):
        """Write down what load() had to build anew, so that later saves add to it instead of starting an empty list."""
        try:
            self.read()
        except CheckpointError:
            body = self.load()
            if body["entries"] or self.path.exists():
                self.write(body)

    def _proven(self):
        """Entries of all undamaged pairs: the .state names the digest of its .pkl. Lone .pkl files may be anybody's."""
        files, entries = self.files(), []
        for name in [n for n in files if n.endswith(".state")]:
            stem = name.removesuffix(".state")
            kind = {best_name(self.label): "best", final_name(self.label): "final"}.get(stem + ".pkl", "")
            try:
                belongs = read_torch(files[name], ("pkl_sha256",))["pkl_sha256"]
                payload = read_checkpoint(self.folder / (stem + ".pkl"), belongs)
            except CheckpointError as error:
                self.warn(str(error))
                continue
            sums = {stem + ".pkl": belongs, name: verify_torch(files[name])}
            listed = {n: {"sha256": s, "size": files[n].stat().st_size} for n, s in sums.items()}
            entries.append(new_entry(0, stem, payload, listed, kind))
        entries.sort(key=lambda e: (e["step"], e["kind"] == "final"))
        return [{**e, "number": i + 1} for i, e in enumerate(entries)]
