"""CoSpec bundles as a model of lm-evaluation-harness, so that figures compare with everybody's.

Importing this module registers the model `cospec` with lm_eval. In Python:

    from cospec.calibration.quality.lm_eval_adapter import CospecLM
    lm_eval.simple_evaluate(model=CospecLM(engine_dir="models/tiny", mode="collab"), tasks=["gsm8k"])

Text is tokenised, cut and joined as lm_eval's own model `hf` does, so both give the same results on the
same weights.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from ...errors import PromptError, UsageError
from ...runtime.bundle.reader import Bundle, find_bundle
from ...runtime.decoding.session import codec_of
from ...runtime.sampling.params import SamplingParams
from ..journal import digest
from .lm_eval_jobs import GenerateJob, LmEvalSetup, ScoreJob, run_job
from .mode_runner import QualityConfig
from .modes import parse_modes
from .workers import LOCAL, Workers

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""Arguments of generation that are passed on, besides lm_eval's `until` and `max_gen_toks`."""

NO_EFFECT: Mapping[str, object] = {"num_beams": 1, "num_return_sequences": 1, "use_cache": True}
"""Arguments of transformers that change nothing at these values."""

CACHE_OWNER = "cospec"
"""Key of a response cache under which it says which model its answers are from."""


@register_model("cospec")
class CospecLM(TemplateLM):  # type: ignore[misc]
    """A bundle in one mode, as lm_eval sees a model.

    Log-likelihoods are those of the target, whatever the mode (of the draft in the mode `draft`): only
    generation differs between the modes.

    Args:
        engine_dir: a bundle's folder, or a folder that holds exactly one bundle.
        mode: as in `cospec-bench quality --modes`, except `random` without a rate and `sample`.
        threshold: for `collab`: score above which a draft token is kept; the bundle's own if None.
        arbiter: for `collab`: an arbiter instead of the bundle's own, a graph or a folder.
        num_draft_tokens: draft tokens per round; None for the bundle's default.
        max_gen_toks: longest answer in tokens of a task that does not say.
        max_length: longest context in tokens; None for all that the bundle's cache holds.
        seed: seed of tasks that sample.
        processes, threads, cluster: see `Scale`.
        batch_size, max_batch_size, device: accepted and ignored. Requests run one by one, where the
            bundle's engines run.

    Attributes:
        mode, config: what `cospec-bench quality` would run with the same arguments.

    Raises:
        BundleError: no bundle, several, or a damaged one.
        UsageError: a mode that this bundle cannot run, or that has no single answer.
    """

    def __init__(
        self,
        engine_dir: str | Path,
        mode: str = "strict",
        threshold: float | None = None,
        arbiter: str | Path | None = None,
        num_draft_tokens: int | None = None,
        max_gen_toks: int = 256,
        max_length: int | None = None,
        seed: int = 0,
        processes: int | None = None,
        threads: int = 1,
        cluster: str = LOCAL,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        bundle = Bundle.open(find_bundle(engine_dir))
        self._bundle, self._manifest = bundle, bundle.manifest
        self._codec = codec_of(bundle, capacity=None)
        own = self._manifest.models.arbiter
        modes = parse_modes(
            [mode],
            own_threshold=None if own is None else own.threshold,
            thresholds=() if threshold is None else (threshold,),
            graphs=() if arbiter is None else (Path(arbiter),),
        )
        self.mode = modes[0]
        if self.mode.kind == "sample":
            raise UsageError(
                f"the mode '{mode}' cannot be evaluated",
                hint="use the mode target, and sample with --gen_kwargs do_sample=true",
            )
        if self.mode.kind != "target" and self._manifest.models.draft is None:
            raise UsageError(
                f"this bundle has no draft, so the mode '{mode}' cannot be run",
                hint="use the mode target; or export again with --draft",
            )
        self.max_gen_toks = max_gen_toks
        # The last token is read too, so a context has one less than the cache holds.
        self.max_length = min(max_length or self._manifest.capacity, self._manifest.capacity - 1)
        self._seed = seed
        self.config = QualityConfig(
            bundle.root,
            num_draft_tokens,
            processes=processes,
            threads=threads,
            cluster=cluster,
        )
        self._workers = Workers(self.config, LmEvalSetup(self.config, self.mode))

    @property
    def eot_token_id(self) -> int:
        """The first token that ends a text."""
        return self._manifest.generation.eos_token_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context."""
        bos = self._manifest.generation.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Identifies the tokenizer and the template in lm_eval's request cache."""
        return f"{self._manifest.name}-{self._manifest.seal[:16]}"

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm_eval adds to the configuration in its results."""
        return {
            "bundle": self._manifest.name,
            "seal": self._manifest.seal,
            "mode": self.mode.name,
            "threshold": self.mode.threshold,
        }

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the template that `apply_chat_template` uses; empty for none."""
        if not chat_template or not self._codec.has_chat_template:
            return ""
        templates = self._codec.chat.templates
        return templates.get(str(chat_template)) or next(iter(templates.values()))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render messages with the bundle's chat template.

        A template that refuses system messages gets the others, as in lm_eval's model `hf`.
        """
        messages = list(chat_history)
        for attempt in (messages, [each for each in messages if each["role"] != "system"]):
            try:
                return self._codec.chat.render(
                    attempt,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            except PromptError:
                if len(attempt) < len(messages) or not any(m["role"] == "system" for m in messages):
                    raise
        raise AssertionError("the loop returns or raises")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Return token ids, with special tokens unless the text begins with one already."""
        if add_special_tokens is None:
            begin = self._codec.spelling(self.prefix_token_id)
            add_special_tokens = not (begin and string.startswith(begin))
        return (
            self._codec.encode(string)
            if add_special_tokens
            else self._codec.encode_rendered(string)
        )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answer every request; see `lm_eval.api.model.LM`."""
        seen = Counter[str]()
        jobs, stops = [], []
        for context, arguments in (request.args for request in requests):
            number = seen[context]  # the n-th sample of the same prompt
            seen[context] += 1
            job, stop = self._generate_job(context, arguments, number)
            jobs.append(job)
            stops.append(stop)
        texts: list[str] = [""] * len(jobs)
        for i, text in self._workers.run(run_job, jobs, "answering"):
            texts[i] = postprocess_generated_text(text, stops[i], None)
            self.cache_hook.add_partial("generate_until", requests[i].args, texts[i])
        return texts

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Score every request as a whole text; see `lm_eval.api.model.LM`."""
        windows, owners = [], []
        for i, (text,) in enumerate(request.args for request in requests):
            for pair in get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append((None, *make_disjoint_window(pair)))
                owners.append(i)
        totals = [0.0] * len(requests)
        for i, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[i] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Use a response cache, which must be this model's: lm_eval's keys do not name the model.

        Raises:
            UsageError: it holds answers of another bundle or mode.
        """
        if cache_hook.dbdict is not None:
            mode = self.mode
            ours = f"{self._manifest.seal} {mode.name} {mode.threshold} {mode.graph} {self._seed}"
            if cache_hook.dbdict.setdefault(CACHE_OWNER, ours) != ours:
                raise UsageError(
                    "this response cache holds answers of another bundle or mode",
                    hint="give another file with --use_cache",
                )
        super().set_cache_hook(cache_hook)

    def _generate_job(
        self, context: str, arguments: Mapping[str, Any], number: int
    ) -> tuple[GenerateJob, list[str]]:
        """Return the job of a request, and the texts that end its answer."""
        kwargs = dict(normalize_gen_kwargs(dict(arguments), self.max_gen_toks))
        stop = [text for text in kwargs.pop("until") if text]
        max_tokens = kwargs.pop("max_gen_toks")
        room = self.max_length - max_tokens
        if room < 1:
            raise UsageError(
                f"max_gen_toks is {max_tokens}, but this bundle holds {self._manifest.capacity} tokens",
                hint="give fewer with --gen_kwargs, or export again with a larger --capacity",
            )
        sampling = _sampling(kwargs, stop, int(digest(f"{self._seed} {number} {context}"), 16))
        prompt = self.tok_encode(context)[-room:] or [self.prefix_token_id]
        return GenerateJob(tuple(prompt), max_tokens, sampling), stop

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Score continuations; those of one context share its forward passes."""
        groups: dict[tuple[int, ...], list[int]] = {}
        continuations = []
        for i, (_, context, continuation) in enumerate(requests):
            if not 0 < len(continuation) <= self.max_length:
                raise PromptError(
                    f"a continuation has {len(continuation)} tokens, but must have 1 to "
                    f"{self.max_length}",
                    hint="export again with a larger --capacity",
                )
            room = self.max_length + 1 - len(continuation)
            groups.setdefault(tuple(context[-room:]), []).append(i)
            continuations.append(tuple(continuation))
        jobs = [
            ScoreJob(context, tuple(continuations[i] for i in members))
            for context, members in groups.items()
        ]
        members = list(groups.values())
        found: dict[int, tuple[float, bool]] = {}
        for number, scores in self._workers.run(run_job, jobs, "scoring"):
            for i, score in zip(members[number], scores, strict=True):
                found[i] = score
                texts = requests[i][0]
                if texts is not None:  # a window of a rolling text has no texts of its own
                    self.cache_hook.add_partial("loglikelihood", texts, score)
        return [found[i] for i in range(len(requests))]


def _sampling(arguments: dict[str, Any], stop: Sequence[str], seed: int) -> SamplingParams:
    """Return the parameters that lm_eval's arguments of generation ask for.

    Raises:
        UsageError: an argument that would change the answers and is not supported.
    """
    drawn = arguments.pop("do_sample")  # lm_eval always sets it
    wanted = {name: arguments.pop(name) for name in SAMPLING if name in arguments}
    unknown = {k: v for k, v in arguments.items() if NO_EFFECT.get(k, v is None) != v}
    if unknown:
        raise UsageError(
            f"the arguments of generation {unknown} are not supported",
            hint=f"these are: until, max_gen_toks, do_sample, {', '.join(SAMPLING)}",
        )
    if not drawn:
        wanted = {k: v for k, v in wanted.items() if k == "repetition_penalty"}
        return SamplingParams(stop=tuple(stop), **wanted)
    return SamplingParams(stop=tuple(stop), seed=seed, **{"temperature": 1.0, **wanted})


def run_command(arguments: Sequence[str]) -> None:
    """Hand `arguments` over to the command line of lm_eval, with `cospec` as the default model."""
    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    setup_logging()
    words = [*arguments]
    if words[:1] in ([], ["run"]) or words[0].startswith("-"):
        words = ["run", "--model", "cospec", *words[words[:1] == ["run"] :]]
    before, sys.argv = sys.argv, ["cospec-bench lm-eval", *words]
    try:
        harness = HarnessCLI()
        harness.execute(harness.parse_args())
    finally:
        sys.argv = before
