"""A family of the user's own, as in a file outside the package."""

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

import tiny
from stitch.models.loading import load
from stitch.models.model import Model


class MyConfig(PreTrainedConfig):
    model_type = "my_decoder"

    def __init__(self, vocab_size=tiny.VOCABULARY, hidden_size=24, num_hidden_layers=4, **kwargs):
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.num_attention_heads, self.max_position_embeddings = 1, 64
        super().__init__(**{"bos_token_id": tiny.BOS, "eos_token_id": tiny.BOS, **kwargs})


class MyBlock(nn.Module):
    """Sees the token and the one before it. The stream is its second argument and its second result."""

    def __init__(self, width: int):
        super().__init__()
        self.now, self.before = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, number: int, stream: Tensor) -> tuple[int, Tensor]:
        earlier = nn.functional.pad(stream, (0, 0, 1, 0))[:, :-1]
        return number, stream + torch.tanh(self.now(stream) + self.before(earlier))


class MyDecoder(PreTrainedModel, GenerationMixin):
    config_class = MyConfig
    base_model_prefix = ""

    def __init__(self, config: MyConfig):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.stack = nn.ModuleList([MyBlock(config.hidden_size) for _ in range(config.num_hidden_layers)])
        self.scale = nn.LayerNorm(config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.words

    def get_output_embeddings(self):
        return self.out

    def forward(self, input_ids=None, inputs_embeds=None, **kwargs) -> CausalLMOutputWithPast:
        stream = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        for number, block in enumerate(self.stack):
            _, stream = block(number, stream)
        return CausalLMOutputWithPast(logits=self.out(self.scale(stream)))


def my_decoder(folder, cls: type[MyDecoder] = MyDecoder) -> Model:
    """A model of the class `cls`, whose config is of a class of its own, saved and loaded as that of a user."""
    AutoConfig.register(cls.config_class.model_type, cls.config_class, exist_ok=True)
    AutoModelForCausalLM.register(cls.config_class, cls, exist_ok=True)
    torch.manual_seed(0)
    cls(cls.config_class()).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return load(folder)
