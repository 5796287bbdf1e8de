"""A reply that uses tools: it calls, the calls are carried out, and it goes on with what they gave."""
from tools.acting.toolbox import ROUNDS
from tools.acting.spoken import Piece

USED = "used"                   # a Piece that tells of a call: its text is the result, .name and .arguments the call


def acted(session, toolbox, pieces, **options):
    """The pieces of a reply and, after each call, one of the kind USED, until it calls no more. After ROUNDS it has to
    answer without."""
    yield from pieces
    for number in range(ROUNDS):
        calls = session.messages[-1].get("calls", ()) if session.messages else ()
        if session.messages[-1]["role"] != "assistant" or not calls:
            return
        for name, arguments, message in toolbox.carried_out(calls, session.vocab, session.context):
            session.messages.append(message)
            piece = Piece.of(USED, message["content"])
            piece.name, piece.arguments = name, arguments
            yield piece
        yield from session.go_on(may_call=number + 1 < ROUNDS, **options)
