"""Client of models behind an OpenAI-compatible server, and a judge of answers."""
