//! Writers of small checkpoints, right and wrong ones, independent of the readers they test.

use std::path::Path;

use serde_json::{Value, json};

/// A GGUF file under construction. Counts are those of what was added, unless a test sets others.
#[derive(Debug, Clone)]
pub struct Gguf {
    /// Version of the container.
    pub version: u32,
    /// Overrides the number of tensors.
    pub tensor_count: Option<u64>,
    /// Overrides the number of metadata entries.
    pub entry_count: Option<u64>,
    /// Metadata: key, type, encoded value.
    pub entries: Vec<(String, u32, Vec<u8>)>,
    /// Tensors in the order of their data.
    pub tensors: Vec<GgufTensor>,
}

/// A tensor of a [`Gguf`].
#[derive(Debug, Clone)]
pub struct GgufTensor {
    /// Name.
    pub name: String,
    /// Dimensions, innermost first.
    pub dims: Vec<u64>,
    /// Number of the ggml type.
    pub ty: u32,
    /// Content.
    pub data: Vec<u8>,
    /// Overrides the offset.
    pub offset: Option<u64>,
}

fn gguf_string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Gguf {
    /// An empty file of version 3.
    pub fn new() -> Self {
        Gguf { version: 3, tensor_count: None, entry_count: None, entries: Vec::new(), tensors: Vec::new() }
    }

    /// Sets a metadata entry of any type, its value already encoded.
    pub fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.entries.retain(|(existing, ..)| existing != key);
        self.repeat(key, kind, value)
    }

    /// Adds an entry even if there is one of that key.
    pub fn repeat(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.entries.push((key.to_owned(), kind, value.to_vec()));
        self
    }

    /// Removes a metadata entry.
    pub fn without(mut self, key: &str) -> Self {
        self.entries.retain(|(existing, ..)| existing != key);
        self
    }

    /// Sets an unsigned 32-bit entry.
    pub fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    /// Sets a float entry.
    pub fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    /// Sets a text entry.
    pub fn string(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, &gguf_string(value))
    }

    /// Sets an array of texts.
    pub fn strings(self, key: &str, values: &[&str]) -> Self {
        let mut value = 8u32.to_le_bytes().to_vec();
        value.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|text| value.extend(gguf_string(text)));
        self.raw(key, 9, &value)
    }

    /// Adds a tensor; dimensions innermost first.
    pub fn tensor(mut self, name: &str, dims: &[u64], ty: u32, data: &[u8]) -> Self {
        let (name, dims, data) = (name.to_owned(), dims.to_vec(), data.to_vec());
        self.tensors.push(GgufTensor { name, dims, ty, data, offset: None });
        self
    }

    /// Changes the tensors.
    pub fn edit(mut self, change: impl FnOnce(&mut Vec<GgufTensor>)) -> Self {
        change(&mut self.tensors);
        self
    }

    /// The file, tensors aligned to `alignment`, which is written down only by whoever sets `general.alignment`.
    pub fn aligned(&self, alignment: usize) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        file.extend(self.entry_count.unwrap_or(self.entries.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.entries {
            file.extend(gguf_string(key));
            file.extend(kind.to_le_bytes());
            file.extend(value);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            file.extend(gguf_string(&tensor.name));
            file.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| file.extend(dim.to_le_bytes()));
            file.extend(tensor.ty.to_le_bytes());
            file.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.data);
            data.resize(data.len().next_multiple_of(alignment), 0);
        }
        file.resize(file.len().next_multiple_of(alignment), 0);
        file.extend(data);
        file
    }

    /// The file with the default alignment.
    pub fn bytes(&self) -> Vec<u8> {
        self.aligned(32)
    }
}

impl Default for Gguf {
    fn default() -> Self {
        Self::new()
    }
}

/// A safetensors file of F32 tensors with their names and shapes; element `i` of the file is `i`.
pub fn safetensors(tensors: &[(String, Vec<usize>)]) -> Vec<u8> {
    let mut header = json!({ "__metadata__": { "format": "pt" } });
    let mut data = Vec::new();
    for (name, shape) in tensors {
        let from = data.len();
        for _ in 0..shape.iter().product() {
            data.extend(((data.len() / 4) as f32).to_le_bytes());
        }
        header[name] = json!({ "dtype": "F32", "shape": shape, "data_offsets": [from, data.len()] });
    }
    safetensors_with(&header.to_string(), &data)
}

/// A safetensors file with this header, whatever it says.
pub fn safetensors_with(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// The configuration of the tiny Llama: one layer, 2 heads of 16 over 1 KV head, ffn 48, 8 tokens, untied.
pub fn tiny_config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 48,
        "vocab_size": 8,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": false,
        "torch_dtype": "float32",
    })
}

/// The tensors of the tiny Llama as Hugging Face names them, in their order in the file.
pub fn tiny_tensors() -> Vec<(String, Vec<usize>)> {
    let block = [
        ("input_layernorm.weight", vec![32]),
        ("self_attn.q_proj.weight", vec![32, 32]),
        ("self_attn.k_proj.weight", vec![16, 32]),
        ("self_attn.v_proj.weight", vec![16, 32]),
        ("self_attn.o_proj.weight", vec![32, 32]),
        ("post_attention_layernorm.weight", vec![32]),
        ("mlp.gate_proj.weight", vec![48, 32]),
        ("mlp.up_proj.weight", vec![48, 32]),
        ("mlp.down_proj.weight", vec![32, 48]),
    ];
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![8, 32])];
    tensors.extend(block.map(|(name, shape)| (format!("model.layers.0.{name}"), shape)));
    tensors.push(("model.norm.weight".to_owned(), vec![32]));
    tensors.push(("lm_head.weight".to_owned(), vec![8, 32]));
    tensors
}

/// A safetensors file of F32 tensors with their names and shapes: of the sizes that trained weights have (norms about 1, matrices about
/// `1 / sqrt(k)`), and the same each time.
pub fn plausible_safetensors(tensors: &[(String, Vec<usize>)]) -> Vec<u8> {
    let mut header = json!({ "__metadata__": { "format": "pt" } });
    let mut data = Vec::new();
    let mut state = 1u64;
    for (name, shape) in tensors {
        let from = data.len();
        for _ in 0..shape.iter().product() {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let between = (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            let value = match shape[..] {
                [_, k] => between * (3.0 / k as f32).sqrt(),
                _ => 1.0 + 0.1 * between,
            };
            data.extend(value.to_le_bytes());
        }
        header[name] = json!({ "dtype": "F32", "shape": shape, "data_offsets": [from, data.len()] });
    }
    safetensors_with(&header.to_string(), &data)
}

/// A Llama of two layers of 256 wide: 4 heads of 64 over 2 KV heads, ffn 512, 128 tokens; its configuration and tensors.
pub fn small_llama() -> (Value, Vec<(String, Vec<usize>)>) {
    let mut config = tiny_config();
    for (key, value) in [
        ("hidden_size", 256),
        ("num_hidden_layers", 2),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 2),
        ("intermediate_size", 512),
        ("vocab_size", 128),
    ] {
        config[key] = value.into();
    }
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![128, 256])];
    for layer in 0..2 {
        let block = [
            ("input_layernorm.weight", vec![256]),
            ("self_attn.q_proj.weight", vec![256, 256]),
            ("self_attn.k_proj.weight", vec![128, 256]),
            ("self_attn.v_proj.weight", vec![128, 256]),
            ("self_attn.o_proj.weight", vec![256, 256]),
            ("post_attention_layernorm.weight", vec![256]),
            ("mlp.gate_proj.weight", vec![512, 256]),
            ("mlp.up_proj.weight", vec![512, 256]),
            ("mlp.down_proj.weight", vec![256, 512]),
        ];
        tensors.extend(block.map(|(name, shape)| (format!("model.layers.{layer}.{name}"), shape)));
    }
    tensors.push(("model.norm.weight".to_owned(), vec![256]));
    tensors.push(("lm_head.weight".to_owned(), vec![128, 256]));
    (config, tensors)
}

/// Writes the directory of a checkpoint with one weight file.
pub fn write_directory(folder: &Path, config: &Value, weights: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("config.json"), config.to_string())?;
    std::fs::write(folder.join("model.safetensors"), weights)
}

/// The tiny Llama in GGUF: linears in `Q8_0`, `Q4_1` and `Q4_0`, the rest in F32, F16 and BF16.
pub fn tiny_gguf() -> Gguf {
    const F32: (u32, u64, u64) = (0, 1, 4);
    const F16: (u32, u64, u64) = (1, 1, 2);
    const Q4_0: (u32, u64, u64) = (2, 32, 18);
    const Q4_1: (u32, u64, u64) = (3, 32, 20);
    const Q8_0: (u32, u64, u64) = (8, 32, 34);
    const BF16: (u32, u64, u64) = (30, 1, 2);
    let tensors = [
        ("token_embd.weight", vec![32, 8], Q8_0),
        ("blk.0.attn_norm.weight", vec![32], F32),
        ("blk.0.attn_q.weight", vec![32, 32], Q4_1),
        ("blk.0.attn_k.weight", vec![32, 16], Q4_0),
        ("blk.0.attn_v.weight", vec![32, 16], Q8_0),
        ("blk.0.attn_output.weight", vec![32, 32], F16),
        ("blk.0.ffn_norm.weight", vec![32], F32),
        ("blk.0.ffn_gate.weight", vec![32, 48], Q4_1),
        ("blk.0.ffn_up.weight", vec![32, 48], Q4_1),
        ("blk.0.ffn_down.weight", vec![48, 32], BF16),
        ("output_norm.weight", vec![32], F32),
        ("output.weight", vec![32, 8], F16),
    ];
    let mut file = Gguf::new()
        .string("general.architecture", "llama")
        .string("general.name", "tiny")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 64)
        .u32("llama.embedding_length", 32)
        .u32("llama.feed_forward_length", 48)
        .u32("llama.attention.head_count", 2)
        .u32("llama.attention.head_count_kv", 1)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .u32("llama.rope.dimension_count", 16)
        .f32("llama.rope.freq_base", 10000.0)
        .strings("tokenizer.ggml.tokens", &["<unk>", "a", "b", "c", "d", "e", "f", "g"]);
    for (seed, (name, dims, (ty, block, bytes))) in tensors.into_iter().enumerate() {
        let len = dims.iter().product::<u64>() / block * bytes;
        let data: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(7).wrapping_add(seed as u8)).collect();
        file = file.tensor(name, &dims, ty, &data);
    }
    file
}
