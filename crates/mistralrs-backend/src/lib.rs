//! Every model family that mistral.rs runs, behind the same [`Backend`](baichuan_engine::Backend) as Baichuan-M1.
//!
//! mistralrs-core is used whole: it loads the weights, keeps the caches and computes logits. What a client sees is
//! the engine's own: tokenisation, chat templates, sampling, structured output, stop rules, log-probabilities and
//! times come from [`baichuan_engine::completion`], which chooses every token as a logits processor inside
//! mistralrs-core's loop. So a request means the same here as for any other plugin, seeds included.
//!
//! In reading order: `folder`, what a checkpoint's folder holds; `load`, how it becomes a running engine; `driver`,
//! the thread that owns it and lets requests in; `steer`, the seam at which tokens are chosen. This crate is the only
//! one that names mistralrs-core's types, and it never knows a wire format or another plugin.

mod adapters;
mod backend;
mod driver;
mod folder;
mod generate;
mod hang;
mod load;
mod meter;
mod plugin;
mod quantize;
mod steer;
mod waiting;

#[cfg(test)]
mod tests;

pub use plugin::plugin;
