MID = {
    "text": dict(hidden_size=512, intermediate_size=2560, num_attention_heads=8, num_hidden_layers=8,
                 num_key_value_heads=2, mrope_section=[8, 12, 12]),
    "talker": dict(embedding_size=512, hidden_size=512, intermediate_size=2560, num_hidden_layers=8, head_dim=64,
                   num_attention_heads=10, num_key_value_heads=2, mrope_section=[8, 12, 12]),
    "dit": dict(hidden_size=512, num_hidden_layers=8, num_attention_heads=8, head_dim=64, emb_dim=128, block_size=24,
                look_ahead_layers=[3], look_backward_layers=[0, 6], enc_dim=64, enc_channels=[64, 64, 64, 64, 192]),
    "vocoder": dict(upsample_initial_channel=256),
}
