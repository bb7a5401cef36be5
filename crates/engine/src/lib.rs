//! The model-agnostic inference engine.

pub mod text;
