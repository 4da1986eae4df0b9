"""Localisation: time and memory to search every value vector of a model for a concept.

    python benchmarks/localisation.py [--width 2048 --units 8192 --layers 16 --vocabulary 128256] [--dtype float32]
        [--exhaustive 1024] [--json FILE]

A Llama-architecture model of the given shape with random weights (the default is that of Llama 3.2 1B) is searched for
a made-up concept of 50 tokens: scores of all value vectors, 512 random vectors per layer as the null, top 200 tokens of
the candidates. Prints peak memory above the weights beside what the full (vocabulary x vectors) product would need.
With --exhaustive N, N vectors are projected on the whole vocabulary and their top 200 taken, which is what a search by
token lists does for every vector, and the times per vector are compared.

The process measures its own peak resident memory, with the means of the Linux kernel.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import date
from pathlib import Path

import psutil
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from expunge.runs.facts import hardware
from expunge.selections.localisation import LocateSettings, locate
from expunge.selections.vocabulary_projection import Head, top_tokens
from expunge.tasks.feed_forward import value_matrices

GIB = 1 << 30


class Names:
    """Stands in for a task: the search itself needs a tokenizer to name the tokens that it found, and nothing else."""

    class tokenizer:
        """Names a token by its number."""

        @staticmethod
        def convert_ids_to_tokens(ids: list[int]) -> list[str]:
            """Return the numbers as text."""
            return [str(i) for i in ids]


def forget_peak() -> None:
    """Let the kernel measure the peak from now on: making the model took more memory than the model does."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak() -> int:
    """Peak resident memory of this process, in bytes, since ``forget_peak``."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def main() -> None:
    """Make the model, search it, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("width", 2048), ("units", 8192), ("layers", 16), ("vocabulary", 128256), ("exhaustive", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, given.dtype))
    config = LlamaConfig(
        vocab_size=given.vocabulary, hidden_size=given.width, intermediate_size=given.units,
        num_hidden_layers=given.layers, num_attention_heads=given.width // 64, num_key_value_heads=given.width // 256,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    matrices = value_matrices(model)
    vectors = sum(len(m.vectors) for m in matrices)
    tokens = torch.randperm(given.vocabulary, generator=torch.Generator().manual_seed(1))[:50].tolist()
    resident = psutil.Process().memory_info().rss
    forget_peak()
    started = time.process_time()
    head = Head.of(model.get_output_embeddings().weight)
    prepared = time.process_time() - started
    found = locate(Names(), matrices, tokens, LocateSettings(level=0.01), head=head)  # type: ignore[arg-type]
    seconds = time.process_time() - started
    above = max(0, peak() - resident)
    full = 4 * given.vocabulary * vectors
    result = {
        "date": date.today().isoformat(), "hardware": hardware(), "dtype": given.dtype, "threads": 1,
        "parameters": sum(p.numel() for p in model.parameters()), "weights_gib": weights / GIB,
        "value_vectors": vectors, "null_vectors": 512 * given.layers, "passed": found.passed,
        "candidates": len(found.candidates), "seconds": seconds, "seconds_moments": prepared,
        "peak_above_weights_gib": above / GIB, "full_product_gib": full / GIB,
    }  # fmt: skip
    print(f"{full / max(above, 1):8.0f}x less memory than the full product: {above / GIB:.2f} GiB above the weights ")
    print(f"         ({weights / GIB:.2f} GiB, {given.dtype}), full product {full / GIB:.1f} GiB")
    print(
        f"{seconds:8.1f} CPU seconds for {vectors} value vectors and their null, of which {prepared:.1f} for the head"
    )
    if given.exhaustive:
        some = matrices[0].written(torch.arange(min(given.exhaustive, given.units)))
        started = time.process_time()
        top_tokens(some, head.weight, 200)
        each = (time.process_time() - started) / len(some)
        result |= {"exhaustive_vectors": len(some), "exhaustive_seconds_per_vector": each}
        ratio = each / (seconds / vectors)
        result["ratio_exhaustive"] = ratio
        print(f"{ratio:8.1f}x the time per vector if every vector's top 200 tokens are taken ({len(some)} timed)")
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
