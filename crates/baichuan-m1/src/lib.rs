//! All that is known of Baichuan-M1: what its checkpoints must hold and how they are read.
//!
//! [`config`] makes a valid configuration of `config.json`, [`layout`] names the tensors that follow from it,
//! [`weights`] finds and checks them on disk, [`random`] writes checkpoints without sense for tests.

pub mod config;
pub mod layout;
pub mod random;
pub mod weights;
