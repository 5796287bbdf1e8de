"""What begins with / in a chat: commands that change the conversation or how replies are made."""

from difflib import get_close_matches

from chat_agent.terminal import kept
from chat_agent.terminal.shown import thin
from tools.errors import UserError
from tools.template import THINKING

NUMBERS = {"temperature": float, "top_k": int, "top_p": float, "min_p": float, "repetition_penalty": float,
           "frequency_penalty": float, "presence_penalty": float, "no_repeat_ngram": int, "max_new_tokens": int,
           "seed": int}
OFF = ("none", "null", "无")
SWITCHES = {"thinking": THINKING, "show_thinking": ("on", "off")}


class Commands:
    """chats: {name: Session}. how: the options of Session.ask, changed by /set. check(how): UserError for bad ones.
    open_model(path): -> (name, Session). ask(how, again): let every model answer, `again`: the last question once more.
    """

    def __init__(self, chats, how, check, open_model, ask):
        self.chats, self.how, self.check, self.open_model, self.ask = chats, how, check, open_model, ask
        self.stats = self.thoughts = False              # what is shown beside a reply
        self.table = {
            "/clear": (self.clear, "", "忘掉这次对话，重新开始"),
            "/retry": (self.retry, "", "上一句重新回答一次"),
            "/save": (self.save, "文件", "把对话接在文件后面，一行一段（也可用作训练数据），不会覆盖"),
            "/load": (self.load, "文件", "接着文件里最后一段对话继续"),
            "/system": (self.system, "文字", "换系统提示；none = 不要；不写就显示现在的"),
            "/set": (self.set, "名字 数", "改取样，如 /set temperature 0.7、/set thinking on；不写就显示现在的"),
            "/model": (self.model, "文件", "换一个模型；不写就显示现在的"),
            "/stats": (self.switch_stats, "", "每次回答后显示长度、速度、上下文用量，再写一次关掉"),
            "/help": (self.help, "", "显示这些命令"),
            "/quit": (None, "", "结束（也可写 退出、exit，或按 Ctrl-D）"),
        }

    def run(self, line):
        name, _, rest = line.partition(" ")
        command = name.lower()
        if command not in self.table:
            raise UserError(f"没有 {name} 这个命令{_nearest(command, self.table)}。/help 看全部命令。")
        self.table[command][0](rest.strip())

    def described(self):
        lines = [f"  {name} {what}".ljust(16 - sum(c > "\xff" for c in what)) + text
                 for name, (_, what, text) in self.table.items()]
        return "\n".join(["命令：", *lines, '一次要写几行时，用 """ 开头、""" 结尾；直接粘贴几行也算一句。', "回答中按 Ctrl-C 可以打断。"])

    def help(self, _):
        print(self.described())

    def clear(self, _):
        for session in self.chats.values():
            session.clear()
        print("好，重新开始。")

    def retry(self, _):
        if not any(message["role"] == "user" for session in self.chats.values() for message in session.messages):
            raise UserError("还没有可以重答的问题。")
        again = self.how if self.how["temperature"] else {**self.how, "temperature": 0.8, "top_p": 0.9}
        if not self.how["temperature"]:
            thin(["temperature 为 0 时每次都一样，这次用 0.8"])
        self.ask({**again, "seed": None}, True)

    def save(self, path):
        count = kept.save(path, [session.messages for session in self.chats.values()])
        print(f"已存到 {path}" + (f"，里面现在有 {count} 段对话。" if count > 1 else "。"))

    def load(self, path):
        """The last conversations of the file, one for each model; models beyond get the last one."""
        found = kept.restore(path)
        mine = found[-len(self.chats):]
        for i, session in enumerate(self.chats.values()):
            session.messages = [dict(m) for m in mine[min(i, len(mine) - 1)]]
        turns = sum(m["role"] == "user" for m in mine[0])
        print(f"接着 {path} 里{'最后一段' if len(found) > 1 else ''}的 {turns} 轮对话继续。")

    def system(self, text):
        for session in self.chats.values():
            if text:
                session.system = None if text in OFF else text
                rest = [m for m in session.messages if m["role"] not in ("system", "tools")]
                session.messages = session.head() + rest
            now = session.system
        print(f"系统提示：{now}" if now else "没有系统提示。")

    def set(self, words):
        name, _, value = words.replace("=", " ").partition(" ")
        if name in SWITCHES:
            self._switch(name, value.strip())
        elif words:
            if name not in NUMBERS:
                names = (*NUMBERS, *SWITCHES)
                raise UserError(f"不能设 {name}{_nearest(name, names)}。可以设：{'、'.join(names)}。")
            try:
                new = None if name == "seed" and value.strip() in OFF else NUMBERS[name](value)
            except (ValueError, OverflowError):
                raise UserError(f"{name} 应是数，例如 /set temperature 0.7") from None
            self.how.update(self.check({**self.how, name: new}))
        shown = {name: self.how[name] if self.how[name] is not None else "无" for name in NUMBERS}
        if self._thinks():
            shown |= {"thinking": self.how["thinking"], "show_thinking": "on" if self.thoughts else "off"}
        print("　".join(f"{name} {value}" for name, value in shown.items()))

    def _thinks(self):
        return any("thinking" in session.acts for session in self.chats.values())

    def _switch(self, name, value):
        """thinking: whether the model thinks first; show_thinking: whether its thoughts are shown."""
        if value not in SWITCHES[name]:
            raise UserError(f"{name} 应是 {'、'.join(SWITCHES[name])} 之一，例如 /set {name} on")
        if name == "show_thinking":
            self.thoughts = value == "on"
            return
        self.how["thinking"] = value
        if value != "auto" and not self._thinks():
            thin(["这个模型没有学过思考，这样设不起作用"])

    def model(self, path):
        if path:
            if len(self.chats) > 1:
                raise UserError("几个模型并排时不能换，请重新运行 chat.py，用 --model 指定。")
            (name, session), (old,) = self.open_model(path), self.chats.values()
            session.messages, session.system = old.messages, old.system
            self.chats.clear()
            self.chats[name] = session
        for name, session in self.chats.items():
            print(f"{name}：一次看 {session.context} 个词元" + ("，只会接着写" if session.completes else ""))

    def switch_stats(self, _):
        self.stats = not self.stats
        print("每次回答后显示统计。" if self.stats else "不再显示统计。")


def _nearest(word, words):
    close = get_close_matches(word, words, 1)
    return f"，是不是想写 {close[0]}" if close else ""
