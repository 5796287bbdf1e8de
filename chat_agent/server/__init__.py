"""The parts of chat_agent/serve.py: an engine that writes many replies at once, and the HTTP front before it."""
