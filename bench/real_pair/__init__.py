r"""The real pair: Qwen2.5-Coder 1.5B, a generalist, and a 0.5B tuned on arithmetic as its draft.

From nothing to a measured arbiter, in a checkout. Every step continues after a kill:

    python -m bench.real_pair.fetch --output .cache/real
    python -m bench.real_pair.train_draft --base .cache/real/draft --gsm8k gsm8k_train.jsonl \
      --output .cache/real/draft-lora            # hours; bench/real_pair/adapter is what came out
    cospec-export --target .cache/real/target.gguf --draft .cache/real/draft \
      --draft-adapter .cache/real/draft-lora --draft-weights int8 --output bundles/specialist
    python -m bench.real_pair.word_problems --problems gsm8k_train.jsonl \
      --unseen-by .cache/real/draft-lora --output train.jsonl
    python -m bench.real_pair.word_problems --problems gsm8k_test.jsonl --output test.jsonl
    cospec-bench quality --engine-dir bundles/specialist --tasks train.jsonl --items 300 \
      --modes target,draft,strict --resample-control --results headroom.jsonl
    cospec-calibrate arbiter --engine-dir bundles/specialist --tasks train.jsonl --items 500
    cospec-bench quality --engine-dir bundles/specialist --tasks test.jsonl --items 1000 \
      --modes target,draft,strict,collab,random --num-draft-tokens 3 --max-tokens 110 \
      --results test-answers.jsonl
    python -m bench.real_pair.lm_eval_check --engine-dir bundles/specialist --tasks test.jsonl \
      --results test-answers.jsonl

docs/real-pair.md has what came out, and the settings of each step.
"""
