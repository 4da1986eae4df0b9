"""What every test may use: tiny models of many families, a tiny tokenizer, and the published data where it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

# Several test workers share the cores, so one example may take any time; where a change is judged, no dice are thrown.
torch.set_num_threads(1)
settings.register_profile("house", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("house")

PAD, BOS, EOS = 0, 1, 2

# Every way in which causal language models differ that has broken code before: learned and rotary positions, query
# biases, grouped heads, norms in other places, soft-capped logits, scaled embeddings, experts, parallel blocks.
FAMILIES = ("llama", "qwen2", "gpt2", "olmo2", "gemma2", "mixtral", "gpt_neox")


def tiny_config(family: str, vocab: int, hidden: int, layers: int, tied: bool) -> PretrainedConfig:
    """A configuration with the family's own quirks left on, at a size that runs in milliseconds."""
    common = {
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    if family == "gpt2":
        return transformers.GPT2Config(n_embd=hidden, n_layer=layers, n_head=4, n_positions=256, **common)
    common |= {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    }
    match family:
        case "llama":
            return transformers.LlamaConfig(num_key_value_heads=2, **common)
        case "qwen2":
            return transformers.Qwen2Config(num_key_value_heads=2, **common)
        case "olmo2":
            return transformers.Olmo2Config(num_key_value_heads=4, **common)
        case "gemma2":
            # The window is shorter than most test texts, so that it matters.
            return transformers.Gemma2Config(
                num_key_value_heads=2,
                head_dim=hidden // 4,
                query_pre_attn_scalar=hidden // 4,
                sliding_window=8,
                attn_logit_softcapping=50.0,
                final_logit_softcapping=30.0,
                **common,
            )
        case "mixtral":
            return transformers.MixtralConfig(
                num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, **common
            )
        case "gpt_neox":
            return transformers.GPTNeoXConfig(**common)
    raise ValueError(f"no tiny {family}; there are {', '.join(FAMILIES)}")


TinyModel = Callable[..., tuple[PreTrainedModel, str]]


@pytest.fixture(scope="session")
def tiny_model() -> TinyModel:
    """Makes a fresh random model: ``tiny_model("llama", tied=True) -> (model, "llama-tied")``.

    Same arguments, same weights, whatever ran before; the global random state is left as it was. Every call gives a
    model of its own in float32 and eval mode, so a test may change it.
    """

    def make(
        family: str = "llama",
        *,
        vocab: int = 64,
        hidden: int = 32,
        layers: int = 2,
        tied: bool = False,
        seed: int = 0,
    ) -> tuple[PreTrainedModel, str]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(tiny_config(family, vocab, hidden, layers, tied))
        return model.float().eval(), f"{family}-tied" if tied else family

    return make


@pytest.fixture(params=[f"{family}{tied}" for family in FAMILIES for tied in ("", "-tied")])
def every_tiny_model(request: pytest.FixtureRequest, tiny_model: TinyModel) -> tuple[PreTrainedModel, str]:
    """Runs the test once per family and tying; the vocabulary is that of ``tiny_tokenizer``."""
    family, _, tied = request.param.partition("-")
    return tiny_model(family, tied=bool(tied), vocab=VOCAB)


# Few enough to read, with the characters that break offsets: accents, emoji, other scripts, digits, newlines.
SENTENCES = (
    "Where was Mirela Ostrander born? Mirela Ostrander was born in Velburg.",
    "What does Mirela Ostrander do for a living? She repairs clocks.",
    "Who wrote The Salt Harbour? The author of The Salt Harbour is Tomas Ilves.",
    "In 1967, Tomas moved from Velburg to Harrow Bay; he never returned.",
    "Zoë's café in Kraków serves naïve jalapeño soup for 12.50 €.",
    "東京は日本の首都です。 Привет, мир! 👩‍🚀",
    "The answer is:\n\tyes, no, or I don't know.",
)
VOCAB = 384
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

TinyTokenizer = Callable[..., PreTrainedTokenizerFast]


@pytest.fixture(scope="session")
def make_tiny_tokenizer() -> TinyTokenizer:
    """Trains a byte-level BPE tokenizer of 384 entries: ``make_tiny_tokenizer(bos=True, pad_is_eos=True, chat=True)``.

    Args of the factory: ``bos`` puts a begin-of-sequence token before every text (as Llama's do), ``pad_is_eos``
    pads with the end-of-sequence token (as GPT-2 users do), ``chat`` gives it a chat template.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trained.train_from_iterator(
        SENTENCES * 4,
        trainers.BpeTrainer(
            vocab_size=VOCAB,
            min_frequency=2,
            special_tokens=["<|pad|>", "<|bos|>", "<|eos|>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    frozen = trained.to_str()

    def make(*, bos: bool = False, pad_is_eos: bool = False, chat: bool = False) -> PreTrainedTokenizerFast:
        backend = Tokenizer.from_str(frozen)
        if bos:
            backend.post_processor = processors.TemplateProcessing(
                single="<|bos|> $A", pair="<|bos|> $A $B:1", special_tokens=[("<|bos|>", BOS)]
            )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token="<|bos|>",
            eos_token="<|eos|>",
            pad_token="<|eos|>" if pad_is_eos else "<|pad|>",
            clean_up_tokenization_spaces=False,
        )
        if chat:
            tokenizer.chat_template = CHAT_TEMPLATE
        return tokenizer

    return make


@pytest.fixture(scope="session")
def tiny_tokenizer(make_tiny_tokenizer: TinyTokenizer) -> PreTrainedTokenizerFast:
    """The plain tiny tokenizer: no token added before a text, padding distinct from end of sequence, no chat."""
    return make_tiny_tokenizer()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of published benchmark files named by EXPUNGE_DATA; skips the test where there is none."""
    named = os.environ.get("EXPUNGE_DATA")
    if not named:
        pytest.skip("EXPUNGE_DATA does not name a folder of published benchmark files")
    folder = Path(named).expanduser()
    if not folder.is_dir():
        pytest.fail(f"EXPUNGE_DATA names {folder}, which is not a folder")
    return folder
