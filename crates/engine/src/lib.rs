//! The model-agnostic inference engine.
//!
//! It turns requests into steps of a model and a model's logits into text: requests, scheduling, cache
//! accounting, sampling, stop rules, tokenizer, chat template, and the thread that drives a model. It must
//! never know a tensor library, a wire format, the process environment or a model's name.
//!
//! In reading order: [`request`] and [`event`] are what goes in and out; [`backend`], [`plugin`] and [`model`]
//! are the three seams; [`kv`] keeps the accounts of cache memory.

pub mod backend;
pub mod completion;
pub mod config;
mod core;
pub mod error;
pub mod event;
pub mod grammar;
mod handle;
pub mod ids;
pub mod isq;
pub mod kv;
pub mod model;
mod pace;
pub mod placement;
pub mod plugin;
mod pooler;
pub mod queue;
pub mod rate;
pub mod registry;
pub mod request;
mod sampler;
mod scheduler;
pub mod shares;
pub mod stats;
mod stop;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod text;
pub mod topology;
mod watchdog;
mod worker;

pub use backend::{Backend, BackendInfo, EventSink, EventStream};
pub use config::{CacheBudget, CacheConfig, EngineConfig, OnFailure};
pub use error::{LoadError, MAX_VIOLATIONS, RequestError, StepError, SubmitError, Violation, Violations};
pub use grammar::{Grammar, Grammars, StructuredOutput};
pub use handle::EngineHandle;
pub use ids::{BlockId, RequestId, SeqId, SlotId, TenantId, TokenId};
pub use isq::IsqType;
pub use kv::{CachePlan, CacheSpec};
pub use model::CausalLm;
pub use placement::{DeviceChoice, DeviceMap, Placement};
pub use plugin::{CacheDtype, Checkpoint, Dtype, LoadProgress, LoadRequest, ModelPlugin, QuantizeRequest};
pub use registry::Registry;
pub use topology::{Topology, TopologyError};
