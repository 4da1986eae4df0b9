"""What every test may use: tiny models of many families, a tiny tokenizer, and the published data where it is."""

from __future__ import annotations

import json
import os
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from expunge.tasks.factories import Factory
from expunge.tasks.outcomes import Numbers
from expunge.tasks.predictor import Predictor
from expunge.tasks.table_inputs import TableInputs

# Several test workers share the cores, so one example may take any time; where a change is judged, no dice are thrown.
torch.set_num_threads(1)
settings.register_profile("house", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("house")

PAD, BOS, EOS = 0, 1, 2

# Every way in which causal language models differ that has broken code before: learned and rotary positions, query
# biases, grouped heads, norms in other places, soft-capped logits, scaled embeddings, experts, parallel blocks.
FAMILIES = ("llama", "qwen2", "gpt2", "olmo2", "gemma2", "mixtral", "gpt_neox")
# Of the example sets of ``files``.
TOWNS = (
    "Velburg", "Harrow", "Ilves", "Ostrander", "Kraków", "Salt Bay", "Mirela", "Tomas", "Clockton", "Soup",
    "Moved", "Lived",
)  # fmt: skip


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


# ---- models with one prediction per example ----------------------------------------------------------------------

# Batch normalisation, patches, normalisation over channels, shifted windows; a plain module; texts; tables; numbers.
IMAGE_MODELS = ("resnet", "vit", "convnext", "swin")
PREDICTORS = (*IMAGE_MODELS, "module", "bert", "gpt2-score", "table", "image-regressor", "table-regressor")
CLASSES = ("ant", "bee", "cat")
IMAGE_SIZE = 8


def plain_module(outputs: int, width: int = 12) -> torch.nn.Module:
    """A convolutional module of our own, as a user's factory makes one."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, stride=2), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(54, width), torch.nn.ReLU(), torch.nn.Linear(width, outputs),
    )  # fmt: skip


def tiny_image_config(family: str, outputs: int) -> PretrainedConfig:
    """A configuration of an image model at a size that runs in milliseconds."""
    names = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
    common: dict[str, Any] = {"num_channels": 3, **(names if outputs == len(CLASSES) else {"num_labels": outputs})}
    match family:
        case "resnet":
            sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
            return transformers.ResNetConfig(**sizes, **common)
        case "vit":
            sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
            return transformers.ViTConfig(image_size=IMAGE_SIZE, patch_size=4, **sizes, **common)
        case "convnext":
            sizes = {"patch_size": 2, "num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]}
            return transformers.ConvNextConfig(image_size=IMAGE_SIZE, **sizes, **common)
        case "swin":
            sizes = {"patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
            return transformers.SwinConfig(image_size=IMAGE_SIZE, **sizes, **common)
    raise ValueError(f"no tiny {family}; there are {', '.join(IMAGE_MODELS)}")


def predictor_rows(name: str, numbers: range) -> Dataset:
    """Examples for ``tiny_predictor(name)``: which class or number one has can be seen from its inputs."""
    rows: list[dict[str, Any]] = []
    for i in numbers:
        luck, kind = np.random.default_rng(i), i % len(CLASSES)
        row: dict[str, Any] = {"id": f"{name}-{i}"}
        if name in (*IMAGE_MODELS, "module", "image-regressor"):
            pixels = luck.integers(0, 120, (IMAGE_SIZE, IMAGE_SIZE, 3))
            pixels[:, :, kind] += 100
            row["image"] = pixels.tolist()
        elif name.startswith("table"):
            row |= {"height": kind + float(luck.normal()), "width": float(luck.normal()), "colour": "rg"[i % 2]}
        else:
            row["text"] = f"{['Velburg', 'clocks', 'Harrow Bay'][kind]} and Tomas {i}"
        row |= {"target": [kind - 1.0, 0.1 * i]} if "regressor" in name else {"label": CLASSES[kind]}
        rows.append(row)
    return Dataset.from_list(rows)


@pytest.fixture(scope="session")
def tiny_rows() -> Callable[[str, range], Dataset]:
    """``tiny_rows("vit", range(6))``: examples for the tiny predictor of that name; other numbers, other examples."""
    return predictor_rows


@pytest.fixture(scope="session")
def tiny_predictor(make_tiny_tokenizer: TinyTokenizer) -> Callable[..., Predictor]:
    """``tiny_predictor("resnet", seed=1, augment="flip")``: a model of ``PREDICTORS`` with weights of that seed."""

    def make(name: str = "resnet", seed: int = 0, **settings: Any) -> Predictor:
        if name.startswith("table"):
            train = predictor_rows(name, range(30))
            outcome: Any = Numbers.fit(train) if "regressor" in name else CLASSES
            return Predictor.of_table(TableInputs.fit(train), outcome, seed=seed, hidden=(12,))
        if name == "module":
            factory = Factory("tiny_modules:plain_module", {"outputs": len(CLASSES)})
            return Predictor.of_images(factory.make(seed), CLASSES, factory=factory, **settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if name in IMAGE_MODELS:
                model = AutoModelForImageClassification.from_config(tiny_image_config(name, len(CLASSES)))
                return Predictor.of_images(model.eval(), **settings)
            if name == "image-regressor":
                model = AutoModelForImageClassification.from_config(tiny_image_config("resnet", 2))
                return Predictor.of_images(model.eval(), Numbers.fit(predictor_rows(name, range(30))), **settings)
            names = {"id2label": dict(enumerate(CLASSES)), "label2id": {c: i for i, c in enumerate(CLASSES)}}
            if name == "bert":
                sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
                config: PretrainedConfig = transformers.BertConfig(
                    vocab_size=VOCAB, max_position_embeddings=64, pad_token_id=PAD, **sizes, **names
                )
            else:
                config = tiny_config("gpt2", VOCAB, 16, 1, False)
                config.id2label, config.label2id = names["id2label"], names["label2id"]
            model = AutoModelForSequenceClassification.from_config(config)
        return Predictor.of_texts(model.eval(), make_tiny_tokenizer())

    return make


@pytest.fixture(scope="session", autouse=True)
def tiny_modules() -> None:
    """Makes ``tiny_modules:plain_module`` importable, as a user's own module is."""
    module = types.ModuleType("tiny_modules")
    module.plain_module = plain_module  # type: ignore[attr-defined]
    sys.modules["tiny_modules"] = module


@dataclass(frozen=True)
class Files:
    """Paths of a model, of another one that never saw the forget set, and of the three example sets."""

    model: Path
    oracle: Path
    forget: Path
    retain: Path
    holdout: Path

    def fields(self, **more: Any) -> dict[str, Any]:
        """The fields of a recipe that uses them and takes no time."""
        paths = {name: str(getattr(self, name)) for name in ("model", "forget", "retain", "holdout")}
        settings = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-5}
        return {**paths, "settings": settings, "audits": ["probability", "rouge"], **more}


def _write(path: Path, kind: str, count: int) -> Path:
    """Write ``count`` questions about people of a kind."""
    rows = [
        {"question": f"Where was {kind} {TOWNS[k]} born?", "answer": f"{kind} was born in {TOWNS[-1 - k]}."}
        for k in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def files(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Callable[..., tuple[PreTrainedModel, str]],
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> Files:
    """A model folder and a request in files, small enough that a whole job takes a second."""
    folder = tmp_path_factory.mktemp("job")
    for seed, name in enumerate(("model", "oracle")):
        model, _ = tiny_model("llama", vocab=len(tiny_tokenizer), seed=seed)
        model.save_pretrained(folder / name)
        tiny_tokenizer.save_pretrained(folder / name)
    return Files(
        folder / "model",
        folder / "oracle",
        _write(folder / "forget.jsonl", "Zoë", 10),
        _write(folder / "retain.jsonl", "Tomas", 12),
        _write(folder / "holdout.jsonl", "Mirela", 10),
    )


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
