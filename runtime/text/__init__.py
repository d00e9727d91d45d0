"""Text in, text out: tokenizer, chat template, messages, stop texts."""
