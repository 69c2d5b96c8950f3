"""MAGE for `transformers`: configuration, tokenizer and model in one flat folder.

These files are copied beside the weights when a model is saved, so they import one another and nothing else of this
package: a pushed checkpoint loads with `AutoModel.from_pretrained(..., trust_remote_code=True)` alone.
"""

from transformers import AutoConfig, AutoModel

from .configuration_mage import MageConfig
from .decoding_mage import feathered_paste, fill_hole, paste
from .modeling_mage import MageModel, MageModelOutput
from .tokenizer_mage import MageTokenizer

AutoConfig.register("mage", MageConfig)
AutoModel.register(MageConfig, MageModel)
MageConfig.register_for_auto_class()
MageModel.register_for_auto_class("AutoModel")

__all__ = ["MageConfig", "MageModel", "MageModelOutput", "MageTokenizer", "feathered_paste", "fill_hole", "paste"]
