//! What it costs to measure.

use std::hint::black_box;
use std::time::Instant;

use super::*;
use crate::config::RequestsConfig;

/// Streams that run at once; their tokens fall into different buckets.
const STREAMS: u32 = 64;
const TOKENS: u32 = 100_000;
/// Unoptimised and on a busy machine it is a tenth of this; optimised, a thousandth.
const MAX_NANOS_A_TOKEN: u128 = 20_000;

/// Prints what a token costs: `cargo test --release -p baichuan-server --lib cost_of_a_token -- --nocapture`.
#[test]
fn the_cost_of_a_token_is_far_below_the_time_it_takes() {
    let models = Arc::new(Models::new(["m".to_owned()], "m"));
    let (_health, state) = watch::channel(State::default());
    let tenants = Arc::new(Tenants::new(&[]));
    let streams = Arc::new(Streams::new(&RequestsConfig::default()));
    let exports = ExportCounts::default();
    let metrics = Metrics::new(&models, state, tenants, None, streams, &exports);
    let model = metrics.model("m");
    let started = Instant::now();
    for token in 0..TOKENS {
        let gap = Duration::from_micros(u64::from(200 + 37 * (token % STREAMS)));
        observe(&model.inter_token, black_box(gap));
    }
    let nanos = started.elapsed().as_nanos() / u128::from(TOKENS);
    println!("{nanos} ns a token for metrics");
    assert!(nanos < MAX_NANOS_A_TOKEN, "{nanos} ns");
}
