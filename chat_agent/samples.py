"""A short conversation with a model, for the end of a run and for reports."""
from model.generate import generate
from tools import template


def sample_conversation(model, vocab, questions, max_new_tokens=96):
    """Ask one question after the other, greedily, with all that was said before in view -> list of (question,
    reply)."""
    messages, said = [], []
    for question in questions:
        messages.append({"role": "user", "content": question})
        reply = vocab.decode(generate(model, template.render_prompt(messages, vocab), max_new_tokens))
        messages.append({"role": "assistant", "content": reply})
        said.append((question, reply))
    return said
