"""What the chat in a terminal is made of: what a person types, commands, kept conversations, how replies are shown."""
