//! How a prompt is cut into steps does not show in any result, to the bit.

use baichuan_engine::CacheDtype;
use baichuan_engine::model::{HiddenRows, Wants};
use proptest::prelude::*;

use crate::driver::{Driver, Setup, bits, largest_difference};
use crate::golden::{CASES, folder, prompts};

#[test]
fn chunks_of_any_length_give_the_bits_of_the_whole_prompt() {
    for case in CASES {
        let mut driver = Driver::load(&folder(case), Setup::default());
        let longest = prompts(case).pop().unwrap();
        let whole = driver.logits_in_chunks(&longest.tokens, &[longest.tokens.len()]);
        for chunk in [1, 2, 3, 5, 7, 11, 12, 13, 16, 17, 40] {
            let cut = driver.logits_in_chunks(&longest.tokens, &[chunk]);
            assert_eq!(bits(&cut), bits(&whole), "{case} in chunks of {chunk}");
        }
    }
}

#[test]
fn rounded_caches_are_read_alike_by_the_chunk_that_writes_them_and_by_later_ones() {
    for cache_dtype in [CacheDtype::F16, CacheDtype::Bf16, CacheDtype::Int8] {
        let setup = Setup {
            cache_dtype: Some(cache_dtype),
            ..Setup::default()
        };
        for case in ["alternating", "all_sliding", "conv_4"] {
            let mut driver = Driver::load(&folder(case), setup);
            let longest = prompts(case).pop().unwrap();
            let whole = driver.logits_in_chunks(&longest.tokens, &[longest.tokens.len()]);
            for chunk in [1, 3, 8] {
                let cut = driver.logits_in_chunks(&longest.tokens, &[chunk]);
                assert_eq!(
                    bits(&cut),
                    bits(&whole),
                    "{case}, {cache_dtype:?}, chunks of {chunk}"
                );
            }
        }
    }
}

#[test]
fn pooled_states_of_chunks_add_up_to_those_of_the_whole() {
    let mut driver = Driver::load(&folder("alternating"), Setup::default());
    let golden = prompts("alternating").pop().unwrap();
    let (n, width) = (golden.tokens.len(), golden.hidden.len() / golden.tokens.len());
    for (rows, weighted) in [(HiddenRows::Sum, false), (HiddenRows::WeightedSum, true)] {
        let mut expected = vec![0.0; width];
        for (t, row) in golden.hidden.chunks(width).enumerate() {
            let weight = if weighted { (t + 1) as f32 } else { 1.0 };
            expected
                .iter_mut()
                .zip(row)
                .for_each(|(sum, x)| *sum += weight * x);
        }
        let mut sequence = driver.start();
        let mut sum = vec![0.0; width];
        for chunk in golden.tokens.chunks(10) {
            let part = driver.run(&mut sequence, chunk, Wants::Hidden(rows));
            sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
        }
        driver.free(sequence);
        let bound = 1e-4 * (n * n) as f32;
        assert!(largest_difference(&sum, &expected) <= bound, "{rows:?}");
    }
}

#[test]
fn the_first_and_the_last_hidden_state_are_rows_of_all_of_them() {
    let mut driver = Driver::load(&folder("alternating"), Setup::default());
    let tokens = prompts("alternating").pop().unwrap().tokens;
    let mut hidden = |rows| {
        let mut sequence = driver.start();
        let hidden = driver.run(&mut sequence, &tokens, Wants::Hidden(rows));
        driver.free(sequence);
        bits(&hidden)
    };
    let all = hidden(HiddenRows::All);
    let width = all.len() / tokens.len();
    assert_eq!(hidden(HiddenRows::First), all[..width]);
    assert_eq!(hidden(HiddenRows::Last), all[all.len() - width..]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn cuts_anywhere_give_the_bits_of_the_whole_prompt(
        case in prop::sample::select(&CASES[..]),
        chunks in prop::collection::vec(1..20_usize, 1..12),
        block_tokens in 1..9_usize,
        n_threads in 1..3_usize,
    ) {
        let setup = Setup { block_tokens, n_threads, ..Setup::default() };
        let mut driver = Driver::load(&folder(case), setup);
        let tokens = prompts(case).pop().unwrap().tokens;
        let whole = driver.logits_in_chunks(&tokens, &[tokens.len()]);
        let cut = driver.logits_in_chunks(&tokens, &chunks);
        prop_assert_eq!(bits(&cut), bits(&whole));
    }
}
