"""A loaded bundle that generates: the object that applications embed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import Lock

from msgspec.structs import asdict

from ...errors import UsageError
from ..arbitration.protocol import Arbiter
from ..arbitration.referee import Referee
from ..bundle.hub import local_folder
from ..bundle.manifest import Manifest
from ..bundle.reader import Bundle, load_unchanged
from ..drafting.costs import MeasuredCosts, recorded_costs
from ..drafting.draft_length import DraftLengthController
from ..drafting.protocol import DrafterFactory, EvidenceDrafter
from ..drafting.registry import NamedDrafter, find_drafter
from ..engines.onnxruntime import OrtOptions
from ..engines.protocol import Engine
from ..sampling.grammar import GrammarCompiler
from ..sampling.params import SamplingParams
from ..sampling.sampler import TokenLogprob
from ..text.codec import TextCodec, import_text_libraries
from .caches import Caches
from .completion import Completion, Piece, Stream
from .generation import (
    OutputText,
    Plan,
    choose_referee,
    make_drafter,
    plan_generation,
    rounds,
)
from .options import DraftLength, GenerationOptions, Mode, Overflow, takes_options
from .placement import Backend, place
from .prompt import Prompt, encode_prompt
from .scoring import score_tokens
from .stopping import Interrupt, interruptible

__all__ = ["DraftLength", "Mode", "Overflow", "Prompt", "Session", "load"]


class Session:
    """Draft, target and text of one bundle, ready to generate. One generation runs at a time.

    Usually made by `cospec.load`. A generation that begins ends the one before it with an error. For
    several at once, also from threads, give each a session of its own with `new_session`.

    Args:
        manifest: the bundle's manifest.
        target: engine of the target.
        draft: engine of the draft, or None for a bundle without one.
        codec: tokenizer and chat template.
        arbiter: the bundle's arbiter, or None for a bundle without one.
        drafter: see `load`.

    Attributes:
        defaults: the values of options that a call does not give.
        drafter: name of the session's drafter.
        engines: of the target, and of the draft or None.

    Raises:
        UsageError: there is no such drafter, or it needs a draft model that is not there.
    """

    def __init__(
        self,
        manifest: Manifest,
        target: Engine,
        draft: Engine | None,
        codec: TextCodec,
        arbiter: Arbiter | None = None,
        drafter: str | DrafterFactory | NamedDrafter = "auto",
    ) -> None:
        self.manifest = manifest
        self.arbiter = arbiter
        self.codec = codec
        recommended = manifest.generation.sampling
        sampling = (
            SamplingParams() if recommended is None else SamplingParams(**asdict(recommended))
        )
        self.defaults = GenerationOptions(sampling=sampling)
        self._drafter = find_drafter(drafter, has_draft=draft is not None)
        self.drafter = self._drafter.name
        drafting = draft if self._drafter.uses_model else None
        self.engines = (target, draft)
        recorded = recorded_costs(manifest.models, target, drafting)
        self._costs = MeasuredCosts(target, drafting, recorded)
        eos = manifest.generation.eos_token_ids
        self._grammars = GrammarCompiler(codec.tokenizer.to_str, manifest.vocab_size, eos)
        self._running: Stream | None = None
        self._lock = Lock()
        own = None if drafting is None else drafting.decoder()
        self.caches = Caches(target.decoder(), own, manifest)

    def new_session(self) -> Session:
        """Return another session on the same engines, with empty caches of its own."""
        target, draft = self.engines
        session = Session(self.manifest, target, draft, self.codec, self.arbiter, self._drafter)
        session._costs, session._grammars = self._costs, self._grammars
        return session

    @takes_options
    def generate(self, prompt: Prompt, options: GenerationOptions) -> Completion:
        """Generate to the end and return the whole output.

        Args:
            prompt: plain text, which is continued; or chat messages, rendered with the template. Tokens
                that it shares with the text before it are not read again.
            options: keyword arguments, the fields of `GenerationOptions`; `defaults` has the values of
                those that are not given.

        Raises:
            PromptError: the prompt is empty or does not fit the capacity.
            UsageError: an option is out of range, or messages without a chat template.
            BackendError: the backend failed.
        """
        return self.run(self._planned(prompt, options)).completion()

    @takes_options
    def stream(self, prompt: Prompt, options: GenerationOptions) -> Stream:
        """Generate piece by piece; arguments and errors as in `generate`."""
        return self.run(self._planned(prompt, options))

    @takes_options
    def plan(self, prompt: Prompt, options: GenerationOptions) -> Plan:
        """Check everything that a generation depends on, and make no forward pass.

        Pass the plan to `run` to generate. Arguments and errors as in `generate`.
        """
        return self._planned(prompt, options)

    def run(self, plan: Plan) -> Stream:
        """Begin the generation of a plan; each plan serves one generation.

        It does not begin before the first piece is asked for.
        """
        seed = None if plan.sampler is None else plan.sampler.seed
        return Stream(plan.tokens, plan.interrupt, seed, lambda stream: self._pieces(plan, stream))

    def continue_tokens(
        self,
        tokens: Sequence[int],
        referee: Referee | None = None,
        *,
        max_tokens: int | None = None,
        num_draft_tokens: DraftLength = None,
        sampling: SamplingParams | None = None,
        reuses_cache: bool = False,
    ) -> Stream:
        """Generate after `tokens` with the caller's own referee, to measure or to train.

        All tokens are read again, so that times and rounding do not depend on earlier generations,
        unless `reuses_cache`. The session's `defaults` do not apply.
        """
        options = GenerationOptions(
            max_tokens=max_tokens, num_draft_tokens=num_draft_tokens, sampling=sampling
        )
        return self.run(
            plan_generation(
                tokens, options, self.manifest, referee, self._grammars, reuses_cache=reuses_cache
            )
        )

    def score(
        self, prompt: Prompt, *, top: int = 0, interrupt: Interrupt | None = None
    ) -> list[TokenLogprob]:
        """Return the log-probability of each token of a prompt but the first, under the target.

        All tokens are read again; a generation after the same prompt finds them in the cache.

        Args:
            prompt: as in `generate`.
            top: number of most likely tokens to report at each position.
            interrupt: ends the scoring early, before the next pass.

        Raises:
            PromptError: the prompt is empty or does not fit the capacity.
            BackendError: the backend failed.
        """
        tokens = self.encode(prompt)
        chunk = max(2, self.manifest.generation.prefill_chunk)
        reason = (lambda: None) if interrupt is None else interrupt.reason
        with self._lock:
            self._running = None
            self.caches.clear()
            self.caches.begin(tokens)
            with self.caches.consistent():
                return score_tokens(self.caches.target, tokens, top, chunk, reason)

    def forget(self) -> None:
        """Empty the caches: the next prompt is read from its first token."""
        with self._lock:
            self._running = None
            self.caches.clear()

    def save(self, path: str | Path) -> None:
        """Write the caches to a file, so that another process need not read the text again.

        Raises:
            UsageError: the backend cannot do that.
        """
        with self._lock:
            self.caches.save(Path(path))

    def restore(self, path: str | Path) -> None:
        """Continue where `save` was called, in this process or another, with the same bundle.

        Raises:
            BundleError: the file is damaged, or belongs to another bundle.
            UsageError: the backend cannot do that.
        """
        with self._lock:
            self._running = None
            self.caches.restore(Path(path))

    def encode(self, prompt: Prompt, options: GenerationOptions | None = None) -> list[int]:
        """Return the tokens of a prompt; errors as in `generate`."""
        return encode_prompt(prompt, self.codec, self.manifest, options or self.defaults)

    @cached_property
    def protected_tokens(self) -> frozenset[int]:
        """Tokens that only the target may choose: ends of text and special tokens."""
        eos = self.manifest.generation.eos_token_ids
        return frozenset({*eos, *self.codec.special_token_ids})

    @cached_property
    def draft_length_controller(self) -> DraftLengthController:
        """Chooses the draft length `auto`, and learns from all generations of this session.

        Its costs are the bundle's, or measured when a session on these engines first needs them.
        """
        return DraftLengthController(self._costs.get())

    def _planned(self, prompt: Prompt, options: GenerationOptions) -> Plan:
        has_evidence = (
            self._drafter.has_evidence
            if options.drafter is None
            else isinstance(options.drafter, EvidenceDrafter)
        )
        arbiter = options.arbiter or self.arbiter
        referee = choose_referee(
            options, arbiter, self.manifest, self.protected_tokens, has_evidence=has_evidence
        )
        if options.num_draft_tokens is None and referee is None and self._chooses_length:
            options = replace(options, num_draft_tokens="auto")
        tokens = self.encode(prompt, options)
        return plan_generation(tokens, options, self.manifest, referee, self._grammars)

    @property
    def _chooses_length(self) -> bool:
        """Whether `auto` is the default draft length: its costs are known, and it changes no bit."""
        manifest = self.manifest  # in plain numbers, one token may round otherwise than several
        drafts = self.drafter != "none" and manifest.generation.num_draft_tokens > 0
        return drafts and manifest.models.target.rounds_by_width and self._costs.are_known

    def _pieces(self, plan: Plan, stream: Stream) -> Iterator[Piece]:
        is_auto = plan.options.num_draft_tokens == "auto"
        controller = self.draft_length_controller if is_auto else None
        tokens = list(plan.tokens)
        with self._lock:
            self._running = stream
            if not plan.reuses_cache:
                self.caches.clear()
            stream.stats.num_cached_tokens = self.caches.begin(tokens)
            drafter = make_drafter(self._drafter, plan, self.caches, self.codec, controller)
            going = rounds(plan, self.caches, drafter, tokens, controller)
        stream_of_text = self.codec.stream(stream.prompt_tokens)
        text = OutputText(stream_of_text, self.codec.special_tokens, plan.options)
        if plan.referee is not None:
            stream.stats.num_capped = plan.referee.num_capped
        decoders = interruptible(self.caches.decoders().values())
        while stream.finish_reason is None:
            with self._lock:
                if self._running is not stream:
                    raise UsageError(
                        "another generation began on this session before this one ended",
                        hint="a session runs one generation at a time: for several at once, also from "
                        "threads, give each a session of its own with session.new_session()",
                    )
                with self.caches.consistent(), plan.interrupt.ends_passes(decoders):
                    round_ = next(going)
                new, whole = text.push(round_)
                if len(whole.tokens) < len(round_.tokens):
                    self.caches.cut(
                        len(self.caches.tokens) - len(round_.tokens) + len(whole.tokens)
                    )
                if whole.tokens:
                    stream.stats.add(whole)
                if plan.grammar is not None:
                    plan.grammar.commit(whole.tokens)
                    stream.is_complete = plan.grammar.is_complete
                stream.finish_reason = whole.finish
            yield Piece(new, whole.tokens, whole.provenance, whole.logprobs)


def load(
    path: str | Path,
    *,
    drafter: str | DrafterFactory = "auto",
    backend: Backend = "auto",
    options: OrtOptions | None = None,
    verify: bool = True,
) -> Session:
    """Open the bundle at `path` (or the one bundle below it) and load its engines.

    Args:
        path: a bundle's folder, a folder that holds exactly one bundle, or `hf://org/name[@revision]`,
            which is downloaded into the cache of huggingface_hub.
        drafter: proposes tokens. `auto` (the draft model, or n-gram lookup without one), `model`,
            `ngram`, `combined` (lookup where the text repeats itself, the model elsewhere), `none`, the
            name of an installed drafter, `module:Class`, or a class of your own.
        backend: what the models run on; see `runtime.placement`. The first time a bundle runs on
            TensorRT its engines are built, which takes minutes, and kept in its folder.
        options: settings of ONNX Runtime.
        verify: check the hash of every file first. Skip this only for a bundle that was verified in
            its place.

    Raises:
        BundleError: no bundle, several, or a damaged one.
        BackendError: the backend is missing, or cannot load the graphs or build its engines.
        ResourceError: not enough memory, or no room for engines.
        UsageError: see `Session`; or the bundle's graphs are not for this backend.
    """

    def make(bundle: Bundle) -> Session:
        manifest = bundle.manifest
        found = find_drafter(drafter, has_draft=manifest.models.draft is not None)
        import_text_libraries()
        with ThreadPoolExecutor(1) as beside:
            codec = beside.submit(codec_of, bundle, manifest.capacity)
            placed = place(bundle, backend, options, drafts=found.uses_model)
        return Session(manifest, placed.target, placed.draft, codec.result(), placed.arbiter, found)

    return load_unchanged(local_folder(path), make, verify=verify)


def codec_of(bundle: Bundle, capacity: int | None) -> TextCodec:
    """Open the tokenizer and the chat format of a bundle; see `TextCodec` for `capacity`."""
    chat = bundle.manifest.chat_template
    tokenizer = bundle.path(bundle.manifest.tokenizer)
    return TextCodec(tokenizer, None if chat is None else bundle.path(chat), capacity)
