"""Models behind an OpenAI-compatible server: the client, and a judge of answers."""
