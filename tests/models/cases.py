"""Small configurations of every family, for comparison with transformers."""

import transformers

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
DECODER = {**SIZES, **SPECIAL, "num_key_value_heads": 2, "head_dim": 8}
PLAIN = {name: value for name, value in DECODER.items() if name != "head_dim"}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
T5 = {
    "vocab_size": 64,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 6,
    "initializer_factor": 1.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
BART = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 32,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "init_std": 0.3,
}
# Name of the row in PARITY.md → configuration, made when asked for.
CASES = {
    "bert": lambda: transformers.BertConfig(**SIZES),
    "roberta": lambda: transformers.RobertaConfig(**SIZES, type_vocab_size=1),
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(**SIZES, type_vocab_size=1),
    "distilbert": lambda: transformers.DistilBertConfig(
        vocab_size=64,
        dim=32,
        n_layers=3,
        n_heads=4,
        hidden_dim=64,
        max_position_embeddings=64,
        initializer_range=0.3,
    ),
    "electra": lambda: transformers.ElectraConfig(**SIZES, embedding_size=16),
    "albert": lambda: transformers.AlbertConfig(
        **SIZES, **SPECIAL, embedding_size=16, num_hidden_groups=2, inner_group_num=2
    ),
    "deberta-v2": lambda: transformers.DebertaV2Config(
        **SIZES, relative_attention=True, pos_att_type="p2c|c2p", type_vocab_size=2
    ),
    "deberta-v3": lambda: transformers.DebertaV2Config(
        **SIZES,
        relative_attention=True,
        position_buckets=4,
        max_relative_positions=16,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        legacy=False,
    ),
    "modernbert": lambda: transformers.ModernBertConfig(
        **SIZES,
        **SPECIAL,
        cls_token_id=2,
        sep_token_id=3,
        local_attention=6,
        global_attn_every_n_layers=2,
    ),
    "xlnet": lambda: transformers.XLNetConfig(
        vocab_size=64, d_model=32, n_layer=3, n_head=4, d_inner=64, initializer_range=0.3, **SPECIAL
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=64,
        n_positions=64,
        n_embd=32,
        n_layer=3,
        n_head=4,
        initializer_range=0.3,
        **SPECIAL,
    ),
    "gpt_neo": lambda: transformers.GPTNeoConfig(
        vocab_size=64,
        max_position_embeddings=64,
        hidden_size=32,
        num_layers=3,
        num_heads=4,
        attention_types=[[["global", "local"], 1], [["local"], 1]],
        window_size=4,
        initializer_range=0.3,
        **SPECIAL,
    ),
    "llama": lambda: transformers.LlamaConfig(**DECODER, rope_parameters=LLAMA3),
    "mistral": lambda: transformers.MistralConfig(**DECODER, sliding_window=4),
    "mixtral": lambda: transformers.MixtralConfig(
        **DECODER, num_local_experts=4, num_experts_per_tok=2
    ),
    "qwen2": lambda: transformers.Qwen2Config(
        **PLAIN,
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=1,
        tie_word_embeddings=True,
    ),
    "qwen3": lambda: transformers.Qwen3Config(**{**DECODER, "head_dim": 16}),
    "phi3": lambda: transformers.Phi3Config(**PLAIN, sliding_window=5),
    "gemma": lambda: transformers.GemmaConfig(**DECODER),
    "gemma2": lambda: transformers.Gemma2Config(
        **DECODER, sliding_window=4, query_pre_attn_scalar=16
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **{**DECODER, "num_hidden_layers": 7}, sliding_window=4, query_pre_attn_scalar=16
    ),
    "t5": lambda: transformers.T5Config(**T5),
    "t5-v1.1": lambda: transformers.T5Config(
        **T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False
    ),
    "mt5": lambda: transformers.MT5Config(**T5),
    "bart": lambda: transformers.BartConfig(**BART, scale_embedding=True),
    "mbart": lambda: transformers.MBartConfig(**BART),
    "marian": lambda: transformers.MarianConfig(
        **BART, activation_function="swish", scale_embedding=True
    ),
}
# Cases whose layers, attention or way of stacking no other has. Each of the rest differs from one
# of these in sizes, names, or what single modules compute, which is compared with transformers.
DISTINCT = ("bert", "albert", "deberta-v3", "modernbert", "xlnet", "gpt2", "gpt_neo", "llama")
DISTINCT += ("mixtral", "gemma2", "gemma3", "t5", "bart")
