"""The real pair: Qwen2.5-Coder 1.5B, a generalist, and a 0.5B tuned on arithmetic as its draft."""
