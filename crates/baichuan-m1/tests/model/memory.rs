//! Memory that was freed, copied or used before does not show in any result, to the bit.

use baichuan_engine::CausalLm;
use baichuan_engine::kv::CacheSpec;
use baichuan_engine::model::Wants;

use crate::driver::{Driver, Setup, bits, likeliest, rounded_and_not};
use crate::golden::{CASES, Golden, folder, prompts};

/// What a prompt goes on with when nothing happens to it.
fn uninterrupted(driver: &mut Driver, golden: &Golden) -> Vec<u32> {
    let mut sequence = driver.start();
    let logits = driver.run(&mut sequence, &golden.tokens, Wants::LastLogits);
    let tokens = driver.greedy(&mut sequence, likeliest(&logits), golden.greedy.len());
    driver.free(sequence);
    tokens
}

#[test]
fn a_sequence_preempted_and_recomputed_goes_on_as_if_nothing_had_been() {
    for (case, setup) in CASES
        .into_iter()
        .flat_map(|case| rounded_and_not().map(|setup| (case, setup)))
    {
        let mut driver = Driver::load(&folder(case), setup);
        for golden in prompts(case) {
            let uninterrupted = uninterrupted(&mut driver, &golden);
            for done in [1, 10, 40] {
                let mut sequence = driver.start();
                let logits = driver.run(&mut sequence, &golden.tokens, Wants::LastLogits);
                let before = driver.greedy(&mut sequence, likeliest(&logits), done);
                driver.free(sequence);

                let mut again = driver.start();
                let so_far = [golden.tokens.as_slice(), &before].concat();
                let logits = driver.run(&mut again, &so_far, Wants::LastLogits);
                let after = driver.greedy(&mut again, likeliest(&logits), golden.greedy.len() - done);
                let what = format!("{case} {:?} after {done} tokens", setup.cache_dtype);
                assert_eq!([before, after].concat(), uninterrupted, "{what}");
                driver.free(again);
            }
        }
    }
}

#[test]
fn memory_used_before_by_others_does_not_show() {
    let mut driver = Driver::load(&folder("alternating"), Setup::default());
    let golden = prompts("alternating").pop().unwrap();
    let fresh = driver.logits_in_chunks(&golden.tokens, &[6]);
    for round in 0..10 {
        // Others of other lengths, so that blocks and slots come back in another order.
        let mut others: Vec<_> = (0..3).map(|_| driver.start()).collect();
        for (i, other) in others.iter_mut().enumerate() {
            driver.run(
                other,
                &golden.tokens[..(i * 17 + round * 5) % 40 + 1],
                Wants::Nothing,
            );
        }
        let first = others.remove(round % 3);
        driver.free(first);
        let used = driver.logits_in_chunks(&golden.tokens, &[6]);
        assert_eq!(bits(&used), bits(&fresh), "round {round}");
        others.into_iter().for_each(|other| driver.free(other));
    }
}

#[test]
fn a_copied_sequence_and_its_origin_both_go_on_as_one_would() {
    for (case, setup) in CASES
        .into_iter()
        .flat_map(|case| rounded_and_not().map(|setup| (case, setup)))
    {
        let mut driver = Driver::load(&folder(case), setup);
        for golden in prompts(case) {
            let uninterrupted = uninterrupted(&mut driver, &golden);
            let mut origin = driver.start();
            let logits = driver.run(&mut origin, &golden.tokens, Wants::LastLogits);
            let first = likeliest(&logits);
            let mut copy = driver.fork(&origin);
            let what = format!("{case} {:?}", setup.cache_dtype);
            assert_eq!(
                driver.greedy(&mut copy, first, 64),
                uninterrupted,
                "{what}, the copy"
            );
            driver.free(copy);
            assert_eq!(
                driver.greedy(&mut origin, first, 64),
                uninterrupted,
                "{what}, the origin"
            );
            driver.free(origin);
        }
    }
}

#[test]
fn the_engine_is_told_what_each_layer_keeps() {
    let paged = |bytes_per_token| CacheSpec::Paged { bytes_per_token };
    let rotating = |bytes_per_token| CacheSpec::Rotating {
        window: 12,
        bytes_per_token,
    };
    let state = |bytes| CacheSpec::State { bytes };
    let driver = Driver::load(&folder("alternating"), Setup::default());
    // Global: 1 head of 16; sliding: 2 heads of 8. Keys and values of either are 2 × 16 numbers of 4 bytes.
    let layer = [paged(128), state(128), rotating(128), state(128)];
    assert_eq!(driver.model.spec().layers, [layer, layer].concat());
    let [_, int8] = rounded_and_not();
    let driver = Driver::load(&folder("alternating"), int8);
    // Each head of either has 32 codes, what pads it with it, and 2 bytes for its step.
    let layer = [paged(68), state(128), rotating(136), state(128)];
    assert_eq!(driver.model.spec().layers, [layer, layer].concat());
    let driver = Driver::load(&folder("conv_4"), Setup::default());
    assert_eq!(
        driver.model.spec().layers,
        [rotating(128), state(384), paged(128), state(384)]
    );
    let driver = Driver::load(&folder("conv_1"), Setup::default());
    assert_eq!(
        driver.model.spec().layers,
        [paged(128), state(0), rotating(128), state(0)]
    );
}
