"""The training recipes of the two tiny models.

The mixtures make the pair uneven on purpose: the target is a generalist that sees little
multiplication, and the draft a specialist in multiplication and lists. So an arbiter that keeps
some draft tokens against the target can improve the answers.
"""

from dataclasses import asdict, dataclass

from transformers import LlamaConfig

from .pair_tokenizer import CONTEXT


@dataclass(frozen=True)
class Recipe:
    """Architecture, data and schedule of one model.

    mixture: share of each problem kind in training. style_mixture: share of answers written in
    each style of `styles.STYLES`. decay_share: share of the steps at the end in which
    the learning rate falls linearly to zero. Between warm-up and decay it is constant.
    """

    role: str
    hidden: int
    layers: int
    feed_forward: int
    heads: int
    kv_heads: int
    mixture: tuple[tuple[str, float], ...]
    style_mixture: tuple[tuple[str, float], ...]
    steps: int
    batch: int
    learning_rate: float
    seed: int
    warmup_steps: int = 60
    decay_share: float = 0.3
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    head_dim: int = 32
    initial_std: float = 0.06

    @property
    def decay_start(self) -> int:
        """First step of the falling learning rate."""
        return round(self.steps * (1 - self.decay_share))

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0: warm-up, constant, linear decay."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        decay = min(1.0, (self.steps - step) / max(1, self.steps - self.decay_start))
        return self.learning_rate * warmup * decay

    def as_json(self) -> dict[str, object]:
        """Return the recipe as plain JSON values."""
        return asdict(self)

    def llama_config(self, vocabulary: int, pad: int, bos: int, eos: int) -> LlamaConfig:
        """Return the model's configuration for a vocabulary size and its special token ids."""
        return LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.feed_forward,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=CONTEXT,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            initializer_range=self.initial_std,
            tie_word_embeddings=True,
            pad_token_id=pad,
            bos_token_id=bos,
            eos_token_id=eos,
        )


RECIPES: dict[str, Recipe] = {
    "target": Recipe(
        role="target",
        hidden=192,
        layers=4,
        feed_forward=512,
        heads=6,
        kv_heads=2,
        mixture=(("word", 0.36), ("chain", 0.36), ("mul", 0.10), ("list", 0.18)),
        style_mixture=(("target", 1.0),),
        steps=1720,
        batch=64,
        learning_rate=2.5e-3,
        seed=1,
    ),
    "draft": Recipe(
        role="draft",
        hidden=96,
        layers=3,
        feed_forward=256,
        heads=3,
        kv_heads=1,
        mixture=(("word", 0.10), ("chain", 0.10), ("mul", 0.45), ("list", 0.35)),
        style_mixture=(("draft", 1.0),),
        steps=1700,
        batch=64,
        learning_rate=4e-3,
        seed=2,
    ),
}
