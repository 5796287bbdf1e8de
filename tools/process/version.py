"""Which code made a run: a digest of the product's own files, and the commit where there is a repository."""
import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("model", "tools", "train_agent", "chat_agent")


def code_version(root=ROOT):
    """"3f2a91c04b7d (main@1a2b3c4)"; line ends and everything outside the product's folders play no part."""
    sha = hashlib.sha256()
    for folder in FOLDERS:
        for path in sorted((Path(root) / folder).rglob("*.py")):
            sha.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes().replace(b"\r\n", b"\n")
                       + b"\0")
    commit = _commit(Path(root) / ".git")
    return sha.hexdigest()[:12] + (f" ({commit})" if commit else "")


def _commit(git):
    """"branch@commit" read from the files themselves; "" where that is not simple."""
    try:
        head = (git / "HEAD").read_text(encoding="ascii").strip()
        if not head.startswith("ref: "):
            return head[:7]
        name = head[5:]
        return f"{name.rsplit('/', 1)[-1]}@{(git / name).read_text(encoding='ascii').strip()[:7]}"
    except (OSError, ValueError):
        return ""
