"""What chat_agent/answer.py is made of: who is asked (a model of ours, a server), and the journal of what was said."""
