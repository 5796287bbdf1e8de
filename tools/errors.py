"""The one exception for what a user can cause and can mend, and what an OSError of any command becomes."""
import errno


class UserError(Exception):
    """A failure explained to the user in one or two Chinese lines.

    `code` becomes the exit status of the process:
    2 command, configuration, data or device; 3 no usable checkpoint; 4 checkpoint, vocabulary or stage do not fit;
    5 loss not finite; 6 output folder in use; 7 disk full; 8 too much bad data.
    """

    def __init__(self, message, code=2):
        super().__init__(message)
        self.code = code

    def _render_traceback_(self):
        """What a notebook shows: it asks an exception for this instead of a traceback."""
        return [f"错误：{self}"]


DISK_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_SAID = {errno.ENOENT: "找不到 {0}。请检查路径。", errno.EISDIR: "{0} 是文件夹，这里要一个文件。",
         errno.ENOTDIR: "{0} 不成路径：中间有一段不是文件夹。", errno.EEXIST: "{0} 已经有了，请换一个名字。",
         errno.ENAMETOOLONG: "名字太长：{0}。", errno.EMFILE: "打开的文件太多（{0}）。请减小 --num_workers，或调高 ulimit -n。"}


def explain(error, path=None):
    """The UserError that says an OSError in Chinese: 7 disk full, else 2. path: the file meant, where the error does
    not say."""
    name = path or error.filename2 or error.filename
    if error.errno in DISK_FULL:
        return UserError(f"磁盘已满（或超出配额），写不下 {name or '文件'}。已有的文件完好；请腾出空间后重新运行，会接着上次继续。", 7)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"没有权限读写 {name or '文件'}。请换一个可写的文件夹（如 --out_dir、--log_dir、--log_file、--output），或修改权限。")
    if name and error.errno in _SAID:
        return UserError(_SAID[error.errno].format(name))
    reason = error.strerror or str(error) or type(error).__name__
    return UserError(f"{name}：{reason}。请检查这个文件或文件夹。" if name else f"系统报错：{reason}。")
