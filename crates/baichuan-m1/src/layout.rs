//! The tensors of a checkpoint: their names and shapes, in the order they are used.
//!
//! Shapes are row-major. Matrices are `[out, in]`; there are no biases. `W_pack` stacks the rows of the query, key
//! and value projections in this order.

use crate::config::{BaichuanConfig, LayerShape};

/// What a tensor is for. Random checkpoints draw from a distribution by this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Rows of the vocabulary, on the way in.
    Embedding,
    /// Rows of the vocabulary, on the way out.
    Head,
    /// Scales of an RMSNorm.
    Norm,
    /// Query, key and value projections.
    Pack,
    /// Any other projection.
    Linear,
    /// Taps of the convolution over K or V, oldest token first.
    Taps,
}

/// One tensor that a checkpoint must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name on disk.
    pub name: String,
    /// Shape on disk.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: Role,
}

impl TensorSpec {
    fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>, role: Role) -> Self {
        Self {
            name: name.into(),
            shape: shape.into(),
            role,
        }
    }

    /// The head that this tensor is: itself, or the embedding under a name of its own.
    pub(crate) fn as_head(&self) -> Self {
        Self::new(HEAD, self.shape.clone(), Role::Head)
    }

    /// Rows and columns of a matrix: of what linear layers and the embedding are made of.
    pub fn matrix(&self) -> Option<(usize, usize)> {
        match (self.role, &self.shape[..]) {
            (Role::Embedding | Role::Head | Role::Pack | Role::Linear, &[rows, cols]) => Some((rows, cols)),
            _ => None,
        }
    }

    /// Values in the tensor.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// `model.embed_tokens.weight`, `[vocab, hidden]`.
pub fn embedding(config: &BaichuanConfig) -> TensorSpec {
    let shape = [config.vocab_size, config.hidden_size];
    TensorSpec::new("model.embed_tokens.weight", shape, Role::Embedding)
}

/// `model.norm.weight`, `[hidden]`.
pub fn final_norm(config: &BaichuanConfig) -> TensorSpec {
    TensorSpec::new("model.norm.weight", [config.hidden_size], Role::Norm)
}

/// `lm_head.weight`, `[vocab, hidden]`; none where the head is the embedding.
pub fn head(config: &BaichuanConfig) -> Option<TensorSpec> {
    (!config.tie_word_embeddings).then(|| own_head(config))
}

/// The head's name.
const HEAD: &str = "lm_head.weight";

/// `lm_head.weight`, also where a plain checkpoint has none: a packed one always has it, rows normalised.
pub fn own_head(config: &BaichuanConfig) -> TensorSpec {
    let shape = [config.vocab_size, config.hidden_size];
    TensorSpec::new(HEAD, shape, Role::Head)
}

/// The tensors of one layer.
#[derive(Debug, Clone)]
pub struct LayerSpec {
    /// `input_layernorm.weight`, `[hidden]`.
    pub input_norm: TensorSpec,
    /// `self_attn.W_pack.weight`, `[hidden + 2 · kv_width, hidden]`.
    pub pack: TensorSpec,
    /// `self_attn.conv_k`, `[1, 1, kv_heads, 1, conv_window]`.
    pub taps_k: TensorSpec,
    /// `self_attn.conv_v`, likewise.
    pub taps_v: TensorSpec,
    /// `self_attn.o_proj.weight`, `[hidden, hidden]`.
    pub out: TensorSpec,
    /// `post_attention_layernorm.weight`, `[hidden]`.
    pub post_norm: TensorSpec,
    /// `mlp.gate_proj.weight`, `[intermediate, hidden]`.
    pub gate: TensorSpec,
    /// `mlp.up_proj.weight`, `[intermediate, hidden]`.
    pub up: TensorSpec,
    /// `mlp.down_proj.weight`, `[hidden, intermediate]`.
    pub down: TensorSpec,
}

impl LayerSpec {
    /// The tensors of layer number `index`.
    pub fn new(config: &BaichuanConfig, index: usize, shape: &LayerShape) -> Self {
        let (h, f) = (config.hidden_size, config.intermediate_size);
        let taps = [1, 1, shape.n_kv_heads, 1, config.conv_window];
        let spec = |part: &str, shape: &[usize], role| {
            TensorSpec::new(format!("model.layers.{index}.{part}"), shape, role)
        };
        Self {
            input_norm: spec("input_layernorm.weight", &[h], Role::Norm),
            pack: spec(
                "self_attn.W_pack.weight",
                &[shape.q_width() + 2 * shape.kv_width(), h],
                Role::Pack,
            ),
            taps_k: spec("self_attn.conv_k", &taps, Role::Taps),
            taps_v: spec("self_attn.conv_v", &taps, Role::Taps),
            out: spec("self_attn.o_proj.weight", &[h, shape.q_width()], Role::Linear),
            post_norm: spec("post_attention_layernorm.weight", &[h], Role::Norm),
            gate: spec("mlp.gate_proj.weight", &[f, h], Role::Linear),
            up: spec("mlp.up_proj.weight", &[f, h], Role::Linear),
            down: spec("mlp.down_proj.weight", &[h, f], Role::Linear),
        }
    }

    /// `mlp.gate_up_proj.weight`, `[2 · intermediate, hidden]`: gates, then ups. In packed checkpoints only.
    pub fn gate_up(&self) -> TensorSpec {
        let rows = self.gate.shape[0] + self.up.shape[0];
        let name = self.gate.name.replace("gate_proj", "gate_up_proj");
        TensorSpec::new(name, [rows, self.gate.shape[1]], Role::Linear)
    }

    pub(crate) fn into_array(self) -> [TensorSpec; 9] {
        let Self {
            input_norm,
            pack,
            taps_k,
            taps_v,
            out,
            post_norm,
            gate,
            up,
            down,
        } = self;
        [input_norm, pack, taps_k, taps_v, out, post_norm, gate, up, down]
    }
}

/// Every tensor of a checkpoint.
pub fn all(config: &BaichuanConfig) -> Vec<TensorSpec> {
    let layers = config.layers.iter().enumerate();
    let layers = layers.flat_map(|(i, shape)| LayerSpec::new(config, i, shape).into_array());
    std::iter::once(embedding(config))
        .chain(layers)
        .chain([final_norm(config)])
        .chain(head(config))
        .collect()
}

/// Every tensor of a packed checkpoint, matrices first: gate and up are one, and the head is there, tied or not.
pub fn packed(config: &BaichuanConfig) -> Vec<TensorSpec> {
    let layers = config.layers.iter().enumerate();
    let layers = layers.flat_map(|(i, shape)| {
        let spec = LayerSpec::new(config, i, shape);
        let gate_up = spec.gate_up();
        let not_stacked = |other: &TensorSpec| {
            !["gate_proj", "up_proj"]
                .iter()
                .any(|part| other.name.ends_with(&format!("mlp.{part}.weight")))
        };
        let mut specs: Vec<_> = spec.into_array().into_iter().filter(not_stacked).collect();
        specs.push(gate_up);
        specs
    });
    let mut specs: Vec<_> = std::iter::once(embedding(config))
        .chain(layers)
        .chain([final_norm(config), own_head(config)])
        .collect();
    specs.sort_by_key(|spec| spec.matrix().is_none());
    specs
}
