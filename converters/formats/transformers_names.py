"""The names that transformers gives to a CLIP tower and a Llama decoder, wherever they stand."""

from converters.rules import Rule


def clip_rules(prefix: str) -> list[Rule]:
    """Return the rules of a `CLIPVisionTransformer` whose names begin with `prefix`."""
    layer, ours = prefix + "encoder.layers.{}.", "vision.layers.{}."
    rules = [
        Rule(prefix + "embeddings.class_embedding", "vision.class_embedding"),
        Rule(prefix + "embeddings.patch_embedding.weight", "vision.patch_embedding.weight"),
        Rule(prefix + "embeddings.position_embedding.weight", "vision.position_embedding.weight"),
        # 0, 1, 2, ...: saved by transformers up to 4.30, computed since.
        Rule(prefix + "embeddings.position_ids", None),
    ]
    for part in ("weight", "bias"):
        rules += [
            Rule(prefix + f"pre_layrnorm.{part}", f"vision.pre_norm.{part}"),
            Rule(layer + f"layer_norm1.{part}", ours + f"norm1.{part}"),
            Rule(layer + f"layer_norm2.{part}", ours + f"norm2.{part}"),
            Rule(layer + f"self_attn.q_proj.{part}", ours + f"attention.q.{part}"),
            Rule(layer + f"self_attn.k_proj.{part}", ours + f"attention.k.{part}"),
            Rule(layer + f"self_attn.v_proj.{part}", ours + f"attention.v.{part}"),
            Rule(layer + f"self_attn.out_proj.{part}", ours + f"attention.o.{part}"),
            Rule(layer + f"mlp.fc1.{part}", ours + f"mlp.up.{part}"),
            Rule(layer + f"mlp.fc2.{part}", ours + f"mlp.down.{part}"),
            Rule(prefix + f"post_layernorm.{part}", f"vision.post_norm.{part}"),
        ]
    return rules


def llama_rules(prefix: str, tied: bool) -> list[Rule]:
    """Return the rules of a `LlamaForCausalLM` whose names begin with `prefix`.

    With tied embeddings an output layer is a copy of the embedding table; some files hold it, and it is dropped.
    """
    layer, ours = prefix + "model.layers.{}.", "language.layers.{}."
    rules = [
        Rule(prefix + "model.embed_tokens.weight", "language.embed.weight"),
        Rule(layer + "input_layernorm.weight", ours + "attention_norm.weight"),
        Rule(layer + "post_attention_layernorm.weight", ours + "mlp_norm.weight"),
        Rule(layer + "mlp.gate_proj.weight", ours + "mlp.gate.weight"),
        Rule(layer + "mlp.up_proj.weight", ours + "mlp.up.weight"),
        Rule(layer + "mlp.down_proj.weight", ours + "mlp.down.weight"),
        # Computed from the config; saved by transformers up to 4.31.
        Rule(layer + "self_attn.rotary_emb.inv_freq", None),
        Rule(prefix + "model.norm.weight", "language.norm.weight"),
        Rule(prefix + "lm_head.weight", None if tied else "language.lm_head.weight"),
    ]
    for part in ("weight", "bias"):
        for name in "qkvo":
            rules.append(Rule(layer + f"self_attn.{name}_proj.{part}", ours + f"attention.{name}.{part}"))
    return rules
