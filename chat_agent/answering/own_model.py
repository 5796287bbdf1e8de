"""Replies of a model of ours, many side by side."""
from chat_agent.answering.rows import row_of
from chat_agent.chat import sampling_of
from chat_agent.load import context_of, load, talk_of
from model.generate import generate_replies
from tools.acting.forms import Form, offered_of
from tools.acting.schema import SchemaError
from tools.acting.spoken import Spoken
from tools.errors import UserError
from tools.reading.acting import written
from tools.template import render_prompt, structure_of

CUT = {"length": "没有说完：用完了 max_new_tokens 或模型的长度", "loop": "反复说同样的话，被停下"}


class OwnModel:
    """options: the command's Namespace; stretch: of rotary positions, see `load`.

    `block` prompts are answered together; which ones stand together changes the last bits of their logits, so a run
    that was stopped goes on at a block's edge.
    """

    def __init__(self, path, device, options, stretch):
        self.model, self.vocab, payload = load(path, device, stretch, hashed=True)
        if payload["stage"] == "Pre":
            raise UserError(f"{path} 只会接着写，还没学过对话，不能回答。请用微调过的模型，或先运行 sft_train.py。", 4)
        talk = talk_of(payload)
        self.context, self.options = context_of(self.model, payload, options.context), options
        self.how = sampling_of(options, talk["sampling"])
        self.longest, self.stops = self.how.pop("max_new_tokens"), self.how.pop("stops")
        self.thinking = self.how.pop("thinking") if "thinking" in talk["acts"] else "auto"
        self.how = {name: value for name, value in self.how.items() if name not in ("thinking", "speculate", "seed")}
        self.acts, self.prepared = {*talk["acts"]}, {}
        if options.samples > 1 and self.how["temperature"] == 0:
            raise UserError("--samples 大于 1 时请写 --temperature（如 0.8）：温度为 0，每次的回答都一样。")
        self.block = max(1, options.batch_size // options.samples)
        base = payload["base"]["hash"] if payload.get("base") else None
        self.about = {"model": [payload["hash"], base], "stretch": stretch, "block": self.block,
                      "sampling": {**self.how, "max_new_tokens": self.longest, "context": self.context,
                                   "stop": list(self.stops), "thinking": self.thinking, "seed": options.seed}}

    def answers(self, prompts, number):
        """prompts: lists of messages, the block `number` of them -> list of (rows, reasons)."""
        ids = [render_prompt(messages, self.vocab, self.thinking) for messages in prompts]
        jobs = [i for i, one in enumerate(ids) if len(one) < self.context for _ in range(self.options.samples)]
        replies = self._replies([prompts[i] for i in jobs], [ids[i] for i in jobs], f"{self.options.seed}/{number}")
        found = [([], []) if len(one) < self.context else
                 ([], [f"提问太长：有 {len(one)} 个词元，模型一共只看 {self.context} 个"]) for one in ids]
        for i, reply in zip(jobs, replies):
            row, wrong = (None, reply) if isinstance(reply, str) else self._row(prompts[i], reply)
            found[i][0 if row else 1].append(row or wrong)
        return found

    def _replies(self, talks, ids, seed):
        """A Reply to each, or why there is none. Prompts with the same tools, and as much room, are written side by
        side, their calls held to the tools' schemas; where none is offered, none is called."""
        groups, replies = {}, [None] * len(ids)
        for i, talk in enumerate(talks):
            room = min(self.longest, self.context - len(ids[i]))
            tools = offered_of(talk) if "calls" in self.acts else ""
            groups.setdefault((tools, room if tools else None), []).append((i, room))
        for number, ((tools, room), jobs) in enumerate(sorted(groups.items(), key=lambda one: one[0][0])):
            learned = self.acts if tools else self.acts - {"calls"}
            try:
                rule = Form(tools).rule(self.vocab, self.model.config.vocab_size, room, learned,
                                        self.thinking) if tools else None
            except SchemaError as error:
                replies = [str(error) if i in dict(jobs) else reply for i, reply in enumerate(replies)]
                continue
            made = generate_replies(self.model, [ids[i] for i, _ in jobs], [room for _, room in jobs],
                                    self.options.batch_size, seed=seed + f"/{number}" * (number > 0), rule=rule,
                                    prepared=self.prepared, **structure_of(self.vocab, learned), **self.how)
            for (i, _), reply in zip(jobs, made):
                replies[i] = reply
        return replies

    def _row(self, messages, reply):
        spoken = Spoken(self.vocab, self.stops, self.thinking)
        for one in reply.ids:
            spoken.feed([one])
            if spoken.stopped:
                break
        spoken.end()
        if spoken.broken():
            return None, "工具调用不是合法的 JSON"
        if reply.finish in CUT and not spoken.stopped and not self.options.keep_cut:
            return None, CUT[reply.finish]
        return row_of(messages, written([spoken.message()])["messages"][0])
