//! Llama: Llama 2 and 3, SmolLM, TinyLlama, and Mistral without a sliding window.

use bessemer_format::plan::{Input, ModelFacts, Output};
use bessemer_ir::attr::{BinaryKind, UnaryKind};
use serde_json::{Map, Value};

use super::Architecture;
use crate::import::build::{Builder, Model};
use crate::import::config::{Fields, HARMLESS_HF, Harmless, gguf_fields};
use crate::import::error::ImportError;
use crate::import::gguf::GgufMetadata;
use crate::import::rope::{self, Rope, RopeScaling};
use crate::import::source::{Checkpoint, Metadata};
use crate::import::tensors;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "llama",
    hf: &[("llama", "LlamaForCausalLM"), ("mistral", "MistralForCausalLM")],
    gguf: &["llama"],
    build: |checkpoint| LlamaConfig::read(checkpoint)?.build(checkpoint),
};

/// What a Llama checkpoint computes, from either container.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads` (GQA).
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Width of the feed-forward network.
    pub ffn: usize,
    /// Rows of the token embedding.
    pub vocab: usize,
    /// Most positions that the model was trained for.
    pub context: usize,
    /// Added to the mean square in RMSNorm. Models compute with its f32.
    pub rms_norm_eps: f64,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Whether the token embedding is the output head too.
    pub tied: bool,
    /// Whether q, k, v and o have a bias.
    pub attention_bias: bool,
    /// Whether gate, up and down have a bias.
    pub mlp_bias: bool,
    naming: Naming,
}

/// Whose tensor names a checkpoint uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Naming {
    HuggingFace,
    Gguf,
}

/// The place of a tensor in the model. Biases exist where [`LlamaConfig`] says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are those of every description of this architecture")]
pub enum Role {
    TokenEmbedding,
    OutputNorm,
    Output,
    AttentionNorm,
    Query,
    Key,
    Value,
    AttentionOut,
    FfnNorm,
    Gate,
    Up,
    Down,
    QueryBias,
    KeyBias,
    ValueBias,
    AttentionOutBias,
    GateBias,
    UpBias,
    DownBias,
}

type Shape = fn(&LlamaConfig) -> Vec<usize>;
/// Role, name in Hugging Face, name in GGUF, shape.
type Row = (Role, &'static str, &'static str, Shape);

/// Tensors of the whole model.
const GLOBAL: [Row; 3] = [
    (Role::TokenEmbedding, "model.embed_tokens.weight", "token_embd.weight", |c| vec![c.vocab, c.hidden]),
    (Role::OutputNorm, "model.norm.weight", "output_norm.weight", |c| vec![c.hidden]),
    (Role::Output, "lm_head.weight", "output.weight", |c| vec![c.vocab, c.hidden]),
];

/// Tensors of one block, under `model.layers.N.` or `blk.N.`. In GGUF the rows of query and key (and of their
/// biases) are permuted: see [`rope::RopePairing::Interleaved`].
#[rustfmt::skip]
const BLOCK: [Row; 16] = [
    (Role::AttentionNorm, "input_layernorm.weight", "attn_norm.weight", |c| vec![c.hidden]),
    (Role::Query, "self_attn.q_proj.weight", "attn_q.weight", |c| vec![c.q_rows(), c.hidden]),
    (Role::Key, "self_attn.k_proj.weight", "attn_k.weight", |c| vec![c.kv_rows(), c.hidden]),
    (Role::Value, "self_attn.v_proj.weight", "attn_v.weight", |c| vec![c.kv_rows(), c.hidden]),
    (Role::AttentionOut, "self_attn.o_proj.weight", "attn_output.weight", |c| vec![c.hidden, c.q_rows()]),
    (Role::FfnNorm, "post_attention_layernorm.weight", "ffn_norm.weight", |c| vec![c.hidden]),
    (Role::Gate, "mlp.gate_proj.weight", "ffn_gate.weight", |c| vec![c.ffn, c.hidden]),
    (Role::Up, "mlp.up_proj.weight", "ffn_up.weight", |c| vec![c.ffn, c.hidden]),
    (Role::Down, "mlp.down_proj.weight", "ffn_down.weight", |c| vec![c.hidden, c.ffn]),
    (Role::QueryBias, "self_attn.q_proj.bias", "attn_q.bias", |c| vec![c.q_rows()]),
    (Role::KeyBias, "self_attn.k_proj.bias", "attn_k.bias", |c| vec![c.kv_rows()]),
    (Role::ValueBias, "self_attn.v_proj.bias", "attn_v.bias", |c| vec![c.kv_rows()]),
    (Role::AttentionOutBias, "self_attn.o_proj.bias", "attn_output.bias", |c| vec![c.hidden]),
    (Role::GateBias, "mlp.gate_proj.bias", "ffn_gate.bias", |c| vec![c.ffn]),
    (Role::UpBias, "mlp.up_proj.bias", "ffn_up.bias", |c| vec![c.ffn]),
    (Role::DownBias, "mlp.down_proj.bias", "ffn_down.bias", |c| vec![c.hidden]),
];

impl LlamaConfig {
    /// Reads the configuration and checks that the checkpoint holds its tensors, no others, in the right shapes.
    pub fn read(checkpoint: &Checkpoint) -> Result<LlamaConfig, ImportError> {
        let config = match checkpoint.config() {
            Metadata::HuggingFace(config) => from_hf(checkpoint, config)?,
            Metadata::Gguf(metadata) => from_gguf(checkpoint, metadata)?,
        };
        config.check_tensors(checkpoint)?;
        Ok(config)
    }

    /// Name in the checkpoint. `layer` counts from 0 and is not used for tensors of the whole model.
    pub fn tensor_name(&self, role: Role, layer: usize) -> String {
        let global = GLOBAL.iter().find(|row| row.0 == role);
        let block = BLOCK.iter().find(|row| row.0 == role);
        match (global, block, self.naming) {
            (Some(row), _, Naming::HuggingFace) => row.1.to_owned(),
            (Some(row), _, Naming::Gguf) => row.2.to_owned(),
            (None, Some(row), Naming::HuggingFace) => format!("model.layers.{layer}.{}", row.1),
            (None, Some(row), Naming::Gguf) => format!("blk.{layer}.{}", row.2),
            (None, None, _) => unreachable!("every role has a row"),
        }
    }

    /// Rows of the query projection.
    pub fn q_rows(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Rows of the key projection and of the value projection.
    pub fn kv_rows(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The graph: pre-norm blocks of attention and a SwiGLU network over one residual stream.
    fn build(&self, checkpoint: &Checkpoint) -> Result<Model, ImportError> {
        let mut b = Builder::new(checkpoint);
        let bias = |role: Role, layer| self.has(role).then(|| self.tensor_name(role, layer));
        let tokens = b.input("tokens", Input::Tokens)?;
        let positions = b.input("positions", Input::Positions)?;
        let logit_rows = b.input("logit_rows", Input::LogitRows)?;
        let table = b.weight(&self.tensor_name(Role::TokenEmbedding, 0))?;
        let angles = b.rope_table(positions, &self.rope, self.head_dim)?;
        let mut x = b.embed(tokens, table)?;
        let mut states = Vec::new();
        for layer in 0..self.layers {
            let name = |what: &str| format!("layer.{layer}.{what}");
            let tensor = |role| self.tensor_name(role, layer);
            let project = |b: &mut Builder, x, weight, bias_role| {
                b.linear(x, &tensor(weight), bias(bias_role, layer).as_deref())
            };
            let h = b.rms_norm(x, &tensor(Role::AttentionNorm), self.rms_norm_eps)?;
            let q = project(&mut b, h, Role::Query, Role::QueryBias)?;
            let k = project(&mut b, h, Role::Key, Role::KeyBias)?;
            let v = project(&mut b, h, Role::Value, Role::ValueBias)?;
            let q = b.rope(name("q.rope"), q, angles, self.heads, &self.rope)?;
            let k = b.rope(name("k.rope"), k, angles, self.kv_heads, &self.rope)?;
            let state = b.state(layer, self.kv_heads, self.head_dim)?;
            let state = b.append(name("append"), state, k, v, self.kv_heads)?;
            states.push(state);
            let a = b.attention(name("attention"), q, state, self.heads, self.kv_heads, self.head_dim)?;
            let o = project(&mut b, a, Role::AttentionOut, Role::AttentionOutBias)?;
            x = b.binary(name("attention.residual"), BinaryKind::Add, x, o)?;
            let h = b.rms_norm(x, &tensor(Role::FfnNorm), self.rms_norm_eps)?;
            let gate = project(&mut b, h, Role::Gate, Role::GateBias)?;
            let up = project(&mut b, h, Role::Up, Role::UpBias)?;
            let gate = b.unary(name("silu"), UnaryKind::Silu, gate)?;
            let h = b.binary(name("swiglu"), BinaryKind::Mul, gate, up)?;
            let down = project(&mut b, h, Role::Down, Role::DownBias)?;
            x = b.binary(name("ffn.residual"), BinaryKind::Add, x, down)?;
        }
        let x = b.select_rows(x, logit_rows)?;
        let x = b.rms_norm(x, &self.tensor_name(Role::OutputNorm, 0), self.rms_norm_eps)?;
        let head = self.tensor_name(Role::Output, 0);
        let logits =
            if self.tied { b.linear_value(x, table, &head, None)? } else { b.linear(x, &head, None)? };
        let facts = ModelFacts {
            vocab: self.vocab as u32,
            context: self.context as u32,
            hidden: self.hidden as u32,
            layers: self.layers as u32,
            output: Output::Logits,
            whole: false,
        };
        Ok(Model { graph: b.finish(logits, &states)?, facts, architecture: ARCHITECTURE.name })
    }

    fn has(&self, role: Role) -> bool {
        match role {
            Role::Output => !self.tied,
            Role::QueryBias | Role::KeyBias | Role::ValueBias | Role::AttentionOutBias => self.attention_bias,
            Role::GateBias | Role::UpBias | Role::DownBias => self.mlp_bias,
            _ => true,
        }
    }

    /// What both containers leave to check: the relations between the sizes.
    fn check_sizes(self, fields: &Fields, keys: [&str; 3]) -> Result<LlamaConfig, ImportError> {
        let [heads, kv_heads, head_dim] = keys;
        if self.heads < self.kv_heads || !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a divisor of the {} heads ({heads})", self.heads);
            return Err(fields.error(kv_heads, expected, "correct the value"));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(fields.error(head_dim, "an even head size, for RoPE", "correct the value"));
        }
        Ok(self)
    }

    fn check_tensors(&self, checkpoint: &Checkpoint) -> Result<(), ImportError> {
        let globals = GLOBAL.iter().filter(|row| self.has(row.0)).map(|row| (0, row));
        let block = || BLOCK.iter().filter(|row| self.has(row.0));
        let blocks = (0..self.layers).flat_map(|layer| block().map(move |row| (layer, row)));
        let count = globals.clone().count() + self.layers * block().count();
        let expected =
            globals.chain(blocks).map(|(layer, row)| (self.tensor_name(row.0, layer), (row.3)(self)));

        let head = self.tensor_name(Role::Output, 0);
        let stored_tie = self.tied && checkpoint.tensors().contains_key(&head);
        tensors::check(checkpoint, count, expected, |name| {
            // Old checkpoints store the rotary frequencies, which follow from the configuration.
            name.ends_with(".self_attn.rotary_emb.inv_freq")
                || (name == rope::FREQUENCY_FACTORS && matches!(self.rope.scaling, RopeScaling::Factors(_)))
                || (name == head && stored_tie)
        })?;
        if stored_tie { self.check_stored_tie(checkpoint) } else { Ok(()) }
    }

    /// A tied head that is stored all the same is harmless only as an exact copy.
    fn check_stored_tie(&self, checkpoint: &Checkpoint) -> Result<(), ImportError> {
        let [table, head] = [Role::TokenEmbedding, Role::Output].map(|role| self.tensor_name(role, 0));
        let (table_info, head_info) = (checkpoint.tensor(&table)?, checkpoint.tensor(&head)?);
        let same = table_info.shape == head_info.shape && table_info.stored == head_info.stored;
        if same && checkpoint.bytes(&table)? == checkpoint.bytes(&head)? {
            return Ok(());
        }
        Err(ImportError::Config {
            path: checkpoint.config_path().to_owned(),
            key: "tie_word_embeddings".into(),
            expected: format!("false, because `{head}` differs from `{table}`"),
            found: "true".into(),
            remedy: "set it to false, or remove the head from the weights",
        })
    }
}

fn from_hf(checkpoint: &Checkpoint, config: &Map<String, Value>) -> Result<LlamaConfig, ImportError> {
    let fields = Fields::new(checkpoint.config_path(), "", config);
    let is_mistral = fields.text("model_type")? == Some("mistral");

    let hidden = fields.required_count("hidden_size")?;
    let heads = fields.required_count("num_attention_heads")?;
    let context = fields.required_count("max_position_embeddings")?;
    let head_dim = match fields.count("head_dim")? {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(fields.error(
                "num_attention_heads",
                format!("a divisor of hidden_size {hidden}"),
                "correct the value",
            ));
        }
    };
    // The defaults for absent keys are those of transformers' LlamaConfig; MistralConfig differs where it says so.
    let kv_heads = match fields.count("num_key_value_heads")? {
        None if is_mistral && !config.contains_key("num_key_value_heads") => 8,
        kv_heads => kv_heads.unwrap_or(heads),
    };
    let llama = LlamaConfig {
        hidden,
        layers: fields.required_count("num_hidden_layers")?,
        heads,
        kv_heads,
        head_dim,
        ffn: fields.required_count("intermediate_size")?,
        vocab: fields.required_count("vocab_size")?,
        context,
        rms_norm_eps: fields.required_positive("rms_norm_eps")?,
        rope: rope::from_hf(&fields)?,
        tied: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        attention_bias: fields.flag("attention_bias")?.unwrap_or(false),
        mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
        naming: Naming::HuggingFace,
    };

    fields.neutral("hidden_act", "`silu`", |value| value == "silu")?;
    let window_expected = "null, or a window of at least max_position_embeddings";
    fields.neutral("sliding_window", window_expected, |value| reaches(value, context))?;
    if is_mistral && !config.contains_key("sliding_window") && context > 4096 {
        // MistralConfig's default is a window of 4096 tokens.
        return Err(fields.error(
            "sliding_window",
            window_expected,
            "add `\"sliding_window\": null` if the model has none",
        ));
    }
    fields.neutral("layer_types", "only `full_attention`", |value| {
        value.as_array().is_some_and(|types| types.iter().all(|ty| ty == "full_attention"))
    })?;
    fields.neutral("partial_rotary_factor", "1", |value| value.as_f64() == Some(1.0))?;
    fields.neutral("pruned_heads", "{}", |value| value.as_object().is_some_and(Map::is_empty))?;
    let off = [
        "rope_interleaved",
        "use_sliding_window",
        "is_decoder",
        "is_encoder_decoder",
        "add_cross_attention",
        "tie_encoder_decoder",
    ];
    for key in off {
        fields.neutral(key, "false", |value| value == false)?;
    }
    if fields.value("quantization_config").is_some() {
        let remedy = "use the checkpoint from before quantisation, or a .gguf file";
        return Err(fields.error("quantization_config", "plain F32, F16 or BF16 weights", remedy));
    }
    fields.skip(HARMLESS_HF);
    fields.skip(&[Harmless { reason: "says that this is a Llama", keys: &["is_llama_config"] }]);

    let llama = llama.check_sizes(&fields, ["num_attention_heads", "num_key_value_heads", "head_dim"])?;
    fields.finish()?;
    Ok(llama)
}

/// Whether a sliding window covers the whole context, so that it hides nothing.
fn reaches(window: &Value, context: usize) -> bool {
    window.as_u64().is_some_and(|window| window >= context as u64)
}

fn from_gguf(checkpoint: &Checkpoint, metadata: &GgufMetadata) -> Result<LlamaConfig, ImportError> {
    let map = gguf_fields(metadata, "llama");
    let fields = Fields::new(checkpoint.config_path(), "llama.", &map);

    let hidden = fields.required_count("embedding_length")?;
    let heads = fields.required_count("attention.head_count")?;
    let context = fields.required_count("context_length")?;
    let head_dim = match fields.count("attention.key_length")? {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(fields.error(
                "attention.head_count",
                format!("a divisor of embedding_length {hidden}"),
                "correct the value",
            ));
        }
    };
    let table = checkpoint.tensors().get(GLOBAL[0].2).and_then(|info| info.shape.first().copied());
    let has = |name: &str| checkpoint.tensors().contains_key(name);
    let llama = LlamaConfig {
        hidden,
        layers: fields.required_count("block_count")?,
        heads,
        kv_heads: fields.count("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        ffn: fields.required_count("feed_forward_length")?,
        // The key is optional; without it the table itself says how long it is, and a missing table is reported below.
        vocab: fields.count("vocab_size")?.or(table).unwrap_or(1),
        context,
        rms_norm_eps: fields.required_positive("attention.layer_norm_rms_epsilon")?,
        rope: rope::from_gguf(checkpoint, &fields, head_dim)?,
        // No key says so: the tensors do.
        tied: !has("output.weight"),
        attention_bias: has("blk.0.attn_q.bias"),
        mlp_bias: has("blk.0.ffn_gate.bias"),
        naming: Naming::Gguf,
    };

    for key in ["attention.value_length", "rope.dimension_count"] {
        fields.neutral(key, &format!("the head size {head_dim}"), |value| {
            value.as_u64() == Some(head_dim as u64)
        })?;
    }
    fields.neutral("attention.sliding_window", "none, or at least context_length", |value| {
        value.as_u64() == Some(0) || reaches(value, context)
    })?;
    for key in ["expert_count", "expert_used_count", "attention.clamp_kqv", "attention.max_alibi_bias"] {
        fields.neutral(key, "0", |value| value.as_f64() == Some(0.0))?;
    }
    fields.neutral("use_parallel_residual", "false", |value| value == false)?;
    fields.neutral("attention.causal", "true", |value| value == true)?;
    fields
        .neutral("tensor_data_layout", "`Meta AI original pth`", |value| value == "Meta AI original pth")?;

    let llama = llama
        .check_sizes(&fields, ["attention.head_count", "attention.head_count_kv", "attention.key_length"])?;
    fields.finish()?;
    Ok(llama)
}
