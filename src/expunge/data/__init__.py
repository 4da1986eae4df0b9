"""Where examples come from: files, the hub, and the embedded fictitious world."""

from __future__ import annotations

from expunge.data.fictitious import FictitiousWorld
from expunge.data.files import read_examples
from expunge.data.request_files import read_request
from expunge.data.tokenizer import small_tokenizer

__all__ = ["FictitiousWorld", "read_examples", "read_request", "small_tokenizer"]
