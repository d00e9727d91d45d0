"""How tokens are chosen from logits: parameters, their effect on a row, and the draw."""
