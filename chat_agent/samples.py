"""A short conversation with a model, for the end of a run and for reports."""
from model.generate import generate
from tools import template


def sample_conversation(model, vocab, questions, max_new_tokens=96):
    """Ask one question after the other, greedily, with all that was said before in view -> list of (question,
    reply)."""
    messages, said, prepared = [], [], {}
    for question in questions:
        messages.append({"role": "user", "content": question})
        prompt = template.render_prompt(messages, vocab)
        reply = vocab.decode(generate(model, prompt, max_new_tokens, prepared=prepared,
                                      **template.structure_of(vocab)))
        messages.append({"role": "assistant", "content": reply})
        said.append((question, reply))
    return said
