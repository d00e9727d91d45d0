"""The loop and what surrounds it: sessions, generation, chat, caches, statistics."""
