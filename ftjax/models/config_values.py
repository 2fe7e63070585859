"""What the keys of config.json may be that families read: one definition for all of them.

Keys are as transformers calls them, and one means the same wherever it is read. Null is allowed
where transformers' classes have it, too.
"""

from dataclasses import dataclass
from typing import Annotated, Any

from ftjax.options import Above0, Layers, NotNegative, Portion, Share, Size

Distance = Annotated[int, "[1, 1000000]"]  # between tokens, of which there is a table
Some = Annotated[int, "[0, 1000000000]"]
Token = Annotated[int, "[-1, 1000000000]"]  # -1 for none, in older folders


@dataclass(frozen=True)
class Values:
    """Keys of config.json; what they are set to here are examples of published models."""

    # Sizes.
    vocab_size: Size = 30522
    n_token: Size = 32000
    decoder_vocab_size: Size | None = 58101
    hidden_size: Size = 768
    d_model: Size = 512
    dim: Size = 768
    n_embd: Size = 768
    embedding_size: Size = 128
    intermediate_size: Size | None = 3072
    d_ff: Size = 2048
    d_inner: Size = 4096
    n_inner: Size | None = 3072
    hidden_dim: Size = 3072
    encoder_ffn_dim: Size = 4096
    decoder_ffn_dim: Size = 4096
    head_dim: Size | None = 64
    d_head: Size | None = 64
    d_kv: Size = 64
    attention_head_size: Size = 64
    pooler_hidden_size: Size = 768
    type_vocab_size: Some = 2
    max_position_embeddings: Annotated[int, "[1, 100000000]"] = 512
    n_positions: Size = 1024
    # Counts.
    num_hidden_layers: Layers = 12
    n_layer: Layers = 12
    n_layers: Layers = 6
    num_layers: Layers = 24
    num_decoder_layers: Layers | None = 12
    encoder_layers: Layers = 12
    decoder_layers: Layers = 12
    num_hidden_groups: Annotated[int, "[1, 100]"] = 1
    inner_group_num: Annotated[int, "[1, 100]"] = 1
    num_attention_heads: Size = 12
    n_head: Size = 12
    n_heads: Size = 12
    num_heads: Size = 8
    encoder_attention_heads: Size = 16
    decoder_attention_heads: Size = 16
    num_key_value_heads: Size | None = 8
    num_local_experts: Layers = 8
    num_experts: Layers = 8
    num_experts_per_tok: Layers = 2
    # Which tokens see which.
    layer_types: list[str] | None = ()
    attention_types: list[list[Any]] | None = ()
    attention_layers: list[str] | None = ()
    sliding_window: Some | None = 4096
    sliding_window_pattern: Size = 6
    max_window_layers: Some = 28
    window_size: Size = 256
    local_attention: Size = 128
    global_attn_every_n_layers: Size = 3
    use_sliding_window: bool = False
    use_bidirectional_attention: bool | None = False
    # Positions.
    rope_theta: Above0 = 10000.0
    rope_scaling: dict | None = None
    rope_parameters: dict | None = None
    rope_local_base_freq: Above0 = 10000.0
    global_rope_theta: Above0 = 160000.0
    local_rope_theta: Above0 = 10000.0
    partial_rotary_factor: Portion | None = 1.0
    relative_attention: bool = True
    relative_attention_num_buckets: Annotated[int, "[4, 1000000]"] = 32
    relative_attention_max_distance: Distance = 128
    max_relative_positions: Annotated[int, "[-1, 1000000]"] = -1
    position_buckets: Annotated[int, "[-1, 1000000]"] = 256
    pos_att_type: str | list[str] | None = "p2c|c2p"
    position_biased_input: bool = False
    norm_rel_ebd: str | None = "layer_norm"
    share_att_key: bool = True
    clamp_len: Annotated[int, "[-1, 1000000000]"] = -1
    # Activations.
    hidden_act: str = "gelu"
    hidden_activation: str | None = "gelu"
    activation: str = "gelu"
    activation_function: str = "gelu"
    ff_activation: str = "gelu"
    feed_forward_proj: str = "relu"
    dense_act_fn: str = "relu"
    is_gated_act: bool = False
    pooler_hidden_act: str = "gelu"
    classifier_activation: str = "gelu"
    classifier_pooling: str = "cls"
    summary_activation: str | None = "tanh"
    # Shares that dropouts take away.
    dropout: Share = 0.1
    dropout_rate: Share = 0.1
    hidden_dropout_prob: Share = 0.1
    hidden_dropout: Share | None = 0.1
    attention_probs_dropout_prob: Share = 0.1
    attention_dropout: Share | None = 0.0
    activation_dropout: Share = 0.0
    attn_pdrop: Share = 0.1
    resid_pdrop: Share = 0.1
    resid_dropout: Share = 0.0
    embd_pdrop: Share = 0.1
    embed_dropout: Share = 0.0
    embedding_dropout: Share = 0.0
    mlp_dropout: Share = 0.0
    qa_dropout: Share = 0.1
    seq_classif_dropout: Share = 0.2
    pooler_dropout: Share = 0.0
    cls_dropout: Share | None = 0.1
    classifier_dropout: Share | None = 0.1
    classifier_dropout_prob: Share | None = 0.1
    summary_first_dropout: Share = 0.1
    summary_last_dropout: Share = 0.1
    # Of numbers.
    layer_norm_eps: NotNegative = 1e-12
    layer_norm_epsilon: NotNegative = 1e-5
    norm_eps: NotNegative = 1e-5
    rms_norm_eps: NotNegative = 1e-6
    initializer_range: NotNegative = 0.02
    initializer_factor: NotNegative = 1.0
    initializer_cutoff_factor: Annotated[float, "[0.01, 1000]"] | None = 2.0
    init_std: NotNegative = 0.02
    query_pre_attn_scalar: Above0 | None = 256
    attn_logit_softcapping: Above0 | None = 50.0
    final_logit_softcapping: Above0 | None = 30.0
    # What there is, and what is shared.
    attention_bias: bool = False
    mlp_bias: bool = False
    norm_bias: bool = False
    classifier_bias: bool = False
    decoder_bias: bool = True
    tie_word_embeddings: bool = True
    legacy: bool = True
    scale_attn_weights: bool = True
    scale_embedding: bool = False
    scale_decoder_outputs: bool = True
    # Tokens.
    pad_token_id: Token | None = 0
    eos_token_id: Token | list[Token] | None = 1
    decoder_start_token_id: Token | None = 0


@dataclass(frozen=True)
class Rope:
    """What `rope_parameters` and `rope_scaling` hold, of all layers or of one kind of them."""

    rope_type: str | None = "default"
    type: str | None = "linear"
    rope_theta: Above0 = 10000.0
    factor: Above0 = 8.0
    low_freq_factor: Above0 = 1.0
    high_freq_factor: Above0 = 4.0
    original_max_position_embeddings: Size = 8192
    partial_rotary_factor: Portion | None = 1.0
    full_attention: dict | None = None
    sliding_attention: dict | None = None
