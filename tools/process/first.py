"""What every script does first: a Python that is too old and a package that is missing end in one line, no traceback.

Runs on Pythons that cannot even read the rest: nothing here is newer than 3.6, and nothing of ours is imported.
"""
import builtins
import os
import re
import sys

OLDEST = (3, 10)
BASE = ("torch", "numpy", "matplotlib", "tqdm", "jieba")
EXTRAS = {"requirements-serve.txt": ("fastapi", "uvicorn", "starlette", "h11"),
          "requirements-export.txt": ("safetensors", "gguf", "transformers", "tokenizers")}
# How long an OpenMP thread spins before it sleeps: GNU's counts turns (Linux), Intel's and LLVM's milliseconds
# (Windows, macOS).
WAITING = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}


def check_machine():
    """Ends the process with 2 on an old Python; from now on an import of a package that is not there does so, too.

    Threads that have nothing to do sleep soon: by default they spin for milliseconds, and beside another busy process
    on the same cores, whose turn it then never is, a training step takes up to 40 times as long. What the user has set
    stays. It must be said before torch is loaded. Progress bars, which a file or a pipe would keep line by line, come
    there every ten seconds only.
    """
    _open_missing_streams()
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "10")
    if not {"OMP_WAIT_POLICY", *WAITING} & set(os.environ):
        os.environ.update(WAITING)
    if sys.version_info[:2] < OLDEST:
        _end("需要 Python {}.{} 以上，现在是 {}.{}。请换一个新的 Python 运行（命令可能叫 python3.11 之类）。".format(
            *OLDEST, *sys.version_info[:2]))
    if not in_notebook():
        sys.excepthook = _explain


def _open_missing_streams():
    """A process that was started without one of its streams (>&-, pythonw) gets an empty one. Its number must not
    become a file's: what is printed would end in a checkpoint."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)          # the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))


def use_utf8():
    """Chinese output on any console: UTF-8 on Windows and where the encoding has no Chinese; an odd character is no
    exception."""
    _open_missing_streams()
    for stream in (sys.stdout, sys.stderr):
        try:
            unfit = os.name == "nt" or not _writes_chinese(stream.encoding)
            stream.reconfigure(errors="replace", **({"encoding": "utf-8"} if unfit else {}))
        except (AttributeError, ValueError, OSError):
            pass        # replaced by a test or a notebook


def _writes_chinese(encoding):
    try:
        return bool("小寻，“”".encode(encoding))
    except (UnicodeEncodeError, LookupError, TypeError):
        return False


def in_notebook():
    """IPython runs this code: its process is not ours to end."""
    return hasattr(builtins, "get_ipython")


def arguments():
    """The words after the script's name; none of a notebook's own."""
    kernel = re.search(r"(kernel_launcher|ipykernel[\\/]__main__)\.py$", sys.argv[0] if sys.argv else "")
    return [] if kernel else sys.argv[1:]


def missing_package(error):
    """One Chinese line for an ImportError that the right installation cures, or None."""
    package = (getattr(error, "name", None) or "").partition(".")[0]
    files = [file for file, names in [("requirements.txt", BASE)] + list(EXTRAS.items()) if package in names]
    if not files:
        return None
    install = "请运行：python -m pip install -r {}".format(files[0])
    if isinstance(error, ModuleNotFoundError):
        return "缺少 {}。{}".format(package, install)
    return "{} 装得不完整（{}）。{}".format(package, str(error).split("\n")[0][:120], install + " --force-reinstall")


def _explain(kind, error, trace):
    said = missing_package(error) if isinstance(error, ImportError) else None
    if said is None:
        sys.__excepthook__(kind, error, trace)
    else:
        _end(said)


def _end(message):
    use_utf8()
    sys.stderr.write("错误：" + message + "\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)
